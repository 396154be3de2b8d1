package logtest

import (
	"context"
	"time"

	"github.com/keytrail/keytrail/events"
)

// dedupWindow is how long the stream of uses remembers a message id.
const dedupWindow = 2 * time.Minute

type useStream struct {
	messages []events.UseMessage // messages[i].Seq == i+1
	trimmed  events.Seq          // gone up to here
	ids      map[string]stored
	tail     map[events.NodeID]events.Seq
}

type stored struct {
	seq events.Seq
	at  events.Time
}

// Publish implements events.UseSink.
func (l *MemLog) Publish(ctx context.Context, node events.NodeID, id string, data []byte) (seq events.Seq, err error) {
	err = l.call(ctx, OpPublish, func() error {
		u := &l.uses
		if err := node.Validate(); err != nil {
			return l.misused("publish: %w", err)
		}
		if id == "" || len(data) == 0 || len(data) > maxMessage {
			return l.misused("publish: want an id and 1 to %d bytes", maxMessage)
		}
		now := l.now()
		if s, ok := u.ids[id]; ok && now < s.at.Add(dedupWindow) {
			seq = s.seq
			return nil
		}
		seq = events.Seq(len(u.messages) + 1)
		u.messages = append(u.messages, events.UseMessage{Seq: seq, Stored: now, Node: node, Data: append([]byte(nil), data...)})
		u.ids[id] = stored{seq, now}
		u.tail[node] = seq
		l.wake()
		return nil
	})
	if err != nil {
		return 0, err
	}
	return seq, nil
}

// Tail implements events.UseSink.
func (l *MemLog) Tail(ctx context.Context, node events.NodeID) (m events.UseMessage, ok bool, err error) {
	err = l.call(ctx, OpTail, func() error {
		if seq := l.uses.tail[node]; seq > l.uses.trimmed {
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
	acked events.Seq // Changes: done up to here
	held  bool       // Changes: the next event is in someone's hands
	set   map[events.KeyRef]*setting
}

type setting struct {
	at   events.Time
	held bool
}

// Changes implements events.Timers.
func (l *MemLog) Changes(ctx context.Context, f func(context.Context, *events.Recorded) error) error {
	for ctx.Err() == nil {
		r, changed := l.takeChange()
		if r == nil {
			wait(ctx, changed, heartbeat)
			continue
		}
		if !l.giveBack(func() error { return f(ctx, r) }, func(done bool) {
			l.timers.held = false
			if done {
				l.timers.acked = r.Seq
			}
		}) {
			wait(ctx, nil, redeliver)
		}
	}
	return ctx.Err()
}

func (l *MemLog) takeChange() (*events.Recorded, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down || l.timers.held || int(l.timers.acked) == len(l.records) {
		return nil, l.changed
	}
	l.timers.held = true
	r := l.records[l.timers.acked]
	return &r, l.changed
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

// Set implements events.Timers.
func (l *MemLog) Set(ctx context.Context, key events.KeyRef, at events.Time) error {
	return l.setTimer(ctx, key, &setting{at: at})
}

// Clear implements events.Timers.
func (l *MemLog) Clear(ctx context.Context, key events.KeyRef) error {
	return l.setTimer(ctx, key, nil)
}

func (l *MemLog) setTimer(ctx context.Context, key events.KeyRef, s *setting) error {
	return l.call(ctx, OpTimer, func() error {
		if err := key.Aggregate().Validate(); err != nil {
			return l.misused("timer: %w", err)
		}
		if s == nil {
			delete(l.timers.set, key)
		} else {
			l.timers.set[key] = s
		}
		l.wake()
		return nil
	})
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
