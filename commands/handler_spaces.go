package commands

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// DefineKeyspace makes a keyspace or replaces its definition. Errors as for
// Create.
func (h *Handler) DefineKeyspace(ctx context.Context, call *Call, id events.KeyspaceID, c *DefineKeyspace) (ks events.Keyspace, done Done, err error) {
	defer h.observe(ctx, call, "define_keyspace", h.cfg.Now(), &done, &err)
	ks, done, err = h.keyspace(ctx, call, id, c, func(own *power, b *batch, ks *events.Keyspace, data *events.KeyspaceDefined) error {
		if data.Before == nil || c.AcceptViolations && c.AcceptWidening {
			return nil
		}
		return h.review(&own.Principal, ks, id, &c.Definition, b.now).accepted(c)
	})
	return ks, done, err
}

// keyspace carries out a definition; accept judges one that changes something.
func (h *Handler) keyspace(ctx context.Context, call *Call, id events.KeyspaceID, c *DefineKeyspace, accept func(*power, *batch, *events.Keyspace, *events.KeyspaceDefined) error) (events.Keyspace, Done, error) {
	agg := events.KeyspaceAggregate(id)
	out, err := run(ctx, h, call, task[events.Keyspace]{
		scope:     events.ScopeKeyspacesWrite,
		aggregate: agg,
		fold:      foldKeyspace,
		decide: func(own *power, b *batch, ks *events.Keyspace) (events.Keyspace, error) {
			data, err := c.Decide(ks, id)
			if err != nil || data == nil {
				return *ks, err
			}
			if err := accept(own, b, ks, data); err != nil {
				return *ks, err
			}
			return b.keyspace(agg, ks, data)
		},
	})
	return out.state, Done{Seq: out.seq, Replayed: out.replayed}, err
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
	return h.role(ctx, call, ref, func(b *batch, role *events.Role, r *Rules) (events.Data, error) {
		data, err := c.Decide(role, r, ref.Role)
		if err != nil || data == nil {
			return nil, err
		}
		if role.Deleted && !c.AcceptHolders {
			if err := h.unheld(ref, b.now); err != nil {
				return nil, err
			}
		}
		return data, nil
	})
}

// maxHolders bounds how many holders of a role a refusal names.
const maxHolders = 20

// unheld refuses to define a deleted role again while live keys hold it.
func (h *Handler) unheld(ref RoleRef, now events.Time) error {
	var holders []string
	n := 0
	for k := range h.cfg.Dir.AllOf(ref.Keyspace, ref.Tenant) {
		if !lives(k, now) || !slices.Contains(k.Grant.Roles, ref.Role) {
			continue
		}
		if n++; n <= maxHolders {
			holders = append(holders, fmt.Sprintf("%s (%s)", input.Quote(k.Label.Name), k.ID))
		}
	}
	if n == 0 {
		return nil
	}
	more := ""
	if n > maxHolders {
		more = fmt.Sprintf(" and %d more", n-maxHolders)
	}
	return refuse(CodeHolders, "", "role %s was deleted, and live keys hold it still (%d): %s%s. They would have its scopes again. Nothing was written. ?accept_holders=true defines it all the same",
		input.Quote(ref.Role), n, strings.Join(holders, ", "), more)
}

// DeleteRole ends a role. Errors as for Create.
func (h *Handler) DeleteRole(ctx context.Context, call *Call, ref RoleRef, c *DeleteRole) (role events.Role, done Done, err error) {
	defer h.observe(ctx, call, "delete_role", h.cfg.Now(), &done, &err)
	return h.role(ctx, call, ref, func(_ *batch, role *events.Role, _ *Rules) (events.Data, error) {
		data, err := c.Decide(role)
		if err != nil {
			return nil, err
		}
		return data, nil
	})
}

func (h *Handler) role(ctx context.Context, call *Call, ref RoleRef, decide func(*batch, *events.Role, *Rules) (events.Data, error)) (events.Role, Done, error) {
	agg := events.RoleAggregate(ref.Keyspace, ref.Tenant, ref.Role)
	out, err := run(ctx, h, call, task[events.Role]{
		scope:     events.ScopeKeysWrite,
		aggregate: agg,
		fold:      foldRole,
		decide: func(_ *power, b *batch, role *events.Role) (events.Role, error) {
			r, err := h.rules(ref.Keyspace, ref.Tenant)
			if err != nil {
				return *role, err
			}
			data, err := decide(b, role, r)
			if err != nil || data == nil {
				return *role, err
			}
			return b.role(agg, role, data)
		},
	})
	return out.state, Done{Seq: out.seq, Replayed: out.replayed}, err
}
