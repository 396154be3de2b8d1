package tree_test

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"github.com/keytrail/keytrail/events/tree"
)

// The naive twin: RFC 6962, section 2.1, word for word, over all leaves, with no
// code of the package and none of tlog.

func naiveNode(left, right tree.Hash) tree.Hash {
	return sha256.Sum256(slices.Concat([]byte{1}, left[:], right[:]))
}

// naiveSplit is the largest power of two smaller than n.
func naiveSplit(n int) int {
	k := 1
	for 2*k < n {
		k *= 2
	}
	return k
}

// naiveRoot is MTH(D[n]) of section 2.1.
func naiveRoot(leaves []tree.Hash) tree.Hash {
	switch n := len(leaves); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leaves[0]
	default:
		k := naiveSplit(n)
		return naiveNode(naiveRoot(leaves[:k]), naiveRoot(leaves[k:]))
	}
}

// naivePath is PATH(m, D[n]) of section 2.1.1.
func naivePath(m int, leaves []tree.Hash) []tree.Hash {
	n := len(leaves)
	if n == 1 {
		return []tree.Hash{}
	}
	k := naiveSplit(n)
	if m < k {
		return append(naivePath(m, leaves[:k]), naiveRoot(leaves[k:]))
	}
	return append(naivePath(m-k, leaves[k:]), naiveRoot(leaves[:k]))
}

// naiveProof is PROOF(m, D[n]) of section 2.1.2.
func naiveProof(m int, leaves []tree.Hash) []tree.Hash { return naiveSub(m, leaves, true) }

func naiveSub(m int, leaves []tree.Hash, whole bool) []tree.Hash {
	n := len(leaves)
	if m == n {
		if whole {
			return []tree.Hash{}
		}
		return []tree.Hash{naiveRoot(leaves)}
	}
	k := naiveSplit(n)
	if m <= k {
		return append(naiveSub(m, leaves[:k], whole), naiveRoot(leaves[k:]))
	}
	return append(naiveSub(m-k, leaves[k:], false), naiveRoot(leaves[:k]))
}

// grown is a tree of n leaves in all the forms that tests need.
type grown struct {
	entries [][]byte
	leaves  []tree.Hash
	stored  tree.Hashes
	r       tree.Range
}

// grow makes the tree of n events. Its content depends on salt alone.
func grow(t testing.TB, salt string, n int) *grown {
	t.Helper()
	g := &grown{}
	for i := range n {
		subject, document := event(salt, i)
		g.entries = append(g.entries, tree.Entry(subject, document))
		leaf := tree.LeafHash(subject, document)
		g.leaves = append(g.leaves, leaf)
		g.stored = g.r.AppendStored(g.stored, leaf)
	}
	return g
}

func event(salt string, i int) (subject string, document [32]byte) {
	return fmt.Sprintf("kt.life.acme.t_%d.role.r%d", i%3, i%7), sha256.Sum256(fmt.Appendf(nil, "%s %d", salt, i))
}

func (g *grown) head(size int) tree.Head {
	return tree.Head{Origin: origin, Size: uint64(size), Root: naiveRoot(g.leaves[:size])}
}

const origin = "keytrail/log/01JZ0000000000000000000000"
