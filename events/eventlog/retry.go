package eventlog

import (
	"cmp"
	"context"
	"math/rand/v2"
	"time"
)

// Between two tries of one call lie retryFirst, then twice as long each time up to
// retryMost, each shortened at random, so that many callers which failed together do
// not come back together.
const (
	retryFirst = 20 * time.Millisecond
	retryMost  = 250 * time.Millisecond
)

// retry counts the tries of one call. The zero value is ready.
type retry struct {
	first, most time.Duration // default retryFirst, retryMost
	pause       time.Duration // the last one
}

// wait waits until the next try, or until ctx ends, and then returns its error.
func (r *retry) wait(ctx context.Context) error {
	r.pause = min(max(2*r.pause, cmp.Or(r.first, retryFirst)), cmp.Or(r.most, retryMost))
	return waitFor(ctx, jitter(r.pause))
}

// again begins with the shortest pause anew.
func (r *retry) again() { r.pause = 0 }

// jitter returns a random time between a quarter of d and d.
func jitter(d time.Duration) time.Duration { return d/4 + rand.N(d-d/4+1) }

// waitFor waits for d or until ctx ends, and then returns its error.
func waitFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
