package eventlog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/keytrail/keytrail/events"
)

// Leaves reads the events from first to last, at most rate a second, and hands the
// subject of each and the SHA-256 of its document to take, in order: what the leaf
// of the log's tree is made of. Nothing is decoded, so it reads what no release
// knows. It waits while the log cannot be reached. Errors: ctx's, take's, and a
// *events.CorruptError for an event that is gone or cannot be read from the store.
func (l *Lifecycle) Leaves(ctx context.Context, first, last events.Seq, rate int, take func(seq events.Seq, subject string, document events.Hash) error) error {
	r := retry{}
	for next := first; next <= last; {
		began, before := time.Now(), next
		failed := error(nil)
		batch := int(min(chunkEvents, last-next+1))
		err := l.get(ctx, l.stream, getRequest{Seq: next, Batch: batch, MaxBytes: bulkBytes}, func(s *stored) error {
			if s.seq != next {
				return errBehind
			}
			if failed = take(s.seq, s.subject, sha256.Sum256(s.data)); failed == nil {
				next++
			}
			return failed
		})
		if failed != nil {
			return failed
		}
		if next > before {
			r.again()
			if rest := time.Duration(next-before)*time.Second/time.Duration(rate) - time.Since(began); rest > 0 && waitFor(ctx, rest) != nil {
				return ctx.Err()
			}
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
