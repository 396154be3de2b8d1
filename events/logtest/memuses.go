package logtest

import (
	"bytes"
	"context"
	"time"

	"github.com/keytrail/keytrail/events"
)

type useStream struct {
	messages []events.UseMessage // messages[i].Seq == i+1
	trimmed  events.Seq          // gone up to here
	ids      map[string]events.Seq
	tail     map[events.NodeID]events.Seq
}

// last returns the sequence of the node's last message, 0 for none.
func (u *useStream) last(node events.NodeID) events.Seq {
	if seq := u.tail[node]; seq > u.trimmed {
		return seq
	}
	return 0
}

// Publish implements events.UseSink.
func (l *MemLog) Publish(ctx context.Context, node events.NodeID, id string, expect events.Seq, data []byte) (seq events.Seq, err error) {
	err = l.call(ctx, OpPublish, func() error {
		seq, err = l.publish(node, id, expect, data)
		return err
	})
	if err != nil {
		return 0, err
	}
	return seq, nil
}

func (l *MemLog) publish(node events.NodeID, id string, expect events.Seq, data []byte) (events.Seq, error) {
	u := &l.uses
	if err := node.Validate(); err != nil {
		return 0, l.misused("publish: %w", err)
	}
	if id == "" || len(data) == 0 || len(data) > maxMessage {
		return 0, l.misused("publish: want an id and 1 to %d bytes", maxMessage)
	}
	known := u.ids[id]
	if known > 0 && (u.messages[known-1].Node != node || !bytes.Equal(u.messages[known-1].Data, data)) {
		return 0, l.misused("publish: id %s names two batches", id)
	}
	last := u.last(node)
	switch {
	case known > 0 && last == 0: // stored, and taken by retention since
		return known, nil
	case last == expect, last == 0 && expect <= u.trimmed:
	case last > expect && last == known:
		return known, nil
	case last > expect:
		return 0, &events.FencedError{Last: u.messages[last-1]}
	default:
		return 0, l.misused("publish: expectation %d: the last message of %s is %d", expect, node, last)
	}
	if known > 0 {
		return 0, l.misused("publish: the batch with id %s is stored already, before message %d", id, expect)
	}
	seq := events.Seq(len(u.messages) + 1)
	u.messages = append(u.messages, events.UseMessage{Seq: seq, Stored: l.now(), Node: node, Data: append([]byte(nil), data...)})
	u.ids[id], u.tail[node] = seq, seq
	l.wake()
	return seq, nil
}

// Tail implements events.UseSink.
func (l *MemLog) Tail(ctx context.Context, node events.NodeID) (m events.UseMessage, ok bool, err error) {
	err = l.call(ctx, OpTail, func() error {
		if seq := l.uses.last(node); seq > 0 {
			m, ok = l.uses.messages[seq-1], true
		}
		return nil
	})
	if err != nil {
		return events.UseMessage{}, false, err
	}
	return m, ok, nil
}

// ReadUses implements events.UseSource.
func (l *MemLog) ReadUses(ctx context.Context, after events.Seq, max int) ([]events.UseMessage, error) {
	for {
		var out []events.UseMessage
		var changed <-chan struct{}
		err := l.call(ctx, OpReadUses, func() error {
			u := &l.uses
			changed = l.changed
			if max < 1 {
				return l.misused("read uses: max %d: want at least 1", max)
			}
			if after < u.trimmed {
				return &events.TrimmedError{After: after, First: u.trimmed + 1}
			}
			if n := events.Seq(len(u.messages)); after < n {
				out = append(out, u.messages[after:min(n, after+events.Seq(max))]...)
			}
			return nil
		})
		if ctx.Err() != nil && len(out) == 0 {
			return nil, ctx.Err()
		}
		if err != nil || len(out) > 0 {
			return out, err
		}
		wait(ctx, changed, heartbeat)
	}
}

// LastUse implements events.UseSource.
func (l *MemLog) LastUse(ctx context.Context) (last events.Seq, err error) {
	err = l.call(ctx, OpLast, func() error {
		last = events.Seq(len(l.uses.messages))
		return nil
	})
	if err != nil {
		return 0, err
	}
	return last, nil
}

// TrimUses takes everything up to and including seq out of the stream of uses,
// as retention does.
func (l *MemLog) TrimUses(seq events.Seq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.uses.trimmed = max(l.uses.trimmed, min(seq, events.Seq(len(l.uses.messages))))
	l.wake()
}

// redeliver is how long the timers wait after a failure before they try again.
const redeliver = 100 * time.Millisecond

type timers struct {
	mark  events.TimerMark
	place events.Seq // of the last mark
	set   map[events.KeyRef]*setting
}

type setting struct {
	at   events.Time
	held bool
}

// giveBack runs f and tells release, under the lock, whether it succeeded; a
// panic in f counts as a crash of that process.
func (l *MemLog) giveBack(f func() error, release func(done bool)) (done bool) {
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		release(done)
		l.wake()
	}()
	return f() == nil
}

// Mark implements events.Timers.
func (l *MemLog) Mark(ctx context.Context) (mark events.TimerMark, err error) {
	err = l.call(ctx, OpMark, func() error { mark = l.timers.mark; return nil })
	if err != nil {
		return events.TimerMark{}, err
	}
	return mark, nil
}

// Set implements events.Timers.
func (l *MemLog) Set(ctx context.Context, from events.TimerMark, through events.Seq, settings ...events.TimerSetting) (mark events.TimerMark, err error) {
	err = l.call(ctx, OpTimer, func() error {
		seen := map[events.KeyRef]bool{}
		for _, s := range settings {
			if seen[s.Key] || len(settings) > events.MaxTimers {
				return l.misused("%d settings, or two of key %s", len(settings), s.Key.Key)
			}
			seen[s.Key] = true
		}
		if from != l.timers.mark {
			return events.ErrConflict
		}
		for _, s := range settings {
			if err := l.setTimer(s); err != nil {
				return err
			}
		}
		l.timers.place++
		mark = events.TimerMark{Through: through, Place: l.timers.place}
		l.timers.mark = mark
		l.wake()
		return nil
	})
	if err != nil {
		return events.TimerMark{}, err
	}
	return mark, nil
}

// Rearm implements events.Timers.
func (l *MemLog) Rearm(ctx context.Context, mark events.TimerMark, s events.TimerSetting) error {
	return l.call(ctx, OpTimer, func() error {
		if mark != l.timers.mark {
			return events.ErrConflict
		}
		l.wake()
		return l.setTimer(s)
	})
}

// setTimer keeps one setting. l.mu is held.
func (l *MemLog) setTimer(s events.TimerSetting) error {
	if err := s.Key.Aggregate().Validate(); err != nil {
		return l.misused("timer: %w", err)
	}
	if s.At == 0 {
		delete(l.timers.set, s.Key)
	} else {
		l.timers.set[s.Key] = &setting{at: s.At}
	}
	return nil
}

// LoseTimers forgets all timers, as the loss of their stream does.
func (l *MemLog) LoseTimers() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timers = timers{place: l.timers.place, set: map[events.KeyRef]*setting{}}
	l.wake()
}

// Settings returns when each key becomes due that has a timer.
func (l *MemLog) Settings() map[events.KeyRef]events.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[events.KeyRef]events.Time{}
	for key, s := range l.timers.set {
		out[key] = s.at
	}
	return out
}

// Due implements events.Timers.
func (l *MemLog) Due(ctx context.Context, f func(context.Context, events.KeyRef) error) error {
	for ctx.Err() == nil {
		key, s, d, changed := l.takeDue()
		if s == nil {
			wait(ctx, changed, d)
			continue
		}
		if !l.giveBack(func() error { return f(ctx, key) }, func(done bool) {
			s.held = false
			if done && l.timers.set[key] == s { // a setting that replaced s stays
				delete(l.timers.set, key)
			}
		}) {
			wait(ctx, nil, redeliver)
		}
	}
	return ctx.Err()
}

// takeDue takes the key that has been due longest, or says how long to wait.
func (l *MemLog) takeDue() (due events.KeyRef, first *setting, d time.Duration, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return due, nil, heartbeat, l.changed
	}
	for key, s := range l.timers.set {
		if !s.held && (first == nil || s.at < first.at) {
			due, first = key, s
		}
	}
	if first == nil {
		return due, nil, heartbeat, l.changed
	}
	if now := l.now(); first.at > now {
		return due, nil, min(heartbeat, time.Duration(first.at-now)*time.Millisecond), l.changed
	}
	first.held = true
	return due, first, 0, l.changed
}
