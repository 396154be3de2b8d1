package keyspace_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events/keyspace"
)

// FuzzSecretForm makes a key type of anything, and holds anything against it. A
// type that is valid has a form that can be told and found; one that is not is
// refused by its members' paths; nothing panics.
func FuzzSecretForm(f *testing.F) {
	f.Add("sk_{environment}_", "live", "test", "base62", 32, "crc32", "sk_live_"+strings.Repeat("a", 38))
	f.Add("", "", "", "hex", 40, "", strings.Repeat("0", 40))
	f.Add("{environment}{environment}", "a", "a", "base64url", -1, "x", "{environment}")
	f.Add("-{environment}", "live", "livex", "base58", 200, "crc32", "-live")
	f.Add("{", "}", "\x00", "base32", 24, "", "é")
	f.Fuzz(func(t *testing.T, prefix, env1, env2, alphabet string, length int, checksum, secret string) {
		kt := keyspace.KeyType{Name: "a", Prefix: prefix, Alphabet: keyspace.Alphabet(alphabet), Length: length, Checksum: keyspace.Checksum(checksum)}
		for _, e := range []string{env1, env2} {
			if e != "" {
				kt.Environments = append(kt.Environments, e)
			}
		}
		d := keyspace.Definition{KeyTypes: []keyspace.KeyType{kt}}
		if faults := d.Validate(); faults != nil {
			for _, e := range faults {
				if !strings.HasPrefix(e.Field, "key_types[0].") || e.Message == "" {
					t.Fatalf("%+v: fault %+v", kt, e)
				}
			}
			return
		}
		env, ok := kt.Match(secret)
		if ok && !strings.HasPrefix(secret, kt.PrefixIn(env)) {
			t.Fatalf("%+v: %q is of environment %q", kt, secret, env)
		}
		if ok && keyspace.Compile(d, nil).WrongChecksum(secret) {
			t.Fatalf("%+v: %q has the form and a wrong checksum", kt, secret)
		}
		if hint := kt.Hint(secret); !strings.HasPrefix(secret, hint) || hint != "" && hint == secret {
			t.Fatalf("%+v: the hint of %q is %q", kt, secret, hint)
		}
		pattern := kt.Pattern()
		re, err := regexp.Compile(pattern)
		if err != nil {
			t.Fatalf("%+v: %v", kt, err)
		}
		if ok && pattern != "" && re.FindString("key: "+secret+" .") != secret {
			t.Fatalf("%+v: %s does not find %q", kt, pattern, secret)
		}
	})
}
