package verifier

import (
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/seam"
	"github.com/keytrail/keytrail/projections"
)

// Request is one question: may the bearer of this secret do that.
type Request struct {
	Secret   events.Secret
	Keyspace events.KeyspaceID // "" = whichever the key belongs to, but the built-in one
	Scope    string            // "" = none needed
	Resource events.Resource   // zero = none in particular
	IP       netip.Addr        // the client's address; invalid = not known
	Doubtful bool              // IP is for the record only: where it counts, it is not known
	Insecure bool              // the client's request came over plain HTTP, as far as can be told
	Cost     uint32            // tokens of the limit; 0 counts as 1

	Endpoint  string // which of Keytrail's own endpoints an operator calls; "" for the uses of products
	RequestID string // of the HTTP request, as api.RequestID gives it: recorded with a refusal and with an operator's call

	MinPosition  events.Position // decide at this position of the log or later; zero = wherever the node is
	MaxStaleness time.Duration   // refuse to decide on an older view than this; 0 = as the keyspace says
}

func (r *Request) cost() uint32 { return max(r.Cost, 1) }

// addr returns the address that an allowlist is asked about.
func (r *Request) addr() netip.Addr {
	if r.Doubtful {
		return netip.Addr{}
	}
	return r.IP
}

// Decision is the answer, and what it was made of.
type Decision struct {
	Reason events.Reason
	Status int             // the HTTP status of the reason: the keyspace's own, or the default
	Key    projections.Key // the key presented, as it was then; it does not exist when it is unknown in the keyspace named
	At     events.Time     // when it was decided
	Seq    events.Seq      // the position in the log at which it was decided
	Limit  Limit           // where the limit stands after it; zero when the key is unknown or has none
	Use    events.UseID    // its place in the ledger; zero outside a Node
}

// Allowed reports whether the decision was to allow.
func (d *Decision) Allowed() bool { return d.Reason.Allowed() }

// Verify decides req on the view as it stands, at the instant now. It is pure
// but for the buckets of the key and of its tenant, from which an otherwise
// allowed request takes its tokens (V1, V3). The buckets are those of this view: each
// call about it is given the same. Freshness is not its business: see Node.Decide.
func Verify(view *projections.Keys, buckets *Buckets, req *Request, now events.Time) (d Decision) {
	g := decide(&d, view, buckets, req, now, tokens{}, func(*keyspace.Compiled) bool { return false })
	d.Status = statusOf(g, d.Reason)
	return d
}

// decide makes all of a decision but its status, and returns the rules that it was made
// under. The node says what tokens it holds, and whether its view is too old for them.
//
// Everything is read again if the key, a definition, a role or a tenant changed meanwhile:
// so a decision is one that the view gives at one moment (V5). The tokens are taken after
// that, once.
func decide(d *Decision, view *projections.Keys, buckets *Buckets, req *Request, now events.Time, held tokens, stale func(*keyspace.Compiled) bool) *keyspace.Compiled {
	d.At = now
	m := meters{exact: exactMeters{tokens: held}}
	var v verdict
	for {
		version := view.Version()
		seam.At()
		d.Seq = view.At()
		seam.At()
		g, reason := find(view, buckets, req, &d.Key)
		if d.Key.Exists() {
			m.find(buckets, g, &d.Key)
		}
		switch {
		case req.Insecure && g.HTTPSOnly:
			v = verdict{before: events.ReasonHTTPSRequired}
		case stale(g):
			v = verdict{before: events.ReasonVerifierStale}
		case d.Key.Exists():
			v = check(g, &d.Key, req, now)
		default:
			v = verdict{before: reason}
		}
		if view.Still(version, &d.Key) {
			d.Reason, d.Limit = v.settle(&m, req, now)
			return g
		}
		d.Key, m = projections.Key{}, meters{exact: exactMeters{tokens: held}}
	}
}

// verdict is what the checks without a memory say of a request: the first that fails of
// those before the limit, and of those after it.
type verdict struct {
	before, after events.Reason
	asked         bool // the limit is one of the checks
}

// settle asks the limit. A refusal before it takes nothing and tells where the limit
// stands; one after it has cost the tokens.
func (v *verdict) settle(m *meters, req *Request, now events.Time) (events.Reason, Limit) {
	if v.before != events.ReasonOK {
		limit, _ := m.take(now, 0)
		return v.before, limit
	}
	if !v.asked {
		return v.after, Limit{}
	}
	limit, ok := m.take(now, int64(req.cost()))
	if !ok {
		return events.ReasonRateLimited, limit
	}
	return v.after, limit
}

// noKeyspace stands for a keyspace that is not known: the defaults, which deny.
var noKeyspace keyspace.Compiled

// find reads the key presented into key, or says why there is none; and returns the rules
// to decide under: those of the key's keyspace, or of the one named. The position must be
// read before: the view publishes it after the data. If buckets are given, the key's is on
// its way from memory while its record is.
func find(view *projections.Keys, buckets *Buckets, req *Request, key *projections.Key) (*keyspace.Compiled, events.Reason) {
	g := &noKeyspace
	var space *projections.Keyspace
	secret := req.Secret.Reveal()
	if req.Keyspace != "" {
		if space = view.Keyspace(req.Keyspace); space != nil {
			rules := space.Rules()
			seam.At()
			if g = &rules.Compiled; secret != "" && space.WrongChecksum(rules, secret) {
				return g, events.ReasonKeyMalformed
			}
		}
	}
	if secret == "" {
		return g, events.ReasonKeyMissing
	}
	seam.At()
	slot, ok := view.Find(req.Secret.Digest())
	seam.At()
	if ok {
		if buckets != nil {
			buckets.keys.touch(slot)
		}
		view.Read(slot, key)
		switch {
		case key.Space == space,
			space == nil && (key.Space.ID == req.Keyspace || req.Keyspace == "" && key.Space.ID != events.Builtin):
			return &key.Rules.Compiled, events.ReasonNone
		}
		*key = projections.Key{}
	}
	if !events.WellFormed(secret) {
		return g, events.ReasonKeyMalformed
	}
	if space != nil {
		if _, _, ok := g.TypeOf(secret); !ok {
			return g, events.ReasonKeyMalformed
		}
	}
	return g, events.ReasonKeyUnknown
}

// check makes the checks of a key but the limit's, in the order of its keyspace.
func check(g *keyspace.Compiled, key *projections.Key, req *Request, now events.Time) (v verdict) {
	if !g.Usual {
		return checkInOrder(g, key, req, now)
	}
	// The usual order, written out: the loop costs more.
	v = verdict{events.ReasonOK, events.ReasonOK, true}
	if v.before = state(key, now); v.before != events.ReasonOK {
		return v
	}
	if !key.AllowsAddr(req.addr()) {
		v.before = events.ReasonAddressNotAllowed
		return v
	}
	kind := ""
	if req.Scope != "" {
		var held bool
		if held, kind = key.Scope(req.Scope); !held {
			v.before = events.ReasonScopeMissing
			return v
		}
	}
	if !reaches(g, key, req, kind) {
		v.before = events.ReasonResourceNotAllowed
	}
	return v
}

func checkInOrder(g *keyspace.Compiled, key *projections.Key, req *Request, now events.Time) verdict {
	v := verdict{before: events.ReasonOK, after: events.ReasonOK}
	for _, c := range g.Order {
		reason := events.ReasonOK
		switch c {
		case keyspace.CheckState:
			reason = state(key, now)
		case keyspace.CheckAddress:
			if !key.AllowsAddr(req.addr()) {
				reason = events.ReasonAddressNotAllowed
			}
		case keyspace.CheckScope:
			if req.Scope != "" && !key.HasScope(req.Scope) {
				reason = events.ReasonScopeMissing
			}
		case keyspace.CheckResource:
			if !reaches(g, key, req, g.ScopeLevel(req.Scope)) {
				reason = events.ReasonResourceNotAllowed
			}
		case keyspace.CheckLimit:
			v.asked = true
		default: // of a later release: what it would refuse cannot be told
			reason = events.ReasonVerifierStale
		}
		switch {
		case reason == events.ReasonOK:
		case v.asked:
			v.after = reason
			return v
		default:
			v.before = reason
			return v
		}
	}
	return v
}

// holds reports whether every check but that of the limit passes now.
func holds(view *projections.Keys, req *Request, now events.Time) bool {
	for {
		version := view.Version()
		seam.At()
		var key projections.Key
		g, _ := find(view, nil, req, &key)
		ok := key.Exists() && !(req.Insecure && g.HTTPSOnly) && state(&key, now) == events.ReasonOK &&
			key.AllowsAddr(req.addr()) && (req.Scope == "" || key.HasScope(req.Scope)) && reaches(g, &key, req, g.ScopeLevel(req.Scope))
		if view.Still(version, &key) {
			return ok
		}
	}
}

func state(key *projections.Key, now events.Time) events.Reason {
	switch key.StatusAt(now) {
	case events.StatusActive:
		return events.ReasonOK
	case events.StatusExpired:
		return events.ReasonKeyExpired
	case events.StatusDisabled:
		return events.ReasonKeyDisabled
	}
	return events.ReasonKeyRevoked
}

// reaches reports whether the key reaches the resource named, which is of a kind
// that the keyspace declares, and whether one is named of the kind that the scope
// wants.
func reaches(g *keyspace.Compiled, key *projections.Key, req *Request, kind string) bool {
	if !req.Resource.IsZero() && !slices.Contains(g.Resources, req.Resource.Kind) {
		return false // misspelt, and who knows what was meant
	}
	if kind != "" && kind != req.Resource.Kind {
		return false
	}
	return key.AllowsResource(req.Resource)
}

// statusOf returns the HTTP status of r under g.
func statusOf(g *keyspace.Compiled, r events.Reason) int {
	if s := g.Status(r.String()); s != 0 && !r.Allowed() {
		return s
	}
	switch r {
	case events.ReasonOK:
		return http.StatusOK
	case events.ReasonKeyMissing, events.ReasonKeyMalformed, events.ReasonKeyUnknown,
		events.ReasonKeyRevoked, events.ReasonKeyExpired, events.ReasonKeyDisabled:
		return http.StatusUnauthorized
	case events.ReasonAddressNotAllowed, events.ReasonScopeMissing, events.ReasonResourceNotAllowed, events.ReasonHTTPSRequired,
		events.ReasonBeyondOwnPower:
		return http.StatusForbidden
	case events.ReasonRateLimited:
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}
