package projections

import (
	"testing"
	"unsafe"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// The layout is the one that the package comment shows.
func TestLayout(t *testing.T) {
	for _, c := range []struct {
		what      string
		got, want uintptr
	}{
		{"record", unsafe.Sizeof(record{}), 64},
		{"rest", unsafe.Sizeof(rest{}), 24},
		{"terms", unsafe.Sizeof(terms{}), 48},
		{"Tenant", unsafe.Sizeof(Tenant{}), 40},
		{"role", unsafe.Sizeof(role{}), 96},
	} {
		if c.got != c.want {
			t.Errorf("a %s has %d bytes, the package comment says %d", c.what, c.got, c.want)
		}
	}
	var a arena[record]
	if _, first := a.add(); uintptr(unsafe.Pointer(first))%64 != 0 {
		t.Error("a record does not begin with a cache line")
	}
}

// Each event of a key's life stores at most one of the two words that change, and one
// only if what readers see of the key is another: so no reader finds half of it.
func TestEventsStoreOneWord(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	ref := w.create("ks", "acme", "1", func(d *events.KeyCreated) { d.ExpiresAt = w.now + 1000 })
	apply(t, v, w)
	for _, c := range []struct {
		d                 events.Data
		state, expiration bool
	}{
		{&events.KeyScopesAssigned{After: events.Grant{Scopes: []string{"read"}, Roles: []events.RoleID{"dev"}}}, true, false},
		{&events.KeyResourcesAssigned{After: someResources}, true, false},
		{&events.KeyAllowlistUpdated{After: somePrefixes[:1]}, true, false},
		{&events.KeyLimitUpdated{After: &keyspace.Limit{Plan: "gold"}}, true, false},
		{&events.KeyLimitUpdated{Before: &keyspace.Limit{Plan: "gold"}, After: &keyspace.Limit{Plan: "gold"}}, false, false},
		{&events.KeyRenamed{After: events.Label{Name: "x"}}, false, false},
		{&events.KeyExpiryChanged{After: w.now + 900}, false, true},
		{&events.KeyRotated{Successor: ref.Key, After: w.now + 800}, false, true},
		{&events.KeyDisabled{}, true, false},
		{&events.KeyEnabled{}, true, false},
		{&events.KeyExpired{ExpiredAt: w.now}, true, false},
	} {
		was, _ := v.whole(ref.Key)
		w.add(ref.Aggregate(), c.d)
		apply(t, v, w)
		is, _ := v.whole(ref.Key)
		if (was.state != is.state) != c.state || (was.expires != is.expires) != c.expiration {
			t.Errorf("%s: state %x, then %x; expiry %d, then %d", c.d.EventType(), was.state, is.state, was.expires, is.expires)
		}
	}
	again := w.create("ks", "acme", "2", nil)
	w.add(again.Aggregate(), &events.KeyRevoked{Code: events.RevokeCompromise})
	apply(t, v, w)
	if k := byID(v, again.Key); k.Status() != events.StatusRevoked {
		t.Error(k.Status())
	}
}

// Still says no as soon as anything that was read is not so any more, also in the moment
// between the store of an event and its count.
func TestStill(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	w.role("ks", "acme", "dev", "read")
	ref := w.create("ks", "acme", "1", func(d *events.KeyCreated) { d.Roles = []events.RoleID{"dev"} })
	other := w.create("ks", "acme", "2", nil)
	apply(t, v, w)
	key := ref.Aggregate()
	for _, c := range []struct {
		name  string
		event func()
		still bool
	}{
		{"nothing", func() {}, true},
		{"another key", func() { w.add(other.Aggregate(), &events.KeyRenamed{After: events.Label{Name: "x"}}) }, true},
		{"a new key", func() { w.create("ks", "acme", "3", nil) }, true},
		{"the key's name", func() { w.add(key, &events.KeyRenamed{After: events.Label{Name: "x"}}) }, true},
		{"the definition", func() { w.define("ks", definition()) }, false},
		{"another keyspace", func() { w.define("ks-2", definition()) }, false},
		{"a role", func() { w.role("ks", "acme", "dev", "write") }, false},
		{"a tenant", func() { w.tenantLimit("ks", "acme", nil) }, false},
		{"the key's scopes", func() { w.add(key, &events.KeyScopesAssigned{After: events.Grant{Scopes: []string{"read"}}}) }, false},
		{"the key's expiry", func() { w.add(key, &events.KeyExpiryChanged{After: w.now + 1000}) }, false},
		{"the key is disabled", func() { w.add(key, &events.KeyDisabled{}) }, false},
		{"enabled, and disabled as it was", func() {
			w.add(key, &events.KeyEnabled{})
			w.add(key, &events.KeyDisabled{})
		}, false},
	} {
		version := v.Version()
		k, none := byID(v, ref.Key), Key{}
		c.event()
		apply(t, v, w)
		if v.Still(version, k) != c.still {
			t.Errorf("%s: still so: %v", c.name, !c.still)
		}
		if v.Still(version, &none) != (v.Version() == version) {
			t.Errorf("%s: a key that is not there depends on nothing but what is shared", c.name)
		}
	}
	version, k := v.Version(), byID(v, ref.Key)
	w.add(key, &events.KeyExpiryChanged{Before: k.ExpiresAt, After: w.now + 10})
	apply(t, v, w)
	v.space("ks").rules.Store(new(Rules)) // the store of a definition that is not counted yet
	if v.Version() != version || v.Still(version, k) {
		t.Error("a key from before an event is paired with rules from after it")
	}
}
