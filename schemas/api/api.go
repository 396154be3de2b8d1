// Package api holds what Keytrail's own doors share: RFC 9457 problem details,
// strict reading of bodies, and the shape of answers. It decides nothing.
//
// What a regime answers to its own clients is the regime's data; failure.go only
// puts it on the wire.
package api

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
)

// MaxBody is the largest request body that a door reads, in bytes.
const MaxBody = 1 << 20

// Problem is an error answer after RFC 9457. It implements error, so that a
// handler returns it and the door writes it.
type Problem struct {
	Type      string             `json:"type"` // "about:blank": code says which it is
	Title     string             `json:"title"`
	Status    int                `json:"status"`
	Detail    string             `json:"detail,omitzero"`
	Code      string             `json:"code"` // closed set, for machines
	RequestID string             `json:"request_id,omitzero"`
	Errors    events.FieldErrors `json:"errors,omitempty"` // one per bad field

	RetryAfter int `json:"-"` // seconds for the Retry-After header, 0 = none
}

// Error returns the detail.
func (p *Problem) Error() string { return p.Code + ": " + p.Detail }

// Errorf makes a problem of a status, a code and a detail for people.
func Errorf(status int, code, format string, args ...any) *Problem {
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Code: code, Detail: fmt.Sprintf(format, args...)}
}

// codeInvalid is of problems that say in their errors what is wrong.
const codeInvalid = "invalid"

// Invalid makes the 422 problem that lists every bad field at once.
func Invalid(errs events.FieldErrors) *Problem {
	p := Errorf(http.StatusUnprocessableEntity, codeInvalid, "%d field(s) are not acceptable", len(errs))
	p.Errors = errs
	return p
}

// Unavailable makes a 503 problem with Retry-After in seconds.
func Unavailable(retryAfter int, format string, args ...any) *Problem {
	p := Errorf(http.StatusServiceUnavailable, "unavailable", format, args...)
	p.RetryAfter = retryAfter
	return p
}

// AsProblem returns err as it is answered: a *Problem as it is;
// events.FieldErrors as Invalid; the log's error classes as 409, 503 and 507;
// anything else as a 500 whose cause goes to the log and not to the caller.
func AsProblem(r *http.Request, err error) *Problem {
	var p *Problem
	var fields events.FieldErrors
	switch {
	case errors.As(err, &p):
		c := *p
		p = &c
	case errors.As(err, &fields):
		p = Invalid(fields)
	case errors.Is(err, events.ErrConflict):
		p = Errorf(http.StatusConflict, "conflict", "the resource changed meanwhile; read it and try again")
	case errors.Is(err, events.ErrUnavailable), errors.Is(err, events.ErrUnknownOutcome):
		p = Unavailable(1, "the event log cannot be reached or did not answer; try again with the same Idempotency-Key")
	case errors.Is(err, events.ErrFull):
		p = Errorf(http.StatusInsufficientStorage, "log_full", "the event log is full; nothing was written")
	default:
		slog.ErrorContext(r.Context(), "request failed", "method", r.Method, "path", r.URL.Path, "request_id", RequestID(r), "err", err)
		p = Errorf(http.StatusInternalServerError, "internal", "an internal error; give support the request_id")
	}
	p.RequestID = RequestID(r)
	return p
}

// Write answers err, as AsProblem says it.
func Write(w http.ResponseWriter, r *http.Request, err error) {
	p := AsProblem(r, err)
	b := p.Render(w.Header())
	w.WriteHeader(p.Status)
	w.Write(b)
}

// Render sets the headers that belong to p and returns its body.
func (p *Problem) Render(h http.Header) []byte {
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if p.Status == http.StatusUnauthorized && h.Get("WWW-Authenticate") == "" { // RFC 9110, 11.6.1
		h.Set("WWW-Authenticate", `Bearer realm="`+string(events.Builtin)+`"`)
	}
	h.Set("Content-Type", problemType)
	h.Set("Cache-Control", "no-store")
	return p.encode()
}

const problemType = "application/problem+json"

// encode returns the problem as JSON. What an answer repeats of its question may
// be no text, or cut in the middle of a character.
func (p *Problem) encode() []byte {
	b, err := json.Marshal(p, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return []byte(`{"type":"about:blank","title":"Internal Server Error","status":500,"code":"internal"}`)
	}
	return b
}

// WriteJSON answers v as JSON with the given status, without caching.
func WriteJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		Write(w, r, fmt.Errorf("encode answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(b)
}

// One is the answer that carries one resource; Position is set on writes.
type One struct {
	Data     any              `json:"data"`
	Position *events.Position `json:"position,omitzero"`
}

// List is the answer that carries one page.
type List struct {
	Data       any     `json:"data"`
	NextCursor *string `json:"next_cursor"` // null on the last page
}

// Decode reads the request's JSON body into v, strictly: at most MaxBody bytes,
// UTF-8, application/json, one value, no unknown and no repeated members. The
// error is a *Problem that names the member where it can.
func Decode(r *http.Request, v any) error {
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if t, _, err := mime.ParseMediaType(ct); err != nil || t != "application/json" {
			return Errorf(http.StatusUnsupportedMediaType, "unsupported_media_type", "want Content-Type application/json")
		}
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	if err != nil {
		return Errorf(http.StatusBadRequest, "bad_body", "the body could not be read")
	}
	if len(b) > MaxBody {
		return Errorf(http.StatusRequestEntityTooLarge, "body_too_large", "want a body of at most %d bytes", MaxBody)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return Errorf(http.StatusBadRequest, "bad_body", "want a JSON body")
	}
	return decode(b, v)
}

func decode(b []byte, v any) error {
	err := json.Unmarshal(b, v, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	var sem *json.SemanticError
	if errors.As(err, &sem) {
		field := pointerToPath(string(sem.JSONPointer))
		p := Errorf(http.StatusUnprocessableEntity, codeInvalid, "1 field(s) are not acceptable")
		msg, code := "the value has the wrong form", "invalid"
		switch {
		case errors.Is(err, json.ErrUnknownName):
			msg, code = "no such field", "unknown_field"
		case sem.Err != nil:
			msg = sem.Err.Error()
		case sem.GoType != nil:
			msg = fmt.Sprintf("a JSON %s does not fit here", kindName(sem.JSONKind))
		}
		p.Errors = events.FieldErrors{{Field: field, Code: code, Message: msg}}
		return p
	}
	var syn *jsontext.SyntacticError
	if errors.As(err, &syn) {
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return Errorf(http.StatusBadRequest, "bad_body", "the field %s stands twice", pointerToPath(string(syn.JSONPointer)))
		}
		return Errorf(http.StatusBadRequest, "bad_body", "not valid JSON at byte %d", syn.ByteOffset)
	}
	return Errorf(http.StatusBadRequest, "bad_body", "not valid JSON")
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "boolean"
	case '"':
		return "string"
	case '0':
		return "number"
	case '{':
		return "object"
	case '[':
		return "array"
	}
	return "value"
}

// pointerToPath turns "/resources/0/id" into "resources[0].id".
func pointerToPath(ptr string) string {
	out := ""
	for tok := range jsontext.Pointer(ptr).Tokens() {
		if _, err := strconv.Atoi(tok); err == nil {
			out += "[" + tok + "]"
			continue
		}
		if out != "" {
			out += "."
		}
		if len(tok) > 40 {
			tok = tok[:40] + "…"
		}
		out += tok
	}
	return out
}

// RequestIDHeader carries the id that joins the entries of one request.
const RequestIDHeader = "X-Request-Id"

// WithRequestID gives each request an id ("req_" and 26 characters), which the
// answer repeats. A client's own id is not taken over: it could forge the record.
func WithRequestID(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := "req_" + rand.Text()
		r.Header.Set(RequestIDHeader, id)
		w.Header().Set(RequestIDHeader, id)
		next.ServeHTTP(w, r)
	})
}

// RequestID returns the id that WithRequestID gave.
func RequestID(r *http.Request) string { return r.Header.Get(RequestIDHeader) }

// ClientIP returns the address of the peer of the connection, unmapped.
func ClientIP(r *http.Request) netip.Addr {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Addr{}
	}
	return a.Unmap().WithZone("")
}

// Plain returns the first max characters of what a client says of itself as text
// that an event may hold: valid UTF-8 without control characters.
func Plain(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	for i := range s {
		if max == 0 {
			return s[:i]
		}
		max--
	}
	return s
}

// Authenticator tells who stands at the door. The error is a *Problem (401, or
// 503 when the verifier is stale). It is implemented by verifier.
type Authenticator interface {
	Authenticate(r *http.Request) (events.Principal, error)
}

// Authorize authenticates and insists on one scope of the built-in keyspace.
func Authorize(a Authenticator, r *http.Request, scope string) (events.Principal, error) {
	p, err := a.Authenticate(r)
	if err != nil {
		return p, err
	}
	if !p.Has(scope) {
		return p, Errorf(http.StatusForbidden, "scope_missing", "this needs a key of keyspace %q with scope %q", events.Builtin, scope)
	}
	return p, nil
}
