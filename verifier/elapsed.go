package verifier

import (
	"sync"
	"sync/atomic"
	"time"
)

// elapsed measures time by the two clocks of a machine, so that it never shows less
// than what has passed. The steady clock cannot be set, but stands still while the
// machine is suspended. The wall clock goes on then, but can be set. Over each short
// step the longer of the two counts: a wall clock that is set back hides no suspension
// but one of the same step. It is safe for concurrent use.
type elapsed struct {
	base atomic.Pointer[reading]
	mu   sync.Mutex // of who moves base
}

// markEvery is how long a step is while the process runs.
const markEvery = 200 * time.Millisecond

// reading is what the clocks say at one moment.
type reading struct {
	steady time.Duration // since the node's start
	wall   time.Duration // since 1970
	passed time.Duration // since the node's start
}

// at returns how much time has passed when the clocks read r: since the same origin
// in every call, and never less than at a mark before.
func (e *elapsed) at(r reading) time.Duration {
	b := e.base.Load()
	return b.passed + max(r.steady-b.steady, r.wall-b.wall, 0)
}

// mark begins a new step at r and returns how much time has passed. What is measured
// from a mark is never measured too short; what is measured from another reading may
// be, when the wall clock was set within that step.
func (e *elapsed) mark(r reading) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	r.passed = e.at(r)
	e.base.Store(&r)
	return r.passed
}

// clocks reads both clocks; now is one reading of the configured clock.
func (n *Node) clocks(now time.Time) reading {
	r := reading{steady: now.Sub(n.started), wall: time.Duration(now.UnixNano())}
	if n.cfg.Steady != nil {
		r.steady = n.cfg.Steady()
	}
	return r
}

// passed returns how much time has passed since the node's start, at now.
func (n *Node) passed(now time.Time) time.Duration { return n.elapsed.at(n.clocks(now)) }
