package projections

import (
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/seam"
)

// Keys is the verifier's view: every key there ever was by its digest, in some 120
// bytes a key, with reads that take no lock (P1). What a key shares with no other (the
// only key of its tenant, a role, restriction or allowlist of its own) comes on top,
// some 70 to 200 bytes each. It implements events.Follower; Apply and Fresh belong to
// one goroutine, all else to any.
type Keys struct {
	fold
	fresh   atomic.Int64  // the log's clock at the last heartbeat that was fully applied
	applied atomic.Uint64 // events folded since the start
	count   atomic.Int64
	spaces  atomic.Pointer[map[events.KeyspaceID]*Keyspace] // defined keyspaces; swapped whole
	version atomic.Uint64                                   // events applied that change what keys share

	mu sync.Mutex // held while applying, and shortly by a snapshot; guards what readers do not need

	// Readers need no lock for these.
	records      arena[record]
	kinds        arena[Kind]
	tenants      arena[Tenant]
	digests, ids index
	shared

	rests     arena[rest]
	doubles   []uint32                        // keys whose digest belongs to an earlier one (P6)
	undefined map[events.KeyspaceID]*Keyspace // keyspaces that events speak of before their definition
	roles     arena[role]
	kindsBy   map[kindRef]uint32
	tenantsBy index
	rolesBy   index
	pictures  []*picture // snapshots that are being written
}

type roleRef struct {
	space  events.KeyspaceID
	tenant events.TenantID
	role   events.RoleID
}

type kindRef struct {
	space                *Keyspace
	keyType, environment string
}

// NewKeys returns the view of an empty log.
func NewKeys() *Keys {
	v := &Keys{undefined: map[events.KeyspaceID]*Keyspace{}, kindsBy: map[kindRef]uint32{}, shared: newShared()}
	v.digests.hash = func(slot uint32) uint64 { return hashDigest(&v.records.at(slot).digest) }
	v.ids.hash = func(slot uint32) uint64 { return hashID(&v.records.at(slot).id) }
	v.tenantsBy.hash = func(i uint32) uint64 {
		t := v.tenants.at(i)
		return hashTenant(t.space, t.ID)
	}
	v.rolesBy.hash = func(i uint32) uint64 {
		r := v.roles.at(i)
		return hashRole(r.whole, r.id)
	}
	v.spaces.Store(&map[events.KeyspaceID]*Keyspace{})
	return v
}

func hashTenant(s *Keyspace, id events.TenantID) uint64 {
	return maphash.Comparable(poolSeed, struct {
		*Keyspace
		events.TenantID
	}{s, id})
}

func hashRole(t *Tenant, id events.RoleID) uint64 {
	return maphash.Comparable(poolSeed, struct {
		*Tenant
		events.RoleID
	}{t, id})
}

// Find returns the slot of the key whose secret has the digest, and whether there ever
// was one.
func (v *Keys) Find(d events.Digest) (Slot, bool) {
	slot, ok := v.byDigest(&d)
	return Slot(slot), ok
}

// Read reads the key at a slot that Find has returned into k.
func (v *Keys) Read(slot Slot, k *Key) { v.read(uint32(slot), k) }

// ByID reads the key with the id into k and reports whether there ever was one; if not,
// it leaves k as it is.
func (v *Keys) ByID(id events.KeyID, k *Key) bool {
	slot, ok := v.byID(&id)
	if ok {
		v.read(slot, k)
	}
	return ok
}

// Keyspace returns the keyspace with the id, nil if it was never defined.
func (v *Keys) Keyspace(id events.KeyspaceID) *Keyspace { return (*v.spaces.Load())[id] }

// Len returns how many keys there are, the ended ones included (P5).
func (v *Keys) Len() int { return int(v.count.Load()) }

// Staleness returns the shortest and the longest bound of the keyspaces, and of one
// without a definition, on how old a view they are answered from.
func (v *Keys) Staleness() (shortest, longest time.Duration) {
	shortest = keyspace.Staleness{}.MaxStaleness()
	longest = shortest
	for _, s := range *v.spaces.Load() {
		bound := s.Rules().Staleness.MaxStaleness()
		shortest, longest = min(shortest, bound), max(longest, bound)
	}
	return shortest, longest
}

// FreshAt returns the log's own clock at the last heartbeat whose events are all
// applied, 0 if there was none yet: what the view says was true then.
func (v *Keys) FreshAt() events.Time { return events.Time(v.fresh.Load()) }

// Fresh implements events.Follower.
func (v *Keys) Fresh(at events.Time, last events.Seq) {
	if last > v.At() { // this violates the contract; accepting it would hide staleness
		return
	}
	v.fresh.Store(max(int64(at), v.fresh.Load()))
}

// Resume returns where the fold stands, proven or not: Follow begins there.
func (v *Keys) Resume() events.Seq {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.past.at
}

// Apply implements events.Follower (P3). After an error the view stands still at
// the last event that it took, answers for that position, and repeats the error.
func (v *Keys) Apply(batch []events.Recorded) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.run(batch, v.apply, func() { v.applied.Add(1) })
}

// Expect compares the view with a head of its log, at once if the view has come so
// far and knows the root that it had there (it does for the last 4,096 sizes but
// those in the midst of a bulk replay, for every multiple of 4,096, and across
// snapshots), and otherwise before At reaches it. A view
// of another history answers nothing from then on: At is 0, and Apply and Expect
// return the *events.CorruptError that names both roots.
func (v *Keys) Expect(h events.Head) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.expect(h)
}

// Fingerprint returns the fingerprint of the log's history at seq: a position is made
// of it. It is known for the last 262,144 events that the view has applied. That of
// the view's own position costs no lock.
func (v *Keys) Fingerprint(seq events.Seq) (events.Fingerprint, bool) {
	if p, ok := v.latestPrint(seq); ok {
		return p, true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.fingerprint(seq)
}

// Root returns the root of the tree over the first size events that the view has
// applied, if it still knows it, as it does for Expect.
func (v *Keys) Root(size events.Seq) (events.Hash, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.past.foreign || size > v.past.at {
		return events.Hash{}, false
	}
	return v.rootAt(size)
}

// Holds reports whether the view has come to the position, in the history that it is
// of. Of an older event than Fingerprint knows only the root before it is compared:
// two histories that parted less than 4,096 events before it are not told apart.
func (v *Keys) Holds(p events.Position) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.holds(p)
}

func (v *Keys) apply(r *events.Recorded) error {
	if max(v.records.n, v.tenants.n, v.roles.n, v.scopeSets.values.n) > mostOfAKind {
		return fmt.Errorf("event %d is past what a view can hold: some 4 billion keys, tenants or roles", r.Seq)
	}
	switch r.Aggregate.Kind {
	case events.KindKey:
		return v.applyKey(r)
	case events.KindKeyspace:
		return v.applyKeyspace(r)
	case events.KindRole:
		return v.applyRole(r)
	case events.KindTenant:
		return v.applyTenant(r)
	}
	return unknownKindError(r)
}

func unknownKindError(r *events.Recorded) error {
	if err := events.Lifecycle.Accepts(r.Aggregate); err != nil {
		return &events.CorruptError{Seq: r.Seq, Reason: fmt.Sprintf(
			"event %d: %s: restore the log from its archive mirror or a backup", r.Seq, err)}
	}
	return &events.CorruptError{Seq: r.Seq, Reason: fmt.Sprintf(
		"event %d is about a %s, which this release of Keytrail does not know: upgrade this process", r.Seq, input.Quote(r.Aggregate.Kind))}
}

func movedError(r *events.Recorded, ks events.KeyspaceID, tenant events.TenantID) error {
	return &events.CorruptError{Seq: r.Seq, Reason: fmt.Sprintf("event %d is about key %s, which already lives as %s: "+
		"restore the log from its archive mirror or a backup", r.Seq, r.Aggregate, input.Quote(string(ks)+"/"+string(tenant)))}
}

func (v *Keys) applyKeyspace(r *events.Recorded) error {
	id := r.Aggregate.Keyspace
	s := v.space(id)
	if err := s.define(r); err != nil {
		return err
	}
	if v.Keyspace(id) == nil {
		delete(v.undefined, id)
		v.publish(s)
	}
	seam.At()
	v.version.Add(1)
	return nil
}

// publish makes a keyspace known to readers.
func (v *Keys) publish(s *Keyspace) {
	next := maps.Clone(*v.spaces.Load())
	next[s.ID] = s
	v.spaces.Store(&next)
}

// space returns the keyspace with the id, if need be one without a definition:
// its keys hold no scope until there is one.
func (v *Keys) space(id events.KeyspaceID) *Keyspace {
	s := v.Keyspace(id)
	if s == nil {
		s = v.undefined[id]
	}
	if s == nil {
		s = newKeyspace(id)
		v.undefined[id] = s
	}
	return s
}

// kind returns the number of the kind. Kinds are few, and stay.
func (v *Keys) kind(space *Keyspace, keyType, environment string) uint32 {
	n, ok := v.kindsBy[kindRef{space, keyType, environment}]
	if !ok {
		var k *Kind
		n, k = v.kinds.add()
		of := space.types.hold(keyType)
		*k = Kind{space, of.name, strings.Clone(environment), of.number}
		v.kindsBy[kindRef{space, k.KeyType, k.Environment}] = n
	}
	return n
}

// tenant returns the number of the keyspace's tenant. Tenants are never taken back:
// there is no key without one, and keys stay (P5).
func (v *Keys) tenant(space *Keyspace, id events.TenantID) uint32 {
	for at := v.tenantsBy.probe(hashTenant(space, id)); ; {
		n, ok := at.next()
		if !ok {
			n, t := v.tenants.add()
			t.space, t.ID = space, events.TenantID(strings.Clone(string(id)))
			v.tenantsBy.insert(n)
			return n
		}
		if t := v.tenants.at(n); t.space == space && t.ID == id {
			return n
		}
	}
}

// role returns the tenant's role, if need be one that is not defined.
func (v *Keys) role(whole *Tenant, id events.RoleID) *role {
	for at := v.rolesBy.probe(hashRole(whole, id)); ; {
		n, ok := at.next()
		if !ok {
			n, r := v.roles.add()
			r.whole, r.id = whole, events.RoleID(strings.Clone(string(id)))
			v.rolesBy.insert(n)
			return r
		}
		if r := v.roles.at(n); r.whole == whole && r.id == id {
			return r
		}
	}
}

func (v *Keys) applyRole(r *events.Recorded) error {
	space := v.space(r.Aggregate.Keyspace)
	own := v.role(v.tenants.at(v.tenant(space, r.Aggregate.Tenant)), events.RoleID(r.Aggregate.ID))
	next, err := own.state().Next(r)
	if err != nil {
		return err
	}
	own.chain, own.deleted = next.Chain, next.Deleted
	v.give(own, v.scopeSet(space, next.Scopes))
	seam.At()
	v.version.Add(1)
	return nil
}

// give sets what the role gives.
func (v *Keys) give(r *role, set *scopeSet) {
	old := r.gives.Load()
	if set != nil {
		v.scopeSets.hold(set.n)
	}
	r.gives.Store(set)
	if r.in != nil {
		for _, s := range *r.in {
			s.unite()
		}
	}
	v.dropScopes(old)
}

func (v *Keys) applyTenant(r *events.Recorded) error {
	space := v.space(r.Aggregate.Keyspace)
	space.named = true
	t := v.tenants.at(v.tenant(space, r.Aggregate.Tenant))
	old := t.state
	if old == nil {
		old = new(events.Tenant)
	}
	next, err := old.Next(r)
	if err != nil {
		return err
	}
	t.state = &next
	t.limit.Store(next.Limit)
	seam.At()
	v.version.Add(1)
	return nil
}

func (v *Keys) applyKey(r *events.Recorded) error {
	var was events.Key
	var old whole
	id := r.Key()
	slot, known := v.byID(&id)
	if known {
		old = v.at(slot)
		was = old.key(r.Prev)
		if was.Keyspace != r.Aggregate.Keyspace || was.Tenant != r.Aggregate.Tenant {
			return movedError(r, was.Keyspace, was.Tenant)
		}
	}
	now, err := was.Next(r) // E5
	if err != nil {
		return err
	}
	if now.Rev > math.MaxUint32 {
		return fmt.Errorf("event %d of %s: rev %d is past what a view can hold", r.Seq, r.Aggregate, now.Rev)
	}
	space := v.space(now.Keyspace)
	space.named = true
	if _, ok := r.Data.(*events.KeyImported); ok || !space.state.Exists() {
		space.foreign()
	}
	if known {
		v.update(slot, &old, &was, &now)
	} else {
		v.create(&now)
	}
	return nil
}
