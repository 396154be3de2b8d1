package events

import "context"

// Timers wakes the expirer. It is a rebuildable convenience over the log:
// enforcement never waits for it.
//
// The mark says up to where in the log the timers are set. Each Set moves it with
// its settings, both or neither, and only from the newest mark: so the timers are
// set in one order, however many processes set them, and where they are lost, the
// mark is lost with them.
type Timers interface {
	// Mark returns the newest mark.
	Mark(ctx context.Context) (TimerMark, error)
	// Set makes each key due as its setting says, in the place of the setting that it
	// has, and moves the mark to through. It returns the new mark. All of it is stored
	// when it returns without an error. With ErrConflict nothing is stored by it: from is not
	// the newest mark. With another error it may be stored: ask for the mark. settings
	// are of different keys, MaxTimers at most.
	Set(ctx context.Context, from TimerMark, through Seq, settings ...TimerSetting) (TimerMark, error)
	// Rearm sets one timer and leaves the mark. It stores nothing when mark is not the
	// newest: ErrConflict.
	Rearm(ctx context.Context, mark TimerMark, s TimerSetting) error
	// Due hands each key that has become due to one of the processes that call
	// it, never before its instant, again until f returns nil. It returns when
	// ctx ends.
	Due(ctx context.Context, f func(context.Context, KeyRef) error) error
}

// MaxTimers is the most settings that one Set takes.
const MaxTimers = 999

// TimerSetting says when a key becomes due.
type TimerSetting struct {
	Key KeyRef
	At  Time // in the past = at once; 0 = never
}

// TimerMark says up to where the timers are set. The zero mark is that of timers
// that nobody has set.
type TimerMark struct {
	Through Seq // the timers are as the events up to here say
	Place   Seq // where the mark stands among the timers: no two marks have one place
}
