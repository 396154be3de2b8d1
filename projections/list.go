package projections

import (
	"cmp"
	"iter"
	"slices"
	"strings"

	"github.com/keytrail/keytrail/events"
)

// ListQuery asks for one page of keys. Zero members do not filter.
type ListQuery struct {
	Keyspace events.KeyspaceID
	Tenants  []events.TenantID // only of these
	Tenant   events.TenantID   // only of this one; with Tenants it must be among them
	Status   events.Status     // as of Now
	Name     string            // part of the name, in any case
	After    events.Seq        // the next that the page before returned
	Limit    int               // keys per page; 0 = 100
	Now      events.Time       // what Status and Lives are asked for

	CreatedBy events.KeyID // only keys that this key created, or made as a successor
	Until     events.Seq   // only keys that were created here or before
	Lives     bool         // only keys that are active or disabled
}

// matches reports whether the key is one that the query asks for. name is in
// lower case.
func (q *ListQuery) matches(c *card, name string) bool {
	switch status := c.statusAt(q.Now); {
	case q.Status != "" && status != q.Status:
		return false
	case q.Lives && status != events.StatusActive && status != events.StatusDisabled:
		return false
	case !q.CreatedBy.IsZero() && c.common.key.CreatedBy != (events.Actor{Kind: events.ActorKey, ID: q.CreatedBy.String()}):
		return false
	}
	return strings.Contains(strings.ToLower(c.name()), name)
}

// DefaultLimit is the size of a page when the query names none.
const DefaultLimit = 100

// List returns one page of keys in the order of their creation, and the After of
// the next page, 0 on the last one. It reads only what the keyspace or the
// tenants asked for hold, from After on, and holds no lock while it does. The
// lists of the keys are shared: do not modify.
func (d *Directory) List(q ListQuery) (keys []events.Key, next events.Seq) {
	if q.Limit <= 0 {
		q.Limit = DefaultLimit
	}
	lists := d.pick(&q)
	name := strings.ToLower(q.Name)
	var last events.Seq
	for e := pop(&lists); e != nil; e = pop(&lists) {
		if q.Until != 0 && e.created > q.Until {
			break
		}
		c := e.key.Load()
		if !q.matches(c, name) {
			continue
		}
		if len(keys) == q.Limit {
			return keys, last // there is one more
		}
		keys, last = append(keys, c.key()), e.created
	}
	return keys, 0
}

// All yields every key of the keyspace in the order of their creation, each as it
// is when its turn comes. It holds no lock. The lists of the keys are
// shared: do not modify.
func (d *Directory) All(ks events.KeyspaceID) iter.Seq[*events.Key] {
	return d.each(ks, func(l *spaceLists) []*entry { return l.all })
}

// AllOf is All for the keys of one tenant.
func (d *Directory) AllOf(ks events.KeyspaceID, tenant events.TenantID) iter.Seq[*events.Key] {
	return d.each(ks, func(l *spaceLists) []*entry { return l.of(tenant) })
}

// Began returns where in the log the tenant's first key begins; ok is false for a tenant
// without keys.
func (d *Directory) Began(ks events.KeyspaceID, tenant events.TenantID) (seq events.Seq, ok bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if l := d.lists[ks]; l != nil {
		if of := l.of(tenant); len(of) > 0 {
			return of[0].created, true
		}
	}
	return 0, false
}

func (d *Directory) each(ks events.KeyspaceID, list func(*spaceLists) []*entry) iter.Seq[*events.Key] {
	return func(yield func(*events.Key) bool) {
		d.mu.RLock()
		var entries []*entry
		if l := d.lists[ks]; l != nil {
			entries = list(l)
		}
		d.mu.RUnlock()
		for _, e := range entries {
			k := e.key.Load().key()
			if !yield(&k) {
				return
			}
		}
	}
}

// pick returns the lists that the query needs, each from After on, none empty.
// What it returns never changes: a list grows behind its end.
func (d *Directory) pick(q *ListQuery) (lists [][]*entry) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	add := func(l []*entry) {
		i, _ := slices.BinarySearchFunc(l, q.After+1, func(e *entry, s events.Seq) int { return cmp.Compare(e.created, s) })
		if i < len(l) {
			lists = append(lists, l[i:])
		}
	}
	for id, l := range d.lists {
		switch {
		case q.Keyspace != "" && q.Keyspace != id:
		case q.Tenant != "":
			if len(q.Tenants) == 0 || slices.Contains(q.Tenants, q.Tenant) {
				add(l.of(q.Tenant))
			}
		case len(q.Tenants) > 0:
			for _, t := range slices.Compact(slices.Sorted(slices.Values(q.Tenants))) {
				add(l.of(t))
			}
		default:
			add(l.all)
		}
	}
	return lists
}

// pop takes the entry that was created first off the lists, nil when they are
// empty. There are as many lists as tenants asked for, so looking at the head of
// each is enough.
func pop(lists *[][]*entry) *entry {
	l := *lists
	if len(l) == 0 {
		return nil
	}
	first := 0
	for i := range l {
		if l[i][0].created < l[first][0].created {
			first = i
		}
	}
	e := l[first][0]
	if l[first] = l[first][1:]; len(l[first]) == 0 {
		*lists = slices.Delete(l, first, first+1)
	}
	return e
}
