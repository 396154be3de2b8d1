package verifier

import (
	"context"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
)

// Verify is Decide for the program that the node runs in: it reads the question as
// /v1/verify does. The error is input.FieldErrors, in the names of its members:
// something does not follow its grammar, or holds a secret, or MinPosition is of another
// log or history. Then nothing was decided and nothing recorded, and the decision says
// that nothing is allowed. A name that the keyspace does not declare is refused, counted
// and logged as the program's mistake.
func (n *Node) Verify(ctx context.Context, req Request) (Decision, error) {
	if f := n.faultsOf(&req); len(f) > 0 {
		return Decision{}, f
	}
	req.IP = req.IP.Unmap().WithZone("")
	waits, cancel := n.bounded(ctx, &req)
	defer cancel()
	j := n.judge(waits, &req)
	if j.foreign {
		return Decision{}, input.FieldErrors{foreign("min_position")}
	}
	n.await(waits, &j)
	n.settle(&j, &req)
	if f, ok := n.undeclared(&j.Decision, &req); ok {
		n.note(ctx, f, "program", req.RequestID, &req, nil)
	}
	return j.Decision, nil
}

// faultsOf returns the faults of a question of the program. If it holds a secret, that
// is the only fault named.
func (n *Node) faultsOf(req *Request) (f input.FieldErrors) {
	if n.screen(&f, "", req.Keyspace, req.Scope, req.Resource); len(f) > 0 {
		return f
	}
	check := func(field string, given bool, validate func() error) {
		if given {
			if err := validate(); err != nil {
				f.Add(field, "invalid", err.Error())
			}
		}
	}
	check("keyspace", req.Keyspace != "", req.Keyspace.Validate)
	check("scope", req.Scope != "", func() error { return keyspace.ValidScope(req.Scope) })
	check("resource", !req.Resource.IsZero(), req.Resource.Validate)
	if req.MaxStaleness < 0 {
		f.Add("max_staleness", "invalid", "want a duration, or 0 for the keyspace's")
	}
	return f
}

// Demand is what one request to a program's own handler needs.
type Demand struct {
	Scope    string          // "" = any key; keyspace.ScopeUnlisted = what nobody may do
	Resource events.Resource // zero = none in particular
	Cost     uint32          // tokens of the limit; 0 counts as 1

	MinPositionHeader string // Ask.MinPositionHeader
}

// Principal is the bearer of the key that Protect let through.
type Principal struct {
	Key         events.KeyID
	Keyspace    events.KeyspaceID
	Tenant      events.TenantID
	Type        string   // of the key, as the keyspace names it
	Environment string   // "" where the keyspace has none
	Scopes      []string // that it holds, by its roles too
	Use         events.UseID
}

type principalKey struct{}

// PrincipalFrom returns the bearer of the key that a request came with, from the
// context that Protect gave it.
func PrincipalFrom(ctx context.Context) (*Principal, bool) {
	p, ok := ctx.Value(principalKey{}).(*Principal)
	return p, ok
}

// Protect returns the middleware that lets a request through only if it comes with a
// key of the keyspace that may do what demand says of it; demand nil asks for any key.
// The handler finds the bearer with PrincipalFrom, and never in a header: X-Keytrail-*, by
// which gateways say it, is taken off the request, however spelt. The middleware does for a handler of
// this program what /v1/authorize does for a gateway: it reads the key from the header
// that the keyspace's definition names, takes the client's address and scheme from the
// connection or from a trusted proxy, records the use, sets the limit's headers, and
// answers a refusal in the keyspace's own words, to gRPC clients too. The answer to a
// refusal has an X-Request-Id of Keytrail's, under which the use is recorded.
//
// A demand that does not follow its grammar is the program's mistake: it is answered
// with 503 and gateway_misconfigured, counted and logged. The id of a resource is
// different, because it may be the client's text: where no resource can have it, the
// request is refused like one that is not listed (keyspace.ScopeUnlisted).
//
// The preflight of a web page carries no key and is no use. It is answered as the
// keyspace's definition says (cors), and never reaches the handler, whose own answers say
// who may read them; refusals can be read by the pages that the definition allows.
func (n *Node) Protect(ks events.KeyspaceID, demand func(*http.Request) Demand) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ask := asked(r, "protect")
			ask.RequestID = events.NewRequestID().String() // the client's own could forge the record
			ans := n.protect(r, ask, ks, demand)
			if !ans.Allowed() {
				if ans.Header.Get(headerGRPCStatus) != "" {
					ans.Status = http.StatusOK
				}
				maps.Copy(w.Header(), ans.Header)
				w.Header()["Cache-Control"] = noStore
				w.Header()[api.RequestIDHeader] = []string{ask.RequestID}
				ans.write(w)
				return
			}
			ans.Header.Del(api.RequestIDHeader) // the program may have one of its own
			maps.Copy(w.Header(), ans.Header)
			k := ans.Decision.Key
			r = r.WithContext(context.WithValue(r.Context(), principalKey{}, &Principal{
				Key: k.ID, Keyspace: ks, Tenant: k.Tenant, Type: k.KeyType, Environment: k.Environment, Scopes: slices.Clone(k.Scopes()), Use: ans.Decision.Use,
			}))
			r.Header = withoutIdentity(r.Header)
			next.ServeHTTP(w, r)
		})
	}
}

// withoutIdentity returns h without the headers by which gateways say who calls, however
// spelt: X_Keytrail_Tenant is X-Keytrail-Tenant to some upstreams (CGI, WSGI, PHP).
func withoutIdentity(h http.Header) http.Header {
	const ours = "x-keytrail"
	forged := func(name string) bool {
		return len(name) >= len(ours) && strings.EqualFold(name[:1], ours[:1]) && strings.EqualFold(name[2:len(ours)], ours[2:])
	}
	for name := range h {
		if forged(name) {
			h = h.Clone() // the request may be its server's
			maps.DeleteFunc(h, func(name string, _ []string) bool { return forged(name) })
			break
		}
	}
	return h
}

func (n *Node) protect(r *http.Request, ask *Ask, ks events.KeyspaceID, demand func(*http.Request) Demand) *Answer {
	if IsPreflight(r.Method, r.Header.Values) {
		ask.Keyspace = ks
		return n.Preflight(r.Context(), ask)
	}
	var d Demand
	if demand != nil {
		d = demand(r)
	}
	scope, resource := d.Scope, ""
	switch named := d.Resource; {
	case named.IsZero():
	case (events.Resource{Kind: named.Kind, ID: "x"}).Validate() == nil && named.Validate() != nil:
		scope = keyspace.ScopeUnlisted // the client's text, by which no resource has a name
	default:
		resource = named.String()
	}
	var f input.FieldErrors
	if ask.Demand(string(ks), scope, resource, d.MinPositionHeader, &f); len(f) > 0 {
		return n.Malformed(r.Context(), ask, f)
	}
	ask.Cost = d.Cost
	return n.Answer(r.Context(), ask)
}
