package projections

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

// A log that was restored from an older copy and written on has the same id and is
// as long, or longer. A view that comes back with a snapshot refuses it before it
// tells anyone anything, whatever event it is that differs.
func TestRestoredViewsRefuseAnotherHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		define := func(log events.Log) {
			logtest.Append(t, log, events.KeyspaceAggregate("ks"), &events.KeyspaceDefined{Definition: definition()})
		}
		ref := logtest.NewKeyRef("ks", "acme")
		log := logtest.NewMemLog()
		define(log)
		logtest.Append(t, log, ref.Aggregate(), logtest.Created("1"), &events.KeyRevoked{Code: events.RevokeCompromise})
		keys, dir := NewKeys(), NewDirectory()
		stop := follow(t.Context(), log, keys, dir)
		if err := errors.Join(keys.Wait(t.Context(), 3), dir.Wait(t.Context(), 3), skipCancel(stop())); err != nil {
			t.Fatal(err)
		}
		for longer := range 3 {
			other := logtest.NewMemLog() // the same until the revocation
			define(other)
			logtest.Append(t, other, ref.Aggregate(), logtest.Created("1"), &events.KeyRenamed{Before: events.Label{Name: "build"}, After: events.Label{Name: "x"}})
			for range longer {
				define(other)
			}
			k, d := reload(t, keys, LoadKeys), reload(t, dir, LoadDirectory)
			for _, v := range []events.Follower{k, d} {
				err := Follow(t.Context(), other, v)
				if corrupt := (*events.CorruptError)(nil); !errors.As(err, &corrupt) || corrupt.Seq != 3 || !strings.Contains(err.Error(), "not the log that this node has followed") {
					t.Errorf("%d events longer: follow ended with %v", longer, err)
				}
			}
			if k.At() != 0 || k.FreshAt() != 0 || d.At() != 0 {
				t.Errorf("a view that is not of the log says that it stands at %d and %d, fresh at %d", k.At(), d.At(), k.FreshAt())
			}
		}
		// The log itself is met again, and only then does the view say where it stands.
		k := reload(t, keys, LoadKeys)
		stop = follow(t.Context(), log, k, NewDirectory())
		if err := k.Wait(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // in the bubble
		if k.FreshAt() == 0 {
			t.Error("a view that is proven is not fresh")
		}
		if err := skipCancel(stop()); err != nil {
			t.Error(err)
		}
	})
}

// A restored view takes nothing before it has seen the event that it ends with.
func TestRestoredViewsBeginWithTheirLastEvent(t *testing.T) {
	w, v := rich(t)
	n := reload(t, v, LoadKeys)
	w.define("ks", definition())
	if err := n.Apply(w.log[len(w.log)-1:]); err == nil || n.At() != 0 {
		t.Errorf("at %d, %v", n.At(), err)
	}
}

func skipCancel(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
