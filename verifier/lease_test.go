package verifier

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// link is the way between a node and the log of leases: it delays what is asked and
// what is answered, and can be cut.
type link struct {
	events.Leases
	there, back time.Duration
	cut         atomic.Bool
}

func (l *link) Renew(ctx context.Context, r events.NodeLease) (events.LeaseGrant, error) {
	if l.wait(ctx, l.there) != nil {
		return events.LeaseGrant{}, events.ErrUnavailable
	}
	g, err := l.Leases.Renew(context.WithoutCancel(ctx), r) // what is on its way arrives
	if l.wait(ctx, l.back) != nil {
		return events.LeaseGrant{}, events.ErrUnavailable
	}
	return g, err
}

func (l *link) wait(ctx context.Context, d time.Duration) error {
	if l.cut.Load() {
		<-ctx.Done()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// clocks are those of one machine: a wall clock that is off and is set again while
// it runs, and a steady one that stands still while the machine is suspended.
type clocks struct {
	mu     sync.Mutex
	skew   time.Duration
	stood  time.Duration // for how long the steady clock has stood still
	origin time.Time
}

func (c *clocks) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.skew)
}

func (c *clocks) steady() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.origin) - c.stood
}

func (c *clocks) step(skew, stood time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.skew += skew
	c.stood += stood
}

// No key is allowed later than its bound after its revocation was acknowledged: by
// whatever the clock is off or set, however long the link delays, whichever way it
// is cut, however long the process is paused or the machine suspended. The bound is
// the keyspace's max_staleness, or the node's ceiling with on_stale: allow.
func TestNoAllowanceOutlivesItsBound(t *testing.T) {
	const pausedFor = 30 * time.Second
	allowed := 0
	for _, skew := range []time.Duration{0, -time.Hour, time.Hour} {
		for _, delay := range [][2]time.Duration{{}, {2 * time.Second, 0}, {0, 2 * time.Second}, {20 * time.Second, 20 * time.Second}} {
			cell := logtest.NewCell(t, fmt.Sprintf("bound: skew %s, links late by %s and %s", skew, delay[0], delay[1]), 0)
			for _, set := range []time.Duration{0, -time.Minute, time.Minute} { // 2 s after the revocation
				for _, cut := range []string{"no", "leases", "events", "both"} {
					for _, pause := range []string{"no", "stopped", "suspended"} {
						if set < 0 && pause == "suspended" {
							continue // a clock set back while the machine was suspended hides the time from both
						}
						cell.Tried(1)
						name := fmt.Sprintf("skew %s, set %s, delay %s, cut %s, pause %s", skew, set, delay, cut, pause)
						synctest.Test(t, func(t *testing.T) {
							allowed += tryCell(t, cell, name, skew, set, delay, cut, pause, pausedFor)
						})
					}
				}
			}
		}
	}
	t.Logf("%d decisions allowed after the revocation was acknowledged, all within their bound", allowed)
	if allowed == 0 {
		t.Error("nothing was allowed: the matrix tries nothing")
	}
}

func tryCell(t *testing.T, cell *logtest.Cell, name string, skew, set time.Duration, delay [2]time.Duration, cut, pause string, pausedFor time.Duration) (allowed int) {
	c := &clocks{skew: skew, origin: time.Now()}
	way := &link{there: delay[0], back: delay[1]}
	w := newWorld(t, func(cfg *NodeConfig) {
		way.Leases = cfg.Leases
		cfg.Leases, cfg.Now, cfg.Steady = way, c.now, c.steady
	})
	open := scribeDefinition()
	open.Staleness.OnStale = "allow"
	w.define("open", open)
	keys := []events.Aggregate{w.key("closed", nil), w.keyIn("open", "acme", secretOf("open"), nil)}
	bounds := []time.Duration{keyspace.Staleness{}.MaxStaleness(), DefaultStaleCeiling}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.node.RunLease(ctx) }()
	ask := func(i int, since time.Time) {
		d := w.node.Decide(ctx, &Request{Secret: events.NewSecret(secretOf([]string{"closed", "open"}[i]))})
		if late := time.Since(since); d.Allowed() {
			allowed++
			if late > bounds[i] {
				cell.Wrong("%s: %s is allowed %s after its revocation was acknowledged, bound %s", name, []string{"closed", "open"}[i], late, bounds[i])
			}
		}
	}
	time.Sleep(4 * time.Second) // with a slow link: while a renewal is on its way back

	way.cut.Store(cut == "leases" || cut == "both")
	var last events.Seq
	for _, a := range keys {
		last = logtest.Append(t, w.log, a, &events.KeyRevoked{Code: events.RevokeCompromise})
	}
	if err := w.log.Raise(t.Context(), events.Head{Log: w.log.ID(), Size: last}); err != nil {
		t.Fatal(err)
	}
	revoked := time.Now() // acknowledged
	if cut == "no" || cut == "leases" {
		time.AfterFunc(3*time.Second, func() { // the link of events is slow
			if err := w.view.Apply(w.log.Records()[w.view.At():]); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range keys {
		ask(i, revoked)
	}
	time.Sleep(2 * time.Second)
	c.step(set, 0)
	if pause != "no" { // nothing of the process runs, but what is on its way arrives
		way.cut.Store(true)
		time.Sleep(pausedFor)
		if pause == "suspended" {
			c.step(0, pausedFor)
		}
		for i := range keys { // in the first moment after
			ask(i, revoked)
		}
		way.cut.Store(cut == "leases" || cut == "both")
	}
	for time.Since(revoked) < DefaultStaleCeiling+5*time.Second {
		for i := range keys {
			ask(i, revoked)
		}
		time.Sleep(250 * time.Millisecond)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	time.Sleep(time.Minute) // what is on its way arrives
	w.end()
	return allowed
}

// The wait for a durable use is inside the bound: an allowance that has grown too
// old meanwhile is not told.
func TestTheWaitForTheLedgerIsInsideTheBound(t *testing.T) {
	for _, c := range []struct {
		waited time.Duration
		want   events.Reason
	}{{400 * time.Millisecond, events.ReasonOK}, {900 * time.Millisecond, events.ReasonVerifierStale}} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			sync := scribeDefinition()
			sync.Ledger = keyspace.LedgerSync
			w.define("sync", sync)
			w.keyIn("sync", "acme", secretOf("sync"), nil)
			time.Sleep(9500 * time.Millisecond)
			p := w.log.PauseNext(logtest.OpPublish, logtest.AfterEffect)
			time.AfterFunc(c.waited, p.Resume)
			// A lease that is renewed meanwhile says nothing about what was seen.
			time.AfterFunc(c.waited/2, func() { _, _ = w.node.Confirm(t.Context()) })
			if d := w.node.Decide(t.Context(), &Request{Secret: events.NewSecret(secretOf("sync"))}); d.Reason != c.want {
				t.Errorf("after %s: %s, want %s", c.waited, d.Reason, c.want)
			}
			if e := w.end()[0]; e.uses[1].Reason != events.ReasonOK {
				t.Errorf("the record holds the decision as it was made: %+v", e.uses[1])
			}
		})
	}
}

// A request that wants a fresher view than the node renews for gets it, if a renewal
// brings it, and the node does not renew for each of them.
func TestARequestMayWantAFresherView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		way := new(link)
		w := newWorld(t, func(cfg *NodeConfig) { way.Leases, cfg.Leases = cfg.Leases, way })
		w.key("plain", nil)
		ask := func(bound time.Duration) events.Reason {
			return w.node.Decide(t.Context(), &Request{Secret: events.NewSecret(secretOf("plain")), MaxStaleness: bound}).Reason
		}
		time.Sleep(5 * time.Second)
		way.back = 20 * time.Millisecond
		before := w.node.lease.outcomes[renewed].Load()
		if r := ask(time.Second); r != events.ReasonOK {
			t.Errorf("a second: %s", r)
		}
		if r := ask(10 * time.Millisecond); r != events.ReasonVerifierStale {
			t.Errorf("less than a renewal takes: %s", r)
		}
		for range 100 {
			ask(time.Millisecond)
		}
		if n := w.node.lease.outcomes[renewed].Load() - before; n != 1 {
			t.Errorf("%d renewals", n)
		}
		w.end()
	})
}

// Readiness says why there is no lease.
func TestReadySaysWhyThereIsNoLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		ready := func(want string) {
			t.Helper()
			if got := fmt.Sprint(w.node.Ready()); !strings.Contains(got, want) {
				t.Errorf("%s, want %q", got, want)
			}
		}
		ready("<nil>")
		if err := w.log.Raise(t.Context(), events.Head{Log: w.log.ID(), Size: 100}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		_, _ = w.node.Confirm(t.Context())
		ready("last renewed 11s ago: the view stands at 2, and commands are acknowledged up to 100")
		w.log.SetDown(true)
		_, _ = w.node.Confirm(t.Context())
		ready("last renewed 11s ago: the log cannot be reached")
		w.log.SetDown(false)
		w.end()
	})
}

// A node answers on a lease for as long as its record says, and no moment longer.
func TestTheRecordSaysTheWholeLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *NodeConfig) { c.StaleCeiling = time.Minute + 999*time.Microsecond })
		list, err := w.log.Nodes(t.Context(), 0)
		if err != nil || len(list.Leases) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		grants := *w.node.lease.grants.Load()
		if said, held := list.Leases[0].Life(), grants[len(grants)-1].life; said != held || said != time.Minute {
			t.Errorf("the record says %s, and the node answers for %s", said, held)
		}
		w.end()
	})
}
