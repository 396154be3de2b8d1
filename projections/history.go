package projections

import (
	"fmt"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// history is what a view remembers of the log that it was folded from, so that it
// can tell that log from every other: a copy that was restored from a backup and
// written on has the same id, and another event at the position (P8). An event that
// was rewritten further back shows in the root only.
type history struct {
	at       events.Seq  // everything up to here is applied
	hash     events.Hash // of the event at this position
	tree     tree.Range  // over the events up to here
	unproven bool        // as it came from a snapshot: the log has not shown this event yet
	foreign  bool        // the log, or a floor, is of another history: this view answers nothing any more
}

// next reports whether r is the next event to apply. An event before the position
// has been applied. The one at the position must be the one that was applied, and
// a view that was restored must see it before any other.
func (h *history) next(r *events.Recorded) (bool, error) {
	switch {
	case r.Seq > h.at+1, r.Seq > h.at && h.unproven:
		return false, holeError(h.at, r.Seq)
	case r.Seq == h.at && r.Hash != h.hash:
		h.foreign = true
		return false, otherHistoryError(h, r)
	case r.Seq == h.at:
		h.unproven = false
	}
	return r.Seq == h.at+1, nil
}

// take notes that r is applied.
func (h *history) take(r *events.Recorded) {
	h.at, h.hash = r.Seq, r.Hash
	h.tree.Append(tree.LeafHash(r.Aggregate.Subject(), r.Hash))
}

// head returns how far the view is, with the root there.
func (h *history) head() head { return head{h.at, events.Hash(h.tree.Root())} }

func holeError(at, got events.Seq) error {
	return &events.CorruptError{Seq: at + 1, Reason: fmt.Sprintf(
		"event %d came after event %d: the events between are missing; restart this process, and if it happens again check the log", got, at)}
}

func otherHistoryError(h *history, r *events.Recorded) error {
	return &events.CorruptError{Seq: r.Seq, Reason: fmt.Sprintf(
		"the log is not the log that this node has followed: event %d has hash %.16s, but the event that was applied here had %.16s. %s",
		r.Seq, r.Hash, h.hash, whichHistory)}
}

func otherRootError(size events.Seq, mine, floor events.Hash) error {
	return &events.CorruptError{Seq: size, Reason: fmt.Sprintf(
		"the log is not the log that this node has followed: the tree over the first %d events that were applied here has root %.16s, "+
			"and the floor that control has raised has root %.16s. %s", size, mine, floor, whichHistory)}
}

// whichHistory is what to do.
const whichHistory = "The log was restored from an older copy and written on, or altered. Nothing is answered from it. Find out which history is right: " +
	"keys that were revoked after the copy was made are alive in it. If this log is to stay, remove the snapshots of this node and start it again"
