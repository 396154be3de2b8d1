package commands

import (
	"net/netip"
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

// standing refuses a caller whose key has lost power since the door let it in:
// the door asks a view that may lag, a command decides on one that has caught up
// (C3). A principal whose key the log does not know is vouched for by the caller
// of this package.
func (h *Handler) standing(p *events.Principal, now events.Time) error {
	k, r := h.actorKey(p)
	if k == nil {
		return nil
	}
	lost := k.StatusAt(now) != events.StatusActive
	power := r.Power(k.Grant)
	for _, s := range p.Scopes {
		lost = lost || !slices.Contains(power, s)
	}
	for _, res := range k.Resources {
		switch res.Kind {
		case events.ResourceKeyspace:
			lost = lost || len(p.Keyspaces) == 0
		case events.ResourceTenant:
			lost = lost || len(p.Tenants) == 0
		}
	}
	if lost {
		return refuse(CodeBeyondOwnPower, "", "your own key was revoked, disabled or narrowed just now")
	}
	return nil
}

// actorKey returns the caller's own key and the rules it stands under, nil when
// the log knows none.
func (h *Handler) actorKey(p *events.Principal) (*events.Key, *Rules) {
	id, err := events.ParseKeyID(p.Actor.ID)
	if err != nil || p.Actor.Kind != events.ActorKey {
		return nil, nil
	}
	k, ok := h.cfg.Dir.Key(id)
	if !ok || k.Keyspace != events.Builtin {
		return nil, nil
	}
	r, err := h.rulesOf(k.Keyspace, k.Tenant)
	if err != nil {
		return nil, nil
	}
	return &k, r
}

// mayGive refuses to make of before (zero for a new key) a key of the built-in
// keyspace that outlives the caller's own, or that may be used from where the
// caller's own may not. What stays as it was is not given.
func (h *Handler) mayGive(p *events.Principal, before, after *events.Key) error {
	if after.Keyspace != events.Builtin {
		return nil
	}
	own, _ := h.actorKey(p)
	if own == nil {
		return nil
	}
	if own.ExpiresAt != 0 && (after.ExpiresAt == 0 || after.ExpiresAt > own.ExpiresAt) && !(before.Exists() && before.ExpiresAt == after.ExpiresAt) {
		return refuse(CodeBeyondOwnPower, "expires_at", "your own key expires at %s: a key of keyspace %q that it makes or changes may not outlive it", own.ExpiresAt, events.Builtin)
	}
	if len(own.Allowlist) > 0 && !within(after.Allowlist, own.Allowlist) && !(before.Exists() && slices.Equal(before.Allowlist, after.Allowlist)) {
		return refuse(CodeBeyondOwnPower, "allowlist", "your own key has an allowlist: a key of keyspace %q that it makes or changes may not be used from elsewhere", events.Builtin)
	}
	return nil
}

// within reports whether the allowlist inner admits no address that outer does
// not; an empty one admits every address.
func within(inner, outer []netip.Prefix) bool {
	for _, in := range inner {
		if !slices.ContainsFunc(outer, func(out netip.Prefix) bool { return out.Bits() <= in.Bits() && out.Contains(in.Addr()) }) {
			return false
		}
	}
	return len(inner) > 0
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
// instant now and for good, by a scope of its own.
func administers(k *events.Key, now events.Time) bool {
	return k.Keyspace == events.Builtin && k.StatusAt(now) == events.StatusActive &&
		slices.Contains(k.Grant.Scopes, events.ScopeAdmin) && len(k.Resources) == 0 && k.ExpiresAt == 0
}
