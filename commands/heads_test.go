package commands_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
)

// Each command raises the floor to a head of the view, with its root.
func TestFloorsHaveRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldAt(t, new(clock))
		n := w.node("one")
		defer expirers(w, n.dir, 1)()
		if nodes, err := w.log.Nodes(t.Context(), 0); err != nil || nodes.Floor.Size == 0 || !nodes.Floor.Root.IsZero() {
			t.Errorf("floor %+v after the bootstrap, %v", nodes.Floor, err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- n.Run(ctx) }()
		synctest.Wait()
		at, root := n.dir.Head()
		if nodes, err := w.log.Nodes(t.Context(), 0); err != nil || nodes.Floor.Head != (events.Head{Log: w.log.ID(), Size: at, Root: root}) {
			t.Errorf("floor %+v after the start of a control, %v, want %d with root %s", nodes.Floor, err, at, root)
		}
		if stop(); <-ended != context.Canceled {
			t.Error("it did not end with its context")
		}
		w.define(n, "acme", acme)
		for _, name := range []string{"a", "b", "c"} {
			w.create(n, "acme", commands.Create{Tenant: "t1", Name: name, ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("60s")}})
			sleep(2 * 60e9) // it expires
			at, root := n.dir.Head()
			if nodes, err := w.log.Nodes(t.Context(), 0); err != nil || root.IsZero() || nodes.Floor.Head != (events.Head{Log: w.log.ID(), Size: at, Root: root}) {
				t.Errorf("floor %+v, %v, want %d with root %s", nodes.Floor, err, at, root)
			}
		}
	})
}

// A control whose view is of another history than the floor that another control has
// raised decides nothing and shows nothing, and neither does its expirer.
func TestControlRefusesAFloorOfAnotherHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldAt(t, new(clock))
		var other *events.Floor
		n := w.nodeWith("one", func(cfg *commands.Config) {
			proved := cfg.Confirm
			cfg.Confirm = func(ctx context.Context) (events.Floor, error) {
				if other != nil {
					return *other, nil
				}
				return proved(ctx)
			}
		})
		defer expirers(w, n.dir, 1)()
		w.define(n, "acme", acme)
		key := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "a", ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("60s")}}).Key
		size := len(w.log.Records())
		other = &events.Floor{Head: events.Head{Log: w.log.ID(), Size: events.Seq(size), Root: events.Hash{1}}, Seq: 9}
		corrupt := (*events.CorruptError)(nil)
		if err := n.Run(t.Context()); !errors.As(err, &corrupt) {
			t.Errorf("run: %v", err)
		}
		for range 2 {
			_, err := n.Change(t.Context(), w.call("", ""), "revoke", key.ID, new(commands.Revoke))
			if !errors.Is(err, events.ErrUnavailable) || !errors.As(err, &corrupt) || corrupt.Seq != other.Size || !strings.Contains(err.Error(), "another history") {
				t.Errorf("revoke: %v", err)
			}
			r := httptest.NewRequest("GET", "/v1/keys/"+key.ID.String(), nil)
			r.Header.Set("Authorization", "Bearer "+w.root.Reveal())
			rec := httptest.NewRecorder()
			n.mux.ServeHTTP(rec, r)
			if rec.Code != 503 || !strings.Contains(rec.Body.String(), "another history") || strings.Contains(rec.Body.String(), "active") {
				t.Errorf("get: %d %s", rec.Code, rec.Body)
			}
			sleep(2 * 60e9)
		}
		if len(w.log.Records()) != size {
			t.Errorf("%d events were written", len(w.log.Records())-size)
		}
	})
}
