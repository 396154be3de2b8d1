package commands

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Rules is what a decision consults beside the history of what it changes: the
// keyspace's definition, the tenant's roles, and who holds the name asked for.
type Rules struct {
	Keyspace   events.KeyspaceID
	Tenant     events.TenantID
	Definition *keyspace.Definition
	AnyExpiry  bool                                    // the life was chosen elsewhere: it need not be one of the choices
	Ended      bool                                    // the life is over: its end may be in the past, and no rule of the keyspace bounds it
	Roles      func(events.RoleID) (events.Role, bool) // the tenant's roles, the deleted ones included
	NameHolder events.KeyID                            // the live key that holds the name asked for; zero = it is free
	NewKey     events.KeyID                            // the id of the key to be made; zero = it can have no role of its own

	// DigestHolder is the key that has the digest to import: nil when none has, the
	// zero id when it is one that the caller may not know of.
	DigestHolder *events.KeyID
}

// role returns the role if it exists.
func (r *Rules) role(id events.RoleID) (events.Role, bool) {
	role, ok := r.Roles(id)
	return role, ok && role.Exists()
}

// Power returns the effective scopes of a grant: its own and its roles', with
// all that they imply, sorted.
func (r *Rules) Power(g events.Grant) []string {
	scopes := slices.Clone(g.Scopes)
	for _, id := range g.Roles {
		if role, ok := r.role(id); ok {
			scopes = append(scopes, role.Scopes...)
		}
	}
	return r.Definition.Expand(scopes)
}

// checkGrant reports every scope and role that the type may not hold here.
func (r *Rules) checkGrant(f *input.FieldErrors, t *keyspace.KeyType, g events.Grant, resources []events.Resource) {
	if len(g.Scopes) > keyspace.MaxScopes {
		f.Add("scopes", "invalid", fmt.Sprintf("want at most %d", keyspace.MaxScopes))
	}
	if len(g.Roles) > keyspace.MaxScopes {
		f.Add("roles", "invalid", fmt.Sprintf("want at most %d", keyspace.MaxScopes))
	}
	if max(len(g.Scopes), len(g.Roles)) > keyspace.MaxScopes {
		return // each costs a walk through the catalogue
	}
	var ceiling []string
	if t != nil && t.Ceiling != nil {
		ceiling = r.Definition.Expand(t.Ceiling)
	}
	above := func(s string) bool { return ceiling != nil && !slices.Contains(ceiling, s) }
	for i, s := range g.Scopes {
		path := fmt.Sprintf("scopes[%d]", i)
		switch {
		case !r.Definition.HasScope(s):
			f.Add(path, "unknown_scope", fmt.Sprintf("scope %s is not in the catalogue of keyspace %s", input.Echo(s), input.Quote(r.Keyspace)))
		case above(s):
			f.Add(path, "above_ceiling", fmt.Sprintf("keys of type %s may not hold scope %s", input.Quote(t.Name), input.Quote(s)))
		}
	}
	for i, id := range g.Roles {
		path := fmt.Sprintf("roles[%d]", i)
		role, ok := r.role(id)
		if !ok {
			f.Add(path, "unknown_role", fmt.Sprintf("role %s is not defined for tenant %s", input.Echo(id), input.Echo(r.Tenant)))
			continue
		}
		if ceiling != nil && slices.ContainsFunc(r.Definition.Expand(role.Scopes), above) {
			f.Add(path, "above_ceiling", fmt.Sprintf("role %s holds scopes that keys of type %s may not hold", input.Quote(id), input.Quote(t.Name)))
		}
		if atResource(role.Level) && !slices.ContainsFunc(resources, func(x events.Resource) bool { return x.Kind == role.Level }) {
			f.Add(path, "role_level", fmt.Sprintf("role %s is of level %s: the key must be restricted to a %s", input.Quote(id), input.Quote(role.Level), role.Level))
		}
	}
}

// checkHeld reports what of a grant, all that a key would hold, the keyspace's rules
// of grants do not admit. What checkGrant says of the parts is said there.
func (r *Rules) checkHeld(f *input.FieldErrors, g events.Grant) {
	rules := &r.Definition.Grants
	switch {
	case rules.By == keyspace.GrantsByScopes && len(g.Roles) > 0:
		f.Add("roles", "not_by_roles", fmt.Sprintf("keys of keyspace %s hold scopes, not roles: use scopes", input.Quote(r.Keyspace)))
	case rules.By == keyspace.GrantsByRoles && len(g.Scopes) > 0:
		f.Add("scopes", "not_by_scopes", fmt.Sprintf("keys of keyspace %s hold roles, not scopes: use roles, or permissions for a role of the key's own", input.Quote(r.Keyspace)))
	case !rules.Required || len(g.Scopes)+len(g.Roles) > 0:
	case rules.By == keyspace.GrantsByScopes:
		f.Add("scopes", "required", fmt.Sprintf("a key of keyspace %s holds at least one scope", input.Quote(r.Keyspace)))
	case rules.By == keyspace.GrantsByRoles:
		f.Add("roles", "required", fmt.Sprintf("a key of keyspace %s holds at least one role: want roles, or permissions", input.Quote(r.Keyspace)))
	default:
		f.Add("scopes", "required", fmt.Sprintf("a key of keyspace %s holds at least one scope or role", input.Quote(r.Keyspace)))
	}
}

// checkLevel reports every scope that a role of this level may not hold: at the
// level of a resource, it and all that it implies must be of that level.
func (r *Rules) checkLevel(f *input.FieldErrors, path, level string, scopes []string) {
	if !atResource(level) || len(scopes) > keyspace.MaxScopes { // checkGrant says the latter
		return
	}
	for i, s := range scopes {
		if !r.Definition.HasScope(s) {
			continue // said already
		}
		for _, implied := range r.Definition.Expand(scopes[i : i+1]) {
			if r.Definition.ScopeLevel(implied) == level {
				continue
			}
			what := fmt.Sprintf("scope %s", input.Quote(s))
			if implied != s {
				what += fmt.Sprintf(" implies scope %s, which", input.Quote(implied))
			}
			f.Add(fmt.Sprintf("%s[%d]", path, i), "scope_level", fmt.Sprintf("%s is not of level %s: a role of this level holds only scopes of it", what, input.Echo(level)))
			break
		}
	}
}

// atResource reports whether a role of this level is held only by keys that are
// restricted to a resource of that kind.
func atResource(level string) bool { return level != "" && level != keyspace.LevelTenant }

// checkResources reports every resource that the keyspace does not know.
func (r *Rules) checkResources(f *input.FieldErrors, rs []events.Resource) {
	if len(rs) > events.MaxResources {
		f.Add("resources", "invalid", fmt.Sprintf("want at most %d", events.MaxResources))
	}
	for i, x := range rs {
		path := fmt.Sprintf("resources[%d]", i)
		if !slices.Contains(r.Definition.Resources, x.Kind) {
			f.Add(path+".kind", "unknown_kind", fmt.Sprintf("resource kind %s is not declared by keyspace %s", input.Echo(x.Kind), input.Quote(r.Keyspace)))
		}
		if err := (events.Resource{Kind: "x", ID: x.ID}).Validate(); err != nil {
			f.Add(path+".id", "invalid", err.Error())
		}
	}
}

// checkLimit reports what is wrong with a limit; nil means the keyspace's own.
func (r *Rules) checkLimit(f *input.FieldErrors, l *keyspace.Limit) {
	f.Merge("limit", r.Definition.CheckLimit(l))
}

func checkName(f *input.FieldErrors, name string) {
	switch err := input.CheckText(name, 100); {
	case name == "":
		f.Add("name", "required", "want 1 to 100 characters")
	case err != nil:
		f.Add("name", "invalid", err.Error())
	case strings.TrimSpace(name) != name:
		f.Add("name", "invalid", "want no space at its beginning or end: it could not be told from the name without")
	}
}

func checkMetadata(f *input.FieldErrors, m map[string]string) {
	if len(m) > 32 {
		f.Add("metadata", "invalid", "want at most 32 members")
		return
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k == "" || input.CheckText(k, 64) != nil {
			f.Add("metadata", "invalid", "want keys of 1 to 64 characters without control characters")
		} else if err := input.CheckText(m[k], 500); err != nil {
			f.Add("metadata."+input.EchoName(k), "invalid", err.Error())
		}
	}
}

// nameFree refuses a name that another live key of the tenant holds.
func (r *Rules) nameFree(own events.KeyID, name string) error {
	if r.NameHolder.IsZero() || r.NameHolder == own {
		return nil
	}
	return refuse(CodeDuplicateName, "name", "key %s of tenant %s already has the name %s", r.NameHolder, input.Echo(r.Tenant), input.Echo(name))
}

// admit asks the key's life whether data may come next at the instant now (E5).
// A key whose expiry has come is expired, whether or not that is recorded yet.
func admit(k *events.Key, data events.Data, now events.Time) error {
	at := *k
	at.Status = k.StatusAt(now)
	if at.May(data) == nil {
		return nil
	}
	switch data.(type) {
	case *events.KeyDisabled:
		if at.Status == events.StatusDisabled {
			return refuse(CodeAlready, "", "the key is already disabled")
		}
	case *events.KeyEnabled:
		if at.Status == events.StatusActive {
			return refuse(CodeAlready, "", "the key is already active")
		}
	case *events.KeyRevoked:
		if at.Status == events.StatusRevoked {
			return refuse(CodeAlready, "", "the key is already revoked")
		}
	case *events.KeyRotated:
		if !k.RotatedTo.IsZero() && at.Status == events.StatusActive {
			return refuse(CodeAlreadyRotated, "", "the key is already rotated: its successor is %s", k.RotatedTo)
		}
	}
	return refuse(CodeState, "", "not possible for a key that is %s", at.Status)
}

// sorted returns s in order, each once.
func sorted[T any](s []T, compare func(a, b T) int) []T {
	if len(s) == 0 {
		return nil
	}
	s = slices.SortedFunc(slices.Values(s), compare)
	return slices.CompactFunc(s, func(a, b T) bool { return compare(a, b) == 0 })
}
