package commands

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// DefineRole makes a role of a tenant or replaces its scopes.
type DefineRole struct {
	Level       string    `json:"level,omitzero"` // "tenant" or a resource kind of the keyspace; default: the one that it has, else "tenant"
	Description string    `json:"description,omitzero"`
	Scopes      *[]string `json:"scopes,omitzero"`
	Reason      string    `json:"reason,omitzero"`

	// AcceptHolders defines a deleted role again although live keys hold it still and
	// have its scopes by that. Without it such a definition is refused.
	AcceptHolders bool `json:"-"`
}

// Decide returns the definition as an event, nil when it stands as asked, or why not.
func (c *DefineRole) Decide(role *events.Role, r *Rules, id events.RoleID) (*events.RoleDefined, error) {
	var f input.FieldErrors
	if err := id.Validate(); err != nil {
		f.Add("role", "invalid", err.Error())
	}
	if err := r.Tenant.Validate(); err != nil {
		f.Add("tenant", "invalid", err.Error())
	}
	level := cmp.Or(c.Level, role.Level, keyspace.LevelTenant)
	known := !atResource(level) || slices.Contains(r.Definition.Resources, level)
	if !known {
		f.Add("level", "unknown_kind", fmt.Sprintf("level %s: want %s or a resource kind of keyspace %s", input.Echo(level), keyspace.LevelTenant, input.Quote(r.Keyspace)))
	}
	// Keys keep a deleted role and regain its scopes when it is defined again, so its
	// level must not change.
	stays := role.Rev == 0 || cmp.Or(role.Level, keyspace.LevelTenant) == level
	if !stays {
		f.Add("level", "immutable", fmt.Sprintf("the role is at level %s and stays there: keys hold it as such; define another role", input.Quote(cmp.Or(role.Level, keyspace.LevelTenant))))
	}
	if role.Rev == 0 && ofKey(id) {
		f.Add("role", "reserved", "the id of a key names the role that was made with it: want another")
	}
	if err := input.CheckText(c.Description, 500); err != nil {
		f.Add("description", "invalid", err.Error())
	}
	var scopes []string
	if c.Scopes == nil {
		f.Add("scopes", "required", "want a list of scopes; [] = none")
	} else {
		r.checkGrant(&f, nil, events.Grant{Scopes: *c.Scopes}, nil)
		if known && stays {
			r.checkLevel(&f, "scopes", level, *c.Scopes)
		}
		scopes = sorted(*c.Scopes, cmp.Compare)
	}
	checkReason(&f, c.Reason)
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	if scopes == nil {
		scopes = []string{}
	}
	if role.Exists() && role.Level == level && role.Description == c.Description && slices.Equal(role.Scopes, scopes) {
		return nil, nil
	}
	data := &events.RoleDefined{Level: level, Description: c.Description, Scopes: scopes}
	if role.Exists() {
		data.Before = role.Scopes
	}
	return data, nil
}

// DeleteRole ends a role: keys that hold it have nothing from it any more.
type DeleteRole struct {
	Reason string `json:"reason,omitzero"`
}

// Decide returns the deletion, or why not.
func (c *DeleteRole) Decide(role *events.Role) (*events.RoleDeleted, error) {
	var f input.FieldErrors
	checkReason(&f, c.Reason)
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	if !role.Exists() {
		return nil, refuse(CodeNotFound, "", "there is no such role")
	}
	return new(events.RoleDeleted), nil
}
