package verifier

import (
	"context"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
)

// Ask is what a gateway asks about a request that it holds, by whichever endpoint.
// The keyspace and the demand are the gateway's own words; Header is the client's.
type Ask struct {
	Endpoint  string // authorize, protect or envoy: for logs and metrics
	RequestID string // Keytrail's own, that the answer repeats

	Keyspace events.KeyspaceID
	Scope    string          // "" = none needed
	Resource events.Resource // zero = none in particular
	Cost     uint32          // tokens of the limit; 0 counts as 1
	// MinPositionHeader is the header of the client's request that carries a position
	// which the decision must include; "" = none. The client's own word is enough: it
	// can only ask for a newer view.
	MinPositionHeader string

	Path string // of the client's request, for {n} in the resource; "" = not known

	Header func(name string) []string // values of a header of the client's request, apart where it came apart
	Peer   netip.Addr                 // who handed the request over; invalid = not known
	Secure bool                       // the peer did so over TLS

	into http.Header // where the answer's headers for the client go; nil = a map of the answer's own
}

// answer returns one without any content.
func (a *Ask) answer() *Answer {
	if a.into == nil {
		return &Answer{Header: make(http.Header, 8)}
	}
	return &Answer{Header: a.into}
}

// Demand sets what is asked for in the keyspace ks; scope, resource (kind/id) and
// minPositionHeader may be "". The id {n} is segment n of Path, counted from 1. What does
// not follow its grammar is added to f.
func (a *Ask) Demand(ks, scope, resource, minPositionHeader string, f *input.FieldErrors) {
	a.Keyspace, a.Scope, a.Resource, a.MinPositionHeader = events.KeyspaceID(ks), scope, events.Resource{}, minPositionHeader
	if minPositionHeader != "" {
		if err := keyspace.ValidHeader(minPositionHeader); err != nil {
			f.Add("min_position_header", "invalid", err.Error())
		}
	}
	if err := a.Keyspace.Validate(); err != nil {
		f.Add("keyspace", "invalid", err.Error())
	}
	if scope != "" {
		if err := keyspace.ValidScope(scope); err != nil {
			f.Add("scope", "invalid", err.Error())
		}
	}
	if resource != "" {
		a.Resource.Kind, a.Resource.ID, _ = strings.Cut(resource, "/")
		if n, ok := placeholder(a.Resource.ID); ok {
			a.fill(n, f)
		} else if err := a.Resource.Validate(); err != nil {
			f.Add("resource", "invalid", err.Error())
		}
	}
}

// Answer is what a gateway is told. An endpoint writes it down in its own protocol.
type Answer struct {
	Status   int         // 200 lets the client's request through
	Identity []Field     // for the upstream: who the client is; only when allowed, and then every field
	Header   http.Header // for the client
	Body     []byte      // for the client; none when allowed, and none for a gRPC client
	Decision *Decision   // nil when there was nothing to decide

	message string // of a refusal, for gRPC
}

// Field is one header field. An empty value is a statement too: the upstream
// must not see what the client wrote there.
type Field struct{ Name, Value string }

// Allowed reports whether the client's request may go on.
func (a *Answer) Allowed() bool { return a.Status == http.StatusOK }

// Answer decides on the credential that the client presents under the definition of
// the keyspace. Every endpoint of a gateway, and Protect, is a thin layer around it.
//
// A gRPC client's refusal has Grpc-Status and Grpc-Message in Header. The endpoint
// or the gateway answers it with 200, as gRPC wants.
func (n *Node) Answer(ctx context.Context, ask *Ask) *Answer {
	var secrets input.FieldErrors
	if n.screen(&secrets, "", ask.Keyspace, ask.Scope, ask.Resource); len(secrets) > 0 {
		return n.malformed(ctx, ask, api.SecretFound(secrets), secrets)
	}
	ans := n.answer(ctx, ask)
	n.finish(ans, ask)
	return ans
}

// finish gives a refusal the form that the client reads.
func (n *Node) finish(a *Answer, ask *Ask) {
	if a.Allowed() {
		return
	}
	if ks := n.cfg.View.Keyspace(ask.Keyspace); ks != nil {
		a.open(ask, &ks.Rules().Compiled)
	}
	if ask.isGRPC() {
		a.grpc()
	}
}

// definition returns the definition of the keyspace that is asked for, nil where there is
// none: then ans refuses.
func (n *Node) definition(ctx context.Context, ask *Ask, ans *Answer, req *Request) *keyspace.Compiled {
	if ks := n.cfg.View.Keyspace(ask.Keyspace); ks != nil {
		return &ks.Rules().Compiled
	}
	if n.Ready() != nil {
		ans.refuse(ask, nil, problem(&Decision{Reason: events.ReasonVerifierStale, Status: http.StatusServiceUnavailable}, req))
	} else {
		n.note(ctx, faultKeyspace, ask.Endpoint, ask.RequestID, req, nil)
		ans.misconfigured(ask, faultKeyspace, nil)
	}
	return nil
}

func (n *Node) answer(ctx context.Context, ask *Ask) *Answer {
	began := time.Now()
	ans := ask.answer()
	if ask.RequestID != "" {
		ans.Header.Set(api.RequestIDHeader, ask.RequestID)
	}
	req := &Request{Keyspace: ask.Keyspace, Scope: ask.Scope, Resource: ask.Resource, Cost: ask.Cost, RequestID: ask.RequestID}
	rules := n.definition(ctx, ask, ans, req)
	if rules == nil {
		return ans
	}
	cred := rules.Credential
	if strings.EqualFold(ask.MinPositionHeader, cred.HeaderName()) {
		f := input.FieldErrors{{Field: "min_position_header", Code: "invalid", Message: "want another header than the one in which the keyspace's keys come"}}
		n.note(ctx, faultMalformed, ask.Endpoint, ask.RequestID, req, f)
		ans.refuse(ask, rules, n.unreadable(f))
		return ans
	}
	if p := ask.position(req); p != nil {
		ans.refuse(ask, rules, p)
		return ans
	}
	req.Secret = credential(ask.Header(cred.HeaderName()), cred)
	if n.origin(ask, req); n.trusts(ask.Peer) && !req.addr().IsValid() {
		n.note(ctx, faultAddress, ask.Endpoint, ask.RequestID, req, nil)
	}
	waits, cancel := n.bounded(ctx, req)
	defer cancel()
	j := n.judge(waits, req)
	if j.foreign {
		ans.refuse(ask, rules, foreignPosition(""))
		return ans
	}
	n.await(waits, &j)
	n.settle(&j, req)
	d, g := j.Decision, j.rules
	ans.Decision = &d
	if f, ok := n.undeclared(&d, req); ok {
		n.note(ctx, f, ask.Endpoint, ask.RequestID, req, nil)
		ans.misconfigured(ask, f, g)
	} else {
		ans.say(ask, req, g)
	}
	if o := n.metrics.gateway[ask.Endpoint]; o != nil {
		o.Observe(time.Since(began).Seconds())
	}
	n.log(ctx, ask.RequestID, ask.Endpoint, &d)
	return ans
}

// say puts the decision into the words of the keyspace's definition. Whatever a
// definition may say about its answers belongs here, so that all endpoints say it.
func (a *Answer) say(ask *Ask, req *Request, g *keyspace.Compiled) {
	d := a.Decision
	if d.Key.Exists() {
		limitHeaders(a.Header, &g.LimitHeaders, d.Limit, perMinute(g, d), d.At)
	}
	if d.Allowed() {
		a.Status, a.Identity = http.StatusOK, identity(d)
		return
	}
	p := problem(d, req)
	f := &keyspace.Failure{
		Reason: d.Reason.String(), Status: p.Status, Code: p.Code, Message: p.Detail, RequestID: ask.RequestID,
		Scope: req.Scope, RetryAfter: int64(p.RetryAfter),
	}
	if !req.Resource.IsZero() {
		f.Resource = req.Resource.String()
	}
	a.render(g, f)
	h := a.Header
	if a.Status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", challenge(g.Credential, req.Keyspace))
	}
	if f.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(f.RetryAfter, 10))
	}
}

// render makes f the answer, in the words of the keyspace's definition.
func (a *Answer) render(g *keyspace.Compiled, f *keyspace.Failure) {
	var contentType string
	a.Status, contentType, a.Body = api.RenderFailure(g, f)
	a.Header.Set("Content-Type", contentType)
	a.Header.Set("Cache-Control", "no-store")
	said := *f
	g.Answer(&said)
	a.message = said.Message
}

// perMinute returns the rate of the bucket that the decision's limit speaks of.
func perMinute(g *keyspace.Compiled, d *Decision) (n int64) {
	if d.Limit.Scope == ScopeTenant {
		n, _, _ = d.Key.Whole.Limit(g)
	} else {
		n, _, _ = d.Key.Limit(g)
	}
	return n
}

// position reads the position that the client's request carries into req, if the
// gateway asks for one. One that cannot be read is the client's mistake: taken for
// none, it would be answered from an older view than the client insists on.
func (a *Ask) position(req *Request) *api.Problem {
	if a.MinPositionHeader == "" {
		return nil
	}
	values := a.Header(a.MinPositionHeader)
	if len(values) == 0 {
		return nil
	}
	p, err := events.ParsePosition(strings.Trim(values[0], " \t"))
	if err != nil || len(values) > 1 {
		return api.Invalid(input.FieldErrors{{Field: "min_position", Code: "invalid",
			Message: "want one position in the header " + a.MinPositionHeader + ", as Keytrail has issued it, or leave the header out"}})
	}
	req.MinPosition = p
	return nil
}

// refuse makes p the answer, in the words of the keyspace's definition where there is
// one. The status of a misconfiguration stands in a header too, for gateways that make
// something else of any status but 401 and 403.
func (a *Answer) refuse(ask *Ask, g *keyspace.Compiled, p *api.Problem) {
	p.RequestID = ask.RequestID
	if g != nil {
		a.render(g, p.Failure())
	} else {
		a.Status, a.Body, a.message = p.Status, p.Render(a.Header), p.Detail
	}
	if p.Code == codeMisconfigured {
		a.Header.Set(headerRefusalStatus, strconv.Itoa(a.Status))
	}
}

// maxScopes is how long X-Keytrail-Scopes may be, in bytes. With the other headers
// of an answer it stays under 4 KiB, the smallest buffer that gateways and
// upstreams have by default. A longer list would be cut off, or refused with a
// status that says nothing of the key, on the way.
const maxScopes = 2048

// identity says who the client is. All fields are there in every answer that
// allows, so that a gateway which copies them overwrites what a client forged.
//
// A list of scopes that is too long is left out whole: a part of it would say that
// the key holds less. Scopes-Omitted then says how many the key holds; it is empty
// when the list is there.
func identity(d *Decision) []Field {
	scopes, omitted := strings.Join(d.Key.Scopes(), " "), ""
	if len(scopes) > maxScopes {
		scopes, omitted = "", strconv.Itoa(len(d.Key.Scopes()))
	}
	return []Field{
		{"X-Keytrail-Key-Id", d.Key.ID.String()},
		{"X-Keytrail-Tenant", string(d.Key.Tenant)},
		{"X-Keytrail-Type", d.Key.KeyType},
		{"X-Keytrail-Scopes", scopes},
		{"X-Keytrail-Scopes-Omitted", omitted},
		{"X-Keytrail-Environment", d.Key.Environment},
		{"X-Keytrail-Use-Id", d.Use.String()},
	}
}

// challenge says how to present a key; a 401 must carry one (RFC 9110, 11.6.1).
func challenge(c keyspace.Credential, ks events.KeyspaceID) string {
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
func credential(values []string, c keyspace.Credential) events.Secret {
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
