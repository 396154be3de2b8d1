package events_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
)

func TestPrincipal(t *testing.T) {
	for _, c := range []struct {
		keyspaces []events.KeyspaceID
		tenants   []events.TenantID
		ks        events.KeyspaceID
		tenant    events.TenantID
		want      bool
	}{
		{nil, nil, "shop", "acme", true},
		{nil, nil, "shop", events.NoTenant, true},
		{[]events.KeyspaceID{"shop"}, nil, "shop", "acme", true},
		{[]events.KeyspaceID{"shop"}, nil, "shop", events.NoTenant, true},
		{[]events.KeyspaceID{"shop"}, nil, "bank", "acme", false},
		{nil, []events.TenantID{"acme"}, "shop", "acme", true},
		{nil, []events.TenantID{"acme"}, "shop", "globex", false},
		{nil, []events.TenantID{"acme"}, "shop", events.NoTenant, false},
		{[]events.KeyspaceID{"shop", "mail"}, []events.TenantID{"acme", "b"}, "mail", "b", true},
		{[]events.KeyspaceID{"shop"}, []events.TenantID{"acme"}, "bank", "acme", false},
		{[]events.KeyspaceID{"shop"}, []events.TenantID{"acme"}, "shop", "globex", false},
		{nil, nil, events.Builtin, events.RootTenant, true},
		{nil, []events.TenantID{events.RootTenant}, events.Builtin, events.RootTenant, false},
		{nil, []events.TenantID{events.RootTenant}, events.Builtin, events.NoTenant, false},
		{nil, []events.TenantID{events.RootTenant}, "shop", events.RootTenant, true},
		{[]events.KeyspaceID{events.Builtin}, []events.TenantID{events.RootTenant}, events.Builtin, events.RootTenant, true},
		{[]events.KeyspaceID{"shop"}, []events.TenantID{events.RootTenant}, events.Builtin, events.RootTenant, false},
	} {
		p := events.Principal{Keyspaces: c.keyspaces, Tenants: c.tenants}
		if got := p.Reaches(c.ks, c.tenant); got != c.want {
			t.Errorf("restricted to %v %v it reaches %s/%s: %v", c.keyspaces, c.tenants, c.ks, c.tenant, got)
		}
	}
	res := func(s ...string) (out []events.Resource) {
		for _, x := range s {
			kind, id, _ := strings.Cut(x, "/")
			out = append(out, events.Resource{Kind: kind, ID: id})
		}
		return out
	}
	full := []string{"audit:read", "keys:read", "keys:write"}
	for _, c := range []struct {
		name      string
		keyspaces []events.KeyspaceID
		tenants   []events.TenantID
		scopes    []string
		resources []events.Resource
		want      bool
	}{
		{"the same", nil, nil, full, nil, true},
		{"less", nil, nil, full[:1], res("keyspace/shop", "tenant/acme"), true},
		{"nothing", nil, nil, nil, nil, true},
		{"a scope more", nil, nil, []string{"keys:read", "keyspaces:write"}, nil, false},
		{"admin", nil, nil, []string{"admin"}, nil, false},
		{"without its restriction", []events.KeyspaceID{"shop"}, nil, full, nil, false},
		{"with its restriction", []events.KeyspaceID{"shop"}, nil, full, res("keyspace/shop"), true},
		{"restricted further", []events.KeyspaceID{"shop"}, nil, full, res("keyspace/shop", "tenant/acme"), true},
		{"a keyspace more", []events.KeyspaceID{"shop"}, nil, full, res("keyspace/shop", "keyspace/bank"), false},
		{"another keyspace", []events.KeyspaceID{"shop"}, nil, full, res("keyspace/bank"), false},
		{"one of two", []events.KeyspaceID{"shop", "bank"}, nil, full, res("keyspace/bank"), true},
		{"tenant for keyspace", []events.KeyspaceID{"shop"}, nil, full, res("tenant/shop"), false},
		{"another kind for keyspace", []events.KeyspaceID{"shop"}, nil, full, res("project/shop"), false},
		{"a tenant more", nil, []events.TenantID{"acme"}, full, res("tenant/acme", "tenant/globex"), false},
		{"its tenant, no keyspace", nil, []events.TenantID{"acme"}, full, res("tenant/acme"), true},
		{"both needed, one given", []events.KeyspaceID{"shop"}, []events.TenantID{"acme"}, full, res("keyspace/shop"), false},
		{"the built-in keyspace from a tenant's restriction", nil, []events.TenantID{"operators"}, full, res("keyspace/keytrail", "tenant/operators"), false},
		{"the built-in keyspace from its own", []events.KeyspaceID{"keytrail"}, nil, full, res("keyspace/keytrail", "tenant/operators"), true},
		{"both needed, both given", []events.KeyspaceID{"shop"}, []events.TenantID{"acme"}, full, res("keyspace/shop", "tenant/acme"), true},
	} {
		p := events.Principal{Scopes: full, Keyspaces: c.keyspaces, Tenants: c.tenants}
		if got := p.Covers(c.scopes, c.resources); got != c.want {
			t.Errorf("%s: covers %v, want %v", c.name, got, c.want)
		}
	}
	// Whatever a minted key reaches, its creator reaches too; and what two principals
	// hold in common is what each of them holds.
	draw := func(r *rapid.T, name string) events.Principal {
		return events.Principal{
			Scopes:    rapid.SliceOfNDistinct(rapid.SampledFrom(full), 0, 3, rapid.ID).Draw(r, name+" scopes"),
			Keyspaces: rapid.SliceOfN(rapid.SampledFrom([]events.KeyspaceID{"a", "b", events.Builtin}), 0, 3).Draw(r, name+" keyspaces"),
			Tenants:   rapid.SliceOfN(rapid.SampledFrom([]events.TenantID{"x", "y", events.RootTenant}), 0, 3).Draw(r, name+" tenants"),
		}
	}
	places := func(yield func(events.KeyspaceID, events.TenantID) bool) {
		for _, k := range []events.KeyspaceID{"a", "b", events.Builtin, "other"} {
			for _, x := range []events.TenantID{"x", "y", events.RootTenant, "other", events.NoTenant} {
				if !yield(k, x) {
					return
				}
			}
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		p, minted := draw(r, "creator"), draw(r, "minted")
		var rs []events.Resource
		for _, k := range minted.Keyspaces {
			rs = append(rs, events.Resource{Kind: events.ResourceKeyspace, ID: string(k)})
		}
		for _, x := range minted.Tenants {
			rs = append(rs, events.Resource{Kind: events.ResourceTenant, ID: string(x)})
		}
		beyond := slices.ContainsFunc(minted.Scopes, func(s string) bool { return !p.Has(s) })
		for k, x := range places {
			beyond = beyond || minted.Reaches(k, x) && !p.Reaches(k, x)
		}
		if covers := p.Covers(minted.Scopes, rs); covers == beyond {
			r.Fatalf("%+v covers %+v: %v, but beyond: %v", p, minted, covers, beyond)
		}
		both := p
		some := both.Narrow(&minted)
		for k, x := range places {
			want := p.Reaches(k, x) && minted.Reaches(k, x)
			if want && !some || some && both.Reaches(k, x) != want {
				r.Fatalf("%+v and %+v both reach %s/%s: %v; narrowed it does: %v, %+v", p, minted, k, x, want, some, both)
			}
		}
		for _, s := range full {
			if both.Has(s) != (p.Has(s) && minted.Has(s)) {
				r.Fatalf("%+v and %+v: scope %s", p, minted, s)
			}
		}
	})
}
