package verifier

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// What a gateway asks for besides the credential, when it does not say so in
// the query (?scope=…&resource=kind/id). The query wins: the gateway's own
// configuration writes it, while a header may come from the client.
const (
	HeaderScope    = "X-Keytrail-Scope"
	HeaderResource = "X-Keytrail-Resource" // kind/id
)

// handleAuthorize answers a gateway's sub-request about the request that it
// holds: 200 with the identity in headers, or the refusal as problem details.
//
//	nginx auth_request, Caddy forward_auth, Traefik forwardAuth, HAProxy lua-auth-request
func (n *Node) handleAuthorize(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	w.Header()["Cache-Control"] = noStore
	req, err := demand(r)
	if err != nil {
		api.Write(w, r, err)
		return
	}
	d, ok := n.authorize(w, r, req)
	if d != nil {
		n.metrics.authorize.Observe(time.Since(began).Seconds())
		n.log(r, "authorize", d)
	}
	if ok {
		h := w.Header()
		h.Set("X-Keytrail-Key-Id", d.Key.ID.String())
		h.Set("X-Keytrail-Tenant", string(d.Key.Tenant))
		h.Set("X-Keytrail-Scopes", strings.Join(d.Key.Scopes(), " "))
		h.Set("X-Keytrail-Environment", d.Key.Environment)
		h.Set("X-Keytrail-Use-Id", d.Use.String())
		w.WriteHeader(http.StatusOK)
	}
}

// authorize decides on the credential that r carries under the regime of the
// keyspace. When it is allowed ok is true and the limit's headers are set; if
// not, the refusal is written. d is nil when there was nothing to decide.
func (n *Node) authorize(w http.ResponseWriter, r *http.Request, req *Request) (d *Decision, ok bool) {
	ks := n.cfg.View.Keyspace(req.Keyspace)
	if ks == nil {
		if n.Ready() != nil {
			api.Write(w, r, problem(&Decision{Reason: events.ReasonVerifierStale, Status: http.StatusServiceUnavailable}, req))
		} else {
			api.Write(w, r, api.Errorf(http.StatusNotFound, "keyspace_unknown", "there is no keyspace of this name"))
		}
		return nil, false
	}
	cred := ks.Definition().Credential
	req.Secret, req.IP = credential(r.Header, cred), n.clientIP(r)
	decided := n.Decide(r.Context(), req)
	d = &decided
	h := w.Header()
	if l := d.Limit; l.Limit > 0 {
		h.Set("X-RateLimit-Limit", strconv.FormatInt(l.Limit, 10))
		h.Set("X-RateLimit-Remaining", strconv.FormatInt(l.Remaining, 10))
		h.Set("X-RateLimit-Reset", strconv.FormatInt(l.Reset, 10))
	}
	if d.Allowed() {
		return d, true
	}
	if d.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", challenge(cred, req.Keyspace))
	}
	api.Write(w, r, problem(d, req))
	return d, false
}

// challenge says how to present a key; a 401 must carry one (RFC 9110, 11.6.1).
func challenge(c events.Credential, ks events.KeyspaceID) string {
	scheme := c.SchemeName()
	if scheme == "" {
		return `ApiKey realm="` + string(ks) + `", header="` + c.HeaderName() + `"`
	}
	return scheme + ` realm="` + string(ks) + `"`
}

// demand reads what the gateway asks for. Anything it says twice, wrongly or in
// unknown words is refused: ignoring it would ask for less than was meant.
func demand(r *http.Request) (*Request, error) {
	req := &Request{Keyspace: events.KeyspaceID(r.PathValue("keyspace"))}
	var f events.FieldErrors
	if err := req.Keyspace.Validate(); err != nil {
		f.Add("keyspace", "invalid", err.Error())
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, api.Errorf(http.StatusBadRequest, "bad_query", "the query cannot be read")
	}
	for name := range query {
		if name != "scope" && name != "resource" {
			f.Add("query", "unknown_field", "want scope and resource only")
			break
		}
	}
	one := func(name, header string) string {
		values, field := query[name], name
		if len(values) == 0 {
			values, field = r.Header.Values(header), header
		}
		if len(values) > 1 {
			f.Add(field, "duplicate", "want it once at most")
		}
		if len(values) == 0 {
			return ""
		}
		if values[0] == "" { // a variable that the gateway did not fill in asks for less than was meant
			f.Add(field, "invalid", "want a value, or leave it out")
		}
		return values[0]
	}
	if req.Scope = one("scope", HeaderScope); req.Scope != "" {
		if err := events.ValidScope(req.Scope); err != nil {
			f.Add("scope", "invalid", err.Error())
		}
	}
	if s := one("resource", HeaderResource); s != "" {
		req.Resource.Kind, req.Resource.ID, _ = strings.Cut(s, "/")
		if err := req.Resource.Validate(); err != nil {
			f.Add("resource", "invalid", err.Error())
		}
	}
	return req, f.OrNil()
}

// twice stands for a credential that was presented more than once: which of
// them counts is not ours to guess. No key has this form.
var twice = events.NewSecret("twice")

// credential returns the secret that h carries under c: zero for none, or for
// one of another authentication scheme.
func credential(h http.Header, c events.Credential) events.Secret {
	values := h.Values(c.HeaderName())
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

// clientIP returns the client's address: the peer, or behind trusted proxies
// the rightmost address of X-Forwarded-For that is not one of theirs. An entry
// that cannot be read makes the address unknown.
func (n *Node) clientIP(r *http.Request) netip.Addr {
	ip := api.ClientIP(r)
	hops := r.Header.Values("X-Forwarded-For")
	if len(hops) == 0 || !n.trusts(ip) {
		return ip
	}
	for _, hop := range slices.Backward(strings.Split(strings.Join(hops, ","), ",")) {
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

type decisionKey struct{}

// Protect lets only requests with a key of the keyspace that holds scope ("" =
// any key) through to next, which finds the decision with DecisionFrom. Refusals
// are answered as at /v1/authorize.
func (n *Node) Protect(keyspace events.KeyspaceID, scope string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, ok := n.authorize(w, r, &Request{Keyspace: keyspace, Scope: scope})
		if d != nil {
			n.log(r, "protect", d)
		}
		if ok {
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), decisionKey{}, d)))
		}
	})
}

// DecisionFrom returns the decision that let a request through Protect.
func DecisionFrom(ctx context.Context) (*Decision, bool) {
	d, ok := ctx.Value(decisionKey{}).(*Decision)
	return d, ok
}
