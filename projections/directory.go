package projections

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Directory is control's view: all that the events say of each key, keyspace and
// role, and the keys in the order of their creation. It implements
// events.Follower; Apply and Fresh belong to one goroutine, all else to any.
//
// Readers share a lock with the writer for the length of a map lookup. Records
// are immutable and lists only grow, so a long listing scans without the lock.
type Directory struct {
	fold

	mu      sync.RWMutex // guards the rest
	ids     *table[entry]
	digests *table[entry] // the owner of each (P6)
	count   int           // keys
	lists   map[events.KeyspaceID]*spaceLists
	names   *names
	spaces  map[events.KeyspaceID]*events.Keyspace
	rules   map[events.KeyspaceID]*keyspace.Compiled // of spaces
	tenants map[spaceTenant]*events.Tenant
	roles   map[roleRef]*events.Role
	texts   map[string]string // names that many keys have, each once
	commons map[sum]*common
	timed   timed // the last events about timers
}

// entry is one key's place in the lists.
type entry struct {
	created events.Seq
	key     atomic.Pointer[card] // the current record; replaced, never changed
	named   *entry               // guarded by Directory.mu: the next of its chain in names
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
	tenants map[events.TenantID]*[]*entry
}

// of returns the keys of the tenant.
func (l *spaceLists) of(tenant events.TenantID) []*entry {
	if own := l.tenants[tenant]; own != nil {
		return *own
	}
	return nil
}

// NewDirectory returns the view of an empty log.
func NewDirectory() *Directory {
	return &Directory{
		ids:     &table[entry]{hash: func(e *entry) uint64 { return hashKeyID(&e.key.Load().id) }},
		digests: &table[entry]{hash: func(e *entry) uint64 { return hashWhole(&e.key.Load().digest) }},
		lists:   map[events.KeyspaceID]*spaceLists{},
		names:   new(names),
		spaces:  map[events.KeyspaceID]*events.Keyspace{},
		rules:   map[events.KeyspaceID]*keyspace.Compiled{},
		tenants: map[spaceTenant]*events.Tenant{},
		roles:   map[roleRef]*events.Role{},
		texts:   map[string]string{},
		commons: map[sum]*common{},
	}
}

// Key returns the key with the id. Its lists are shared: do not modify.
func (d *Directory) Key(id events.KeyID) (events.Key, bool) {
	if e := d.entry(id); e != nil {
		return e.key.Load().key(), true
	}
	return events.Key{}, false
}

// Created returns where in the log the key's history begins.
func (d *Directory) Created(id events.KeyID) (events.Seq, bool) {
	if e := d.entry(id); e != nil {
		return e.created, true
	}
	return 0, false
}

// Ref returns where the key's history is.
func (d *Directory) Ref(id events.KeyID) (events.KeyRef, bool) {
	if e := d.entry(id); e != nil {
		return e.key.Load().ref(), true
	}
	return events.KeyRef{}, false
}

func (d *Directory) entry(id events.KeyID) *entry {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.byID(&id)
}

func (d *Directory) byID(id *events.KeyID) *entry {
	return d.ids.find(hashKeyID(id), func(e *entry) bool { return e.key.Load().id == *id })
}

func (d *Directory) byDigest(digest *events.Digest) *entry {
	return d.digests.find(hashWhole(digest), func(e *entry) bool { return e.key.Load().digest == *digest })
}

// Digest returns the key that owns the secret with the digest (P6).
func (d *Directory) Digest(digest events.Digest) (events.KeyID, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if e := d.byDigest(&digest); e != nil {
		return e.key.Load().id, true
	}
	return events.KeyID{}, false
}

// Named returns the keys of the tenant that have exactly this name and have not
// ended at the instant now, in no order. It costs what it returns.
func (d *Directory) Named(ks events.KeyspaceID, tenant events.TenantID, name string, now events.Time) []events.Key {
	d.mu.RLock()
	defer d.mu.RUnlock()
	var out []events.Key
	want := nameRef{ks, tenant, name}
	for e := d.names.first(want.hash()); e != nil; e = e.named {
		if c := e.key.Load(); lives(c.statusAt(now)) && want == c.nameRef() {
			out = append(out, c.key())
		}
	}
	return out
}

func lives(s events.Status) bool { return s == events.StatusActive || s == events.StatusDisabled }

// Len returns how many keys there are, the ended ones included.
func (d *Directory) Len() int {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.count
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

// Rules returns the definition of the keyspace with the id, made ready for use; nil
// when there is no such keyspace.
func (d *Directory) Rules(id events.KeyspaceID) *keyspace.Compiled {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.rules[id]
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

// TenantsOf yields the tenants of the keyspace for which something was ever set, by
// their ids. They are shared: do not modify.
func (d *Directory) TenantsOf(ks events.KeyspaceID) iter.Seq[*events.Tenant] {
	return func(yield func(*events.Tenant) bool) {
		d.mu.RLock()
		var all []*events.Tenant
		for ref, t := range d.tenants {
			if ref.space == ks {
				all = append(all, t)
			}
		}
		d.mu.RUnlock()
		slices.SortFunc(all, func(a, b *events.Tenant) int { return cmp.Compare(a.ID, b.ID) })
		for _, t := range all {
			if !yield(t) {
				return
			}
		}
	}
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

// Resume returns where the fold stands, proven or not: Follow begins there.
func (d *Directory) Resume() events.Seq {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.past.at
}

// Apply implements events.Follower (P3), as Keys.Apply does.
func (d *Directory) Apply(batch []events.Recorded) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.run(batch, d.apply, func() {})
}

// Expect compares the view with a head of its log, as Keys.Expect does.
func (d *Directory) Expect(h events.Head) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.expect(h)
}

// Fingerprint returns the fingerprint of the log's history at seq, as Keys.Fingerprint
// does.
func (d *Directory) Fingerprint(seq events.Seq) (events.Fingerprint, bool) {
	if p, ok := d.latestPrint(seq); ok {
		return p, true
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.fingerprint(seq)
}

func (d *Directory) apply(r *events.Recorded) error {
	switch r.Aggregate.Kind {
	case events.KindKey:
		return d.applyKey(r)
	case events.KindKeyspace:
		if err := step(d.spaces, r.Aggregate.Keyspace, r, (*events.Keyspace).Next); err != nil {
			return err
		}
		d.compile(d.spaces[r.Aggregate.Keyspace])
		return nil
	case events.KindTenant:
		return step(d.tenants, spaceTenant{r.Aggregate.Keyspace, r.Aggregate.Tenant}, r, (*events.Tenant).Next)
	case events.KindRole:
		return step(d.roles, roleRef{r.Aggregate.Keyspace, r.Aggregate.Tenant, events.RoleID(r.Aggregate.ID)}, r, (*events.Role).Next)
	}
	return unknownKindError(r)
}

func (d *Directory) compile(s *events.Keyspace) {
	d.rules[s.ID] = keyspace.Compile(s.Definition, s.Retired)
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
	e := d.byID(&id)
	var old events.Key
	var was *card
	if e != nil {
		was = e.key.Load()
		old = was.key()
		if old.Keyspace != r.Aggregate.Keyspace || old.Tenant != r.Aggregate.Tenant {
			return movedError(r, old.Keyspace, old.Tenant)
		}
	}
	k, err := old.Next(r)
	if err != nil {
		return err
	}
	var c *card
	if was == nil {
		c = d.card(&k, nil, nil)
	} else {
		c = d.card(&k, was, was.common)
		d.unshare(was.common)
	}
	if e == nil {
		e = &entry{created: r.Seq}
		e.key.Store(c)
		d.place(c.common.key.Keyspace, c.common.key.Tenant).add(e)
		d.ids.insert(e)
		d.count++
		d.claim(c, e)
	}
	if lived, lives := lives(old.Status), lives(k.Status); lived != lives || old.Label.Name != k.Label.Name {
		if lived {
			d.names.remove(was.nameRef(), e)
		}
		if lives {
			d.names.add(c.nameRef(), e)
		}
	}
	e.key.Store(c)
	d.timed.note(r.Seq, e, &old, &k)
	return nil
}

// claim makes a new key the owner of its digest, unless there is one (P6).
func (d *Directory) claim(c *card, e *entry) {
	if d.byDigest(&c.digest) == nil {
		d.digests.insert(e)
	}
}

// place is where the keys of one tenant are listed.
type place struct{ all, own *[]*entry }

func (p place) add(e *entry) {
	*p.all = append(*p.all, e)
	*p.own = append(*p.own, e)
}

// place returns the lists for keys of the tenant.
func (d *Directory) place(ks events.KeyspaceID, tenant events.TenantID) place {
	l := d.lists[ks]
	if l == nil {
		l = &spaceLists{tenants: map[events.TenantID]*[]*entry{}}
		d.lists[ks] = l
	}
	own := l.tenants[tenant]
	if own == nil {
		own = new([]*entry)
		l.tenants[tenant] = own
	}
	return place{&l.all, own}
}

// own returns the view's copy of a name. Names are never taken back: keyspaces,
// tenants, types and creators are not either (P5).
func (d *Directory) own(name string) string {
	if name == "" {
		return ""
	}
	own, ok := d.texts[name]
	if !ok {
		own = strings.Clone(name)
		d.texts[own] = own
	}
	return own
}
