package tree_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/transparency-dev/formats/proof"

	"github.com/keytrail/keytrail/events/tree"
)

// proven is a proof of leaf index in the signed tree of g.
func proven(t testing.TB, s *tree.Signer, g *grown, size, index int) *tree.Proof {
	t.Helper()
	p, err := tree.ProveInclusion(g.stored, uint64(size), uint64(index))
	if err != nil {
		t.Fatal(err)
	}
	return &tree.Proof{Index: uint64(index), Hashes: p, Checkpoint: sign(t, s, g.head(size))}
}

func TestProof(t *testing.T) {
	s := newSigner(t, origin, 1)
	g := grow(t, "tlog-proof", 21)
	for _, c := range []struct {
		size, index int
		extra       []byte
	}{{1, 0, nil}, {21, 20, nil}, {21, 7, []byte("a document")}} {
		p := proven(t, s, g, c.size, c.index)
		p.Extra = c.extra
		text, err := p.MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var got tree.Proof
		if err := got.UnmarshalText(text); err != nil || !reflect.DeepEqual(&got, p) {
			t.Fatalf("%v\n%s", err, text)
		}
		if c, err := got.Verify(s.Verifier(), g.leaves[got.Index]); err != nil || c.Head != g.head(int(c.Size)) {
			t.Fatal(err)
		}
		// Others read and write the same text.
		var theirs proof.TLogProof
		if err := theirs.Unmarshal(text); err != nil || theirs.Index != p.Index || len(theirs.Hashes) != len(p.Hashes) ||
			!bytes.Equal(theirs.ExtraData, c.extra) || !bytes.Equal(theirs.Marshal(), text) {
			t.Fatalf("%v\n%s", err, text)
		}
	}
}

func TestProofVerifyRefuses(t *testing.T) {
	s := newSigner(t, origin, 1)
	g := grow(t, "verify", 21)
	p := proven(t, s, g, 13, 9)
	if _, err := p.Verify(s.Verifier(), g.leaves[8]); !errors.Is(err, tree.ErrProof) {
		t.Error("another leaf:", err)
	}
	if _, err := p.Verify(newSigner(t, origin, 2).Verifier(), g.leaves[9]); err == nil {
		t.Error("keys of another signer")
	}
	if _, err := p.Verify(newSigner(t, origin+"x", 1).Verifier(), g.leaves[9]); err == nil {
		t.Error("the same keys, of another log")
	}
	q := *p
	q.Checkpoint = sign(t, s, g.head(21))
	if _, err := q.Verify(s.Verifier(), g.leaves[9]); !errors.Is(err, tree.ErrProof) {
		t.Error("the checkpoint of another size:", err)
	}
	q = *p
	q.Index++
	if _, err := q.Verify(s.Verifier(), g.leaves[9]); !errors.Is(err, tree.ErrProof) {
		t.Error("another index:", err)
	}
}

// TestEachByteOfAProofMatters: with any bit changed it is refused, or it does not
// hold; but for the extra data, which the format leaves unsigned.
func TestEachByteOfAProofMatters(t *testing.T) {
	s := newSigner(t, origin, 1)
	g := grow(t, "bytes", 21)
	p := proven(t, s, g, 13, 9)
	text, err := p.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	v := s.Verifier()
	for i := range text {
		if testing.Short() && i > 800 && i%29 != 0 { // of a signature, some
			continue
		}
		for _, bit := range []int{0, i % 8} {
			b := bytes.Clone(text)
			b[i] ^= 1 << bit
			var q tree.Proof
			if q.UnmarshalText(b) != nil {
				continue
			}
			if _, err := q.Verify(v, g.leaves[9]); err == nil {
				t.Fatalf("byte %d, bit %d does not matter\n%s", i, bit, b)
			}
		}
	}
}

func TestUnmarshalProofRefuses(t *testing.T) {
	s := newSigner(t, origin, 1)
	p := proven(t, s, grow(t, "refuse", 21), 13, 9)
	text, err := p.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	good := string(text)
	hash := p.Hashes[0].String()
	for name, b := range map[string]string{
		"nothing":               "",
		"another version":       strings.Replace(good, "@v1", "@v2", 1),
		"no index":              strings.Replace(good, "index 9\n", "", 1),
		"a leading zero":        strings.Replace(good, "index 9", "index 09", 1),
		"a negative index":      strings.Replace(good, "index 9", "index -9", 1),
		"an index too large":    strings.Replace(good, "index 9", "index 72057594037927936", 1),
		"two spaces":            strings.Replace(good, "index 9", "index  9", 1),
		"an empty extra line":   strings.Replace(good, "index 9", "extra \nindex 9", 1),
		"extra not in base64":   strings.Replace(good, "index 9", "extra !\nindex 9", 1),
		"extra with spare bits": strings.Replace(good, "index 9", "extra QR==\nindex 9", 1),
		"extra behind":          strings.Replace(good, "index 9", "index 9\nextra QQ==", 1),
		"only extra":            "c2sp.org/tlog-proof@v1\nextra QQ==\n\nx\n",
		"only the first line":   "c2sp.org/tlog-proof@v1\n\nx\n",
		"a short hash":          strings.Replace(good, hash, "AAAA", 1),
		"too many hashes":       strings.Replace(good, hash+"\n", strings.Repeat(hash+"\n", 60), 1),
		"no empty line":         strings.Replace(good, "\n\n", "\n", 1),
		"no checkpoint":         good[:strings.Index(good, "\n\n")+2],
		"no last line feed":     strings.TrimSuffix(good, "\n"),
		"CRLF":                  strings.ReplaceAll(good, "\n", "\r\n"),
		"far too long":          good + strings.Repeat("x\n", 1<<17),
	} {
		q := *p
		if err := q.UnmarshalText([]byte(b)); err == nil {
			t.Errorf("%s is accepted", name)
		} else if !reflect.DeepEqual(&q, p) {
			t.Errorf("%s: refused, and changed all the same", name)
		}
	}
	for name, change := range map[string]func(*tree.Proof){
		"an index too large":   func(p *tree.Proof) { p.Index = tree.MaxSize },
		"too many hashes":      func(p *tree.Proof) { p.Hashes = make([]tree.Hash, 57) },
		"too much extra":       func(p *tree.Proof) { p.Extra = make([]byte, 1<<16+1) },
		"no checkpoint":        func(p *tree.Proof) { p.Checkpoint = nil },
		"a checkpoint cut off": func(p *tree.Proof) { p.Checkpoint = []byte("x") },
	} {
		q := *p
		change(&q)
		if _, err := q.MarshalText(); err == nil {
			t.Errorf("%s is written", name)
		}
	}
}

func FuzzUnmarshalProof(f *testing.F) {
	s := newSigner(f, origin, 1)
	p := proven(f, s, grow(f, "fuzz", 5), 5, 2)
	text, _ := p.MarshalText()
	f.Add(text)
	p.Extra = []byte{1}
	text, _ = p.MarshalText()
	f.Add(text)
	f.Fuzz(func(t *testing.T, b []byte) {
		var p tree.Proof
		if p.UnmarshalText(b) != nil {
			return
		}
		if again, err := p.MarshalText(); err != nil || !bytes.Equal(again, b) { // T2
			t.Fatalf("%q becomes %q: %v", b, again, err)
		}
	})
}
