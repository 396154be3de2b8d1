package commands

import (
	"cmp"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// AssignScopes replaces a key's scopes, its roles, or both. What is absent stays.
type AssignScopes struct {
	Scopes *[]string        `json:"scopes,omitzero"`
	Roles  *[]events.RoleID `json:"roles,omitzero"`
	Reason string           `json:"reason,omitzero"`
}

// Decide returns the assignment, nothing when the grant stands as asked, or why
// not. Where grants are fixed there is no assignment, not even of what stands.
func (c *AssignScopes) Decide(k *events.Key, r *Rules, now events.Time) ([]events.Data, error) {
	if r.Definition.Grants.Fixed {
		return nil, refuse(CodeScopesFixed, "", "what a key of keyspace %s holds never changes: create another key", input.Quote(r.Keyspace))
	}
	var f input.FieldErrors
	checkReason(&f, c.Reason)
	after := k.Grant
	if c.Scopes == nil && c.Roles == nil {
		f.Add("scopes", "required", "want scopes, roles or both; [] takes all away")
	}
	// Only what is asked for is checked: a scope that has left the catalogue must
	// not stand in the way of changing the roles.
	var asked events.Grant
	if c.Scopes != nil {
		asked.Scopes, after.Scopes = *c.Scopes, sorted(*c.Scopes, cmp.Compare)
	}
	if c.Roles != nil {
		asked.Roles, after.Roles = *c.Roles, sorted(*c.Roles, cmp.Compare)
	}
	t, _ := r.Definition.Type(k.KeyType)
	r.checkGrant(&f, t, asked, k.Resources)
	if c.Scopes != nil || c.Roles != nil {
		r.checkHeld(&f, after)
	}
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	data := &events.KeyScopesAssigned{Before: k.Grant, After: after}
	if err := admit(k, data, now); err != nil ||
		slices.Equal(k.Grant.Scopes, after.Scopes) && slices.Equal(k.Grant.Roles, after.Roles) {
		return nil, err
	}
	return []events.Data{data}, nil
}
