package commands

import (
	"iter"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/projections"
)

// guard refuses a batch that gives or touches what is beyond the caller's own
// power, that leaves nobody to administer Keytrail (C5), or whose text holds a
// secret. It is asked once for all events of a command, whichever command it is,
// before they are appended.
func (h *Handler) guard(own *power, b *batch) error {
	inBuiltin := false
	for i := range b.writes {
		a := b.writes[i].Event.Aggregate
		if err := h.reaches(&own.Principal, a); err != nil {
			return err
		}
		inBuiltin = inBuiltin || a.Keyspace == events.Builtin
	}
	if err := guardText(h.cfg.Dir, b.writes, b.made); err != nil {
		return err
	}
	if !inBuiltin { // keys of products have no power over Keytrail
		return nil
	}
	before, after := &space{dir: h.cfg.Dir, id: events.Builtin}, &space{dir: h.cfg.Dir, id: events.Builtin, batch: b}
	for i := range b.keys {
		if err := mayChange(own, b, before, after, &b.keys[i]); err != nil {
			return err
		}
	}
	for i := range b.roles {
		if err := mayDefine(own, b.now, before, after, &b.roles[i]); err != nil {
			return err
		}
	}
	for i := range b.tenants {
		if err := mayLimit(own, b.now, before, after, &b.tenants[i]); err != nil {
			return err
		}
	}
	if after.administered(b.now) < before.administered(b.now) {
		return refuse(CodeLastAdmin, "", "no other active key of keyspace %s would have scope %s without a restriction, an expiry, an allowlist, or a limit of its own or of its tenant: make one first", input.Quote(events.Builtin), input.Quote(events.ScopeAdmin))
	}
	return nil
}

// mayChange judges what becomes of one key. Whoever changes a key holds what it
// may do before and after; only a caller's own key may always be disabled or
// revoked.
func mayChange(own *power, b *batch, before, after *space, k *change[events.Key]) error {
	if k.after.ID == own.key && b.onlyStops() {
		return nil
	}
	next, err := after.power(&k.after)
	if err != nil {
		return err
	}
	if !k.before.Exists() {
		if k.after.RotatedFrom.IsZero() {
			if err := mayMultiply(own, next); err != nil {
				return err
			}
		}
		return refused(next.beyond(own))
	}
	was, err := before.power(&k.before)
	if err != nil {
		return err
	}
	if !own.Contains(&was.Principal) || !own.Contains(&next.Principal) {
		return beyondOwn()
	}
	if wakes := k.before.Status == events.StatusDisabled && k.after.Status == events.StatusActive; !wakes && next.beyond(was) == nil {
		return nil // what stays as it was, or narrows, is not given
	}
	return refused(next.beyond(own))
}

// mayMultiply judges a key that is new and no successor. It has a limit of its own,
// so any number of them would do together what the caller's limit does not admit.
func mayMultiply(own, made *power) error {
	switch {
	case own.rate != unlimited:
		return refuse(CodeBeyondOwnPower, "limit", "your own key has a limit: it may rotate keys of keyspace %s and create none, because each has a limit of its own", input.Quote(events.Builtin))
	case own.tenantRate != unlimited && made.tenant != own.tenant:
		return refuse(CodeBeyondOwnPower, "tenant", "the tenant of your own key has a limit: a key of keyspace %s that it creates belongs to this tenant, and shares it", input.Quote(events.Builtin))
	}
	return nil
}

// mayDefine judges a role: whoever writes it holds what it gives, before and
// after, and each key that gains by it stays within the caller's own power.
func mayDefine(own *power, now events.Time, before, after *space, role *change[events.Role]) error {
	ks, err := before.keyspace()
	if err != nil {
		return err
	}
	for _, r := range []*events.Role{&role.before, &role.after} {
		if !own.Covers(ks.Definition.Expand(r.Scopes), nil) {
			return refuse(CodeBeyondOwnPower, "", "the role gives, or would give, scopes that your own key does not hold")
		}
	}
	return mayGain(own, now, before, after, (*space).power, func(k *events.Key) bool {
		return k.Tenant == role.after.Tenant && slices.Contains(k.Grant.Roles, role.after.ID)
	})
}

// mayLimit judges the limit of a tenant of the built-in keyspace. It holds for
// administrators' keys as well, so it is an administrator's to set.
func mayLimit(own *power, now events.Time, before, after *space, t *change[events.Tenant]) error {
	if !own.Has(events.ScopeAdmin) {
		return refuse(CodeBeyondOwnPower, "", "the limit of a tenant of keyspace %s takes scope %s", input.Quote(events.Builtin), input.Quote(events.ScopeAdmin))
	}
	inEffect := func(v *space, k *events.Key) (*power, error) {
		p, err := v.power(k)
		if err == nil {
			p.rate = p.rate.both(p.tenantRate)
		}
		return p, err
	}
	return mayGain(own, now, before, after, inEffect, func(k *events.Key) bool { return k.Tenant == t.after.ID })
}

// mayGain judges what becomes of keys that are not written themselves: each that
// gains stays within the caller's own power.
func mayGain(own *power, now events.Time, before, after *space, power func(*space, *events.Key) (*power, error), concerns func(*events.Key) bool) error {
	for k := range before.keys() {
		if !concerns(k) || !lives(k, now) {
			continue
		}
		was, err := power(before, k)
		if err != nil {
			return err
		}
		next, err := power(after, k)
		if err != nil {
			return err
		}
		if next.beyond(was) == nil {
			continue
		}
		if r := next.beyond(own); r != nil {
			r.Detail = "key " + k.ID.String() + " would gain by it: " + r.Detail
			return r
		}
	}
	return nil
}

// refused keeps a nil refusal from becoming an error that is not nil.
func refused(r *Refusal) error {
	if r == nil {
		return nil
	}
	return r
}

func lives(k *events.Key, now events.Time) bool {
	s := k.StatusAt(now)
	return s == events.StatusActive || s == events.StatusDisabled
}

// space is a keyspace as a view has it, or as it would be after a batch.
type space struct {
	dir   *projections.Directory
	id    events.KeyspaceID
	batch *batch // nil: as it is
}

func (v *space) keyspace() (*events.Keyspace, error) {
	ks, ok := v.dir.Keyspace(v.id)
	if !ok {
		return nil, noKeyspace(v.id, false)
	}
	return &ks, nil
}

// power returns what a key of the keyspace may do.
func (v *space) power(k *events.Key) (*power, error) {
	ks, err := v.keyspace()
	if err != nil {
		return nil, err
	}
	d := &ks.Definition
	scopes := slices.Clone(k.Grant.Scopes)
	for _, id := range k.Grant.Roles {
		if role := v.role(k.Tenant, id); role.Exists() {
			scopes = append(scopes, role.Scopes...)
		}
	}
	p := &power{
		key: k.ID, until: k.ExpiresAt, from: k.Allowlist, rate: rateOf(ks, d.KeyLimit(k.Limit)),
		tenant: k.Tenant, tenantRate: rateOf(ks, d.WholeLimit(v.tenantLimit(k.Tenant))),
	}
	p.Scopes = d.Expand(scopes)
	if v.id == events.Builtin {
		p.Restrict(k.Resources)
	} else {
		p.resources = k.Resources
	}
	return p, nil
}

func (v *space) role(tenant events.TenantID, id events.RoleID) events.Role {
	if v.batch != nil {
		for i := range v.batch.roles {
			if r := &v.batch.roles[i].after; r.Keyspace == v.id && r.Tenant == tenant && r.ID == id {
				return *r
			}
		}
	}
	role, _ := v.dir.Role(v.id, tenant, id)
	return role
}

func (v *space) tenantLimit(tenant events.TenantID) *keyspace.Limit {
	if v.batch != nil {
		for i := range v.batch.tenants {
			if t := &v.batch.tenants[i].after; t.Keyspace == v.id && t.ID == tenant {
				return t.Limit
			}
		}
	}
	return v.dir.Tenant(v.id, tenant).Limit
}

// keys yields every key of the keyspace, those of the batch last.
func (v *space) keys() iter.Seq[*events.Key] {
	return func(yield func(*events.Key) bool) {
		var changed []change[events.Key]
		if v.batch != nil {
			changed = v.batch.keys
		}
		for k := range v.dir.All(v.id) {
			if !slices.ContainsFunc(changed, func(c change[events.Key]) bool { return c.after.ID == k.ID }) && !yield(k) {
				return
			}
		}
		for i := range changed {
			if k := &changed[i].after; k.Keyspace == v.id && !yield(k) {
				return
			}
		}
	}
}

// administered says how free the freest administrator is: a key that may do
// everything everywhere. 3: nothing can shut it out but an administrator. 2: it has
// an allowlist or a limit, which may. 1: it ends by itself. 0: there is none.
func (v *space) administered(now events.Time) (best int) {
	for k := range v.keys() {
		if k.StatusAt(now) != events.StatusActive || len(k.Resources) > 0 {
			continue
		}
		p, err := v.power(k)
		free := 3
		switch {
		case err != nil || !p.Has(events.ScopeAdmin):
			continue
		case p.until != 0:
			free = 1
		case len(p.from) > 0 || p.rate != unlimited || p.tenantRate != unlimited:
			free = 2
		}
		if best = max(best, free); best == 3 {
			break
		}
	}
	return best
}
