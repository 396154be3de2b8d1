package projections

import (
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// MarkEvery is how many events lie between two marks.
const MarkEvery = 4096

// marks are the roots that the tree of a view had at every multiple of MarkEvery:
// what a scrub compares the log with. 32 bytes for each 4,096 events.
type marks []tree.Hash

func (m *marks) take(t *tree.Range) {
	if t.Size()%MarkEvery == 0 {
		*m = append(*m, t.Root())
	}
}

// root returns the root at the last mark up to the size. Before the first mark there is
// none: it is zero. It reports false if the view has not come so far.
func (m marks) root(size events.Seq) (events.Hash, bool) {
	n := uint64(size) / MarkEvery
	switch {
	case n > uint64(len(m)):
		return events.Hash{}, false
	case n == 0:
		return events.Hash{}, true
	}
	return events.Hash(m[n-1]), true
}

// Tree returns the compact range of the tree over all events that the view has
// applied.
func (v *Keys) Tree() tree.Range {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.past.tree
}

// Mark returns the root that the tree had at the size, a multiple of MarkEvery; ok
// is false for any other, and for one that the view has not reached.
func (v *Keys) Mark(size uint64) (root tree.Hash, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	i := size / MarkEvery
	if size == 0 || size%MarkEvery != 0 || i > uint64(len(v.marks)) {
		return root, false
	}
	return v.marks[i-1], true
}
