package audit

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/events"
)

// readMessages is how many messages of the use stream are asked for at once.
const readMessages = 256

// copyUses is one epoch of the ledger: one goroutine reads and decodes, the other
// inserts, with two blocks going round between them.
func (w *Writer) copyUses(ctx context.Context, s *session) error {
	// use_batches is inserted last, so its offset is where all tables are complete;
	// the others may be one block ahead, and take only what they lack.
	after, stored, err := s.store.offset(ctx, "use_batches")
	if err != nil {
		return err
	}
	have, _, err := s.store.offset(ctx, "uses")
	if err != nil {
		return err
	}
	haveTallies, _, err := s.store.offset(ctx, "use_suppressed")
	if err != nil {
		return err
	}
	seen := max(after, have, haveTallies)
	end, err := events.LastUseAtLeast(ctx, w.cfg.Uses, seen)
	if err != nil {
		return err
	}
	if end < seen {
		return stop("the use stream ends at message %d, but its copy in %s has message %d: the stream lost messages or was restored from an older backup; "+
			"restore all of it, or start a new log with a new audit database", end, s.store, seen)
	}
	w.metrics.copied(sourceUses, after)
	w.metrics.ends(sourceUses, end)
	roll, err := s.newRoller(ctx, after)
	if err != nil {
		return err
	}
	nodes, err := s.store.places(ctx, after)
	if err != nil {
		return err
	}
	r := &useReader{w: w, after: after, stored: stored, have: have, haveTallies: haveTallies, log: events.LineageOf(w.cfg.Log), nodes: nodes}
	full, empty := make(chan *useBlock), make(chan *useBlock, 2)
	empty <- newUseBlock()
	empty <- newUseBlock()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.run(ctx, empty, full) })
	g.Go(func() error { return w.insertUses(ctx, s, roll, full, empty) })
	return g.Wait()
}

// insertUses stores blocks as they come, and rolls up now and then.
func (w *Writer) insertUses(ctx context.Context, s *session, roll *roller, full <-chan *useBlock, empty chan<- *useBlock) error {
	tick := time.NewTicker(w.rollupEvery)
	defer tick.Stop()
	for {
		if told, ok := w.cfg.Uses.(events.CopiedSource); ok {
			_ = told.Copied(roll.to) // told again with the next tick
		}
		select {
		case b := <-full:
			began := time.Now()
			if b.n.Rows() > 0 {
				if err := s.insert(ctx, "uses", b.uses); err != nil {
					return err
				}
			}
			if b.tN.Rows() > 0 {
				if err := s.insert(ctx, "use_suppressed", b.tallies); err != nil {
					return err
				}
			}
			// crash here: the next epoch finds the other tables ahead of use_batches.
			if err := s.insert(ctx, "use_batches", b.batches); err != nil {
				return err
			}
			roll.to = b.last
			w.metrics.inserted(sourceUses, b.last, b.messages, b.n.Rows(), time.Since(began))
			b.reset()
			empty <- b
		case <-tick.C:
			if err := roll.run(ctx); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// useReader turns messages into blocks.
type useReader struct {
	w      *Writer
	log    events.Lineage
	after  events.Seq  // read and in a block
	stored events.Time // of message after
	have   events.Seq  // in the table uses already

	haveTallies events.Seq // in the table use_suppressed already
	nodes       places

	pending []events.UseMessage  // read, not yet in a block
	trimmed *events.TrimmedError // to be written down with the next message
	since   events.Time          // of the message before the trimmed ones; 0 = there was none
}

// run fills blocks and hands them on.
func (r *useReader) run(ctx context.Context, empty <-chan *useBlock, full chan<- *useBlock) error {
	for {
		var b *useBlock
		select {
		case b = <-empty:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := r.fill(ctx, b); err != nil {
			return err
		}
		select {
		case full <- b:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fill adds messages until the block is full, its linger is over, or the next
// message belongs to another month.
func (r *useReader) fill(ctx context.Context, b *useBlock) error {
	lctx := ctx // waits for the first message without end
	for {
		if len(r.pending) == 0 {
			err := r.read(lctx)
			if ctx.Err() == nil && lctx.Err() != nil && len(r.pending) == 0 {
				return nil // the linger is over
			}
			if err != nil {
				return err
			}
		}
		for len(r.pending) > 0 {
			m := &r.pending[0]
			if b.messages > 0 && month(m.Stored) != b.month {
				return nil
			}
			if err := r.add(b, m); err != nil {
				return err
			}
			r.pending = r.pending[1:]
			if max(b.n.Rows(), b.tN.Rows(), b.messages) >= r.w.cfg.MaxRows || b.aside >= maxAside {
				return nil
			}
		}
		if lctx == ctx {
			l, cancel := context.WithTimeout(ctx, r.w.cfg.Linger)
			defer cancel()
			lctx = l
		}
	}
}

// read asks the stream for what follows.
func (r *useReader) read(ctx context.Context) error {
	msgs, err := r.w.cfg.Uses.ReadUses(ctx, r.after, readMessages)
	var trimmed *events.TrimmedError
	if errors.As(err, &trimmed) && trimmed.First > r.after+1 {
		r.w.cfg.Logger.ErrorContext(ctx, "uses are lost: the use stream dropped messages before the audit copy read them",
			"first_seq", r.after+1, "last_seq", trimmed.First-1)
		r.w.metrics.trimmed.Add(float64(trimmed.First - r.after - 1))
		from := r.after
		if r.trimmed != nil { // more was dropped before a message came
			from = r.trimmed.After
		} else {
			r.since = r.stored
		}
		r.trimmed = &events.TrimmedError{After: from, First: trimmed.First}
		r.after = trimmed.First - 1
		return nil
	}
	if err != nil {
		return err
	}
	r.pending = msgs
	return nil
}

// add decodes one message into the block.
func (r *useReader) add(b *useBlock, m *events.UseMessage) error {
	if m.Seq <= r.after {
		return stop("the use stream delivered message %d after %d; it must only go forward", m.Seq, r.after)
	}
	if m.Seq != r.after+1 { // also after a trimmed range: r.after is then its end
		// A hole inside the stream: not retention, which takes from the front.
		return stop("the use stream has no message %d, but message %d: messages were deleted from it; restore it, or accept the loss by starting a new audit database", r.after+1, m.Seq)
	}
	if t := r.trimmed; t != nil {
		b.note(t.First-1, m.Stored, "", 0, "trimmed", uint64(t.After)+1, uint64(t.First-t.After)-1, "dropped by the stream's retention before they were copied",
			min(r.since, m.Stored), max(r.since, m.Stored)) // the log's clock may have been set meanwhile
		r.trimmed = nil
	}
	batch, reason := r.nodes.misfit(m, &r.log)
	if reason != "" {
		r.w.metrics.quarantined.Inc()
		r.w.asides.tell(r.w.cfg.Logger, time.Now(), m, reason)
		b.quarantine(m, reason)
		r.after, r.stored = m.Seq, m.Stored
		return nil
	}
	if last, ok := r.nodes.take(&batch); ok {
		b.note(m.Seq, m.Stored, batch.Node, last.epoch, "unended", last.next, 0, "the node began a new epoch and did not end this one", m.Stored, m.Stored)
	}
	r.w.metrics.heard(m.Node, m.Stored, batch.Uses)
	b.add(m, &batch, m.Seq > r.have)
	if m.Seq > r.haveTallies {
		b.tally(m, &batch)
	}
	r.after, r.stored = m.Seq, m.Stored
	return nil
}
