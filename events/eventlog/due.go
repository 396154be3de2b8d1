package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// Due implements events.Timers: one durable consumer for all processes. It pulls
// one message when it is ready for one, so that the end of a process holds nothing
// back from the others. A message that cannot be read ends it; a lost connection does
// not.
func (ts *Timers) Due(ctx context.Context, f func(context.Context, events.KeyRef) error) error {
	const consumer = streams.ExpirerConsumer
	ch := make(chan *nats.Msg, 16)
	inbox := ts.nc.NewInbox()
	sub, err := ts.nc.ChanSubscribe(inbox, ch)
	if err != nil {
		return fmt.Errorf("consumer %s: %w: %w", consumer, events.ErrUnavailable, err)
	}
	defer sub.Unsubscribe()
	pull := fmt.Appendf(nil, `{"batch":1,"expires":%d}`, pullWait)
	for r := (retry{}); ; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m := ts.pull(ctx, ts.api+"CONSUMER.MSG.NEXT."+timerStream+"."+consumer, inbox, pull, ch, &r)
		if m != nil && ctx.Err() != nil {
			_ = m.Nak() // if it is lost, AckWait returns the message
			_ = ts.nc.FlushTimeout(patience)
			return ctx.Err()
		}
		if ts.nc.IsClosed() {
			return fmt.Errorf("consumer %s: %w: %w", consumer, events.ErrUnavailable, nats.ErrConnectionClosed)
		}
		if m == nil {
			continue
		}
		key, err := parseDue(m.Subject)
		if err != nil {
			return fmt.Errorf("consumer %s: %w", consumer, &events.CorruptError{Reason: fmt.Sprintf("timer subject %q: %v: something other than Keytrail wrote to KT_TIMER; find it and stop it", m.Subject, err)})
		}
		if err := f(ctx, key); err != nil {
			ts.log.LogAttrs(ctx, slog.LevelDebug, "will try again", slog.String("consumer", consumer), slog.Any("err", err))
			_ = m.NakWithDelay(backoff(m))
			continue
		}
		_ = m.Ack() // if it is lost, the message comes again after AckWait
	}
}

func parseDue(subject string) (events.KeyRef, error) {
	parts := strings.Split(strings.TrimPrefix(subject, streams.DuePrefix), ".")
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

// pullEnds is how long the answer to the last pull is waited for when ctx has
// ended: a message that arrived at nobody would come again only after AckWait.
const pullEnds = 50 * time.Millisecond

// pull asks for one message and waits for it; nil = none came. It may return
// one when ctx has ended.
func (ts *Timers) pull(ctx context.Context, subject, inbox string, body []byte, ch <-chan *nats.Msg, r *retry) *nats.Msg {
	if err := ts.nc.PublishRequest(subject, inbox, body); err != nil {
		_ = r.wait(ctx)
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
				r.again()
				return m
			case "404", "408": // none in time
				r.again()
				return nil
			default: // no responders, no leader: the server is restarting
				_ = r.wait(ctx)
				return nil
			}
		}
	}
}

// backoff grows from 100 ms to 5 s with the deliveries of a message, less jitter.
func backoff(m *nats.Msg) time.Duration {
	meta, err := m.Metadata()
	if err != nil {
		return time.Second
	}
	return jitter(min(50*time.Millisecond<<min(meta.NumDelivered, 10), 5*time.Second))
}
