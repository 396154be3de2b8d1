package commands

import (
	"context"

	"github.com/keytrail/keytrail/events"
)

// DefineKeyspace makes a keyspace or replaces its definition. Errors as for
// Create.
func (h *Handler) DefineKeyspace(ctx context.Context, call *Call, id events.KeyspaceID, c *DefineKeyspace) (ks events.Keyspace, done Done, err error) {
	defer h.observe(ctx, call, "define_keyspace", h.cfg.Now(), &done, &err)
	if err := h.mayDefine(ctx, call, id, c); err != nil {
		return ks, done, err
	}
	agg := events.KeyspaceAggregate(id)
	out, err := run(ctx, h, call, task[events.Keyspace]{
		aggregate: agg,
		fold:      foldKeyspace,
		decide: func(b *batch, ks *events.Keyspace) (events.Keyspace, error) {
			data, err := c.Decide(ks, id)
			if err != nil || data == nil {
				return *ks, err
			}
			if data.Before != nil && !c.AcceptViolations {
				if err := h.review(&call.Principal, ks, id, &c.Definition, b.now).fits(); err != nil {
					return *ks, err
				}
			}
			rec, err := b.add(agg, ks.Chain, ks.UpdatedAt, data)
			if err != nil {
				return *ks, err
			}
			return ks.Next(&rec)
		},
	})
	return out.state, Done{Seq: out.seq, Replayed: out.replayed}, err
}

// mayDefine sees whether the caller reaches the keyspace as a whole, and catches
// up.
func (h *Handler) mayDefine(ctx context.Context, call *Call, id events.KeyspaceID, c *DefineKeyspace) error {
	if id.Validate() != nil {
		_, err := c.Decide(new(events.Keyspace), id)
		return err
	}
	if id != events.Builtin && !call.Principal.Reaches(id, events.NoTenant) {
		return refuse(CodeBeyondOwnPower, "", "keyspace %q as a whole is out of the reach of your own key", id)
	}
	return h.catchUp(ctx)
}

// RoleRef names a role.
type RoleRef struct {
	Keyspace events.KeyspaceID
	Tenant   events.TenantID
	Role     events.RoleID
}

// DefineRole makes a role or replaces it. Errors as for Create.
func (h *Handler) DefineRole(ctx context.Context, call *Call, ref RoleRef, c *DefineRole) (role events.Role, done Done, err error) {
	defer h.observe(ctx, call, "define_role", h.cfg.Now(), &done, &err)
	return h.role(ctx, call, ref, func(role *events.Role, r *Rules) (events.Data, error) {
		data, err := c.Decide(role, r, ref.Role)
		if err != nil || data == nil {
			return nil, err
		}
		return data, nil
	})
}

// DeleteRole ends a role. Errors as for Create.
func (h *Handler) DeleteRole(ctx context.Context, call *Call, ref RoleRef, c *DeleteRole) (role events.Role, done Done, err error) {
	defer h.observe(ctx, call, "delete_role", h.cfg.Now(), &done, &err)
	return h.role(ctx, call, ref, func(role *events.Role, _ *Rules) (events.Data, error) {
		data, err := c.Decide(role)
		if err != nil {
			return nil, err
		}
		return data, nil
	})
}

func (h *Handler) role(ctx context.Context, call *Call, ref RoleRef, decide func(*events.Role, *Rules) (events.Data, error)) (events.Role, Done, error) {
	if err := h.catchUp(ctx); err != nil {
		return events.Role{}, Done{}, err
	}
	p := &call.Principal
	r, err := h.rules(p, ref.Keyspace, ref.Tenant)
	if err != nil {
		return events.Role{}, Done{}, err
	}
	if ref.Tenant.Validate() != nil || ref.Role.Validate() != nil {
		if _, err := decide(new(events.Role), r); err != nil {
			return events.Role{}, Done{}, err
		}
	}
	if !seesRoles(p, ref.Keyspace, ref.Tenant) {
		return events.Role{}, Done{}, refuse(CodeBeyondOwnPower, "", "tenant %q of keyspace %q is out of the reach of your own key", ref.Tenant, ref.Keyspace)
	}
	agg := events.RoleAggregate(ref.Keyspace, ref.Tenant, ref.Role)
	out, err := run(ctx, h, call, task[events.Role]{
		aggregate: agg,
		fold:      foldRole,
		decide: func(b *batch, role *events.Role) (events.Role, error) {
			r, err := h.rulesOf(ref.Keyspace, ref.Tenant)
			if err != nil {
				return *role, err
			}
			if err := mayTouchRole(p, r, role); err != nil {
				return *role, err
			}
			data, err := decide(role, r)
			if err != nil || data == nil {
				return *role, err
			}
			rec, err := b.add(agg, role.Chain, role.UpdatedAt, data)
			if err != nil {
				return *role, err
			}
			after, err := role.Next(&rec)
			if err != nil {
				return *role, err
			}
			return after, mayTouchRole(p, r, &after)
		},
	})
	return out.state, Done{Seq: out.seq, Replayed: out.replayed}, err
}
