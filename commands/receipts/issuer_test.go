package receipts

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/verifier"
)

var (
	worlds = flag.Int("worlds", 60, "how many simulated deployments TestNoAllowanceAfterAReceipt tries")
	seedOf = flag.Uint64("seed", 0, "the first seed of TestNoAllowanceAfterAReceipt; 0 draws one")
)

// quiet drops what is logged.
var quiet = slog.New(slog.DiscardHandler)

// No node allows a key after a complete receipt of its revocation: in deployments of
// nodes with slow links, skewed clocks that are set while they run, pauses, kills,
// restarts, twins, and machines that are suspended.
func TestNoAllowanceAfterAReceipt(t *testing.T) {
	first := *seedOf
	if first == 0 {
		first = rand.Uint64()
	}
	t.Logf("seeds from %d: run one with -seed", first)
	cell := logtest.NewCell(t, "receipts of simulated deployments", first)
	complete, lapsed, waiting, before, tried := 0, 0, 0, 0, 0
	// By chance all of 60 receipts are complete, in one run of a thousand: then more are tried.
	all := func() bool { return *worlds < 50 || complete >= tried/2 && lapsed > 0 && waiting > 0 && before > 0 }
	for i := 0; i < *worlds || i < 10**worlds && !all(); i++ {
		tried++
		seed := first + uint64(i)
		synctest.Test(t, func(t *testing.T) {
			w := simulate(t, seed)
			if cell.Tried(1); w.failed != "" {
				cell.Wrong("%s", w.failed)
			}
			before += w.before
			for _, n := range w.receipt.Nodes {
				switch n.Status {
				case HasLapsed:
					lapsed++
				case Waiting:
					waiting++
				}
			}
			if w.receipt.Complete {
				complete++
			}
		})
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
	t.Logf("%d deployments: %d receipts complete, with %d lapsed runs; %d runs waiting; %d allowances after the acknowledgement and before the receipt", tried, complete, lapsed, waiting, before)
	if !all() {
		t.Error("the simulation does not try what it is for")
	}
}

// deployment is a log with nodes that misbehave.
type deployment struct {
	t       *testing.T
	dice    sync.Mutex
	r       *rand.Rand // guarded by dice
	log     *logtest.MemLog
	secret  events.Secret
	receipt Receipt

	mu       sync.Mutex
	acked    bool   // guarded by mu
	received bool   // guarded by mu
	before   int    // allowances between the two; guarded by mu
	failed   string // guarded by mu
}

// simNode is one process.
type simNode struct {
	*deployment
	node *verifier.Node
	view *projections.Keys
	name events.NodeID

	mu     sync.Mutex
	skew   time.Duration // of the wall clock; guarded by mu
	stood  time.Duration // of the steady clock; guarded by mu
	paused chan struct{} // open while the process is stopped; nil = it runs; guarded by mu
	deaf   bool          // events do not arrive; guarded by mu
	cut    bool          // the leases and questions do not; guarded by mu
	slow   time.Duration // of its links
	origin time.Time
	stop   context.CancelFunc
}

func (n *simNode) now() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Add(n.skew)
}

func (n *simNode) steady() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Since(n.origin) - n.stood
}

// run waits while the process is stopped.
func (n *simNode) run(ctx context.Context) error {
	for {
		n.mu.Lock()
		paused := n.paused
		n.mu.Unlock()
		if paused == nil {
			return ctx.Err()
		}
		select {
		case <-paused:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// way waits as the node's link does; an error means that nothing arrives.
func (n *simNode) way(ctx context.Context) error {
	if err := n.run(ctx); err != nil {
		return err
	}
	n.mu.Lock()
	cut := n.cut
	n.mu.Unlock()
	if cut {
		<-ctx.Done()
		return ctx.Err()
	}
	return sleep(ctx, n.slow)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// simLeases is the log of leases as a node reaches it.
type simLeases struct {
	events.Leases
	n *simNode
}

func (l simLeases) Renew(ctx context.Context, r events.NodeLease) (events.LeaseGrant, error) {
	if l.n.way(ctx) != nil {
		return events.LeaseGrant{}, events.ErrUnavailable
	}
	g, err := l.Leases.Renew(context.WithoutCancel(ctx), r) // it arrives, whether the node learns it or not
	if l.n.way(ctx) != nil {
		return events.LeaseGrant{}, events.ErrUnavailable
	}
	return g, err
}

func (l simLeases) Release(ctx context.Context, r events.NodeLease) error {
	if l.n.way(ctx) != nil {
		return events.ErrUnavailable
	}
	return l.Leases.Release(ctx, r)
}

// simPrompts are the questions as a node hears them.
type simPrompts struct {
	events.Prompts
	n *simNode
}

func (p simPrompts) Listen(ctx context.Context, asked func(events.Head)) error {
	return p.Prompts.Listen(ctx, func(h events.Head) {
		if p.n.way(ctx) == nil {
			asked(h)
		}
	})
}

// start runs a process with the name until stop, or the end of ctx.
func (d *deployment) start(ctx context.Context, name events.NodeID) *simNode {
	n := &simNode{deployment: d, name: name, view: projections.NewKeys(), origin: time.Now(),
		skew: d.between(-time.Hour, time.Hour), slow: d.between(0, 30*time.Millisecond)}
	if d.pick(4) == 0 {
		n.slow = d.between(0, 3*time.Second)
	}
	ledger := verifier.NewLedger(verifier.LedgerConfig{Sink: d.log, Node: name, Log: d.log.ID(), Logger: quiet})
	n.node = verifier.NewNode(verifier.NodeConfig{View: n.view, Ledger: ledger, Leases: simLeases{d.log, n}, Log: d.log.ID(),
		StaleCeiling: d.between(5*time.Second, 30*time.Second), Now: n.now, Steady: n.steady, Logger: quiet})
	ctx, n.stop = context.WithCancel(ctx)
	go ledger.Run(ctx)
	go n.node.RunLease(ctx)
	go n.node.RunAnswers(ctx, simPrompts{d.log, n})
	go n.follow(ctx)
	go n.serve(ctx)
	return n
}

// follow applies what the log holds, as late as the link brings it.
func (n *simNode) follow(ctx context.Context) {
	for n.run(ctx) == nil {
		records := n.log.Records()
		if sleep(ctx, n.slow+time.Millisecond) != nil || n.run(ctx) != nil {
			return
		}
		n.mu.Lock()
		deaf := n.deaf
		n.mu.Unlock()
		if at := n.view.At(); !deaf {
			if int(at) < len(records) {
				if err := n.view.Apply(records[at:]); err != nil {
					panic(err)
				}
			}
			n.view.Fresh(events.At(time.Now()), n.view.At())
		}
		if sleep(ctx, 20*time.Millisecond) != nil {
			return
		}
	}
}

// serve asks for a decision all the time.
func (n *simNode) serve(ctx context.Context) {
	for n.run(ctx) == nil {
		n.deployment.mu.Lock() // a decision is of one moment: none is on its way when a receipt comes
		if dec := n.node.Decide(ctx, &verifier.Request{Secret: n.secret}); dec.Allowed() {
			switch {
			case n.received:
				n.failed = fmt.Sprintf("%s allows the key after the receipt %+v", n.name, n.receipt)
			case n.acked:
				n.before++
			}
		}
		n.deployment.mu.Unlock()
		if sleep(ctx, 50*time.Millisecond) != nil {
			return
		}
	}
}

func (d *deployment) between(a, b time.Duration) time.Duration {
	d.dice.Lock()
	defer d.dice.Unlock()
	return a + time.Duration(d.r.Int64N(int64(b-a)+1))
}

func (d *deployment) pick(n int) int { return int(d.between(0, time.Duration(n-1))) }

// misbehave does one thing to a node.
func (n *simNode) misbehave(ctx context.Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	pause := func(d time.Duration) {
		if n.paused == nil {
			ch := make(chan struct{})
			n.paused = ch
			time.AfterFunc(d, func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				n.paused = nil
				close(ch)
			})
		}
	}
	switch n.pick(9) {
	case 0:
		pause(n.between(time.Second, 90*time.Second))
	case 1: // suspended: the steady clock stands still, the wall clock goes on
		d := n.between(time.Second, 90*time.Second)
		pause(d)
		time.AfterFunc(d-time.Millisecond, func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.stood += d - time.Millisecond
		})
	case 2:
		n.skew += n.between(-time.Hour, time.Hour)
	case 3:
		n.deaf = true
	case 4:
		n.cut = true
	case 5:
		n.deaf, n.cut = true, true
	case 6: // killed, and perhaps started again
		n.cut = true
		n.stop()
		if n.pick(2) == 0 {
			name, d := n.name, n.deployment
			time.AfterFunc(time.Second, func() { d.start(ctx, name) })
		}
	case 7: // an orderly stop
		n.stop()
	case 8: // a twin
		n.deployment.start(ctx, n.name)
	}
}

func simulate(t *testing.T, seed uint64) *deployment {
	d := &deployment{t: t, r: rand.New(rand.NewPCG(seed, 0)), log: logtest.New(t)}
	def := keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Environments: []string{"live"}, Prefix: "sk_live_"}}, Scopes: []keyspace.ScopeDef{{Name: "read"}}}
	if d.pick(2) == 0 {
		def.Staleness.OnStale = "allow"
	}
	logtest.Append(t, d.log, events.KeyspaceAggregate("shop"), &events.KeyspaceDefined{Definition: def})
	key := events.KeyAggregate("shop", "acme", events.KeyID{1})
	d.secret = events.NewSecret("sk_live_" + fmt.Sprintf("%043d", 1))
	last := logtest.Append(t, d.log, key, &events.KeyCreated{Name: "k", KeyType: "secret", Environment: "live", Digest: d.secret.Digest(), Hint: "sk_live_0000"})
	if err := d.log.Raise(t.Context(), events.Head{Log: d.log.ID(), Size: last}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer func() { cancel(); time.Sleep(3 * time.Minute) }() // whatever waits sees it
	observer := NewObserver(d.log, quiet)
	if d.pick(2) == 0 {
		go observer.Run(ctx)
	}
	var nodes []*simNode
	for i := range 1 + d.pick(5) {
		nodes = append(nodes, d.start(ctx, events.NodeID(fmt.Sprint("edge-", i))))
	}
	time.Sleep(d.between(0, 20*time.Second))
	for range d.pick(3) {
		nodes[d.pick(len(nodes))].misbehave(ctx)
	}
	time.Sleep(d.between(0, 20*time.Second))

	last = logtest.Append(t, d.log, key, &events.KeyRevoked{Code: events.RevokeCompromise})
	if err := d.log.Raise(t.Context(), events.Head{Log: d.log.ID(), Size: last}); err != nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.acked = true
	d.mu.Unlock()
	if d.pick(2) == 0 {
		time.Sleep(d.between(0, 40*time.Second)) // the receipt is asked for later
	}
	for range d.pick(3) {
		time.AfterFunc(d.between(0, 5*time.Second), func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if ctx.Err() == nil {
				nodes[d.pick(len(nodes))].misbehave(ctx)
			}
		})
	}
	wait, end := context.WithTimeout(ctx, d.between(0, 60*time.Second))
	defer end()
	issuer := NewIssuer(IssuerConfig{Nodes: observer, Leases: d.log, Prompts: d.log, Control: "control-1", Logger: quiet})
	receipt, err := issuer.Issue(wait, Change{Log: d.log.ID(), Resource: "/v1/keys/key_1", Event: events.EventID{1}, Type: events.TypeKeyRevoked, Seq: last})
	if err != nil && wait.Err() == nil {
		t.Fatal(err)
	}
	d.mu.Lock()
	d.receipt, d.received = receipt, receipt.Complete
	d.mu.Unlock()
	time.Sleep(2 * time.Minute) // whatever was paused goes on
	d.mu.Lock()
	defer d.mu.Unlock()
	return d
}
