package commands

import (
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// rules returns the rules of a keyspace and tenant.
func (h *Handler) rules(ks events.KeyspaceID, tenant events.TenantID) (*Rules, error) {
	space, ok := h.cfg.Dir.Keyspace(ks)
	if !ok {
		return nil, noKeyspace(ks, false)
	}
	roles := func(id events.RoleID) (events.Role, bool) { return h.cfg.Dir.Role(ks, tenant, id) }
	return &Rules{Keyspace: ks, Tenant: tenant, Definition: &space.Definition, Roles: roles}, nil
}

// known refuses a keyspace that does not exist, or that the principal may not know
// of.
func (h *Handler) known(p *events.Principal, ks events.KeyspaceID) error {
	if _, ok := h.cfg.Dir.Keyspace(ks); !ok || !seesKeyspace(p, ks) {
		return noKeyspace(ks, ok)
	}
	return nil
}

func noKeyspace(ks events.KeyspaceID, hides bool) error {
	return notFound(hides, "there is no keyspace %s", input.Echo(ks))
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
