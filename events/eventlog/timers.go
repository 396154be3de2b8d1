package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
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
	return l.consume(ctx, lifeStream, timersConsumer, func(ctx context.Context, m jetstream.Msg) error {
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		s := stored{seq: events.Seq(meta.Sequence.Stream), at: events.At(meta.Timestamp), subject: m.Subject(), header: m.Headers(), data: m.Data()}
		r, err := s.decode()
		if err != nil {
			return err
		}
		return f(ctx, &r)
	})
}

// Due implements events.Timers.
func (l *Log) Due(ctx context.Context, f func(context.Context, events.KeyRef) error) error {
	return l.consume(ctx, timerStream, expirerConsumer, func(ctx context.Context, m jetstream.Msg) error {
		parts := strings.Split(strings.TrimPrefix(m.Subject(), duePrefix), ".")
		if len(parts) != 3 {
			return &events.CorruptError{Reason: fmt.Sprintf("timer subject %q: something other than Keytrail wrote to KT_TIMER; find it and stop it", m.Subject())}
		}
		id, err := events.ParseKeyID(parts[2])
		if err != nil {
			return &events.CorruptError{Reason: fmt.Sprintf("timer subject %q: %v; something other than Keytrail wrote to KT_TIMER; find it and stop it", m.Subject(), err)}
		}
		return f(ctx, events.KeyRef{Keyspace: events.KeyspaceID(parts[0]), Tenant: events.TenantID(parts[1]), Key: id})
	})
}

// consume hands each message of a durable consumer to f, and again a little
// later when f fails. A message that cannot be read ends it; a lost connection
// does not.
func (l *Log) consume(ctx context.Context, stream, consumer string, f func(context.Context, jetstream.Msg) error) error {
	for {
		err := l.consumeUntil(ctx, stream, consumer, f)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
			return fmt.Errorf("consumer %s: %w", consumer, err)
		}
		if l.nc.IsClosed() {
			return fmt.Errorf("consumer %s: %w: %w", consumer, events.ErrUnavailable, err)
		}
		l.log.LogAttrs(ctx, slog.LevelDebug, "consumer waits", slog.String("consumer", consumer), slog.Any("err", err))
		if waitFor(ctx, beatEvery) != nil {
			return ctx.Err()
		}
	}
}

func (l *Log) consumeUntil(ctx context.Context, stream, consumer string, f func(context.Context, jetstream.Msg) error) error {
	short, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := l.js.Consumer(short, stream, consumer)
	if err != nil {
		return err
	}
	msgs, err := c.Messages(jetstream.PullMaxMessages(64), jetstream.PullExpiry(5*time.Second), jetstream.PullHeartbeat(time.Second))
	if err != nil {
		return err
	}
	defer giveBack(msgs)
	for {
		m, err := msgs.Next(jetstream.NextContext(ctx))
		if err != nil {
			return err
		}
		err = f(ctx, m)
		if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
			return err
		}
		if err != nil {
			l.log.LogAttrs(ctx, slog.LevelWarn, "will try again", slog.String("consumer", consumer), slog.Any("err", err))
			err = m.NakWithDelay(backoff(m))
		} else {
			err = m.Ack()
		}
		if err != nil { // it comes again after AckWait
			return err
		}
	}
}

// giveBack returns what was fetched and not looked at, so that the next process
// need not wait for AckWait.
func giveBack(msgs jetstream.MessagesContext) {
	msgs.Drain()
	for {
		m, err := msgs.Next()
		if err != nil {
			return
		}
		_ = m.Nak() // if it is lost, AckWait returns the message
	}
}

// backoff grows from 50 ms to 5 s with the deliveries of a message.
func backoff(m jetstream.Msg) time.Duration {
	meta, err := m.Metadata()
	if err != nil {
		return time.Second
	}
	return min(50*time.Millisecond<<min(meta.NumDelivered, 10), 5*time.Second)
}
