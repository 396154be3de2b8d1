package commands

import (
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// rules returns the rules of a keyspace and tenant that the principal may know of.
func (h *Handler) rules(p *events.Principal, ks events.KeyspaceID, tenant events.TenantID) (*Rules, error) {
	if !seesKeyspace(p, ks) {
		return nil, noKeyspace(ks)
	}
	return h.rulesOf(ks, tenant)
}

func (h *Handler) rulesOf(ks events.KeyspaceID, tenant events.TenantID) (*Rules, error) {
	space, ok := h.cfg.Dir.Keyspace(ks)
	if !ok {
		return nil, noKeyspace(ks)
	}
	roles := func(id events.RoleID) (events.Role, bool) { return h.cfg.Dir.Role(ks, tenant, id) }
	return &Rules{Keyspace: ks, Tenant: tenant, Definition: &space.Definition, Roles: roles}, nil
}

func noKeyspace(ks events.KeyspaceID) error {
	return refuse(CodeNotFound, "", "there is no keyspace %q", clip(string(ks)))
}

// holder returns the active or disabled key of the tenant that has the name, of
// those that the principal may know of.
func (h *Handler) holder(p *events.Principal, ks events.KeyspaceID, tenant events.TenantID, name string, now events.Time) events.KeyID {
	for _, k := range h.cfg.Dir.Named(ks, tenant, name, now) {
		if sees(p, &k) {
			return k.ID
		}
	}
	return events.KeyID{}
}

// otherAdmin reports whether a key besides id can administer all of Keytrail.
func (h *Handler) otherAdmin(id events.KeyID, now events.Time) bool {
	q := projections.ListQuery{Keyspace: events.Builtin, Status: events.StatusActive, Limit: pageMax, Now: now}
	for {
		keys, next := h.cfg.Dir.List(q)
		for i := range keys {
			if keys[i].ID != id && administers(&keys[i], now) {
				return true
			}
		}
		if next == 0 {
			return false
		}
		q.After = next
	}
}
