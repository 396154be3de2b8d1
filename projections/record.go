package projections

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/seam"
)

// record is what the view holds of one key and a reader needs: one cache line without
// a pointer.
//
// Two words of it change, and no event changes both: so each event takes effect with
// one store, and a writer that stops in the midst of one leaves nothing half done. A
// reader that found the same state before and after it read the expiry has both as they
// were at one moment; the tick makes sure that it is the same state and not an equal
// one.
type record struct {
	digest  [3]uint64     // the first 192 bits: nobody finds two secrets that agree in them
	id      [2]uint64     //
	fixed   uint64        // the kind's number and the tenant's
	expires atomic.Int64  //
	state   atomic.Uint64 // the number of its terms, 29 bits that count its changes, its status
}

// rest is what only the fold and snapshots need of a key.
type rest struct {
	digest [8]byte // the other 64 bits
	rev    uint32
	head   [11]byte // start of the hash of the key's last event
	turned bool     // it has been rotated
}

const (
	statusBits = 3
	tickBits   = 29
)

func newState(terms uint32, tick uint64, status uint8) uint64 {
	return uint64(terms)<<(tickBits+statusBits) | tick<<statusBits&(1<<(tickBits+statusBits)-1) | uint64(status)
}

func termsOf(state uint64) uint32 { return uint32(state >> (tickBits + statusBits)) }
func statusOf(state uint64) uint8 { return uint8(state & (1<<statusBits - 1)) }

// words are the digest as a record begins with it.
func words(d *events.Digest) [3]uint64 {
	return [3]uint64{binary.LittleEndian.Uint64(d[:]), binary.LittleEndian.Uint64(d[8:]), binary.LittleEndian.Uint64(d[16:])}
}

func idWords(id *events.KeyID) [2]uint64 {
	return [2]uint64{binary.LittleEndian.Uint64(id[:]), binary.LittleEndian.Uint64(id[8:])}
}

func (r *record) keyID() (id events.KeyID) {
	binary.LittleEndian.PutUint64(id[:], r.id[0])
	binary.LittleEndian.PutUint64(id[8:], r.id[1])
	return id
}

func (r *record) kindAndTenant() (kind, tenant uint32) { return uint32(r.fixed >> 32), uint32(r.fixed) }

// read reads the key at the slot as it is at one moment (P1). What it shares with others
// is read after that: Still tells whether both belong to one moment.
func (v *Keys) read(slot uint32, k *Key) {
	r := v.records.at(slot)
	for {
		k.state = r.state.Load()
		seam.At()
		k.ExpiresAt = events.Time(r.expires.Load())
		seam.At()
		k.terms = v.terms.get(termsOf(k.state))
		seam.At()
		if r.state.Load() == k.state {
			break // so the number of the terms still meant these
		}
	}
	kind, tenant := r.kindAndTenant()
	k.ID = r.keyID()
	k.Kind = v.kinds.at(kind)
	k.Whole = v.tenants.at(tenant)
	k.Tenant = k.Whole.ID
	k.Slot, k.TenantSlot = Slot(slot), Slot(tenant)
	seam.At()
	k.given = k.terms.given()
	seam.At()
	k.Rules = k.Space.Rules()
	seam.At()
}

// Version counts the events applied of keyspaces, roles and tenants: of what keys share.
// It is asked before a key is read, and Still afterwards.
func (v *Keys) Version() uint64 { return v.version.Load() }

// Still reports whether everything that was read since Version returned version was true
// at one moment: the key k, which may not exist, the rules, what roles give and what
// limits tenants have. So nobody ever pairs the rules of one definition with the grants
// of another. Who is told no reads again; nobody waits.
//
// Each event of what keys share takes effect with one store and is counted after it. If
// the count is the same, at most one such store has come between. What was read before
// it belongs to the moment when k was read, and what was read after it to the moment of
// this call, if k is the same by now.
func (v *Keys) Still(version uint64, k *Key) bool {
	seam.At()
	if k.Exists() {
		r := v.records.at(uint32(k.Slot))
		if r.state.Load() != k.state || events.Time(r.expires.Load()) != k.ExpiresAt {
			return false
		}
	}
	seam.At()
	return v.version.Load() == version
}

// byDigest returns the slot of the key whose secret has the digest.
func (v *Keys) byDigest(d *events.Digest) (uint32, bool) {
	want := words(d)
	for at := v.digests.probe(hashDigest(&want)); ; {
		slot, ok := at.next()
		if !ok || v.records.at(slot).digest == want {
			return slot, ok
		}
	}
}

// byID returns the slot of the key with the id.
func (v *Keys) byID(id *events.KeyID) (uint32, bool) {
	want := idWords(id)
	for at := v.ids.probe(hashID(&want)); ; {
		slot, ok := at.next()
		if !ok || v.records.at(slot).id == want {
			return slot, ok
		}
	}
}

// whole is a key as the fold and a snapshot see it.
type whole struct {
	id      events.KeyID
	digest  events.Digest
	kind    *Kind
	tenant  *Tenant
	expires events.Time
	state   uint64
	terms   *terms
	rest
}

// at returns the key at the slot. Writer only.
func (v *Keys) at(slot uint32) (w whole) {
	r := v.records.at(slot)
	kind, tenant := r.kindAndTenant()
	w.id, w.kind, w.tenant = r.keyID(), v.kinds.at(kind), v.tenants.at(tenant)
	w.expires, w.state = events.Time(r.expires.Load()), r.state.Load()
	w.terms = v.terms.get(termsOf(w.state))
	w.rest = *v.rests.at(slot)
	for i, word := range r.digest {
		binary.LittleEndian.PutUint64(w.digest[8*i:], word)
	}
	copy(w.digest[24:], w.rest.digest[:])
	return w
}

func (w *whole) status() events.Status { return statuses[statusOf(w.state)] }

// key returns the key that events.Key.Next continues: every field that Next reads, or
// that the view keeps. Next compares the whole hash of the event before, of which the
// view has the start: given matches it, so it stands in for the rest.
func (w *whole) key(prev events.Hash) events.Key {
	k := events.Key{
		Chain:       events.Chain{Rev: uint64(w.rev)},
		ID:          w.id,
		Keyspace:    w.kind.Space.ID,
		Tenant:      w.tenant.ID,
		Digest:      w.digest,
		KeyType:     w.kind.KeyType,
		Environment: w.kind.Environment,
		Grant:       w.terms.grant(),
		Limit:       w.terms.ownLimit(),
		ExpiresAt:   w.expires,
		Status:      w.status(),
	}
	if copy(k.Head[:], w.head[:]); [11]byte(prev[:11]) == w.head {
		k.Head = prev
	}
	if w.terms.resources != nil {
		k.Resources = w.terms.resources.list
	}
	if w.terms.allow != nil {
		k.Allowlist = w.terms.allow.list
	}
	if w.turned {
		k.RotatedTo = w.id // any key: Next asks only whether there is one
	}
	return k
}

// create stores a new key and makes it known.
func (v *Keys) create(k *events.Key) {
	space := v.space(k.Keyspace)
	t := terms{resources: v.resourceList(k.Resources), allow: v.allowlist(k.Allowlist), limit: v.limit(k.Limit)}
	tenant := v.tenant(space, k.Tenant)
	v.grant(&t, v.tenants.at(tenant), k.Grant)
	n := v.take(&t)
	w := rest{rev: uint32(k.Rev), head: [11]byte(k.Head[:11]), turned: !k.RotatedTo.IsZero()}
	v.put(k.ID, k.Digest, v.kind(space, k.KeyType, k.Environment), tenant, k.ExpiresAt, newState(n, 0, statusNumber(k.Status)), w)
}

func statusNumber(s events.Status) uint8 { return uint8(slices.Index(statuses[:], s)) }

// put stores a new key whose terms the caller has taken.
func (v *Keys) put(id events.KeyID, digest events.Digest, kind, tenant uint32, expires events.Time, state uint64, w rest) {
	slot, r := v.records.add()
	r.digest, r.id, r.fixed = words(&digest), idWords(&id), uint64(kind)<<32|uint64(tenant)
	r.expires.Store(int64(expires))
	r.state.Store(state)
	v.shared.terms.hold(termsOf(state))
	_, kept := v.rests.add()
	w.digest = [8]byte(digest[24:])
	*kept = w
	if _, taken := v.byDigest(&digest); taken { // P6
		v.doubles = append(v.doubles, slot)
	} else {
		v.digests.insert(slot)
	}
	v.ids.insert(slot)
	v.count.Add(1)
}

// update takes the key at the slot from what it was to what it is.
func (v *Keys) update(slot uint32, old *whole, was, is *events.Key) {
	for _, p := range v.pictures {
		p.keep(slot, old)
	}
	kept := v.rests.at(slot)
	kept.rev, kept.head, kept.turned = uint32(is.Rev), [11]byte(is.Head[:11]), !is.RotatedTo.IsZero()
	r := v.records.at(slot)
	if is.ExpiresAt != was.ExpiresAt {
		r.expires.Store(int64(is.ExpiresAt)) // and nothing below, by events.Key.Next
	}
	before := termsOf(old.state)
	now := before
	if t := v.change(*old.terms, old.tenant, was, is); t != *old.terms {
		now = v.take(&t)
		v.shared.terms.hold(now)
	}
	status := statusNumber(is.Status)
	if now == before && status == statusOf(old.state) {
		return
	}
	r.state.Store(newState(now, old.state>>statusBits+1, status))
	seam.At()
	if now != before {
		v.release(before)
	}
}

// change returns t with what the event changed, without a look at the contents of what
// it did not.
func (v *Keys) change(t terms, tenant *Tenant, was, is *events.Key) terms {
	if !sameList(was.Grant.Scopes, is.Grant.Scopes) || !sameList(was.Grant.Roles, is.Grant.Roles) {
		v.grant(&t, tenant, is.Grant)
	}
	if !sameList(was.Resources, is.Resources) {
		t.resources = v.resourceList(is.Resources)
	}
	if !sameList(was.Allowlist, is.Allowlist) {
		t.allow = v.allowlist(is.Allowlist)
	}
	if was.Limit != is.Limit {
		t.limit = v.limit(is.Limit)
	}
	return t
}

// sameList reports whether a and b are the very same list.
func sameList[T any](a, b []T) bool {
	return len(a) == len(b) && unsafe.SliceData(a) == unsafe.SliceData(b)
}

// grant sets the scopes and roles of t.
func (v *Keys) grant(t *terms, tenant *Tenant, g events.Grant) {
	t.scopes, t.role, t.roles = v.scopeSet(tenant.space, g.Scopes), nil, nil
	switch len(g.Roles) {
	case 0:
	case 1:
		t.role = v.role(tenant, g.Roles[0])
	default:
		list := make([]*role, len(g.Roles))
		for i, id := range g.Roles {
			list[i] = v.role(tenant, id)
		}
		t.roles = v.roleSet(list)
	}
}
