package projections

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"unsafe"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// record returns the compact record of w. What the event left as it was is taken
// over from old (nil for a new key) without a look at its contents.
func (v *Keys) record(w *events.Key, old *Key) *Key {
	k := &Key{ID: w.ID, Digest: w.Digest, ExpiresAt: w.ExpiresAt, rev: uint32(w.Rev), turned: !w.RotatedTo.IsZero()}
	copy(k.head[:], w.Head[:])
	space := v.space(w.Keyspace)
	k.Class = v.class(Class{w.Tenant, w.KeyType, w.Environment, w.Status, space, v.tenant(space, w.Tenant)})
	var t terms
	if old != nil && sameList(w.Grant.Scopes, old.terms.grant.given.Scopes) && sameList(w.Grant.Roles, old.terms.grant.given.Roles) {
		t.grant = old.terms.grant
		v.grants.take(t.grant.key, nil)
	} else {
		t.grant = v.grant(space, w.Tenant, w.KeyType, w.Grant)
	}
	if old != nil && sameList(w.Resources, old.Resources()) {
		if t.resources = old.terms.resources; t.resources != nil {
			v.resources.take(t.resources.key, nil)
		}
	} else if len(w.Resources) > 0 {
		t.resources = v.resourceList(w.Resources)
	}
	if old != nil && old.terms.allow != nil && sameList(w.Allowlist, old.terms.allow.list) {
		t.allow = old.terms.allow
		v.allows.take(t.allow.key, nil)
	} else if len(w.Allowlist) > 0 {
		key := sumPrefixes(w.Allowlist)
		t.allow = v.allows.take(key, func() *allowlist { return newAllowlist(key, slices.Clone(w.Allowlist)) })
	}
	if w.Limit != nil {
		t.limit = v.limits.take(*w.Limit, func() *keyspace.Limit { l := *w.Limit; return &l })
	}
	k.terms = v.combine(t)
	switch _, _, limited := k.Limit(space.Rules()); {
	case old != nil:
		// Made now if need be: a reader that still holds old must spend from the same bucket.
		k.bucket.Store(old.Bucket())
	case limited:
		k.bucket.Store(new(Bucket))
	}
	return k
}

// sameList reports whether a and b are the very same list.
func sameList[T any](a, b []T) bool {
	return len(a) == len(b) && unsafe.SliceData(a) == unsafe.SliceData(b)
}

// combine shares the combination of parts that the caller has taken; a
// combination counts as one user of its parts.
func (v *Keys) combine(t terms) *terms {
	if _, known := v.terms[t]; known {
		v.releaseParts(&t)
	}
	return v.terms.take(t, func() *terms { return &t })
}

// release takes back what a replaced record used.
func (v *Keys) release(k *Key) {
	v.classes.drop(k.Class.ref())
	if v.terms.drop(*k.terms) {
		v.releaseParts(k.terms)
	}
}

func (v *Keys) releaseParts(t *terms) {
	if v.grants.drop(t.grant.key) {
		for _, role := range t.grant.given.Roles {
			delete(v.byRole[t.grant.role(role)], t.grant)
		}
	}
	if t.resources != nil {
		v.resources.drop(t.resources.key)
	}
	if t.allow != nil {
		v.allows.drop(t.allow.key)
	}
	if t.limit != nil {
		v.limits.drop(*t.limit)
	}
}

// class shares c. Its strings are copied: they may be parts of a whole message.
func (v *Keys) class(c Class) *Class {
	own := v.classes[c.ref()].v
	if own == nil {
		own = &Class{events.TenantID(strings.Clone(string(c.Tenant))), strings.Clone(c.KeyType), strings.Clone(c.Environment), c.Status, c.Space, c.Whole}
	}
	return v.classes.take(own.ref(), func() *Class { return own })
}

// classRef tells classes apart: a tenant as a whole is of one keyspace.
type classRef struct {
	whole                *Tenant
	keyType, environment string
	status               events.Status
}

func (c *Class) ref() classRef { return classRef{c.Whole, c.KeyType, c.Environment, c.Status} }

// tenant returns the tenant of the keyspace. Tenants are never taken back: there
// is no key without one, and keys stay (P5).
func (v *Keys) tenant(space *Keyspace, id events.TenantID) *Tenant {
	t := v.tenants[space][id]
	if t == nil {
		t = new(Tenant)
		if v.tenants[space] == nil {
			v.tenants[space] = map[events.TenantID]*Tenant{}
		}
		v.tenants[space][events.TenantID(strings.Clone(string(id)))] = t
	}
	return t
}

func (v *Keys) grant(space *Keyspace, tenant events.TenantID, keyType string, given events.Grant) *grant {
	if len(given.Roles) == 0 {
		tenant = "" // then tenants share it
	}
	key := sumGrant(space, tenant, keyType, given)
	return v.grants.take(key, func() *grant {
		g := &grant{key: key, space: space, tenant: tenant, keyType: keyType, given: given}
		v.index(g)
		return g
	})
}

// index makes a new grant known to its roles, and resolves it.
func (v *Keys) index(g *grant) {
	for _, role := range g.given.Roles {
		ref := g.role(role)
		if v.byRole[ref] == nil {
			v.byRole[ref] = map[*grant]struct{}{}
		}
		v.byRole[ref][g] = struct{}{}
	}
	v.resolve(g)
}

func sumGrant(space *Keyspace, tenant events.TenantID, keyType string, given events.Grant) sum {
	h := make(encoding, 0, 256).text(string(space.ID)).text(string(tenant)).text(keyType)
	for _, s := range given.Scopes {
		h = h.text(s)
	}
	h = h.text("") // no scope or role is empty: the end of the one and the start of the other
	for _, r := range given.Roles {
		h = h.text(string(r))
	}
	return h.sum()
}

func (g *grant) role(id events.RoleID) roleRef { return roleRef{g.space.ID, g.tenant, id} }

// resolve brings the grant up to the current definitions. A deleted role gives
// nothing.
func (v *Keys) resolve(g *grant) {
	names := slices.Clone(g.given.Scopes)
	for _, id := range g.given.Roles {
		if role := v.roles[g.role(id)]; role != nil && role.Exists() {
			names = append(names, role.Scopes...)
		}
	}
	g.effective.Store(newScopes(g.space.Rules().Effective(g.keyType, names)))
}

func (v *Keys) resourceList(list []events.Resource) *resources {
	key := sumResources(list)
	return v.resources.take(key, func() *resources { return &resources{key, slices.Clone(list)} })
}

// sum names a shared value by its content: 128 bits of SHA-256, so that equal
// sums are equal values.
type sum [16]byte

// encoding is what is summed: each text behind its length.
type encoding []byte

func (e encoding) text(s string) encoding {
	return append(binary.AppendUvarint(e, uint64(len(s))), s...)
}

func (e encoding) sum() sum {
	h := sha256.Sum256(e)
	return sum(h[:16])
}

func sumPrefixes(list []netip.Prefix) sum {
	h := make(encoding, 0, 18*len(list))
	for _, p := range list {
		h = append(append(h, byte(p.Bits())), 0)
		b := p.Addr().As16()
		if p.Addr().Is4() {
			h[len(h)-1] = 4
		}
		h = append(h, b[:]...)
	}
	return h.sum()
}

func sumResources(list []events.Resource) sum {
	h := make(encoding, 0, 256)
	for _, r := range list {
		h = h.text(r.Kind).text(r.ID)
	}
	return h.sum()
}
