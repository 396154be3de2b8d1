package commands

import (
	"cmp"
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

func (n name) compare(m name) int {
	return cmp.Or(cmp.Compare(n.keyspace, m.keyspace), cmp.Compare(n.tenant, m.tenant), cmp.Compare(n.name, m.name))
}

// takeAll takes each of the names, which are sorted and none twice: whoever waits holds
// only names before the one it waits for.
func (n *names) takeAll(ctx context.Context, ws []name) (release func(), err error) {
	for i, w := range ws {
		if _, err := n.take(ctx, w); err != nil {
			n.releaseAll(ws[:i])
			return nil, err
		}
	}
	return func() { n.releaseAll(ws) }, nil
}

func (n *names) releaseAll(ws []name) {
	for _, w := range ws {
		n.release(w)
	}
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
