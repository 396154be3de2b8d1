package verifier

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// MaxBatch is how many questions one request to /v1/verify/batch may ask.
const MaxBatch = 100

// Routes adds the doors:
//
//	POST /v1/verify                 one question, one decision
//	POST /v1/verify/batch           {"requests":[…]} -> {"data":[…]}, up to MaxBatch, in order
//	ANY  /v1/authorize/{keyspace}   forward-auth for gateways (authorize.go)
//
// A decision is always answered with HTTP 200; the decision's own status is a
// member of it. Only a question that cannot be read is a 4xx.
func (n *Node) Routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/verify", n.handleVerify)
	mux.HandleFunc("POST /v1/verify/batch", n.handleBatch)
	mux.HandleFunc("/v1/authorize/{keyspace}", n.handleAuthorize)
}

// question is the body of a verify request. Absent, null and "" are the same.
type question struct {
	Key          string            `json:"key"`
	Keyspace     events.KeyspaceID `json:"keyspace"`
	Scope        string            `json:"scope"`
	Resource     events.Resource   `json:"resource"`
	IP           string            `json:"ip"`     // the client's address, as the caller sees it
	Scheme       string            `json:"scheme"` // http or https: how the key came to the caller
	Cost         *int64            `json:"cost"`
	MinPosition  string            `json:"min_position"`
	MaxStaleness string            `json:"max_staleness"` // a duration, as "500ms" or "5s"
}

// request checks the question and adds its faults to f, under the path given.
func (q *question) request(log events.LogID, path string, f *events.FieldErrors) Request {
	req := Request{Secret: events.NewSecret(q.Key), Keyspace: q.Keyspace, Scope: q.Scope, Resource: q.Resource}
	check := func(field string, err error) {
		if err != nil {
			f.Add(path+field, "invalid", err.Error())
		}
	}
	if q.Keyspace != "" {
		check("keyspace", q.Keyspace.Validate())
	}
	if q.Scope != "" {
		check("scope", events.ValidScope(q.Scope))
	}
	if !q.Resource.IsZero() {
		check("resource", q.Resource.Validate())
	}
	if q.IP != "" {
		a, err := netip.ParseAddr(q.IP)
		if err != nil || a.Zone() != "" {
			f.Add(path+"ip", "invalid", "want an IPv4 or IPv6 address without a zone")
		}
		req.IP = a.Unmap()
	}
	switch q.Scheme {
	case "", "https":
	case "http":
		req.Insecure = true
	default:
		f.Add(path+"scheme", "invalid", "want http or https")
	}
	if q.Cost != nil {
		if *q.Cost < 1 || *q.Cost > math.MaxUint32 {
			f.Add(path+"cost", "invalid", "want 1 to 4294967295")
		}
		req.Cost = uint32(*q.Cost)
	}
	if q.MinPosition != "" {
		p, err := events.ParsePosition(q.MinPosition)
		check("min_position", err)
		if err == nil && p.Log != log {
			f.Add(path+"min_position", "foreign_position", "a position of another log")
		}
		req.MinPosition = p
	}
	if q.MaxStaleness != "" {
		d, err := time.ParseDuration(q.MaxStaleness)
		if err != nil || d < time.Millisecond || d > 24*time.Hour {
			f.Add(path+"max_staleness", "invalid", `want a duration of 1ms to 24h, as "5s"`)
		}
		req.MaxStaleness = d
	}
	return req
}

func (n *Node) handleVerify(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	var q question
	if err := api.Decode(r, &q); err != nil {
		api.Write(w, r, err)
		return
	}
	var faults events.FieldErrors
	req := q.request(n.cfg.Log, "", &faults)
	if err := faults.OrNil(); err != nil {
		api.Write(w, r, err)
		return
	}
	d := n.Decide(r.Context(), &req)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	*buf = n.append((*buf)[:0], &d, &req)
	writeJSON(w, *buf)
	n.metrics.verify.Observe(time.Since(began).Seconds())
	n.log(r.Context(), api.RequestID(r), "verify", &d)
}

func (n *Node) handleBatch(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	var body struct {
		Requests []question `json:"requests"`
	}
	if err := api.Decode(r, &body); err != nil {
		api.Write(w, r, err)
		return
	}
	var faults events.FieldErrors
	if len(body.Requests) == 0 || len(body.Requests) > MaxBatch {
		faults.Add("requests", "invalid", fmt.Sprintf("want 1 to %d", MaxBatch))
		api.Write(w, r, faults)
		return
	}
	reqs := make([]Request, len(body.Requests))
	for i := range reqs {
		reqs[i] = body.Requests[i].request(n.cfg.Log, fmt.Sprintf("requests[%d].", i), &faults)
	}
	if err := faults.OrNil(); err != nil {
		api.Write(w, r, err)
		return
	}
	// The waits of all items together are bounded like those of one.
	ctx, cancel := context.WithTimeout(r.Context(), n.cfg.WaitMax)
	defer cancel()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	b := append((*buf)[:0], `{"data":[`...)
	for i := range reqs {
		if i > 0 {
			b = append(b, ',')
		}
		d := n.Decide(ctx, &reqs[i])
		b = n.append(b, &d, &reqs[i])
		n.log(ctx, api.RequestID(r), "verify batch", &d)
	}
	*buf = append(b, "]}"...)
	writeJSON(w, *buf)
	n.metrics.batch.Observe(time.Since(began).Seconds())
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

func writeJSON(w http.ResponseWriter, b []byte) {
	h := w.Header()
	h["Content-Type"] = contentJSON
	h["Cache-Control"] = noStore
	w.Write(b)
}

var contentJSON, noStore = []string{"application/json"}, []string{"no-store"}

// append prints the decision as JSON. Nothing in it needs escaping: every string
// follows a grammar of events that admits no quote, backslash or control
// character.
//
//	{"allowed":true,"reason":"ok","status":200,"key_id":"key_…","tenant":"acme","environment":"live","scopes":["read"],
//	 "limit":{"limit":120,"remaining":119,"reset":1,"scope":"key"},"position":"…","use_id":"…"}
//
// Absent members are left out: key_id to scopes when the key is unknown, limit
// when there is none. limit is the tighter of the key's and its tenant's, and
// its scope says which: key or tenant. A refusal by the limit adds retry_after
// in seconds, or detail when waiting does not help.
func (n *Node) append(b []byte, d *Decision, req *Request) []byte {
	b = append(b, `{"allowed":`...)
	b = strconv.AppendBool(b, d.Allowed())
	b = append(append(append(b, `,"reason":"`...), d.Reason.String()...), `","status":`...)
	b = strconv.AppendInt(b, int64(d.Status), 10)
	if k := d.Key; k != nil {
		b = append(append(b, `,"key_id":"`...), k.ID.String()...)
		b = append(append(b, `","tenant":"`...), k.Tenant...)
		if k.Environment != "" {
			b = append(append(b, `","environment":"`...), k.Environment...)
		}
		b = append(b, `","scopes":[`...)
		for i, s := range k.Scopes() {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(append(append(b, '"'), s...), '"')
		}
		b = append(b, ']')
	}
	if l := d.Limit; l.Limit > 0 {
		b = strconv.AppendInt(append(b, `,"limit":{"limit":`...), l.Limit, 10)
		b = strconv.AppendInt(append(b, `,"remaining":`...), l.Remaining, 10)
		b = strconv.AppendInt(append(b, `,"reset":`...), l.Reset, 10)
		b = append(append(append(b, `,"scope":"`...), l.Scope...), `"}`...)
		if l.RetryAfter > 0 {
			b = strconv.AppendInt(append(b, `,"retry_after":`...), l.RetryAfter, 10)
		}
		if d.Reason == events.ReasonRateLimited && l.Never(req.cost()) {
			b = append(append(append(b, `,"detail":"`...), detail(d, req)...), '"')
		}
	}
	b = append(append(b, `,"position":"`...), events.Position{Log: n.cfg.Log, Seq: d.Seq}.String()...)
	if d.Use.N > 0 {
		b = append(append(b, `","use_id":"`...), d.Use.String()...)
	}
	return append(b, `"}`...)
}

// problem returns the refusal d as an error answer of a door that enforces it.
func problem(d *Decision, req *Request) *api.Problem {
	p := api.Errorf(d.Status, d.Reason.String(), "%s", detail(d, req))
	p.RetryAfter = int(d.Limit.RetryAfter)
	if d.Reason == events.ReasonVerifierStale {
		p.RetryAfter = 1
	}
	return p
}

// detail says for people what a refusal means.
func detail(d *Decision, req *Request) string {
	switch d.Reason {
	case events.ReasonKeyMissing:
		return "no key was presented"
	case events.ReasonKeyMalformed:
		return "what was presented does not have the form of a key, or was presented twice"
	case events.ReasonKeyUnknown:
		return "there is no such key"
	case events.ReasonKeyRevoked:
		return "the key is revoked"
	case events.ReasonKeyExpired:
		return "the key has expired"
	case events.ReasonKeyDisabled:
		return "the key is disabled"
	case events.ReasonAddressNotAllowed:
		return "the key may not be used from this address"
	case events.ReasonScopeMissing:
		return "the key does not hold the scope that this needs"
	case events.ReasonResourceNotAllowed:
		if d.Key != nil {
			if kind := d.Key.Space.Regime().Level(req.Scope); kind != "" && kind != req.Resource.Kind {
				return fmt.Sprintf("the scope %s is used on a resource of kind %s, and the request names none", req.Scope, kind)
			}
		}
		return "the key does not reach this resource"
	case events.ReasonRateLimited:
		if d.Limit.Never(req.cost()) {
			return fmt.Sprintf("the request costs %d tokens and the %s's burst is %d: it can never be allowed", req.cost(), d.Limit.Scope, d.Limit.Limit)
		}
		return "the " + d.Limit.Scope + "'s rate limit is used up"
	case events.ReasonHTTPSRequired:
		return "plain HTTP is refused: use HTTPS, and replace a key that went over the wire in the clear"
	}
	return "this node cannot vouch for the key's present state; try again"
}

// log writes the one line of a request; it never holds what was presented.
func (n *Node) log(ctx context.Context, requestID, door string, d *Decision) {
	if !n.cfg.Logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := make([]slog.Attr, 0, 6)
	attrs = append(attrs, slog.String("door", door), slog.String("reason", d.Reason.String()),
		slog.Uint64("seq", uint64(d.Seq)), slog.String("request_id", requestID))
	if d.Key != nil {
		attrs = append(attrs, slog.String("key_id", d.Key.ID.String()), slog.String("tenant", string(d.Key.Tenant)))
	}
	n.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "decided", attrs...)
}
