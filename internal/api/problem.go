package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// Problem is an error answer after RFC 9457. It implements error, so that an
// endpoint returns it and Routes.Handle writes it.
type Problem struct {
	Type      string            `json:"type"` // "about:blank": code says which it is
	Title     string            `json:"title"`
	Status    int               `json:"status"`
	Detail    string            `json:"detail,omitzero"`
	Code      string            `json:"code"` // closed set, for machines
	RequestID string            `json:"request_id,omitzero"`
	Errors    input.FieldErrors `json:"errors,omitempty"` // one per bad field

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
func Invalid(errs input.FieldErrors) *Problem {
	detail := "1 invalid field"
	if len(errs) != 1 {
		detail = strconv.Itoa(len(errs)) + " invalid fields"
	}
	p := Errorf(http.StatusUnprocessableEntity, codeInvalid, "%s", detail)
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
// input.FieldErrors as Invalid; the log's error classes as 409, 503 and 507;
// anything else as a 500 whose cause goes to the log and not to the caller.
func AsProblem(r *http.Request, err error) *Problem {
	var p *Problem
	var fields input.FieldErrors
	switch {
	case errors.As(err, &p):
		c := *p
		p = &c
	case errors.As(err, &fields):
		p = Invalid(fields)
	case errors.Is(err, events.ErrConflict):
		p = Errorf(http.StatusConflict, "conflict", "the resource changed meanwhile; read it and try again")
	case errors.Is(err, events.ErrNotStoring):
		cause := state(err, "the log server answers, and stores nothing: its disk is full or cannot be written")
		if reads(r) {
			p = Errorf(http.StatusInsufficientStorage, "log_not_storing", "%s. What the answer would rest on is not acknowledged yet. "+
				"Keys are still verified; ask again when the server has room and was restarted", cause)
			break
		}
		p = Errorf(http.StatusInsufficientStorage, "log_not_storing", "%s. Whether this change was written is not known yet. "+
			"Keys are still verified; when the server has room and was restarted, send this request again with the same Idempotency-Key", cause)
	case errors.Is(err, events.ErrUnknownOutcome):
		p = Unavailable(1, "the event log did not answer; %s", again(r, ""))
	case errors.Is(err, events.ErrUnavailable):
		p = Unavailable(1, "%s; %s", state(err, "the event log cannot be reached"), again(r, "nothing was written, "))
	case errors.Is(err, events.ErrFull):
		p = Errorf(http.StatusInsufficientStorage, "log_full", "%s; nothing was written. Keys are still verified, and can be read; "+
			"an operator has to give the log more room, because its events are never deleted", state(err, "the event log is full"))
	default:
		slog.ErrorContext(r.Context(), "request failed", "method", r.Method, "endpoint", r.Pattern, "request_id", RequestID(r), "err", err)
		p = Errorf(http.StatusInternalServerError, "internal", "an internal error; give support the request_id")
	}
	p.RequestID = RequestID(r)
	return p
}

// reads reports whether the request changes nothing.
func reads(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

// again says how the request is tried again; outcome is what became of a change.
func again(r *http.Request, outcome string) string {
	if reads(r) {
		return "try again"
	}
	return outcome + "try again with the same Idempotency-Key"
}

// state returns what is known of the log's state from the error of a write.
func state(err error, otherwise string) string {
	if s, ok := errors.AsType[*events.StateError](err); ok {
		return s.Reason
	}
	return otherwise
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

// encode returns the problem as JSON. Echoed input may be invalid UTF-8, or cut
// inside a character.
func (p *Problem) encode() []byte {
	b, err := json.Marshal(p, json.Deterministic(true), jsontext.AllowInvalidUTF8(true), jsontext.EscapeForHTML(true))
	if err != nil {
		return []byte(`{"type":"about:blank","title":"Internal Server Error","status":500,"code":"internal"}`)
	}
	return b
}
