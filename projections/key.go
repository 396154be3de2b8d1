package projections

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Key is what a verifier knows of one key: an immutable record of 96 bytes,
// replaced when the key changes (P1). What keys have in common is stored once:
// the fields of Class are read as if they were the key's own (k.Tenant).
type Key struct {
	ID        events.KeyID
	Digest    events.Digest
	ExpiresAt events.Time
	*Class

	terms  *terms
	bucket atomic.Pointer[Bucket]
	rev    uint32
	head   [11]byte // start of the hash of the key's last event
	turned bool     // it has been rotated
}

// Class is what many keys have in common.
type Class struct {
	Tenant      events.TenantID
	KeyType     string
	Environment string        // live, test, ... told to the gateway; may be ""
	Status      events.Status // as the events say; ask StatusAt for the answer at an instant
	Space       *Keyspace
	Whole       *Tenant // the tenant as a whole
}

// terms are what a key may do, where, from where and how often. Each part is
// shared, and so is the combination.
type terms struct {
	grant     *grant
	resources *resources // nil = the whole tenant
	allow     *allowlist // nil = any address
	limit     *keyspace.Limit
}

// Bucket is the node's own token bucket of one key, two words that the
// verifier's limiter owns: when it was last used, in milliseconds, and what was
// owed to it then. The zero Bucket is full. It is not part of the fold and in no
// snapshot.
type Bucket struct{ At, Owed atomic.Int64 }

// StatusAt returns the status at the instant now: from its expiry's own
// millisecond on the key is expired, whether or not key.expired is on the record.
func (k *Key) StatusAt(now events.Time) events.Status { return k.Status.At(k.ExpiresAt, now) }

// HasScope reports whether the key may do s: directly, by a role, or implied,
// by the current definitions (keyspace.Definition.Effective).
func (k *Key) HasScope(s string) bool { return k.terms.grant.effective.Load().has(s) }

// Scopes returns all that the key may do, sorted. It is shared: do not modify.
func (k *Key) Scopes() []string { return k.terms.grant.effective.Load().names }

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
	_, ok := slices.BinarySearchFunc(k.terms.resources.list, r, events.CompareResources)
	return ok
}

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
	return rules.Resolve(rules.KeyLimit(k.terms.limit))
}

// Bucket returns the key's token bucket on this node, the same for all records
// of the key. It is made with the record when the key is limited, else at the
// first call.
func (k *Key) Bucket() *Bucket {
	if b := k.bucket.Load(); b != nil {
		return b
	}
	k.bucket.CompareAndSwap(nil, new(Bucket))
	return k.bucket.Load()
}

// whole returns the record as the key that events.Key.Next continues: every
// field that Next reads, or that a record keeps. Next compares the whole hash of
// the event before, of which the record has the start: given matches it, so it
// stands in for the rest.
func (k *Key) whole(prev events.Hash) events.Key {
	w := events.Key{
		Chain:       events.Chain{Rev: uint64(k.rev)},
		ID:          k.ID,
		Keyspace:    k.Space.ID,
		Tenant:      k.Tenant,
		Digest:      k.Digest,
		KeyType:     k.KeyType,
		Environment: k.Environment,
		Grant:       k.terms.grant.given,
		Resources:   k.Resources(),
		Limit:       k.terms.limit,
		ExpiresAt:   k.ExpiresAt,
		Status:      k.Status,
	}
	if copy(w.Head[:], k.head[:]); [11]byte(prev[:11]) == k.head {
		w.Head = prev
	}
	if k.terms.allow != nil {
		w.Allowlist = k.terms.allow.list
	}
	if k.turned {
		w.RotatedTo = k.ID // any key: Next asks only whether there is one
	}
	return w
}
