package projections

import (
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// TestBothViewsFindSecrets: by the form of any keyspace, and by the digest of any
// key, whether it was issued or imported, lives or has ended.
func TestBothViewsFindSecrets(t *testing.T) {
	w, keys, dir := newWorld(t), NewKeys(), NewDirectory()
	w.define("ks", definition())
	w.define("other", keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "a", Prefix: "other_", Alphabet: keyspace.Hex, Length: 32}}})
	ended := w.create("ks", "acme", "an-ended-secret-01", nil)
	w.take("ks", "acme", "a-foreign-secret-01", nil)
	w.add(ended.Aggregate(), &events.KeyRevoked{Code: events.RevokeUnspecified})
	apply(t, keys, w)
	apply(t, dir, w)
	for _, f := range []events.SecretFinder{keys, dir} {
		for text, want := range map[string]string{
			"see an-ended-secret-01, please":             "an-ended-secret-01",
			"key=a-foreign-secret-01":                    "a-foreign-secret-01",
			"xsk_" + strings.Repeat("a", 32):             "sk_" + strings.Repeat("a", 32),
			"other_" + strings.Repeat("0", 32):           "other_" + strings.Repeat("0", 32),
			"another-secret-001 another_" + "0123456789": "",
		} {
			start, end, ok := f.FindSecret(text)
			if got := text[start:end]; got != want || ok != (want != "") {
				t.Errorf("%T in %q: %q, want %q", f, text, got, want)
			}
		}
	}
}
