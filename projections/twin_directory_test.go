package projections

import (
	"cmp"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
)

func compareDirectory(t rapid.TB, w *world, d *Directory) {
	t.Helper()
	equal(t, "position", d.At(), events.Seq(len(w.log)))
	owner := map[events.Digest]events.KeyID{}
	var all []events.Key
	for _, ref := range w.refs {
		want := w.key(ref)
		got, ok := d.Key(ref.Key)
		if !ok {
			t.Fatalf("%s is unknown", ref.Key)
		}
		equal(t, "key", got, want)
		r, _ := d.Ref(ref.Key)
		equal(t, "ref", r, ref)
		if _, taken := owner[want.Digest]; !taken {
			owner[want.Digest] = ref.Key
		}
		id, _ := d.Digest(want.Digest)
		equal(t, "owner", id, owner[want.Digest])
		all = append(all, want)
	}
	for _, q := range []ListQuery{
		{}, {Keyspace: "alpha"}, {Keyspace: "alpha", Tenant: "t1"}, {Keyspace: "beta", Tenants: []events.TenantID{"t3", "t1", "t3"}},
		{Keyspace: "beta", Tenants: []events.TenantID{"t2"}, Tenant: "t1"}, {Keyspace: "alpha", Status: events.StatusExpired, Now: w.now},
		{Name: "BUILD"}, {Keyspace: "alpha", Name: "2", Status: events.StatusActive, Now: w.now},
	} {
		var want, got []events.Key
		for _, k := range all { // already in the order of creation
			if q.Keyspace != "" && k.Keyspace != q.Keyspace || q.Tenant != "" && k.Tenant != q.Tenant ||
				len(q.Tenants) > 0 && !slices.Contains(q.Tenants, k.Tenant) || q.Status != "" && k.StatusAt(q.Now) != q.Status ||
				!strings.Contains(strings.ToLower(k.Label.Name), strings.ToLower(q.Name)) {
				continue
			}
			want = append(want, k)
		}
		q.Limit = 2
		for {
			page, next := d.List(q)
			got = append(got, page...)
			if next == 0 {
				break
			}
			if len(page) != 2 {
				t.Fatalf("%+v: a page of %d that is not the last", q, len(page))
			}
			q.After = next
		}
		equal(t, "list", got, want)
	}
	for _, k := range all {
		byID := func(a, b events.Key) int { return strings.Compare(a.ID.String(), b.ID.String()) }
		var want []events.Key
		for _, o := range all {
			if s := o.StatusAt(w.now); o.Keyspace == k.Keyspace && o.Tenant == k.Tenant && o.Label.Name == k.Label.Name &&
				(s == events.StatusActive || s == events.StatusDisabled) {
				want = append(want, o)
			}
		}
		got := d.Named(k.Keyspace, k.Tenant, k.Label.Name, w.now)
		slices.SortFunc(want, byID)
		slices.SortFunc(got, byID)
		equal(t, "named", got, want)
	}
	for _, ks := range someSpaces {
		var whole []events.Key
		for k := range d.All(ks) {
			whole = append(whole, *k)
		}
		var mine []events.Key
		for _, k := range all { // already in the order of creation
			if k.Keyspace == ks {
				mine = append(mine, k)
			}
		}
		equal(t, "all", whole, mine)
		for k := range d.All(ks) {
			equal(t, "first", *k, whole[0])
			break
		}
		defs := w.definitions(ks)
		got, ok := d.Keyspace(ks)
		equal(t, "keyspace is known", ok, len(defs) > 0)
		if ok {
			equal(t, "definition", got.Definition, defs[len(defs)-1])
		}
		for _, tenant := range someTenants {
			h, whole := w.history(events.TenantAggregate(ks, tenant)), d.Tenant(ks, tenant)
			equal(t, "tenant's rev", whole.Rev, uint64(len(h)))
			equal(t, "tenant", spaceTenant{whole.Keyspace, whole.ID}, spaceTenant{ks, tenant})
			if len(h) > 0 {
				equal(t, "tenant's own limit", whole.Limit, h[len(h)-1].Data.(*events.TenantLimitUpdated).After)
			}
			var want []events.RoleID
			for _, role := range someRoles {
				h := w.history(events.RoleAggregate(ks, tenant, role))
				if len(h) > 0 && h[len(h)-1].Type() == events.TypeRoleDefined {
					want = append(want, role)
				}
				r, ok := d.Role(ks, tenant, role)
				equal(t, "role is known", ok, len(h) > 0)
				equal(t, "role's rev", r.Rev, uint64(len(h)))
			}
			var got []events.RoleID
			for _, r := range d.Roles(ks, tenant) {
				got = append(got, r.ID)
			}
			equal(t, "roles", got, want)
		}
	}
	if !slices.IsSortedFunc(d.Keyspaces(), func(a, b events.Keyspace) int { return cmp.Compare(a.ID, b.ID) }) {
		t.Fatal("keyspaces are not sorted")
	}
}
