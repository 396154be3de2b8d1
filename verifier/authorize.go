package verifier

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
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
	withoutBody(w, r)
	ask := asked(r, "authorize")
	ask.into = w.Header()
	if uri := r.Header["X-Forwarded-Uri"]; len(uri) == 1 && n.trusts(ask.Peer) {
		ask.Path = uri[0]
	}
	var ans *Answer
	inHeader, fault := demand(r, ask)
	if fault != nil {
		ans = n.malformed(r.Context(), ask, n.unreadable(fault), fault)
	} else {
		ans = n.Answer(r.Context(), ask)
	}
	if inHeader && !ans.Allowed() {
		ans.toHeader()
	}
	ans.write(w)
}

// handlePreflight answers the preflight that a gateway passes on, as to an upstream. Its
// path is one of its own, because the answer to a gateway's question must never be a 2xx
// for a request without a key.
func (n *Node) handlePreflight(w http.ResponseWriter, r *http.Request) {
	withoutBody(w, r)
	ask := asked(r, "preflight")
	ask.into = w.Header()
	var f input.FieldErrors
	if ask.Demand(r.PathValue("keyspace"), "", "", "", &f); len(f) > 0 {
		n.Malformed(r.Context(), ask, f).write(w)
		return
	}
	n.Preflight(r.Context(), ask).write(w)
}

// withoutBody begins an answer to a gateway, which sends no body. Some announce the
// client's: waiting for it would hold the request, and the next one on the connection
// would be read as the body.
func withoutBody(w http.ResponseWriter, r *http.Request) {
	w.Header()["Cache-Control"] = noStore
	if r.ContentLength != 0 && r.ProtoMajor == 1 {
		w.Header().Set("Connection", "close")
	}
}

// asked returns the part of the question that is in the request itself.
func asked(r *http.Request, endpoint string) *Ask {
	return &Ask{Endpoint: endpoint, RequestID: api.RequestID(r), Header: r.Header.Values, Peer: api.ClientIP(r), Secure: r.TLS != nil}
}

// write sends the answer to who speaks HTTP. The fields of a.Header are w's already.
func (a *Answer) write(w http.ResponseWriter) {
	h := w.Header()
	values := make([]string, len(a.Identity)) // of all fields: their names are as net/http spells them
	for i, f := range a.Identity {
		values[i] = f.Value
		h[f.Name] = values[i : i+1 : i+1]
	}
	w.WriteHeader(a.Status)
	w.Write(a.Body)
}

// toHeader turns a refusal into a 403 that says everything in headers, for
// gateways whose sub-request passes on neither other statuses nor a body.
func (a *Answer) toHeader() {
	status := a.Status
	if a.Header.Get(headerGRPCStatus) != "" {
		status = http.StatusOK // within a 403, so that nothing passes
	}
	a.Header.Set(headerRefusalStatus, strconv.Itoa(status))
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
// headers. It stands in the query, which the gateway's own configuration writes,
// and nowhere else: a header may come from the client. A query that cannot be read
// is refused: ignoring a part of it would ask for less than was meant.
func demand(r *http.Request, ask *Ask) (inHeader bool, fault error) {
	query, err := api.ParseQuery(r.URL.RawQuery, "scope", "resource", "min_position_header", "refusal")
	inHeader = strings.Contains(r.URL.RawQuery, "refusal=header") // also of a fault
	if err != nil {
		return inHeader, err
	}
	var f input.FieldErrors
	if query.Has("refusal") && query.Get("refusal") != "header" {
		f.Add("refusal", "invalid", `want "header", or leave it out`)
	}
	ask.Demand(r.PathValue("keyspace"), query.Get("scope"), query.Get("resource"), query.Get("min_position_header"), &f)
	return inHeader, f.OrNil()
}
