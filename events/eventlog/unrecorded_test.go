package eventlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// The one server of a log whose disk is full grants leases without a record, which
// hold every acknowledged command; it does so only to a run that others can see, says
// so on the list of nodes, and raises no floor. With room again all is as before.
func TestLeaseOnFullDisk(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t, 32<<20)
	cfg := childConfig(filepath.Join(disk, "log"), freeAddr(t))
	s, err := server.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Stop() }()
	initLog(t, s)
	nc := conn(t, func() (*nats.Conn, error) { return dial.Connect(s.URL(), dial.Login{User: "ctrl", Password: "c"}) })
	control := openLog(t, nc, Options{})
	node := openLog(t, conn(t, edge(s)), Options{Edge: true})
	machine := watchStalls(t)
	size := events.Seq(0)
	write := func() error {
		seq, err := control.Append(t.Context(), first(noted(fmt.Sprint("r", size)), note(int(size))))
		if err == nil {
			size = seq
		}
		return err
	}
	if err := write(); err != nil {
		t.Fatal(err)
	}
	head := func() events.Head { return events.Head{Log: control.ID(), Size: size} }
	if err := control.Raise(t.Context(), head()); err != nil {
		t.Fatal(err)
	}
	leased := func(node events.NodeID) events.NodeLease {
		l := logtest.Lease(control.ID(), node)
		l.First = 1
		return l
	}
	runs := map[*Log]events.NodeLease{control: leased("up"), node: leased("n1")}
	for l, r := range runs {
		if g, err := l.Renew(t.Context(), r); err != nil || g.Seq == 0 || l.Recording() != nil {
			t.Fatalf("before: %+v, %v", g, err)
		}
	}

	file := ballast(t, disk, 0)
	for _, l := range []*Log{control, node} { // no write is answered from now on
		l.transport.patience = 400 * time.Millisecond
	}
	for l, r := range runs {
		var g events.LeaseGrant
		until(t, "a lease is granted without a record", func() bool {
			g, err = l.Renew(t.Context(), r)
			return err == nil && g.Seq == 0
		})
		if end, err := control.Last(t.Context()); err != nil || g.Floor.Seq != 0 || g.Floor.Head != (events.Head{Log: control.ID(), Size: end}) {
			t.Errorf("grant %+v, the log ends at %d, %v", g, end, err)
		}
		if err := l.Recording(); !errors.Is(err, events.ErrNotStoring) || !strings.Contains(err.Error(), "KT_LEASE: its disk is full") {
			t.Errorf("recording: %v", err)
		}
		stalled, began := machine.total(), time.Now()
		if g, err := l.Renew(t.Context(), r); err != nil || g.Seq != 0 {
			t.Errorf("again: %+v, %v", g, err)
		} else if took := time.Since(began) - (machine.total() - stalled); took > unrecordedTry+l.transport.patience {
			t.Errorf("a renewal took %s, which no bound of a second outlasts", took)
		}
		none := r
		none.First = 0
		if g, err := l.Renew(t.Context(), none); !errors.Is(err, events.ErrUnavailable) || !strings.Contains(err.Error(), "only a run with a lease on record") {
			t.Errorf("a run without a lease: %+v, %v", g, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if g, err := l.Renew(ctx, leased(r.Node)); !errors.Is(err, events.ErrUnavailable) {
			t.Errorf("a run without a record: %+v, %v", g, err)
		}
		p := l.places[r.Instance]
		p.at = time.Now().Add(-placeHeld - time.Second)
		l.places[r.Instance] = p
		if g, err := l.Renew(ctx, r); !errors.Is(err, events.ErrUnavailable) {
			t.Errorf("a run whose record may be forgotten: %+v, %v", g, err)
		}
		cancel()
		l.holds(r.Instance, p.subject)
	}
	if n, err := control.Nodes(t.Context(), 0); err != nil || !n.Unrecorded || len(n.Leases) != 2 {
		t.Errorf("nodes %+v, %v", n, err)
	}
	until(t, "a floor is tried on a full disk", func() bool {
		brief, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := control.Raise(brief, events.Head{Log: control.ID(), Size: size + 1})
		if err == nil {
			t.Fatal("a floor is raised on a full disk")
		}
		return errors.Is(err, events.ErrNotStoring) && errors.Is(err, events.ErrUnknownOutcome) // else it was not sent in time
	})

	// Room, and a restart.
	for _, l := range []*Log{control, node} {
		l.transport.patience = patience
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if s, err = server.Start(cfg); err != nil {
		t.Fatal(err)
	}
	until(t, "the lease has a record again", func() bool {
		g, err := control.Renew(t.Context(), runs[control])
		return err == nil && g.Seq > g.Floor.Seq && g.Floor.Seq > 0
	})
	if err := write(); err != nil {
		t.Fatal(err)
	}
	if err := control.Raise(t.Context(), head()); err != nil {
		t.Fatal(err)
	}
	if n, err := control.Nodes(t.Context(), 0); err != nil || n.Unrecorded || n.Floor.Size < size {
		t.Errorf("nodes %+v, %v", n, err)
	}
}
