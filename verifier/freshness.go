package verifier

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
)

// never is the age of a node that holds no lease it may answer on.
const never = time.Duration(math.MaxInt64)

// Apply implements events.Follower. The node folds nothing.
func (n *Node) Apply([]events.Recorded) error { return nil }

// Fresh implements events.Follower: it notes how far this node's clock and that of
// the log's heartbeat are apart. No answer depends on it.
func (n *Node) Fresh(at events.Time, _ events.Seq) {
	n.offset.Store(int64(events.At(n.cfg.Now()) - at))
}

// ClockOffset returns how far this node's clock was ahead of the log's (of whoever
// publishes its heartbeat) when it was last heard of; behind is negative. It
// includes the heartbeat's way here, some milliseconds.
func (n *Node) ClockOffset() time.Duration {
	return time.Duration(n.offset.Load()) * time.Millisecond
}

// maxClockOffset is how far two synchronised clocks are apart at the most.
const maxClockOffset = 2 * time.Second

// Clock reports whether the node's clock agrees with the log's. Only the expiry of
// keys is judged by it: a node that is behind accepts expired keys for as long.
func (n *Node) Clock() error {
	switch d := n.ClockOffset(); {
	case d > maxClockOffset:
		return fmt.Errorf("the clock of this node is %s ahead of the log's: keys expire that much early", d.Round(time.Second))
	case d < -maxClockOffset:
		return fmt.Errorf("the clock of this node is %s behind the log's: keys expire that much late", -d.Round(time.Second))
	}
	return nil
}

// Staleness returns how old the view may be at now: the time since the node asked
// for the newest lease that its view has reached. What was acknowledged before that
// is in the view.
func (n *Node) Staleness(now time.Time) time.Duration {
	b := n.basis()
	if !b.ok {
		return never
	}
	return n.passed(now) - b.asked
}

// basis is what the freshness of one decision rests on: the lease that was held
// before the view was asked. A newer one says nothing about what was seen then.
type basis struct {
	grant
	ok bool
}

// basis returns what a decision of this moment rests on. A view that has never
// caught up with the log is no ground for any.
func (n *Node) basis() basis {
	g, ok := n.lease.held(n.cfg.View.At())
	return basis{g, ok && n.cfg.View.FreshAt() != 0}
}

// stale reports whether a decision on b is too old at now to answer req under the
// rules of the keyspace. A request can only tighten the keyspace's bound, and its
// own bound always denies. The life of the lease holds for every keyspace.
func (n *Node) stale(b *basis, req *Request, rules keyspace.Staleness, now time.Time) bool {
	if !b.ok || n.lease.ended.Load() {
		return true
	}
	age := n.passed(now) - b.asked
	if age > b.life || req.MaxStaleness > 0 && age > req.MaxStaleness {
		return true
	}
	return age > rules.MaxStaleness() && rules.OnStale != "allow"
}

// fresh reports whether the node holds a lease within the default bound, and
// otherwise why not.
func (n *Node) fresh() error {
	age := n.Staleness(n.cfg.Now())
	bound := keyspace.Staleness{}.MaxStaleness()
	if age <= bound {
		return nil
	}
	why := n.lease.fault()
	grants := *n.lease.grants.Load()
	switch {
	case ends(why):
		return why
	case n.lease.ended.Load():
		return errors.New("this node is stopping and has given its lease back")
	case why == nil && n.cfg.View.FreshAt() == 0:
		why = errors.New("the view has not caught up with the log yet")
	case why == nil && len(grants) > 0:
		why = fmt.Errorf("the view stands at %d, and commands are acknowledged up to %d", n.cfg.View.At(), grants[len(grants)-1].size)
	case why == nil:
		why = errors.New("the log of leases has not answered yet")
	}
	if age == never {
		return fmt.Errorf("this node holds no lease: %w", why)
	}
	return fmt.Errorf("this node's lease was last renewed %s ago: %w", age.Round(time.Millisecond), why)
}

// reach waits until the view has applied what the request has seen, WaitMax at
// most. A position of another log, or of another history of this one, is foreign: it
// is not compared.
func (n *Node) reach(ctx context.Context, p events.Position) (reached, foreign bool) {
	switch {
	case p == (events.Position{}):
		return true, false
	case p.Log != n.cfg.Log:
		return false, true
	}
	if n.cfg.View.At() < p.Seq {
		ctx, cancel := context.WithTimeout(ctx, n.cfg.WaitMax)
		defer cancel()
		if n.cfg.View.Wait(ctx, p.Seq) != nil {
			return false, false
		}
	}
	held := n.cfg.View.Holds(p)
	return held, !held
}

// foreignPosition is the fault of a request that names one.
func foreignPosition(path string) *api.Problem {
	return refused(input.FieldErrors{foreign(path + "min_position")})
}

func foreign(field string) input.FieldError {
	return input.FieldError{Field: field, Code: "foreign_position", Message: "a position of another log, or of another history of this log, which was restored from a copy: leave it out"}
}
