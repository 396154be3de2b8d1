package logtest

import (
	"context"
	"fmt"
	"sync"

	"github.com/keytrail/keytrail/events"
)

// Op is one kind of call that a test can make fail or pause.
type Op int

// The operations.
const (
	OpAppend Op = iota
	OpLoad
	OpLast
	OpPublish
	OpTail
	OpReadUses
	OpMark
	OpTimer // Set and Rearm
	OpRaise
	OpRenew // its faults are ErrUnavailable, stored or not: there is no grant either way
	OpRelease
	OpNodes
	numOps
)

// Fault is how a call goes wrong. For calls that store nothing anyway (Load,
// Last, Tail, ReadUses, Mark) every fault is the error alone.
type Fault int

// The faults. The two halves of Unknown look the same to the caller.
const (
	Unavailable      Fault = iota // ErrUnavailable, nothing stored
	Full                          // ErrFull, nothing stored
	UnknownNotStored              // ErrUnknownOutcome, nothing stored
	UnknownStored                 // ErrUnknownOutcome, and yet stored
)

func (f Fault) err(op Op) error {
	switch f {
	case Full:
		return events.ErrFull
	case UnknownNotStored, UnknownStored:
		if op == OpRenew || op == OpRelease {
			return events.ErrUnavailable
		}
		return events.ErrUnknownOutcome
	}
	return events.ErrUnavailable
}

// Point is the side of the effect on which a pause holds a call.
type Point int

// The points.
const (
	BeforeEffect Point = iota
	AfterEffect        // stored, not yet answered
)

// Pause holds one call. The test waits for Entered, looks around, then Resumes.
type Pause struct {
	point   Point
	entered chan struct{}
	resume  chan struct{}
	once    sync.Once
}

// Entered is closed when the call has reached the pause.
func (p *Pause) Entered() <-chan struct{} { return p.entered }

// Resume lets the call go on. It may be called more than once.
func (p *Pause) Resume() { p.once.Do(func() { close(p.resume) }) }

// FailNext makes the next call of op that has no fault yet fail with f. Calls
// queue: two FailNext spoil the next two calls.
func (l *MemLog) FailNext(op Op, f Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults[op] = append(l.faults[op], f)
}

// ClearFaults forgets the faults that wait for their calls.
func (l *MemLog) ClearFaults() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = [numOps][]Fault{}
}

// PauseNext holds the next call of op at p until the test resumes it or the
// call's context ends.
func (l *MemLog) PauseNext(op Op, p Point) *Pause {
	l.mu.Lock()
	defer l.mu.Unlock()
	pause := &Pause{point: p, entered: make(chan struct{}), resume: make(chan struct{})}
	l.pauses[op] = append(l.pauses[op], pause)
	return pause
}

// SetDown cuts the log off, or brings it back. While it is down calls answer
// ErrUnavailable, and Follow and Due stand still without a heartbeat.
func (l *MemLog) SetDown(down bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = down
	l.wake()
}

// Break makes Load and Follow return err from now on, as a log does whose
// stored events contradict its promises.
func (l *MemLog) Break(err *events.CorruptError) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = err
	l.wake()
}

// call runs one operation: pause, fault, effect (under the lock), pause, answer.
func (l *MemLog) call(ctx context.Context, op Op, effect func() error) error {
	fault, pause := l.next(op)
	if pause != nil && pause.point == BeforeEffect {
		pause.hold(ctx)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", events.ErrUnavailable, context.Cause(ctx))
	}
	if fault != nil && *fault != UnknownStored {
		return fault.err(op)
	}
	if err := l.locked(effect); err != nil {
		return err
	}
	if pause != nil && pause.point == AfterEffect {
		pause.hold(ctx)
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", events.ErrUnknownOutcome, context.Cause(ctx))
		}
	}
	if fault != nil {
		return fault.err(op)
	}
	return nil
}

func (l *MemLog) locked(effect func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return events.ErrUnavailable
	}
	return effect()
}

// next takes the fault and the pause that wait for op.
func (l *MemLog) next(op Op) (f *Fault, p *Pause) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if q := l.faults[op]; len(q) > 0 {
		first := q[0]
		f, l.faults[op] = &first, q[1:]
	}
	if q := l.pauses[op]; len(q) > 0 {
		p, l.pauses[op] = q[0], q[1:]
	}
	return f, p
}

func (p *Pause) hold(ctx context.Context) {
	close(p.entered)
	select {
	case <-p.resume:
	case <-ctx.Done():
	}
}
