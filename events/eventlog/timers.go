package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/keytrail/keytrail/events"
)

const (
	setPrefix   = "kt.timer.set."
	duePrefix   = "kt.timer.due."
	dueSubjects = duePrefix + ">"
	offSubject  = "kt.timer.off" // takes the messages that cancel a schedule; keeps the last
)

// farthest is the last instant that a schedule is made for: the server counts
// nanoseconds, which end in 2262.
var farthest = events.At(time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC))

func timerToken(k events.KeyRef) string {
	return string(k.Keyspace) + "." + string(k.Tenant) + "." + k.Key.String()
}

// Set implements events.Timers with a message schedule (ADR-51): one message on
// a subject of the key's own, which the server turns into a due message. The
// instant is written out to the millisecond, since nats.go's helper truncates to
// seconds and so would fire early. An instant past the year 2200 is not set.
func (l *Log) Set(ctx context.Context, key events.KeyRef, at events.Time) error {
	if err := key.Aggregate().Validate(); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	if at > farthest {
		return l.Clear(ctx, key)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	m := nats.NewMsg(setPrefix + timerToken(key))
	m.Header.Set("Nats-Schedule", "@at "+at.Std().Format(time.RFC3339Nano))
	m.Header.Set("Nats-Schedule-Target", duePrefix+timerToken(key))
	m.Header.Set("Nats-Schedule-TTL", "168h") // how long a due message waits for an expirer
	m.Header.Set(hdrStream, timerStream)
	if _, err := l.send(ctx, m); err != nil {
		return fmt.Errorf("set the timer of %s: %w", key.Key, err)
	}
	return nil
}

// Clear implements events.Timers.
func (l *Log) Clear(ctx context.Context, key events.KeyRef) error {
	if err := key.Aggregate().Validate(); err != nil {
		return fmt.Errorf("clear a timer: %w", err)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	m := nats.NewMsg(offSubject)
	m.Header.Set("Nats-Scheduler", setPrefix+timerToken(key))
	m.Header.Set("Nats-Schedule-Next", "purge")
	m.Header.Set(hdrStream, timerStream)
	m.Header.Set(hdrMsgID, nuid.Next())
	if _, err := l.send(ctx, m); err != nil {
		return fmt.Errorf("clear the timer of %s: %w", key.Key, err)
	}
	return nil
}

// Changes implements events.Timers: one durable consumer for all processes, one
// event on its way at a time.
func (l *Log) Changes(ctx context.Context, f func(context.Context, *events.Recorded) error) error {
	return l.consume(ctx, lifeStream, timersConsumer, func(ctx context.Context, m *nats.Msg) error {
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		s := stored{seq: events.Seq(meta.Sequence.Stream), at: events.At(meta.Timestamp), subject: m.Subject, header: m.Header, data: m.Data}
		r, err := s.decode()
		if err != nil {
			return err
		}
		return f(ctx, &r)
	})
}

// Due implements events.Timers.
func (l *Log) Due(ctx context.Context, f func(context.Context, events.KeyRef) error) error {
	return l.consume(ctx, timerStream, expirerConsumer, func(ctx context.Context, m *nats.Msg) error {
		key, err := parseDue(m.Subject)
		if err != nil {
			return &events.CorruptError{Reason: fmt.Sprintf("timer subject %q: %v: something other than Keytrail wrote to KT_TIMER; find it and stop it", m.Subject, err)}
		}
		return f(ctx, key)
	})
}

func parseDue(subject string) (events.KeyRef, error) {
	parts := strings.Split(strings.TrimPrefix(subject, duePrefix), ".")
	if len(parts) != 3 {
		return events.KeyRef{}, errors.New("want a keyspace, a tenant and a key")
	}
	id, err := events.ParseKeyID(parts[2])
	if err != nil {
		return events.KeyRef{}, err
	}
	return events.KeyRef{Keyspace: events.KeyspaceID(parts[0]), Tenant: events.TenantID(parts[1]), Key: id}, nil
}

// pullWait is how long one pull waits for a message. After a lost connection it
// is also the longest time until the next pull.
const pullWait = 2 * time.Second

// consume hands each message of a durable consumer to f, and again a little
// later when f fails. It pulls one message when it is ready for one, so that
// the end of a process holds nothing back from the others. A message that
// cannot be read ends it; a lost connection does not.
func (l *Log) consume(ctx context.Context, stream, consumer string, f func(context.Context, *nats.Msg) error) error {
	ch := make(chan *nats.Msg, 16)
	inbox := l.nc.NewInbox()
	sub, err := l.nc.ChanSubscribe(inbox, ch)
	if err != nil {
		return fmt.Errorf("consumer %s: %w: %w", consumer, events.ErrUnavailable, err)
	}
	defer sub.Unsubscribe()
	pull := fmt.Appendf(nil, `{"batch":1,"expires":%d}`, pullWait)
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m := l.pull(ctx, l.api+"CONSUMER.MSG.NEXT."+stream+"."+consumer, inbox, pull, ch)
		if m != nil && ctx.Err() != nil {
			_ = m.Nak() // if it is lost, AckWait returns the message
			_ = l.nc.FlushTimeout(patience)
			return ctx.Err()
		}
		if l.nc.IsClosed() {
			return fmt.Errorf("consumer %s: %w: %w", consumer, events.ErrUnavailable, nats.ErrConnectionClosed)
		}
		if m == nil {
			continue
		}
		err := f(ctx, m)
		if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
			return fmt.Errorf("consumer %s: %w", consumer, err)
		}
		if err == nil {
			_ = m.Ack() // if it is lost, the message comes again after AckWait
			continue
		}
		l.log.LogAttrs(ctx, slog.LevelDebug, "will try again", slog.String("consumer", consumer), slog.Any("err", err))
		_ = m.NakWithDelay(backoff(m))
	}
}

// pullEnds is how long the answer to the last pull is waited for when ctx has
// ended: a message that arrived at nobody would come again only after AckWait.
const pullEnds = 50 * time.Millisecond

// pull asks for one message and waits for it; nil = none came. It may return
// one when ctx has ended.
func (l *Log) pull(ctx context.Context, subject, inbox string, body []byte, ch <-chan *nats.Msg) *nats.Msg {
	if err := l.nc.PublishRequest(subject, inbox, body); err != nil {
		_ = waitFor(ctx, pause)
		return nil
	}
	t := time.NewTimer(pullWait + pullWait/4)
	defer t.Stop()
	done := ctx.Done()
	for {
		select {
		case <-done:
			done = nil
			t.Reset(pullEnds)
		case <-t.C:
			return nil
		case m := <-ch:
			switch m.Header.Get("Status") {
			case "":
				return m
			case "404", "408": // none in time
				return nil
			default: // no responders, no leader: the server is restarting
				_ = waitFor(ctx, pause)
				return nil
			}
		}
	}
}

// backoff grows from 100 ms to 5 s with the deliveries of a message.
func backoff(m *nats.Msg) time.Duration {
	meta, err := m.Metadata()
	if err != nil {
		return time.Second
	}
	return min(50*time.Millisecond<<min(meta.NumDelivered, 10), 5*time.Second)
}
