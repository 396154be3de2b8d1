package audit

import (
	"context"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// History is what this process has followed of the lifecycle log by itself.
// projections.Keys implements it; such a view is compared with the floor that control
// raises.
type History interface {
	// Root returns the root of the tree over the first size events; ok is false where it
	// is not known, or not any more.
	Root(size events.Seq) (root events.Hash, ok bool)
}

// copied is how far the trail has the copy of a log, and of which history.
type copied struct {
	hash events.Hash // of the last event
	tree tree.Range  // over all of them
}

func (c *copied) seq() events.Seq { return events.Seq(c.tree.Size()) }

func (c *copied) take(r *events.Recorded) {
	c.hash = r.Hash
	c.tree.Append(tree.LeafHash(r.Aggregate.Subject(), r.Hash))
}

// copied reads it from the trail's last row of the log.
func (s *Store) copied(ctx context.Context, stream events.Stream) (c copied, err error) {
	seq, _, err := s.trailOffset(ctx, stream)
	if err != nil || seq == 0 {
		return c, err
	}
	var hash, text string
	err = s.conn.QueryRow(ctx, "SELECT hash, tree FROM events WHERE stream = {stream:String} AND seq = {seq:UInt64}",
		named("stream", string(stream)), named("seq", uint64(seq))).Scan(&hash, &text)
	if err != nil {
		return c, s.fault(ctx, "read the trail's last row", err)
	}
	c.hash = events.Hash([]byte(hash))
	if err := c.tree.UnmarshalBinary([]byte(text)); err != nil || c.seq() != seq {
		return c, stop("the row of event %d of the log of %s in %s does not hold the tree up to it (%v): the copy was altered, or made by an older release; "+
			"fill a new database from the log", seq, stream, s, err)
	}
	return c, nil
}

// recognise compares the head of the copy with what the process has followed, where
// that knows its root there: an event further back may be another one (A12).
func (f *eventFeed) recognise() error {
	if f.history == nil {
		return nil
	}
	mine := events.Hash(f.copied.tree.Root())
	root, ok := f.history.Root(f.copied.seq())
	if !ok || root == mine {
		return nil
	}
	return stop("the log of %s is not the log that its copy in %s is of: the tree over its first %d events has root %.16s, over those that were copied root %.16s; "+
		"the log was replaced by another history, or an event in it was altered. Find out which is right before anything is written",
		f.stream, f.store, f.copied.seq(), root, mine)
}
