package logtest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

// LeaseLog is a lifecycle log's identity, its log of leases, and who is appointed in it.
type LeaseLog interface {
	events.Leases
	events.Appointments
	ID() events.LogID
}

// TestLeases is the contract of events.Leases. open returns a new, empty log of
// leases and closes it when its test ends.
func TestLeases(t *testing.T, open func(t *testing.T) LeaseLog) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, ctx context.Context, l LeaseLog)
	}{
		{"before the first floor there is no grant and no node", leasesEmpty},
		{"a grant stands on the newest floor", leasesGrant},
		{"a floor is never lowered", leasesNeverLower},
		{"a floor of no events is a floor", leasesZero},
		{"a floor has the root that it was raised with, and takes no other", leasesRoots},
		{"a release stays when the floor is raised, and is never lowered", leasesReleases},
		{"one process is appointed, and stays when the floor is raised", leasesAppoint},
		{"of many that would be appointed one is", leasesAppointOne},
		{"a head of another log is refused", leasesForeign},
		{"a record that is none is refused", leasesInvalid},
		{"each run of a node has its own record, the newest", leasesRuns},
		{"a record that ended says so", leasesRelease},
		{"a list is not older than the floor that is asked for", leasesList},
		{"concurrent raises reach all of them, and renewals stay in order", leasesConcurrent},
		{"a call ends with its context", leasesContext},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
			defer cancel()
			c.run(t, ctx, l)
		})
	}
}

// Lease returns a live lease of a new run of the node, valid for ten seconds.
func Lease(log events.LogID, node events.NodeID) events.NodeLease {
	return events.NodeLease{Node: node, Instance: events.NewInstanceID(time.Now()), State: events.LeaseLive, LifeMS: 10_000,
		Applied: events.Head{Log: log}}
}

func raise(t *testing.T, ctx context.Context, l LeaseLog, size events.Seq) {
	t.Helper()
	if err := l.Raise(ctx, events.Head{Log: l.ID(), Size: size}); err != nil {
		t.Fatalf("raise to %d: %v", size, err)
	}
}

func renew(t *testing.T, ctx context.Context, l LeaseLog, lease events.NodeLease) events.LeaseGrant {
	t.Helper()
	g, err := l.Renew(ctx, lease)
	if err != nil {
		t.Fatalf("renew: %v", err)
	}
	if g.Floor.Seq == 0 || g.Seq <= g.Floor.Seq || g.Floor.Log != l.ID() {
		t.Fatalf("grant %+v: want a record after its floor", g)
	}
	return g
}

func nodes(t *testing.T, ctx context.Context, l LeaseLog, atLeast events.Seq) events.NodeLeases {
	t.Helper()
	n, err := l.Nodes(ctx, atLeast)
	if err != nil {
		t.Fatalf("nodes: %v", err)
	}
	return n
}

func leasesEmpty(t *testing.T, ctx context.Context, l LeaseLog) {
	if _, err := l.Renew(ctx, Lease(l.ID(), "n1")); !errors.Is(err, events.ErrNoFloor) {
		t.Errorf("renew: %v, want ErrNoFloor", err)
	}
	if n := nodes(t, ctx, l, 0); n.Floor.Seq != 0 || len(n.Leases) > 0 || len(n.Unreadable) > 0 {
		t.Errorf("nodes: %+v", n)
	}
}

func leasesGrant(t *testing.T, ctx context.Context, l LeaseLog) {
	lease := Lease(l.ID(), "n1")
	var last events.Seq
	for _, size := range []events.Seq{1, 2, 900, 901} {
		raise(t, ctx, l, size)
		for range 2 {
			g := renew(t, ctx, l, lease)
			if g.Floor.Size != size || g.Seq <= last {
				t.Errorf("after a raise to %d: grant %+v after %d", size, g, last)
			}
			last = g.Seq
		}
	}
}

func leasesNeverLower(t *testing.T, ctx context.Context, l LeaseLog) {
	raise(t, ctx, l, 7)
	before := renew(t, ctx, l, Lease(l.ID(), "n1")).Floor
	raise(t, ctx, l, 6)
	raise(t, ctx, l, 7)
	if after := renew(t, ctx, l, Lease(l.ID(), "n1")).Floor; after != before {
		t.Errorf("floor %+v became %+v", before, after)
	}
}

func leasesZero(t *testing.T, ctx context.Context, l LeaseLog) {
	raise(t, ctx, l, 0)
	if g := renew(t, ctx, l, Lease(l.ID(), "n1")); g.Floor.Size != 0 {
		t.Errorf("grant %+v", g)
	}
	raise(t, ctx, l, 0)
}

func leasesRoots(t *testing.T, ctx context.Context, l LeaseLog) {
	head := func(size events.Seq, root byte) events.Head {
		return events.Head{Log: l.ID(), Size: size, Root: events.Hash{31: root}}
	}
	for _, c := range []struct {
		h, want events.Head
		corrupt bool
	}{
		{h: head(5, 0), want: head(5, 0)},
		{h: head(5, 1), want: head(5, 1)}, // it becomes known
		{h: head(5, 0), want: head(5, 1)},
		{h: head(5, 2), want: head(5, 1), corrupt: true},
		{h: head(4, 9), want: head(5, 1)}, // what an older head was, the floor does not tell
		{h: head(6, 3), want: head(6, 3)},
		{h: head(6, 4), want: head(6, 3), corrupt: true},
		{h: head(7, 5), want: head(7, 5)}, // a refused head leaves nothing behind
	} {
		err := l.Raise(ctx, c.h)
		if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) != c.corrupt || err != nil && !c.corrupt {
			t.Errorf("raise to %+v: %v", c.h, err)
		} else if c.corrupt && (corrupt.Seq != c.h.Size || !strings.Contains(err.Error(), c.h.Root.String()[:16]) || !strings.Contains(err.Error(), c.want.Root.String()[:16])) {
			t.Errorf("raise to %+v: %v, want both named", c.h, err)
		}
		lease := Lease(l.ID(), "n1")
		lease.Applied = c.want
		if g := renew(t, ctx, l, lease); g.Floor.Head != c.want {
			t.Errorf("raise to %+v: floor %+v, want %+v", c.h, g.Floor, c.want)
		}
		n := nodes(t, ctx, l, 0)
		if last := n.Leases[len(n.Leases)-1]; last.Applied != c.want {
			t.Errorf("applied %+v, want %+v", last.Applied, c.want)
		}
	}
}

func leasesForeign(t *testing.T, ctx context.Context, l LeaseLog) {
	raise(t, ctx, l, 1)
	other := l.ID()
	other[3]++
	if err := l.Raise(ctx, events.Head{Log: other, Size: 9}); err == nil || errors.Is(err, events.ErrUnavailable) {
		t.Errorf("raise: %v", err)
	}
	if _, err := l.Renew(ctx, Lease(other, "n1")); err == nil || errors.Is(err, events.ErrUnavailable) {
		t.Errorf("renew: %v", err)
	}
	if n := nodes(t, ctx, l, 0); n.Floor.Size != 1 || len(n.Leases) > 0 {
		t.Errorf("nodes: %+v", n)
	}
}

func leasesInvalid(t *testing.T, ctx context.Context, l LeaseLog) {
	raise(t, ctx, l, 1)
	for name, spoil := range map[string]func(*events.NodeLease){
		"node":     func(r *events.NodeLease) { r.Node = "a.b" },
		"instance": func(r *events.NodeLease) { r.Instance = events.InstanceID{} },
		"life":     func(r *events.NodeLease) { r.LifeMS = 0 },
		"state":    func(r *events.NodeLease) { r.State = "dead" },
	} {
		r := Lease(l.ID(), "n1")
		spoil(&r)
		if _, err := l.Renew(ctx, r); err == nil || errors.Is(err, events.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func leasesRuns(t *testing.T, ctx context.Context, l LeaseLog) {
	raise(t, ctx, l, 5)
	first, second := Lease(l.ID(), "n1"), Lease(l.ID(), "n1")
	renew(t, ctx, l, first)
	g2 := renew(t, ctx, l, second)
	first.Applied.Size, first.Decisions = 5, 12
	g1 := renew(t, ctx, l, first)
	n := nodes(t, ctx, l, g1.Floor.Seq)
	if len(n.Leases) != 2 || n.Leases[0].Seq != g2.Seq || n.Leases[1].Seq != g1.Seq || n.Floor != g1.Floor {
		t.Fatalf("nodes %+v after %+v and %+v", n, g2, g1)
	}
	first.Floor = g1.Floor.Seq
	if n.Leases[1].NodeLease != first || n.Leases[1].Stored.Validate() != nil {
		t.Errorf("stored %+v, want %+v", n.Leases[1], first)
	}
}

func leasesRelease(t *testing.T, ctx context.Context, l LeaseLog) {
	lease := Lease(l.ID(), "n1")
	if err := l.Release(ctx, lease); err != nil { // needs no floor
		t.Fatal(err)
	}
	raise(t, ctx, l, 5)
	renew(t, ctx, l, lease)
	if err := l.Release(ctx, lease); err != nil {
		t.Fatal(err)
	}
	if n := nodes(t, ctx, l, 0); len(n.Leases) != 1 || n.Leases[0].State != events.LeaseEnded {
		t.Errorf("nodes %+v", n)
	}
}

func leasesList(t *testing.T, ctx context.Context, l LeaseLog) {
	for size := events.Seq(1); size < 40; size++ {
		raise(t, ctx, l, size)
		g := renew(t, ctx, l, Lease(l.ID(), "n1"))
		if n := nodes(t, ctx, l, g.Floor.Seq); n.Floor != g.Floor || len(n.Leases) < int(size)-1 {
			t.Errorf("at floor %+v: floor %+v and %d records", g.Floor, n.Floor, len(n.Leases))
		}
	}
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := l.Nodes(short, 1_000_000); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("a floor that does not exist: %v", err)
	}
}

// leasesConcurrent is the property that everything else rests on: a lease that was
// renewed after a raise was answered stands on that floor or a newer one.
func leasesConcurrent(t *testing.T, ctx context.Context, l LeaseLog) {
	raise(t, ctx, l, 1)
	var mu sync.Mutex
	var raised events.Seq // highest that was answered; guarded by mu
	var wg, renewing sync.WaitGroup
	done := make(chan struct{})
	for w := range 4 {
		wg.Go(func() {
			for i := range 25 {
				size := events.Seq(2 + i*4 + w)
				if err := l.Raise(ctx, events.Head{Log: l.ID(), Size: size}); err != nil {
					t.Errorf("raise to %d: %v", size, err)
					return
				}
				mu.Lock()
				raised = max(raised, size)
				mu.Unlock()
			}
		})
		renewing.Go(func() {
			lease := Lease(l.ID(), "n1")
			for {
				mu.Lock()
				want := raised
				mu.Unlock()
				g, err := l.Renew(ctx, lease)
				if err != nil || g.Floor.Size < want {
					t.Errorf("after a raise to %d was answered: floor %d, %v", want, g.Floor.Size, err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	wg.Wait()
	close(done)
	renewing.Wait()
	if n := nodes(t, ctx, l, 0); n.Floor.Size != 101 || len(n.Leases) != 4 {
		t.Errorf("nodes %+v", n)
	}
}

func leasesContext(t *testing.T, ctx context.Context, l LeaseLog) {
	raise(t, ctx, l, 1)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := l.Raise(ended, events.Head{Log: l.ID(), Size: 2}); !errors.Is(err, events.ErrUnavailable) && !errors.Is(err, events.ErrUnknownOutcome) {
		t.Errorf("raise: %v", err)
	}
	if _, err := l.Renew(ended, Lease(l.ID(), "n1")); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("renew: %v", err)
	}
	if _, err := l.Nodes(ended, 0); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("nodes: %v", err)
	}
}

func leasesReleases(t *testing.T, ctx context.Context, l LeaseLog) {
	if err := l.RaiseRelease(ctx, "2.1"); !errors.Is(err, events.ErrNoFloor) {
		t.Errorf("without a floor: %v", err)
	}
	raise(t, ctx, l, 1)
	for _, c := range []struct {
		raise, want events.Release
		size        events.Seq // raised first, 0 = not
	}{
		{"1.0", "", 0}, {"2.1", "2.1", 0}, {"2.0", "2.1", 0}, {"2.1", "2.1", 5}, {"2.10", "2.10", 4}, {"2.9.1", "2.10", 6},
	} {
		if c.size > 0 {
			raise(t, ctx, l, c.size)
		}
		if err := l.RaiseRelease(ctx, c.raise); err != nil {
			t.Fatal(err)
		}
		g := renew(t, ctx, l, Lease(l.ID(), "n1"))
		if n := nodes(t, ctx, l, g.Floor.Seq); g.Floor.Release != c.want || n.Floor != g.Floor || g.Floor.Size < c.size {
			t.Errorf("after %s: a lease on %+v, listed as %+v, want %q", c.raise, g.Floor, n.Floor, c.want)
		}
	}
	if err := l.RaiseRelease(ctx, "next"); err == nil {
		t.Error("a release that is none")
	}
}

func leasesAppoint(t *testing.T, ctx context.Context, l LeaseLog) {
	none, a, b := events.InstanceID{}, events.NewInstanceID(time.Now()), events.NewInstanceID(time.Now())
	if _, err := l.Appoint(ctx, none, a); !errors.Is(err, events.ErrNoFloor) {
		t.Errorf("without a floor: %v", err)
	}
	raise(t, ctx, l, 3)
	for _, c := range []struct {
		was, next, want events.InstanceID
		conflict        bool
	}{{none, a, a, false}, {none, b, a, true}, {none, a, a, false}, {b, none, a, true}, {a, b, b, false}, {a, b, b, false}, {a, a, b, true}} {
		f, err := l.Appoint(ctx, c.was, c.next)
		if errors.Is(err, events.ErrConflict) != c.conflict || err != nil && !c.conflict {
			t.Errorf("%s in the place of %s: %v", c.next, c.was, err)
		}
		g := renew(t, ctx, l, Lease(l.ID(), "n1"))
		if g.Floor.Allocator != c.want || err == nil && (f != g.Floor || f.Size != 3) {
			t.Errorf("%s in the place of %s: %+v, and a lease on %+v", c.next, c.was, f, g.Floor)
		}
	}
	raise(t, ctx, l, 4)
	if err := l.RaiseRelease(ctx, "2.1"); err != nil {
		t.Fatal(err)
	}
	if g := renew(t, ctx, l, Lease(l.ID(), "n1")); g.Floor.Allocator != b || g.Floor.Size != 4 || g.Floor.Release != "2.1" {
		t.Errorf("after a raise: %+v", g.Floor)
	}
	if n := nodes(t, ctx, l, 0); n.Floor.Allocator != b {
		t.Errorf("nodes: %+v", n.Floor)
	}
}

func leasesAppointOne(t *testing.T, ctx context.Context, l LeaseLog) {
	raise(t, ctx, l, 1)
	var mu sync.Mutex
	var won []events.InstanceID // guarded by mu
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			me := events.NewInstanceID(time.Now())
			_, err := l.Appoint(ctx, events.InstanceID{}, me)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, me)
			} else if !errors.Is(err, events.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if g := renew(t, ctx, l, Lease(l.ID(), "n1")); len(won) != 1 || g.Floor.Allocator != won[0] {
		t.Errorf("appointed: %v; the floor names %s", won, g.Floor.Allocator)
	}
}
