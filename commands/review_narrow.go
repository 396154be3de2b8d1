package commands

import (
	"fmt"
	"iter"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Holders are the keys, roles and tenants that may lose power by a new definition.
type Holders struct {
	Keys    iter.Seq[*events.Key]
	Role    func(events.TenantID, events.RoleID) (events.Role, bool)
	Tenants iter.Seq[*events.Tenant] // those for which something is set; nil = none
}

// TestEveryMemberOfADefinitionIsReviewed lists the power that each member of a
// definition can take, and who loses it. A member that is not in its list fails it.

// narrowedForAll says what every key of the keyspace would lose.
func narrowedForAll(before, after *keyspace.Definition) []Violation {
	var out []Violation
	add := func(field, code, format string, args ...any) {
		out = append(out, Violation{Field: field, Code: code, Message: fmt.Sprintf(format, args...)})
	}
	if was, next := presented(before), presented(after); !strings.EqualFold(was, next) {
		add("credential", "credential", "every client would have to send its key as %s instead of %s", input.Quote(next), input.Quote(was))
	}
	if after.HTTPSOnly && !before.HTTPSOnly {
		add("https_only", "https_only", "every key would be denied over plain HTTP")
	}
	allows := func(d *keyspace.Definition) bool { return d.Staleness.OnStale == "allow" }
	was, next := before.Staleness.MaxStaleness(), after.Staleness.MaxStaleness()
	switch {
	case allows(after):
	case allows(before):
		add("staleness.on_stale", "on_stale", "a verifier that is cut off would deny every key after %s", next)
	case next < was:
		add("staleness.max_millis", "max_millis", "a verifier that is cut off would deny every key after %s instead of %s", next, was)
	}
	if after.Limits.StricterThan(before.Limits) {
		add("limits", "limits", "%s", narrowedLimits(after.Limits))
	}
	if after.Ledger == keyspace.LedgerSync && before.Ledger != keyspace.LedgerSync {
		add("ledger", "ledger", "no use of a key would be answered while the log cannot be reached")
	}
	return out
}

func narrowedLimits(after keyspace.LimitsMode) string {
	if after == keyspace.LimitsExact {
		return "limits would hold for all verifier nodes together, and no use that needs a token would be allowed while their allocator is away"
	}
	return "limits would hold for all verifier nodes together, and not for each"
}

// presented is how a request carries the secret.
func presented(d *keyspace.Definition) string {
	return d.Credential.HeaderName() + ": " + strings.TrimSpace(d.Credential.SchemeName()+" SECRET")
}

// narrowedLimit says what becomes of a limit: of a key, or of a tenant, whose own
// is l, and where it has none the one of its keyspace. who says whose it is.
func (v *reviewer) narrowedLimit(f *input.FieldErrors, who string, l *keyspace.Limit, inherited func(*keyspace.Definition, *keyspace.Limit) *keyspace.Limit) {
	if gone := func(d *keyspace.Compiled) bool { return len(d.CheckLimit(l)) > 0 }; gone(v.after) && !gone(v.before) {
		f.Add("limit.plan", "unknown_plan", fmt.Sprintf("plan %s would be gone: %s would keep its last numbers", input.Quote(l.Plan), who))
	}
	was, next := rateOf(v.before, inherited(&v.before.Definition, l)), rateOf(v.after, inherited(&v.after.Definition, l))
	if !was.within(next) {
		f.Add("limit", "lower_limit", fmt.Sprintf("%s would be limited to %s instead of %s", who, next, was))
	}
}

// tenantsNarrowed are the tenants that would lose, and whether those do that have
// no limit of their own.
type tenantsNarrowed struct {
	violations []Violation
	own        map[events.TenantID]bool // of each that has a limit of its own: whether it loses
	others     *Violation               // nil: those do not
}

func (v *reviewer) tenants(of iter.Seq[*events.Tenant]) (n tenantsNarrowed) {
	n.own = map[events.TenantID]bool{}
	if of != nil {
		for t := range of {
			if t.Limit == nil {
				continue
			}
			var f input.FieldErrors
			v.narrowedLimit(&f, "tenant "+input.Quote(t.ID), t.Limit, (*keyspace.Definition).WholeLimit)
			n.own[t.ID] = len(f) > 0
			for _, x := range f {
				n.violations = append(n.violations, Violation{Tenant: t.ID, Field: x.Field, Code: x.Code, Message: x.Message})
			}
		}
	}
	var f input.FieldErrors
	v.narrowedLimit(&f, "every tenant without a limit of its own", nil, (*keyspace.Definition).WholeLimit)
	if len(f) > 0 {
		n.others = &Violation{Field: "tenant_limit", Code: f[0].Code, Message: f[0].Message}
	}
	return n
}

// concerns reports whether the tenant would lose.
func (n *tenantsNarrowed) concerns(t events.TenantID) bool {
	loses, own := n.own[t]
	return loses || !own && n.others != nil
}
