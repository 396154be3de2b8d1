package receipts

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
)

// mute is a log with one node that has applied nothing, and never answers.
type mute struct {
	events.Leases
	asking, most atomic.Int64
}

func (*mute) Raise(context.Context, events.Head) error { return nil }

func (*mute) Nodes(context.Context, events.Seq) (events.NodeLeases, error) {
	return events.NodeLeases{Floor: events.Floor{Head: events.Head{Size: 9}, Seq: 2}, Unreadable: []events.NodeID{"n1"}}, nil
}

func (m *mute) Ask(ctx context.Context, _ events.Head, _ func(events.NodeLease)) error {
	n := m.asking.Add(1)
	for old := m.most.Load(); n > old && !m.most.CompareAndSwap(old, n); old = m.most.Load() {
	}
	<-ctx.Done()
	m.asking.Add(-1)
	return ctx.Err()
}

func (*mute) Listen(context.Context, func(events.Head)) error { panic("not asked") }

func (*mute) Say(events.NodeLease) error { panic("not asked") }

// However many wait, few ask the nodes, and each gets its receipt in its time.
func TestFewAskAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &mute{}
		issuer := NewIssuer(IssuerConfig{Nodes: NewObserver(m, quiet), Leases: m, Prompts: m, Control: "control-1", Logger: quiet})
		var all sync.WaitGroup
		for range 300 {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				began := time.Now()
				r, err := issuer.Issue(ctx, Change{Seq: 9})
				if err != nil || r.Complete || len(r.Nodes) != 1 || time.Since(began) > 11*time.Second {
					t.Errorf("after %s: %+v, %v", time.Since(began), r, err)
				}
			})
		}
		all.Wait()
		if n := m.most.Load(); n != waitsAtOnce {
			t.Errorf("%d asked at once, want %d", n, waitsAtOnce)
		}
	})
}
