package events

import (
	"fmt"
	"net/netip"

	"github.com/keytrail/keytrail/events/keyspace"
)

// Status is where a key stands in its life.
type Status string

// The statuses. Revoked and expired are final.
const (
	StatusActive   Status = "active"
	StatusDisabled Status = "disabled"
	StatusRevoked  Status = "revoked"
	StatusExpired  Status = "expired"
)

// Chain is where an aggregate's history stands: what the next event must name.
type Chain struct {
	Rev  uint64 // revision of the last event; 0 = no history
	Head Hash   // hash of the last event
	Seq  Seq    // its place in the log: the expectation of the next append
}

// Revision returns the revision of the last event, 0 when there is none.
func (c Chain) Revision() uint64 { return c.Rev }

// Advance checks that r continues the chain (E2) and returns the chain after it.
func (c Chain) Advance(r *Recorded) (Chain, error) {
	if r.Rev != c.Rev+1 || r.Prev != c.Head {
		return c, &ChainError{Aggregate: r.Aggregate, Seq: r.Seq, Want: c.Rev + 1, Got: r.Rev}
	}
	if r.Seq <= c.Seq {
		return c, &ChainError{Aggregate: r.Aggregate, Seq: r.Seq, Want: c.Rev + 1, Got: r.Rev}
	}
	return Chain{Rev: r.Rev, Head: r.Hash, Seq: r.Seq}, nil
}

// ChainError says that a history is broken: an event is missing, repeated or
// altered. Nothing may be folded past it.
type ChainError struct {
	Aggregate Aggregate
	Seq       Seq
	Want, Got uint64 // revisions; equal when the hash differs
}

func (e *ChainError) Error() string {
	if e.Want == e.Got {
		return fmt.Sprintf("the history of %s is altered: event %d (rev %d) does not carry the hash of the event before it; "+
			"restore the log from its archive mirror or a backup, do not continue on this copy", e.Aggregate, e.Seq, e.Got)
	}
	return fmt.Sprintf("the history of %s is broken: event %d is rev %d where rev %d belongs; "+
		"restore the log from its archive mirror or a backup, do not continue on this copy", e.Aggregate, e.Seq, e.Got, e.Want)
}

// Key is everything that the events of one key add up to.
type Key struct {
	Chain
	ID          KeyID
	Keyspace    KeyspaceID
	Tenant      TenantID
	Digest      Digest
	Hint        string
	Label       Label
	KeyType     string
	Environment string
	Grant       Grant
	Resources   []Resource
	Allowlist   []netip.Prefix
	Limit       *keyspace.Limit
	ExpiresAt   Time
	Status      Status // as the events say; ask StatusAt for the answer at an instant
	CreatedAt   Time
	CreatedBy   Actor
	UpdatedAt   Time // time of the last event
	RotatedFrom KeyID
	RotatedTo   KeyID
	RevokedAt   Time
	RevokeCode  RevokeCode
	RevokeNote  string
}

// Exists reports whether the key has been created.
func (k *Key) Exists() bool { return k.Status != "" }

// StatusAt returns the status at the instant now: an active or disabled key
// whose expiry has come is expired, whether or not key.expired is on the record.
// The key is refused from its expiry's own millisecond on.
func (k *Key) StatusAt(now Time) Status { return k.Status.At(k.ExpiresAt, now) }

// At is Key.StatusAt for views that keep status and expiry only.
func (s Status) At(expires, now Time) Status {
	if (s == StatusActive || s == StatusDisabled) && expires != 0 && now >= expires {
		return StatusExpired
	}
	return s
}

// TransitionError says that the key's state does not admit an event.
type TransitionError struct {
	Type   Type
	Status Status // "" when the key does not exist
}

func (e *TransitionError) Error() string {
	if e.Status == "" {
		return fmt.Sprintf("%s: the key does not exist", e.Type)
	}
	return fmt.Sprintf("%s: not possible for a key that is %s", e.Type, e.Status)
}

// May reports whether the key's life admits data next: nil, or a
// *TransitionError. It is the whole state machine (E5):
//
//	(none) ──created, imported──> active <──enabled── disabled
//	(none) ──imported──> disabled, revoked
//	active ──disabled──> disabled
//	active, disabled ──scopes, resources, allowlist, limit, expiry, renamed──> same
//	active ──rotated (once)──> active
//	active, disabled ──revoked──> revoked     (final)
//	active, disabled ──expired──> expired     (final)
func (k *Key) May(data Data) error {
	ok := false
	live := k.Status == StatusActive || k.Status == StatusDisabled
	switch data.(type) {
	case *KeyCreated, *KeyImported:
		ok = k.Status == ""
	case *KeyScopesAssigned, *KeyResourcesAssigned, *KeyAllowlistUpdated, *KeyLimitUpdated, *KeyExpiryChanged,
		*KeyRenamed, *KeyRevoked:
		ok = live
	case *KeyExpired:
		ok = live && k.ExpiresAt != 0
	case *KeyDisabled:
		ok = k.Status == StatusActive
	case *KeyEnabled:
		ok = k.Status == StatusDisabled
	case *KeyRotated:
		ok = k.Status == StatusActive && k.RotatedTo.IsZero()
	}
	if !ok {
		return &TransitionError{data.EventType(), k.Status}
	}
	return nil
}

// Next returns the key after r, or an error: *ChainError when r does not
// continue the history, *TransitionError when the life does not admit it. The
// given key is not changed; lists are shared with the event.
func (k *Key) Next(r *Recorded) (Key, error) {
	chain, err := k.Chain.Advance(r)
	if err != nil {
		return *k, err
	}
	if err := k.May(r.Data); err != nil {
		return *k, fmt.Errorf("event %d of %s: %w", r.Seq, r.Aggregate, err)
	}
	n := *k
	n.Chain = chain
	n.UpdatedAt = r.Time
	switch d := r.Data.(type) {
	case *KeyCreated:
		n.create(r, d)
	case *KeyImported:
		n.create(r, &d.KeyCreated)
		n.arrive(r, d)
	case *KeyScopesAssigned:
		n.Grant = d.After
	case *KeyResourcesAssigned:
		n.Resources = d.After
	case *KeyAllowlistUpdated:
		n.Allowlist = d.After
	case *KeyLimitUpdated:
		n.Limit = d.After
	case *KeyExpiryChanged:
		n.ExpiresAt = d.After
	case *KeyRenamed:
		n.Label = d.After
	case *KeyDisabled:
		n.Status = StatusDisabled
	case *KeyEnabled:
		n.Status = StatusActive
	case *KeyRotated:
		n.RotatedTo = d.Successor
		n.ExpiresAt = d.After
	case *KeyRevoked:
		n.Status = StatusRevoked
		n.RevokedAt = r.Time
		n.RevokeCode = d.Code
		n.RevokeNote = r.Reason
	case *KeyExpired:
		n.Status = StatusExpired
	}
	return n, nil
}

func (k *Key) create(r *Recorded, d *KeyCreated) {
	k.ID = r.Key()
	k.Keyspace = r.Aggregate.Keyspace
	k.Tenant = r.Aggregate.Tenant
	k.Digest = d.Digest
	k.Hint = d.Hint
	k.Label = Label{d.Name, d.Metadata}
	k.KeyType = d.KeyType
	k.Environment = d.Environment
	k.Grant = Grant{d.Scopes, d.Roles}
	k.Resources = d.Resources
	k.Allowlist = d.Allowlist
	k.Limit = d.Limit
	k.ExpiresAt = d.ExpiresAt
	k.Status = StatusActive
	k.CreatedAt = r.Time
	k.CreatedBy = r.Actor
	k.RotatedFrom = d.RotatedFrom
}

// arrive takes over how an imported key stood where it comes from.
func (k *Key) arrive(r *Recorded, d *KeyImported) {
	if d.Status != "" {
		k.Status = d.Status
	}
	if d.Status == StatusRevoked {
		if k.RevokedAt = d.RevokedAt; k.RevokedAt == 0 {
			k.RevokedAt = r.Time
		}
		k.RevokeCode = d.RevokeCode
		k.RevokeNote = r.Reason
	}
}

// FoldKey folds a key's whole history, as Log.Load returns it.
func FoldKey(history []Recorded) (Key, error) {
	var k Key
	for i := range history {
		n, err := k.Next(&history[i])
		if err != nil {
			return k, err
		}
		k = n
	}
	return k, nil
}

// Keyspace is what the events of one keyspace add up to.
type Keyspace struct {
	Chain
	ID         KeyspaceID
	Definition keyspace.Definition
	Retired    []keyspace.Plan // plans that earlier definitions had, with their last numbers
	CreatedAt  Time
	UpdatedAt  Time
}

// Exists reports whether the keyspace has been defined.
func (k *Keyspace) Exists() bool { return k.Rev > 0 }

// Next returns the keyspace after r.
func (k *Keyspace) Next(r *Recorded) (Keyspace, error) {
	chain, err := k.Chain.Advance(r)
	if err != nil {
		return *k, err
	}
	d, ok := r.Data.(*KeyspaceDefined)
	if !ok {
		return *k, fmt.Errorf("event %d of %s: %s does not belong to a keyspace", r.Seq, r.Aggregate, r.Type())
	}
	n := Keyspace{Chain: chain, ID: r.Aggregate.Keyspace, Definition: d.Definition, Retired: k.Definition.Retire(&d.Definition, k.Retired), CreatedAt: k.CreatedAt, UpdatedAt: r.Time}
	if k.Rev == 0 {
		n.CreatedAt = r.Time
	}
	return n, nil
}

// Role is what the events of one role add up to.
type Role struct {
	Chain
	Keyspace    KeyspaceID
	Tenant      TenantID
	ID          RoleID
	Level       string
	Description string
	Scopes      []string
	Deleted     bool
	UpdatedAt   Time
}

// Exists reports whether the role is defined and not deleted.
func (r *Role) Exists() bool { return r.Rev > 0 && !r.Deleted }

// Next returns the role after rec. A deleted role may be defined again. It keeps its
// level, since keys may hold it still.
func (r *Role) Next(rec *Recorded) (Role, error) {
	chain, err := r.Chain.Advance(rec)
	if err != nil {
		return *r, err
	}
	n := Role{Chain: chain, Keyspace: rec.Aggregate.Keyspace, Tenant: rec.Aggregate.Tenant, ID: RoleID(rec.Aggregate.ID), UpdatedAt: rec.Time}
	switch d := rec.Data.(type) {
	case *RoleDefined:
		n.Level, n.Description, n.Scopes = d.Level, d.Description, d.Scopes
	case *RoleDeleted:
		if !r.Exists() {
			return *r, fmt.Errorf("event %d of %s: the role does not exist", rec.Seq, rec.Aggregate)
		}
		n.Level, n.Deleted = r.Level, true
	default:
		return *r, fmt.Errorf("event %d of %s: %s does not belong to a role", rec.Seq, rec.Aggregate, rec.Type())
	}
	return n, nil
}

// Tenant is what the events of one tenant as a whole add up to.
type Tenant struct {
	Chain
	Keyspace  KeyspaceID
	ID        TenantID
	Limit     *keyspace.Limit // nil = the keyspace's default
	UpdatedAt Time
}

// Exists reports true: a tenant is there as soon as somebody names it.
func (t *Tenant) Exists() bool { return true }

// Next returns the tenant after r.
func (t *Tenant) Next(r *Recorded) (Tenant, error) {
	chain, err := t.Chain.Advance(r)
	if err != nil {
		return *t, err
	}
	d, ok := r.Data.(*TenantLimitUpdated)
	if !ok {
		return *t, fmt.Errorf("event %d of %s: %s does not belong to a tenant", r.Seq, r.Aggregate, r.Type())
	}
	return Tenant{Chain: chain, Keyspace: r.Aggregate.Keyspace, ID: r.Aggregate.Tenant, Limit: d.After, UpdatedAt: r.Time}, nil
}
