package verifier

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// A floor of another history is met where the view stands, behind it or ahead of it.
// From then on no key is allowed, whatever the keyspace says of a stale node, and the
// node's lease ends with a sentence that names both roots.
func TestNodesRefuseAFloorOfAnotherHistory(t *testing.T) {
	for name, from := range map[string]int{"where it stands": 0, "behind": -2, "ahead": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, nil)
				open := scribeDefinition()
				open.Staleness.OnStale = "allow"
				w.define("open", open)
				a := w.key("closed", nil)
				w.keyIn("open", "acme", secretOf("open"), nil)
				decide := func() (reasons []events.Reason) {
					for _, word := range []string{"closed", "open"} {
						d := w.node.Decide(t.Context(), &Request{Secret: events.NewSecret(secretOf(word))})
						reasons = append(reasons, d.Reason)
					}
					return reasons
				}
				if got := decide(); got[0] != events.ReasonOK || got[1] != events.ReasonOK {
					t.Fatal(got)
				}
				at, root := w.view.Head()
				nodes, err := w.log.Nodes(t.Context(), 0)
				if want := (events.Head{Log: w.log.ID(), Size: at, Root: root}); err != nil || root.IsZero() || nodes.Leases[0].Applied != want {
					t.Errorf("the node's lease says %+v, want %+v, %v", nodes.Leases[0].Applied, want, err)
				}

				floor := events.Floor{Head: events.Head{Log: w.log.ID(), Size: events.Seq(int(at) + from), Root: events.Hash{1}}, Seq: 99}
				w.node.cfg.Leases = floored{w.log, floor}
				ended := make(chan error, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { ended <- w.node.RunLease(ctx) }()
				synctest.Wait()
				if from > 0 {
					if got := decide(); got[0] != events.ReasonOK {
						t.Errorf("before it gets there: %v", got)
					}
					logtest.Append(t, w.log, a, new(events.KeyDisabled))
					err = w.view.Apply(w.log.Records()[at:])
				} else {
					err = <-ended
				}
				corrupt := (*events.CorruptError)(nil)
				if !errors.As(err, &corrupt) || corrupt.Seq != floor.Size || !strings.Contains(err.Error(), floor.Root.String()[:16]) {
					t.Errorf("%v", err)
				}
				for range 3 {
					for i, got := range decide() {
						if got != events.ReasonVerifierStale {
							t.Errorf("decision %d: %s", i, got)
						}
					}
					time.Sleep(time.Second)
				}
				if from > 0 {
					err = <-ended // with the renewal after that
				}
				if ready := w.node.Ready(); !errors.As(err, &corrupt) || ready == nil || !strings.Contains(ready.Error(), floor.Root.String()[:16]) {
					t.Errorf("lease: %v, ready: %v", err, ready)
				}
				w.end()
			})
		})
	}
}

// floored is a log of leases whose floor another control has raised.
type floored struct {
	events.Leases
	floor events.Floor
}

func (f floored) Renew(ctx context.Context, l events.NodeLease) (events.LeaseGrant, error) {
	g, err := f.Leases.Renew(ctx, l)
	g.Floor = f.floor
	return g, err
}
