package events_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// finder knows some key types, and the secrets of some keys.
type finder struct {
	types   []keyspace.KeyType
	secrets []string
}

func (f *finder) FindSecret(text string) (start, end int, ok bool) {
	rules := slices.Values([]*keyspace.Compiled{keyspace.Compile(keyspace.Definition{KeyTypes: f.types}, nil)})
	return events.FindSecret(text, rules, func(d events.Digest) bool {
		return slices.ContainsFunc(f.secrets, func(s string) bool { return events.NewSecret(s).Digest() == d })
	})
}

func TestFindSecret(t *testing.T) {
	const random = "0123456789abcdefghijKLMNOPQRSTUV"
	f := &finder{
		types: []keyspace.KeyType{
			{Name: "secret", Prefix: "sk_{environment}_", Environments: []string{"live", "test"}},
			{Name: "short", Prefix: "k", Length: 24},
			{Name: "url", Prefix: "tok-", Alphabet: keyspace.Base64URL, Length: 24},
			{Name: "sum", Prefix: "s_sum_", Length: 24, Checksum: keyspace.CRC32},
			{Name: "bare", Length: 24, Checksum: keyspace.CRC32},
			{Name: "unmarked", Alphabet: keyspace.Hex, Length: 32},
		},
		secrets: []string{"legacy/key+with==", "A7f3-99d1-4c55-b2aa-0001", "plainlegacysecret0"},
	}
	sk := "sk_live_" + random
	bare := random[:24] + string(keyspace.CRC32.Append(nil, []byte(random[:24])))
	url := "tok-" + random[:20] + "-_ab"
	for _, tt := range []struct{ text, want string }{
		{sk, sk},
		{"the key is " + sk + ".", sk},
		{"x" + sk + "y", sk}, // glued
		{"tenant_" + sk, sk},
		{"sk_test_" + random, "sk_test_" + random},
		{"sk_prod_" + random, ""},
		{sk[:39], ""},
		{"k" + random[:24], "k" + random[:24]},
		{"k" + random[:25], ""}, // a short prefix marks words only
		{"ak" + random[:24], ""},
		{"(k" + random[:24] + ")", "k" + random[:24]},
		{url, url},
		{url + "-more", ""},
		{"s_sum_" + random[:30], "s_sum_" + random[:30]}, // a mistyped one too
		{bare, bare},
		{random[:30], ""},
		{strings.Repeat("0a", 16), ""}, // nothing tells it from a checksum of a file
		{"plainlegacysecret0", "plainlegacysecret0"},
		{"plainlegacysecret0x", ""},
		{"?key=plainlegacysecret0&x=1", "plainlegacysecret0"},
		{`{"key":"plainlegacysecret0"}`, "plainlegacysecret0"},
		{"Bearer plainlegacysecret0\n", "plainlegacysecret0"},
		{"plainlegacysecret0:x", "plainlegacysecret0"},
		{"ci_plainlegacysecret0", "plainlegacysecret0"},
		{"legacy/key+with==", "legacy/key+with=="},
		{`"legacy/key+with=="`, "legacy/key+with=="},
		{"a=legacy/key+with==;", "legacy/key+with=="},
		{"id-A7f3-99d1-4c55-b2aa-0001-x", "A7f3-99d1-4c55-b2aa-0001"},
		{"key_01JD8M3W7Y2ZQ4R6T8V0X2Z4B6", ""},
		{"", ""}, {"short", ""},
	} {
		start, end, ok := f.FindSecret(tt.text)
		if got := tt.text[start:end]; got != tt.want || ok != (tt.want != "") {
			t.Errorf("%q: %q %t, want %q", tt.text, got, ok, tt.want)
		}
	}
	if got, want := events.WithoutSecrets(f, sk+" and "+sk+", plainlegacysecret0"), "[secret] and [secret], [secret]"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestDrawnSecretsAreFound: every secret is found as a word by its digest, in any text.
func TestDrawnSecretsAreFound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		secret := rapid.StringMatching(`[0-9A-Za-z]{16,40}(-[0-9A-Za-z]{1,8}){0,3}`).Draw(t, "secret")
		before := rapid.StringMatching(`([ -~]{0,20}[ "'=:])?`).Draw(t, "before")
		after := rapid.StringMatching(`([ "',&][ -~]{0,20})?`).Draw(t, "after")
		f := &finder{secrets: []string{secret}}
		// A shorter find may begin in the text before; what counts is that it is refused.
		if !events.HoldsSecret(f, before+secret+after) {
			t.Fatalf("not found: %q in %q", secret, before+secret+after)
		}
		if got := events.WithoutSecrets(f, secret); strings.Contains(got, secret) {
			t.Fatalf("%q still holds %q", got, secret)
		}
	})
}

func TestIsSecret(t *testing.T) {
	const sk, legacy = "sk_live_0123456789abcdefghijKLMNOPQRSTUV", "A7f3-99d1-4c55-b2aa-0001"
	rules := slices.Values([]*keyspace.Compiled{keyspace.Compile(keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Prefix: "sk_live_"}}}, nil)})
	for name, want := range map[string]bool{
		sk: true, "proj_" + sk + "x": true, legacy: true,
		"id:" + legacy:                         false, // found by FindSecret alone
		"0193a1b2-7c3d-7e4f-8a5b-6c7d8e9f0a1b": false, "proj_1": false, "": false,
		strings.Repeat("a.", 500_000): false, strings.Repeat("sk_live_", 100_000): false,
	} {
		asked := 0
		got := events.IsSecret(name, rules, func(d events.Digest) bool { asked++; return d == events.NewSecret(legacy).Digest() })
		if got != want || asked > 1 {
			t.Errorf("%.60s: %t after %d look-ups, want %t after one at most", name, got, asked, want)
		}
	}
}

// TestFindSecretIsBounded: no text is hashed without bound.
func TestFindSecretIsBounded(t *testing.T) {
	for _, part := range []string{"a", "a-", "ab-", "abc-", "-", "abcdefgh.", "x y", "abcdefghijklmnop "} {
		text := strings.Repeat(part, 100_000/len(part))
		hashed := 0
		events.FindSecret(text, func(func(*keyspace.Compiled) bool) {}, func(events.Digest) bool { hashed++; return false })
		if per := float64(hashed) / float64(len(text)); per > 8 {
			t.Errorf("%q: %.1f look-ups for each character", part, per)
		}
	}
}

func FuzzFindSecret(f *testing.F) {
	f.Add("sk_live_0123456789abcdefghijKLMNOPQRSTUV", "legacy-secret-00")
	f.Add("\xff sk_live_", "x")
	fd := &finder{types: []keyspace.KeyType{{Name: "secret", Prefix: "sk_live_"}, {Name: "sum", Prefix: "k", Checksum: keyspace.CRC32}}}
	f.Fuzz(func(t *testing.T, text, secret string) {
		fd.secrets = []string{secret}
		start, end, ok := fd.FindSecret(text)
		if ok && (start < 0 || end > len(text) || end-start < events.MinSecret) {
			t.Fatal(fmt.Sprint(start, end))
		}
		if events.WellFormed(secret) && !events.HoldsSecret(fd, text+" "+secret+"\n"+text) {
			t.Errorf("%q is not found behind %q", secret, text)
		}
		if got := events.WithoutSecrets(fd, text); ok && len(got) >= len(text)+8 {
			t.Errorf("%q", got)
		}
	})
}
