package limits

import (
	"context"
	"sync"

	"github.com/keytrail/keytrail/events"
)

// inbox keeps the asks that wait to be read, and gives them out node by node: a node that
// floods delays the others by one ask each. It is safe for concurrent use.
type inbox struct {
	mu    sync.Mutex
	asks  map[events.NodeID][][]byte // never an empty list; guarded by mu
	turns []events.NodeID            // the nodes of asks, in their turn; guarded by mu
	more  chan struct{}              // of capacity 1
}

// inboxEach is how many asks of one node are kept. A node has one in flight: all older
// ones are given up.
const inboxEach = 4

func newInbox() *inbox {
	return &inbox{asks: map[events.NodeID][][]byte{}, more: make(chan struct{}, 1)}
}

// put adds an ask of the node's; if there are too many the oldest one is dropped.
func (b *inbox) put(node events.NodeID, ask []byte) {
	if len(ask) > maxMessage {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.asks[node]
	if len(list) == 0 {
		b.turns = append(b.turns, node)
	}
	if len(list) == inboxEach {
		copy(list, list[1:])
		list = list[:inboxEach-1]
	}
	b.asks[node] = append(list, ask)
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// next returns the oldest ask of the node whose turn it is, false if there is none.
func (b *inbox) next() (node events.NodeID, ask []byte, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.turns) == 0 {
		return "", nil, false
	}
	node = b.turns[0]
	list := b.asks[node]
	ask = list[0]
	b.turns = b.turns[1:]
	if list = list[1:]; len(list) == 0 {
		delete(b.asks, node)
	} else {
		b.asks[node] = list
		b.turns = append(b.turns, node)
	}
	return node, ask, true
}

// run calls serve for each ask until ctx ends.
func (b *inbox) run(ctx context.Context, serve func(events.NodeID, []byte)) {
	for ctx.Err() == nil {
		if node, ask, ok := b.next(); ok {
			serve(node, ask)
			continue
		}
		select {
		case <-ctx.Done():
		case <-b.more:
		}
	}
}
