package eventlog

import (
	"context"
	"errors"
	"fmt"

	"github.com/keytrail/keytrail/events"
)

// ID implements events.Log.
func (l *Lifecycle) ID() events.LogID { return l.id }

// Restored returns the logs that this one was restored from, the newest first.
func (l *Lifecycle) Restored() []events.Ancestor { return l.restored }

// Last implements events.Log: the stream's leader answers, when it leads.
func (l *Lifecycle) Last(ctx context.Context) (events.Seq, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	return l.end(ctx, l.stream, 0)
}

// LastAtLeast implements events.LastAtLeastLog.
func (l *Lifecycle) LastAtLeast(ctx context.Context, seq events.Seq) (events.Seq, error) {
	return l.end(ctx, l.stream, seq)
}

// decode turns a stored message into its event. The error is a *CorruptError.
func (s *stored) decode() (events.Recorded, error) {
	m := events.Message{Subject: s.subject, Data: s.data}
	e, err := events.Decode(&m)
	if err != nil {
		return events.Recorded{}, unreadable(s.seq, err)
	}
	return m.Record(e, s.seq, s.at), nil
}

// unreadable says what to do about an event that cannot be read: to upgrade what
// is older than the log, to restore what is damaged.
func unreadable(seq events.Seq, err error) error {
	if newer := (*events.NewerError)(nil); errors.As(err, &newer) {
		return &events.CorruptError{Seq: seq, Reason: fmt.Sprintf("event %d: %s. The log is not damaged: keep it as it is", seq, newer)}
	}
	return &events.CorruptError{Seq: seq, Reason: fmt.Sprintf("event %d cannot be read (%v). If a newer release of Keytrail has run on this log, upgrade this process. "+
		"If none has, something other than Keytrail wrote to the log, or its store is damaged: stop here, and restore the log from its archive mirror or a backup", seq, err)}
}

// Load implements events.Log. The leader says which event is the aggregate's
// last; the rest may come from any replica, and is asked for again until it
// reaches that one (L4).
func (l *Lifecycle) Load(ctx context.Context, a events.Aggregate) ([]events.Recorded, error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	if err := a.Validate(); err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	history, err := l.load(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", a, err)
	}
	return history, nil
}

// LastOf implements events.ReadLog: the stream's leader answers (L4).
func (l *Lifecycle) LastOf(ctx context.Context, a events.Aggregate) (r events.Recorded, ok bool, err error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	if err := a.Validate(); err != nil {
		return r, false, fmt.Errorf("last event: %w", err)
	}
	s, err := l.leaderGet(ctx, l.stream, getRequest{LastFor: a.Subject()})
	if err != nil {
		return r, false, fmt.Errorf("last event of %s: %w", a, err)
	}
	if s == nil {
		return r, false, nil
	}
	if r, err = s.decode(); err != nil {
		return r, false, fmt.Errorf("last event of %s: %w", a, err)
	}
	return r, true, nil
}

// At implements events.ReadLog: the stream's leader answers (L4).
func (l *Lifecycle) At(ctx context.Context, seq events.Seq) (r events.Recorded, ok bool, err error) {
	if seq == 0 {
		return r, false, nil
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	s, err := l.leaderGet(ctx, l.stream, getRequest{Seq: seq})
	if s == nil || err != nil {
		return r, false, err
	}
	r, err = s.decode()
	return r, err == nil, err
}

func (l *Lifecycle) load(ctx context.Context, a events.Aggregate) ([]events.Recorded, error) {
	msg, err := l.leaderGet(ctx, l.stream, getRequest{LastFor: a.Subject()})
	if msg == nil || err != nil {
		return nil, err
	}
	last, err := msg.decode()
	if err != nil {
		return nil, err
	}
	if last.Rev == 1 {
		return chained([]events.Recorded{last})
	}
	history := make([]events.Recorded, 0, last.Rev)
	for r := (retry{}); ; {
		next := events.Seq(1)
		if n := len(history); n > 0 {
			next = history[n-1].Seq + 1
		}
		err := l.get(ctx, l.stream, getRequest{Seq: next, NextFor: a.Subject(), Batch: bulkMessages, MaxBytes: bulkBytes}, func(s *stored) error {
			r, err := s.decode()
			if err == nil {
				history = append(history, r)
			}
			return err
		})
		if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
			return nil, err
		}
		if n := len(history); n > 0 && history[n-1].Seq >= last.Seq {
			return chained(history)
		}
		if err == nil && len(history) > 0 && history[len(history)-1].Seq >= next {
			continue // the answer was full
		}
		// The replica that answered is behind the leader, or nobody answered.
		if r.wait(ctx) != nil || l.nc.IsClosed() {
			return nil, fmt.Errorf("%w: no replica gave the history up to event %d", events.ErrUnavailable, last.Seq)
		}
	}
}

// chained verifies that a whole history continues from rev 1 on.
func chained(history []events.Recorded) ([]events.Recorded, error) {
	var c events.Chain
	var err error
	for i := range history {
		if c, err = c.Advance(&history[i]); err != nil {
			return nil, &events.CorruptError{Seq: history[i].Seq, Reason: err.Error()}
		}
	}
	return history, nil
}
