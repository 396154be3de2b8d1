package commands

import (
	"net/netip"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// KeyView is a key as an endpoint shows it: never the secret or its digest. What
// the key does not have is null; only what is not known is absent.
type KeyView struct {
	ID           events.KeyID       `json:"id"`
	Key          string             `json:"key,omitzero"` // the secret, in the one answer that shows it (C4)
	Keyspace     events.KeyspaceID  `json:"keyspace"`
	Tenant       events.TenantID    `json:"tenant"`
	Name         string             `json:"name"`
	Hint         string             `json:"hint"`
	Type         string             `json:"type"`
	Environment  *string            `json:"environment"`
	Status       events.Status      `json:"status"` // at the instant of the answer, or as_of
	Scopes       []string           `json:"scopes"` // as granted, without what they imply
	Roles        []events.RoleID    `json:"roles"`
	Resources    []events.Resource  `json:"resources"` // none = the whole tenant
	Allowlist    []netip.Prefix     `json:"allowlist"` // none = any address
	Limit        *keyspace.Limit    `json:"limit"`     // null = the keyspace's default
	ExpiresAt    *events.Time       `json:"expires_at"`
	Metadata     map[string]string  `json:"metadata"`
	CreatedAt    events.Time        `json:"created_at"`
	CreatedBy    events.Actor       `json:"created_by"`
	UpdatedAt    events.Time        `json:"updated_at"`
	RotatedFrom  *events.KeyID      `json:"rotated_from"`
	RotatedTo    *events.KeyID      `json:"rotated_to"`
	RevokedAt    *events.Time       `json:"revoked_at"`
	RevokeCode   *events.RevokeCode `json:"revoke_code"`
	RevokeReason *string            `json:"revoke_reason"`
	LastUsedAt   LastUse            `json:"last_used_at,omitzero"` // null when never; absent when not known
	Rev          uint64             `json:"rev"`
}

// LastUse is when a key was last used. Zero means that it is not known.
type LastUse struct {
	known bool
	at    events.Time // 0 = never
}

// Used says that the key was last used at the instant, never when that is 0.
func Used(at events.Time) LastUse { return LastUse{true, at} }

// MarshalJSON prints the instant, or null for a key that was never used. What is
// not known is left out of an answer.
func (u LastUse) MarshalJSON() ([]byte, error) {
	if u.at == 0 {
		return []byte("null"), nil
	}
	return []byte(`"` + u.at.String() + `"`), nil
}

// ViewKey returns the key as it stands at the instant.
func ViewKey(k *events.Key, at events.Time) KeyView {
	return KeyView{
		ID: k.ID, Keyspace: k.Keyspace, Tenant: k.Tenant,
		Name: k.Label.Name, Hint: k.Hint, Type: k.KeyType, Environment: null(k.Environment),
		Status: k.StatusAt(at),
		Scopes: k.Grant.Scopes, Roles: k.Grant.Roles, Resources: k.Resources, Allowlist: k.Allowlist,
		Limit: k.Limit, ExpiresAt: null(k.ExpiresAt), Metadata: k.Label.Metadata,
		CreatedAt: k.CreatedAt, CreatedBy: k.CreatedBy, UpdatedAt: k.UpdatedAt,
		RotatedFrom: null(k.RotatedFrom), RotatedTo: null(k.RotatedTo),
		RevokedAt: null(k.RevokedAt), RevokeCode: null(k.RevokeCode), RevokeReason: null(k.RevokeNote),
		Rev: k.Rev,
	}
}

// KeyspaceView is a keyspace as the endpoint shows it. Its definition is what PUT
// takes.
type KeyspaceView struct {
	ID             events.KeyspaceID    `json:"id"`
	Definition     *keyspace.Definition `json:"definition"`
	SecretPatterns []SecretPattern      `json:"secret_patterns"` // one for each key type
	Rev            uint64               `json:"rev"`
	CreatedAt      events.Time          `json:"created_at"`
	UpdatedAt      events.Time          `json:"updated_at"`
}

// SecretPattern finds secrets of one key type in text, for secret scanners.
type SecretPattern struct {
	Type     string            `json:"type"`
	Pattern  *string           `json:"pattern"`           // null: without a prefix nothing tells a secret from other text
	Checksum keyspace.Checksum `json:"checksum,omitzero"` // how the last characters tell a find from chance
}

func viewKeyspace(ks *events.Keyspace) KeyspaceView {
	patterns := make([]SecretPattern, len(ks.Definition.KeyTypes))
	for i := range patterns {
		t := &ks.Definition.KeyTypes[i]
		patterns[i] = SecretPattern{t.Name, null(t.Pattern()), t.Checksum}
	}
	return KeyspaceView{ks.ID, &ks.Definition, patterns, ks.Rev, ks.CreatedAt, ks.UpdatedAt}
}

// reviewAnswer is what a dry run answers: the keyspace as it would be, and the
// review.
type reviewAnswer struct {
	Data KeyspaceView `json:"data"`
	Review
}

// TenantView is what holds for a tenant as a whole, as the endpoint shows it.
type TenantView struct {
	ID        events.TenantID   `json:"id"`
	Keyspace  events.KeyspaceID `json:"keyspace"`
	Limit     *keyspace.Limit   `json:"limit"`     // its own; null = the keyspace's tenant_limit
	Effective *EffectiveLimit   `json:"effective"` // what holds for all its keys together; null = no limit
	Rev       uint64            `json:"rev"`       // 0 when nothing was ever set for it
	UpdatedAt *events.Time      `json:"updated_at"`
}

// EffectiveLimit is a limit with its numbers.
type EffectiveLimit struct {
	Plan      string `json:"plan,omitzero"`
	PerMinute int64  `json:"per_minute"`
	Burst     int64  `json:"burst"`
}

// RoleView is a role as the endpoint shows it.
type RoleView struct {
	ID          events.RoleID     `json:"id"`
	Keyspace    events.KeyspaceID `json:"keyspace"`
	Tenant      events.TenantID   `json:"tenant"`
	Level       string            `json:"level"`
	Description string            `json:"description"`
	Scopes      []string          `json:"scopes"`
	Deleted     bool              `json:"deleted"`
	Rev         uint64            `json:"rev"`
	UpdatedAt   events.Time       `json:"updated_at"`
}

func viewRole(r *events.Role) RoleView {
	return RoleView{r.ID, r.Keyspace, r.Tenant, r.Level, r.Description, r.Scopes, r.Deleted, r.Rev, r.UpdatedAt}
}

// null returns nil for the zero value, which the answer shows as null.
func null[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}
