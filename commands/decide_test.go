package commands_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

var t0 = newClock(start).at()

const day = 24 * time.Hour

func rules(change ...func(*commands.Rules)) *commands.Rules {
	def := acme
	r := &commands.Rules{Keyspace: "acme", Tenant: "t1", Definition: &def, Roles: func(id events.RoleID) (events.Role, bool) {
		switch id {
		case "reader":
			return events.Role{Chain: events.Chain{Rev: 1}, ID: id, Scopes: []string{"read"}}, true
		case "uploader":
			return events.Role{Chain: events.Chain{Rev: 1}, ID: id, Scopes: []string{"upload"}}, true
		case "division_lead":
			return events.Role{Chain: events.Chain{Rev: 1}, ID: id, Level: "division", Scopes: []string{"write"}}, true
		case "gone":
			return events.Role{Chain: events.Chain{Rev: 2}, ID: id, Scopes: []string{"read"}, Deleted: true}, true
		}
		return events.Role{}, false
	}}
	for _, f := range change {
		f(r)
	}
	return r
}

func policy(p keyspace.ExpiryPolicy) func(*commands.Rules) {
	return func(r *commands.Rules) { r.Definition.Expiry = p }
}

// print shows decided data as one line, without digests.
func print(data ...events.Data) string {
	var out []string
	for _, d := range data {
		if c, ok := d.(*events.KeyCreated); ok {
			c := *c
			c.Digest = events.Digest{}
			d = &c
		}
		b, err := json.Marshal(d, json.Deterministic(true), json.FormatNilSliceAsNull(true))
		if err != nil {
			return err.Error()
		}
		s := strings.ReplaceAll(string(b), `"digest":"`+strings.Repeat("0", 64)+`",`, "")
		out = append(out, string(d.EventType())+s)
	}
	return strings.Join(out, " ")
}

func TestDecideTenantLimit(t *testing.T) {
	pro := &keyspace.Limit{Plan: "pro"}
	for _, tt := range []struct {
		name   string
		given  *keyspace.Limit
		tenant events.TenantID
		when   commands.SetTenantLimit
		want   string
	}{
		{"first", nil, "t1", commands.SetTenantLimit{Limit: commands.Some(*pro)}, `tenant.limit_updated{"after":{"plan":"pro"}}`},
		{"the same", pro, "t1", commands.SetTenantLimit{Limit: commands.Some(*pro)}, ""},
		{"another", pro, "t1", commands.SetTenantLimit{Limit: commands.Some(keyspace.Limit{PerMinute: 1, Burst: 2})}, `tenant.limit_updated{"before":{"plan":"pro"},"after":{"per_minute":1,"burst":2}}`},
		{"back to the default", pro, "t1", commands.SetTenantLimit{Limit: commands.Null[keyspace.Limit]()}, `tenant.limit_updated{"before":{"plan":"pro"}}`},
		{"the default again", nil, "t1", commands.SetTenantLimit{Limit: commands.Null[keyspace.Limit]()}, ""},
		{"nothing", nil, "t1", commands.SetTenantLimit{}, "limit:required"},
		{"all at once", nil, "*", commands.SetTenantLimit{Limit: commands.Some(keyspace.Limit{Plan: "gold"}), Reason: "\x00"}, "tenant:invalid limit.plan:unknown_plan reason:invalid"},
		{"zero is not off", nil, "t1", commands.SetTenantLimit{Limit: commands.Some(keyspace.Limit{Burst: 1})}, "limit.per_minute:invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := rules(func(r *commands.Rules) { r.Tenant = tt.tenant })
			data, err := tt.when.Decide(&events.Tenant{Limit: tt.given}, r)
			got := codeOf(err)
			if err == nil {
				got = ""
				if data != nil {
					got = print(data)
				}
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// life folds a history: a key created at t0, then the data given, a minute apart.
func life(t *testing.T, data ...events.Data) *events.Key {
	t.Helper()
	log := logtest.New(t)
	ref := logtest.NewKeyRef("acme", "t1")
	created := &events.KeyCreated{Digest: events.NewSecret("old").Digest(), Hint: "sk_live_aaaa", Name: "ci", KeyType: "secret", Environment: "live",
		Scopes: []string{"read"}, Metadata: map[string]string{"team": "a"}}
	if len(data) > 0 {
		if c, ok := data[0].(*events.KeyCreated); ok {
			created, data = c, data[1:]
		}
	}
	var c events.Chain
	var writes []events.Write
	for i, d := range append([]events.Data{created}, data...) {
		e := logtest.Event(ref.Aggregate(), d)
		e.Time = t0.Add(time.Duration(i) * time.Minute)
		writes = append(writes, logtest.Stamp(&c, e))
	}
	if _, err := log.Append(t.Context(), writes...); err != nil {
		t.Fatal(err)
	}
	history, err := log.Load(t.Context(), ref.Aggregate())
	if err != nil {
		t.Fatal(err)
	}
	k, err := events.FoldKey(history)
	if err != nil {
		t.Fatal(err)
	}
	return &k
}

func TestDecideChange(t *testing.T) {
	in := func(d time.Duration) *events.KeyExpiryChanged { return &events.KeyExpiryChanged{After: t0.Add(d)} }
	disabled, revoked := new(events.KeyDisabled), &events.KeyRevoked{Code: events.RevokeCompromise}
	rotated := &events.KeyRotated{Successor: events.KeyID{9}, After: t0.Add(2 * day)}
	given := func(data ...events.Data) []events.Data { return data }
	scopes := func(s ...string) *commands.AssignScopes { return &commands.AssignScopes{Scopes: &s} }
	roles := func(r ...events.RoleID) *commands.AssignScopes { return &commands.AssignScopes{Roles: &r} }
	patch := func(f func(*commands.Patch)) *commands.Patch { p := new(commands.Patch); f(p); return p }
	expire := func(s string) *commands.Patch {
		return patch(func(p *commands.Patch) { p.ExpiresAt = commands.Some(s) })
	}
	now := t0.Add(day)
	for _, tt := range []struct {
		name  string
		given []events.Data
		when  commands.Change
		want  string // an error's codes, or the events; "" for none
	}{
		{"scopes", nil, scopes("write", "read"), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{"scopes":["read","write"]}}`},
		{"the same scopes", nil, scopes("read", "read"), ""},
		{"no scopes", nil, scopes(), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{}}`},
		{"roles keep scopes", nil, roles("reader"), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{"scopes":["read"],"roles":["reader"]}}`},
		{"neither", nil, new(commands.AssignScopes), "scopes:required"},
		{"unknown scope", nil, scopes("fly"), "scopes[0]:unknown_scope"},
		{"scopes of a disabled key", given(disabled), scopes(), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{}}`},
		{"scopes of a revoked key", given(revoked), scopes(), "state"},
		{"scopes of an expired key, by the clock", given(in(day)), scopes(), "state"},
		{"scopes a millisecond before it expires", given(in(day + time.Millisecond)), scopes(), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{}}`},

		{"resources", nil, &commands.AssignResources{Resources: &[]events.Resource{{Kind: "project", ID: "p2"}, {Kind: "project", ID: "p1"}}},
			`key.resources_assigned{"after":[{"kind":"project","id":"p1"},{"kind":"project","id":"p2"}]}`},
		{"resources missing", nil, new(commands.AssignResources), "resources:required"},
		{"resources taken from under a role", given(&events.KeyResourcesAssigned{After: []events.Resource{{Kind: "division", ID: "d"}}},
			&events.KeyScopesAssigned{Before: events.Grant{Scopes: []string{"read"}}, After: events.Grant{Roles: []events.RoleID{"division_lead"}}}),
			&commands.AssignResources{Resources: &[]events.Resource{}}, "resources:role_level"},

		{"allowlist", nil, &commands.SetAllowlist{Allowlist: &[]string{"10.0.0.0/8"}}, `key.allowlist_updated{"after":["10.0.0.0/8"]}`},
		{"allowlist opened", given(&events.KeyAllowlistUpdated{After: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}),
			&commands.SetAllowlist{Allowlist: &[]string{}}, `key.allowlist_updated{"before":["10.0.0.0/8"]}`},
		{"allowlist missing", nil, new(commands.SetAllowlist), "allowlist:required"},

		{"limit", nil, &commands.SetLimit{Limit: commands.Some(keyspace.Limit{PerMinute: 60, Burst: 5})}, `key.limit_updated{"after":{"per_minute":60,"burst":5}}`},
		{"limit back to the default", given(&events.KeyLimitUpdated{After: &keyspace.Limit{Plan: "pro"}}), &commands.SetLimit{Limit: commands.Null[keyspace.Limit]()}, `key.limit_updated{"before":{"plan":"pro"}}`},
		{"limit missing", nil, new(commands.SetLimit), "limit:required"},
		{"limit out of range", nil, &commands.SetLimit{Limit: commands.Some(keyspace.Limit{PerMinute: -1, Burst: 1})}, "limit.per_minute:invalid"},

		{"name", nil, patch(func(p *commands.Patch) { p.Name = ptr("cd") }), `key.renamed{"before":{"name":"ci","metadata":{"team":"a"}},"after":{"name":"cd","metadata":{"team":"a"}}}`},
		{"metadata", nil, patch(func(p *commands.Patch) { p.Metadata = &map[string]string{} }), `key.renamed{"before":{"name":"ci","metadata":{"team":"a"}},"after":{"name":"ci"}}`},
		{"two events", nil, patch(func(p *commands.Patch) { p.Name, p.ExpiresIn = ptr("cd"), ptr("1h") }),
			`key.renamed{"before":{"name":"ci","metadata":{"team":"a"}},"after":{"name":"cd","metadata":{"team":"a"}}} key.expiry_changed{"after":"2026-01-07T11:00:00.000Z"}`},
		{"nothing", nil, new(commands.Patch), "body:required"},
		{"the same", nil, patch(func(p *commands.Patch) { p.Name = ptr("ci") }), ""},
		{"expiry to never", given(in(2 * day)), patch(func(p *commands.Patch) { p.ExpiresAt = commands.Null[string]() }), `key.expiry_changed{"before":"2026-01-08T10:00:00.000Z"}`},
		{"expiry past", nil, expire("2026-01-07T10:00:00Z"), "expires_at:past"},
		{"an expired key is not revived", given(in(day)), expire("2027-01-01T00:00:00Z"), "state"},
		{"a rotated key lives no longer", given(rotated), expire("2026-01-08T10:00:00.001Z"), "expires_at:rotated"},
		{"a rotated key may end earlier", given(rotated), expire("2026-01-08T09:00:00Z"), `key.expiry_changed{"before":"2026-01-08T10:00:00.000Z","after":"2026-01-08T09:00:00.000Z"}`},

		{"disable", nil, new(commands.Disable), "key.disabled{}"},
		{"disable again", given(disabled), new(commands.Disable), "already"},
		{"disable a revoked key", given(revoked), new(commands.Disable), "state"},
		{"enable", given(disabled), new(commands.Enable), "key.enabled{}"},
		{"enable an active key", nil, new(commands.Enable), "already"},
		{"enable an expired key", given(in(day), disabled), new(commands.Enable), "state"},
		{"revoke", nil, new(commands.Revoke), `key.revoked{"code":"unspecified"}`},
		{"revoke a disabled key", given(disabled), &commands.Revoke{Code: events.RevokeCompromise}, `key.revoked{"code":"key_compromise"}`},
		{"revoke again", given(revoked), new(commands.Revoke), "already"},
		{"revoke an expired key", given(in(day)), new(commands.Revoke), "state"},
		{"revoke for no known reason", nil, &commands.Revoke{Code: "bored", Reason: strings.Repeat("r", 501)}, "code:invalid reason:invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := life(t, tt.given...)
			got, err := tt.when.Decide(k, rules(), now)
			if s := print(got...); err == nil && s != tt.want {
				t.Errorf("decided\n  %s\nwant\n  %s", s, tt.want)
			} else if err != nil && codeOf(err) != tt.want {
				t.Errorf("refused with\n  %s: %v\nwant\n  %s", codeOf(err), err, tt.want)
			}
			for _, d := range got {
				if err := d.Validate(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestPatchLife bounds the life from the key's creation, not from the change.
func TestPatchLife(t *testing.T) {
	r := rules(policy(keyspace.ExpiryPolicy{Max: "30d"}))
	k := life(t, &events.KeyExpiryChanged{After: t0.Add(20 * day)})
	p := commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("20d")}}
	if _, err := p.Decide(k, r, t0.Add(10*day)); err != nil {
		t.Errorf("30 days from creation: %v", err)
	}
	if _, err := p.Decide(k, r, t0.Add(10*day+time.Millisecond)); codeOf(err) != "expires_in:too_late" {
		t.Errorf("more than 30 days from creation: %v", err)
	}
}

func TestDecideRotate(t *testing.T) {
	now := t0.Add(day)
	ends := func(d time.Duration) []events.Data { return []events.Data{&events.KeyExpiryChanged{After: t0.Add(d)}} }
	overlap := func(s string) commands.Rotate { return commands.Rotate{Overlap: &s} }
	at := func(d time.Duration) events.Time { return t0.Add(d) }
	end9999, err := events.ParseTime("9999-12-31T23:59:59.999Z")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		given     []events.Data
		when      commands.Rotate
		rules     *commands.Rules
		want      string      // an error's codes
		old, next events.Time // expiries
	}{
		{name: "at once", rules: rules(), old: now},
		{name: "an overlap", when: overlap("24h"), rules: rules(), old: at(2 * day)},
		{name: "an overlap within the old life", given: ends(10 * day), when: overlap("2d"), rules: rules(), old: at(3 * day), next: now.Add(10 * day)},
		{name: "an overlap past the old life", given: ends(2 * day), when: overlap("30d"), rules: rules(), old: at(2 * day), next: now.Add(2 * day)},
		{name: "an overlap below zero", when: overlap("-1s"), rules: rules(), want: "overlap:invalid"},
		{name: "a life past what a duration holds", given: []events.Data{&events.KeyExpiryChanged{After: end9999}}, when: overlap("1h"), rules: rules(), old: now.Add(time.Hour), next: now.Add(100 * 365 * day)},
		{name: "the policy shortens the successor", given: ends(10 * day), rules: rules(policy(keyspace.ExpiryPolicy{Max: "1d"})), old: now, next: now.Add(day)},
		{name: "a policy that came later", rules: rules(policy(keyspace.ExpiryPolicy{Required: true, Max: "24h"})), old: now, next: now.Add(day)},
		{name: "a policy with a default", rules: rules(policy(keyspace.ExpiryPolicy{Required: true, Default: "60s"})), old: now, next: now.Add(time.Minute)},
		{name: "a policy without one", rules: rules(policy(keyspace.ExpiryPolicy{Required: true})), want: "expires_at:required"},
		{name: "asked for", given: ends(10 * day), when: commands.Rotate{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("1h")}}, rules: rules(), old: now, next: now.Add(time.Hour)},
		{name: "asked for too much", when: commands.Rotate{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("2d")}}, rules: rules(policy(keyspace.ExpiryPolicy{Max: "1d"})), want: "expires_in:too_late"},
		{name: "twice", given: []events.Data{&events.KeyRotated{Successor: events.KeyID{9}, After: at(2 * day)}}, rules: rules(), want: "already_rotated"},
		{name: "a disabled key", given: []events.Data{new(events.KeyDisabled)}, rules: rules(), want: "state"},
		{name: "a revoked key", given: []events.Data{&events.KeyRevoked{Code: events.RevokeUnspecified}}, rules: rules(), want: "state"},
		{name: "an expired key", given: ends(day), rules: rules(), want: "state"},
		{name: "a type that is gone", rules: rules(func(r *commands.Rules) { r.Definition.KeyTypes = r.Definition.KeyTypes[1:] }), want: "type:unknown_type"},
		{name: "a scope that is gone", rules: rules(func(r *commands.Rules) { r.Definition.Scopes = r.Definition.Scopes[1:] }), want: "scopes[0]:unknown_scope"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := life(t, tt.given...)
			created, rotated, err := tt.when.Decide(k, tt.rules, now, events.KeyID{7}, events.NewSecret("new").Digest(), "sk_live_bbbb")
			if err != nil || tt.want != "" {
				if codeOf(err) != tt.want {
					t.Errorf("got %s (%v), want %q", codeOf(err), err, tt.want)
				}
				return
			}
			if rotated.After != tt.old || rotated.Before != k.ExpiresAt || created.ExpiresAt != tt.next {
				t.Errorf("the old key ends at %s, its successor at %s; want %s and %s", rotated.After, created.ExpiresAt, tt.old, tt.next)
			}
			if k.ExpiresAt != 0 && rotated.After > k.ExpiresAt {
				t.Errorf("C6: the old key's life grew from %s to %s", k.ExpiresAt, rotated.After)
			}
			if created.RotatedFrom != k.ID || rotated.Successor != (events.KeyID{7}) {
				t.Error("the lineage is broken")
			}
			if created.Name != "ci" || !slices.Equal(created.Scopes, k.Grant.Scopes) || created.Metadata["team"] != "a" || created.Environment != "live" {
				t.Errorf("the successor differs: %s", print(created))
			}
			for _, d := range []events.Data{created, rotated} {
				if err := d.Validate(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestDecideKeyspaceAndRole(t *testing.T) {
	var none events.Keyspace
	define := commands.DefineKeyspace{Definition: acme}
	data, err := define.Decide(&none, "acme")
	if err != nil || data == nil || data.Before != nil {
		t.Fatalf("define: %v, %v", data, err)
	}
	had := events.Keyspace{Chain: events.Chain{Rev: 1}, ID: "acme", Definition: acme}
	if data, err := define.Decide(&had, "acme"); err != nil || data != nil {
		t.Errorf("the same definition: %v, %v", data, err)
	}
	other := commands.DefineKeyspace{Definition: acme}
	other.Title = "Acme"
	if data, err := other.Decide(&had, "acme"); err != nil || data.Before == nil || data.Before.Title != "" {
		t.Errorf("another definition: %v, %v", data, err)
	}
	if _, err := define.Decide(&none, events.Builtin); codeOf(err) != "builtin_protected" {
		t.Errorf("built-in: %v", err)
	}
	bad := commands.DefineKeyspace{Reason: "\n"}
	if _, err := bad.Decide(&none, "A"); codeOf(err) != "key_types:required keyspace:invalid reason:invalid" {
		t.Errorf("bad: %s", codeOf(err))
	}
	big := commands.DefineKeyspace{Definition: acme}
	for i := range 900 {
		big.Scopes = append(big.Scopes, keyspace.ScopeDef{Name: fmt.Sprintf("%s%03d", strings.Repeat("s", 60), i), Description: strings.Repeat("d", 500)})
	}
	if _, err := big.Decide(&none, "acme"); codeOf(err) != "body:too_large" {
		t.Errorf("a definition that could never be replaced within one event: %s", codeOf(err))
	}
	big.Scopes = big.Scopes[:len(acme.Scopes)+855]
	had.Definition, big.Title = big.Definition, "Acme"
	if data, err := big.Decide(&had, "acme"); err != nil {
		t.Errorf("a large definition: %v", err)
	} else if b, err := json.Marshal(data); err != nil || len(b) > 1_030_000 { // of the log's 1 MiB, with envelope and headers
		t.Errorf("replacing a large definition takes %d bytes: %v", len(b), err)
	}

	for _, tt := range []struct {
		cmd  commands.DefineRole
		role events.Role
		id   events.RoleID
		want string
	}{
		{commands.DefineRole{Scopes: &[]string{"write", "read"}}, events.Role{}, "dev", `role.defined{"level":"tenant","scopes":["read","write"]}`},
		{commands.DefineRole{Scopes: &[]string{}}, events.Role{}, "dev", `role.defined{"level":"tenant","scopes":[]}`},
		{commands.DefineRole{Scopes: &[]string{"deploy"}, Level: "division"}, events.Role{Chain: events.Chain{Rev: 1}, Level: "division", Scopes: []string{"write"}}, "dev", `role.defined{"level":"division","scopes":["deploy"],"before":["write"]}`},
		{commands.DefineRole{Scopes: &[]string{"deploy", "read"}, Level: "division"}, events.Role{}, "dev", "scopes[1]:scope_level"},
		{commands.DefineRole{Scopes: &[]string{"deploy"}, Level: "project"}, events.Role{}, "dev", "scopes[0]:scope_level"},
		{commands.DefineRole{Scopes: &[]string{"deploy", "read"}}, events.Role{}, "dev", `role.defined{"level":"tenant","scopes":["deploy","read"]}`},
		{commands.DefineRole{Scopes: &[]string{"read"}}, events.Role{}, "key_00000000000000000000000001", "role:reserved"},
		{commands.DefineRole{Scopes: &[]string{"read"}}, events.Role{Chain: events.Chain{Rev: 2}, Deleted: true}, "key_00000000000000000000000001", `role.defined{"level":"tenant","scopes":["read"]}`},
		{commands.DefineRole{Scopes: &[]string{"read"}}, events.Role{}, "key_8zzzzzzzzzzzzzzzzzzzzzzzzz", `role.defined{"level":"tenant","scopes":["read"]}`},
		{commands.DefineRole{Scopes: &[]string{"read"}, Level: "division"}, events.Role{Chain: events.Chain{Rev: 1}, Level: "tenant"}, "dev", "level:immutable"},
		{commands.DefineRole{Scopes: &[]string{"deploy"}, Level: "division"}, events.Role{Chain: events.Chain{Rev: 2}, Level: "tenant", Deleted: true}, "dev", "level:immutable"},
		{commands.DefineRole{Scopes: &[]string{"deploy"}, Level: "division"}, events.Role{Chain: events.Chain{Rev: 2}, Level: "division", Deleted: true}, "dev", `role.defined{"level":"division","scopes":["deploy"]}`},
		{commands.DefineRole{Scopes: &[]string{"read"}, Level: "planet"}, events.Role{}, "-", "role:invalid level:unknown_kind"},
		{commands.DefineRole{Scopes: &[]string{"fly"}}, events.Role{}, "dev", "scopes[0]:unknown_scope"},
		{commands.DefineRole{}, events.Role{}, "dev", "scopes:required"},
		// Of a list that is too long nothing else is said: it may hold as many as a body.
		{commands.DefineRole{Scopes: ptr(slices.Repeat([]string{"read"}, 201)), Level: "division"}, events.Role{}, "dev", "scopes:invalid"},
		{commands.DefineRole{Scopes: ptr(slices.Repeat([]string{"fly"}, 201))}, events.Role{}, "dev", "scopes:invalid"},
	} {
		data, err := tt.cmd.Decide(&tt.role, rules(), tt.id)
		got := codeOf(err)
		if err == nil {
			got = print(data)
		}
		if got != tt.want {
			t.Errorf("role: got %s, want %s", got, tt.want)
		}
	}
	if _, err := new(commands.DeleteRole).Decide(new(events.Role)); codeOf(err) != "not_found" {
		t.Errorf("delete a role that is not there: %v", err)
	}
}

func TestDecideExpire(t *testing.T) {
	k := life(t, &events.KeyExpiryChanged{After: t0.Add(day)})
	if commands.DecideExpire(k, t0.Add(day)-1) != nil {
		t.Error("expired before its millisecond")
	}
	if d := commands.DecideExpire(k, t0.Add(day)); d == nil || d.ExpiredAt != t0.Add(day) {
		t.Errorf("not expired at its millisecond: %v", d)
	}
	if commands.DecideExpire(life(t), t0.Add(1000*day)) != nil {
		t.Error("a key without expiry expired")
	}
	if commands.DecideExpire(life(t, &events.KeyExpiryChanged{After: t0.Add(day)}, &events.KeyRevoked{Code: events.RevokeUnspecified}), t0.Add(day)) != nil {
		t.Error("a revoked key expired")
	}
}
