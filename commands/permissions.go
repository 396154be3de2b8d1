package commands

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Permissions are what a new key may do, written down with it: a role of its own
// is made for them, in the same step, and the key holds that role. From then on
// it is a role like any other. A successor by rotation holds the same one.
type Permissions struct {
	Level       string    `json:"level,omitzero"` // "tenant" (default) or a resource kind of the keyspace
	Scopes      *[]string `json:"scopes,omitzero"`
	Description string    `json:"description,omitzero"`
}

// dedicated returns the id of the role that is made with a key: the key's own in
// lower case. No two keys share it, and nobody else may take it.
func dedicated(id events.KeyID) events.RoleID { return events.RoleID(strings.ToLower(id.String())) }

// ofKey reports whether id is that of a role that is made with a key.
func ofKey(id events.RoleID) bool {
	prefix, rest, _ := strings.Cut(string(id), "_")
	key, err := events.ParseKeyID(prefix + "_" + strings.ToUpper(rest))
	return err == nil && dedicated(key) == id
}

// checkPermissions reports what is wrong with the permissions and returns the
// roles of the grant with the one that is made for them.
func (c *Create) checkPermissions(f *input.FieldErrors, r *Rules, t *keyspace.KeyType, g events.Grant) []events.RoleID {
	p := c.Permissions
	if p == nil {
		return g.Roles
	}
	switch {
	case r.NewKey.IsZero():
		f.Add("permissions", "unsupported", "not possible here: define a role first, and name it in roles")
		return g.Roles
	case r.Definition.Grants.By == keyspace.GrantsByScopes:
		f.Add("permissions", "not_by_roles", fmt.Sprintf("keys of keyspace %s hold scopes, not roles: use scopes", input.Quote(r.Keyspace)))
		return g.Roles
	}
	if len(g.Scopes) > 0 && r.Definition.Grants.By != keyspace.GrantsByRoles { // which says so itself
		f.Add("scopes", "conflict", "want either scopes or permissions: a key with permissions holds roles only")
	}
	level := cmp.Or(p.Level, keyspace.LevelTenant)
	switch {
	case !atResource(level):
	case !slices.Contains(r.Definition.Resources, level):
		f.Add("permissions.level", "unknown_kind", fmt.Sprintf("level %s: want %s or a resource kind of keyspace %s", input.Echo(level), keyspace.LevelTenant, input.Quote(r.Keyspace)))
	case !slices.ContainsFunc(c.Resources, func(x events.Resource) bool { return x.Kind == level }):
		f.Add("permissions.level", "role_level", fmt.Sprintf("permissions of level %s: the key must be restricted to a %s", input.Quote(level), level))
	}
	if p.Scopes == nil || len(*p.Scopes) == 0 {
		f.Add("permissions.scopes", "required", "want at least one scope")
	} else {
		var of input.FieldErrors
		r.checkGrant(&of, t, events.Grant{Scopes: *p.Scopes}, nil)
		r.checkLevel(&of, "scopes", level, *p.Scopes)
		f.Merge("permissions", of)
	}
	if err := input.CheckText(p.Description, 500); err != nil {
		f.Add("permissions.description", "invalid", err.Error())
	}
	if len(g.Roles) == keyspace.MaxScopes {
		f.Add("roles", "invalid", fmt.Sprintf("want at most %d, with the one that is made for the permissions", keyspace.MaxScopes))
	}
	return append(slices.Clone(g.Roles), dedicated(r.NewKey))
}

// Role returns the role that is made with the key r.NewKey, nil when none is
// asked for. It is for requests that Decide has accepted.
func (c *Create) Role() *events.RoleDefined {
	if c.Permissions == nil {
		return nil
	}
	return &events.RoleDefined{
		Level:       cmp.Or(c.Permissions.Level, keyspace.LevelTenant),
		Description: c.Permissions.Description,
		Scopes:      sorted(*c.Permissions.Scopes, cmp.Compare),
	}
}
