// Package flight lets concurrent callers share one run of a slow operation, as a
// group commit does.
package flight

import (
	"context"
	"sync"
)

// Group runs one operation at a time. The zero Group is ready. It is safe for
// concurrent use.
type Group[T any] struct {
	mu   sync.Mutex
	next *run[T] // has not begun; guarded by mu
	busy bool    // a goroutine makes the runs; guarded by mu
}

type run[T any] struct {
	done  chan struct{}
	value T     // set before done is closed
	err   error // set before done is closed
}

// Do returns what a run of f that begins after the call of Do comes to, or ctx's
// error when ctx ends first. Callers that wait for the same run share it, so their
// f must do the same. f gets a context that no caller ends: it bounds itself.
func (g *Group[T]) Do(ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	g.mu.Lock()
	if g.next == nil {
		g.next = &run[T]{done: make(chan struct{})}
	}
	r := g.next
	if !g.busy {
		g.busy = true
		go g.runs(context.WithoutCancel(ctx), f)
	}
	g.mu.Unlock()
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// runs makes the runs that are asked for, and ends when none is.
func (g *Group[T]) runs(ctx context.Context, f func(context.Context) (T, error)) {
	for {
		g.mu.Lock()
		r := g.next
		g.next = nil
		g.busy = r != nil
		g.mu.Unlock()
		if r == nil {
			return
		}
		r.value, r.err = f(ctx)
		close(r.done)
	}
}
