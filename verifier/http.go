package verifier

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// MaxBatch is how many questions one request to /v1/verify/batch may ask.
const MaxBatch = 100

// Routes adds the endpoints:
//
//	POST /v1/verify                 one question, one decision
//	POST /v1/verify/batch           {"requests":[…]} -> {"data":[…]}, up to MaxBatch, in order
//	ANY  /v1/authorize/{keyspace}   forward-auth for gateways (authorize.go)
//	ANY  /v1/preflight/{keyspace}   the answer to a web page's preflight, for gateways (cors.go)
//
// A decision is always answered with HTTP 200; the decision's own status is a
// member of it. A question that cannot be read is a 4xx; in a batch it is an
// error in its place, and the other questions are decided.
func (n *Node) Routes(mux *http.ServeMux) {
	api.HandleOpen(mux, api.Endpoint{Pattern: "POST /v1/verify", Body: api.RequiredBody}, n.handleVerify)
	api.HandleOpen(mux, api.Endpoint{
		Pattern: "POST /v1/verify/batch", Body: api.RequiredBody,
		Bounds: api.Bounds{Lists: map[string]int{"requests": MaxBatch}},
	}, n.handleBatch)
	mux.HandleFunc("/v1/authorize/{keyspace}", n.handleAuthorize)
	mux.HandleFunc("/v1/authorize", n.handleAuthorize)  // a keyspace that the gateway did not fill in
	mux.HandleFunc("/v1/authorize/", n.handleAuthorize) // or with a slash in it
	mux.HandleFunc("/v1/preflight/{keyspace}", n.handlePreflight)
	mux.HandleFunc("/v1/preflight", n.handlePreflight)
	mux.HandleFunc("/v1/preflight/", n.handlePreflight)
}

func (n *Node) handleVerify(w http.ResponseWriter, r *api.Request) error {
	began := time.Now()
	var q question
	if err := r.Decode(&q); err != nil {
		return err
	}
	var faults input.FieldErrors
	req := q.request(n, "", &faults)
	id := api.RequestID(r.Request)
	req.RequestID = id
	if len(faults) > 0 {
		return refused(faults)
	}
	waits, cancel := n.bounded(r.Context(), &req)
	defer cancel()
	j := n.judge(waits, &req)
	if j.foreign {
		return foreignPosition("")
	}
	n.await(waits, &j)
	n.settle(&j, &req)
	d := j.Decision
	buf := buffers.Get().(*[]byte)
	*buf = n.append((*buf)[:0], &d, &req)
	writeJSON(w, buf)
	n.metrics.verify.Observe(time.Since(began).Seconds())
	n.log(r.Context(), id, "verify", &d)
	if f, ok := n.undeclared(&d, &req); ok {
		n.note(r.Context(), f, "verify", id, &req, nil)
	}
	return nil
}

// item is one question of a batch: a decision, or why there is none.
type item struct {
	req    Request
	fault  *api.Problem
	answer judgement
}

// batches are those that wait for the next request, with nothing in them: questions hold
// secrets.
var batches = sync.Pool{New: func() any { return new(batchRoom) }}

// batchRoom is what one request with many questions takes.
type batchRoom struct {
	questions [MaxBatch]question
	items     [MaxBatch]item
}

func (n *Node) handleBatch(w http.ResponseWriter, r *api.Request) error {
	began := time.Now()
	room := batches.Get().(*batchRoom)
	used := MaxBatch // of its questions and items
	defer func() {
		clear(room.questions[:used])
		clear(room.items[:used])
		batches.Put(room)
	}()
	body := batch{plain: room.questions[:0]}
	if err := r.Decode(&body); err != nil {
		return err
	}
	count := max(len(body.plain), len(body.Requests))
	if count == 0 || count > MaxBatch {
		return input.FieldErrors{{Field: "requests", Code: "invalid", Message: fmt.Sprintf("want 1 to %d", MaxBatch)}}
	}
	if len(body.plain) > 0 {
		used = count
	}
	// The waits of all items together are bounded like those of one.
	ctx, cancel := context.WithTimeout(r.Context(), n.cfg.WaitMax)
	defer cancel()
	id := api.RequestID(r.Request)
	items, waits := room.items[:count], false
	for i := range items {
		it := &items[i]
		if len(body.Requests) > 0 {
			it.req, it.fault = n.readItem(body.Requests[i], i)
		} else {
			it.req, it.fault = n.checkItem(&body.plain[i], i)
		}
		if it.fault == nil {
			it.req.RequestID = id
			it.answer = n.consider(ctx, &it.req)
			waits = waits || it.answer.Limit.told != nil
			if it.answer.foreign {
				it.fault = foreignPosition(place(i) + ".")
			}
		}
	}
	// The allocator of limits was asked for all items that need it, before the first waits.
	asking := ctx
	if waits {
		var stop context.CancelFunc
		asking, stop = context.WithTimeout(ctx, askFor)
		defer stop()
	}
	for i := range items {
		if it := &items[i]; it.fault == nil {
			n.awaitTokens(asking, &it.answer, &it.req)
			n.number(&it.answer, &it.req)
		}
	}
	// All are numbered before the first is waited for, and the last is waited for
	// first: when it is durable, the others are. Only then is any of them settled.
	for i := range slices.Backward(items) {
		if items[i].fault == nil {
			n.await(ctx, &items[i].answer)
		}
	}
	for i := range items {
		if items[i].fault == nil {
			n.settle(&items[i].answer, &items[i].req)
		}
	}
	buf := buffers.Get().(*[]byte)
	b := append((*buf)[:0], `{"data":[`...)
	for i := range items {
		if i > 0 {
			b = append(b, ',')
		}
		it := &items[i]
		if it.fault != nil {
			b = append(append(append(b, `{"error":`...), it.fault.Render(http.Header{})...), '}')
			continue
		}
		b = n.append(b, &it.answer.Decision, &it.req)
		n.log(ctx, id, "verify batch", &it.answer.Decision)
		if f, ok := n.undeclared(&it.answer.Decision, &it.req); ok {
			n.note(ctx, f, "verify batch", id, &it.req, nil)
		}
	}
	*buf = append(b, "]}"...)
	writeJSON(w, buf)
	n.metrics.batch.Observe(time.Since(began).Seconds())
	return nil
}

// readItem reads question i of a batch. Its faults name their place in the body.
func (n *Node) readItem(text jsontext.Value, i int) (Request, *api.Problem) {
	var q question
	if p := api.DecodeValue(text, &q); p != nil {
		for j, e := range p.Errors {
			p.Errors[j].Field = strings.TrimSuffix(place(i)+"."+e.Field, ".")
		}
		return Request{}, p
	}
	return n.checkItem(&q, i)
}

// checkItem checks question i of a batch.
func (n *Node) checkItem(q *question, i int) (Request, *api.Problem) {
	var faults input.FieldErrors
	req := q.request(n, "", &faults)
	if len(faults) > 0 {
		for j := range faults {
			faults[j].Field = place(i) + "." + faults[j].Field
		}
		return req, refused(faults)
	}
	return req, nil
}

// place names question i of a batch.
func place(i int) string { return fmt.Sprintf("requests[%d]", i) }

// buffers are those of answers. No answer of this endpoint holds a secret.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

// writeJSON writes an answer that is in one of buffers, and gives the buffer back. After a
// Write that failed it does not: over HTTP/2, Write returns as soon as the client resets the
// stream, while another goroutine may still send from the buffer. The next answer in it
// would go to that client.
func writeJSON(w http.ResponseWriter, buf *[]byte) {
	h := w.Header()
	h["Content-Type"] = contentJSON
	h["Cache-Control"] = noStore
	if _, err := w.Write(*buf); err == nil {
		buffers.Put(buf)
	}
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
// its scope says which: key or tenant. Where limits hold for all nodes together it says so
// in mode. A refusal by the limit adds retry_after
// in seconds, or detail when waiting does not help. detail also says which name of
// the question is not declared.
func (n *Node) append(b []byte, d *Decision, req *Request) []byte {
	b = append(b, `{"allowed":`...)
	b = strconv.AppendBool(b, d.Allowed())
	b = append(append(append(b, `,"reason":"`...), d.Reason.String()...), `","status":`...)
	b = strconv.AppendInt(b, int64(d.Status), 10)
	if k := &d.Key; k.Exists() {
		b = k.ID.Append(append(b, `,"key_id":"`...))
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
		b = append(append(append(b, `,"scope":"`...), l.Scope...), '"')
		if l.Mode != "" {
			b = append(append(append(b, `,"mode":"`...), l.Mode...), '"')
		}
		b = append(b, '}')
		if l.RetryAfter > 0 {
			b = strconv.AppendInt(append(b, `,"retry_after":`...), l.RetryAfter, 10)
		}
		if d.Reason == events.ReasonRateLimited && (l.Away || l.Never(req.cost())) {
			b = append(append(append(b, `,"detail":"`...), detail(d, req)...), '"')
		}
	}
	if f, ok := n.undeclared(d, req); ok && d.Reason != events.ReasonRateLimited {
		_, message := f.undeclared()
		b = append(append(append(b, `,"detail":"`...), message...), '"')
	}
	b = n.position(d.Seq).Append(append(b, `,"position":"`...))
	if d.Use.N > 0 {
		b = d.Use.Append(append(b, `","use_id":"`...))
	}
	return append(b, `"}`...)
}

// position returns the position of the view at seq, where it stood a moment ago.
func (n *Node) position(seq events.Seq) events.Position {
	history, _ := n.cfg.View.Fingerprint(seq) // it knows far more than a moment
	return events.Position{Log: n.cfg.Log, Seq: seq, History: history}
}

// problem returns the refusal d as an error answer of an endpoint that enforces it.
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
		if d.Key.Exists() {
			if kind := d.Key.Rules.ScopeLevel(req.Scope); kind != "" && kind != req.Resource.Kind {
				return fmt.Sprintf("the scope %s is used on a resource of kind %s, and the request names none", req.Scope, kind)
			}
		}
		return "the key does not reach this resource"
	case events.ReasonRateLimited:
		if d.Limit.Never(req.cost()) {
			return fmt.Sprintf("the request costs %d tokens and the %s's burst is %d: it can never be allowed", req.cost(), d.Limit.Scope, d.Limit.Limit)
		}
		if d.Limit.crowded {
			return "too many requests wait for the allocator of limits at this node; try again"
		}
		if d.Limit.Away {
			return "the allocator of limits does not answer, and the keyspace allows nothing without it; try again"
		}
		return "the " + d.Limit.Scope + "'s rate limit is used up"
	case events.ReasonHTTPSRequired:
		return "plain HTTP is refused: use HTTPS, and replace a key that went over the wire in the clear"
	}
	return "this node cannot vouch for the key's present state; try again"
}

// log writes the one line of a request; it never holds what was presented.
func (n *Node) log(ctx context.Context, requestID, endpoint string, d *Decision) {
	if !n.cfg.Logger.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := make([]slog.Attr, 0, 6)
	attrs = append(attrs, slog.String("endpoint", endpoint), slog.String("reason", d.Reason.String()),
		slog.Uint64("seq", uint64(d.Seq)), slog.String("request_id", requestID))
	if d.Key.Exists() {
		attrs = append(attrs, slog.String("key_id", d.Key.ID.String()), slog.String("tenant", string(d.Key.Tenant)))
	}
	n.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "decided", attrs...)
}
