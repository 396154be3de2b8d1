package eventlog

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// gather keeps events until last.
type gather struct {
	events []events.Recorded
	last   events.Seq
}

func (g *gather) Apply(batch []events.Recorded) error {
	if g.events = append(g.events, batch...); g.events[len(g.events)-1].Seq >= g.last {
		return errEnough
	}
	return nil
}

func (*gather) Fresh(events.Time, events.Seq) {}

type untimed struct{ *gather }

func (untimed) Untimed() {}

// A follower that needs no times is given the same events otherwise, read without
// headers; a part with a hole is read as for any other follower.
func TestReadBare(t *testing.T) {
	s := testServer(t, server.Config{Dir: t.TempDir(), MaxStore: 4 << 30})
	initLog(t, s)
	l := openLog(t, conn(t, s.Connect), Options{})
	const n = 3 * bulkMessages / 2 / 100 * 100
	for i := range n / 100 {
		var ws []events.Write
		for j := range 100 {
			created := logtest.Created(fmt.Sprint(i, "/", j))
			created.Name = `a "name", with ,"subject":"x/y"`
			ws = append(ws, first(logtest.NewKeyRef("shop", events.TenantID(fmt.Sprint("t", j))).Aggregate(), created))
		}
		if _, err := l.Append(t.Context(), ws...); err != nil {
			t.Fatal(err)
		}
	}
	timed, bare := &gather{last: n}, &gather{last: n}
	for _, f := range []events.Follower{timed, untimed{bare}} {
		if err := l.Follow(t.Context(), 0, f); !errors.Is(err, errEnough) {
			t.Fatal(err)
		}
	}
	for i := range timed.events {
		want := timed.events[i]
		if want.Stored == 0 || bare.events[i].Stored != 0 {
			t.Fatalf("event %d: stored at %s and %s, want the second without a time", i+1, want.Stored, bare.events[i].Stored)
		}
		if want.Stored = 0; !reflect.DeepEqual(bare.events[i], want) {
			t.Fatalf("event %d: %+v, want %+v", i+1, bare.events[i], want)
		}
	}

	admin := conn(t, s.ConnectAdmin)
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "COPY", Subjects: []string{"copy.>"}, AllowDirect: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range timed.events {
		if _, err := js.Publish(t.Context(), "copy.event", timed.events[i].Document); err != nil {
			t.Fatal(err)
		}
	}
	c := &Lifecycle{transport: openLog(t, admin, Options{}).transport, events: events.Lifecycle, stream: "COPY"}
	check := func(first events.Seq, n, want int) {
		t.Helper()
		p := part{first: first, n: n}
		if c.readBare(t.Context(), &p); len(p.out) != want {
			t.Errorf("from %d: %d events, want %d", first, len(p.out), want)
		}
	}
	check(1, bulkMessages, bulkMessages)
	check(n-9, 20, 10)
	check(n+1, 5, 0)
	if err := copied.DeleteMsg(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	check(1, 6, 6)
	check(1, 7, 0) // a hole
	check(7, 5, 0)
	if _, err := js.Publish(t.Context(), "copy.event", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	check(n-9, 20, 0) // no event
}
