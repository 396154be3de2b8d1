package commands_test

import (
	"context"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// operator makes a key of the built-in keyspace and returns it with the principal
// that an endpoint sees in it now.
func (w *world) operator(n *node, c commands.Create) (events.Key, events.Principal) {
	w.Helper()
	if c.Tenant == "" {
		c.Tenant = events.RootTenant
	}
	k := w.create(n, events.Builtin, c).Key
	return k, w.principalOf(&k)
}

func (w *world) principalOf(k *events.Key) events.Principal {
	def := events.BuiltinDefinition()
	p := events.Principal{Actor: events.Actor{Kind: events.ActorKey, ID: k.ID.String()}, Scopes: def.Expand(k.Grant.Scopes), IP: netip.MustParseAddr("192.0.2.1"), UserAgent: "test"}
	p.Restrict(k.Resources)
	return p
}

func resources(list ...string) (out []events.Resource) {
	for i := 0; i < len(list); i += 2 {
		out = append(out, events.Resource{Kind: list[i], ID: list[i+1]})
	}
	return out
}

// TestNarrowedBetweenEndpointAndDecision lets every command load its history, then
// narrows the key behind it on another node, then lets the command go on: it is
// decided on what the key holds by then (C3).
func TestNarrowedBetweenEndpointAndDecision(t *testing.T) {
	var target events.KeyID // of tenant t1 of acme
	act := map[string]func(context.Context, *node, *commands.Call) error{
		"create": func(ctx context.Context, n *node, call *commands.Call) error {
			_, err := n.Create(ctx, call, "acme", &commands.Create{Tenant: "t1", Name: "made"})
			return err
		},
		"change": func(ctx context.Context, n *node, call *commands.Call) error {
			_, err := n.Change(ctx, call, "test", target, &commands.AssignScopes{Scopes: &[]string{"write"}})
			return err
		},
		"rename": func(ctx context.Context, n *node, call *commands.Call) error {
			_, err := n.Change(ctx, call, "test", target, &commands.Patch{Name: ptr("renamed")})
			return err
		},
		"rotate": func(ctx context.Context, n *node, call *commands.Call) error {
			_, err := n.Rotate(ctx, call, target, new(commands.Rotate))
			return err
		},
		"import": func(ctx context.Context, n *node, call *commands.Call) error {
			out, _, err := n.Import(ctx, call, "acme", &commands.Import{Keys: []commands.ImportKey{importKey("secret of another issuer", "t1", "imported")}})
			if err == nil && out[0].Status != commands.ImportDone {
				err = out[0].Errors
			}
			return err
		},
		"define role": func(ctx context.Context, n *node, call *commands.Call) error {
			_, _, err := n.DefineRole(ctx, call, commands.RoleRef{Keyspace: "acme", Tenant: "t1", Role: "new"}, &commands.DefineRole{Scopes: &[]string{"read"}})
			return err
		},
		"delete role": func(ctx context.Context, n *node, call *commands.Call) error {
			_, _, err := n.DeleteRole(ctx, call, commands.RoleRef{Keyspace: "acme", Tenant: "t1", Role: "dev"}, new(commands.DeleteRole))
			return err
		},
		"tenant limit": func(ctx context.Context, n *node, call *commands.Call) error {
			_, _, err := n.SetTenantLimit(ctx, call, "acme", "t1", &commands.SetTenantLimit{Limit: commands.Some(keyspace.Limit{Plan: "pro"})})
			return err
		},
		"define keyspace": func(ctx context.Context, n *node, call *commands.Call) error {
			d := acme
			d.Title = "Acme"
			_, _, err := n.DefineKeyspace(ctx, call, "acme", &commands.DefineKeyspace{Definition: d})
			return err
		},
		"review keyspace": func(ctx context.Context, n *node, call *commands.Call) error {
			_, _, err := n.ReviewKeyspace(ctx, call, "acme", &commands.DefineKeyspace{Definition: acme})
			return err
		},
	}
	type narrowing struct {
		resources []events.Resource // that the key has at the endpoint
		lose      func(w *world) commands.Change
		want      map[string]string // by command; "" for all others
	}
	put := func(rs ...string) func(*world) commands.Change {
		return func(*world) commands.Change { return &commands.AssignResources{Resources: ptr(resources(rs...))} }
	}
	const beyond = "beyond_own_power"
	for name, x := range map[string]narrowing{
		"nothing":  {lose: func(*world) commands.Change { return &commands.Patch{Metadata: &map[string]string{"a": "b"}} }, want: map[string]string{"": "ok"}},
		"revoked":  {lose: func(*world) commands.Change { return new(commands.Revoke) }, want: map[string]string{"": beyond}},
		"disabled": {lose: func(*world) commands.Change { return new(commands.Disable) }, want: map[string]string{"": beyond}},
		"expired": {lose: func(w *world) commands.Change {
			return &commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("1ms")}}
		}, want: map[string]string{"": beyond}},
		"no scope":    {lose: func(*world) commands.Change { return &commands.AssignScopes{Scopes: &[]string{"keys:read"}} }, want: map[string]string{"": beyond}},
		"keys only":   {lose: func(*world) commands.Change { return &commands.AssignScopes{Scopes: &[]string{"keys:write"}} }, want: map[string]string{"": "ok", "define keyspace": beyond, "review keyspace": beyond}},
		"addresses":   {lose: func(*world) commands.Change { return &commands.SetAllowlist{Allowlist: &[]string{"203.0.113.0/24"}} }, want: map[string]string{"": beyond}},
		"its address": {lose: func(*world) commands.Change { return &commands.SetAllowlist{Allowlist: &[]string{"192.0.2.0/24"}} }, want: map[string]string{"": "ok"}},
		"all keyspaces to one": {lose: put("keyspace", "zeta"),
			want: map[string]string{"": "not_found", "define keyspace": beyond, "review keyspace": beyond}},
		"two keyspaces to the other": {resources: resources("keyspace", "acme", "keyspace", "zeta"), lose: put("keyspace", "zeta"),
			want: map[string]string{"": "not_found", "define keyspace": beyond, "review keyspace": beyond}},
		"two keyspaces to this one": {resources: resources("keyspace", "acme", "keyspace", "zeta"), lose: put("keyspace", "acme"), want: map[string]string{"": "ok"}},
		"to another keyspace":       {resources: resources("keyspace", "acme"), lose: put("keyspace", "zeta"), want: map[string]string{"": beyond}},
		"two tenants to the other": {resources: resources("tenant", "t1", "tenant", "t2"), lose: put("tenant", "t2"),
			want: map[string]string{"": beyond, "change": "not_found", "rename": "not_found", "rotate": "not_found", "import": "tenant:" + beyond}},
		"two tenants to this one": {resources: resources("tenant", "t1", "tenant", "t2"), lose: put("tenant", "t1"),
			want: map[string]string{"": "ok", "define keyspace": beyond, "review keyspace": beyond}},
	} {
		for command, do := range act {
			t.Run(name+"/"+command, func(t *testing.T) {
				w := newWorld(t)
				n, other := w.node("one"), w.node("two")
				w.define(n, "acme", acme)
				w.define(n, "zeta", acme)
				target = w.create(n, "acme", commands.Create{Tenant: "t1", Name: "target"}).Key.ID
				if _, _, err := n.DefineRole(t.Context(), w.call("", ""), commands.RoleRef{Keyspace: "acme", Tenant: "t1", Role: "dev"}, &commands.DefineRole{Scopes: &[]string{"read"}}); err != nil {
					t.Fatal(err)
				}
				own, p := w.operator(n, commands.Create{Name: "own", Scopes: &[]string{"admin"}, Resources: x.resources})
				w.operator(n, commands.Create{Name: "second", Scopes: &[]string{"admin"}}) // so that own is not the last
				w.clock.step(time.Second)
				call := &commands.Call{Principal: p}

				op, at := logtest.OpLoad, logtest.AfterEffect
				if command == "import" { // it loads no history
					op, at = logtest.OpRenew, logtest.BeforeEffect
				}
				pause := w.log.PauseNext(op, at)
				result := make(chan error)
				go func() { result <- do(t.Context(), n, call) }()
				<-pause.Entered()
				before := len(w.log.Records())
				if _, err := other.Change(t.Context(), w.call("", ""), "test", own.ID, x.lose(w)); err != nil {
					t.Fatal(err)
				}
				w.clock.step(time.Second)
				pause.Resume()
				want, ok := x.want[command]
				if !ok {
					want = x.want[""]
				}
				err := <-result
				if got := codeOf(err); got != want && got != ":"+want {
					t.Errorf("%s (%v), want %s", got, err, want)
				}
				if got := len(w.log.Records()) - before; want != "ok" && got != 1 {
					t.Errorf("%d events, want that of the narrowing alone", got)
				}
			})
		}
	}
}

// TestLimitsArePower: what a limited operator's key creates, changes or rotates in
// the built-in keyspace stays within its limit.
func TestLimitsArePower(t *testing.T) {
	some := func(n int64) commands.Opt[keyspace.Limit] {
		return commands.Some(keyspace.Limit{PerMinute: n, Burst: n})
	}
	limit := func(n int64) *keyspace.Limit { return &keyspace.Limit{PerMinute: n, Burst: n} }
	type try func(w *world, n *node, call *commands.Call, own, sibling, free events.KeyID) error
	set := func(which int, c commands.Change) try {
		return func(w *world, n *node, call *commands.Call, own, sibling, free events.KeyID) error {
			_, err := n.Change(w.Context(), call, "test", []events.KeyID{own, sibling, free}[which], c)
			return err
		}
	}
	create := func(tenant events.TenantID, l *keyspace.Limit) try {
		return func(w *world, n *node, call *commands.Call, _, _, _ events.KeyID) error {
			_, err := n.Create(w.Context(), call, events.Builtin, &commands.Create{Tenant: tenant, Name: "made", Scopes: &[]string{"keys:read"}, Limit: l})
			return err
		}
	}
	rotate := func(which int) try {
		return func(w *world, n *node, call *commands.Call, own, sibling, free events.KeyID) error {
			_, err := n.Rotate(w.Context(), call, []events.KeyID{own, sibling, free}[which], new(commands.Rotate))
			return err
		}
	}
	const beyond = "beyond_own_power"
	for _, tt := range []struct {
		name string
		do   try
		want string
	}{
		{"an unlimited sibling", create("operators", nil), beyond},
		{"a faster sibling", create("operators", &keyspace.Limit{PerMinute: 11, Burst: 10}), beyond},
		{"a burstier sibling", create("operators", &keyspace.Limit{PerMinute: 10, Burst: 11}), beyond},
		{"an equal sibling: many of them have no limit", create("operators", limit(10)), beyond},
		{"a slower sibling: as many more of them", create("operators", limit(1)), beyond},
		{"an unlimited sibling in another tenant", create("others", nil), beyond},
		{"its own limit raised", set(0, &commands.SetLimit{Limit: some(11)}), beyond},
		{"its own limit lifted", set(0, &commands.SetLimit{Limit: commands.Null[keyspace.Limit]()}), beyond},
		{"its own limit lowered", set(0, &commands.SetLimit{Limit: some(9)}), "ok"},
		{"a sibling's limit raised to its own", set(1, &commands.SetLimit{Limit: some(10)}), "ok"},
		{"a sibling's limit raised past its own", set(1, &commands.SetLimit{Limit: some(11)}), beyond},
		{"a free key's limit lowered", set(2, &commands.SetLimit{Limit: some(1000)}), "ok"},
		{"a free key renamed", set(2, &commands.Patch{Name: ptr("x")}), "ok"},
		{"a free key given a scope", set(2, &commands.AssignScopes{Scopes: &[]string{"keys:write"}}), beyond},
		{"a free key disabled", set(2, new(commands.Disable)), "ok"},
		{"itself rotated", rotate(0), "ok"},
		{"a sibling rotated", rotate(1), "ok"},
		{"a free key rotated: its secret would be handed over", rotate(2), beyond},
		{"a disabled free key enabled", func(w *world, n *node, call *commands.Call, own, sibling, free events.KeyID) error {
			if _, err := n.Change(w.Context(), w.call("", ""), "test", free, new(commands.Disable)); err != nil {
				w.Fatal(err)
			}
			return set(2, new(commands.Enable))(w, n, call, own, sibling, free)
		}, beyond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			n := w.node("one")
			own, p := w.operator(n, commands.Create{Name: "own", Scopes: &[]string{"keys:write"}, Limit: limit(10)})
			sibling, _ := w.operator(n, commands.Create{Name: "sibling", Scopes: &[]string{"keys:read"}, Limit: limit(5)})
			free, _ := w.operator(n, commands.Create{Name: "free", Scopes: &[]string{"keys:read"}})
			if err := tt.do(w, n, &commands.Call{Principal: p}, own.ID, sibling.ID, free.ID); codeOf(err) != tt.want {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
}

// TestLimitOfOperators: the limit of all operators together is an administrator's
// to set, and gives no key more than that administrator holds. Where it would
// leave no administrator free of a limit it is refused.
func TestLimitOfOperators(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	const operators, acmes, body = "/v1/keyspaces/keytrail/tenants/operators/limit", "/v1/keyspaces/acme/tenants/t1/limit", `{"limit":{"per_minute":1,"burst":1}}`
	secret := func(c commands.Create) events.Secret { return w.create(n, events.Builtin, c).Secret }
	writer := secret(commands.Create{Tenant: events.RootTenant, Name: "writer", Scopes: ptr([]string{events.ScopeKeysWrite})})
	limited := secret(commands.Create{Tenant: events.RootTenant, Name: "limited", Scopes: ptr([]string{events.ScopeAdmin}), Limit: &keyspace.Limit{PerMinute: 9, Burst: 9}})
	step := func(as events.Secret, path, body string, want int) {
		t.Helper()
		if a := n.do(as, "PUT", path, body); a.Code != want {
			t.Errorf("%s: %d %s, want %d", path, a.Code, a.Body, want)
		}
	}
	step(writer, operators, body, http.StatusForbidden)
	step(writer, acmes, body, http.StatusOK)
	step(w.root, operators, body, http.StatusConflict) // last_admin
	secret(commands.Create{Tenant: "spare", Name: "spare", Scopes: ptr([]string{events.ScopeAdmin})})
	step(w.root, operators, body, http.StatusOK)
	// A key of another tenant would not share the limit.
	create := func(tenant, name string, want int) {
		t.Helper()
		body := `{"tenant":"` + tenant + `","name":"` + name + `","scopes":["keys:read"],"limit":{"per_minute":1,"burst":1}}`
		if a := n.do(writer, "POST", "/v1/keyspaces/keytrail/keys", body); a.Code != want {
			t.Errorf("a key of tenant %s: %d %s, want %d", tenant, a.Code, a.Body, want)
		}
	}
	create("operators", "shares", http.StatusCreated)
	create("elsewhere", "escapes", http.StatusForbidden)
	step(limited, operators, `{"limit":{"per_minute":5,"burst":5}}`, http.StatusOK)
	step(limited, operators, `{"limit":{"per_minute":20,"burst":20}}`, http.StatusForbidden) // root would have 20
	step(limited, operators, `{"limit":null}`, http.StatusForbidden)
	step(limited, "/v1/keyspaces/keytrail/tenants/spare/limit", body, http.StatusConflict) // last_admin
	step(w.root, operators, `{"limit":null}`, http.StatusOK)
}
