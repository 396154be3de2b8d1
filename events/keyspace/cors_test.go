package keyspace_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events/keyspace"
)

func TestOrigins(t *testing.T) {
	hundred := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("https://a%d.example", i))
		}
		return out
	}
	for _, tt := range []struct {
		name    string
		origins []string
		want    string // field and code of each fault
	}{
		{"none", nil, ""},
		{"all", []string{"*"}, ""},
		{"the forms", []string{"https://app.example.com", "http://localhost:3000", "https://[2001:db8::1]:8443", "http://127.0.0.1", "chrome-extension://abcdefgh", "http://a:443", "https://a:65535"}, ""},
		{"a hundred", hundred(100), ""},
		{"too many", hundred(101), "cors.origins too_many"},
		{"twice", []string{"https://a", "https://a"}, "cors.origins[1] duplicate"},
		{"all and one", []string{"*", "https://a"}, "cors.origins[0] conflict"},
		{"a path", []string{"https://a/"}, "cors.origins[0] invalid"},
		{"upper case", []string{"https://A"}, "cors.origins[0] invalid"},
		{"no scheme", []string{"app.example.com"}, "cors.origins[0] invalid"},
		{"usual ports", []string{"https://a:443", "http://a:80"}, "cors.origins[0] invalid, cors.origins[1] invalid"},
		{"no port", []string{"https://a:0", "https://a:65536", "https://a:"}, "cors.origins[0] invalid, cors.origins[1] invalid, cors.origins[2] invalid"},
		{"null is many pages", []string{"null"}, "cors.origins[0] invalid"},
		{"a pattern", []string{"https://*.example.com"}, "cors.origins[0] invalid"},
		{"IPv6 in another form", []string{"https://[2001:db8:0::1]", "https://[::1%lo]", "https://[1.2.3.4]"}, "cors.origins[0] invalid, cors.origins[1] invalid, cors.origins[2] invalid"},
		{"nothing", []string{""}, "cors.origins[0] invalid"},
	} {
		d := keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Prefix: "sk_"}}, CORS: keyspace.CORS{Origins: tt.origins}}
		var got []string
		for _, f := range d.Validate() {
			got = append(got, f.Field+" "+f.Code)
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, s, tt.want)
		}
	}
}

func TestAllows(t *testing.T) {
	for _, tt := range []struct {
		origins, origin, want string
	}{
		{"", "https://a", ""},
		{"https://a https://b", "https://b", "https://b"},
		{"https://a https://b", "https://c", ""},
		{"https://a", "https://A", ""},
		{"https://ab", "https://a", ""},
		{"https://a", "", ""},
		{"*", "https://c", "*"},
		{"*", "null", "*"},
		{"*", "", ""}, // no page asks
	} {
		c := keyspace.CORS{Origins: strings.Fields(tt.origins)}
		if got := c.Allows(tt.origin); got != tt.want {
			t.Errorf("%q allow %q as %q, want %q", tt.origins, tt.origin, got, tt.want)
		}
	}
}
