package raw

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/backup"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// start serves a log with some events and uses.
func start(t *testing.T) (admin *nats.Conn, ctrl *nats.Conn, log *eventlog.Log) {
	t.Helper()
	srv, err := server.Start(server.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	if admin, err = srv.ConnectAdmin(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	if ctrl, err = srv.Connect(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ctrl.Close)
	if _, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if log, err = eventlog.Open(t.Context(), ctrl, eventlog.Options{Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	return admin, ctrl, log
}

// trim leaves the newest n messages of KT_USE, as retention does.
func trim(t *testing.T, admin *nats.Conn, n int64) {
	t.Helper()
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), backup.Use)
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	for _, most := range []int64{n, -1} {
		c.MaxMsgs = most
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEach(t *testing.T) {
	admin, ctrl, log := start(t)
	const n = 600 // more than two answers
	for i := range n / 10 {
		var data []events.Data
		for range 9 {
			data = append(data, &events.KeyDisabled{}, &events.KeyEnabled{})
		}
		logtest.Append(t, log, logtest.NewKeyRef("shop", "acme").Aggregate(), append([]events.Data{logtest.Created(fmt.Sprint(i))}, data[:9]...)...)
	}
	last := events.Seq(0)
	for i := range 9 {
		var err error
		if last, err = log.Publish(t.Context(), "v-1", fmt.Sprint("id ", i), last, []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	d, err := Describe(t.Context(), ctrl)
	if err != nil || d.ID != log.ID() || len(d.Streams) != 3 {
		t.Fatalf("%+v, %v", d, err)
	}
	for i, want := range []backup.Extent{{Stream: backup.Life, First: 1, Last: n}, {Stream: backup.Read, First: 1}, {Stream: backup.Use, First: 1, Last: 9}} {
		if d.Streams[i] != want {
			t.Errorf("%+v, want %+v", d.Streams[i], want)
		}
	}
	seen := uint64(0)
	first, err := Each(t.Context(), ctrl, d.Streams[0], func(m *backup.Message) error {
		if seen++; m.Seq != seen || m.Stored == 0 || !strings.HasPrefix(m.Subject, events.LifePrefix) {
			return fmt.Errorf("message %d after %d", m.Seq, seen-1)
		}
		return nil
	})
	if err != nil || first != 1 || seen != n {
		t.Fatalf("%d messages from %d, %v", seen, first, err)
	}

	// Its caller's error comes as it is, and the end of ctx ends it.
	stop := errors.New("stop")
	if _, err := Each(t.Context(), ctrl, d.Streams[0], func(m *backup.Message) error {
		if m.Seq == 300 {
			return stop
		}
		return nil
	}); err != stop {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Each(ctx, ctrl, d.Streams[0], func(*backup.Message) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}

	// Retention takes uses after Describe: what is left is handed on, from where it
	// begins. Messages of the others that are not there are gone.
	trim(t, admin, 4)
	var got []uint64
	first, err = Each(t.Context(), ctrl, d.Streams[2], func(m *backup.Message) error {
		got = append(got, m.Seq)
		return nil
	})
	if err != nil || first != 6 || fmt.Sprint(got) != "[6 7 8 9]" {
		t.Errorf("%v from %d, %v", got, first, err)
	}
	f := (*backup.Fault)(nil)
	if _, err := Each(t.Context(), ctrl, backup.Extent{Stream: backup.Life, First: n, Last: n + 1}, func(*backup.Message) error { return nil }); !errors.As(err, &f) || f.Seq != n+1 {
		t.Errorf("an event that is not there: %v", err)
	}
	if d, err = Describe(t.Context(), ctrl); err != nil || d.Streams[2].First != 6 {
		t.Errorf("%+v, %v", d, err)
	}
}

func TestDescribeRefuses(t *testing.T) {
	admin, ctrl, _ := start(t)
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), backup.Use)
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.Metadata["keytrail_log"] = events.LogID{15: 1}.String()
	if _, err := js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := Describe(t.Context(), ctrl); err == nil || !strings.Contains(err.Error(), "parts of two logs") {
		t.Errorf("two ids: %v", err)
	}
	if err := js.DeleteStream(t.Context(), backup.Use); err != nil {
		t.Fatal(err)
	}
	if _, err := Describe(t.Context(), ctrl); err == nil || !strings.Contains(err.Error(), "no stream KT_USE") {
		t.Errorf("no uses: %v", err)
	}
}
