package logtest

import (
	"context"
	"sync"
	"time"

	"github.com/keytrail/keytrail/events"
)

// prompts are the listeners of the in-memory log.
type prompts struct {
	mu    sync.Mutex
	asked map[chan events.Head]bool      // guarded by mu
	heard map[chan events.NodeLease]bool // guarded by mu
}

// Ask implements events.Prompts.
func (l *MemLog) Ask(ctx context.Context, h events.Head, heard func(events.NodeLease)) error {
	answers := make(chan events.NodeLease, 256)
	defer listen(&l.prompts.mu, &l.prompts.heard, answers)()
	for {
		tell(&l.prompts.mu, &l.prompts.asked, h)
		again := time.NewTimer(time.Second)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				again.Stop()
				return ctx.Err()
			case a := <-answers:
				heard(a)
			case <-again.C:
				waiting = false
			}
		}
	}
}

// Listen implements events.Prompts.
func (l *MemLog) Listen(ctx context.Context, asked func(events.Head)) error {
	questions := make(chan events.Head, 256)
	defer listen(&l.prompts.mu, &l.prompts.asked, questions)()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case h := <-questions:
			asked(h)
		}
	}
}

// Say implements events.Prompts.
func (l *MemLog) Say(lease events.NodeLease) error {
	tell(&l.prompts.mu, &l.prompts.heard, lease)
	return nil
}

func listen[T any](mu *sync.Mutex, set *map[chan T]bool, ch chan T) (stop func()) {
	mu.Lock()
	defer mu.Unlock()
	if *set == nil {
		*set = map[chan T]bool{}
	}
	(*set)[ch] = true
	return func() {
		mu.Lock()
		defer mu.Unlock()
		delete(*set, ch)
	}
}

// tell drops what a listener has no room for.
func tell[T any](mu *sync.Mutex, set *map[chan T]bool, v T) {
	mu.Lock()
	defer mu.Unlock()
	for ch := range *set {
		select {
		case ch <- v:
		default:
		}
	}
}
