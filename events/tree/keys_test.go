package tree_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events/tree"
)

func TestKeyFile(t *testing.T) {
	file := tree.GenerateKeyFile()
	if bytes.Equal(file, tree.GenerateKeyFile()) {
		t.Fatal("the same keys twice")
	}
	s, err := tree.NewSigner(origin, file)
	if err != nil {
		t.Fatal(err)
	}
	if s.Origin() != origin {
		t.Fatal(s.Origin())
	}
	again, err := tree.NewSigner(origin, bytes.TrimSuffix(file, []byte("\n"))) // as internal/files trims it
	if err != nil || !slices.Equal(again.VKeys(), s.VKeys()) {
		t.Fatal(err)
	}
	elsewhere, err := tree.NewSigner(tree.Origin("01JZ0000000000000000000001"), file)
	if err != nil || elsewhere.VKeys()[0] == s.VKeys()[0] {
		t.Fatalf("the keys of another log have the same name: %v", err)
	}
	for _, k := range s.VKeys() {
		if !strings.HasPrefix(k, origin+"+") {
			t.Errorf("%s is not named as the log", k)
		}
	}
}

func TestNewSignerRefuses(t *testing.T) {
	good := string(tree.KeyFile([32]byte{1}, [32]byte{2}))
	lines := strings.SplitAfter(good, "\n")
	for name, file := range map[string]string{
		"nothing":              "",
		"another version":      strings.Replace(good, "v1", "v2", 1),
		"one key":              lines[0] + lines[1],
		"the other order":      lines[0] + lines[2] + lines[1],
		"one key twice":        lines[0] + lines[1] + lines[1],
		"a line more":          good + "more\n",
		"an empty line":        good + "\n",
		"CRLF":                 strings.ReplaceAll(good, "\n", "\r\n"),
		"a space behind":       strings.Replace(good, "\n", " \n", 1),
		"another algorithm":    strings.Replace(good, "ed25519", "ed448", 1),
		"keys exchanged":       lines[0] + strings.Replace(lines[2], "ml-dsa-44", "ed25519", 1) + strings.Replace(lines[1], "ed25519", "ml-dsa-44", 1),
		"a key of 33 bytes":    strings.Replace(good, "AA=", "AAAA", 1),
		"no prefix":            strings.Replace(good, "PRIVATE+KEY+", "", 1),
		"a vkey":               lines[0] + newSigner(t, origin, 1).VKeys()[0] + "\n" + lines[2],
		"upper-case check hex": strings.ToUpper(good),
	} {
		if _, err := tree.NewSigner(origin, []byte(file)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for _, o := range []string{"", "a b", "a+b", "a\nb", "a\u00a0b", "a\x00", "\xff", strings.Repeat("a", 256)} {
		if _, err := tree.NewSigner(o, []byte(good)); err == nil {
			t.Errorf("origin %q is accepted", o)
		}
	}
	if _, err := tree.NewSigner(strings.Repeat("a", 255), []byte(good)); err != nil {
		t.Error(err)
	}
}

// TestEachByteOfAKeyFileMatters: a changed file is refused, and the error does not
// repeat it.
func TestEachByteOfAKeyFileMatters(t *testing.T) {
	good := tree.KeyFile([32]byte{1, 2, 3}, [32]byte{4, 5, 6})
	for i := range len(good) - 1 { // the last line feed may be missing
		for _, bit := range []int{0, i % 7, 5} {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			_, err := tree.NewSigner(origin, b)
			if err == nil {
				t.Fatalf("byte %d, bit %d does not matter", i, bit)
			}
			if strings.Contains(err.Error(), "AQID") || strings.Contains(err.Error(), "BAUG") {
				t.Fatalf("the error tells the key: %v", err)
			}
		}
	}
}

// TestSignerDoesNotPrint: no verb shows the keys.
func TestSignerDoesNotPrint(t *testing.T) {
	s := newSigner(t, origin, 1)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		if got := fmt.Sprintf(verb, s); got != "signer of "+origin {
			t.Errorf("%s: %s", verb, got)
		}
	}
}

func TestNewVerifierRefuses(t *testing.T) {
	s := newSigner(t, origin, 1)
	ed, pq := s.VKeys()[0], s.VKeys()[1]
	foreign := newSigner(t, origin+"x", 1).VKeys()
	if _, err := tree.NewVerifier(pq, ed); err != nil {
		t.Fatal(err)
	}
	for name, vkeys := range map[string][]string{
		"none":                   {},
		"one":                    {ed},
		"three":                  {ed, pq, ed},
		"Ed25519 twice":          {ed, ed},
		"ML-DSA-44 twice":        {pq, pq},
		"of two logs":            {ed, foreign[1]},
		"a line feed":            {ed + "\n", pq},
		"no id":                  {strings.Join(strings.Split(ed, "+")[:1], "+"), pq},
		"another id":             {strings.Replace(ed, "+", "+0", 1), pq},
		"another name":           {strings.Replace(ed, "01JZ", "01JX", 1), pq},
		"an unknown type":        {"example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k", "x"},
		"a shortened key":        {ed, pq[:len(pq)-4]},
		"nothing in base64":      {origin + "+00000000+", pq},
		"a key of 31 bytes":      {vkey(origin, append([]byte{1}, make([]byte, 31)...)), pq},
		"a key of 1311 bytes":    {ed, vkey(origin, append([]byte{6}, make([]byte, 1311)...))},
		"an Ed25519 cosigner":    {vkey(origin, append([]byte{4}, make([]byte, 32)...)), pq},
		"only a type":            {vkey(origin, []byte{1}), pq},
		"an origin with a space": {vkey("a b", append([]byte{1}, make([]byte, 32)...)), vkey("a b", append([]byte{6}, make([]byte, 1312)...))},
		"a second that is none":  {ed, "x"},
	} {
		if _, err := tree.NewVerifier(vkeys...); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	for i := range ed {
		b := []byte(ed)
		b[i] ^= 1
		if _, err := tree.NewVerifier(string(b), pq); err == nil {
			t.Errorf("byte %d of a verifier key does not matter", i)
		}
	}
}

// vkey makes a verifier key whose id is right.
func vkey(name string, key []byte) string {
	sum := sha256.Sum256(append([]byte(name+"\n"), key...))
	return fmt.Sprintf("%s+%x+%s", name, sum[:4], base64.StdEncoding.EncodeToString(key))
}

func FuzzNewVerifier(f *testing.F) {
	s := newSigner(f, origin, 1)
	f.Add(s.VKeys()[0], s.VKeys()[1])
	f.Add(s.VKeys()[1], s.VKeys()[0])
	f.Fuzz(func(t *testing.T, a, b string) {
		v, err := tree.NewVerifier(a, b)
		if err != nil {
			return
		}
		if k := v.VKeys(); !slices.Equal(k, []string{a, b}) && !slices.Equal(k, []string{b, a}) { // T2
			t.Fatalf("%q, %q becomes %q", a, b, k)
		}
	})
}

func FuzzNewSigner(f *testing.F) {
	f.Add(tree.KeyFile([32]byte{1}, [32]byte{2}))
	f.Fuzz(func(t *testing.T, b []byte) { tree.NewSigner(origin, b) })
}
