package commands

import (
	"context"
	"net/http"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// SetTenantLimit replaces the limit of a tenant: of all its keys together.
type SetTenantLimit struct {
	Limit  Opt[events.Limit] `json:"limit,omitzero"` // null = the keyspace's tenant_limit
	Reason string            `json:"reason,omitzero"`
}

// Decide returns the update, nil when the limit stands as asked, or why not.
func (c *SetTenantLimit) Decide(t *events.Tenant, r *Rules) (*events.TenantLimitUpdated, error) {
	var f events.FieldErrors
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
	if err := h.catchUp(ctx); err != nil {
		return t, done, err
	}
	p := &call.Principal
	r, err := h.rules(p, ks, tenant)
	if err != nil {
		return t, done, err
	}
	if tenant.Validate() != nil {
		_, err := c.Decide(&t, r)
		return t, done, err
	}
	if !seesRoles(p, ks, tenant) {
		return t, done, refuse(CodeBeyondOwnPower, "", "tenant %q of keyspace %q is out of the reach of your own key", tenant, ks)
	}
	if ks == events.Builtin && !p.Has(events.ScopeAdmin) {
		// It holds for administrators' keys as well: a low one shuts them out.
		return t, done, refuse(CodeBeyondOwnPower, "", "the limit of a tenant of keyspace %q takes scope %q", ks, events.ScopeAdmin)
	}
	agg := events.TenantAggregate(ks, tenant)
	out, err := run(ctx, h, call, task[events.Tenant]{
		aggregate: agg,
		fold: func(history []events.Recorded) (events.Tenant, error) {
			return foldTenant(events.Tenant{Keyspace: ks, ID: tenant}, history)
		},
		decide: func(b *batch, t *events.Tenant) (events.Tenant, error) {
			r, err := h.rulesOf(ks, tenant)
			if err != nil {
				return *t, err
			}
			data, err := c.Decide(t, r)
			if err != nil || data == nil {
				return *t, err
			}
			rec, err := b.add(agg, t.Chain, t.UpdatedAt, data)
			if err != nil {
				return *t, err
			}
			return t.Next(&rec)
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

// effective returns the numbers that hold for the tenant now, nil for none. A
// plan that the keyspace has no more goes on with its last numbers, as verifiers
// have it.
func (h *Handler) effective(ctx context.Context, ks *events.Keyspace, own *events.Limit) (*EffectiveLimit, error) {
	l := own
	if l == nil {
		l = ks.Definition.TenantLimit
	}
	if l == nil {
		return nil, nil
	}
	if perMinute, burst, ok := ks.Definition.Resolve(l); ok {
		return &EffectiveLimit{l.Plan, perMinute, burst}, nil
	}
	history, err := h.cfg.Log.Load(ctx, events.KeyspaceAggregate(ks.ID))
	if err != nil {
		return nil, err
	}
	out := &EffectiveLimit{Plan: l.Plan}
	for i := range history {
		if d, ok := history[i].Data.(*events.KeyspaceDefined); ok {
			if perMinute, burst, ok := d.Definition.Resolve(l); ok {
				out.PerMinute, out.Burst = perMinute, burst
			}
		}
	}
	return out, nil
}

// viewTenant returns the tenant as the door shows it.
func (h *Handler) viewTenant(ctx context.Context, t *events.Tenant) (*TenantView, error) {
	ks, ok := h.cfg.Dir.Keyspace(t.Keyspace)
	if !ok {
		return nil, noKeyspace(t.Keyspace)
	}
	effective, err := h.effective(ctx, &ks, t.Limit)
	if err != nil {
		return nil, err
	}
	return &TenantView{t.ID, t.Keyspace, t.Limit, effective, t.Rev, null(t.UpdatedAt)}, nil
}

func (h *Handler) getTenant(r *request) (*answer, error) {
	ref := r.roleRef()
	if _, err := h.rules(&r.who, ref.Keyspace, ref.Tenant); err != nil {
		return nil, err
	}
	if ref.Tenant.Validate() != nil || !seesRoles(&r.who, ref.Keyspace, ref.Tenant) {
		return nil, refuse(CodeNotFound, "", "there is no such tenant")
	}
	t := h.cfg.Dir.Tenant(ref.Keyspace, ref.Tenant)
	view, err := h.viewTenant(r.Context(), &t)
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusOK, body: api.One{Data: view}}, nil
}

func (h *Handler) putTenantLimit(r *request) (*answer, error) {
	var c SetTenantLimit
	if err := api.Decode(r.Request, &c); err != nil {
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
	view, err := h.viewTenant(r.Context(), &t)
	if err != nil {
		return nil, err
	}
	return h.written(http.StatusOK, view, &done), nil
}
