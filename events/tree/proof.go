package tree

import (
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// Head says what a log holds: the number of its leaves and the root of their tree.
// Two heads of one log are compared by a consistency proof; heads of different
// logs are not compared (T3).
type Head struct {
	Origin string // names the log, as Origin returns it
	Size   uint64
	Root   Hash
}

// HashReader reads stored hashes by their index in the storage order of tlog
// (tlog.StoredHashIndex). It need not be trusted: a proof made of wrong hashes
// fails its check.
type HashReader = tlog.HashReader

// Every error of a Check function wraps ErrProof: the leaf is not in the tree, the
// trees are not of one history, the proof was damaged, or an argument cannot be a
// size or an index of a tree.
var ErrProof = errors.New("the proof does not hold")

// ErrNotInTree is wrapped by the error of a function that is asked for a leaf, a
// size or a tile beyond the tree.
var ErrNotInTree = errors.New("not in the tree")

// ProveInclusion returns the proof (RFC 6962, section 2.1.1: the audit path, from
// the leaf's sibling to the root's child) that the tree of the given size has its
// leaf at index. The hashes are not checked: CheckInclusion tells whether the
// proof holds.
func ProveInclusion(hashes HashReader, size, index uint64) ([]Hash, error) {
	if size >= MaxSize || index >= size {
		return nil, fmt.Errorf("index %d in a tree of size %d: %w", index, size, ErrNotInTree)
	}
	p, err := tlog.ProveRecord(int64(size), int64(index), hashes)
	if err != nil {
		return nil, fmt.Errorf("inclusion proof of index %d in size %d: %w", index, size, err)
	}
	return p, nil
}

// CheckInclusion checks that the log with this head has the leaf at index.
func CheckInclusion(proof []Hash, head Head, index uint64, leaf Hash) error {
	if head.Size >= MaxSize || index >= head.Size {
		return fmt.Errorf("index %d in a tree of size %d: %w", index, head.Size, ErrProof)
	}
	if err := tlog.CheckRecord(proof, int64(head.Size), head.Root, int64(index), leaf); err != nil {
		return fmt.Errorf("inclusion of index %d in size %d: %w", index, head.Size, ErrProof)
	}
	return nil
}

// ProveConsistency returns the proof (RFC 6962, section 2.1.2) that the tree of
// size to begins with the tree of size from. It is empty for from = 0 and for
// from = to. The hashes are not checked: CheckConsistency tells whether the proof
// holds.
func ProveConsistency(hashes HashReader, from, to uint64) ([]Hash, error) {
	if to >= MaxSize || from > to {
		return nil, fmt.Errorf("size %d in a tree of size %d: %w", from, to, ErrNotInTree)
	}
	if from == 0 || from == to {
		return []Hash{}, nil
	}
	p, err := tlog.ProveTree(int64(to), int64(from), hashes)
	if err != nil {
		return nil, fmt.Errorf("consistency proof from size %d to %d: %w", from, to, err)
	}
	return p, nil
}

// CheckConsistency checks that both heads are of one log and that newer has all
// leaves of older, at the same places. An older head of size 0 must have the root
// of the empty tree; every log contains it.
func CheckConsistency(proof []Hash, older, newer Head) error {
	if older.Origin != newer.Origin {
		return fmt.Errorf("heads of two logs, %q and %q: %w", older.Origin, newer.Origin, ErrProof)
	}
	if newer.Size >= MaxSize || older.Size > newer.Size {
		return fmt.Errorf("consistency from size %d to %d: %w", older.Size, newer.Size, ErrProof)
	}
	ok := false
	switch {
	case older.Size == newer.Size:
		ok = len(proof) == 0 && older.Root == newer.Root && (older.Size > 0 || older.Root == EmptyRoot())
	case older.Size == 0:
		ok = len(proof) == 0 && older.Root == EmptyRoot()
	default:
		ok = tlog.CheckTree(proof, int64(newer.Size), newer.Root, int64(older.Size), older.Root) == nil
	}
	if !ok {
		return fmt.Errorf("consistency from size %d to %d: %w", older.Size, newer.Size, ErrProof)
	}
	return nil
}

// Hashes is a HashReader in memory: the stored hashes of a tree, filled by
// Range.AppendStored.
type Hashes []Hash

// ReadHashes implements HashReader.
func (h Hashes) ReadHashes(indexes []int64) ([]Hash, error) {
	out := make([]Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(h)) {
			return nil, fmt.Errorf("stored hash %d: %w", x, ErrNotInTree)
		}
		out[i] = h[x]
	}
	return out, nil
}

// readHashes reads, and checks that the reader returns a hash for each index.
func readHashes(r HashReader, indexes []int64) ([]Hash, error) {
	out, err := r.ReadHashes(indexes)
	if err == nil && len(out) != len(indexes) {
		err = fmt.Errorf("a reader returned %d hashes for %d indexes", len(out), len(indexes))
	}
	return out, err
}
