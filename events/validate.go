package events

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Of a definition all beyond its members are rules (CanAppend); that the envelope is
// an object its members cannot say.
func (d *KeyspaceDefined) Validate() error {
	if v := d.Definition.Errors.Envelope; v != nil && v.Kind() != '{' {
		return fmt.Errorf("definition.errors.envelope: want an object")
	}
	return nil
}

func (d *RoleDefined) Validate() error {
	if d.Level != "" && !input.IsWord(d.Level) {
		return fmt.Errorf("level: want tenant or a resource kind")
	}
	return validScopes(d.Scopes)
}

func (*RoleDeleted) Validate() error { return nil }

func (d *TenantLimitUpdated) Validate() error { return d.After.Validate() }

func (d *KeyCreated) Validate() error {
	if d.Digest.IsZero() {
		return fmt.Errorf("digest is missing")
	}
	if !input.IsWord(d.KeyType) {
		return fmt.Errorf("key_type: want the name of a key type")
	}
	if d.Environment != "" && !input.IsWord(d.Environment) {
		return fmt.Errorf("environment: want a name")
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
	return d.Limit.Validate()
}

func (d *KeyImported) Validate() error {
	if d.Status != "" && d.Status != StatusDisabled && d.Status != StatusRevoked {
		return fmt.Errorf("status: want disabled or revoked")
	}
	switch revoked := d.Status == StatusRevoked; {
	case !revoked && (d.RevokedAt != 0 || d.RevokeCode != ""):
		return fmt.Errorf("revoked_at, revoke_code: the key is not revoked")
	case revoked:
		if err := d.RevokeCode.Validate(); err != nil {
			return fmt.Errorf("revoke_code: %w", err)
		}
		if d.RevokedAt != 0 {
			if err := d.RevokedAt.Validate(); err != nil {
				return fmt.Errorf("revoked_at: %w", err)
			}
		}
	}
	return d.KeyCreated.Validate()
}

func (d *KeyScopesAssigned) Validate() error    { return d.After.Validate() }
func (d *KeyResourcesAssigned) Validate() error { return ValidResources(d.After) }
func (d *KeyAllowlistUpdated) Validate() error  { return ValidAllowlist(d.After) }
func (d *KeyLimitUpdated) Validate() error      { return d.After.Validate() }
func (*KeyRenamed) Validate() error             { return nil }
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
	return d.After.Validate()
}

func (d *AuditQueried) Validate() error {
	return validFilter(d.Kind, "", d.Filter)
}

func (d *AuditExported) Validate() error {
	return validFilter(d.Kind, d.Format, d.Filter)
}

func (d *AuditExportEnded) Validate() error {
	switch {
	case d.Export.IsZero():
		return fmt.Errorf("export: want the id of its audit.exported")
	case d.Complete == d.Digest.IsZero():
		return fmt.Errorf("digest: want it when the export is complete, and only then")
	case d.Rows == 0 && d.First != 0 || (d.First == 0) != (d.Last == 0) || d.First > d.Last:
		return fmt.Errorf("first_seq, last_seq: want those of the rows, in order, or none")
	case d.Gaps != nil && d.Gaps.Count == 0:
		return fmt.Errorf("gaps: want at least one, or leave it out")
	}
	return nil
}

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
	if !strictlySorted(g.Roles, cmp.Compare) {
		return fmt.Errorf("roles: want them sorted, each once")
	}
	return nil
}

func validScopes(scopes []string) error {
	for _, s := range scopes {
		if err := keyspace.ValidScope(s); err != nil {
			return err
		}
	}
	if !strictlySorted(scopes, cmp.Compare) {
		return fmt.Errorf("scopes: want them sorted, each once")
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
	if !strictlySorted(rs, CompareResources) {
		return fmt.Errorf("resources: want them sorted, each once")
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
			return fmt.Errorf("allowlist: %s: want a network without host bits", p)
		}
	}
	if !strictlySorted(ps, ComparePrefixes) {
		return fmt.Errorf("allowlist: want it sorted, each network once")
	}
	return nil
}

func validFilter(kind, format string, filter map[string]string) error {
	if !input.IsWord(kind) {
		return fmt.Errorf("kind: want a name")
	}
	if format != "" && !input.IsWord(format) {
		return fmt.Errorf("format: want a name")
	}
	for k := range filter {
		if !input.IsWord(k) {
			return fmt.Errorf("filter: want names")
		}
	}
	return nil
}

func strictlySorted[T any](s []T, compare func(a, b T) int) bool {
	for i := 1; i < len(s); i++ {
		if compare(s[i-1], s[i]) >= 0 {
			return false
		}
	}
	return true
}
