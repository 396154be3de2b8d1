package commands_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/verifier"
)

// TestLastAdministrator tries every way in which the last key that administers
// Keytrail could lose its power, or be shut out: each is refused, and each is fine once there is another that nothing shuts out.
func TestLastAdministrator(t *testing.T) {
	boss := commands.RoleRef{Keyspace: events.Builtin, Tenant: events.RootTenant, Role: "boss"}
	type way func(ctx context.Context, w *world, n *node) error
	change := func(c commands.Change) way {
		return func(ctx context.Context, w *world, n *node) error {
			_, err := n.Change(ctx, w.call("", ""), "test", w.rootID, c)
			return err
		}
	}
	rotate := func(c commands.Rotate) way {
		return func(ctx context.Context, w *world, n *node) error {
			_, err := n.Rotate(ctx, w.call("", ""), w.rootID, &c)
			return err
		}
	}
	define := func(scopes ...string) way {
		return func(ctx context.Context, w *world, n *node) error {
			_, _, err := n.DefineRole(ctx, w.call("", ""), boss, &commands.DefineRole{Scopes: &scopes})
			return err
		}
	}
	// byRole lets root administer by a role alone, then goes on.
	byRole := func(then way) way {
		return func(ctx context.Context, w *world, n *node) error {
			if err := define("admin")(ctx, w, n); err != nil {
				return err
			}
			if err := change(&commands.AssignScopes{Scopes: &[]string{}, Roles: &[]events.RoleID{"boss"}})(ctx, w, n); err != nil {
				return err
			}
			return then(ctx, w, n)
		}
	}
	tenantLimit := func(l keyspace.Limit) way {
		return func(ctx context.Context, w *world, n *node) error {
			_, _, err := n.SetTenantLimit(ctx, w.call("", ""), events.Builtin, events.RootTenant, &commands.SetTenantLimit{Limit: commands.Some(l)})
			return err
		}
	}
	expires := func(in string) commands.ExpiryWish { return commands.ExpiryWish{ExpiresIn: &in} }
	for _, tt := range []struct {
		name string
		do   way
		want string
	}{
		{"revoked", change(new(commands.Revoke)), "last_admin"},
		{"disabled", change(new(commands.Disable)), "last_admin"},
		{"without its scope", change(&commands.AssignScopes{Scopes: &[]string{"keys:write", "keyspaces:write", "audit:export"}}), "last_admin"},
		{"restricted", change(&commands.AssignResources{Resources: ptr(resources("keyspace", "keytrail"))}), "last_admin"},
		{"mortal", change(&commands.Patch{ExpiryWish: expires("1h")}), "last_admin"},
		{"tied to addresses", change(&commands.SetAllowlist{Allowlist: &[]string{"203.0.113.7"}}), "last_admin"},
		{"limited", change(&commands.SetLimit{Limit: commands.Some(keyspace.Limit{PerMinute: 1, Burst: 1})}), "last_admin"},
		{"limited with its tenant", tenantLimit(keyspace.Limit{PerMinute: 1, Burst: 1}), "last_admin"},
		{"rotated to a short life", rotate(commands.Rotate{ExpiryWish: expires("1m")}), "last_admin"},
		{"rotated to a short life, with an overlap", rotate(commands.Rotate{Overlap: ptr("24h"), ExpiryWish: expires("1m")}), "last_admin"},
		{"rotated", rotate(commands.Rotate{}), "ok"},
		{"rotated with an overlap", rotate(commands.Rotate{Overlap: ptr("1h")}), "ok"},
		{"renamed", change(&commands.Patch{Name: ptr("the root")}), "ok"},
		{"administering by a role", byRole(change(&commands.Patch{Name: ptr("the root")})), "ok"},
		{"its role deleted", byRole(func(ctx context.Context, w *world, n *node) error {
			_, _, err := n.DeleteRole(ctx, w.call("", ""), boss, new(commands.DeleteRole))
			return err
		}), "last_admin"},
		{"its role emptied", byRole(define()), "last_admin"},
		{"its role narrowed", byRole(define("keys:write")), "last_admin"},
		{"its role described", byRole(define("admin", "keys:read")), "ok"},
		{"its role taken", byRole(change(&commands.AssignScopes{Roles: &[]events.RoleID{}})), "last_admin"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			n := w.node("one")
			err := tt.do(t.Context(), w, n)
			if codeOf(err) != tt.want {
				t.Errorf("%v, want %s", err, tt.want)
			}
			if tt.want == "ok" {
				return
			}
			w.define(n, "acme", acme) // it administers still
			// A second one of another tenant: nothing of this touches it.
			w = newWorld(t)
			n = w.node("one")
			w.create(n, events.Builtin, commands.Create{Tenant: "spare", Name: "spare", Scopes: &[]string{"admin"}})
			if err := tt.do(t.Context(), w, n); err != nil {
				t.Errorf("with another: %v", err)
			}
		})
	}
}

// TestWorseAdministratorsDoNotCount: the freest administrator counts. One that is
// itself limited does not free the last that is not, but may be touched freely.
func TestWorseAdministratorsDoNotCount(t *testing.T) {
	for _, tt := range []struct {
		name  string
		other commands.Create
	}{
		{"limited", commands.Create{Limit: &keyspace.Limit{PerMinute: 600, Burst: 600}}},
		{"tied to addresses", commands.Create{Allowlist: []string{"10.0.0.0/8"}}},
		{"mortal", commands.Create{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("100d")}}},
		{"restricted", commands.Create{Resources: resources("keyspace", "keytrail")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			n := w.node("one")
			tt.other.Tenant, tt.other.Name, tt.other.Scopes = events.RootTenant, "other", &[]string{"admin"}
			other := w.create(n, events.Builtin, tt.other).Key.ID
			if _, err := n.Change(t.Context(), w.call("", ""), "test", w.rootID, new(commands.Revoke)); codeOf(err) != "last_admin" {
				t.Errorf("root: %v", err)
			}
			if _, err := n.Change(t.Context(), w.call("", ""), "test", other, new(commands.Revoke)); err != nil {
				t.Errorf("other: %v", err)
			}
		})
	}
}

// TestWayBackIn shuts every administrator out, by what a log may hold however it
// came there, and makes a new root key: the verifiers accept it at once, for
// everything, from anywhere and as often as it is used.
func TestWayBackIn(t *testing.T) {
	one := &keyspace.Limit{PerMinute: 1, Burst: 1}
	operators := events.TenantAggregate(events.Builtin, events.RootTenant)
	for name, shut := range map[string]func(w *world){
		"revoked":  func(w *world) { w.append(&events.KeyRevoked{Code: events.RevokeUnspecified}) },
		"disabled": func(w *world) { w.append(&events.KeyDisabled{}) },
		"expired":  func(w *world) { w.append(&events.KeyExpiryChanged{After: w.clock.at()}) },
		"tied to addresses": func(w *world) {
			w.append(&events.KeyAllowlistUpdated{After: []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32")}})
		},
		"limited":    func(w *world) { w.append(&events.KeyLimitUpdated{After: one}) },
		"restricted": func(w *world) { w.append(&events.KeyResourcesAssigned{After: resources("tenant", "t1")}) },
		"without scopes": func(w *world) {
			w.append(&events.KeyScopesAssigned{Before: events.Grant{Scopes: []string{"admin"}}})
		},
		"limited with its tenant": func(w *world) { logtest.Append(w, w.log, operators, &events.TenantLimitUpdated{After: one}) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			shut(w)
			secret := rootSecret(t, 9)
			w.secrets = append(w.secrets, secret)
			for range 2 { // the second changes nothing
				if _, err := commands.Bootstrap(t.Context(), w.log, secret, w.clock.at()); err != nil {
					t.Fatal(err)
				}
			}
			view := projections.NewKeys()
			if err := view.Apply(w.log.Records()); err != nil {
				t.Fatal(err)
			}
			buckets := new(verifier.Buckets)
			asked := func(secret events.Secret) (allowed int) {
				for range 100 {
					d := verifier.Verify(view, buckets, &verifier.Request{Secret: secret, Keyspace: events.Builtin, Scope: events.ScopeKeysWrite, IP: netip.MustParseAddr("192.0.2.1")}, w.clock.at())
					if d.Allowed() {
						allowed++
					}
				}
				return allowed
			}
			if n := asked(secret); n != 100 {
				t.Errorf("the new root key was accepted %d of 100 times", n)
			}
			if n := asked(w.root); n > 1 && name != "restricted" && name != "limited with its tenant" {
				t.Errorf("the old one was accepted %d times", n)
			}
			// Its tenant is free again, and the record says who lifted the limit.
			n := w.node("one")
			if l := n.dir.Tenant(events.Builtin, events.RootTenant).Limit; l != nil {
				t.Errorf("the tenant is still limited to %+v", l)
			}
			w.clock.step(time.Second)
			a := n.do(secret, "POST", "/v1/keyspaces/keytrail/keys", `{"tenant":"operators","name":"second","scopes":["admin"]}`)
			w.secrets = append(w.secrets, events.NewSecret(member(t, a, "key")))
			if a.Code != 201 {
				t.Errorf("%d %s", a.Code, a.Body)
			}
			logtest.CheckLog(t, w.log)
		})
	}
}

// append writes events of the root key past every guard.
func (w *world) append(data ...events.Data) {
	w.Helper()
	logtest.Append(w, w.log, events.KeyAggregate(events.Builtin, events.RootTenant, w.rootID), data...)
}
