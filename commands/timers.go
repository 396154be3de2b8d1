package commands

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// How the timers are kept in step with the log.
//
// The mark says up to where the timers are set: each key that has no event after the
// mark has the timer that its history says. Whoever moves the mark from p to q sets the
// timers of all keys that have an event in between, as a view at q or later says. So
// the sentence holds for q. A key that has an event after q may get a timer that is too
// new for q, or too old for the log's end: it is set again on the way there.
//
//	crash anywhere                    the next one begins at the mark
//	a Set that may be stored          ask for the mark: it moved with the settings, or they
//	                                  are not stored and never will be once it moves
//	two of them at once               the mark lets one Set in; the other begins again
//	the timers are lost               the mark is lost with them: all are set again
//
// It sets from the view, and not from the events: a key with many events is set once,
// and a key that never expires costs nothing.

const (
	// markEvery is how many events may go by that set no timer before the mark is moved
	// without one. It bounds what is set for nothing after a start.
	markEvery = 4096
	// standby is how long a feeder that met another one lets it work.
	standby = 4 * time.Second
	// inDoubt is how long a feeder that has set nothing yet waits before it does, to see
	// whether another one is at work.
	inDoubt = time.Second
	// lookEvery is how often a feeder that has nothing to do looks at the mark.
	lookEvery = time.Minute
	// feedAgain is the pause after an error.
	feedAgain = time.Second
)

// feed keeps the timers in step with the view until ctx ends. It returns ctx's error.
func (x *Expirer) feed(ctx context.Context) error {
	for {
		err := x.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, events.ErrConflict):
			pause(ctx, standby/2+rand.N(standby/2))
		default:
			x.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the timers are not set, trying again", slog.Any("err", err))
			pause(ctx, feedAgain/2+rand.N(feedAgain/2))
		}
	}
}

// follow sets timers from the mark on until something fails, or another process moves
// the mark (events.ErrConflict).
func (x *Expirer) follow(ctx context.Context) error {
	mark, err := x.cfg.Timers.Mark(ctx)
	if err != nil {
		return err
	}
	done := mark.Through
	last, err := x.cfg.Log.Last(ctx)
	if err != nil {
		return err
	}
	if done > last {
		x.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the timers are set for events that the log does not have: all are set again",
			slog.Uint64("through", uint64(done)), slog.Uint64("last", uint64(last)))
		if mark, err = x.cfg.Timers.Set(ctx, mark, 0); err != nil {
			return err
		}
		done = 0
	}
	began, alone, all := time.Now(), mark == events.TimerMark{}, true
	for {
		if err := x.await(ctx, done+1, mark); err != nil {
			return err
		}
		list, at := x.cfg.Dir.Timers(done, all)
		if at <= done { // the view is withdrawn
			continue
		}
		if len(list) > 0 || at >= mark.Through+markEvery {
			if !alone {
				if err := x.others(ctx, mark); err != nil {
					return err
				}
				alone = true
			}
			if mark, err = x.set(ctx, mark, list, at); err != nil {
				return err
			}
		}
		if all && len(list) > 0 {
			x.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "timers are set", slog.Int("keys", len(list)), slog.Uint64("after", uint64(done)),
				slog.Uint64("through", uint64(at)), slog.Duration("took", time.Since(began)))
		}
		done, all = at, false
	}
}

// await waits until the view is at the position. Now and then it looks whether the
// mark still stands: the timers may be lost while the log is quiet.
func (x *Expirer) await(ctx context.Context, at events.Seq, mark events.TimerMark) error {
	for {
		wait, cancel := context.WithTimeout(ctx, lookEvery/2+rand.N(lookEvery/2))
		err := x.cfg.Dir.Wait(wait, at)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if err := x.stands(ctx, mark); err != nil {
			return err
		}
	}
}

// others returns events.ErrConflict if another process moves the mark meanwhile.
func (x *Expirer) others(ctx context.Context, mark events.TimerMark) error {
	pause(ctx, inDoubt/2+rand.N(inDoubt/2))
	return x.stands(ctx, mark)
}

// stands returns events.ErrConflict if the mark is not the newest.
func (x *Expirer) stands(ctx context.Context, mark events.TimerMark) error {
	now, err := x.cfg.Timers.Mark(ctx)
	if err == nil && now != mark {
		err = events.ErrConflict
	}
	return err
}

// set sets the timers of the list and moves the mark to at, in steps.
func (x *Expirer) set(ctx context.Context, mark events.TimerMark, list []projections.Timed, at events.Seq) (_ events.TimerMark, err error) {
	settings := make([]events.TimerSetting, 0, min(len(list), x.most))
	for {
		n := min(len(list), x.most)
		settings = settings[:0]
		for _, t := range list[:n] {
			settings = append(settings, t.Setting())
		}
		through := at
		if n < len(list) {
			// Up to before the next one: more of the list may have the same Seq.
			through = list[n].Seq - 1
		}
		if mark, err = x.cfg.Timers.Set(ctx, mark, through, settings...); err != nil {
			return mark, err
		}
		if list = list[n:]; len(list) == 0 {
			return mark, nil
		}
	}
}

// rearm sets the timer of a key as the view says, which must be at the mark or later:
// nothing is stored when the mark has moved meanwhile.
func (x *Expirer) rearm(ctx context.Context, ref events.KeyRef) error {
	mark, err := x.cfg.Timers.Mark(ctx)
	if err != nil {
		return err
	}
	if err := x.cfg.Dir.Wait(ctx, mark.Through); err != nil {
		return err
	}
	if s, ok := x.cfg.Dir.Timer(ref.Key); ok && s.At != 0 {
		return x.cfg.Timers.Rearm(ctx, mark, s)
	}
	return nil
}
