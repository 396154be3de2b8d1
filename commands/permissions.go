package commands

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/keytrail/keytrail/events"
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
func (c *Create) checkPermissions(f *events.FieldErrors, r *Rules, t *events.KeyType, g events.Grant) []events.RoleID {
	p := c.Permissions
	if p == nil {
		return g.Roles
	}
	switch {
	case r.NewKey.IsZero():
		f.Add("permissions", "unsupported", "not possible here: define a role first, and name it in roles")
		return g.Roles
	case r.Definition.Grants.By == events.GrantsByScopes:
		f.Add("permissions", "not_by_roles", fmt.Sprintf("keys of keyspace %q hold scopes, not roles: use scopes", r.Keyspace))
		return g.Roles
	}
	if len(g.Scopes) > 0 && r.Definition.Grants.By != events.GrantsByRoles { // which says so itself
		f.Add("scopes", "conflict", "want either scopes or permissions: a key with permissions holds roles only")
	}
	level := cmp.Or(p.Level, events.LevelTenant)
	switch {
	case !atResource(level):
	case !slices.Contains(r.Definition.Resources, level):
		f.Add("permissions.level", "unknown_kind", fmt.Sprintf("level %q: want %s or a resource kind of keyspace %q", clip(level), events.LevelTenant, r.Keyspace))
	case !slices.ContainsFunc(c.Resources, func(x events.Resource) bool { return x.Kind == level }):
		f.Add("permissions.level", "role_level", fmt.Sprintf("permissions of level %q: the key must be restricted to a %s", level, level))
	}
	if p.Scopes == nil || len(*p.Scopes) == 0 {
		f.Add("permissions.scopes", "required", "want at least one scope")
	} else {
		var of events.FieldErrors
		r.checkGrant(&of, t, events.Grant{Scopes: *p.Scopes}, nil)
		r.checkLevel(&of, "scopes", level, *p.Scopes)
		f.Merge("permissions", of)
	}
	if err := events.CheckText(p.Description, 500); err != nil {
		f.Add("permissions.description", "invalid", err.Error())
	}
	if len(g.Roles) == events.MaxScopes {
		f.Add("roles", "invalid", fmt.Sprintf("want at most %d, with the one that is made for the permissions", events.MaxScopes))
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
		Level:       cmp.Or(c.Permissions.Level, events.LevelTenant),
		Description: c.Permissions.Description,
		Scopes:      sorted(*c.Permissions.Scopes, cmp.Compare),
	}
}

// addRole puts the role of the key r.NewKey before the key's own events: whoever
// reads that the key holds it can look it up. From here on r knows the role, so
// that what the key could do is judged with it (C5). data may be nil.
func (h *Handler) addRole(b *batch, p *events.Principal, r *Rules, data *events.RoleDefined) error {
	if data == nil {
		return nil
	}
	if !seesRoles(p, r.Keyspace, r.Tenant) {
		return refuse(CodeBeyondOwnPower, "permissions", "roles of tenant %q of keyspace %q are out of the reach of your own key", r.Tenant, r.Keyspace)
	}
	id := dedicated(r.NewKey)
	rec, err := b.add(events.RoleAggregate(r.Keyspace, r.Tenant, id), events.Chain{}, 0, data)
	if err != nil {
		return err
	}
	role, err := new(events.Role).Next(&rec)
	if err != nil {
		return err
	}
	others := r.Roles
	r.Roles = func(other events.RoleID) (events.Role, bool) {
		if other == id {
			return role, true
		}
		return others(other)
	}
	return mayTouchRole(p, r, &role)
}
