package commands_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
)

// interrupted is a log before whose next append something else happens.
type interrupted struct {
	events.Log
	before func()
}

func (l *interrupted) Append(ctx context.Context, writes ...events.Write) (events.Seq, error) {
	if before := l.before; before != nil {
		l.before = nil
		before()
	}
	return l.Log.Append(ctx, writes...)
}

// TestLastAdministratorsDisableEachOther: two administrators that disable each
// other at one moment do not both succeed. The command that comes second is decided
// on what the first one did.
func TestLastAdministratorsDisableEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		log := &interrupted{Log: w.log}
		n := w.nodeWith("one", func(c *commands.Config) { c.Log = log })
		other := w.create(n, events.Builtin, commands.Create{Tenant: events.RootTenant, Name: "other", Scopes: &[]string{events.ScopeAdmin}})
		second := make(chan error, 1)
		log.before = func() {
			go func() {
				call := w.call("", "")
				call.Principal.Actor.ID = other.Key.ID.String()
				_, err := n.Change(t.Context(), call, "test", w.rootID, new(commands.Disable))
				second <- err
			}()
			synctest.Wait() // until it is done, or waits its turn
		}
		if _, err := n.Change(t.Context(), w.call("", ""), "test", other.Key.ID, new(commands.Disable)); err != nil {
			t.Error(err)
		}
		if err := <-second; codeOf(err) != "beyond_own_power" {
			t.Errorf("the disabled administrator's own command: %v, want beyond_own_power", err)
		}
	})
}
