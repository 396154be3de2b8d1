package tree_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/keytrail/keytrail/events/tree"
)

func TestProofsAreTheTwins(t *testing.T) {
	const n = 66
	g := grow(t, "proofs", n)
	for size := 1; size <= n; size++ {
		head := g.head(size)
		for i := range size {
			p, err := tree.ProveInclusion(g.stored, uint64(size), uint64(i))
			if err != nil || !slices.Equal(p, naivePath(i, g.leaves[:size])) {
				t.Fatalf("inclusion of %d in %d is not the twin's: %v", i, size, err)
			}
			if err := tree.CheckInclusion(p, head, uint64(i), g.leaves[i]); err != nil {
				t.Fatal(err)
			}
		}
		for from := 0; from <= size; from++ {
			p, err := tree.ProveConsistency(g.stored, uint64(from), uint64(size))
			if err != nil {
				t.Fatal(err)
			}
			if from > 0 && !slices.Equal(p, naiveProof(from, g.leaves[:size])) {
				t.Fatalf("consistency of %d with %d is not the twin's", from, size)
			}
			if err := tree.CheckConsistency(p, g.head(from), head); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// flips calls try with each bit of each hash of a proof changed, with each hash
// left out, and with one more at each place.
func flips(p []tree.Hash, try func(what string, p []tree.Hash)) {
	for i := range p {
		for b := range 256 {
			q := slices.Clone(p)
			q[i][b/8] ^= 1 << (b % 8)
			try("a bit changed", q)
		}
		try("a hash left out", slices.Delete(slices.Clone(p), i, i+1))
		if i > 0 && p[i] != p[i-1] {
			q := slices.Clone(p)
			q[i], q[i-1] = q[i-1], q[i]
			try("two hashes exchanged", q)
		}
	}
	for i := range len(p) + 1 {
		try("a hash more", slices.Insert(slices.Clone(p), i, tree.Hash{1}))
	}
}

func TestInclusionRefuses(t *testing.T) {
	const size, index = 13, 9
	g := grow(t, "inclusion", 20)
	p, err := tree.ProveInclusion(g.stored, size, index)
	if err != nil {
		t.Fatal(err)
	}
	head, leaf := g.head(size), g.leaves[index]
	refused := func(what string, p []tree.Hash, head tree.Head, index uint64, leaf tree.Hash) {
		t.Helper()
		if err := tree.CheckInclusion(p, head, index, leaf); !errors.Is(err, tree.ErrProof) {
			t.Errorf("%s: %v", what, err)
		}
	}
	flips(p, func(what string, p []tree.Hash) { refused(what, p, head, index, leaf) })
	for i := range uint64(size + 2) {
		if i != index {
			refused("another index", p, head, i, leaf)
		}
	}
	refused("another leaf", p, head, index, g.leaves[index+1])
	refused("another root", p, g.head(size+1), index, leaf)
	for _, s := range []uint64{0, index, size - 4, size + 4, 1 << 20, tree.MaxSize, math.MaxInt64, math.MaxUint64} {
		refused("another size", p, tree.Head{Origin: origin, Size: s, Root: head.Root}, index, leaf)
	}
	refused("an index beyond int64", p, head, math.MaxUint64, leaf)

	for _, c := range [][2]uint64{{size, size}, {0, 0}, {tree.MaxSize, 0}, {math.MaxUint64, 1}} {
		if _, err := tree.ProveInclusion(g.stored, c[0], c[1]); !errors.Is(err, tree.ErrNotInTree) {
			t.Errorf("a proof of index %d in size %d: %v", c[1], c[0], err)
		}
	}
	if _, err := tree.ProveInclusion(g.stored[:10], size, index); !errors.Is(err, tree.ErrNotInTree) {
		t.Errorf("a proof from too few hashes: %v", err)
	}
}

func TestConsistencyRefuses(t *testing.T) {
	const from, to = 6, 13
	g, other := grow(t, "consistency", 20), grow(t, "other", 20)
	p, err := tree.ProveConsistency(g.stored, from, to)
	if err != nil {
		t.Fatal(err)
	}
	older, newer := g.head(from), g.head(to)
	refused := func(what string, p []tree.Hash, older, newer tree.Head) {
		t.Helper()
		if err := tree.CheckConsistency(p, older, newer); !errors.Is(err, tree.ErrProof) {
			t.Errorf("%s: %v", what, err)
		}
	}
	flips(p, func(what string, p []tree.Hash) { refused(what, p, older, newer) })
	refused("another history", p, other.head(from), newer)
	refused("another history before", p, older, other.head(to))
	refused("the wrong way round", p, newer, older)
	with := func(h tree.Head, size uint64, root tree.Hash) tree.Head {
		return tree.Head{Origin: origin, Size: size, Root: root}
	}
	for _, s := range []uint64{0, 1, from - 1, from + 1, to, to + 1, tree.MaxSize, math.MaxUint64} {
		refused("another older size", p, with(older, s, older.Root), newer)
	}
	for _, s := range []uint64{0, from, to - 6, to + 4, tree.MaxSize, math.MaxInt64, math.MaxUint64} {
		refused("another newer size", p, older, with(newer, s, newer.Root))
	}

	// T3: the very same tree under another name is another log.
	foreign := older
	foreign.Origin = "keytrail/log/01JZ0000000000000000000001"
	refused("another log", p, foreign, newer)
	refused("another log, of the same size", nil, foreign, older)

	refused("two roots of one size", nil, older, other.head(from))
	refused("a proof where none is needed", p, older, older)
	refused("a size 0 that has a root", nil, with(older, 0, older.Root), newer)
	refused("a size 0 that has a root, twice", nil, with(older, 0, older.Root), with(older, 0, older.Root))
	refused("a proof from size 0", p, g.head(0), newer)

	for _, c := range [][2]uint64{{7, 6}, {1, tree.MaxSize}, {1, math.MaxUint64}, {math.MaxUint64, math.MaxUint64}} {
		if _, err := tree.ProveConsistency(g.stored, c[0], c[1]); !errors.Is(err, tree.ErrNotInTree) {
			t.Errorf("a proof from %d to %d: %v", c[0], c[1], err)
		}
	}
}

// TestLargestSizes: nothing overflows below MaxSize (T5).
func TestLargestSizes(t *testing.T) {
	const size = tree.MaxSize - 1
	zeros := reader(func(indexes []int64) ([]tree.Hash, error) {
		for _, x := range indexes {
			if x < 0 || x >= math.MaxInt64/32 {
				t.Fatalf("index %d", x)
			}
		}
		return make([]tree.Hash, len(indexes)), nil
	})
	for _, index := range []uint64{0, size / 2, size - 1} {
		p, err := tree.ProveInclusion(zeros, size, index)
		if err != nil || len(p) > 112 {
			t.Fatalf("index %d: %d hashes, %v", index, len(p), err)
		}
		if err := tree.CheckInclusion(p, tree.Head{Size: size}, index, tree.Hash{}); !errors.Is(err, tree.ErrProof) {
			t.Fatal(err)
		}
	}
	p, err := tree.ProveConsistency(zeros, size/2+1, size)
	if err != nil || len(p) == 0 {
		t.Fatal(err)
	}
	if err := tree.CheckConsistency(p, tree.Head{Size: size/2 + 1}, tree.Head{Size: size}); !errors.Is(err, tree.ErrProof) {
		t.Fatal(err)
	}
}

type reader func([]int64) ([]tree.Hash, error)

func (r reader) ReadHashes(indexes []int64) ([]tree.Hash, error) { return r(indexes) }

func TestReadersThatLie(t *testing.T) {
	short := reader(func(indexes []int64) ([]tree.Hash, error) { return make([]tree.Hash, len(indexes)-1), nil })
	if _, err := tree.ProveInclusion(short, 5, 1); err == nil {
		t.Error("a proof from a hash too few")
	}
	if _, err := tree.ReadRange(short, 5); err == nil {
		t.Error("a range from a hash too few")
	}
	gone := errors.New("gone")
	broken := reader(func([]int64) ([]tree.Hash, error) { return nil, gone })
	if _, err := tree.ProveConsistency(broken, 3, 5); !errors.Is(err, gone) {
		t.Error(err)
	}
	if _, err := tree.ReadRange(broken, 5); !errors.Is(err, gone) {
		t.Error(err)
	}
	if _, err := tree.ReadRange(broken, tree.MaxSize); err == nil || errors.Is(err, gone) {
		t.Error(err)
	}
}
