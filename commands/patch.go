package commands

import (
	"maps"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// Patch changes a key's label, its expiry, or both in one step. What is absent
// stays.
type Patch struct {
	Name     *string            `json:"name,omitzero"`
	Metadata *map[string]string `json:"metadata,omitzero"` // replaces all of it
	ExpiryWish
	Reason string `json:"reason,omitzero"`
}

// Decide returns the changes, nothing when all stands as asked, or why not.
func (c *Patch) Decide(k *events.Key, r *Rules, now events.Time) ([]events.Data, error) {
	var f input.FieldErrors
	checkReason(&f, c.Reason)
	if c.Name == nil && c.Metadata == nil && !c.Given() {
		f.Add("body", "required", "want at least one of name, metadata, expires_at and expires_in")
	}
	label := k.Label
	if c.Name != nil {
		checkName(&f, *c.Name)
		label.Name = *c.Name
	}
	if c.Metadata != nil {
		checkMetadata(&f, *c.Metadata)
		label.Metadata = *c.Metadata
	}
	expires := k.ExpiresAt
	if c.Given() {
		expires = c.resolve(&f, r.Definition.Expiry, k.CreatedAt, now)
	}
	if !k.RotatedTo.IsZero() && k.ExpiresAt != 0 && (expires == 0 || expires > k.ExpiresAt) {
		f.Add("expires_at", "rotated", "the key is rotated: its expiry can only come earlier than "+k.ExpiresAt.String()) // C6
	}
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	var out []events.Data
	renamed := &events.KeyRenamed{Before: k.Label, After: label}
	moved := &events.KeyExpiryChanged{Before: k.ExpiresAt, After: expires}
	for _, data := range []events.Data{renamed, moved} {
		if err := admit(k, data, now); err != nil {
			return nil, err
		}
	}
	if label.Name != k.Label.Name {
		if err := r.nameFree(k.ID, label.Name); err != nil {
			return nil, err
		}
	}
	if label.Name != k.Label.Name || !maps.Equal(label.Metadata, k.Label.Metadata) {
		out = append(out, renamed)
	}
	if expires != k.ExpiresAt {
		out = append(out, moved)
	}
	return out, nil
}
