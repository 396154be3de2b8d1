package tree

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"

	"golang.org/x/mod/sumdb/tlog"
)

// maxLevels is the number of levels of complete subtrees in a tree of fewer than
// MaxSize leaves.
const maxLevels = 56

// Range is the compact range of the leaves [0, size): the roots of the complete
// subtrees on the right edge of the tree, at most one a level. It is all that is
// needed to add leaves and to know the root. The zero Range is that of the empty
// tree. It holds no pointers: an assignment copies it, and == compares two trees.
//
// A Range is not safe for concurrent use.
type Range struct {
	size uint64
	edge [maxLevels]Hash // edge[l] is set where bit l of size is set, else zero
}

// Size returns the number of leaves.
func (r *Range) Size() uint64 { return r.size }

// Append adds a leaf. It panics at MaxSize.
func (r *Range) Append(leaf Hash) {
	r.check()
	l := 0
	for n := r.size; n&1 == 1; n >>= 1 {
		leaf = tlog.NodeHash(r.edge[l], leaf)
		r.edge[l] = Hash{}
		l++
	}
	r.edge[l] = leaf
	r.size++
}

// AppendStored adds a leaf and appends to dst the hashes that this leaf completes:
// its own, and those of the subtrees of which it is the last leaf, from the bottom
// up. Appended in order, they form the dense storage order of tlog
// (tlog.StoredHashIndex), which a HashReader reads.
func (r *Range) AppendStored(dst []Hash, leaf Hash) []Hash {
	r.check()
	l := 0
	dst = append(dst, leaf)
	for n := r.size; n&1 == 1; n >>= 1 {
		leaf = tlog.NodeHash(r.edge[l], leaf)
		dst = append(dst, leaf)
		r.edge[l] = Hash{}
		l++
	}
	r.edge[l] = leaf
	r.size++
	return dst
}

func (r *Range) check() {
	if r.size >= MaxSize-1 {
		panic("tree: the tree is full") // T5
	}
}

// Head returns size and root as the head of the log with this origin.
func (r *Range) Head(origin string) Head {
	return Head{Origin: origin, Size: r.size, Root: r.Root()}
}

// Root returns the hash of the tree (RFC 6962, section 2.1): EmptyRoot of the empty
// tree.
func (r *Range) Root() Hash {
	if r.size == 0 {
		return EmptyRoot()
	}
	l := bits.TrailingZeros64(r.size)
	root := r.edge[l]
	for l++; l < bits.Len64(r.size); l++ {
		if r.size>>l&1 == 1 {
			root = tlog.NodeHash(r.edge[l], root)
		}
	}
	return root
}

// EmptyRoot returns the root of the empty tree, the SHA-256 of nothing.
func EmptyRoot() Hash { return sha256.Sum256(nil) }

// rangeV1 is the first byte of an encoded Range.
const rangeV1 = 1

// MarshalBinary returns the version (1 byte), the size (8 bytes, big-endian), and
// the hashes of the right edge from the largest subtree to the smallest (32 bytes
// each, one for each bit that is set in the size). It never fails.
func (r *Range) MarshalBinary() ([]byte, error) { return r.AppendBinary(nil) }

// AppendBinary implements encoding.BinaryAppender.
func (r *Range) AppendBinary(dst []byte) ([]byte, error) {
	dst = append(dst, rangeV1)
	dst = binary.BigEndian.AppendUint64(dst, r.size)
	for l := bits.Len64(r.size) - 1; l >= 0; l-- {
		if r.size>>l&1 == 1 {
			dst = append(dst, r.edge[l][:]...)
		}
	}
	return dst, nil
}

// UnmarshalBinary reads what MarshalBinary returns, and nothing else. It cannot know
// whether the hashes are those of a certain log: compare the root. On an error, r
// is unchanged.
func (r *Range) UnmarshalBinary(b []byte) error {
	if len(b) < 9 || b[0] != rangeV1 {
		return fmt.Errorf("compact range: want version %d and a size", rangeV1)
	}
	size, b := binary.BigEndian.Uint64(b[1:]), b[9:]
	if size >= MaxSize {
		return fmt.Errorf("compact range: size %d, want less than %d", size, MaxSize)
	}
	if want := bits.OnesCount64(size) * tlog.HashSize; len(b) != want {
		return fmt.Errorf("compact range: %d bytes of hashes, want %d for size %d", len(b), want, size)
	}
	*r = Range{size: size}
	for l := bits.Len64(size) - 1; l >= 0; l-- {
		if size>>l&1 == 1 {
			r.edge[l] = Hash(b[:tlog.HashSize])
			b = b[tlog.HashSize:]
		}
	}
	return nil
}

// ReadRange reads the right edge of the tree of the given size from stored hashes.
func ReadRange(hashes HashReader, size uint64) (Range, error) {
	if size >= MaxSize {
		return Range{}, fmt.Errorf("size %d, want less than %d", size, MaxSize)
	}
	var indexes []int64
	for l := bits.Len64(size) - 1; l >= 0; l-- {
		if size>>l&1 == 1 {
			indexes = append(indexes, tlog.StoredHashIndex(l, int64(size>>l-1)))
		}
	}
	if len(indexes) == 0 {
		return Range{}, nil
	}
	read, err := readHashes(hashes, indexes)
	if err != nil {
		return Range{}, err
	}
	r := Range{size: size}
	for l := range maxLevels {
		if size>>l&1 == 1 {
			r.edge[l] = read[len(read)-1]
			read = read[:len(read)-1]
		}
	}
	return r, nil
}
