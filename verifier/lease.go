package verifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/flight"
)

// The bounds of a node's ceiling.
const (
	DefaultStaleCeiling = time.Minute
	MaxStaleCeiling     = time.Hour
)

const (
	renewEvery = time.Second            // when nothing asks for more: a tenth of the default bound
	renewFloor = 100 * time.Millisecond // however short the bounds are
	renewTry   = 2500 * time.Millisecond
	endsWithin = 500 * time.Millisecond // how long an orderly stop tries to say that the lease has ended
)

// grant is one lease: once the view holds size events, the node may answer until
// life after asked. Every command that was acknowledged before asked is among those
// events.
type grant struct {
	asked time.Duration // Node.passed, at a mark
	size  events.Seq
	life  time.Duration
}

// lives are the lives of the granted leases that a decision may still rest on: each
// is shorter than that of every lease before it. A run of renewals uses it alone.
type lives []grant

// longest forgets what is over at now, and returns the longest life that a lease
// which is still to be granted with life, or one of those before it, has.
func (l *lives) longest(now, life time.Duration) time.Duration {
	for len(*l) > 0 && now-(*l)[0].asked > (*l)[0].life {
		*l = (*l)[1:]
	}
	if len(*l) > 0 {
		life = max(life, (*l)[0].life)
	}
	return life
}

func (l *lives) granted(g grant) {
	for len(*l) > 0 && (*l)[len(*l)-1].life <= g.life {
		*l = (*l)[:len(*l)-1]
	}
	*l = append(*l, g)
}

// leaseHolder is the node's side of its lease.
type leaseHolder struct {
	instance events.InstanceID
	renewals flight.Group[events.Floor]
	grants   atomic.Pointer[[]grant] // newest last; all but the first are newer than what the view held at the last renewal
	ended    atomic.Bool             // the lease was given back: no further answer
	first    atomic.Uint64           // events.NodeLease.First
	lives    lives
	outcomes [numOutcomes]atomic.Uint64

	mu   sync.Mutex
	last error // of the last renewal; guarded by mu
}

type outcome int

const (
	renewed outcome = iota
	unavailable
	noFloor
	refusedLease
	numOutcomes
)

func (o outcome) String() string {
	return [numOutcomes]string{"renewed", "unavailable", "no_floor", "refused"}[o]
}

// maxGrants bounds the leases that wait for the view.
const maxGrants = 32

// add puts g behind the leases that the view, at at, has not outlived.
func (h *leaseHolder) add(g grant, at events.Seq) {
	old := *h.grants.Load()
	keep := 0
	for i := range old {
		if old[i].size <= at {
			keep = i // the newest that may be answered on now
		}
	}
	next := append(make([]grant, 0, len(old)-keep+1), old[keep:]...)
	if len(next) == maxGrants { // the view is far behind: the last of them says enough
		next = next[:maxGrants-1]
	}
	next = append(next, g)
	h.grants.Store(&next)
}

// held returns the newest lease whose floor the view, at at, has reached; ok is
// false when there is none. The position must be read before the view is asked: what
// is looked up afterwards is at least as new.
func (h *leaseHolder) held(at events.Seq) (g grant, ok bool) {
	if h.ended.Load() {
		return g, false
	}
	grants := *h.grants.Load()
	for i := len(grants) - 1; i >= 0; i-- {
		if grants[i].size <= at {
			return grants[i], true
		}
	}
	return g, false
}

// newest returns how long ago the newest lease was asked for.
func (h *leaseHolder) newest(now time.Duration) time.Duration {
	grants := *h.grants.Load()
	if len(grants) == 0 {
		return never
	}
	return now - grants[len(grants)-1].asked
}

func (h *leaseHolder) fault() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.last
}

// life is what the node's next record says: no answer is given on a lease that is
// older, whatever its keyspace says. It is the node's ceiling, or the longest bound
// of a keyspace if that is longer.
func (n *Node) life() time.Duration {
	_, longest := n.cfg.View.Staleness()
	return min(max(n.cfg.StaleCeiling, longest), events.MaxLeaseLife).Truncate(time.Millisecond) // as the record says it
}

// Confirm renews the lease, and returns the floor that the renewal has proved: every
// command that was acknowledged before the call is among its Size events. Concurrent
// calls share renewals. Errors: those of events.Leases.Renew, ctx's, or the
// *events.CorruptError of a view of another history than the floor's, and the
// *events.NewerError of a floor for newer releases: then the node answers nothing
// any more.
func (n *Node) Confirm(ctx context.Context) (events.Floor, error) {
	return n.lease.renewals.Do(ctx, n.renew)
}

// renew makes one renewal. The clocks are read before anything is asked.
func (n *Node) renew(ctx context.Context) (events.Floor, error) {
	h := &n.lease
	if h.ended.Load() {
		return events.Floor{}, fmt.Errorf("%w: this node has given its lease back", events.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, renewTry)
	defer cancel()
	g := grant{asked: n.elapsed.mark(n.clocks(n.cfg.Now())), life: n.life()}
	answer, err := n.cfg.Leases.Renew(ctx, n.record(h.lives.longest(g.asked, g.life)))
	if err == nil {
		err = n.cfg.View.Expect(answer.Floor.Head) // before the lease can be held
	}
	if err == nil {
		err = answer.Floor.Release.Runs()
	}
	what := renewed
	switch {
	case err == nil:
		g.size = answer.Floor.Size
		h.first.CompareAndSwap(0, uint64(answer.Floor.Seq))
		h.lives.granted(g)
		h.add(g, n.cfg.View.At())
	case ends(err):
		what = refusedLease
		h.ended.Store(true)
	case errors.Is(err, events.ErrNoFloor):
		what = noFloor
	case errors.Is(err, events.ErrUnavailable):
		what = unavailable
	default:
		what = refusedLease
	}
	h.outcomes[what].Add(1)
	h.mu.Lock()
	was := h.last
	h.last = err
	h.mu.Unlock()
	switch {
	case err != nil && was == nil:
		n.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the lease was not renewed", slog.Any("err", err))
	case err == nil && was != nil:
		n.cfg.Logger.LogAttrs(ctx, slog.LevelInfo, "the lease is renewed again")
	}
	return answer.Floor, err
}

// record is what the node says about itself. What its view holds is read here, and a
// view never goes back.
func (n *Node) record(life time.Duration) events.NodeLease {
	at, root := n.cfg.View.Head()
	return events.NodeLease{
		Node: n.cfg.Ledger.cfg.Node, Instance: n.lease.instance, State: events.LeaseLive,
		LifeMS:    life.Milliseconds(),
		First:     events.Seq(n.lease.first.Load()),
		Applied:   events.Head{Log: n.cfg.Log, Size: at, Root: root},
		Epoch:     n.cfg.Ledger.epochNow(),
		Decisions: n.cfg.Ledger.nextNumber() - 1,
		Release:   events.ThisRelease(),
	}
}

// RunLease renews the node's lease until ctx ends, and then gives it back: no
// answer is given afterwards. It returns ctx's error, or the *events.CorruptError or
// *events.NewerError of Confirm. The process must stop serving before it ends ctx.
func (n *Node) RunLease(ctx context.Context) error {
	h := &n.lease
	var steps sync.WaitGroup
	defer steps.Wait()
	stepping, stop := context.WithCancel(ctx)
	defer stop()
	steps.Go(func() { n.step(stepping) })
	var last error
	for failed := 0; ctx.Err() == nil; {
		if _, err := n.Confirm(ctx); ends(err) {
			last = err
			break
		} else if err != nil {
			failed++
		} else {
			failed = 0
		}
		shortest, _ := n.cfg.View.Staleness()
		period := max(renewFloor, min(renewEvery, shortest/4))
		if failed > 0 { // Renew has tried for a while: begin anew soon, with a newer reading
			period = min(period, renewFloor/4<<min(failed, 3))
		}
		wait := time.NewTimer(period - period/8 + rand.N(period/4))
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
	h.ended.Store(true)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endsWithin)
	defer cancel()
	// A renewal in flight ends first. One that follows the release all the same makes
	// others wait, and nothing worse.
	_, _ = h.renewals.Do(end, n.renew)
	if err := n.cfg.Leases.Release(end, n.record(n.life())); err != nil {
		n.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the end of the lease is not on record: others wait until its life is over", slog.Any("err", err))
	}
	if last != nil {
		return last
	}
	return ctx.Err()
}

func isCorrupt(err error) bool {
	_, corrupt := errors.AsType[*events.CorruptError](err)
	return corrupt
}

// ends reports whether the node must not answer any more: its view is of another
// history, or the deployment writes events that it cannot read.
func ends(err error) bool {
	_, newer := errors.AsType[*events.NewerError](err)
	return newer || isCorrupt(err)
}

// step keeps the steps short in which time is measured, until ctx ends.
func (n *Node) step(ctx context.Context) {
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			n.elapsed.mark(n.clocks(n.cfg.Now()))
		}
	}
}

// freshen renews the lease for a request that wants a fresher view than the node
// renews for by itself, unless a renewal began just now. It waits until ctx ends at
// the most.
func (n *Node) freshen(ctx context.Context, bound time.Duration) {
	switch age := n.Staleness(n.cfg.Now()); {
	case age <= bound, n.lease.newest(n.passed(n.cfg.Now())) < renewFloor:
		return
	}
	if floor, err := n.Confirm(ctx); err == nil {
		_ = n.cfg.View.Wait(ctx, floor.Size) // the age tells
	}
}
