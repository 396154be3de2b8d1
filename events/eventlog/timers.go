package eventlog

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

const (
	setPrefix   = "kt.timer.set."
	markSubject = "kt.timer.mark"
)

// farthest is the last instant that a schedule is made for: the server counts
// nanoseconds, which end in 2262.
var farthest = events.At(time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC))

func timerToken(k events.KeyRef) string {
	return string(k.Keyspace) + "." + string(k.Tenant) + "." + k.Key.String()
}

// settingMsg returns the message of one setting: a message schedule (ADR-51) on a
// subject of the key's own, which the server turns into a due message. The instant is
// written out to the millisecond, since nats.go's helper truncates to seconds and so
// would fire early. A message that is no schedule takes the schedule's place and so
// cancels it; the server drops it after a while. An instant past the year 2200 is
// never.
func settingMsg(s *events.TimerSetting) (*nats.Msg, error) {
	if err := s.Key.Aggregate().Validate(); err != nil {
		return nil, err
	}
	token := timerToken(s.Key)
	m := nats.NewMsg(setPrefix + token)
	if s.At == 0 || s.At > farthest {
		m.Header.Set(hdrTTL, "1h")
		return m, nil
	}
	m.Header.Set("Nats-Schedule", "@at "+s.At.Std().Format(time.RFC3339Nano))
	m.Header.Set("Nats-Schedule-Target", streams.DuePrefix+token)
	m.Header.Set("Nats-Schedule-TTL", "168h") // how long a due message waits for an expirer
	return m, nil
}

// Mark implements events.Timers. The stream's leader answers, and a leader that was
// deposed may answer with an older mark: Set refuses that one.
func (ts *Timers) Mark(ctx context.Context) (events.TimerMark, error) {
	ctx, cancel := ts.bound(ctx)
	defer cancel()
	last, err := ts.leaderGet(ctx, timerStream, getRequest{LastFor: markSubject})
	if err != nil {
		return events.TimerMark{}, fmt.Errorf("read the mark of the timers: %w", err)
	}
	if last == nil {
		return events.TimerMark{}, nil
	}
	through, err := strconv.ParseUint(string(last.data), 10, 64)
	if err != nil { // nobody knows what is set: all is set anew
		ts.log.LogAttrs(ctx, slog.LevelWarn, "the mark of the timers cannot be read, all timers are set again: something other than Keytrail wrote to KT_TIMER, or its store is damaged", slog.Any("err", err))
		through = 0
	}
	return events.TimerMark{Through: events.Seq(through), Place: last.seq}, nil
}

// Set implements events.Timers: one atomic batch (ADR-50), synced once, with the new
// mark at its end. The mark expects the one before it, so that of two batches from one
// mark, or of two tries of one batch, one is stored at most (L11).
func (ts *Timers) Set(ctx context.Context, from events.TimerMark, through events.Seq, settings ...events.TimerSetting) (events.TimerMark, error) {
	if len(settings) > events.MaxTimers {
		return events.TimerMark{}, fmt.Errorf("set timers: %d settings, want at most %d", len(settings), events.MaxTimers)
	}
	msgs := make([]*nats.Msg, 0, len(settings)+1)
	for i := range settings {
		m, err := settingMsg(&settings[i])
		if err != nil {
			return events.TimerMark{}, fmt.Errorf("set timers: %w", err)
		}
		msgs = append(msgs, m)
	}
	mark := nats.NewMsg(markSubject)
	mark.Data = strconv.AppendUint(nil, uint64(through), 10)
	mark.Header.Set(hdrStream, timerStream)
	mark.Header.Set(hdrExpect, strconv.FormatUint(uint64(from.Place), 10))
	seq, err := ts.put(ctx, append(msgs, mark))
	if err != nil {
		return events.TimerMark{}, fmt.Errorf("set %d timers: %w", len(settings), err)
	}
	return events.TimerMark{Through: through, Place: seq}, nil
}

// Rearm implements events.Timers: the setting expects the mark to stand where it
// stood.
func (ts *Timers) Rearm(ctx context.Context, mark events.TimerMark, s events.TimerSetting) error {
	m, err := settingMsg(&s)
	if err == nil {
		m.Header.Set(hdrStream, timerStream)
		m.Header.Set(hdrExpect, strconv.FormatUint(uint64(mark.Place), 10))
		m.Header.Set(hdrExpectOf, markSubject)
		_, err = ts.put(ctx, []*nats.Msg{m})
	}
	if err != nil {
		return fmt.Errorf("set the timer of %s: %w", s.Key.Key, err)
	}
	return nil
}

// put stores the messages, or none.
func (ts *Timers) put(ctx context.Context, msgs []*nats.Msg) (events.Seq, error) {
	ctx, cancel := ts.bound(ctx)
	defer cancel()
	seq, err := ts.deliver(ctx, timerStream, msgs, nil)
	ts.note(timerStream, err)
	return seq, err
}
