package projections

import (
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// head says that the tree over the first size events has the root.
type head struct {
	size events.Seq
	root events.Hash
}

const (
	// liveBatch is the longest batch of which the root after each event is kept. In a
	// longer one the view is catching up, and only the root at its end is.
	liveBatch = 128
	// maxDue bounds the heads that wait for the view: a later one says as much.
	maxDue = 32
)

// fold is what all views have in common: how far they are, of which history, and
// why they stand still. All but the position is guarded by the view's lock.
type fold struct {
	position
	past   history // the position as the fold has it; readers ask At
	memory         // of how it got there
	due    []head  // heads that the view must have when it gets there
	failed error   // why the view stands still (P3)

	latest atomic.Pointer[told]         // published with the position
	kept   atomic.Pointer[snapshotFile] // nil = none
}

// told is what the view tells of its position.
type told struct {
	head
	print events.Fingerprint
}

// Head returns how far the view is, as At, and the root of the tree over the events
// up to there. Before anything is applied both are zero. It takes no lock.
func (f *fold) Head() (events.Seq, events.Hash) {
	if f.At() == 0 {
		return 0, events.Hash{}
	}
	h := f.latest.Load()
	return h.size, h.root
}

// run applies the next events of the batch (P3): apply folds one of them, took is
// told of it when it is part of the history.
func (f *fold) run(batch []events.Recorded, apply func(*events.Recorded) error, took func()) error {
	if f.failed != nil {
		return f.failed
	}
	for i := range batch {
		r := &batch[i]
		isNext, err := f.past.next(r)
		if isNext {
			err = apply(r)
		}
		if err == nil && isNext {
			f.past.take(r)
			f.marks.take(&f.past.tree)
			f.prints.take(r.Hash)
			took()
			if len(batch) <= liveBatch || i == len(batch)-1 || f.isDue(r.Seq) {
				err = f.reached(f.past.head())
			}
		}
		if err != nil {
			f.failed = err
			break
		}
	}
	f.tell()
	return f.failed
}

// tell tells readers how far the view is: the data first (P2). A view of another
// history tells nothing (P8).
func (f *fold) tell() {
	switch {
	case f.past.foreign:
		f.withdraw()
	case !f.past.unproven:
		if last := f.latest.Load(); last == nil || last.size != f.past.at {
			print, _ := f.fingerprint(f.past.at)
			f.latest.Store(&told{f.past.head(), print})
		}
		f.advance(f.past.at)
	}
}

func (f *fold) isDue(size events.Seq) bool {
	for i := range f.due {
		if f.due[i].size == size {
			return true
		}
	}
	return false
}

// reached remembers the head that the view has now, and compares it with those that
// were waited for.
func (f *fold) reached(now head) error {
	f.remember(now)
	wait := f.due[:0]
	for _, want := range f.due {
		switch {
		case want.size == now.size && want.root != now.root:
			f.past.foreign = true
			return otherRootError(now.size, now.root, want.root)
		case want.size > now.size:
			wait = append(wait, want)
		}
	}
	f.due = wait
	return nil
}

// rootAt returns the root at the size, if the view still knows it.
func (f *fold) rootAt(size events.Seq) (root events.Hash, ok bool) {
	switch size {
	case 0:
		return events.Hash(tree.EmptyRoot()), true
	case f.past.at:
		return f.past.head().root, true
	}
	if f.recent != nil && f.recent[size%recentHeads].size == size {
		return f.recent[size%recentHeads].root, true
	}
	if mark, ok := f.marks.root(size); ok && size%MarkEvery == 0 {
		return mark, true
	}
	return root, false
}

// expect compares the view with the head, at once if the view has come so far, and
// otherwise before it tells anyone that it has.
func (f *fold) expect(h events.Head) error {
	want := head{h.Size, h.Root}
	switch {
	case f.past.foreign:
		return f.failed
	case want.root.IsZero():
		return nil
	case want.size > f.past.at:
		if len(f.due) == maxDue {
			f.due = f.due[:maxDue-1]
		}
		f.due = append(f.due, want)
		return nil
	}
	if root, ok := f.rootAt(want.size); ok && root != want.root {
		f.past.foreign = true
		f.failed = otherRootError(want.size, root, want.root)
		f.tell()
	}
	if f.past.foreign {
		return f.failed
	}
	return nil
}

// refuse stops the view for good: it says nothing any more.
func (f *fold) refuse(err error) {
	f.past.foreign = true
	f.failed = err
	f.tell()
}
