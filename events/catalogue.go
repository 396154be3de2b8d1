package events

import (
	"fmt"
	"net/netip"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Type names what happened. The set is closed per release: an unknown type on
// replay stops the reader with a sentence, it is never skipped.
type Type string

// The types of the catalogue (versions.go). Uses are a stream of their own (use.go).
const (
	TypeKeyspaceDefined      Type = "keyspace.defined"
	TypeRoleDefined          Type = "role.defined"
	TypeRoleDeleted          Type = "role.deleted"
	TypeTenantLimitUpdated   Type = "tenant.limit_updated"
	TypeKeyCreated           Type = "key.created"
	TypeKeyImported          Type = "key.imported"
	TypeKeyScopesAssigned    Type = "key.scopes_assigned"
	TypeKeyResourcesAssigned Type = "key.resources_assigned"
	TypeKeyAllowlistUpdated  Type = "key.allowlist_updated"
	TypeKeyLimitUpdated      Type = "key.limit_updated"
	TypeKeyExpiryChanged     Type = "key.expiry_changed"
	TypeKeyRenamed           Type = "key.renamed"
	TypeKeyDisabled          Type = "key.disabled"
	TypeKeyEnabled           Type = "key.enabled"
	TypeKeyRotated           Type = "key.rotated"
	TypeKeyRevoked           Type = "key.revoked"
	TypeKeyExpired           Type = "key.expired"
	TypeAuditQueried         Type = "audit.queried"
	TypeAuditExported        Type = "audit.exported"
	TypeAuditExportEnded     Type = "audit.export_ended"
)

// Data is what one type of event says. The set is closed: only this package
// implements it.
type Data interface {
	EventType() Type
	// Validate reports the first fault of the data's form: of a word's grammar, a
	// list's order, a closed set. Whatever has been stored once keeps that form, so
	// no later release is stricter here. What may tighten is in CanAppend.
	Validate() error
	aggregate() AggregateKind
}

// KeyspaceDefined replaces the definition of a keyspace; rev counts versions.
type KeyspaceDefined struct {
	Definition keyspace.Definition  `json:"definition"`
	Before     *keyspace.Definition `json:"before,omitzero"` // absent on the first
}

// RoleDefined makes or replaces a role.
type RoleDefined struct {
	Level       string   `json:"level,omitzero"` // tenant (default) or a resource kind
	Description string   `json:"description,omitzero"`
	Scopes      []string `json:"scopes"`
	Before      []string `json:"before,omitempty"` // the scopes it had
}

// RoleDeleted ends a role: it grants nothing from here on.
type RoleDeleted struct{}

// TenantLimitUpdated replaces the limit of a tenant: of all its keys together.
type TenantLimitUpdated struct {
	Before *keyspace.Limit `json:"before,omitzero"`
	After  *keyspace.Limit `json:"after,omitzero"` // absent = the keyspace's default
}

// KeyCreated starts a key's life.
type KeyCreated struct {
	Digest      Digest            `json:"digest"`
	Hint        string            `json:"hint"` // readable start of the secret
	Name        string            `json:"name"`
	KeyType     string            `json:"key_type"`
	Environment string            `json:"environment,omitzero"`
	Scopes      []string          `json:"scopes,omitempty"`
	Roles       []RoleID          `json:"roles,omitempty"`
	Resources   []Resource        `json:"resources,omitempty"` // absent = the whole tenant
	Allowlist   []netip.Prefix    `json:"allowlist,omitempty"` // absent = any address
	Limit       *keyspace.Limit   `json:"limit,omitzero"`      // absent = the keyspace's default
	ExpiresAt   Time              `json:"expires_at,omitzero"` // absent = never
	Metadata    map[string]string `json:"metadata,omitempty"`
	RotatedFrom KeyID             `json:"rotated_from,omitzero"` // the key it succeeds
}

// KeyImported starts the life here of a key that another system issued.
type KeyImported struct {
	KeyCreated
	ImportedFrom string `json:"imported_from,omitzero"` // where it comes from, in the operator's words

	// A key that had ended or stood still where it comes from does not come alive here.
	Status     Status     `json:"status,omitzero"`      // disabled or revoked; absent = active
	RevokedAt  Time       `json:"revoked_at,omitzero"`  // of a revoked key, if it is known: when it was revoked there
	RevokeCode RevokeCode `json:"revoke_code,omitzero"` // of a revoked key
}

// Grant is what a key may do: scopes by name and by role.
type Grant struct {
	Scopes []string `json:"scopes,omitempty"`
	Roles  []RoleID `json:"roles,omitempty"`
}

// KeyScopesAssigned replaces the key's scopes and roles.
type KeyScopesAssigned struct {
	Before Grant `json:"before"`
	After  Grant `json:"after"`
}

// KeyResourcesAssigned replaces what the key is restricted to.
type KeyResourcesAssigned struct {
	Before []Resource `json:"before,omitempty"`
	After  []Resource `json:"after,omitempty"`
}

// KeyAllowlistUpdated replaces the networks the key may be used from.
type KeyAllowlistUpdated struct {
	Before []netip.Prefix `json:"before,omitempty"`
	After  []netip.Prefix `json:"after,omitempty"`
}

// KeyLimitUpdated replaces the key's own limit.
type KeyLimitUpdated struct {
	Before *keyspace.Limit `json:"before,omitzero"`
	After  *keyspace.Limit `json:"after,omitzero"`
}

// KeyExpiryChanged moves the key's expiry.
type KeyExpiryChanged struct {
	Before Time `json:"before,omitzero"`
	After  Time `json:"after,omitzero"`
}

// Label is what people call a key.
type Label struct {
	Name     string            `json:"name"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// KeyRenamed replaces the key's name and metadata.
type KeyRenamed struct {
	Before Label `json:"before"`
	After  Label `json:"after"`
}

// KeyDisabled stops the key until it is enabled again.
type KeyDisabled struct{}

// KeyEnabled ends a disablement.
type KeyEnabled struct{}

// KeyRotated names the key's successor and ends its own life no later than
// before: After is the end of the overlap.
type KeyRotated struct {
	Successor KeyID `json:"successor"`
	Before    Time  `json:"before,omitzero"` // the expiry it had
	After     Time  `json:"after"`           // the expiry it has now, at or before Before
}

// RevokeCode says why a key was revoked, after RFC 5280 section 5.3.1.
type RevokeCode string

// The revocation codes.
const (
	RevokeUnspecified    RevokeCode = "unspecified"
	RevokeCompromise     RevokeCode = "key_compromise"
	RevokeAffiliation    RevokeCode = "affiliation_changed"
	RevokeSuperseded     RevokeCode = "superseded"
	RevokeCessation      RevokeCode = "cessation_of_operation"
	RevokePrivilegeGone  RevokeCode = "privilege_withdrawn"
	revokeCodesForPeople            = "unspecified, key_compromise, affiliation_changed, superseded, cessation_of_operation or privilege_withdrawn"
)

// Validate reports whether c is in the closed set.
func (c RevokeCode) Validate() error {
	switch c {
	case RevokeUnspecified, RevokeCompromise, RevokeAffiliation, RevokeSuperseded, RevokeCessation, RevokePrivilegeGone:
		return nil
	}
	return fmt.Errorf("code %s: want %s", input.Echo(c), revokeCodesForPeople)
}

// KeyRevoked ends the key's life for good.
type KeyRevoked struct {
	Code RevokeCode `json:"code"`
}

// KeyExpired records that the key's time has run out. Verifiers refuse by the
// clock and never wait for it.
type KeyExpired struct {
	ExpiredAt Time `json:"expired_at"` // the expiry that passed
}

// AuditQueried records that someone read the record.
type AuditQueried struct {
	Kind   string            `json:"kind"` // events, uses, usage; history of one key
	Filter map[string]string `json:"filter,omitempty"`
}

// AuditExported records that someone begins to take a copy of the record.
type AuditExported struct {
	Kind   string            `json:"kind"`   // events, uses
	Format string            `json:"format"` // csv, jsonl
	Filter map[string]string `json:"filter,omitempty"`
}

// AuditExportEnded records how an export ended. One that has no such event still
// runs, or its process was stopped.
type AuditExportEnded struct {
	Export   EventID `json:"export"`             // the id of its audit.exported
	Complete bool    `json:"complete"`           // every byte was handed to the reader's connection; else it was broken off
	Rows     uint64  `json:"rows"`               // as many as were read
	First    Seq     `json:"first_seq,omitzero"` // the lowest and the highest sequence of the rows; reading has none, as its log is another
	Last     Seq     `json:"last_seq,omitzero"`
	Digest   Hash    `json:"digest,omitzero"` // SHA-256 of the body; absent unless complete
	Gaps     *Gaps   `json:"gaps,omitzero"`   // what the ledger lacks in the time asked for; absent when nothing
}

// Gaps says what the ledger of uses lacks: decisions that were made and are not on
// the record.
type Gaps struct {
	Count    uint64 `json:"count"`     // gaps
	UsesLost uint64 `json:"uses_lost"` // decisions lost in the gaps whose size is known
	Unknown  bool   `json:"unknown"`   // the size of some gap is not known
}

func (*KeyspaceDefined) EventType() Type      { return TypeKeyspaceDefined }
func (*RoleDefined) EventType() Type          { return TypeRoleDefined }
func (*RoleDeleted) EventType() Type          { return TypeRoleDeleted }
func (*TenantLimitUpdated) EventType() Type   { return TypeTenantLimitUpdated }
func (*KeyCreated) EventType() Type           { return TypeKeyCreated }
func (*KeyImported) EventType() Type          { return TypeKeyImported }
func (*KeyScopesAssigned) EventType() Type    { return TypeKeyScopesAssigned }
func (*KeyResourcesAssigned) EventType() Type { return TypeKeyResourcesAssigned }
func (*KeyAllowlistUpdated) EventType() Type  { return TypeKeyAllowlistUpdated }
func (*KeyLimitUpdated) EventType() Type      { return TypeKeyLimitUpdated }
func (*KeyExpiryChanged) EventType() Type     { return TypeKeyExpiryChanged }
func (*KeyRenamed) EventType() Type           { return TypeKeyRenamed }
func (*KeyDisabled) EventType() Type          { return TypeKeyDisabled }
func (*KeyEnabled) EventType() Type           { return TypeKeyEnabled }
func (*KeyRotated) EventType() Type           { return TypeKeyRotated }
func (*KeyRevoked) EventType() Type           { return TypeKeyRevoked }
func (*KeyExpired) EventType() Type           { return TypeKeyExpired }
func (*AuditQueried) EventType() Type         { return TypeAuditQueried }
func (*AuditExported) EventType() Type        { return TypeAuditExported }
func (*AuditExportEnded) EventType() Type     { return TypeAuditExportEnded }

func (*KeyspaceDefined) aggregate() AggregateKind      { return KindKeyspace }
func (*RoleDefined) aggregate() AggregateKind          { return KindRole }
func (*RoleDeleted) aggregate() AggregateKind          { return KindRole }
func (*TenantLimitUpdated) aggregate() AggregateKind   { return KindTenant }
func (*KeyCreated) aggregate() AggregateKind           { return KindKey }
func (*KeyImported) aggregate() AggregateKind          { return KindKey }
func (*KeyScopesAssigned) aggregate() AggregateKind    { return KindKey }
func (*KeyResourcesAssigned) aggregate() AggregateKind { return KindKey }
func (*KeyAllowlistUpdated) aggregate() AggregateKind  { return KindKey }
func (*KeyLimitUpdated) aggregate() AggregateKind      { return KindKey }
func (*KeyExpiryChanged) aggregate() AggregateKind     { return KindKey }
func (*KeyRenamed) aggregate() AggregateKind           { return KindKey }
func (*KeyDisabled) aggregate() AggregateKind          { return KindKey }
func (*KeyEnabled) aggregate() AggregateKind           { return KindKey }
func (*KeyRotated) aggregate() AggregateKind           { return KindKey }
func (*KeyRevoked) aggregate() AggregateKind           { return KindKey }
func (*KeyExpired) aggregate() AggregateKind           { return KindKey }
func (*AuditQueried) aggregate() AggregateKind         { return KindReader }
func (*AuditExported) aggregate() AggregateKind        { return KindReader }
func (*AuditExportEnded) aggregate() AggregateKind     { return KindReader }
