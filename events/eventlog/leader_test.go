package eventlog

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
)

// A stream without a leader is described by any of its members, from a state that
// may lack acknowledged events. Taking that for the log's end would look like a
// loss, and stop every role for good.
func TestOnlyTheLeaderSaysWhereTheLogEnds(t *testing.T) {
	s := testServer(t, ServerConfig{})
	nc := conn(t, s.ConnectAdmin)
	answers := make(chan string, 2)
	var last string
	if _, err := nc.Subscribe("fake.STREAM.INFO.KT_LIFE", func(m *nats.Msg) {
		select {
		case last = <-answers:
		default:
		}
		if err := m.Respond([]byte(last)); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	l := &Log{nc: nc, api: "fake.", timeout: 10 * time.Second}
	const leaderless = `{"state":{"last_seq":24},"cluster":{"name":"keytrail"}}`

	answers <- leaderless
	answers <- `{"state":{"last_seq":25},"cluster":{"name":"keytrail","leader":"nats-1"}}`
	if seq, err := l.Last(t.Context()); err != nil || seq != 25 {
		t.Errorf("with a leader elected at last: %d, %v", seq, err)
	}

	answers <- leaderless
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if seq, err := l.Last(ctx); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("without a leader: %d, %v", seq, err)
	}
}
