package eventlog

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// How often a question is asked again: soon at first, since a subscription or an
// answer may just have been lost.
const (
	askFirst = 50 * time.Millisecond
	askMost  = time.Second
)

// Ask implements events.Prompts.
func (l *Leases) Ask(ctx context.Context, h events.Head, heard func(events.NodeLease)) error {
	if err := l.mine("the head", &h); err != nil {
		return fmt.Errorf("ask the nodes: %w", err)
	}
	body, err := events.EncodeHead(&h)
	if err != nil {
		return err
	}
	answers := make(chan *nats.Msg, maxLeases)
	sub, err := l.nc.ChanSubscribe(streams.AppliedPrefix+"*", answers)
	if err != nil {
		return fmt.Errorf("ask the nodes: %w", err)
	}
	defer sub.Unsubscribe()
	again := time.NewTimer(0)
	defer again.Stop()
	for pause := askFirst; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
			if err := l.nc.Publish(streams.AskApplied, body); err != nil && l.nc.IsClosed() {
				return fmt.Errorf("ask the nodes: %w", err)
			}
			again.Reset(pause)
			pause = min(2*pause, askMost)
		case m := <-answers:
			lease, err := events.DecodeLease(m.Data)
			if err == nil && string(lease.Node) == strings.TrimPrefix(m.Subject, streams.AppliedPrefix) && lease.Applied.Log == l.id {
				heard(lease)
			}
		}
	}
}

// Listen implements events.Prompts. What is not a question is passed over: a verifier
// can aim an answer of the server's at another one's subject.
func (l *Leases) Listen(ctx context.Context, asked func(events.Head)) error {
	questions := make(chan *nats.Msg, 256)
	sub, err := l.nc.ChanSubscribe(streams.AskApplied, questions)
	if err != nil {
		return fmt.Errorf("listen for questions: %w", err)
	}
	defer sub.Unsubscribe()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-questions:
			if h, err := events.DecodeHead(m.Data); err == nil && h.Log == l.id {
				asked(h)
			}
		}
	}
}

// Say implements events.Prompts.
func (l *Leases) Say(lease events.NodeLease) error {
	body, err := events.EncodeLease(&lease)
	if err == nil {
		err = l.nc.Publish(streams.AppliedPrefix+string(lease.Node), body)
	}
	if err != nil {
		return fmt.Errorf("say what %s has applied: %w", lease.Node, err)
	}
	return nil
}
