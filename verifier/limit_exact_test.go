package verifier

import (
	"context"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/verifier/limits"
)

// exactWorld is two nodes whose limits are exact, and processes that may lease the tokens.
type exactWorld struct {
	*world
	dir   *projections.Directory
	nodes []*Node
}

func newExactWorld(t *testing.T, mode keyspace.LimitsMode) *exactWorld {
	w := newWorld(t, nil)
	x := &exactWorld{world: w, dir: projections.NewDirectory()}
	d := scribeDefinition()
	d.Limits = mode
	d.Plans = []keyspace.Plan{{Name: "small", PerMinute: 60, Burst: 4}, {Name: "large", PerMinute: 600, Burst: 40}, {Name: "slow", PerMinute: 1, Burst: 40}}
	w.define(scribe, d)
	for _, name := range []events.NodeID{"one", "two"} {
		x.start(name, nil)
	}
	return x
}

// start starts another node, and returns which it is.
func (x *exactWorld) start(name events.NodeID, change func(*NodeConfig)) int {
	l := NewLedger(LedgerConfig{Sink: x.log, Node: name, Log: x.log.ID(), Logger: x.node.cfg.Logger})
	cfg := x.node.cfg
	cfg.Ledger, cfg.LimitMail = l, x.log
	if change != nil {
		change(&cfg)
	}
	n := NewNode(cfg)
	run(x.t, l)
	waitFor(x.t, func() bool { return l.Ready() == nil })
	n.Fresh(events.At(time.Now()), x.view.At())
	x.beside(n.RunLease)
	x.beside(n.RunLimits)
	x.nodes = append(x.nodes, n)
	synctest.Wait() // it holds a lease
	return len(x.nodes) - 1
}

// beside runs f until the test or stop ends it.
func (x *exactWorld) beside(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(x.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	x.t.Cleanup(stop)
	return stop
}

// catchUp brings the allocators' view to the log's end.
func (x *exactWorld) catchUp() {
	x.t.Helper()
	if rs := x.log.Records()[x.dir.Resume():]; len(rs) > 0 {
		if err := x.dir.Apply(rs); err != nil {
			x.t.Fatal(err)
		}
	}
}

// allocate starts a process that may be appointed, beside a node, and waits until it serves.
func (x *exactWorld) allocate(beside int) (stop func()) {
	stop = x.allocateWith(beside, new(account))
	time.Sleep(5 * time.Second) // in the bubble: the wait of a new allocator
	return stop
}

// account is where a process keeps its account for the next one.
type account struct{ kept []byte }

func (a *account) save(data []byte) error {
	a.kept = slices.Clone(data)
	return nil
}

// allocateWith is allocate of a process that keeps its account there. It does not wait.
func (x *exactWorld) allocateWith(beside int, a *account) (stop func()) {
	x.catchUp()
	s := x.nodes[beside].LimitService(limits.ServiceConfig{Dir: x.dir, Appointments: x.log, Wanted: func() bool { return true },
		Save: a.save, Load: func() ([]byte, error) { return a.kept, nil }})
	return x.beside(s.Run)
}

func (x *exactWorld) ask(node int, word string, cost uint32) Decision {
	return x.nodes[node].Decide(x.t.Context(), &Request{Secret: events.NewSecret(secretOf(word)), Keyspace: scribe, Cost: cost})
}

// spend asks until a request is refused, and returns how many were allowed.
func (x *exactWorld) spend(node int, word string) (n int) {
	for {
		d := x.ask(node, word, 1)
		if !d.Allowed() {
			if d.Reason != events.ReasonRateLimited || d.Limit.Mode != keyspace.LimitsExact || d.Limit.RetryAfter < 1 || d.Limit.Away {
				x.t.Errorf("%s: %s %+v", word, d.Reason, d.Limit)
			}
			return n
		}
		n++
	}
}

func limited(plan string) func(*events.KeyCreated) {
	return func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{Plan: plan} }
}

func TestExactLimitsAreOfAllNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExactWorld(t, keyspace.LimitsExact)
		x.key("first", limited("small"))
		// Nobody leases tokens yet.
		began := time.Now()
		d := x.ask(0, "first", 1)
		if d.Reason != events.ReasonRateLimited || !d.Limit.Away || d.Limit.Mode != keyspace.LimitsExact || d.Limit.RetryAfter != 1 {
			t.Errorf("without an allocator: %s %+v", d.Reason, d.Limit)
		}
		if took := time.Since(began); took > askFor {
			t.Errorf("answered after %s", took)
		}
		if text := detail(&d, &Request{}); !strings.Contains(text, "allocator") {
			t.Error(text)
		}

		stop := x.allocate(0)
		a := x.key("a", limited("small"))
		x.catchUp()
		one := x.ask(0, "a", 1)
		time.Sleep(200 * time.Millisecond) // what is spent is told soon
		two := x.ask(1, "a", 2)
		if !one.Allowed() || !two.Allowed() || one.Limit.Remaining != 3 || two.Limit.Remaining != 1 || two.Limit.Limit != 4 || two.Limit.Scope != ScopeKey {
			t.Errorf("%s %+v, then %s %+v", one.Reason, one.Limit, two.Reason, two.Limit)
		}
		if n := x.spend(0, "a") + x.spend(1, "a"); n != 1 {
			t.Errorf("%d more allowed, want 1", n)
		}
		if d := x.ask(0, "a", 5); d.Limit.RetryAfter != 0 || !d.Limit.Never(5) {
			t.Errorf("more than a full bucket holds: %+v", d.Limit)
		}
		// A change of plan carries what is owed: of 40 tokens, 4 are spent.
		x.put(a, &events.KeyLimitUpdated{Before: &keyspace.Limit{Plan: "small"}, After: &keyspace.Limit{Plan: "large"}})
		x.catchUp()
		time.Sleep(time.Second) // the refusals' time
		if n := x.spend(1, "a") + x.spend(0, "a"); n < 36 || n > 36+11 {
			t.Errorf("%d allowed after the change of plan", n)
		}

		// A rotated key and its successor share one bucket.
		b := x.key("b", limited("small"))
		x.catchUp()
		if d := x.ask(0, "b", 3); !d.Allowed() {
			t.Errorf("%s %+v", d.Reason, d.Limit)
		}
		next := x.key("c", func(c *events.KeyCreated) { limited("small")(c); c.RotatedFrom = events.KeyID(parse(t, b.ID)) })
		x.put(b, &events.KeyRotated{Successor: parse(t, next.ID), After: events.At(time.Now().Add(time.Hour))})
		x.catchUp()
		if n := x.spend(1, "c") + x.spend(0, "b"); n != 1 {
			t.Errorf("the successor has %d tokens of its own", n-1)
		}

		// Another allocator knows nothing: every bucket of a key from before is empty.
		x.key("full", limited("large"))
		x.catchUp()
		stop()
		d = x.ask(1, "full", 1)
		if d.Reason != events.ReasonRateLimited || !d.Limit.Away {
			t.Errorf("while the allocator is away: %s %+v", d.Reason, d.Limit)
		}
		began = time.Now()
		x.allocate(1)
		n := x.spend(0, "full") + x.spend(1, "full")
		if took := time.Since(began).Seconds(); n == 0 || float64(n) > 10*took {
			t.Errorf("%d tokens within %.1f s of a new allocator", n, took)
		}
		x.key("new", limited("large"))
		x.catchUp()
		if n := x.spend(0, "new"); n != 40 {
			t.Errorf("a key that is newer than the allocator has %d tokens", n)
		}
	})
}

// A process that is paused between its look at the clock and the tokens does not spend
// what is another's by then: it asks.
func TestNoTokenIsSpentAfterItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExactWorld(t, keyspace.LimitsExact)
		x.allocate(1)
		began := time.Now()
		var paused, looks atomic.Int64
		n := x.start("paused", func(cfg *NodeConfig) {
			cfg.Steady = func() time.Duration {
				if looks.Add(-1) == 0 { // the second look
					paused.Add(int64(2 * time.Second))
				}
				return time.Since(began) + time.Duration(paused.Load())
			}
		})
		x.key("a", limited("large"))
		x.catchUp()
		for range 10 { // then it holds some tokens ahead
			x.ask(n, "a", 1)
			time.Sleep(50 * time.Millisecond)
		}
		waited := func() string {
			_, after, _ := strings.Cut(string(scrape(t, x.nodes[n])), "\nkeytrail_verifier_limit_waits_total ")
			count, _, _ := strings.Cut(after, "\n")
			return count
		}
		before := waited()
		if d := x.ask(n, "a", 1); !d.Allowed() || waited() != before {
			t.Fatalf("%s: of a bucket in use a token is in hand; %s waited, then %s", d.Reason, before, waited())
		}
		looks.Store(2) // the first look finds the lease, the second is after the pause
		if d := x.ask(n, "a", 1); !d.Allowed() || waited() == before {
			t.Errorf("%s: the token's lease was over, and nobody was asked", d.Reason)
		}
	})
}

func parse(t *testing.T, id string) events.KeyID {
	t.Helper()
	k, err := events.ParseKeyID(id)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A node that no allocator can answer decides as the keyspace says.
func TestLimitsWithoutAnAllocator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil) // without LimitMail
		d := scribeDefinition()
		d.Limit = &keyspace.Limit{PerMinute: 60, Burst: 2}
		d.TenantLimit = &keyspace.Limit{PerMinute: 60, Burst: 3}
		for _, c := range []struct {
			mode    keyspace.LimitsMode
			allowed int
			limit   string
		}{
			{"", 2, `"scope":"key"},"retry_after":1`},
			{keyspace.LimitsLocal, 2, `"scope":"key"},"retry_after":1`},
			{keyspace.LimitsExact, 0, `"scope":"key","mode":"exact"},"retry_after":1,"detail":"the allocator of limits does not answer`},
			{keyspace.LimitsExactElseLocal, 2, `"scope":"key","mode":"local"},"retry_after":1`},
		} {
			id := events.KeyspaceID("m-" + strings.ReplaceAll(string(c.mode), "_", "-"))
			d.Limits = c.mode
			w.define(id, d)
			w.keyIn(id, "acme", secretOf(string(id)), nil)
			ask := func() string {
				body := `{"key":"` + secretOf(string(id)) + `","keyspace":"` + string(id) + `"}`
				return serve(w, httptest.NewRequest("POST", "/v1/verify", strings.NewReader(body))).Body.String()
			}
			allowed, last := 0, ""
			for range 3 {
				if last = ask(); strings.Contains(last, `"allowed":true`) {
					allowed++
				}
			}
			if allowed != c.allowed || !strings.Contains(last, c.limit) {
				t.Errorf("%q: %d allowed, then %s", c.mode, allowed, last)
			}
		}
	})
}

// The tenant's bucket and the key's are asked for together.
func TestExactLimitOfATenant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExactWorld(t, keyspace.LimitsExact)
		x.allocate(0)
		x.put(events.TenantAggregate(scribe, "acme"), &events.TenantLimitUpdated{After: &keyspace.Limit{PerMinute: 60, Burst: 5}})
		x.key("a", limited("small"))
		x.key("b", limited("small"))
		x.key("c", nil)
		x.catchUp()
		na := x.spend(0, "a")
		time.Sleep(300 * time.Millisecond) // the tenant's token of the refused request is given back
		nb := x.spend(1, "b")
		nc := x.spend(0, "c")
		if na != 4 || nb != 1 || nc != 0 {
			t.Errorf("of the tenant's 5 tokens %d, %d and %d were spent", na, nb, nc)
		}
		if d := x.ask(1, "c", 1); d.Limit.Scope != ScopeTenant || d.Limit.Limit != 5 {
			t.Errorf("%+v", d.Limit)
		}
		if d := x.ask(1, "a", 1); d.Limit.Remaining != 0 {
			t.Errorf("%+v", d.Limit)
		}
	})
}

var _ limits.Directory = (*projections.Directory)(nil)
var _ events.LimitMail = (*logtest.MemLog)(nil)

// appointments counts how often somebody was appointed.
type appointments struct {
	*logtest.MemLog
	made atomic.Int64
}

func (a *appointments) Appoint(ctx context.Context, was, next events.InstanceID) (events.Floor, error) {
	floor, err := a.MemLog.Appoint(ctx, was, next)
	if err == nil {
		a.made.Add(1)
	}
	return floor, err
}

// TestOneAllocatorStays: of processes that start together one is appointed and stays, as
// does the next one when it ends. While it waits for the leases of the one before, it
// leases nothing, and the others must not take it for gone.
func TestOneAllocatorStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newExactWorld(t, keyspace.LimitsExact)
		x.key("a", limited("large"))
		x.catchUp()
		counted := &appointments{MemLog: x.log}
		var stops []func()
		for i := range x.nodes {
			for range 2 {
				s := x.nodes[i].LimitService(limits.ServiceConfig{Dir: x.dir, Appointments: counted, Wanted: func() bool { return true }})
				stops = append(stops, x.beside(s.Run))
			}
		}
		for ended := range stops {
			time.Sleep(10 * time.Second)
			for range 30 {
				time.Sleep(time.Second)
				if d := x.ask(0, "a", 1); !d.Allowed() {
					t.Errorf("after %d have ended: %s %+v", ended, d.Reason, d.Limit)
				}
			}
			if n := counted.made.Load(); n > int64(ended)+1 {
				t.Errorf("%d appointments while %d ended", n, ended)
			}
			stops[ended]()
		}
	})
}
