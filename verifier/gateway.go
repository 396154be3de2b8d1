package verifier

import (
	"context"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/schemas/api"
)

// Ask is what a gateway asks about a request that it holds, by whichever door.
// The keyspace and the demand are the gateway's own words; Header is the client's.
type Ask struct {
	Door      string // authorize, protect or envoy: for logs and metrics
	RequestID string // Keytrail's own, that the answer repeats

	Keyspace events.KeyspaceID
	Scope    string          // "" = none needed
	Resource events.Resource // zero = none in particular

	Header func(name string) []string // values of a header of the client's request, apart where it came apart
	Peer   netip.Addr                 // who handed the request over; invalid = not known
	Secure bool                       // the peer did so over TLS
}

// Demand sets what is asked for; scope and resource (kind/id) may be "". What
// does not follow its grammar is added to f.
func (a *Ask) Demand(keyspace, scope, resource string, f *events.FieldErrors) {
	a.Keyspace, a.Scope, a.Resource = events.KeyspaceID(keyspace), scope, events.Resource{}
	if err := a.Keyspace.Validate(); err != nil {
		f.Add("keyspace", "invalid", err.Error())
	}
	if scope != "" {
		if err := events.ValidScope(scope); err != nil {
			f.Add("scope", "invalid", err.Error())
		}
	}
	if resource != "" {
		a.Resource.Kind, a.Resource.ID, _ = strings.Cut(resource, "/")
		if err := a.Resource.Validate(); err != nil {
			f.Add("resource", "invalid", err.Error())
		}
	}
}

// Answer is what a gateway is told. A door writes it down in its own protocol.
type Answer struct {
	Status   int         // 200 lets the client's request through
	Identity []Field     // for the upstream: who the client is; only when allowed, and then every field
	Header   http.Header // for the client
	Body     []byte      // for the client; none when allowed
	Decision *Decision   // nil when there was nothing to decide
}

// Field is one header field. An empty value is a statement too: the upstream
// must not see what the client wrote there.
type Field struct{ Name, Value string }

// Allowed reports whether the client's request may go on.
func (a *Answer) Allowed() bool { return a.Status == http.StatusOK }

// Answer decides on the credential that the client presents under the regime of
// the keyspace. Every door of a gateway, and Protect, is a thin layer around it.
func (n *Node) Answer(ctx context.Context, ask *Ask) *Answer {
	began := time.Now()
	ans := &Answer{Header: make(http.Header, 8)}
	if ask.RequestID != "" {
		ans.Header.Set(api.RequestIDHeader, ask.RequestID)
	}
	req := &Request{Keyspace: ask.Keyspace, Scope: ask.Scope, Resource: ask.Resource}
	ks := n.cfg.View.Keyspace(ask.Keyspace)
	if ks == nil {
		if n.Ready() != nil {
			ans.refuse(ask, problem(&Decision{Reason: events.ReasonVerifierStale, Status: http.StatusServiceUnavailable}, req))
		} else {
			ans.refuse(ask, api.Errorf(http.StatusNotFound, "keyspace_unknown", "there is no keyspace of this name"))
		}
		return ans
	}
	cred := ks.Definition().Credential
	req.Secret = credential(ask.Header(cred.HeaderName()), cred)
	req.IP, req.Insecure = n.client(ask)
	d, g := n.decide(ctx, req)
	ans.Decision = &d
	ans.regime(ask, req, g)
	if o := n.metrics.gateway[ask.Door]; o != nil {
		o.Observe(time.Since(began).Seconds())
	}
	n.log(ctx, ask.RequestID, ask.Door, &d)
	return ans
}

// regime puts the decision into the words of the keyspace's regime. Whatever a
// regime may say about its answers belongs here, so that all doors say it.
func (a *Answer) regime(ask *Ask, req *Request, g *projections.Regime) {
	d := a.Decision
	if d.Key != nil {
		limitHeaders(a.Header, &g.LimitHeaders, d.Limit, perMinute(g, d), d.At)
	}
	if d.Allowed() {
		a.Status, a.Identity = http.StatusOK, identity(d)
		return
	}
	p := problem(d, req)
	f := &events.Failure{
		Reason: d.Reason.String(), Status: p.Status, Code: p.Code, Message: p.Detail, RequestID: ask.RequestID,
		Scope: req.Scope, RetryAfter: int64(p.RetryAfter),
	}
	if !req.Resource.IsZero() {
		f.Resource = req.Resource.String()
	}
	var contentType string
	a.Status, contentType, a.Body = api.RenderFailure(&g.Definition, g.Envelope, f)
	h := a.Header
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	if a.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", challenge(g.Credential, req.Keyspace))
	}
	if f.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(f.RetryAfter, 10))
	}
}

// perMinute returns the rate of the bucket that the decision's limit speaks of.
func perMinute(g *projections.Regime, d *Decision) (n int64) {
	if d.Limit.Scope == ScopeTenant {
		n, _, _ = d.Key.Whole.Limit(g)
	} else {
		n, _, _ = d.Key.Limit(g)
	}
	return n
}

// refuse makes p the answer.
func (a *Answer) refuse(ask *Ask, p *api.Problem) {
	p.RequestID = ask.RequestID
	a.Status, a.Body = p.Status, p.Render(a.Header)
}

// identity says who the client is. All fields are there in every answer that
// allows, so that a gateway which copies them overwrites what a client forged.
func identity(d *Decision) []Field {
	return []Field{
		{"X-Keytrail-Key-Id", d.Key.ID.String()},
		{"X-Keytrail-Tenant", string(d.Key.Tenant)},
		{"X-Keytrail-Type", d.Key.KeyType},
		{"X-Keytrail-Scopes", strings.Join(d.Key.Scopes(), " ")},
		{"X-Keytrail-Environment", d.Key.Environment},
		{"X-Keytrail-Use-Id", d.Use.String()},
	}
}

// challenge says how to present a key; a 401 must carry one (RFC 9110, 11.6.1).
func challenge(c events.Credential, ks events.KeyspaceID) string {
	scheme := c.SchemeName()
	if scheme == "" {
		return `ApiKey realm="` + string(ks) + `", header="` + c.HeaderName() + `"`
	}
	return scheme + ` realm="` + string(ks) + `"`
}

// twice stands for a credential that was presented more than once: which of
// them counts is not ours to guess. No key has this form.
var twice = events.NewSecret("twice")

// credential returns the secret that the values of c's header carry: zero for
// none, or for one of another authentication scheme.
func credential(values []string, c events.Credential) events.Secret {
	switch len(values) {
	case 0:
		return events.Secret{}
	case 1:
	default:
		return twice
	}
	v := strings.Trim(values[0], " \t")
	if scheme := c.SchemeName(); scheme != "" {
		name, rest, _ := strings.Cut(v, " ")
		if !strings.EqualFold(name, scheme) {
			return events.Secret{}
		}
		v = strings.TrimLeft(rest, " ")
	}
	return events.NewSecret(v)
}

// client returns the client's address and whether its request came without TLS.
// Both are the peer's own, unless the peer is a trusted proxy: then it tells.
func (n *Node) client(ask *Ask) (ip netip.Addr, insecure bool) {
	if !n.trusts(ask.Peer) {
		return ask.Peer, !ask.Secure
	}
	insecure = !ask.Secure
	if protos := ask.Header("X-Forwarded-Proto"); len(protos) > 0 {
		insecure = !HTTPS(protos)
	}
	return n.forwardedFor(ask.Peer, ask.Header("X-Forwarded-For")), insecure
}

// HTTPS reports whether the values of X-Forwarded-Proto name https and nothing
// else: one hop without TLS is enough to read a key.
func HTTPS(values []string) bool {
	for _, v := range values {
		for proto := range strings.SplitSeq(v, ",") {
			if !strings.EqualFold(strings.Trim(proto, " \t"), "https") {
				return false
			}
		}
	}
	return len(values) > 0
}

// forwardedFor returns the rightmost address of X-Forwarded-For that is not of a
// trusted proxy. An entry that cannot be read makes the address unknown.
func (n *Node) forwardedFor(peer netip.Addr, values []string) netip.Addr {
	if len(values) == 0 {
		return peer
	}
	ip := peer
	for _, hop := range slices.Backward(strings.Split(strings.Join(values, ","), ",")) {
		a, err := netip.ParseAddr(strings.Trim(hop, " \t"))
		if err != nil {
			return netip.Addr{}
		}
		if ip = a.Unmap().WithZone(""); !n.trusts(ip) {
			return ip
		}
	}
	return ip
}

func (n *Node) trusts(ip netip.Addr) bool {
	return slices.ContainsFunc(n.cfg.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(ip) })
}
