package verifier

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// A node answers who has applied an event at once if it has, else as soon as its view
// holds it; a question that never comes true holds up no other. After the end of its
// lease it says nothing.
func TestAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- w.node.RunAnswers(ctx, w.log) }()
		synctest.Wait()
		ask := func(size events.Seq, within time.Duration) (heard []events.NodeLease) {
			ctx, cancel := context.WithTimeout(ctx, within)
			defer cancel()
			if err := w.log.Ask(ctx, events.Head{Log: w.log.ID(), Size: size}, func(l events.NodeLease) { heard = append(heard, l) }); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			return heard
		}
		at := w.view.At()
		if got := ask(at, time.Millisecond); len(got) != 1 || got[0].Node != testNode || got[0].Instance != w.node.lease.instance || got[0].Applied.Size != at || got[0].Validate() != nil {
			t.Errorf("applied already: %+v", got)
		}
		for range 2 * maxQuestions {
			if got := ask(at+1000, time.Millisecond); len(got) > 0 {
				t.Errorf("not applied: %+v", got)
			}
		}
		if got := ask(at, time.Millisecond); len(got) != 1 {
			t.Errorf("with questions that wait: %+v", got)
		}
		time.Sleep(2 * questionWait)
		last := logtest.Append(t, w.log, events.KeyspaceAggregate("other"), &events.KeyspaceDefined{Definition: scribeDefinition()})
		time.AfterFunc(300*time.Millisecond, w.fold)
		if got := ask(last, 500*time.Millisecond); len(got) != 1 || got[0].Applied.Size != last {
			t.Errorf("applied meanwhile: %+v", got)
		}
		w.node.lease.ended.Store(true)
		if got := ask(last, time.Millisecond); len(got) > 0 {
			t.Errorf("after the end: %+v", got)
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// A record names the longest life of all leases that a decision may still rest on,
// and the floor of the first one.
func TestRecordNamesTheLongestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(cfg *NodeConfig) { cfg.StaleCeiling = 20 * time.Second })
		defer w.stop()
		first := events.Seq(w.node.lease.first.Load())
		life := func() time.Duration {
			t.Helper()
			w.heartbeat()
			n, err := w.log.Nodes(t.Context(), 0)
			if err != nil || len(n.Leases) != 1 || n.Leases[0].First != first || first == 0 {
				t.Fatal(n, err, first)
			}
			return n.Leases[0].Life()
		}
		if got := life(); got != 20*time.Second {
			t.Errorf("life %s", got)
		}
		time.Sleep(5 * time.Second)
		w.node.cfg.StaleCeiling = 10 * time.Second
		for range 3 { // while a lease of 20 s lives
			if got := life(); got != 20*time.Second {
				t.Errorf("life %s with a lease of 20 s that lives", got)
			}
			time.Sleep(4 * time.Second)
		}
		time.Sleep(8*time.Second + time.Millisecond)
		if got := life(); got != 10*time.Second {
			t.Errorf("life %s when it is over", got)
		}
		w.node.cfg.StaleCeiling = 30 * time.Second
		if got := life(); got != 30*time.Second {
			t.Errorf("life %s once it is longer", got)
		}
	})
}

// A decision that is on its way while the view takes a revocation is not told as an
// allowance: the node may have said meanwhile that it has applied it. Any other event
// leaves it as it is.
func TestDecisionOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.stop()
		a := w.key("word", nil)
		req := &Request{Secret: events.NewSecret(secretOf("word"))}
		for _, c := range []struct {
			what string
			do   func()
			want events.Reason
		}{
			{"nothing", func() {}, events.ReasonOK},
			{"another key", func() { w.key("another", nil) }, events.ReasonOK},
			{"a revocation", func() { w.put(a, &events.KeyRevoked{Code: events.RevokeCompromise}) }, events.ReasonVerifierStale},
		} {
			j := w.node.judge(t.Context(), req)
			c.do()
			if w.node.settle(&j, req); j.Reason != c.want {
				t.Errorf("%s while the decision is on its way: %s, want %s", c.what, j.Reason, c.want)
			}
		}
	})
}
