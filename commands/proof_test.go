package commands_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestNotAcknowledged keeps the floor where it is: the command is stored and says
// that its outcome is not known, and the retry acknowledges it.
func TestNotAcknowledged(t *testing.T) {
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				n := w.node("one")
				w.define(n, "acme", acme)
				key := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "given"}).Key.ID
				before := len(w.log.Records())
				for range 50 {
					w.log.FailNext(logtest.OpRaise, logtest.UnknownNotStored)
				}
				began := time.Now()
				done, err := s.do(t.Context(), n, w.call("k1", s.name), key)
				if !errors.Is(err, events.ErrUnknownOutcome) || !done.Secret.IsZero() || time.Since(began) > 11*time.Second {
					t.Errorf("%+v, %v after %s: want an unknown outcome", done, err, time.Since(began))
				}
				if got := len(w.log.Records()) - before; got != s.events {
					t.Errorf("%d events, want %d", got, s.events)
				}
				w.log.ClearFaults()
				again, err := s.do(t.Context(), n, w.call("k1", s.name), key)
				nodes, nerr := w.log.Nodes(t.Context(), 0)
				if err != nil || nerr != nil || !again.Replayed || nodes.Floor.Size < again.Seq {
					t.Errorf("again: at %d, floor %d, %v, %v", again.Seq, nodes.Floor.Size, err, nerr)
				}
			})
		})
	}
}

// TestReadsRestOnAProof cuts a node off from the log's majority, while what it holds
// is as it was: it neither shows a key, nor says that there is none, within 4 s.
func TestReadsRestOnAProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.node("one")
		w.define(n, "acme", acme)
		id := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "a"}).Key.ID.String()
		paths := []string{"/v1/keys/" + id, "/v1/keys/" + id + "/history", "/v1/keys/key_01JGY7Q3S8T9V0W1X2Y3Z4A5B6", "/v1/keys", "/v1/keyspaces", "/v1/keyspaces/acme",
			"/v1/keyspaces/acme/keys", "/v1/keyspaces/acme/tenants/t1", "/v1/keyspaces/acme/tenants/t1/roles"}
		get := func(path string) (int, string) {
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("Authorization", "Bearer "+w.root.Reveal())
			rec := httptest.NewRecorder()
			n.mux.ServeHTTP(rec, r)
			return rec.Code, rec.Body.String()
		}
		for _, path := range paths {
			if code, body := get(path); code == 503 {
				t.Errorf("%s: %d %s", path, code, body)
			}
		}
		for _, path := range paths {
			for range 100 {
				w.log.FailNext(logtest.OpRenew, logtest.UnknownNotStored)
			}
			began := time.Now()
			if code, body := get(path); code != 503 || !strings.Contains(body, "cannot prove") || time.Since(began) > 4*time.Second {
				t.Errorf("%s: %d %s after %s", path, code, body, time.Since(began))
			}
			w.log.ClearFaults()
		}
		// What is shown beyond the floor is acknowledged first.
		other := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "b"})
		logtest.Append(t, w.log, events.KeyAggregate("acme", "t1", other.Key.ID), &events.KeyRevoked{Code: events.RevokeCompromise})
		last, err := w.log.Last(t.Context())
		if err != nil || n.dir.Wait(t.Context(), last) != nil {
			t.Fatal(err)
		}
		code, body := get("/v1/keys/" + other.Key.ID.String())
		nodes, err := w.log.Nodes(t.Context(), 0)
		if code != 200 || !strings.Contains(body, `"status":"revoked"`) || err != nil || nodes.Floor.Size < last {
			t.Errorf("%d %s with the floor at %d of %d, %v", code, body, nodes.Floor.Size, last, err)
		}
	})
}

// TestRefusalsAreAcknowledged lets a control node store a revocation and stop before
// it raises the floor: what another answers on the strength of that event, a refusal
// too, is acknowledged by the answer.
func TestRefusalsAreAcknowledged(t *testing.T) {
	asks := map[string]func(w *world, n *node, id events.KeyID) *httptest.ResponseRecorder{
		"revoke": func(w *world, n *node, id events.KeyID) *httptest.ResponseRecorder {
			return n.do(w.root, "DELETE", "/v1/keys/"+id.String(), "")
		},
		"disable": func(w *world, n *node, id events.KeyID) *httptest.ResponseRecorder {
			return n.do(w.root, "POST", "/v1/keys/"+id.String()+"/disable", "")
		},
		"revoke many": func(w *world, n *node, _ events.KeyID) *httptest.ResponseRecorder {
			return n.do(w.root, "POST", "/v1/keys/revoke", `{"keyspace":"acme"}`)
		},
		"import": func(w *world, n *node, _ events.KeyID) *httptest.ResponseRecorder {
			return n.do(w.root, "POST", "/v1/keyspaces/acme/keys/import", `{"dry_run":true,"keys":[{"tenant":"t1","name":"x","key_type":"secret","environment":"live","digest":"`+strings.Repeat("ab", 32)+`"}]}`)
		},
	}
	for name, ask := range asks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				n := w.node("one")
				w.define(n, "acme", acme)
				key := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "a"}).Key.ID
				logtest.Append(t, w.log, events.KeyAggregate("acme", "t1", key), &events.KeyRevoked{Code: events.RevokeCompromise})
				last, err := w.log.Last(t.Context())
				if err != nil || n.dir.Wait(t.Context(), last) != nil {
					t.Fatal(err)
				}
				// What cannot be acknowledged is not told.
				for range 100 {
					w.log.FailNext(logtest.OpRaise, logtest.UnknownNotStored)
				}
				if a := ask(w, n, key); a.Code != 503 {
					t.Errorf("with the floor behind: %d %s", a.Code, a.Body)
				}
				w.log.ClearFaults()
				a := ask(w, n, key)
				nodes, err := w.log.Nodes(t.Context(), 0)
				if a.Code != 409 && a.Code != 200 || err != nil || nodes.Floor.Size < last {
					t.Errorf("%d %s with the floor at %d of %d, %v", a.Code, a.Body, nodes.Floor.Size, last, err)
				}
			})
		})
	}
}

// TestReadsEndWithTheKey holds a read up between its authentication and its proof,
// while the caller's key is revoked: it shows nothing.
func TestReadsEndWithTheKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var meanwhile func()
		n := w.nodeWith("one", func(c *commands.Config) {
			confirm := c.Confirm
			c.Confirm = func(ctx context.Context) (events.Floor, error) {
				if do := meanwhile; do != nil {
					meanwhile = nil
					do()
				}
				return confirm(ctx)
			}
		})
		reader := w.create(n, events.Builtin, commands.Create{Tenant: events.RootTenant, Name: "reader", Scopes: &[]string{events.ScopeKeysRead, events.ScopeKeyspacesRead}})
		for _, path := range []string{"/v1/keys", "/v1/keyspaces"} {
			if a := n.do(reader.Secret, "GET", path, ""); a.Code != 200 {
				t.Fatalf("%s: %d %s", path, a.Code, a.Body)
			}
		}
		meanwhile = func() {
			if _, err := n.Change(t.Context(), w.call("", ""), "revoke", reader.Key.ID, &commands.Revoke{}); err != nil {
				t.Error(err)
			}
		}
		if a := n.do(reader.Secret, "GET", "/v1/keys", ""); a.Code != 403 || !strings.Contains(a.Body.String(), "your own key is now revoked") {
			t.Errorf("%d %s", a.Code, a.Body)
		}
	})
}
