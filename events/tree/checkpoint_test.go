package tree_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/transparency-dev/formats/log"
	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/keytrail/keytrail/events/tree"
)

var signedAt = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// newSigner makes a signer for the log origin. Different seeds have different keys.
func newSigner(t testing.TB, origin string, seed byte) *tree.Signer {
	t.Helper()
	s, err := tree.NewSigner(origin, tree.KeyFile([32]byte{seed, 1}, [32]byte{seed, 2}))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sign(t testing.TB, s *tree.Signer, h tree.Head) []byte {
	t.Helper()
	c, err := s.Sign(h, signedAt)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheckpoint(t *testing.T) {
	s := newSigner(t, origin, 1)
	g := grow(t, "checkpoint", 9)
	for _, size := range []int{0, 1, 9} {
		h := g.head(size)
		b := sign(t, s, h)
		want := fmt.Sprintf("%s\n%d\n%s\n\n— %s ", origin, size, h.Root, origin)
		if !strings.HasPrefix(string(b), want) || bytes.Count(b, []byte("\n")) != 6 {
			t.Fatalf("%s\nwant it to begin with\n%s", b, want)
		}
		if got, err := tree.ReadHead(b); err != nil || got != h {
			t.Fatalf("read without keys: %+v, %v", got, err)
		}
		v, err := tree.NewVerifier(s.VKeys()...)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []*tree.Verifier{v, s.Verifier()} {
			c, err := v.Open(b)
			if err != nil || c.Head != h || !c.Time.Equal(signedAt) {
				t.Fatalf("%+v, %v", c, err)
			}
		}
	}
}

// TestOthersVerify: the verifiers of others (x/mod for Ed25519, transparency-dev
// for ML-DSA-44) accept our checkpoints, each alone, and we accept theirs.
func TestOthersVerify(t *testing.T) {
	s := newSigner(t, origin, 1)
	g := grow(t, "others", 9)
	b := sign(t, s, g.head(9))
	ed, err := note.NewVerifier(s.VKeys()[0])
	if err != nil {
		t.Fatal(err)
	}
	pq, err := fnote.NewMLDSAVerifier(s.VKeys()[1])
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []note.Verifier{ed, pq} {
		c, rest, n, err := log.ParseCheckpoint(b, origin, v)
		if err != nil || len(rest) > 0 || len(n.Sigs) != 1 {
			t.Fatalf("%T: %v", v, err)
		}
		if h := g.head(9); c.Origin != h.Origin || c.Size != h.Size || !bytes.Equal(c.Hash, h.Root[:]) {
			t.Fatalf("%T reads %+v", v, c)
		}
	}

	edKey, edVKey, err := note.GenerateKey(nil, origin)
	if err != nil {
		t.Fatal(err)
	}
	pqKey, pqVKey, err := fnote.GenerateMLDSAKey(origin)
	if err != nil {
		t.Fatal(err)
	}
	edSigner, err := note.NewSigner(edKey)
	if err != nil {
		t.Fatal(err)
	}
	pqSigner, err := fnote.NewMLDSASigner(pqKey)
	if err != nil {
		t.Fatal(err)
	}
	root := g.head(9).Root
	theirs, err := note.Sign(&note.Note{Text: string(log.Checkpoint{Origin: origin, Size: 9, Hash: root[:]}.Marshal())}, pqSigner, edSigner)
	if err != nil {
		t.Fatal(err)
	}
	v, err := tree.NewVerifier(pqVKey, edVKey) // in any order
	if err != nil {
		t.Fatal(err)
	}
	if c, err := v.Open(theirs); err != nil || c.Head != g.head(9) || time.Since(c.Time) > time.Hour {
		t.Fatalf("%+v, %v", c, err)
	}
	if !slices.Equal(v.VKeys(), []string{edVKey, pqVKey}) || v.Origin() != origin {
		t.Fatalf("%q", v.VKeys())
	}
}

// witness is a cosignature line of a key that the verifier does not know.
func witness(t testing.TB, checkpoint []byte) []byte {
	t.Helper()
	key, _, err := note.GenerateKey(nil, "witness.example/w1")
	if err != nil {
		t.Fatal(err)
	}
	w, err := fnote.NewSignerForCosignatureV1(key)
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(checkpoint), "\n\n")
	cosigned, err := note.Sign(&note.Note{Text: text + "\n"}, w)
	if err != nil {
		t.Fatal(err)
	}
	return cosigned[len(text)+2:]
}

func TestOpenIgnoresWitnesses(t *testing.T) {
	s := newSigner(t, origin, 1)
	h := grow(t, "witness", 5).head(5)
	b := sign(t, s, h)
	for range 14 { // 16 signatures, as C2SP signed-note asks
		b = append(b, witness(t, b)...)
	}
	if c, err := s.Verifier().Open(b); err != nil || c.Head != h {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	s, other := newSigner(t, origin, 1), newSigner(t, origin, 2)
	const foreign = "keytrail/log/01JZ0000000000000000000001"
	elsewhere := newSigner(t, foreign, 1) // the same keys sign for another log
	g := grow(t, "open", 9)
	h := g.head(9)
	good := string(sign(t, s, h))
	lines := strings.SplitAfter(good, "\n")
	text, ed, pq := strings.Join(lines[:4], ""), lines[4], lines[5]
	cosig := string(witness(t, []byte(good)))
	theirs := strings.SplitAfter(string(sign(t, other, h)), "\n")
	older := strings.SplitAfter(string(sign(t, s, g.head(8))), "\n")
	foreignHead := h
	foreignHead.Origin = foreign

	if _, err := s.Verifier().Open([]byte(text + pq + ed + cosig)); err != nil {
		t.Fatalf("the order of the signatures matters: %v", err)
	}
	for name, b := range map[string]string{
		"nothing":                           "",
		"no signature":                      text,
		"only Ed25519":                      text + ed,
		"only ML-DSA-44":                    text + pq,
		"only a witness":                    text + cosig,
		"Ed25519 and a witness":             text + ed + cosig,
		"Ed25519 twice":                     text + ed + ed,
		"Ed25519 twice and ML-DSA-44":       text + ed + ed + pq,
		"ML-DSA-44 twice and Ed25519":       text + ed + pq + pq,
		"a witness twice":                   text + ed + pq + cosig + cosig,
		"a second, wrong Ed25519 line":      text + ed + older[4] + pq,
		"a second, wrong ML-DSA-44 line":    text + ed + pq + older[5],
		"Ed25519 of another head":           text + older[4] + pq,
		"ML-DSA-44 of another head":         text + ed + older[5],
		"other keys":                        text + theirs[4] + theirs[5],
		"Ed25519 of another key":            text + theirs[4] + pq,
		"ML-DSA-44 of another key":          text + ed + theirs[5],
		"another log":                       string(sign(t, elsewhere, foreignHead)),
		"another log's name":                strings.ReplaceAll(good, origin, foreign),
		"CRLF":                              strings.ReplaceAll(good, "\n", "\r\n"),
		"no last line feed":                 strings.TrimSuffix(good, "\n"),
		"a trailing line feed":              good + "\n",
		"trailing text":                     good + "more\n",
		"text before":                       "\n" + good,
		"a space behind a signature":        text + strings.TrimSuffix(ed, "\n") + " \n" + pq,
		"an extension line":                 strings.Replace(good, "\n\n", "\nextension\n\n", 1),
		"a witness not in canonical base64": text + ed + pq + "— w AAAAAAB=\n",
		"far too long":                      good + strings.Repeat(cosig, 2000),
		"not UTF-8":                         good + "\xff\n",
	} {
		if c, err := s.Verifier().Open([]byte(b)); err == nil {
			t.Errorf("%s is accepted as %+v", name, c)
		}
	}
}

// TestOpenRefusesSignedNonsense: what was signed by our keys all the same, by
// another program, is held to the form.
func TestOpenRefusesSignedNonsense(t *testing.T) {
	edKey, edVKey, _ := note.GenerateKey(nil, origin)
	ed, err := note.NewSigner(edKey)
	if err != nil {
		t.Fatal(err)
	}
	pqKey, pqVKey, _ := fnote.GenerateMLDSAKey(origin)
	pq, err := fnote.NewMLDSASigner(pqKey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := tree.NewVerifier(edVKey, pqVKey)
	if err != nil {
		t.Fatal(err)
	}
	root := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, text := range map[string]string{
		"a leading zero":          origin + "\n07\n" + root + "\n",
		"a sign":                  origin + "\n+7\n" + root + "\n",
		"no size":                 origin + "\n\n" + root + "\n",
		"a size too large":        origin + "\n72057594037927936\n" + root + "\n",
		"a size beyond 64 bits":   origin + "\n18446744073709551617\n" + root + "\n",
		"a short root":            origin + "\n7\n" + base64.StdEncoding.EncodeToString(make([]byte, 31)) + "\n",
		"a long root":             origin + "\n7\n" + base64.StdEncoding.EncodeToString(make([]byte, 33)) + "\n",
		"base64 with spare bits":  origin + "\n7\n" + strings.TrimSuffix(root, "A=") + "B=\n",
		"an extension line":       origin + "\n7\n" + root + "\nmore\n",
		"size 0 with a root":      origin + "\n0\n" + root + "\n",
		"an origin with a space":  origin + " x\n7\n" + root + "\n",
		"two lines":               origin + "\n7\n",
		"an empty line after all": origin + "\n7\n" + root + "\n\n",
		"another log's origin":    origin + "x\n7\n" + root + "\n",
	} {
		b, err := note.Sign(&note.Note{Text: text}, ed)
		if err != nil {
			t.Fatal(err)
		}
		if both, err := note.Sign(&note.Note{Text: text}, ed, pq); err == nil {
			b = both // not all texts are ones that the other signer takes
		}
		if c, err := v.Open(b); err == nil {
			t.Errorf("%s is accepted as %+v", name, c)
		}
	}
}

// TestEachByteOfACheckpointMatters: with any bit changed, it is refused.
func TestEachByteOfACheckpointMatters(t *testing.T) {
	s := newSigner(t, origin, 1)
	v := s.Verifier()
	good := sign(t, s, grow(t, "bytes", 9).head(9))
	for i := range good {
		bits := []int{i % 8}
		if testing.Short() && i > 400 && i%29 != 0 { // of a signature, some
			bits = nil
		}
		if i < 400 || i > len(good)-8 { // all of the text, the lines' beginnings and ends
			bits = []int{0, 1, 2, 3, 4, 5, 6, 7}
		}
		for _, bit := range bits {
			b := bytes.Clone(good)
			b[i] ^= 1 << bit
			if c, err := v.Open(b); err == nil {
				t.Fatalf("byte %d, bit %d does not matter: %+v\n%s", i, bit, c, b)
			}
		}
		if _, err := v.Open(good[:i]); err == nil {
			t.Fatalf("%d bytes of %d are accepted", i, len(good))
		}
	}
}

// TestOpenRefusesImpossibleTimes: C2SP tlog-cosignature keeps timestamps below 2^63.
func TestOpenRefusesImpossibleTimes(t *testing.T) {
	pqKey, pqVKey, _ := fnote.GenerateMLDSAKey(origin)
	pq, err := fnote.NewMLDSASigner(pqKey)
	if err != nil {
		t.Fatal(err)
	}
	edKey, edVKey, _ := note.GenerateKey(nil, origin)
	ed, err := note.NewSigner(edKey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := tree.NewVerifier(edVKey, pqVKey)
	if err != nil {
		t.Fatal(err)
	}
	root := make([]byte, 32)
	text := origin + "\n7\n" + base64.StdEncoding.EncodeToString(root) + "\n"
	for seconds, ok := range map[uint64]bool{1: true, 1<<63 - 1: true, 1 << 63: false, 1<<64 - 1: false} {
		b, err := note.Sign(&note.Note{Text: text}, ed, at{pq, seconds, root})
		if err != nil {
			t.Fatal(err)
		}
		if c, err := v.Open(b); ok != (err == nil) || ok && c.Time.Unix() != int64(seconds) {
			t.Errorf("time %d: %v, %v", seconds, c.Time, err)
		}
	}
}

// at signs size 7 with a time.
type at struct {
	*fnote.SubtreeSigner
	seconds uint64
	root    []byte
}

func (s at) Sign([]byte) ([]byte, error) {
	return s.SignSubtree(s.seconds, origin, 0, 7, s.root)
}

func TestSignRefuses(t *testing.T) {
	s := newSigner(t, origin, 1)
	good := tree.Head{Origin: origin, Size: 1, Root: tree.Hash{1}}
	sign(t, s, good)
	for name, h := range map[string]tree.Head{
		"another log":        {Origin: origin + "x", Size: 1},
		"no origin":          {Size: 1},
		"a size too large":   {Origin: origin, Size: tree.MaxSize},
		"size 0 with a root": {Origin: origin, Root: tree.Hash{1}},
	} {
		if _, err := s.Sign(h, signedAt); err == nil {
			t.Errorf("%s is signed", name)
		}
	}
	for _, at := range []time.Time{{}, time.Unix(0, 999), time.Unix(-1, 0)} {
		if _, err := s.Sign(good, at); err == nil {
			t.Errorf("signed at %v", at)
		}
	}
}

func FuzzOpen(f *testing.F) {
	s := newSigner(f, origin, 1)
	h := tree.Head{Origin: origin, Size: 7, Root: tree.Hash{1}}
	good := sign(f, s, h)
	f.Add(good)
	f.Add(append(bytes.Clone(good), witness(f, good)...))
	f.Add(good[:100])
	v := s.Verifier()
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := v.Open(b); err == nil && (c.Head != h || !c.Time.Equal(signedAt)) {
			t.Fatalf("a checkpoint that was never signed: %+v", c)
		} else if got, readErr := tree.ReadHead(b); err == nil && (readErr != nil || got != c.Head) {
			t.Fatalf("read without keys: %+v, %v", got, readErr)
		}
	})
}

func BenchmarkSign(b *testing.B) {
	s := newSigner(b, origin, 1)
	h := tree.Head{Origin: origin, Size: 7, Root: tree.Hash{1}}
	for b.Loop() {
		sign(b, s, h)
	}
}

func BenchmarkOpen(b *testing.B) {
	s := newSigner(b, origin, 1)
	c := sign(b, s, tree.Head{Origin: origin, Size: 7, Root: tree.Hash{1}})
	v := s.Verifier()
	for b.Loop() {
		if _, err := v.Open(c); err != nil {
			b.Fatal(err)
		}
	}
}

// ReadHead needs no signature, and reads the three lines as strictly as Open.
func TestReadHead(t *testing.T) {
	good := origin + "\n1\n" + tree.Hash{1}.String() + "\n\n"
	if h, err := tree.ReadHead([]byte(good)); err != nil || h != (tree.Head{Origin: origin, Size: 1, Root: tree.Hash{1}}) {
		t.Errorf("%+v, %v", h, err)
	}
	for _, bad := range []string{
		"", "\n\n", good[:len(good)-1], strings.Replace(good, "\n1\n", "\n01\n", 1), strings.Replace(good, "\n1\n", "\n0\n", 1),
		strings.Replace(good, "\n\n", "\nextension\n\n", 1), "\n" + good, good + strings.Repeat("x", 128<<10),
	} {
		if h, err := tree.ReadHead([]byte(bad)); err == nil {
			t.Errorf("%.80q is read as %+v", bad, h)
		}
	}
}
