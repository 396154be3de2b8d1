package eventlog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// Where a process that holds a node's name is asked for, and where it answers. The
// messages are not stored, and do not leave the account of who sends them.
const (
	aliveSubject = "kt.alive."
	aliveAnswers = "kt.alive.answer."
)

// alivePatience is how long an answer may take. Nobody there is known at once.
const alivePatience = time.Second

// Alive asks whether a process holds the node's name now, in this connection's
// account, and returns what it says of itself (Hold). A process that is suspended
// or cut off does not answer. Errors: events.ErrUnavailable, or ctx's.
func (l *Log) Alive(ctx context.Context, node events.NodeID) (alive bool, holder string, err error) {
	if err := node.Validate(); err != nil {
		return false, "", err
	}
	inbox := aliveAnswers + l.nc.NewInbox()[len(nats.InboxPrefix):]
	sub, err := l.nc.SubscribeSync(inbox)
	if err == nil {
		defer sub.Unsubscribe()
		err = l.nc.PublishRequest(aliveSubject+string(node), inbox, nil)
	}
	if err != nil {
		return false, "", fmt.Errorf("ask for node %s: %w: %w", node, events.ErrUnavailable, err)
	}
	wait, cancel := context.WithTimeout(ctx, alivePatience)
	defer cancel()
	m, err := sub.NextMsgWithContext(wait)
	switch {
	case errors.Is(err, nats.ErrNoResponders) || err == nil && m.Header.Get("Status") == "503":
		return false, "", nil
	case err == nil:
		return true, input.Echo(string(m.Data)), nil
	case ctx.Err() != nil:
		return false, "", ctx.Err()
	case wait.Err() != nil:
		return false, "", nil
	}
	return false, "", fmt.Errorf("ask for node %s: %w: %w", node, events.ErrUnavailable, err)
}

// Hold answers whoever asks for the node with what holder says, until ctx ends, and
// returns ctx's error.
func (l *Log) Hold(ctx context.Context, node events.NodeID, holder string) error {
	sub, err := l.nc.Subscribe(aliveSubject+string(node), func(m *nats.Msg) {
		if strings.HasPrefix(m.Reply, aliveAnswers) {
			_ = l.nc.Publish(m.Reply, []byte(holder)) // who gets no answer starts, and fences this process
		}
	})
	if err != nil {
		return fmt.Errorf("answer for node %s: %w: %w", node, events.ErrUnavailable, err)
	}
	defer sub.Unsubscribe()
	<-ctx.Done()
	return ctx.Err()
}
