package keyspace_test

import (
	"hash/crc32"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events/keyspace"
)

const digits62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

var alphabets = []keyspace.Alphabet{"", keyspace.Base62, keyspace.Hex, keyspace.Base58, keyspace.Base32, keyspace.Base64URL}

// crcOf is the checksum once more, by long division.
func crcOf(random string) string {
	out := ""
	for n := crc32.ChecksumIEEE([]byte(random)); n > 0; n /= 62 {
		out = digits62[n%62:n%62+1] + out
	}
	return strings.Repeat("0", 6-len(out)) + out
}

// genForm draws a key type with a prefix of the pattern, which may hold "{" for
// the environment.
func genForm(name, prefix string, lengths ...int) *rapid.Generator[keyspace.KeyType] {
	return rapid.Custom(func(t *rapid.T) keyspace.KeyType {
		kt := keyspace.KeyType{
			Name: name, Length: rapid.SampledFrom(lengths).Draw(t, "length"),
			Prefix:       strings.ReplaceAll(rapid.StringMatching(prefix).Draw(t, "prefix"), "{", "{environment}"),
			Alphabet:     rapid.SampledFrom(alphabets).Draw(t, "alphabet"),
			Checksum:     rapid.SampledFrom([]keyspace.Checksum{"", keyspace.CRC32}).Draw(t, "checksum"),
			Environments: rapid.SampledFrom([][]string{nil, {"live"}, {"live", "test"}, {"a", "af", "aff"}, {"test", "live", "livex"}}).Draw(t, "environments"),
		}
		if kt.Environments == nil {
			kt.Prefix = strings.ReplaceAll(kt.Prefix, "{environment}", "e")
		}
		return kt
	})
}

// drawSecret draws a secret of the form, and the environment that it tells.
func drawSecret(t *rapid.T, kt *keyspace.KeyType) (secret, environment string) {
	prefix := kt.Prefix
	if len(kt.Environments) > 0 {
		environment = kt.Environments[0]
	}
	if strings.Contains(prefix, "{environment}") {
		environment = rapid.SampledFrom(kt.Environments).Draw(t, "environment")
		prefix = strings.ReplaceAll(prefix, "{environment}", environment)
	}
	random := rapid.StringOfN(rapid.RuneFrom([]rune(kt.Alphabet.Chars())), kt.Len(), kt.Len(), -1).Draw(t, "random")
	if kt.Checksum == keyspace.CRC32 {
		return prefix + random + crcOf(random), environment
	}
	return prefix + random, environment
}

// GitHub's published example of the scheme.
func TestChecksumVector(t *testing.T) {
	const random, sum = "zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ", "0mLq17"
	if got := string(keyspace.CRC32.Append([]byte("x"), []byte(random))); got != "x"+sum {
		t.Errorf("the checksum of %s is %s, want %s", random, got[1:], sum)
	}
	if got := string(keyspace.Checksum("").Append([]byte("x"), []byte(random))); got != "x" {
		t.Errorf("no checksum appends %q", got)
	}
	if keyspace.CRC32.Len() != 6 || keyspace.Checksum("").Len() != 0 {
		t.Error("the length of a checksum")
	}
	d := keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "token", Prefix: "ghp_", Length: 30, Checksum: keyspace.CRC32}}}
	c := keyspace.Compile(d, nil)
	secret := "ghp_" + random + sum
	if kt, _, ok := c.TypeOf(secret); !ok || kt.Name != "token" || c.WrongChecksum(secret) || !c.Checksums {
		t.Errorf("%s is not a token", secret)
	}
	if kt := d.KeyTypes[0]; kt.Hint(secret) != "ghp_zQWB" || kt.Pattern() != `\bghp_[0-9A-Za-z]{30}[0-9A-Za-z]{6}\b` {
		t.Errorf("hint %s, pattern %s", kt.Hint(secret), kt.Pattern())
	}
	// Every other character in every place after the prefix.
	for i := len("ghp_"); i < len(secret); i++ {
		for _, r := range digits62 + "_-+ \x00\xff" {
			other := secret[:i] + string(r) + secret[i+1:]
			if string(r) == secret[i:i+1] || len(other) != len(secret) {
				continue
			}
			if _, _, ok := c.TypeOf(other); ok || !c.WrongChecksum(other) {
				t.Errorf("%q has the form of a token, or has no wrong checksum", other)
			}
		}
	}
	for _, other := range []string{"", "ghp_", secret[:39], secret + "0", "gho_" + random + sum, secret[1:]} {
		if _, _, ok := c.TypeOf(other); ok || c.WrongChecksum(other) {
			t.Errorf("%q has the form of a token, or has a wrong checksum", other)
		}
	}
	if c = keyspace.Compile(minimal(), nil); c.Checksums || c.WrongChecksum(secret) || c.WrongChecksum("sk_"+strings.Repeat("!", 32)) {
		t.Error("a wrong checksum where there is none")
	}
}

// A secret drawn by a type's form has that form, and tells its environment; with
// a checksum, no other character in any place will do.
func TestDrawnSecretsMatch(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		d := keyspace.Definition{KeyTypes: []keyspace.KeyType{genForm("a", `(-|k|live)?[_-]?({[_x-]?)?`, 0, 30, 31, 200).Draw(r, "type")}}
		if f := d.Validate(); f != nil {
			r.Fatalf("%+v: %v", d.KeyTypes[0], f)
		}
		c := keyspace.Compile(d, nil)
		secret, environment := drawSecret(r, &d.KeyTypes[0])
		if kt, env, ok := c.TypeOf(secret); !ok || kt.Name != "a" || env != environment || c.WrongChecksum(secret) {
			r.Fatalf("%q is %v in %q, want in %q; wrong checksum %v", secret, ok, env, environment, c.WrongChecksum(secret))
		}
		if kt := d.KeyTypes[0]; kt.Hint(secret) != kt.PrefixIn(environment)+secret[len(kt.PrefixIn(environment)):][:4] {
			r.Fatalf("%q has the hint %q", secret, kt.Hint(secret))
		} else if most := len(kt.PrefixIn(environment)) + kt.Len()/2 + 1; !d.Reveals(secret) || d.Reveals(kt.Hint(secret)) || len(kt.Environments) < 2 && !d.Reveals(secret[:most]) {
			r.Fatalf("of %q, its hint %q and its first %d characters, the wrong ones reveal it", secret, kt.Hint(secret), most)
		}
		if d.KeyTypes[0].Checksum == "" {
			return
		}
		start := len(d.KeyTypes[0].PrefixIn(environment))
		i := rapid.IntRange(start, len(secret)-1).Draw(r, "place")
		other := rapid.Byte().Draw(r, "other")
		spoilt := secret[:i] + string([]byte{other}) + secret[i+1:]
		if spoilt == secret {
			return
		}
		if _, _, ok := c.TypeOf(spoilt); ok || !c.WrongChecksum(spoilt) {
			r.Fatalf("%q for %q: has the form %v, wrong checksum %v", spoilt, secret, ok, c.WrongChecksum(spoilt))
		}
	})
}

// The hint of a type reveals nothing where another type has no prefix.
func TestRevealsByTheLongestPrefix(t *testing.T) {
	d := keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "a", Alphabet: keyspace.Base64URL, Length: 20}, {Name: "b", Prefix: "sk_live_"}}}
	for start, want := range map[string]bool{"": false, "sk_live_abcd": false, "sk_live_abcdefghijklmnop": false, "sk_live_abcdefghijklmnopq": true,
		"sk-live_ab": false, "sk-live_abc": true, "sk-live_...": false, "sk_live_abcdefghijkl": true} {
		if got := d.Reveals(start); got != want {
			t.Errorf("%q: %v, want %v", start, got, want)
		}
	}
}

// A scanner finds a secret in text as a whole and nothing else there; of one that
// is cut it finds only what has the form of the type again.
func TestPatternFindsSecrets(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		kt := genForm("a", `(-|k|live)?[_-]?({[_x-]?)?`, 0, 30, 31, 200).Draw(r, "type")
		secret, _ := drawSecret(r, &kt)
		if kt.Prefix == "" {
			if kt.Pattern() != "" {
				r.Fatalf("pattern %q without a prefix", kt.Pattern())
			}
			return
		}
		re := regexp.MustCompile(kt.Pattern())
		before := rapid.SampledFrom([]string{"", " ", "key=", "curl -H \"Authorization: Bearer ", "{\"key\":\"", "\n", "('", "a, "}).Draw(r, "before")
		after := rapid.SampledFrom([]string{"", " ", "\"", "\n", ".", "')", ", b", "\" https://example.com/"}).Draw(r, "after")
		if got := re.FindAllString(before+secret+after, -1); len(got) != 1 || got[0] != secret {
			r.Fatalf("%s finds %q in %q, want %q", re, got, before+secret+after, secret)
		}
		for _, cut := range []string{secret[:len(secret)-1], secret[1:]} {
			for _, found := range re.FindAllString(before+cut+after, -1) {
				if !re.MatchString(found) || found != cut || !hasShape(&kt, cut) {
					r.Fatalf("%s finds %q in %q", re, found, before+cut+after)
				}
			}
		}
	})
}

// hasShape is the form without the checksum's value, which no pattern can tell.
func hasShape(kt *keyspace.KeyType, secret string) bool {
	bare := *kt
	bare.Checksum = ""
	n := kt.Checksum.Len()
	if len(secret) < n || strings.Trim(secret[len(secret)-n:], digits62) != "" {
		return false
	}
	_, ok := bare.Match(secret[:len(secret)-n])
	return ok
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		kt   keyspace.KeyType
		want string
	}{
		{keyspace.KeyType{}, ``},
		{keyspace.KeyType{Prefix: "sk_"}, `\bsk_[0-9A-Za-z]{32}\b`},
		{keyspace.KeyType{Prefix: "-k-", Alphabet: keyspace.Hex, Length: 40}, `-k-[0-9a-f]{40}\b`},
		{keyspace.KeyType{Prefix: "k", Alphabet: keyspace.Base58}, `\bk[1-9A-HJ-NP-Za-km-z]{32}\b`},
		{keyspace.KeyType{Prefix: "k", Alphabet: keyspace.Base32}, `\bk[a-z2-7]{32}\b`},
		{keyspace.KeyType{Prefix: "k", Alphabet: keyspace.Base64URL}, `\bk[A-Za-z0-9_-]{32}`},
		{keyspace.KeyType{Prefix: "k", Alphabet: keyspace.Base64URL, Checksum: keyspace.CRC32}, `\bk[A-Za-z0-9_-]{32}[0-9A-Za-z]{6}\b`},
		{keyspace.KeyType{Prefix: "lat_{environment}_", Environments: []string{"live"}}, `\blat_live_[0-9A-Za-z]{32}\b`},
		{keyspace.KeyType{Prefix: "lat_{environment}_", Environments: []string{"live", "test"}}, `\blat_(?:live|test)_[0-9A-Za-z]{32}\b`},
		{keyspace.KeyType{Prefix: "{environment}", Environments: []string{"live", "live_eu"}}, `\b(?:live_eu|live)[0-9A-Za-z]{32}\b`},
	} {
		if got := c.kt.Pattern(); got != c.want {
			t.Errorf("%+v: %s, want %s", c.kt, got, c.want)
		}
	}
	kt := keyspace.KeyType{Prefix: "{environment}", Environments: []string{"live", "live_eu"}}
	kt.Pattern()
	if kt.Environment() != "live" {
		t.Error("Pattern changed the order of the environments")
	}
}

// Of types that pass together, no two take one secret, and none finds a
// wrong checksum in another's secret.
func TestValidTypesDoNotOverlap(t *testing.T) {
	both := 0
	rapid.Check(t, func(r *rapid.T) {
		d := keyspace.Definition{KeyTypes: []keyspace.KeyType{
			genForm("a", `[af_]{0,3}({[_a]?)?`, 30, 31, 32, 36, 37, 38).Draw(r, "a"), genForm("b", `[af_]{0,3}({[_a]?)?`, 30, 31, 32, 36, 37, 38).Draw(r, "b"),
		}}
		if d.Validate() != nil {
			return
		}
		both++
		c := keyspace.Compile(d, nil)
		i := rapid.IntRange(0, 1).Draw(r, "whose")
		mine, other := &d.KeyTypes[i], &d.KeyTypes[1-i]
		secret, environment := drawSecret(r, mine)
		// A secret of mine that comes as near to the other as it can: of characters
		// that all alphabets have, going on as the other's prefix, with its checksum.
		if rapid.Bool().Draw(r, "near") {
			p, q := mine.PrefixIn(environment), other.PrefixIn(rapid.SampledFrom(append([]string{"a"}, other.Environments...)).Draw(r, "other's"))
			random := []byte(rapid.StringMatching(`[af]{40}`).Draw(r, "common"))[:mine.Len()]
			if rest, ok := strings.CutPrefix(q, p); ok {
				copy(random, rest)
			}
			if n := len(p) + len(random); mine.Checksum == "" && other.Checksum != "" && n == len(q)+other.Len()+6 {
				copy(random[len(random)-6:], crcOf((p + string(random))[len(q):n-6]))
			}
			if strings.Trim(string(random), mine.Alphabet.Chars()) != "" {
				return
			}
			secret = p + string(mine.Checksum.Append(random, random))
		}
		if _, ok := mine.Match(secret); !ok {
			r.Fatalf("%q is not of %+v", secret, mine)
		}
		if _, ok := other.Match(secret); ok {
			r.Fatalf("%q is of %+v and of %+v", secret, mine, other)
		}
		if kt, env, ok := c.TypeOf(secret); !ok || kt != mine || env != environment {
			r.Fatalf("%q is taken for %v", secret, kt)
		}
		if c.WrongChecksum(secret) {
			r.Fatalf("%q, of %+v, has a wrong checksum beside %+v", secret, mine, other)
		}
	})
	if both < 10 {
		t.Errorf("only %d pairs are valid", both)
	}
}

// What overlaps is refused, in either order.
func TestOverlaps(t *testing.T) {
	envs := []string{"live", "test"}
	for _, c := range []struct {
		a, b    keyspace.KeyType
		refused bool
	}{
		{keyspace.KeyType{Prefix: "k_{environment}_", Environments: envs}, keyspace.KeyType{Prefix: "k_test_"}, true},
		{keyspace.KeyType{Prefix: "k_{environment}_", Environments: envs}, keyspace.KeyType{Prefix: "k_demo_"}, false},
		{keyspace.KeyType{Prefix: "k_{environment}_", Environments: envs}, keyspace.KeyType{Prefix: "k_test_", Length: 33}, false},
		{keyspace.KeyType{Prefix: "k_{environment}_", Environments: envs}, keyspace.KeyType{Prefix: "k_{environment}_", Environments: []string{"eu", "test"}}, true},
		{keyspace.KeyType{Prefix: "k_{environment}_", Environments: envs}, keyspace.KeyType{Prefix: "k_{environment}_", Environments: []string{"eu"}}, false},
		{keyspace.KeyType{Prefix: "k_", Checksum: keyspace.CRC32}, keyspace.KeyType{Prefix: "k_"}, false},
		{keyspace.KeyType{Prefix: "k_", Checksum: keyspace.CRC32}, keyspace.KeyType{Prefix: "k_", Length: 38}, true},
		{keyspace.KeyType{Prefix: "k_", Checksum: keyspace.CRC32}, keyspace.KeyType{Prefix: "k_", Checksum: keyspace.CRC32}, true},
		{keyspace.KeyType{Prefix: "k_", Alphabet: keyspace.Base64URL, Length: 37}, keyspace.KeyType{Prefix: "k_live_", Length: 32}, true},
		{keyspace.KeyType{Prefix: "k_", Alphabet: keyspace.Base62, Length: 37}, keyspace.KeyType{Prefix: "k_live_", Length: 32}, false},
		{keyspace.KeyType{Prefix: "k", Alphabet: keyspace.Base58, Length: 33}, keyspace.KeyType{Prefix: "kl", Length: 32}, false},
		{keyspace.KeyType{Prefix: "k", Alphabet: keyspace.Base58, Length: 33}, keyspace.KeyType{Prefix: "km", Length: 32}, true},
		{keyspace.KeyType{Prefix: "k", Alphabet: keyspace.Base32, Length: 33}, keyspace.KeyType{Prefix: "k1", Length: 32}, false},
		{keyspace.KeyType{Length: 32}, keyspace.KeyType{Prefix: "k", Length: 31}, true},
	} {
		for _, types := range [][]keyspace.KeyType{{c.a, c.b}, {c.b, c.a}} {
			types = slices.Clone(types)
			types[0].Name, types[1].Name = "x", "y"
			d := keyspace.Definition{KeyTypes: types}
			f := d.Validate()
			if refused := len(f) == 1 && f[0].Field == "key_types[1].prefix" && f[0].Code == "duplicate"; refused != c.refused || !refused && f != nil {
				t.Errorf("%+v beside %+v: %v", types[0], types[1], f)
			}
		}
	}
}

// The questions that every verification asks do not allocate.
func TestFormsDoNotAllocate(t *testing.T) {
	d := keyspace.Definition{KeyTypes: []keyspace.KeyType{
		{Name: "a", Prefix: "lat_{environment}_", Environments: []string{"live", "test"}, Checksum: keyspace.CRC32, Length: 200},
		{Name: "b", Prefix: "pk_", Alphabet: keyspace.Base64URL},
	}}
	c := keyspace.Compile(d, nil)
	random := strings.Repeat("aZ09", 50)
	for _, s := range []string{"lat_test_" + random + crcOf(random), "lat_test_" + random + "000000", "pk_" + random[:32], "lat_demo_", "", random} {
		if n := testing.AllocsPerRun(100, func() { c.WrongChecksum(s); c.TypeOf(s); c.Find(s) }); n != 0 {
			t.Errorf("%.12q: %v allocations", s, n)
		}
	}
	if !c.WrongChecksum("lat_test_" + random + "000000") {
		t.Error("a wrong checksum is not seen")
	}
}
