package projections

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
)

// position is how far a view has applied the log, with a bell for those who
// wait. It is published after the data (P2).
type position struct {
	at atomic.Uint64

	mu     sync.Mutex
	bell   chan struct{} // guarded by mu: non-nil while someone waits, closed when at reaches lowest
	lowest events.Seq    // guarded by mu: the nearest position that someone waits for
}

// At returns the position: everything up to it has been applied. Of a view that
// was restored from a snapshot it is 0 until the log has shown the event that the
// snapshot ends with, and of one that was folded from another history it is 0 for
// good (P8): nobody answers from a history that is not the log's.
func (p *position) At() events.Seq { return events.Seq(p.at.Load()) }

// Wait returns when At() >= s, or with ctx's error.
func (p *position) Wait(ctx context.Context, s events.Seq) error {
	for p.At() < s {
		select {
		case <-p.ring(s):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ring returns a channel that closes when at reaches s, or before.
func (p *position) ring(s events.Seq) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.At() >= s { // advance may have passed between the caller's look and the lock
		done := make(chan struct{})
		close(done)
		return done
	}
	if p.bell == nil {
		p.bell, p.lowest = make(chan struct{}), s
	}
	p.lowest = min(p.lowest, s)
	return p.bell
}

// withdraw takes the position back.
func (p *position) withdraw() { p.at.Store(0) }

// advance publishes s. Everything up to s must be visible already.
func (p *position) advance(s events.Seq) {
	p.at.Store(uint64(s))
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bell != nil && s >= p.lowest {
		close(p.bell)
		p.bell = nil
	}
}
