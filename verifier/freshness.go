package verifier

import (
	"context"
	"math"
	"time"

	"github.com/keytrail/keytrail/events"
)

// never is the staleness of a node that has not caught up with the log yet.
const never = time.Duration(math.MaxInt64)

// Apply implements events.Follower. The node folds nothing: it stands behind
// the view in the same Follow to hear that the log is alive.
func (n *Node) Apply([]events.Recorded) error { return nil }

// Fresh implements events.Follower: it notes when, by this node's own steady
// clock, the log last said where it ends.
func (n *Node) Fresh(events.Time, events.Seq) {
	n.heard.Store(1 + int64(n.cfg.Now().Sub(n.started)))
}

// Staleness returns how old the view may be at now: the longer of the time since
// the log's clock at the last heartbeat, and the time since that heartbeat came
// in by this node's own steady clock. The first catches a follower that lags,
// the second a node whose clock is behind the log's.
func (n *Node) Staleness(now time.Time) time.Duration {
	at, heard := n.cfg.View.FreshAt(), n.heard.Load()
	if at == 0 || heard == 0 {
		return never
	}
	byLog := time.Duration(events.At(now)-at) * time.Millisecond
	return max(byLog, now.Sub(n.started)-time.Duration(heard-1), 0)
}

// stale reports whether the view is too old to answer req under the rules of
// the keyspace. A request can only tighten the keyspace's bound, and its own
// bound always denies.
func (n *Node) stale(req *Request, rules events.Staleness, now time.Time) bool {
	s := n.Staleness(now)
	if req.MaxStaleness > 0 && s > req.MaxStaleness {
		return true
	}
	if s == never {
		return true // there is nothing yet that could be trusted
	}
	return s > rules.MaxStaleness() && rules.OnStale != "allow"
}

// reach waits until the view has applied what the request has seen, WaitMax at
// most. It reports false for a position of another log, and for one that does
// not come.
func (n *Node) reach(ctx context.Context, p events.Position) bool {
	if p == (events.Position{}) {
		return true
	}
	if p.Log != n.cfg.Log {
		return false
	}
	if n.cfg.View.At() >= p.Seq {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.WaitMax)
	defer cancel()
	return n.cfg.View.Wait(ctx, p.Seq) == nil
}
