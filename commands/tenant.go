package commands

import (
	"context"
	"net/http"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// SetTenantLimit replaces the limit of a tenant: of all its keys together.
type SetTenantLimit struct {
	Limit  Opt[keyspace.Limit] `json:"limit,omitzero"` // null = the keyspace's tenant_limit
	Reason string              `json:"reason,omitzero"`
}

// Decide returns the update, nil when the limit stands as asked, or why not.
func (c *SetTenantLimit) Decide(t *events.Tenant, r *Rules) (*events.TenantLimitUpdated, error) {
	var f input.FieldErrors
	if err := r.Tenant.Validate(); err != nil {
		f.Add("tenant", "invalid", err.Error())
	}
	after := limitOf(&f, r, &c.Limit)
	checkReason(&f, c.Reason)
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	if sameLimit(t.Limit, after) {
		return nil, nil
	}
	return &events.TenantLimitUpdated{Before: t.Limit, After: after}, nil
}

// SetTenantLimit carries out the command on a tenant, which need not have keys
// yet. Errors as for Create.
func (h *Handler) SetTenantLimit(ctx context.Context, call *Call, ks events.KeyspaceID, tenant events.TenantID, c *SetTenantLimit) (t events.Tenant, done Done, err error) {
	defer h.observe(ctx, call, "tenant_limit", h.cfg.Now(), &done, &err)
	agg := events.TenantAggregate(ks, tenant)
	out, err := run(ctx, h, call, task[events.Tenant]{
		scope:     events.ScopeKeysWrite,
		aggregate: agg,
		fold: func(history []events.Recorded) (events.Tenant, error) {
			return foldTenant(events.Tenant{Keyspace: ks, ID: tenant}, history)
		},
		decide: func(_ *power, b *batch, t *events.Tenant) (events.Tenant, error) {
			r, err := h.rules(ks, tenant)
			if err != nil {
				return *t, err
			}
			data, err := c.Decide(t, r)
			if err != nil || data == nil {
				return *t, err
			}
			return b.tenant(agg, t, data)
		},
	})
	return out.state, Done{Seq: out.seq, Replayed: out.replayed}, err
}

func foldTenant(t events.Tenant, history []events.Recorded) (_ events.Tenant, err error) {
	for i := range history {
		if t, err = t.Next(&history[i]); err != nil {
			return t, err
		}
	}
	return t, nil
}

// effective returns the numbers that hold for the tenant now, nil for none.
func effective(ks *events.Keyspace, own *keyspace.Limit) *EffectiveLimit {
	l := ks.Definition.WholeLimit(own)
	perMinute, burst, ok := ks.Resolve(l)
	if !ok {
		return nil
	}
	return &EffectiveLimit{l.Plan, perMinute, burst}
}

// viewTenant returns the tenant as the endpoint shows it.
func (h *Handler) viewTenant(t *events.Tenant) (*TenantView, error) {
	ks, ok := h.cfg.Dir.Keyspace(t.Keyspace)
	if !ok {
		return nil, noKeyspace(t.Keyspace, false)
	}
	return &TenantView{t.ID, t.Keyspace, t.Limit, effective(&ks, t.Limit), t.Rev, null(t.UpdatedAt)}, nil
}

func (h *Handler) getTenant(r *request) (*answer, error) {
	ref := r.roleRef()
	if err := h.known(&r.Who, ref.Keyspace); err != nil {
		return nil, err
	}
	if ref.Tenant.Validate() != nil || !seesRoles(&r.Who, ref.Keyspace, ref.Tenant) {
		return nil, notFound(ref.Tenant.Validate() == nil, "there is no such tenant")
	}
	t := h.cfg.Dir.Tenant(ref.Keyspace, ref.Tenant)
	view, err := h.viewTenant(&t)
	if err != nil {
		return nil, err
	}
	return h.read(view, t.Rev), nil
}

func (h *Handler) putTenantLimit(r *request) (*answer, error) {
	var c SetTenantLimit
	if err := r.Decode(&c); err != nil {
		return nil, err
	}
	call, err := r.call(&c, c.Reason)
	if err != nil {
		return nil, err
	}
	ref := r.roleRef()
	t, done, err := h.SetTenantLimit(r.Context(), call, ref.Keyspace, ref.Tenant, &c)
	if err != nil {
		return nil, err
	}
	view, err := h.viewTenant(&t)
	if err != nil {
		return nil, err
	}
	return h.written(http.StatusOK, view, t.Rev, &done), nil
}
