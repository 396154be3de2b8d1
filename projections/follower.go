package projections

import (
	"context"
	"errors"
	"fmt"

	"github.com/keytrail/keytrail/events"
)

// Follow feeds the views from the log, everything after the given sequence, in
// one pass. It returns when ctx ends, when a view refuses an event, or when the
// log is broken, as Log.Follow does. Views that stand further ahead ignore what
// they have (P3): for views restored at different positions give the lowest.
// A view that stands behind after is refused: it would miss events.
func Follow(ctx context.Context, log events.Log, after events.Seq, fs ...events.Follower) error {
	for _, f := range fs {
		if p, ok := f.(positioned); ok && p.At() < after {
			return fmt.Errorf("follow from %d: a view stands at %d and would miss the events between", after, p.At())
		}
	}
	if len(fs) == 1 {
		return log.Follow(ctx, after, fs[0])
	}
	return log.Follow(ctx, after, fanout(fs))
}

type positioned interface{ At() events.Seq }

// fanout gives each batch to every view in turn.
type fanout []events.Follower

func (fs fanout) Apply(batch []events.Recorded) error {
	var errs []error
	for _, f := range fs { // all of them: one that fails must not leave another behind
		errs = append(errs, f.Apply(batch))
	}
	return errors.Join(errs...)
}

func (fs fanout) Fresh(at events.Time, last events.Seq) {
	for _, f := range fs {
		f.Fresh(at, last)
	}
}
