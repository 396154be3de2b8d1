package events

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Type names what happened. The set is closed per release: an unknown type on
// replay stops the reader with a sentence, it is never skipped.
type Type string

// The catalogue, version 1. Uses are a stream of their own (use.go).
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
)

// Data is what one type of event says. The set is closed: only this package
// implements it.
type Data interface {
	EventType() Type
	// Validate reports the first fault of the data on its own, without the
	// aggregate's state.
	Validate() error
	aggregate() AggregateKind
}

// Catalogue maps every type to a constructor of its empty data (a pointer).
var Catalogue = map[Type]func() Data{
	TypeKeyspaceDefined:      func() Data { return new(KeyspaceDefined) },
	TypeRoleDefined:          func() Data { return new(RoleDefined) },
	TypeRoleDeleted:          func() Data { return new(RoleDeleted) },
	TypeTenantLimitUpdated:   func() Data { return new(TenantLimitUpdated) },
	TypeKeyCreated:           func() Data { return new(KeyCreated) },
	TypeKeyImported:          func() Data { return new(KeyImported) },
	TypeKeyScopesAssigned:    func() Data { return new(KeyScopesAssigned) },
	TypeKeyResourcesAssigned: func() Data { return new(KeyResourcesAssigned) },
	TypeKeyAllowlistUpdated:  func() Data { return new(KeyAllowlistUpdated) },
	TypeKeyLimitUpdated:      func() Data { return new(KeyLimitUpdated) },
	TypeKeyExpiryChanged:     func() Data { return new(KeyExpiryChanged) },
	TypeKeyRenamed:           func() Data { return new(KeyRenamed) },
	TypeKeyDisabled:          func() Data { return new(KeyDisabled) },
	TypeKeyEnabled:           func() Data { return new(KeyEnabled) },
	TypeKeyRotated:           func() Data { return new(KeyRotated) },
	TypeKeyRevoked:           func() Data { return new(KeyRevoked) },
	TypeKeyExpired:           func() Data { return new(KeyExpired) },
	TypeAuditQueried:         func() Data { return new(AuditQueried) },
	TypeAuditExported:        func() Data { return new(AuditExported) },
}

// KeyspaceDefined replaces the definition of a keyspace; rev counts versions.
type KeyspaceDefined struct {
	Definition Definition  `json:"definition"`
	Before     *Definition `json:"before,omitzero"` // absent on the first
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
	Before *Limit `json:"before,omitzero"`
	After  *Limit `json:"after,omitzero"` // absent = the keyspace's default
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
	Limit       *Limit            `json:"limit,omitzero"`      // absent = the keyspace's default
	ExpiresAt   Time              `json:"expires_at,omitzero"` // absent = never
	Metadata    map[string]string `json:"metadata,omitempty"`
	RotatedFrom KeyID             `json:"rotated_from,omitzero"` // the key it succeeds
}

// KeyImported starts the life here of a key that another system issued.
type KeyImported struct {
	KeyCreated
	ImportedFrom string `json:"imported_from,omitzero"` // where it comes from, in the operator's words
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
	Before *Limit `json:"before,omitzero"`
	After  *Limit `json:"after,omitzero"`
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
	return fmt.Errorf("code %q: want %s", clip(string(c)), revokeCodesForPeople)
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

// AuditExported records that someone took a copy of the record.
type AuditExported struct {
	Kind   string            `json:"kind"`   // events, uses
	Format string            `json:"format"` // csv, jsonl
	Filter map[string]string `json:"filter,omitempty"`
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

func (d *KeyspaceDefined) Validate() error { return d.Definition.Validate().OrNil() }

func (d *RoleDefined) Validate() error {
	if d.Level != "" && !kindWord.match(d.Level) {
		return fmt.Errorf("level: want tenant or a resource kind")
	}
	if err := CheckText(d.Description, 500); err != nil {
		return fmt.Errorf("description: %w", err)
	}
	return validScopes(d.Scopes)
}

func (*RoleDeleted) Validate() error { return nil }

func (d *TenantLimitUpdated) Validate() error { return validLimit(d.After) }

func (d *KeyCreated) Validate() error {
	if d.Digest.IsZero() {
		return fmt.Errorf("digest is missing")
	}
	if err := CheckText(d.Hint, 64); err != nil {
		return fmt.Errorf("hint: %w", err)
	}
	if !kindWord.match(d.KeyType) {
		return fmt.Errorf("key_type: want the name of a key type")
	}
	if d.Environment != "" && !kindWord.match(d.Environment) {
		return fmt.Errorf("environment: want a name")
	}
	if err := (Label{d.Name, d.Metadata}).Validate(); err != nil {
		return err
	}
	if err := (Grant{d.Scopes, d.Roles}).Validate(); err != nil {
		return err
	}
	if err := ValidResources(d.Resources); err != nil {
		return err
	}
	if err := ValidAllowlist(d.Allowlist); err != nil {
		return err
	}
	if d.ExpiresAt != 0 {
		if err := d.ExpiresAt.Validate(); err != nil {
			return fmt.Errorf("expires_at: %w", err)
		}
	}
	return validLimit(d.Limit)
}

func (d *KeyImported) Validate() error {
	if err := CheckText(d.ImportedFrom, 200); err != nil {
		return fmt.Errorf("imported_from: %w", err)
	}
	return d.KeyCreated.Validate()
}

func (d *KeyScopesAssigned) Validate() error    { return d.After.Validate() }
func (d *KeyResourcesAssigned) Validate() error { return ValidResources(d.After) }
func (d *KeyAllowlistUpdated) Validate() error  { return ValidAllowlist(d.After) }
func (d *KeyLimitUpdated) Validate() error      { return validLimit(d.After) }
func (d *KeyRenamed) Validate() error           { return d.After.Validate() }
func (*KeyDisabled) Validate() error            { return nil }
func (*KeyEnabled) Validate() error             { return nil }
func (d *KeyRevoked) Validate() error           { return d.Code.Validate() }
func (d *KeyExpired) Validate() error           { return d.ExpiredAt.Validate() }

func (d *KeyExpiryChanged) Validate() error {
	if d.After == 0 {
		return nil
	}
	return d.After.Validate()
}

func (d *KeyRotated) Validate() error {
	if d.Successor.IsZero() {
		return fmt.Errorf("successor is missing")
	}
	if d.Before != 0 && d.After > d.Before {
		return fmt.Errorf("after: an overlap never outlives the key's own expiry")
	}
	return d.After.Validate()
}

func (d *AuditQueried) Validate() error {
	return validFilter(d.Kind, "", d.Filter)
}

func (d *AuditExported) Validate() error {
	return validFilter(d.Kind, d.Format, d.Filter)
}

// Validate reports whether the label can be written down: a name of 1 to 100
// characters, at most 32 metadata members with keys of 1 to 64 and values of at
// most 500 characters.
func (l Label) Validate() error {
	if l.Name == "" {
		return fmt.Errorf("name: want 1 to 100 characters")
	}
	if err := CheckText(l.Name, 100); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if len(l.Metadata) > 32 {
		return fmt.Errorf("metadata: want at most 32 members")
	}
	for k, v := range l.Metadata {
		if k == "" || CheckText(k, 64) != nil {
			return fmt.Errorf("metadata: want keys of 1 to 64 characters")
		}
		if err := CheckText(v, 500); err != nil {
			return fmt.Errorf("metadata.%s: %w", k, err)
		}
	}
	return nil
}

// MaxScopes, MaxResources and MaxAllowlist bound the lists of a key so that one
// event stays under the log's message size.
const (
	MaxScopes    = 200
	MaxResources = 500
	MaxAllowlist = 10_000
)

// Validate reports whether scopes and roles are well-formed, sorted and unique.
func (g Grant) Validate() error {
	if err := validScopes(g.Scopes); err != nil {
		return err
	}
	for _, r := range g.Roles {
		if err := r.Validate(); err != nil {
			return err
		}
	}
	if len(g.Roles) > MaxScopes || !strictlySorted(g.Roles, cmp.Compare) {
		return fmt.Errorf("roles: want at most %d, sorted, each once", MaxScopes)
	}
	return nil
}

func validScopes(scopes []string) error {
	for _, s := range scopes {
		if err := ValidScope(s); err != nil {
			return err
		}
	}
	if len(scopes) > MaxScopes || !strictlySorted(scopes, cmp.Compare) {
		return fmt.Errorf("scopes: want at most %d, sorted, each once", MaxScopes)
	}
	return nil
}

// CompareResources orders resources by kind, then id.
func CompareResources(a, b Resource) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
}

// ValidResources reports whether the list is well-formed, sorted and unique.
func ValidResources(rs []Resource) error {
	for _, r := range rs {
		if err := r.Validate(); err != nil {
			return err
		}
	}
	if len(rs) > MaxResources || !strictlySorted(rs, CompareResources) {
		return fmt.Errorf("resources: want at most %d, sorted, each once", MaxResources)
	}
	return nil
}

// ComparePrefixes orders networks by family, address, then length.
func ComparePrefixes(a, b netip.Prefix) int { return a.Compare(b) }

// ValidAllowlist reports whether every network is masked, without zone and not
// IPv4 in IPv6, and the list sorted and unique.
func ValidAllowlist(ps []netip.Prefix) error {
	for _, p := range ps {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
			return fmt.Errorf("allowlist: %q: want a network without host bits", p)
		}
	}
	if len(ps) > MaxAllowlist || !strictlySorted(ps, ComparePrefixes) {
		return fmt.Errorf("allowlist: want at most %d, sorted, each once", MaxAllowlist)
	}
	return nil
}

func validLimit(l *Limit) error {
	if l == nil {
		return nil
	}
	var f FieldErrors
	if l.Plan != "" {
		if !kindWord.match(l.Plan) || l.PerMinute != 0 || l.Burst != 0 {
			return fmt.Errorf("limit: want either the name of a plan or per_minute and burst")
		}
		return nil
	}
	f.limit("limit", l.PerMinute, l.Burst)
	return f.OrNil()
}

func validFilter(kind, format string, filter map[string]string) error {
	if !kindWord.match(kind) {
		return fmt.Errorf("kind: want a name")
	}
	if format != "" && !kindWord.match(format) {
		return fmt.Errorf("format: want a name")
	}
	if len(filter) > 32 {
		return fmt.Errorf("filter: want at most 32 members")
	}
	for k, v := range filter {
		if !kindWord.match(k) || CheckText(v, 256) != nil {
			return fmt.Errorf("filter: want names with values of at most 256 characters")
		}
	}
	return nil
}

func strictlySorted[T any](s []T, compare func(a, b T) int) bool {
	return slices.IsSortedFunc(s, compare) && !hasRepeat(s, compare)
}

func hasRepeat[T any](s []T, compare func(a, b T) int) bool {
	for i := 1; i < len(s); i++ {
		if compare(s[i-1], s[i]) == 0 {
			return true
		}
	}
	return false
}
