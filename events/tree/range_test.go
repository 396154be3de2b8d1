package tree_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events/tree"
)

func TestRangeIsTheTree(t *testing.T) {
	const n = 300
	g := grow(t, "range", n)
	var r tree.Range
	for size := range n + 1 {
		if r.Size() != uint64(size) || r.Root() != naiveRoot(g.leaves[:size]) {
			t.Fatalf("size %d: the root is not the twin's", size)
		}
		if root, err := tlog.TreeHash(int64(size), g.stored); err != nil || root != r.Root() {
			t.Fatalf("size %d: the root is not tlog's: %v", size, err)
		}
		read, err := tree.ReadRange(g.stored, uint64(size))
		if err != nil || read != r {
			t.Fatalf("size %d: the range read from stored hashes differs: %v", size, err)
		}
		if size < n {
			r.Append(g.leaves[size])
		}
	}
	if r.Head(origin) != g.head(n) {
		t.Fatal("another head")
	}
	if r != g.r {
		t.Fatal("Append and AppendStored end in two ranges")
	}
}

// TestStoredOrder: AppendStored writes the storage order of tlog.
func TestStoredOrder(t *testing.T) {
	const n = 130
	g := grow(t, "stored", n)
	if int64(len(g.stored)) != tlog.StoredHashCount(n) {
		t.Fatalf("%d stored hashes, want %d", len(g.stored), tlog.StoredHashCount(n))
	}
	for i, h := range g.stored {
		level, m := tlog.SplitStoredHashIndex(int64(i))
		if want := naiveRoot(g.leaves[m<<level : (m+1)<<level]); h != want {
			t.Fatalf("stored hash %d (level %d, %d) is not the root of its leaves", i, level, m)
		}
	}
}

// TestRangeResumes: a range that was encoded at any size goes on as one that never
// was.
func TestRangeResumes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 200).Draw(t, "size")
		var leaves []tree.Hash
		var r tree.Range
		for i := range n {
			subject, document := event("resume", i)
			leaves = append(leaves, tree.LeafHash(subject, document))
			if rapid.IntRange(0, 9).Draw(t, "encode") == 0 {
				b, _ := r.MarshalBinary()
				var again tree.Range
				if err := again.UnmarshalBinary(b); err != nil || again != r {
					t.Fatalf("size %d: %v", i, err)
				}
				r = again
			}
			r.Append(leaves[i])
		}
		if r.Root() != naiveRoot(leaves) {
			t.Fatal("another root")
		}
	})
}

func TestUnmarshalRangeRefuses(t *testing.T) {
	g := grow(t, "unmarshal", 13)
	good, _ := g.r.MarshalBinary()
	big := binary.BigEndian.AppendUint64([]byte{1}, tree.MaxSize)
	for name, b := range map[string][]byte{
		"nothing":                          nil,
		"a part of the size":               good[:5],
		"another version":                  append([]byte{2}, good[1:]...),
		"a hash less":                      good[:len(good)-32],
		"a byte less":                      good[:len(good)-1],
		"a byte more":                      append(bytes.Clone(good), 0),
		"a hash more":                      append(bytes.Clone(good), make([]byte, 32)...),
		"a size too large":                 append(big, make([]byte, 32)...),
		"a size with more bits than edges": append(binary.BigEndian.AppendUint64([]byte{1}, 15), good[9:]...),
	} {
		r := g.r
		if err := r.UnmarshalBinary(b); err == nil {
			t.Errorf("%s is accepted", name)
		}
		if r != g.r {
			t.Errorf("%s: refused, and changed all the same", name)
		}
	}
	// Each changed byte is refused or is another range.
	for i := range good {
		b := bytes.Clone(good)
		b[i] ^= 1 << (i % 8)
		var r tree.Range
		if err := r.UnmarshalBinary(b); err == nil && r == g.r {
			t.Errorf("byte %d does not matter", i)
		}
	}
}

func FuzzUnmarshalRange(f *testing.F) {
	for _, n := range []int{0, 1, 13, 64} {
		g := grow(f, "fuzz", n)
		b, _ := g.r.MarshalBinary()
		f.Add(b)
	}
	f.Add(append(binary.BigEndian.AppendUint64([]byte{1}, tree.MaxSize-1), make([]byte, 56*32)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r tree.Range
		if r.UnmarshalBinary(b) != nil {
			return
		}
		if again, err := r.MarshalBinary(); err != nil || !bytes.Equal(again, b) { // T2
			t.Fatalf("%x becomes %x", b, again)
		}
		r.Root()
		if r.Size() < tree.MaxSize-1 {
			r.Append(tree.Hash{})
			r.Root()
		}
	})
}

func TestRangeIsFull(t *testing.T) {
	var r tree.Range
	if err := r.UnmarshalBinary(append(binary.BigEndian.AppendUint64([]byte{1}, tree.MaxSize-1), make([]byte, 56*32)...)); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Fatal("a leaf fits into a full tree")
		}
	}()
	r.Append(tree.Hash{})
}

func TestAppendDoesNotAllocate(t *testing.T) {
	var r tree.Range
	stored := make([]tree.Hash, 0, 64)
	if n := testing.AllocsPerRun(1000, func() {
		r.Append(tree.Hash{1})
		stored = r.AppendStored(stored[:0], tree.Hash{2})
		r.Root()
	}); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

// BenchmarkSHA256 is the measure of the other two: one hash of a node, and one of a
// leaf.
func BenchmarkSHA256(b *testing.B) {
	for name, n := range map[string]int{"node": 65, "leaf": len(tree.Entry("kt.life.acme.t_1.key.key_01JZ0000000000000000000000", [32]byte{})) + 1} {
		data := make([]byte, n)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				sha256.Sum256(data)
			}
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	var r tree.Range
	b.ReportAllocs()
	for b.Loop() {
		r.Append(tree.Hash{1})
	}
}

// BenchmarkEvent is what a follower pays for an event whose document it has
// hashed: entry, leaf and append.
func BenchmarkEvent(b *testing.B) {
	var r tree.Range
	subject, document := "kt.life.acme.t_1.key.key_01JZ0000000000000000000000", [32]byte{1}
	b.ReportAllocs()
	for b.Loop() {
		r.Append(tree.LeafHash(subject, document))
	}
}

func BenchmarkRoot(b *testing.B) {
	var r tree.Range
	for range 1<<20 - 1 {
		r.Append(tree.Hash{1})
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Root()
	}
}
