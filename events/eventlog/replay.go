package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keytrail/keytrail/events"
)

// Replay reads the events from first to last, at most rate a second, and hands them to
// apply in order, in batches that are apply's only until it returns. It waits while the
// log cannot be reached. Errors: ctx's, apply's, and a *events.CorruptError for an event
// that is gone or cannot be read.
func (l *Lifecycle) Replay(ctx context.Context, first, last events.Seq, rate int, apply func([]events.Recorded) error) error {
	r := retry{}
	for next := first; next <= last; {
		before := next
		failed := error(nil)
		began := time.Now()
		var err error
		next, err = l.replay(ctx, next, last, false, func(batch []events.Recorded) error {
			if failed = apply(batch); failed != nil {
				return failed
			}
			if rest := time.Duration(len(batch))*time.Second/time.Duration(rate) - time.Since(began); rest > 0 {
				failed = waitFor(ctx, rest)
			}
			began = time.Now()
			return failed
		})
		corrupt := (*events.CorruptError)(nil)
		switch {
		case failed != nil:
			return failed
		case errors.As(err, &corrupt):
			return err
		case next > before:
			r.again()
			continue
		}
		if err := l.missing(ctx, next); err != nil {
			return err
		}
		if l.nc.IsClosed() {
			return fmt.Errorf("%w: %w", events.ErrUnavailable, errors.Join(err, errBehind))
		}
		if r.wait(ctx) != nil {
			return ctx.Err()
		}
	}
	return nil
}
