package eventlog

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
)

// TestReserveAndGrow: at nine tenths of its limit the lifecycle log keeps the rest,
// still stores what it is given, and has room again when its limit was raised.
func TestReserveAndGrow(t *testing.T) {
	s := testServer(t, server.Config{})
	admin := conn(t, s.ConnectAdmin)
	if _, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: 400 << 10}); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, conn(t, s.Connect), Options{})
	n := 0
	reserved := func() error {
		if _, err := l.Last(t.Context()); err != nil { // as each command does
			t.Fatal(err)
		}
		return l.Reserved()
	}
	var err error
	for err = reserved(); err == nil && n < 10_000; err = reserved() {
		n++
		if _, err := l.Append(t.Context(), first(noted(fmt.Sprint("r", n)), note(n))); err != nil {
			t.Fatalf("event %d: %v", n, err)
		}
	}
	if !errors.Is(err, events.ErrFull) || !strings.Contains(err.Error(), "KT_LIFE uses 90 %") || l.Storing() != nil {
		t.Fatalf("after %d events: %v, %v", n, err, l.Storing())
	}
	for range n / 10 {
		n++
		if _, err := l.Append(t.Context(), first(noted(fmt.Sprint("r", n)), note(n))); err != nil {
			t.Fatalf("of the reserve: %v", err)
		}
	}
	if err := l.LookAtStreams(t.Context()); err != nil {
		t.Fatal(err)
	}
	var old int64
	for _, f := range l.Fills() {
		if f.Stream == lifeStream {
			old = f.Limit
		}
		if warned := strings.Contains(f.Warning(), "keytrail log grow "+lifeStream); warned != (f.Stream == lifeStream) {
			t.Errorf("%+v: %q", f, f.Warning())
		}
	}
	for _, c := range []struct {
		stream      string
		bytes, free int64
		want        string
	}{
		{"KT_LIFE", old, 0, "never lowered"},
		{"KT_LIFE", old - 1, 0, "never lowered"},
		{"KT_LIFE", 1 << 40, 0, "quota"},
		{"KT_LIFE", 8 * old, old, "disk has"},
		{"KT_SOMETHING", 8 * old, 0, "want one of KT_LIFE"},
	} {
		if _, err := server.Grow(t.Context(), admin, c.stream, c.bytes, c.free); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s to %d with %d free: %v, want %q", c.stream, c.bytes, c.free, err, c.want)
		}
	}
	if was, err := server.Grow(t.Context(), admin, "KT_LIFE", 4*old, 1<<40); err != nil || was < old {
		t.Fatalf("grown from %d: %v", was, err)
	}
	if err := reserved(); err != nil {
		t.Errorf("with room: %v", err)
	}
	openLog(t, conn(t, s.Connect), Options{}) // nothing else of the stream has changed
}

// TestConsumersAreCounted: a stream that nears what the server admits says so.
func TestConsumersAreCounted(t *testing.T) {
	for _, c := range []struct {
		fill Fill
		want string
	}{
		{Fill{Stream: "KT_LIFE", Bytes: 79, Limit: 100, Consumers: 1, MaxConsumers: 1000, Keeps: true}, ""},
		{Fill{Stream: "KT_LIFE", Bytes: 80, Limit: 100, Consumers: 1, MaxConsumers: 1000, Keeps: true}, "uses 80 %"},
		{Fill{Stream: "KT_USE", Bytes: 100, Limit: 100, Consumers: 1, MaxConsumers: 1000}, ""},
		{Fill{Stream: "KT_LIFE", Bytes: 1, Limit: 100, Consumers: 799, MaxConsumers: 1000, Keeps: true}, ""},
		{Fill{Stream: "KT_LIFE", Bytes: 1, Limit: 100, Consumers: 800, MaxConsumers: 1000, Keeps: true}, "800 of at most 1000 consumers"},
		{Fill{Stream: "KT_LIFE", MaxConsumers: 1000}, ""},
	} {
		if got := c.fill.Warning(); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.fill, got, c.want)
		}
	}
	s := testServer(t, server.Config{})
	initLog(t, s)
	l := openLog(t, conn(t, s.Connect), Options{})
	js, err := jetstream.New(conn(t, s.ConnectAdmin))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := js.CreateConsumer(t.Context(), readStream, jetstream.ConsumerConfig{Durable: fmt.Sprint("other", i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.LookAtStreams(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, f := range l.Fills() {
		if want := map[string]int{timerStream: 1, readStream: 3}[f.Stream]; f.Consumers != want && f.Stream != leaseStream || f.MaxConsumers != 1000 {
			t.Errorf("%+v, want %d consumers", f, want)
		}
	}
}
