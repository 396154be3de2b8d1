package logtest

import (
	"context"
	"sync"

	"github.com/keytrail/keytrail/events"
)

// limitMail is the mail about limits of the in-memory log.
type limitMail struct {
	mu    sync.Mutex
	asked map[chan letter]bool                   // guarded by mu
	heard map[events.NodeID]map[chan letter]bool // guarded by mu
}

type letter struct {
	node events.NodeID
	body string
}

// AskLimits implements events.LimitMail.
func (l *MemLog) AskLimits(node events.NodeID, ask []byte) error {
	tell(&l.limits.mu, &l.limits.asked, letter{node, string(ask)})
	return nil
}

// ServeLimits implements events.LimitMail.
func (l *MemLog) ServeLimits(ctx context.Context, asked func(events.NodeID, []byte)) error {
	letters := make(chan letter, 1024)
	defer listen(&l.limits.mu, &l.limits.asked, letters)()
	return receive(ctx, letters, func(m letter) { asked(m.node, []byte(m.body)) })
}

// AnswerLimits implements events.LimitMail.
func (l *MemLog) AnswerLimits(node events.NodeID, answer []byte) error {
	l.limits.mu.Lock()
	defer l.limits.mu.Unlock()
	for ch := range l.limits.heard[node] {
		select {
		case ch <- letter{node, string(answer)}:
		default:
		}
	}
	return nil
}

// HearLimits implements events.LimitMail.
func (l *MemLog) HearLimits(ctx context.Context, node events.NodeID, heard func([]byte)) error {
	letters := make(chan letter, 1024)
	l.limits.mu.Lock()
	if l.limits.heard == nil {
		l.limits.heard = map[events.NodeID]map[chan letter]bool{}
	}
	if l.limits.heard[node] == nil {
		l.limits.heard[node] = map[chan letter]bool{}
	}
	l.limits.heard[node][letters] = true
	l.limits.mu.Unlock()
	defer func() {
		l.limits.mu.Lock()
		defer l.limits.mu.Unlock()
		delete(l.limits.heard[node], letters)
	}()
	return receive(ctx, letters, func(m letter) { heard([]byte(m.body)) })
}

// receive calls f for each letter until ctx ends.
func receive(ctx context.Context, letters <-chan letter, f func(letter)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-letters:
			f(m)
		}
	}
}
