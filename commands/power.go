package commands

import (
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// power is all that a key may do: what and where (of a key of the built-in keyspace,
// the principal's scopes and restrictions), until when, from where, and how often.
type power struct {
	events.Principal              // for a key that is no caller, its scopes and restrictions only
	key              events.KeyID // whose power it is; zero when the log knows no such key
	until            events.Time  // 0 = for ever
	from             []netip.Prefix
	rate             rate // the key's own
	tenant           events.TenantID
	tenantRate       rate              // of all keys of the tenant together
	resources        []events.Resource // of a product's key: empty = all
}

// rate is a limit in numbers.
type rate struct{ perMinute, burst int64 }

var unlimited = rate{math.MaxInt64, math.MaxInt64}

// resolver gives the numbers of a limit: a keyspace, or one version of its rules.
type resolver interface {
	Resolve(*keyspace.Limit) (perMinute, burst int64, ok bool)
}

// rateOf returns a limit of the keyspace in numbers; nil is no limit.
func rateOf(ks resolver, l *keyspace.Limit) rate {
	if perMinute, burst, ok := ks.Resolve(l); ok {
		return rate{perMinute, burst}
	}
	return unlimited
}

func (r rate) within(outer rate) bool {
	return r.perMinute <= outer.perMinute && r.burst <= outer.burst
}

// both returns the rate of who is bound by r and by s.
func (r rate) both(s rate) rate { return rate{min(r.perMinute, s.perMinute), min(r.burst, s.burst)} }

func (r rate) String() string {
	return fmt.Sprintf("%d per minute and %d at once", r.perMinute, r.burst)
}

// beyond says what p holds and own does not, nil when there is no such thing.
func (p *power) beyond(own *power) *Refusal {
	inTenant := p.tenant == own.tenant || p.rate.both(p.tenantRate).within(own.tenantRate)
	switch {
	case !own.Contains(&p.Principal), len(own.resources) > 0 && !among(p.resources, own.resources):
		return beyondOwn()
	case own.until != 0 && (p.until == 0 || p.until > own.until):
		return refuse(CodeBeyondOwnPower, "expires_at", "your own key expires at %s: a key of keyspace %s that it creates or changes may not outlive it", own.until, input.Quote(events.Builtin))
	case len(own.from) > 0 && !within(p.from, own.from):
		return refuse(CodeBeyondOwnPower, "allowlist", "your own key has an allowlist: a key of keyspace %s that it creates or changes may not be used from elsewhere", input.Quote(events.Builtin))
	case !p.rate.within(own.rate):
		return refuse(CodeBeyondOwnPower, "limit", "your own key is limited to %s: a key of keyspace %s that it creates or changes needs a limit within that", own.rate, input.Quote(events.Builtin))
	case !inTenant:
		return refuse(CodeBeyondOwnPower, "limit", "the tenant of your own key is limited to %s: a key of another tenant of keyspace %s needs a limit within that", own.tenantRate, input.Quote(events.Builtin))
	}
	return nil
}

func beyondOwn() *Refusal {
	return refuse(CodeBeyondOwnPower, "", "the key holds, or would hold, scopes, keyspaces or tenants that your own key does not")
}

// among reports whether the list inner names something, and nothing that outer does
// not.
func among(inner, outer []events.Resource) bool {
	return len(inner) > 0 && !slices.ContainsFunc(inner, func(x events.Resource) bool { return !slices.Contains(outer, x) })
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

// caller returns the effective principal of a command that takes the scope: what
// its key holds by the caught-up view, and no more than the endpoint saw. The
// endpoint asks a view that may lag, and the request may have taken its time since
// (C3). A principal that is no key is vouched for by the caller of this package.
func (h *Handler) caller(p *events.Principal, scope string, now events.Time) (*power, error) {
	own := &power{rate: unlimited, tenantRate: unlimited}
	if p.Actor.Kind == events.ActorKey {
		id, err := events.ParseKeyID(p.Actor.ID)
		k, ok := h.cfg.Dir.Key(id)
		if err != nil || !ok || k.Keyspace != events.Builtin {
			return nil, refuse(CodeBeyondOwnPower, "", "your own key is not a key of keyspace %s", input.Quote(events.Builtin))
		}
		if s := k.StatusAt(now); s != events.StatusActive {
			return nil, refuse(CodeBeyondOwnPower, "", "your own key is now %s", s)
		}
		if len(k.Allowlist) > 0 && !slices.ContainsFunc(k.Allowlist, func(n netip.Prefix) bool { return n.Contains(p.IP.Unmap().WithZone("")) }) {
			return nil, refuse(CodeBeyondOwnPower, "", "your own key may no longer be used from your address")
		}
		if own, err = (&space{dir: h.cfg.Dir, id: events.Builtin}).power(&k); err != nil {
			return nil, err
		}
	}
	held := own.Principal
	own.Principal = *p
	if own.key != (events.KeyID{}) && !own.Narrow(&held) {
		return nil, refuse(CodeBeyondOwnPower, "", "your own key is now restricted to other keyspaces or tenants")
	}
	if !own.Has(scope) {
		return nil, refuse(CodeBeyondOwnPower, "", "your own key does not hold scope %s any more", input.Echo(scope))
	}
	return own, nil
}

// sees reports whether the principal may know of the key. To see a key of the
// built-in keyspace it must reach all that the key reaches.
func sees(p *events.Principal, k *events.Key) bool {
	if k.Keyspace == events.Builtin {
		return p.Covers(nil, k.Resources)
	}
	return p.Reaches(k.Keyspace, k.Tenant)
}

// seesKeyspace reports whether the principal may know of the keyspace. The
// built-in one is known to all.
func seesKeyspace(p *events.Principal, ks events.KeyspaceID) bool {
	return ks == events.Builtin || p.Enters(ks)
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

// reaches refuses a command on an aggregate that is out of the principal's reach.
// A key of the built-in keyspace is within reach as far as its power is; guard
// asks.
func (h *Handler) reaches(p *events.Principal, a events.Aggregate) error {
	ok := true
	switch {
	case a.Kind == events.KindKeyspace:
		ok = a.Keyspace == events.Builtin || p.Reaches(a.Keyspace, events.NoTenant) // nobody defines the built-in one: Decide says so
	case !seesKeyspace(p, a.Keyspace):
		return h.known(p, a.Keyspace)
	case a.Kind == events.KindRole || a.Kind == events.KindTenant:
		ok = seesRoles(p, a.Keyspace, a.Tenant)
	case a.Keyspace != events.Builtin:
		ok = p.Reaches(a.Keyspace, a.Tenant)
	}
	switch {
	case ok:
		return nil
	case a.Kind == events.KindKeyspace:
		return refuse(CodeBeyondOwnPower, "", "keyspace %s as a whole is out of the reach of your own key", input.Echo(a.Keyspace))
	}
	return refuse(CodeBeyondOwnPower, "tenant", "tenant %s of keyspace %s is out of the reach of your own key", input.Echo(a.Tenant), input.Echo(a.Keyspace))
}
