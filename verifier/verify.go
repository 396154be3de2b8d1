package verifier

import (
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
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
	Status int              // the HTTP status of the reason: the keyspace's own, or the default
	Key    *projections.Key // the key presented; nil when it is unknown in the keyspace named
	At     events.Time      // when it was decided
	Seq    events.Seq       // the position in the log at which it was decided
	Limit  Limit            // where the limit stands after it; zero when the key is unknown or has none
	Use    events.UseID     // its place in the ledger; zero outside a Node
}

// Allowed reports whether the decision was to allow.
func (d *Decision) Allowed() bool { return d.Reason.Allowed() }

// Verify decides req on the view as it stands, at the instant now. It is pure
// but for the buckets of the key and of its tenant, from which an otherwise
// allowed request takes its tokens (V1, V3). Freshness is not its business: see
// Node.Decide.
func Verify(view *projections.Keys, req *Request, now events.Time) Decision {
	d, g := decide(view, req, now, func(*keyspace.Compiled) bool { return false })
	d.Status = statusOf(g, d.Reason)
	return d
}

// decide is all of a decision but its status, and the rules that it was made
// under. The node says whether its view is too old for them.
func decide(view *projections.Keys, req *Request, now events.Time, stale func(*keyspace.Compiled) bool) (Decision, *keyspace.Compiled) {
	d := Decision{At: now, Seq: view.At()}
	key, g, reason := find(view, req)
	d.Key, d.Reason = key, reason
	switch {
	case req.Insecure && g.HTTPSOnly:
		d.refuse(g, events.ReasonHTTPSRequired)
	case stale(g):
		d.refuse(g, events.ReasonVerifierStale)
	case key != nil:
		d.Reason, d.Limit = check(g, key, req, now)
	}
	return d, g
}

// refuse answers with a reason that no check found. The limit is told all the
// same.
func (d *Decision) refuse(g *keyspace.Compiled, reason events.Reason) {
	d.Reason = reason
	if d.Key != nil {
		var m meters
		m.find(g, d.Key)
		d.Limit, _ = m.take(d.At, 0)
	}
}

// noKeyspace stands for a keyspace that is not known: the defaults, which deny.
var noKeyspace keyspace.Compiled

// find returns the key presented, or nil and why there is none; and the rules
// to decide under: those of the key's keyspace, or of the one named. The position must be
// read before: the view publishes it after the data.
func find(view *projections.Keys, req *Request) (*projections.Key, *keyspace.Compiled, events.Reason) {
	g := &noKeyspace
	var space *projections.Keyspace
	if req.Keyspace != "" {
		if space = view.Keyspace(req.Keyspace); space != nil {
			g = space.Rules()
		}
	}
	secret := req.Secret.Reveal()
	switch {
	case secret == "":
		return nil, g, events.ReasonKeyMissing
	case space != nil && space.WrongChecksum(g, secret):
		return nil, g, events.ReasonKeyMalformed
	}
	key := view.Lookup(req.Secret.Digest())
	switch {
	case key != nil && key.Space == space:
		return key, g, events.ReasonNone
	case key != nil && space == nil && (key.Space.ID == req.Keyspace || req.Keyspace == "" && key.Space.ID != events.Builtin):
		return key, key.Space.Rules(), events.ReasonNone
	case !events.WellFormed(secret):
		return nil, g, events.ReasonKeyMalformed
	case space != nil:
		if _, _, ok := g.TypeOf(secret); !ok {
			return nil, g, events.ReasonKeyMalformed
		}
	}
	return nil, g, events.ReasonKeyUnknown
}

// check makes the checks of a key in the order of its keyspace. A refusal before
// the limit takes nothing and tells where the limit stands; one after it has
// cost the tokens.
func check(g *keyspace.Compiled, key *projections.Key, req *Request, now events.Time) (events.Reason, Limit) {
	var m meters
	m.find(g, key)
	if !g.Usual {
		return checkInOrder(g, key, &m, req, now)
	}
	// The usual order, written out: the loop costs more.
	reason := state(key, now)
	switch {
	case reason != events.ReasonOK:
	case !key.AllowsAddr(req.addr()):
		reason = events.ReasonAddressNotAllowed
	case req.Scope != "" && !key.HasScope(req.Scope):
		reason = events.ReasonScopeMissing
	case !reaches(g, key, req):
		reason = events.ReasonResourceNotAllowed
	default:
		limit, ok := m.take(now, int64(req.cost()))
		if !ok {
			reason = events.ReasonRateLimited
		}
		return reason, limit
	}
	limit, _ := m.take(now, 0)
	return reason, limit
}

func checkInOrder(g *keyspace.Compiled, key *projections.Key, m *meters, req *Request, now events.Time) (events.Reason, Limit) {
	var limit Limit
	asked := false
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
			if !reaches(g, key, req) {
				reason = events.ReasonResourceNotAllowed
			}
		case keyspace.CheckLimit:
			asked = true
			var ok bool
			if limit, ok = m.take(now, int64(req.cost())); !ok {
				reason = events.ReasonRateLimited
			}
		default: // of a later release: what it would refuse cannot be told
			reason = events.ReasonVerifierStale
		}
		if reason != events.ReasonOK {
			if !asked {
				limit, _ = m.take(now, 0)
			}
			return reason, limit
		}
	}
	return events.ReasonOK, limit
}

// holds reports whether every check but that of the limit passes now.
func holds(view *projections.Keys, req *Request, now events.Time) bool {
	key, g, _ := find(view, req)
	return key != nil && !(req.Insecure && g.HTTPSOnly) && state(key, now) == events.ReasonOK &&
		key.AllowsAddr(req.addr()) && (req.Scope == "" || key.HasScope(req.Scope)) && reaches(g, key, req)
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
func reaches(g *keyspace.Compiled, key *projections.Key, req *Request) bool {
	if !req.Resource.IsZero() && !slices.Contains(g.Resources, req.Resource.Kind) {
		return false // misspelt, and who knows what was meant
	}
	if req.Scope != "" {
		if kind := g.ScopeLevel(req.Scope); kind != "" && kind != req.Resource.Kind {
			return false
		}
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
