package verifier

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/keytrail/keytrail/events"
)

// Run opens an epoch, stores what is appended until ctx ends, then admits
// nothing more, stores the rest and the close record, and returns nil. It is
// called once. The error says what could not be stored; the next start writes
// it down as a gap.
//
// The stream not answering is no error: Run waits for it, with the decisions
// held in memory.
func (l *Ledger) Run(ctx context.Context) error {
	defer close(l.done)
	defer l.shut() // whatever happened: without Run nothing is recorded
	// The rest is stored after ctx has ended, within Drain.
	store, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		select {
		case <-time.After(l.cfg.Drain):
			cancel()
		case <-store.Done():
		}
	})()

	if err := l.begin(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // nothing was admitted
		}
		return err
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		stopping := ctx.Err() != nil
		if stopping {
			l.shut()
		}
		s, wait := l.take(time.Now(), stopping)
		if s != nil {
			if err := l.store(store, s); err != nil {
				return fmt.Errorf("ledger: %d decisions are not stored, the next start records a gap: %w", l.Buffered(), err)
			}
			continue
		}
		if stopping {
			break
		}
		timer.Reset(wait)
		select {
		case <-l.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	end := l.batch(events.BatchClose, l.nextNumber())
	if _, err := l.publish(store, &end); err != nil {
		return fmt.Errorf("ledger: the close record is not stored: %w", err)
	}
	return nil
}

// begin writes down how the epoch before ended, claims a new one, and opens
// the ledger.
//
//	crash after the gap record:  the next start finds it last and writes no second one.
//	crash after the open record: the next start finds an epoch without numbers and
//	                             writes a gap for it, of unknown length.
func (l *Ledger) begin(ctx context.Context) error {
	last, ok, err := l.tail(ctx)
	if err != nil {
		return err
	}
	epoch := l.cfg.Now().UnixMicro()
	if ok {
		epoch = max(epoch, last.Epoch+1)
		if gap, lost := missingEnd(&last); lost {
			if _, err := l.publish(ctx, &gap); err != nil {
				return err
			}
			l.gaps.Add(1)
			l.cfg.Logger.WarnContext(ctx, "the epoch before ended without a close record: its end is recorded as a gap",
				slog.Int64("epoch", gap.Epoch), slog.Uint64("first", gap.First))
		}
	}
	l.setEpoch(epoch)
	begin := l.batch(events.BatchOpen, 1)
	if _, err := l.publish(ctx, &begin); err != nil {
		return err
	}
	l.admit()
	return nil
}

// missingEnd returns the gap that belongs after last, the last message of an
// epoch; lost is false when the epoch is complete as it stands.
func missingEnd(last *events.UseBatch) (gap events.UseBatch, lost bool) {
	if last.Kind == events.BatchClose || last.Kind == events.BatchGap && last.Count == 0 {
		return gap, false
	}
	return events.UseBatch{Log: last.Log, Node: last.Node, Epoch: last.Epoch, Kind: events.BatchGap,
		First: last.First + last.Len(), Note: "the node stopped without closing its epoch"}, true
}

// tail returns the last message of this node; it tries until ctx ends.
func (l *Ledger) tail(ctx context.Context) (b events.UseBatch, ok bool, err error) {
	for delay := firstDelay; ; delay = l.pause(ctx, delay) {
		if ctx.Err() != nil {
			return b, false, ctx.Err()
		}
		var m events.UseMessage
		if m, ok, err = l.cfg.Sink.Tail(ctx, l.cfg.Node); err != nil {
			l.failed(ctx, "read the last use record", err)
			continue
		}
		if !ok {
			return b, false, nil
		}
		if b, err = events.DecodeUses(m.Data); err != nil {
			return b, false, fmt.Errorf("ledger: the last record of node %s (use stream, sequence %d) cannot be read: "+
				"start this node with the release that wrote it, or under another node id: %w", l.cfg.Node, m.Seq, err)
		}
		return b, true, nil
	}
}

// store puts one slab on the record and settles it.
func (l *Ledger) store(ctx context.Context, s *slab) error {
	b := l.batch(events.BatchUses, s.first)
	b.Uses = s.uses
	if s.lost > 0 {
		b.Kind, b.Count, b.Note = events.BatchGap, s.lost, "the buffer was full"
		l.gaps.Add(1)
		l.cfg.Logger.ErrorContext(ctx, "uses were counted and lost: the buffer was full",
			slog.Uint64("first", s.first), slog.Uint64("count", s.lost))
	}
	encoded, err := l.publish(ctx, &b)
	if err == nil {
		l.published.Add(uint64(len(s.uses)))
	} else if !encoded {
		// A fault of ours: what cannot be encoded must still be accounted for.
		l.cfg.Logger.ErrorContext(ctx, "a batch of uses cannot be encoded and becomes a gap",
			slog.Uint64("first", s.first), slog.Int("count", len(s.uses)), slog.Any("err", err))
		l.gaps.Add(1)
		l.lost.Add(s.count())
		b = l.batch(events.BatchGap, s.first)
		b.Count, b.Note = s.count(), "the batch could not be encoded"
		_, err = l.publish(ctx, &b)
		l.settleIf(err == nil, s, true)
		return err
	}
	l.settleIf(err == nil, s, false)
	return err
}

func (l *Ledger) settleIf(stored bool, s *slab, spoiled bool) {
	if stored {
		l.settle(s, spoiled)
	}
}

const (
	firstDelay = 10 * time.Millisecond
	lastDelay  = 2 * time.Second
	attempt    = 5 * time.Second // for one answer of the stream
	// The stream forgets message ids after two minutes. A message whose outcome
	// has been unknown for longer than this is looked for before it is sent again.
	rememberIDs = time.Minute
)

// publish stores b exactly once: the same bytes under the same id, again and
// again until the stream confirms them or ctx ends. encoded is false when b
// cannot be written at all.
func (l *Ledger) publish(ctx context.Context, b *events.UseBatch) (encoded bool, err error) {
	data, err := events.EncodeUses(b)
	if err != nil {
		return false, err
	}
	id := b.MessageID()
	began := time.Now()
	for delay := firstDelay; ; delay = l.pause(ctx, delay) {
		if ctx.Err() != nil {
			return true, fmt.Errorf("%w: %w", ErrNotDurable, context.Cause(ctx))
		}
		if time.Since(began) > rememberIDs {
			// Nobody else writes under this node's subject and we write one message at
			// a time: if it was stored, it is the last one.
			last, ok, err := l.tail(ctx)
			if err != nil {
				return true, err
			}
			if ok && last.MessageID() == id {
				return true, nil
			}
		}
		if err = l.send(ctx, id, data); err == nil {
			return true, nil
		}
		l.retries.Add(1)
		l.failed(ctx, "store uses", err)
	}
}

func (l *Ledger) send(ctx context.Context, id string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	_, err := l.cfg.Sink.Publish(ctx, l.cfg.Node, id, data)
	return err
}

// pause waits and returns the next, longer delay.
func (l *Ledger) pause(ctx context.Context, delay time.Duration) time.Duration {
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
	return min(2*delay, lastDelay)
}

func (l *Ledger) failed(ctx context.Context, what string, err error) {
	if ctx.Err() == nil {
		l.cfg.Logger.WarnContext(ctx, "the use stream did not take or give a record; trying again",
			slog.String("doing", what), slog.Uint64("buffered", l.Buffered()), slog.Any("err", err))
	}
}

func (l *Ledger) batch(kind events.BatchKind, first uint64) events.UseBatch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return events.UseBatch{Log: l.cfg.Log, Node: l.cfg.Node, Epoch: l.epoch, Kind: kind, First: first}
}

func (l *Ledger) setEpoch(epoch int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch = epoch
}

func (l *Ledger) admit() { l.setOpen(true) }
func (l *Ledger) shut()  { l.setOpen(false) }

func (l *Ledger) setOpen(open bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = open
}

func (l *Ledger) nextNumber() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next
}
