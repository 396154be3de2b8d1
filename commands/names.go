package commands

import (
	"context"
	"fmt"
	"sync"

	"github.com/keytrail/keytrail/events"
)

// names lets the requests for one name wait for each other, so that this node
// never gives one name twice.
type names struct {
	mu   sync.Mutex
	held map[name]chan struct{} // guarded by mu; closed when the name is let go
}

type name struct {
	keyspace events.KeyspaceID
	tenant   events.TenantID
	name     string
}

// take waits until nobody else on this node works with the name, or ctx ends.
func (n *names) take(ctx context.Context, w name) (release func(), err error) {
	for {
		busy := n.tryTake(w)
		if busy == nil {
			return func() { n.release(w) }, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", events.ErrUnavailable, context.Cause(ctx))
		}
	}
}

func (n *names) tryTake(w name) (busy <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ch, ok := n.held[w]; ok {
		return ch
	}
	if n.held == nil {
		n.held = map[name]chan struct{}{}
	}
	n.held[w] = make(chan struct{})
	return nil
}

func (n *names) release(w name) {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.held[w])
	delete(n.held, w)
}
