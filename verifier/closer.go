package verifier

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/keytrail/keytrail/events"
)

// LeaseList lists the leases of all nodes; events.Leases is one.
type LeaseList interface {
	Nodes(ctx context.Context, atLeast events.Seq) (events.NodeLeases, error)
}

// CloserConfig is what a closer needs. Sink, Leases and Log are required.
type CloserConfig struct {
	Sink   events.UseSink
	Leases LeaseList
	Log    events.LogID

	Every time.Duration // between two passes, default 10 s
	// Grace is for how long a node whose lease has run out, and whose record in the
	// use stream does not grow, is waited for. A node that is cut off holds its
	// decisions and stores them when it is back: past the grace they are lost, and it
	// is fenced. Default 15 min; less than events.KeepLease, after which the
	// record of the node's lease is gone.
	Grace  time.Duration
	Logger *slog.Logger // default slog.Default()
}

// Closer ends the epochs of nodes that do not return: a pod whose name nobody has
// again. It trusts no other clock: a lease has run out when its record has not
// changed for the lease's life by this process's own steady clock. Its gap is
// conditional on the record that it has read, as each append of the node is: if
// the node lives after all, one of the two is fenced, and no number is both on the
// record and in the gap. Several closers may run.
type Closer struct {
	cfg   CloserConfig
	floor events.Seq // of the newest list: a later one may not be older
	blind bool       // leases left no record when the list came last
	nodes map[events.NodeID]*absence
}

// absence is what a closer has seen of one node.
type absence struct {
	records map[events.InstanceID]sighting // live ones
	tail    sighting                       // the node's last message, since the lease has run out
	done    bool                           // nothing is to be written after it
}

// sighting is when a record was first seen, by the closer's steady clock.
type sighting struct {
	seq events.Seq
	at  time.Time
}

// NewCloser returns a closer that has seen nothing yet.
func NewCloser(cfg CloserConfig) *Closer {
	if cfg.Every <= 0 {
		cfg.Every = 10 * time.Second
	}
	if cfg.Grace <= 0 {
		cfg.Grace = 15 * time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Closer{cfg: cfg, nodes: map[events.NodeID]*absence{}}
}

// Run looks now and then until ctx ends, and returns nil. What fails is tried
// again.
func (c *Closer) Run(ctx context.Context) error {
	tick := time.NewTicker(c.cfg.Every)
	defer tick.Stop()
	for {
		if err := c.pass(ctx, time.Now()); err != nil && ctx.Err() == nil {
			c.cfg.Logger.WarnContext(ctx, "the epochs of nodes that are gone are not closed yet; trying again", slog.Any("err", err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// pass looks at every node once; asked is read from the steady clock before.
func (c *Closer) pass(ctx context.Context, asked time.Time) error {
	list, err := c.cfg.Leases.Nodes(ctx, c.floor)
	if err != nil {
		return err
	}
	seen := time.Now() // a list may be long on its way: what it holds was stored before this
	c.floor = list.Floor.Seq
	// While leases leave no record each run may be granted one, and might have been
	// until just before this list: its life is counted from here on, and then the grace.
	blind := list.Unrecorded || c.blind
	c.blind = list.Unrecorded
	newest := map[events.NodeID]events.StoredLease{} // its last record says the most
	listed := map[events.InstanceID]bool{}
	unsure := map[events.NodeID]bool{}
	for _, node := range list.Unreadable {
		unsure[node] = true
	}
	for _, l := range list.Leases {
		newest[l.Node], listed[l.Instance] = l, true
		if l.State == events.LeaseLive && !c.ranOut(&l, asked, seen, blind) {
			unsure[l.Node] = true
		}
	}
	var failed error
	for node, l := range newest {
		a := c.nodes[node]
		if a == nil {
			a = new(absence)
			c.nodes[node] = a
		}
		if unsure[node] {
			a.tail, a.done = sighting{}, false
			continue
		}
		if err := c.end(ctx, &l, a, asked); err != nil {
			failed = errors.Join(failed, fmt.Errorf("node %s: %w", node, err))
		}
	}
	for node, a := range c.nodes {
		if _, ok := newest[node]; !ok {
			delete(c.nodes, node)
		}
		maps.DeleteFunc(a.records, func(id events.InstanceID, _ sighting) bool { return !listed[id] })
	}
	return failed
}

// ranOut reports whether the lease's run may not answer any more: its record has
// stood there for the whole life, which began before it was stored. It was stored
// before seen, and a list that was asked for at asked still holds it. blind is whether
// the run may have been granted a lease that left no record.
func (c *Closer) ranOut(l *events.StoredLease, asked, seen time.Time, blind bool) bool {
	a := c.nodes[l.Node]
	if a == nil {
		a = new(absence)
		c.nodes[l.Node] = a
	}
	if a.records == nil {
		a.records = map[events.InstanceID]sighting{}
	}
	if a.records[l.Instance].seq != l.Seq || blind {
		a.records[l.Instance] = sighting{l.Seq, seen}
	}
	return asked.Sub(a.records[l.Instance].at) > l.Life()
}

// end writes how the node's epoch ended, once its record has not grown for the
// grace.
func (c *Closer) end(ctx context.Context, l *events.StoredLease, a *absence, now time.Time) error {
	m, ok, err := c.cfg.Sink.Tail(ctx, l.Node)
	if err != nil {
		return err
	}
	if !ok {
		return nil // nothing was recorded, or retention took it all
	}
	if a.tail.seq != m.Seq {
		a.tail, a.done = sighting{m.Seq, now}, false
	}
	if a.done || now.Sub(a.tail.at) < c.cfg.Grace {
		return nil
	}
	last, err := events.DecodeUses(m.Data)
	if err != nil || last.Node != l.Node || last.Log != c.cfg.Log {
		a.done = true // the auditor sets it aside
		return nil
	}
	gaps := lostEnd(&last, l, m.Stored)
	for i := range gaps {
		data, err := events.EncodeUses(&gaps[i])
		if err != nil {
			return err
		}
		if a.tail.seq, err = c.cfg.Sink.Publish(ctx, l.Node, rand.Text(), a.tail.seq, data); err != nil {
			a.tail = sighting{} // whatever stands there now: it is looked at anew
			return err
		}
	}
	if len(gaps) > 0 {
		c.cfg.Logger.WarnContext(ctx, "a node is gone and did not close its epoch: its end is recorded as a gap", slog.String("node", string(l.Node)),
			slog.Int64("epoch", last.Epoch), slog.Uint64("first", gaps[0].First), slog.Uint64("known_lost", gaps[0].Count))
	}
	a.done = true
	return nil
}

// lostEnd returns the gaps that belong after last, the last message of a node that
// is gone: the decisions which its lease says it had numbered, and an unknown
// number that it may have made since, until its lease ran out.
//
//	crash between the two: the next pass, or the node's next start, finds the first.
func lostEnd(last *events.UseBatch, l *events.StoredLease, stored events.Time) []events.UseBatch {
	rest, lost := missingEnd(last, stored.Add(l.Life()))
	if !lost {
		return nil
	}
	rest.Note = "the node stopped without closing its epoch, and did not return"
	if l.Epoch != last.Epoch || l.Decisions < rest.First {
		return []events.UseBatch{rest}
	}
	known := rest
	known.Count = min(l.Decisions-rest.First+1, events.MaxTally)
	rest.First += known.Count
	return []events.UseBatch{known, rest}
}
