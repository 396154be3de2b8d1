package eventlog

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// Appoint implements events.Appointments. A floor that names next already is the answer to
// a write whose outcome was not known.
func (l *Leases) Appoint(ctx context.Context, was, next events.InstanceID) (f events.Floor, err error) {
	ctx, cancel := l.bound(ctx)
	defer cancel()
	f, err = l.replace(ctx, func(floor events.Floor) (events.Floor, bool) {
		if floor.Seq == 0 || floor.Allocator == next || floor.Allocator != was {
			return floor, false
		}
		floor.Allocator = next
		return floor, true
	})
	switch {
	case err != nil:
	case f.Seq == 0:
		err = events.ErrNoFloor
	case f.Allocator != next:
		err = &events.StateError{Class: events.ErrConflict, Reason: fmt.Sprintf("%s is the allocator of limits", f.Allocator)}
	}
	if err != nil {
		return events.Floor{}, fmt.Errorf("appoint the allocator of limits: %w", err)
	}
	return f, nil
}

// mailbox is how many messages about limits wait to be read; more are lost.
const mailbox = 1024

// AskLimits implements events.LimitMail.
func (l *Leases) AskLimits(node events.NodeID, ask []byte) error {
	return l.mail(streams.LimitPrefix+string(node), ask)
}

// AnswerLimits implements events.LimitMail.
func (l *Leases) AnswerLimits(node events.NodeID, answer []byte) error {
	return l.mail(streams.LeasedPrefix+string(node), answer)
}

func (l *Leases) mail(subject string, body []byte) error {
	if err := l.nc.Publish(subject, body); err != nil {
		return fmt.Errorf("limits: %w: %w", events.ErrUnavailable, err)
	}
	return nil
}

// HearLimits implements events.LimitMail.
func (l *Leases) HearLimits(ctx context.Context, node events.NodeID, heard func([]byte)) error {
	return l.hear(ctx, streams.LeasedPrefix+string(node), func(m *nats.Msg) { heard(m.Data) })
}

// ServeLimits implements events.LimitMail.
func (l *Leases) ServeLimits(ctx context.Context, asked func(events.NodeID, []byte)) error {
	return l.hear(ctx, streams.LimitPrefix+"*", func(m *nats.Msg) {
		asked(events.NodeID(strings.TrimPrefix(m.Subject, streams.LimitPrefix)), m.Data)
	})
}

func (l *Leases) hear(ctx context.Context, subject string, heard func(*nats.Msg)) error {
	messages := make(chan *nats.Msg, mailbox)
	sub, err := l.nc.ChanSubscribe(subject, messages)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", subject, err)
	}
	defer sub.Unsubscribe()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-messages:
			heard(m)
		}
	}
}
