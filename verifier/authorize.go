package verifier

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf16"

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

// Where a refusal stands with ?refusal=header.
const (
	headerRefusal       = "X-Keytrail-Refusal"        // the body: JSON in ASCII on one line
	headerRefusalStatus = "X-Keytrail-Refusal-Status" // the status
	headerRefusalType   = "X-Keytrail-Refusal-Type"   // the body's content type
)

// handleAuthorize answers a gateway's sub-request about the request that it
// holds: 200 with the identity in headers, or the refusal for the client.
//
//	nginx auth_request, Caddy forward_auth, Traefik forwardAuth, HAProxy lua-auth-request
func (n *Node) handleAuthorize(w http.ResponseWriter, r *http.Request) {
	w.Header()["Cache-Control"] = noStore
	ask := asked(r, "authorize")
	var ans *Answer
	inHeader, fault := demand(r, ask)
	if fault != nil {
		ans = &Answer{Header: http.Header{}}
		ans.refuse(ask, fault)
	} else {
		ans = n.Answer(r.Context(), ask)
	}
	if inHeader && !ans.Allowed() {
		ans.toHeader()
	}
	ans.write(w)
}

// asked returns the part of the question that is in the request itself.
func asked(r *http.Request, door string) *Ask {
	return &Ask{Door: door, RequestID: api.RequestID(r), Header: r.Header.Values, Peer: api.ClientIP(r), Secure: r.TLS != nil}
}

// write sends the answer to a gateway that speaks HTTP.
func (a *Answer) write(w http.ResponseWriter) {
	h := w.Header()
	maps.Copy(h, a.Header)
	for _, f := range a.Identity {
		h.Set(f.Name, f.Value)
	}
	w.WriteHeader(a.Status)
	w.Write(a.Body)
}

// toHeader turns a refusal into a 403 that says everything in headers, for
// gateways whose sub-request passes on neither other statuses nor a body.
func (a *Answer) toHeader() {
	a.Header.Set(headerRefusalStatus, strconv.Itoa(a.Status))
	a.Header.Set(headerRefusalType, a.Header.Get("Content-Type"))
	a.Header.Set(headerRefusal, asciiLine(a.Body))
	a.Header.Del("Content-Type")
	a.Status, a.Body = http.StatusForbidden, nil
}

// asciiLine returns the JSON text b as one line of visible ASCII. Outside its
// strings JSON has no other characters but white space, and inside no control
// characters, so it needs no parser.
func asciiLine(b []byte) string {
	var out strings.Builder
	out.Grow(len(b))
	for _, r := range string(b) {
		switch {
		case r < ' ':
			out.WriteByte(' ')
		case r < 0x7f:
			out.WriteByte(byte(r))
		default:
			for _, u := range utf16.AppendRune(nil, r) {
				fmt.Fprintf(&out, `\u%04x`, u)
			}
		}
	}
	return out.String()
}

// demand reads what the gateway asks for, and whether it wants a refusal in
// headers. Anything it says twice, wrongly or in unknown words is refused:
// ignoring it would ask for less than was meant.
func demand(r *http.Request, ask *Ask) (inHeader bool, fault *api.Problem) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	inHeader = query.Get("refusal") == "header" // also of a fault
	if err != nil {
		return inHeader, api.Errorf(http.StatusBadRequest, "bad_query", "the query cannot be read")
	}
	var f events.FieldErrors
	for name := range query {
		if name != "scope" && name != "resource" && name != "refusal" {
			f.Add("query", "unknown_field", "want scope, resource and refusal only")
			break
		}
	}
	one := func(name, header string) string {
		values, field := query[name], name
		if len(values) == 0 && header != "" {
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
	if refusal := one("refusal", ""); refusal != "" && refusal != "header" {
		f.Add("refusal", "invalid", `want "header", or leave it out`)
	}
	ask.Demand(r.PathValue("keyspace"), one("scope", HeaderScope), one("resource", HeaderResource), &f)
	if len(f) > 0 {
		return inHeader, api.Invalid(f)
	}
	return inHeader, nil
}

// clientIP returns the address of the client of one of Keytrail's own doors.
func (n *Node) clientIP(r *http.Request) netip.Addr {
	ip, _ := n.client(asked(r, ""))
	return ip
}

type decisionKey struct{}

// Protect lets only requests with a key of the keyspace that holds scope ("" =
// any key) through to next, which finds the decision with DecisionFrom. Refusals
// are answered as at /v1/authorize.
func (n *Node) Protect(keyspace events.KeyspaceID, scope string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ask := asked(r, "protect")
		ask.Keyspace, ask.Scope = keyspace, scope
		ans := n.Answer(r.Context(), ask)
		if !ans.Allowed() {
			ans.write(w)
			return
		}
		maps.Copy(w.Header(), ans.Header)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), decisionKey{}, ans.Decision)))
	})
}

// DecisionFrom returns the decision that let a request through Protect.
func DecisionFrom(ctx context.Context) (*Decision, bool) {
	d, ok := ctx.Value(decisionKey{}).(*Decision)
	return d, ok
}
