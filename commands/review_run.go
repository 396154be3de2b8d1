package commands

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// review holds the live keys of the keyspace against the definition. Who may not
// read keys is told how many do not fit, and not which.
func (h *Handler) review(p *events.Principal, ks *events.Keyspace, id events.KeyspaceID, after *keyspace.Definition, now events.Time) *Review {
	of := Holders{Keys: h.cfg.Dir.All(id), Tenants: h.cfg.Dir.TenantsOf(id), Role: func(tenant events.TenantID, role events.RoleID) (events.Role, bool) {
		return h.cfg.Dir.Role(id, tenant, role)
	}}
	r := ReviewDefinition(ks, after, of, now)
	if !p.Has(events.ScopeKeysRead) {
		r.Violations = slices.DeleteFunc(r.Violations, func(v Violation) bool { return !v.KeyID.IsZero() || v.Tenant != "" })
		r.Widening = slices.DeleteFunc(r.Widening, func(w Widening) bool { return !w.KeyID.IsZero() })
	}
	return r
}

// accepted refuses a definition that live keys do not fit, or by which they gain
// power, unless the request accepts that.
func (r *Review) accepted(c *DefineKeyspace) error {
	if r.Violating+r.Tenants > 0 && !c.AcceptViolations {
		list := make([]Widening, len(r.Violations))
		for i, v := range r.Violations {
			list[i] = Widening(v)
		}
		who := fmt.Sprintf("%d of %d live keys", r.Violating, r.Keys)
		if r.Tenants > 0 {
			who += fmt.Sprintf(" and %d tenants", r.Tenants)
		}
		return refuse(CodeViolations, "", "%s do not fit this definition, or lose by it%s?accept_violations=true applies it all the same", who, firstOf(list))
	}
	if r.Widened > 0 && !c.AcceptWidening {
		return refuse(CodeWidening, "", "%d of %d live keys gain power by this definition%s?accept_widening=true applies it all the same", r.Widened, r.Keys, firstOf(r.Widening))
	}
	return nil
}

// firstOf names the first keys of a list, one thing of each.
func firstOf(list []Widening) string {
	var first []string
	for i, x := range list {
		if i > 0 && !x.KeyID.IsZero() && x.KeyID == list[i-1].KeyID {
			continue
		}
		if len(first) == 3 {
			first = append(first, "…")
			break
		}
		if x.KeyID.IsZero() {
			first = append(first, fmt.Sprintf("%s: %s", x.Field, x.Message))
		} else {
			first = append(first, fmt.Sprintf("%s (%s): %s", x.KeyID, x.Field, x.Message))
		}
	}
	if len(first) == 0 {
		return ". Nothing was written. "
	}
	return ", as " + strings.Join(first, "; ") + ". Nothing was written. ?dry_run=true lists them; "
}

// ReviewKeyspace tells what DefineKeyspace would do, and does nothing: the
// keyspace as it would be, and what that means for its keys. Errors as there.
func (h *Handler) ReviewKeyspace(ctx context.Context, call *Call, id events.KeyspaceID, c *DefineKeyspace) (ks events.Keyspace, review *Review, err error) {
	defer h.observe(ctx, call, "review_keyspace", h.cfg.Now(), new(Done), &err)
	dry := *call
	dry.Command = "" // it is no ask that could be answered again
	agg := events.KeyspaceAggregate(id)
	_, err = run(ctx, h, &dry, task[events.Keyspace]{
		scope:     events.ScopeKeyspacesWrite,
		aggregate: agg,
		fold:      foldKeyspace,
		decide: func(own *power, b *batch, now *events.Keyspace) (events.Keyspace, error) {
			ks = *now
			data, err := c.Decide(now, id)
			if err != nil {
				return *now, err
			}
			review = h.review(&own.Principal, now, id, &c.Definition, b.now)
			if data != nil {
				ks, err = h.batch(&dry).keyspace(agg, now, data) // of a batch that nobody appends
			}
			return *now, err
		},
	})
	return ks, review, err
}
