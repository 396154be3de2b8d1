package projections

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
)

// Directory is control's view: all that the events say of each key, keyspace and
// role, and the keys in the order of their creation. It implements
// events.Follower; Apply and Fresh belong to one goroutine, all else to any.
//
// Readers share a lock with the writer for the length of a map lookup. Records
// are immutable and lists only grow, so a long listing scans without the lock.
type Directory struct {
	position

	mu      sync.RWMutex // guards the rest
	keys    map[events.KeyID]*entry
	digests map[events.Digest]events.KeyID
	lists   map[events.KeyspaceID]*spaceLists
	names   map[nameRef][]*entry // of keys that are active or disabled, as the events say
	spaces  map[events.KeyspaceID]*events.Keyspace
	tenants map[spaceTenant]*events.Tenant
	roles   map[roleRef]*events.Role
	readers map[string]events.Chain
	failed  error // why the view stands still (P3)
}

// entry is one key's place in the lists.
type entry struct {
	created events.Seq
	key     atomic.Pointer[events.Key] // the current record; replaced, never changed
}

// nameRef is a name within its tenant.
type nameRef struct {
	space  events.KeyspaceID
	tenant events.TenantID
	name   string
}

// spaceTenant names a tenant of a keyspace.
type spaceTenant struct {
	space  events.KeyspaceID
	tenant events.TenantID
}

// spaceLists are the keys of one keyspace in the order of their creation: all,
// and by tenant. They only grow (P5).
type spaceLists struct {
	all     []*entry
	tenants map[events.TenantID][]*entry
}

// NewDirectory returns the view of an empty log.
func NewDirectory() *Directory {
	return &Directory{
		keys:    map[events.KeyID]*entry{},
		digests: map[events.Digest]events.KeyID{},
		lists:   map[events.KeyspaceID]*spaceLists{},
		names:   map[nameRef][]*entry{},
		spaces:  map[events.KeyspaceID]*events.Keyspace{},
		tenants: map[spaceTenant]*events.Tenant{},
		roles:   map[roleRef]*events.Role{},
		readers: map[string]events.Chain{},
	}
}

// Key returns the key with the id. Its lists are shared: do not modify.
func (d *Directory) Key(id events.KeyID) (events.Key, bool) {
	if e := d.entry(id); e != nil {
		return *e.key.Load(), true
	}
	return events.Key{}, false
}

// Ref returns where the key's history is.
func (d *Directory) Ref(id events.KeyID) (events.KeyRef, bool) {
	if e := d.entry(id); e != nil {
		k := e.key.Load()
		return events.KeyRef{Keyspace: k.Keyspace, Tenant: k.Tenant, Key: k.ID}, true
	}
	return events.KeyRef{}, false
}

func (d *Directory) entry(id events.KeyID) *entry {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.keys[id]
}

// Digest returns the key that owns the secret with the digest (P6).
func (d *Directory) Digest(digest events.Digest) (events.KeyID, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	id, ok := d.digests[digest]
	return id, ok
}

// Named returns the keys of the tenant that have exactly this name and have not
// ended at the instant now, in no order. It costs what it returns.
func (d *Directory) Named(ks events.KeyspaceID, tenant events.TenantID, name string, now events.Time) []events.Key {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var out []events.Key
	for _, e := range d.names[nameRef{ks, tenant, name}] {
		if k := e.key.Load(); lives(k.StatusAt(now)) {
			out = append(out, *k)
		}
	}
	return out
}

func lives(s events.Status) bool { return s == events.StatusActive || s == events.StatusDisabled }

// Len returns how many keys there are, the ended ones included.
func (d *Directory) Len() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return len(d.keys)
}

// Keyspace returns the keyspace with the id.
func (d *Directory) Keyspace(id events.KeyspaceID) (events.Keyspace, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if s := d.spaces[id]; s != nil {
		return *s, true
	}
	return events.Keyspace{}, false
}

// Keyspaces returns all keyspaces, sorted by id.
func (d *Directory) Keyspaces() []events.Keyspace {
	d.mu.RLock()
	defer d.mu.RUnlock()
	out := make([]events.Keyspace, 0, len(d.spaces))
	for _, s := range d.spaces {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b events.Keyspace) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Tenant returns what holds for the tenant as a whole; the zero Tenant when there
// is no event about it.
func (d *Directory) Tenant(ks events.KeyspaceID, tenant events.TenantID) events.Tenant {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if t := d.tenants[spaceTenant{ks, tenant}]; t != nil {
		return *t
	}
	return events.Tenant{Keyspace: ks, ID: tenant}
}

// Role returns the role, deleted or not: its history goes on where it ended.
// ok is false when it was never defined.
func (d *Directory) Role(ks events.KeyspaceID, tenant events.TenantID, role events.RoleID) (events.Role, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if r := d.roles[roleRef{ks, tenant, role}]; r != nil {
		return *r, true
	}
	return events.Role{}, false
}

// Roles returns the roles of the tenant that exist, sorted by id.
func (d *Directory) Roles(ks events.KeyspaceID, tenant events.TenantID) []events.Role {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var out []events.Role
	for ref, r := range d.roles {
		if ref.space == ks && ref.tenant == tenant && r.Exists() {
			out = append(out, *r)
		}
	}
	slices.SortFunc(out, func(a, b events.Role) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Fresh implements events.Follower; the directory makes no claim of freshness,
// control reads the log itself before it writes.
func (d *Directory) Fresh(events.Time, events.Seq) {}

// Apply implements events.Follower (P3), as Keys.Apply does.
func (d *Directory) Apply(batch []events.Recorded) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failed != nil {
		return d.failed
	}
	at := d.At()
	for i := range batch {
		r := &batch[i]
		if r.Seq <= at {
			continue
		}
		if d.failed = d.next(at, r); d.failed != nil {
			break
		}
		at = r.Seq
	}
	d.advance(at)
	return d.failed
}

func (d *Directory) next(at events.Seq, r *events.Recorded) error {
	if r.Seq != at+1 {
		return holeError(at, r.Seq)
	}
	switch r.Aggregate.Kind {
	case events.KindKey:
		return d.applyKey(r)
	case events.KindKeyspace:
		return step(d.spaces, r.Aggregate.Keyspace, r, (*events.Keyspace).Next)
	case events.KindTenant:
		return step(d.tenants, spaceTenant{r.Aggregate.Keyspace, r.Aggregate.Tenant}, r, (*events.Tenant).Next)
	case events.KindRole:
		return step(d.roles, roleRef{r.Aggregate.Keyspace, r.Aggregate.Tenant, events.RoleID(r.Aggregate.ID)}, r, (*events.Role).Next)
	case events.KindReader:
		c, err := d.readers[r.Aggregate.ID].Advance(r)
		d.readers[r.Aggregate.ID] = c
		return err
	}
	return unknownKindError(r)
}

// step replaces m[k] by what next makes of it.
func step[K comparable, V any](m map[K]*V, k K, r *events.Recorded, next func(*V, *events.Recorded) (V, error)) error {
	old := m[k]
	if old == nil {
		old = new(V)
	}
	v, err := next(old, r)
	if err == nil {
		m[k] = &v
	}
	return err
}

func (d *Directory) applyKey(r *events.Recorded) error {
	id := r.Key()
	e := d.keys[id]
	var old events.Key
	if e != nil {
		old = *e.key.Load()
		if old.Keyspace != r.Aggregate.Keyspace || old.Tenant != r.Aggregate.Tenant {
			return movedError(r, old.Keyspace, old.Tenant)
		}
	}
	k, err := old.Next(r)
	if err != nil {
		return err
	}
	if e == nil {
		e = &entry{created: r.Seq}
		d.keys[id] = e
		d.list(&k, e)
		if _, taken := d.digests[k.Digest]; !taken { // P6
			d.digests[k.Digest] = id
		}
	}
	if was, is := lives(old.Status), lives(k.Status); was != is || old.Label.Name != k.Label.Name {
		if was {
			d.unname(nameRef{old.Keyspace, old.Tenant, old.Label.Name}, e)
		}
		if is {
			ref := nameRef{k.Keyspace, k.Tenant, k.Label.Name}
			d.names[ref] = append(d.names[ref], e)
		}
	}
	e.key.Store(&k)
	return nil
}

func (d *Directory) unname(ref nameRef, e *entry) {
	rest := slices.DeleteFunc(d.names[ref], func(x *entry) bool { return x == e })
	if len(rest) == 0 {
		delete(d.names, ref)
		return
	}
	d.names[ref] = rest
}

func (d *Directory) list(k *events.Key, e *entry) {
	l := d.lists[k.Keyspace]
	if l == nil {
		l = &spaceLists{tenants: map[events.TenantID][]*entry{}}
		d.lists[k.Keyspace] = l
	}
	l.all = append(l.all, e)
	l.tenants[k.Tenant] = append(l.tenants[k.Tenant], e)
}
