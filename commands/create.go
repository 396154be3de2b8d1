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

// Create asks for a new key.
type Create struct {
	Tenant      events.TenantID   `json:"tenant"`
	Name        string            `json:"name"`
	Type        string            `json:"type,omitzero"`        // default: the first type (of the environment)
	Environment string            `json:"environment,omitzero"` // default: the type's
	Scopes      *[]string         `json:"scopes,omitzero"`      // absent with no roles: the type's defaults; [] = none
	Roles       []events.RoleID   `json:"roles,omitempty"`
	Permissions *Permissions      `json:"permissions,omitzero"` // a role of its own, made with the key
	Resources   []events.Resource `json:"resources,omitempty"`  // none = the whole tenant
	Allowlist   []string          `json:"allowlist,omitempty"`  // addresses and networks; none = any address
	ExpiryWish
	Limit    *keyspace.Limit   `json:"limit,omitzero"` // absent: the keyspace's default
	Metadata map[string]string `json:"metadata,omitempty"`
	Reason   string            `json:"reason,omitzero"`
}

// KeyType returns the type and the environment of the key that the request asks
// for. Its faults are among those of Decide.
func (c *Create) KeyType(d *keyspace.Definition) (t *keyspace.KeyType, environment string, err error) {
	var f input.FieldErrors
	if t, environment = c.keyType(&f, d); t != nil {
		return t, environment, nil
	}
	return nil, "", f
}

func (c *Create) keyType(f *input.FieldErrors, d *keyspace.Definition) (*keyspace.KeyType, string) {
	in := func(t *keyspace.KeyType) (string, bool) {
		if c.Environment == "" {
			return t.Environment(), true
		}
		return c.Environment, slices.Contains(t.Environments, c.Environment)
	}
	if c.Type == "" {
		for i := range d.KeyTypes {
			if env, ok := in(&d.KeyTypes[i]); ok {
				return &d.KeyTypes[i], env
			}
		}
		f.Add("environment", "unknown_environment", fmt.Sprintf("no key type has environment %s", input.Echo(c.Environment)))
		return nil, ""
	}
	t, ok := d.Type(c.Type)
	if !ok {
		f.Add("type", "unknown_type", fmt.Sprintf("key type %s is not defined in the keyspace", input.Echo(c.Type)))
		return nil, ""
	}
	env, ok := in(t)
	if !ok {
		f.Add("environment", "unknown_environment", fmt.Sprintf("key type %s has no environment %s: want one of %s", input.Quote(t.Name), input.Echo(c.Environment), cmp.Or(strings.Join(t.Environments, ", "), "none")))
		return nil, ""
	}
	return t, env
}

// Decide returns the creation, or every bad field (input.FieldErrors), or a
// *Refusal. The secret was drawn for the type that KeyType returns; only its
// digest and hint come in.
func (c *Create) Decide(r *Rules, now events.Time, digest events.Digest, hint string) (*events.KeyCreated, error) {
	var f input.FieldErrors
	if err := c.Tenant.Validate(); err != nil {
		f.Add("tenant", "invalid", err.Error())
	}
	checkName(&f, c.Name)
	t, environment := c.keyType(&f, r.Definition)
	g := events.Grant{Roles: c.Roles}
	if c.Scopes != nil {
		g.Scopes = *c.Scopes
	} else if len(c.Roles) == 0 && c.Permissions == nil && t != nil && r.Definition.Grants.By != keyspace.GrantsByRoles {
		g.Scopes = t.Defaults
	}
	r.checkGrant(&f, t, g, c.Resources)
	g.Roles = c.checkPermissions(&f, r, t, g)
	r.checkHeld(&f, g)
	r.checkResources(&f, c.Resources)
	allowlist := parseAllowlist(&f, c.Allowlist)
	policy := r.Definition.Expiry
	if r.AnyExpiry {
		policy.Choices = nil
	}
	expires := events.Time(0)
	if r.Ended {
		expires = c.ended(&f)
	} else {
		expires = c.resolve(&f, policy, now, now)
	}
	r.checkLimit(&f, c.Limit)
	checkMetadata(&f, c.Metadata)
	checkReason(&f, c.Reason)
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	if err := r.nameFree(events.KeyID{}, c.Name); err != nil {
		return nil, err
	}
	return &events.KeyCreated{
		Digest: digest, Hint: hint,
		Name: c.Name, KeyType: t.Name, Environment: environment,
		Scopes:    sorted(g.Scopes, cmp.Compare),
		Roles:     sorted(g.Roles, cmp.Compare),
		Resources: sorted(c.Resources, events.CompareResources),
		Allowlist: allowlist,
		Limit:     c.Limit,
		ExpiresAt: expires,
		Metadata:  c.Metadata,
	}, nil
}

func checkReason(f *input.FieldErrors, reason string) {
	if err := input.CheckText(reason, 500); err != nil {
		f.Add("reason", "invalid", err.Error())
	}
}
