package projections

import (
	"net/netip"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Key is what the view knew of one key at the moment when it was read: a copy that no
// later event changes. The zero Key stands for none.
type Key struct {
	ID        events.KeyID
	ExpiresAt events.Time
	Tenant    events.TenantID
	*Kind             // Space, KeyType, Environment
	Whole     *Tenant // the tenant as a whole
	Rules     *Rules  // of the keyspace, at that moment

	// Slot is the key's place in the view and TenantSlot its tenant's: small numbers
	// that no other key, or tenant, of this view ever has.
	Slot, TenantSlot Slot

	state uint64 // of the record
	terms *terms
	given *scopeSet // what its roles gave at that moment; nil = nothing
}

// Slot is a place in a view.
type Slot uint32

// Exists reports whether there is such a key.
func (k *Key) Exists() bool { return k.terms != nil }

// The statuses of a key, as a record has them.
var statuses = [...]events.Status{"", events.StatusActive, events.StatusDisabled, events.StatusRevoked, events.StatusExpired}

// Status returns the status as the events say; ask StatusAt for the answer at an
// instant.
func (k *Key) Status() events.Status { return statuses[statusOf(k.state)] }

// StatusAt returns the status at the instant now: from its expiry's own
// millisecond on the key is expired, whether or not key.expired is on the record.
func (k *Key) StatusAt(now events.Time) events.Status { return k.Status().At(k.ExpiresAt, now) }

// HasScope reports whether the key may do s: directly, by a role, or implied, by
// k.Rules.
func (k *Key) HasScope(s string) bool {
	ok, _ := k.Scope(s)
	return ok
}

// Scope is HasScope, and returns the kind of resource that a request must name to use
// the scope, "" when it need not.
func (k *Key) Scope(s string) (ok bool, kind string) {
	r := k.Rules.scopes[s]
	if r == nil {
		return false, ""
	}
	return k.has(r), r.level
}

func (k *Key) has(s *scopeRule) bool {
	return k.Rules.admits(k.keyType, s) && (k.terms.scopes.meets(s.by) || k.given.meets(s.by))
}

// Scopes returns all that the key may do by k.Rules, sorted. It is shared: do not
// modify.
func (k *Key) Scopes() []string {
	set, with := k.terms.scopes, k.given
	if set == nil {
		set, with = with, nil
	}
	if set == nil {
		return nil
	}
	e := set.asked.Load()
	if e == nil || e.version != k.Rules.version || e.keyType != k.keyType || e.with != with {
		e = &effective{k.Rules.version, k.keyType, with, nil}
		for _, s := range k.Rules.sorted {
			if k.has(s) {
				e.names = append(e.names, s.name)
			}
		}
		set.asked.Store(e)
	}
	return e.names
}

// Resources returns what the key is restricted to, sorted; none means its whole
// tenant. It is shared: do not modify.
func (k *Key) Resources() []events.Resource {
	if k.terms.resources == nil {
		return nil
	}
	return k.terms.resources.list
}

// AllowsResource reports whether the key reaches r. A key without restriction
// reaches everything of its tenant, and a request that names no resource (the
// zero r) asks nothing of the restriction. A restricted key reaches exactly what
// is listed: restricted to projects, it reaches no division.
func (k *Key) AllowsResource(r events.Resource) bool {
	if k.terms.resources == nil || r.IsZero() {
		return true
	}
	list := k.terms.resources.list
	if len(list) <= fewResources {
		for i := range list {
			if list[i].ID == r.ID && list[i].Kind == r.Kind {
				return true
			}
		}
		return false
	}
	_, ok := slices.BinarySearchFunc(list, r, events.CompareResources)
	return ok
}

// fewResources is up to where comparing one by one is faster than to search.
const fewResources = 8

// AllowsAddr reports whether the key may be used from a. Without an allowlist it
// may be used from anywhere, even from an unknown address; with one, an invalid
// address is not allowed. An IPv4 address in IPv6 counts as IPv4; zones are ignored.
func (k *Key) AllowsAddr(a netip.Addr) bool {
	return k.terms.allow == nil || k.terms.allow.contains(a)
}

// Limit returns the key's tokens per minute and at once under the rules of its
// keyspace: its own numbers, its plan's, or the keyspace's default; ok is false
// for none. A plan that the definition no longer names goes on with its last
// numbers: taking it out of the document frees nobody of a limit. One that never was admits
// nothing.
func (k *Key) Limit(rules *keyspace.Compiled) (perMinute, burst int64, ok bool) {
	return rules.Resolve(rules.KeyLimit(k.terms.ownLimit()))
}

// ownLimit returns the key's own limit, nil for the keyspace's default.
func (t *terms) ownLimit() *keyspace.Limit {
	if t.limit == nil {
		return nil
	}
	return &t.limit.Limit
}
