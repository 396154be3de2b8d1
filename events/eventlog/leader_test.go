package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
)

// A stream without a leader is described by any of its members, from a state that
// may lack acknowledged events. Taking that for the log's end would look like a
// loss, and stop every role for good.
func TestOnlyTheLeaderSaysWhereTheLogEnds(t *testing.T) {
	s := testServer(t, server.Config{})
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
	l := newClients(scripted(nc, "fake."))
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

// script answers STREAM.INFO of one stream: the answers in turn, the last one for
// ever. The log that asks it is returned.
func script(t *testing.T, nc *nats.Conn, stream string, answers ...string) *Log {
	t.Helper()
	api := nats.NewInbox() + "."
	next := make(chan string, len(answers))
	for _, a := range answers {
		next <- a
	}
	last := ""
	if _, err := nc.Subscribe(api+"STREAM.INFO."+stream, func(m *nats.Msg) {
		select {
		case last = <-next:
		default:
		}
		if err := m.Respond([]byte(last)); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return newClients(scripted(nc, api))
}

// leaderSays is STREAM.INFO of a leader of three whose two replicas were last heard of
// active ago.
func leaderSays(last int, leader string, active time.Duration) string {
	return fmt.Sprintf(`{"state":{"messages":%d,"first_seq":1,"last_seq":%d},"cluster":{"name":"keytrail","leader":%q,"replicas":[{"name":"a","active":%d},{"name":"b","active":%d}]}}`,
		last, last, leader, active, active)
}

// One answer that is behind proves no loss: not a leader's that has not applied all
// yet, not a deposed leader's, and not two leaders' in turn. An answer that stands is
// believed, and without a leader that leads nothing is.
func TestOneAnswerIsNoLoss(t *testing.T) {
	t.Parallel()
	s := testServer(t, server.Config{})
	nc := conn(t, s.ConnectAdmin)
	const now, silent = time.Millisecond, 4 * time.Second
	for name, c := range map[string]struct {
		answers []string
		lost    bool
		err     error
	}{
		"behind once":            {answers: []string{leaderSays(24, "n1", now), leaderSays(25, "n1", now)}},
		"deposed":                {answers: []string{leaderSays(24, "n1", silent), leaderSays(24, "n1", silent), leaderSays(25, "n2", now)}},
		"a new leader":           {answers: []string{leaderSays(24, "n1", now), leaderSays(24, "n2", now), leaderSays(23, "n2", now), leaderSays(25, "n2", now)}},
		"lost":                   {answers: []string{leaderSays(24, "n1", now)}, lost: true},
		"lost at a change":       {answers: []string{leaderSays(24, "n1", silent), leaderSays(24, "n2", now)}, lost: true},
		"lost, and nobody leads": {answers: []string{leaderSays(24, "n1", silent)}, err: events.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			for stream, last := range map[string]func(context.Context, *Log) (events.Seq, error){
				lifeStream: func(ctx context.Context, l *Log) (events.Seq, error) { return events.LastAtLeast(ctx, l, 25) },
				useStream:  func(ctx context.Context, l *Log) (events.Seq, error) { return events.LastUseAtLeast(ctx, l, 25) },
			} {
				l := script(t, nc, stream, c.answers...)
				wait := patient
				if c.err != nil {
					wait = time.Second // nothing else ends it
				} else if !c.lost {
					l.lossStands = patient // however late the next answer is asked for
				}
				ctx, cancel := context.WithTimeout(t.Context(), wait)
				defer cancel()
				began := time.Now()
				seq, err := last(ctx, l)
				if c.err != nil {
					if !errors.Is(err, c.err) {
						t.Errorf("%s: %d, %v", stream, seq, err)
					}
					continue
				}
				if err != nil || (seq < 25) != c.lost {
					t.Errorf("%s: %d, %v", stream, seq, err)
				}
				if took := time.Since(began); c.lost && took < 200*time.Millisecond {
					t.Errorf("%s: a loss is believed after %s", stream, took)
				}
			}
		})
	}
}

// A follower whose heartbeat is behind what it applied, and an auditor that has read
// further than the leader says, ask again before they stop for good.
func TestNobodyStopsForOneAnswer(t *testing.T) {
	s := testServer(t, server.Config{})
	nc := conn(t, s.ConnectAdmin)
	const now = time.Millisecond
	behind, whole := leaderSays(24, "n1", now), leaderSays(25, "n1", now)
	late := func(l *Log, answers []string) *Log { // one answer is no loss, however late the next one is asked for
		if len(answers) > 1 {
			l.lossStands = patient
		}
		return l
	}
	shrunk := func(answers ...string) error {
		l := late(script(t, nc, lifeStream, answers...), answers)
		return (&follower{l: l.Lifecycle, next: 26}).shrunk(t.Context())
	}
	if err := shrunk(behind, behind, whole); err != nil {
		t.Errorf("a follower: %v", err)
	}
	wantCorrupt(t, "a follower of a log without its end", shrunk(behind), "event 24", "event 25", "restore")

	uses := func(answers ...string) error {
		l := late(script(t, nc, useStream, answers...), answers)
		if _, err := nc.Subscribe(l.api+"DIRECT.GET."+useStream, func(m *nats.Msg) {
			end := nats.NewMsg(m.Reply)
			end.Header.Set("Status", "404")
			_ = m.RespondMsg(end)
		}); err != nil {
			t.Fatal(err)
		}
		_, err := l.usesAfter(t.Context(), 25, 10, &retry{})
		return err
	}
	if err := uses(behind, behind, whole); err != nil {
		t.Errorf("an auditor: %v", err)
	}
	wantCorrupt(t, "an auditor of a stream without its end", uses(behind), "ends at 24", "25 was read", "restore")
}

// scripted is a transport to a log whose API a test answers for.
func scripted(nc *nats.Conn, api string) *transport {
	tr := newTransport(nc, api, patient, slog.New(slog.DiscardHandler))
	tr.lossStands = 200 * time.Millisecond
	return tr
}
