package projections

import (
	"fmt"
	"maps"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Keys is the verifier's view: every key there ever was by its digest, in under
// 200 bytes a key, with reads that take no lock (P1). What a key shares with no
// other (the only key of its tenant, a restriction or allowlist of its own) comes
// on top, some 100 to 300 bytes each. It implements events.Follower; Apply and
// Fresh belong to one goroutine, all else to any.
type Keys struct {
	fold
	fresh   atomic.Int64  // the log's clock at the last heartbeat that was fully applied
	applied atomic.Uint64 // events folded since the start
	count   atomic.Int64
	spaces  atomic.Pointer[map[events.KeyspaceID]*Keyspace] // defined keyspaces; swapped whole

	mu           sync.Mutex  // held while applying, and shortly by a snapshot; guards the rest
	digests, ids *table[Key] // readers need no lock

	undefined map[events.KeyspaceID]*Keyspace // keyspaces that keys speak of before their definition
	roles     map[roleRef]*events.Role
	tenants   map[*Keyspace]map[events.TenantID]*Tenant
	classes   pool[classRef, Class]
	terms     pool[terms, terms]
	grants    pool[sum, grant]
	resources pool[sum, resources]
	allows    pool[sum, allowlist]
	limits    pool[keyspace.Limit, keyspace.Limit]
	byRole    map[roleRef]map[*grant]struct{}
}

type roleRef struct {
	space  events.KeyspaceID
	tenant events.TenantID
	role   events.RoleID
}

// NewKeys returns the view of an empty log.
func NewKeys() *Keys {
	v := &Keys{
		digests:   &table[Key]{hash: func(k *Key) uint64 { return hashDigest(&k.Digest) }},
		ids:       &table[Key]{hash: func(k *Key) uint64 { return hashID(&k.ID) }},
		undefined: map[events.KeyspaceID]*Keyspace{},
		roles:     map[roleRef]*events.Role{},
		tenants:   map[*Keyspace]map[events.TenantID]*Tenant{},
		classes:   pool[classRef, Class]{},
		terms:     pool[terms, terms]{},
		grants:    pool[sum, grant]{},
		resources: pool[sum, resources]{},
		allows:    pool[sum, allowlist]{},
		limits:    pool[keyspace.Limit, keyspace.Limit]{},
		byRole:    map[roleRef]map[*grant]struct{}{},
	}
	v.spaces.Store(&map[events.KeyspaceID]*Keyspace{})
	return v
}

// Lookup returns the key whose secret has the digest, nil if there never was one.
func (v *Keys) Lookup(d events.Digest) *Key { return byDigest(v.digests, &d) }

// ByID returns the key with the id, nil if there never was one.
func (v *Keys) ByID(id events.KeyID) *Key {
	return v.ids.find(hashID(&id), func(k *Key) bool { return k.ID == id })
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
	for _, u := range v.grants { // all grants of all keyspaces: they are few, and definitions change rarely
		if u.v.space == s {
			v.resolve(u.v)
		}
	}
	if v.Keyspace(id) == nil {
		delete(v.undefined, id)
		v.publish(s)
	}
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

func (v *Keys) applyRole(r *events.Recorded) error {
	ref := roleRef{r.Aggregate.Keyspace, r.Aggregate.Tenant, events.RoleID(r.Aggregate.ID)}
	old := v.roles[ref]
	if old == nil {
		old = new(events.Role)
	}
	next, err := old.Next(r)
	if err != nil {
		return err
	}
	v.roles[ref] = &next
	for g := range v.byRole[ref] {
		v.resolve(g)
	}
	return nil
}

func (v *Keys) applyTenant(r *events.Recorded) error {
	t := v.tenant(v.space(r.Aggregate.Keyspace), r.Aggregate.Tenant)
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
	return nil
}

func (v *Keys) applyKey(r *events.Recorded) error {
	var was events.Key
	old := v.ByID(r.Key())
	if old != nil {
		was = old.whole(r.Prev)
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
	if _, ok := r.Data.(*events.KeyImported); ok || !space.state.Exists() {
		space.foreign()
	}
	v.put(v.record(&now, old), old)
	return nil
}

// put publishes a record in the place of old, nil for a new key.
func (v *Keys) put(k, old *Key) {
	if old == nil {
		if v.Lookup(k.Digest) == nil { // P6
			v.digests.insert(k)
		}
		v.ids.insert(k)
		v.count.Add(1)
		return
	}
	same := func(o *Key) bool { return o.ID == k.ID }
	if p := v.digests.slot(hashDigest(&k.Digest), same); p != nil {
		p.Store(k)
	}
	v.ids.slot(hashID(&k.ID), same).Store(k)
	v.release(old)
}
