package eventlog

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/logtest"
)

// An older copy of the store is put in the place of the log and written on, while
// the follower stays where it is and its connection comes back: the copy has the
// same id, and is shorter, as long, or longer. The follower stops before it applies
// or claims anything of it.
func TestFollowersRefuseAnotherHistory(t *testing.T) {
	for name, more := range map[string]int{"as long": 2, "one event longer": 3, "longer": 700} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			older := filepath.Join(t.TempDir(), "older")
			listen := freeAddr(t)
			cfg := childConfig(filepath.Join(dir, "log"), listen)
			s := testServer(t, cfg)
			initLog(t, s)
			l := openLog(t, conn(t, s.Connect), Options{})
			fill(t, l, 10)
			s.Stop()
			if err := os.CopyFS(older, os.DirFS(cfg.Dir)); err != nil {
				t.Fatal(err)
			}

			s = testServer(t, cfg)
			nc := conn(t, func() (*nats.Conn, error) {
				return dial.Connect("nats://"+listen, dial.Login{User: "n1", Password: dial.Password(nodePassword("n1"))})
			})
			follower := openLog(t, nc, Options{Edge: true})
			fill(t, openLog(t, conn(t, s.Connect), Options{}), 2)
			v := &view{}
			done := make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() { done <- follower.Follow(ctx, 0, v) }() // joined below
			until(t, "twelve events", func() bool { next, _, fresh := v.at(); return next == 12 && fresh == 12 })
			s.Stop()

			cfg.Dir = older
			cfg.Listen = "" // written on before the follower is let in
			s = testServer(t, cfg)
			fill(t, openLog(t, conn(t, s.Connect), Options{}), more)
			s.Stop()
			cfg.Listen = listen
			testServer(t, cfg)
			wantCorrupt(t, "follow", <-done, "not the log that was followed here: event 12")
			if next, _, _ := v.at(); next != 12 {
				t.Errorf("%d events were applied, 12 are of the log", next)
			}
		})
	}
}

// The store is replaced while a node is connected, and in the other history the floor
// stands at the very sequence at which the node saw it: the node's next lease stands
// on what is there, and control does not take it for its own.
func TestLeasesStandOnTheFloorThatIsThere(t *testing.T) {
	dir := t.TempDir()
	older := filepath.Join(t.TempDir(), "older")
	listen := freeAddr(t)
	cfg := childConfig(filepath.Join(dir, "log"), listen)
	s := testServer(t, cfg)
	initLog(t, s)
	s.Stop()
	if err := os.CopyFS(older, os.DirFS(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	as := func(user, password string) *Log {
		nc := conn(t, func() (*nats.Conn, error) {
			return dial.Connect("nats://"+listen, dial.Login{User: user, Password: dial.Password(password)})
		})
		return openLog(t, nc, Options{Edge: user == "n1"})
	}
	s = testServer(t, cfg)
	control, edge := as("ctrl", "c"), as("n1", nodePassword("n1"))
	head := func(root byte) events.Head {
		return events.Head{Log: control.ID(), Size: 2, Root: events.Hash{root}}
	}
	lease := logtest.Lease(control.ID(), "n1")
	if err := control.Raise(t.Context(), head(1)); err != nil {
		t.Fatal(err)
	}
	before, err := edge.Renew(t.Context(), lease)
	if err != nil || before.Floor.Head != head(1) {
		t.Fatalf("%+v, %v", before, err)
	}
	s.Stop()

	cfg.Dir, cfg.Listen = older, ""
	s = testServer(t, cfg)
	if err := openLog(t, conn(t, s.Connect), Options{}).Raise(t.Context(), head(2)); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	cfg.Listen = listen
	testServer(t, cfg)
	after, err := edge.Renew(t.Context(), lease)
	if err != nil || after.Floor.Seq != before.Floor.Seq || after.Floor.Head != head(2) {
		t.Errorf("the lease stands on %+v, %v: want %+v at %d", after.Floor, err, head(2), before.Floor.Seq)
	}
	// What it has seen holds until it has noticed.
	until(t, "control reconnects", func() bool { return control.Leases.nc.Stats().Reconnects > 0 })
	wantCorrupt(t, "raise", control.Raise(t.Context(), head(1)), "two histories", head(1).Root.String()[:16], head(2).Root.String()[:16])
}
