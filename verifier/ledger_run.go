package verifier

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"time"

	"github.com/keytrail/keytrail/events"
)

// Run opens an epoch, stores what is appended until ctx ends, then admits
// nothing more, stores the rest and the close record, and returns nil. It is
// called once. The error says what could not be stored; the next start writes
// it down as a gap. It is of the class events.ErrFenced when another process has
// taken the node's name: what was not stored is in the gap which that one wrote.
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
		return l.ended(err)
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
				if errors.Is(err, events.ErrFenced) {
					return l.ended(err)
				}
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
	if _, err := l.publish(store, &end); errors.Is(err, events.ErrFenced) {
		return l.ended(err)
	} else if err != nil {
		return fmt.Errorf("ledger: the close record is not stored: %w", err)
	}
	return nil
}

// store puts one slab on the record and settles it.
func (l *Ledger) store(ctx context.Context, s *slab) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	l.collect(s)
	b := l.batch(events.BatchUses, s.first)
	b.Uses = l.uses
	if len(s.tallies) > 0 {
		b.Kind, b.Tallies = events.BatchSuppressed, s.tallies
	}
	if s.lost != nil {
		b.Kind, b.Count, b.Note = events.BatchGap, s.n, "the buffer was full"
		b.Since, b.Until = events.Time(s.lost.since.Load()), events.Time(s.lost.until.Load())
		l.gaps.Add(1)
		l.cfg.Logger.ErrorContext(ctx, "uses were counted and lost: the buffer was full",
			slog.Uint64("first", s.first), slog.Uint64("count", s.n))
	}
	encoded, err := l.publish(ctx, &b)
	if err == nil {
		l.published.Add(uint64(len(b.Uses)))
	} else if !encoded {
		// A fault of ours: what cannot be encoded must still be accounted for.
		l.cfg.Logger.ErrorContext(ctx, "a batch of uses cannot be encoded and becomes a gap",
			slog.Uint64("first", s.first), slog.Int("count", len(b.Uses)), slog.Any("err", err))
		l.gaps.Add(1)
		l.lost.Add(s.n)
		since, until := s.times(b.Uses)
		b = l.batch(events.BatchGap, s.first)
		b.Count, b.Note, b.Since, b.Until = s.n, "the batch could not be encoded", since, until
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
)

// publish stores b once, after the message l.last: the same bytes under the same
// id and expectation, again and again until the stream confirms them, another
// process is found to have taken the name (ErrFenced), or ctx ends. encoded is
// false when b cannot be written at all.
func (l *Ledger) publish(ctx context.Context, b *events.UseBatch) (encoded bool, err error) {
	data, err := events.EncodeUses(b)
	if err != nil {
		return false, err
	}
	// A verifier may read the ids of stored messages: were the next one known from
	// them, it could use it first, and the stream would drop this batch.
	id := rand.Text()
	for delay := firstDelay; ; delay = l.pause(ctx, delay) {
		if ctx.Err() != nil {
			return true, fmt.Errorf("%w: %w", ErrNotDurable, context.Cause(ctx))
		}
		seq, err := l.send(ctx, id, data)
		if err == nil {
			l.last = seq
			return true, nil
		}
		if errors.Is(err, events.ErrFenced) {
			return true, err
		}
		l.retries.Add(1)
		l.failed(ctx, "store uses", err)
	}
}

func (l *Ledger) send(ctx context.Context, id string, data []byte) (events.Seq, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	return l.cfg.Sink.Publish(ctx, l.cfg.Node, id, l.last, data)
}

// pause waits, for less than delay at random so that nodes which failed together do
// not come back together, and returns the next, longer delay.
func (l *Ledger) pause(ctx context.Context, delay time.Duration) time.Duration {
	t := time.NewTimer(delay/2 + mathrand.N(delay/2+1))
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
