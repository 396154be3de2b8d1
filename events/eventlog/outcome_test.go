package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
)

// What the caller of Append is told, for each answer to a publish, when no earlier
// try or one without an answer went before it, and for all that the log can then be
// read to hold. The rules, apart from the table that they test:
//
//   - what the log holds is stored, whatever the answer was;
//   - a conflict is told only when the log shows that another event stands there;
//   - what may have been stored, and cannot be read, is unknown;
//   - what is refused without an earlier try is refused for its own reason.
func TestOutcomes(t *testing.T) {
	s := testServer(t, server.Config{})
	nc := conn(t, s.ConnectAdmin)
	// An answer that comes later than a request waits is silence, so the wait is longer
	// while this machine is slower.
	patience := 300 * time.Millisecond
	for ; ; patience *= 4 {
		slowest := watchAnswers(t, nc)
		wrong := tryOutcomes(t, nc, patience)
		if took := slowest(); len(wrong) > 0 && took > patience/4 && patience < patient {
			t.Logf("an answer took %s of %s: again with more time", took, patience)
			continue
		}
		for _, w := range wrong {
			t.Error(w)
		}
		return
	}
}

// watchAnswers asks again and again, until it is asked for the longest that an answer
// took.
func watchAnswers(t *testing.T, nc *nats.Conn) (slowest func() time.Duration) {
	subject := nats.NewInbox()
	sub, err := nc.Subscribe(subject, func(m *nats.Msg) { _ = m.Respond(nil) })
	if err != nil {
		t.Fatal(err)
	}
	longest := time.Duration(0)
	stop := beside(t, func(ctx context.Context) error {
		for ctx.Err() == nil {
			began := time.Now()
			_, err := nc.Request(subject, nil, patient)
			if longest = max(longest, time.Since(began)); err != nil {
				return err
			}
			_ = waitFor(ctx, time.Millisecond)
		}
		return nil
	})
	return func() time.Duration {
		if err := stop(); err != nil {
			t.Error(err)
		}
		_ = sub.Unsubscribe()
		return longest
	}
}

// tryOutcomes returns what the caller is told wrongly.
func tryOutcomes(t *testing.T, nc *nats.Conn, patience time.Duration) (wrong []string) {
	var mu sync.Mutex // guards wrong
	var wg sync.WaitGroup
	class := func(err error) string {
		switch {
		case err == nil:
			return "stored"
		case errors.Is(err, events.ErrUnknownOutcome):
			return "unknown"
		case errors.Is(err, events.ErrConflict):
			return "conflict"
		case errors.Is(err, events.ErrFull):
			return "full"
		case errors.Is(err, events.ErrUnavailable):
			return "unavailable"
		}
		return "invalid"
	}
	refusal := func(code, errCode int) string {
		return fmt.Sprintf(`{"error":{"code":%d,"err_code":%d,"description":"scripted"}}`, code, errCode)
	}
	// What is told when the log shows: another event there, a free place, nothing.
	type told struct{ moved, open, unreadable string }
	for _, c := range []struct {
		name, answer string
		first, later told
	}{
		{"wrong last", refusal(400, codeWrongLast), told{"conflict", "unavailable", "unknown"}, told{"conflict", "unknown", "unknown"}},
		{"wrong last constant", refusal(400, codeWrongLastConstant), told{"conflict", "unavailable", "unknown"}, told{"conflict", "unknown", "unknown"}},
		{"in flight", refusal(409, codeDuplicateInFlight), told{"conflict", "unknown", "unknown"}, told{"conflict", "unknown", "unknown"}},
		{"in batch", refusal(400, codeDuplicateInBatch), told{"conflict", "invalid", "unknown"}, told{"conflict", "invalid", "unknown"}},
		{"duplicate", `{"stream":"KT_LIFE","seq":7,"duplicate":true}`, told{"invalid", "invalid", "unknown"}, told{"invalid", "invalid", "unknown"}},
		{"full", refusal(503, codeStoreFailed), told{"full", "full", "full"}, told{"conflict", "unknown", "unknown"}},
		{"quota", refusal(500, codeStorageExceeded), told{"full", "full", "full"}, told{"conflict", "unknown", "unknown"}},
		{"too big", refusal(400, codeMessageTooBig), told{"invalid", "invalid", "invalid"}, told{"conflict", "unknown", "unknown"}},
		{"sealed", refusal(400, 10109), told{"invalid", "invalid", "invalid"}, told{"conflict", "unknown", "unknown"}},
		{"busy", refusal(429, codeTooManyRequests), told{"unavailable", "unavailable", "unavailable"}, told{"unknown", "unknown", "unknown"}},
		{"no leader", refusal(503, 10008), told{"unavailable", "unavailable", "unavailable"}, told{"unknown", "unknown", "unknown"}},
		{"silence", "", told{"conflict", "unknown", "unknown"}, told{"conflict", "unknown", "unknown"}},
	} {
		for _, later := range []bool{false, true} {
			want, told := map[string]string{"ours": "stored"}, c.first
			if later {
				told = c.later
			}
			want["moved"], want["open"], want["unreadable"] = told.moved, told.open, told.unreadable
			if c.name == "busy" || c.name == "no leader" { // the log is not read: the next try tells
				want["ours"] = told.moved
			}
			for holds, want := range want {
				wg.Go(func() {
					f := newScriptedLog(t, nc, c.answer, holds)
					l := newClients(scripted(nc, f.api))
					l.patience, l.timeout = patience, 4*patience
					if later {
						f.silent.Store(1)
						l.timeout += 2 * patience
					}
					_, err := l.Append(t.Context(), f.write)
					got := class(err)
					if got == "unknown" && want == "unavailable" && errors.Is(err, context.DeadlineExceeded) {
						return // the last try had no time for its answer
					}
					if got != want {
						mu.Lock()
						defer mu.Unlock()
						wrong = append(wrong, fmt.Sprintf("%s, later %v, %s: told %s (%v), want %s", c.name, later, holds, got, err, want))
					}
				})
			}
		}
	}
	wg.Wait()
	return wrong
}

// scriptedLog answers for one event's subject as a stream would.
type scriptedLog struct {
	api    string
	write  events.Write
	silent atomic.Int64 // so many publishes go without an answer first
}

// newScriptedLog answers publishes with answer, "" = not at all, and reads according
// to what the log holds: ours, moved, open or unreadable.
func newScriptedLog(t *testing.T, nc *nats.Conn, answer, holds string) *scriptedLog {
	t.Helper()
	f := &scriptedLog{api: nats.NewInbox() + ".", write: first(noted(ulid.Make().String()), note(1))}
	subject := f.write.Event.Aggregate.Subject()
	serve := func(subject string, answer func() string) {
		_, err := nc.Subscribe(subject, func(m *nats.Msg) {
			if a := answer(); a != "" {
				if err := m.Respond([]byte(a)); err != nil {
					t.Error(err)
				}
			}
		})
		if err != nil {
			t.Error(err)
		}
	}
	serve(subject, func() string {
		if f.silent.Add(-1) >= 0 {
			return ""
		}
		return answer
	})
	serve(f.api+"STREAM.INFO."+lifeStream, func() string { return "" })
	serve(f.api+"STREAM.MSG.GET."+lifeStream, func() string {
		id := events.EventID(ulid.Make())
		switch holds {
		case "unreadable":
			return ""
		case "open":
			return `{"error":{"code":404,"err_code":10037,"description":"no message found"}}`
		case "ours":
			id = f.write.Event.ID
		}
		type message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  []byte    `json:"hdrs"`
			Time    time.Time `json:"time"`
		}
		b, err := json.Marshal(map[string]message{"message": {Subject: subject, Seq: 7, Header: fmt.Appendf(nil, "NATS/1.0\r\n%s: %s\r\n\r\n", hdrMsgID, id), Time: time.Now()}})
		if err != nil {
			t.Error(err)
		}
		return string(b)
	})
	return f
}

// No answer and no reading of the log is without an outcome of its own, and what
// cannot be read is never a conflict.
func TestOutcomeTable(t *testing.T) {
	for a := range answers {
		for v := range verdicts {
			row := outcomes[a]
			for name, o := range map[string]outcome{"first": row.first[v], "later": row.later[v]} {
				if v == unclear && o == conflict {
					t.Errorf("answer %d, %s, unclear: a conflict", a, name)
				}
				if v == ours && o != done && a != unserved {
					t.Errorf("answer %d, %s, ours: outcome %d", a, name, o)
				}
			}
			if o := row.later[v]; o == full || o == invalid && a != duplicate && a != sameID {
				t.Errorf("answer %d, verdict %d: an earlier try may have been stored, and the caller is told it is not", a, v)
			}
		}
	}
	if _, err := answerOf(&pubAck{}, context.DeadlineExceeded); err == nil {
		t.Error("an error is lost")
	}
}

// An append that is stored after its first expectation was read, and before the others
// are, is ours: the histories have moved on with these events, and not without them.
func TestStoredWhileItIsSettled(t *testing.T) {
	l := newLog(t)
	late := first(noted(ulid.Make().String()), note(1)) // what was read of it is from before
	rest := []events.Write{first(noted(ulid.Make().String()), note(2)), first(noted(ulid.Make().String()), note(3))}
	want, err := l.Append(t.Context(), rest...)
	if err != nil {
		t.Fatal(err)
	}
	if seq, v := l.Lifecycle.settle(t.Context(), append([]events.Write{late}, rest...)); v != ours || seq != want {
		t.Errorf("verdict %d at %d, want %d at %d", v, seq, ours, want)
	}
}
