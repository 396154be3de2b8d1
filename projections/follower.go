package projections

import (
	"context"
	"errors"

	"github.com/keytrail/keytrail/events"
)

// Follow feeds the views and whatever else follows with them from the log, in one
// pass that begins where the view that is furthest behind stands; the others
// ignore what they have (P3). It returns when ctx ends, when a view refuses an
// event, or when the log is broken, as Log.Follow does.
//
// A view that was restored proves first that it was folded from this log: the pass
// begins with the last event that the view applied, and the view compares (P8).
// Recorded.Stored may be zero in what is delivered.
func Follow(ctx context.Context, log events.Log, fs ...events.Follower) error {
	var lowest events.Seq
	first := true
	for _, f := range fs {
		if v, ok := f.(interface{ Resume() events.Seq }); ok {
			if at := v.Resume(); first || at < lowest {
				lowest, first = at, false
			}
		}
	}
	return log.Follow(ctx, max(lowest, 1)-1, fanout(fs))
}

// fanout gives each batch to every follower in turn.
type fanout []events.Follower

// Untimed implements events.Untimed: no view depends on the clock of the log.
func (fs fanout) Untimed() {}

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
