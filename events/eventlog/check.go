package eventlog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/keytrail/keytrail/events"
)

// Check reads the whole log and verifies it: every sequence from 1 on is there
// and can be read, and every aggregate's history runs from rev 1 without a
// break, each event naming the hash of the one before (L5). progress, if not nil, is called from time to time.
// The error is a *CorruptError that says what to do, or events.ErrUnavailable.
//
// It holds 52 bytes and the map's overhead per aggregate while it runs.
func (l *Lifecycle) Check(ctx context.Context, progress func(done, total events.Seq)) error {
	if progress == nil {
		progress = func(_, _ events.Seq) {}
	}
	si, err := l.info(ctx, l.stream)
	if err != nil {
		return fmt.Errorf("check the log: %w", err)
	}
	if err := contiguous(&si.State); err != nil {
		return fmt.Errorf("check the log: %w", err)
	}
	last := events.Seq(si.State.LastSeq)
	c := checker{heads: make(map[[16]byte]head)}
	for next, r := events.Seq(1), (retry{}); next <= last; {
		before := next
		next, err = l.replay(ctx, next, last, false, func(batch []events.Recorded) error {
			if err := c.take(batch); err != nil {
				return err
			}
			progress(min(batch[len(batch)-1].Seq, last), last)
			return nil
		})
		if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
			return fmt.Errorf("check the log: %w", err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("check the log: %w: %w", events.ErrUnavailable, ctx.Err())
		}
		if err != nil && next == before {
			if err := l.missing(ctx, next); err != nil {
				return fmt.Errorf("check the log: %w", err)
			}
			if l.nc.IsClosed() || r.wait(ctx) != nil {
				return fmt.Errorf("check the log: %w: %w", events.ErrUnavailable, err)
			}
		}
	}
	return nil
}

// head is where one aggregate's history stands.
type head struct {
	rev  uint32
	hash events.Hash
}

// checker holds the head of every history, under a hash of its name.
type checker struct{ heads map[[16]byte]head }

func (c *checker) take(batch []events.Recorded) error {
	for i := range batch {
		r := &batch[i]
		name := sha256.Sum256([]byte(r.Aggregate.String()))
		key := [16]byte(name[:16])
		h := c.heads[key]
		if r.Rev != uint64(h.rev)+1 || r.Prev != h.hash {
			err := &events.ChainError{Aggregate: r.Aggregate, Seq: r.Seq, Want: uint64(h.rev) + 1, Got: r.Rev}
			return &events.CorruptError{Seq: r.Seq, Reason: err.Error()}
		}
		c.heads[key] = head{rev: h.rev + 1, hash: r.Hash}
	}
	return nil
}
