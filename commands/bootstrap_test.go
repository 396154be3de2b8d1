package commands_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

func rootSecret(t *testing.T, seed byte) events.Secret {
	t.Helper()
	def := events.BuiltinDefinition()
	s, err := commands.NewSecret(&def.KeyTypes[0], "", newDice(seed))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestBootstrap(t *testing.T) {
	log, secret := logtest.New(t), rootSecret(t, 1)
	var first events.KeyID
	for range 3 {
		id, err := commands.Bootstrap(t.Context(), log, secret, t0)
		if err != nil {
			t.Fatal(err)
		}
		if first.IsZero() {
			first = id
		}
		if id != first {
			t.Errorf("another id: %s", id)
		}
	}
	if n := len(log.Records()); n != 2 {
		t.Errorf("%d events, want the keyspace and the key", n)
	}
	// Another secret is another key: the way back in.
	if id, err := commands.Bootstrap(t.Context(), log, rootSecret(t, 2), t0); err != nil || id == first {
		t.Errorf("second root: %s, %v", id, err)
	}
	history, err := log.Load(t.Context(), events.KeyAggregate(events.Builtin, events.RootTenant, first))
	if err != nil {
		t.Fatal(err)
	}
	k, err := events.FoldKey(history)
	if err != nil || k.Digest != secret.Digest() || k.Label.Name != "root" || k.Grant.Scopes[0] != events.ScopeAdmin {
		t.Errorf("%+v, %v", k, err)
	}
	if _, err := commands.Bootstrap(t.Context(), log, events.NewSecret("kt_short"), t0); err == nil {
		t.Error("a secret of another form is taken")
	}
}

// TestBootstrapFaults meets every fault at every call, and is then run again.
func TestBootstrapFaults(t *testing.T) {
	for _, op := range []logtest.Op{logtest.OpAppend, logtest.OpLoad} {
		for _, f := range []logtest.Fault{logtest.Unavailable, logtest.Full, logtest.UnknownNotStored, logtest.UnknownStored} {
			synctest.Test(t, func(t *testing.T) {
				log, secret := logtest.New(t), rootSecret(t, 1)
				log.FailNext(op, f)
				_, err := commands.Bootstrap(t.Context(), log, secret, t0)
				if settled := op == logtest.OpAppend && (f == logtest.UnknownNotStored || f == logtest.UnknownStored); settled != (err == nil) {
					t.Errorf("err = %v", err)
				}
				if _, err := commands.Bootstrap(t.Context(), log, secret, t0); err != nil {
					t.Error(err)
				}
				if n := len(log.Records()); n != 2 {
					t.Errorf("%d events", n)
				}
			})
		}
	}
}

// TestBootstrapRaces lets several processes start at once.
func TestBootstrapRaces(t *testing.T) {
	log, secret := logtest.New(t), rootSecret(t, 1)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := commands.Bootstrap(t.Context(), log, secret, t0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(log.Records()); n != 2 {
		t.Errorf("%d events", n)
	}
}

// TestBootstrapUpgrade writes a newer built-in definition as a new version.
func TestBootstrapUpgrade(t *testing.T) {
	log, secret := logtest.New(t), rootSecret(t, 1)
	old := events.BuiltinDefinition()
	old.Title = "of an older release"
	logtest.Append(t, log, events.KeyspaceAggregate(events.Builtin), &events.KeyspaceDefined{Definition: old})
	if _, err := commands.Bootstrap(t.Context(), log, secret, t0); err != nil {
		t.Fatal(err)
	}
	records := log.Records()
	d, ok := records[1].Data.(*events.KeyspaceDefined)
	if len(records) != 3 || !ok || d.Before == nil || d.Before.Title != old.Title {
		t.Errorf("%d events; the second is %s", len(records), records[1].Type())
	}
}

// behind is a log whose end is answered one event too early, as a server may that has
// just become the leader.
type behind struct{ *logtest.MemLog }

func (b behind) Last(ctx context.Context) (events.Seq, error) {
	last, err := b.MemLog.Last(ctx)
	return max(last, 1) - 1, err
}

func TestBootstrapAcknowledgesWhatItWrote(t *testing.T) {
	log := logtest.New(t)
	if _, err := commands.Bootstrap(t.Context(), behind{log}, rootSecret(t, 1), t0); err != nil {
		t.Fatal(err)
	}
	nodes, err := log.Nodes(t.Context(), 0)
	if n := len(log.Records()); err != nil || int(nodes.Floor.Size) != n {
		t.Errorf("the floor is %d after %d events, %v", nodes.Floor.Size, n, err)
	}
}
