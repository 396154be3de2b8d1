package commands

import (
	"slices"

	"github.com/keytrail/keytrail/events"
)

// What a principal may see and touch (C5). Keys of the built-in keyspace are the
// power over all others, so there reach is not enough: who writes one must hold
// what it holds.

// sees reports whether the principal may know of the key.
func sees(p *events.Principal, k *events.Key) bool {
	if k.Keyspace == events.Builtin {
		return p.Covers(nil, k.Resources)
	}
	return p.Reaches(k.Keyspace, k.Tenant)
}

// seesKeyspace reports whether the principal may know of the keyspace. The
// built-in one is known to all.
func seesKeyspace(p *events.Principal, ks events.KeyspaceID) bool {
	return ks == events.Builtin || len(p.Keyspaces) == 0 || slices.Contains(p.Keyspaces, ks)
}

// seesRoles reports whether the principal may know of the tenant's roles. A role
// of the built-in keyspace may be held by any key of it, so only a principal
// without restriction reaches it.
func seesRoles(p *events.Principal, ks events.KeyspaceID, tenant events.TenantID) bool {
	if ks == events.Builtin {
		return p.Covers(nil, nil)
	}
	return p.Reaches(ks, tenant)
}

// mayTouch refuses the write on a key that could do what the principal cannot.
func mayTouch(p *events.Principal, r *Rules, k *events.Key) error {
	if k.Keyspace != events.Builtin || p.Covers(r.Power(k.Grant), k.Resources) {
		return nil
	}
	return refuse(CodeBeyondOwnPower, "", "the key holds, or would hold, scopes, keyspaces or tenants that your own key does not")
}

// mayTouchRole refuses the write on a role that gives what the principal does
// not hold.
func mayTouchRole(p *events.Principal, r *Rules, role *events.Role) error {
	if r.Keyspace != events.Builtin || p.Covers(r.Definition.Expand(role.Scopes), nil) {
		return nil
	}
	return refuse(CodeBeyondOwnPower, "", "the role gives, or would give, scopes that your own key does not hold")
}

// administers reports whether the key can administer all of Keytrail at the
// instant now, by a scope of its own.
func administers(k *events.Key, now events.Time) bool {
	return k.Keyspace == events.Builtin && k.StatusAt(now) == events.StatusActive &&
		slices.Contains(k.Grant.Scopes, events.ScopeAdmin) && len(k.Resources) == 0
}
