package api

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events"
)

// Failure returns the problem as a regime's rules take it.
func (p *Problem) Failure() *events.Failure {
	f := &events.Failure{
		Reason: "internal", Status: p.Status, Code: p.Code, Message: p.Detail,
		RequestID: p.RequestID, RetryAfter: int64(p.RetryAfter), Fields: p.Errors,
	}
	if p.Code == codeInvalid && len(p.Errors) > 0 {
		f.Message = faults(p.Errors)
	}
	switch p.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		f.Reason = events.FailureInvalid
	case http.StatusForbidden:
		f.Reason = events.FailureForbidden
	case http.StatusNotFound:
		f.Reason = events.FailureNotFound
	case http.StatusConflict:
		f.Reason = events.FailureConflict
	case http.StatusServiceUnavailable, http.StatusInsufficientStorage:
		f.Reason = events.FailureUnavailable
	}
	return f
}

// faults says which fields are bad and why, for envelopes that have a message but
// no place for fields. Of many it tells the first.
func faults(errs events.FieldErrors) string {
	var b strings.Builder
	for i, e := range errs {
		if i == 3 {
			return b.String() + "; and " + strconv.Itoa(len(errs)-i) + " more"
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(e.Field + ": " + e.Message)
	}
	return b.String()
}

// RenderFailure returns the answer to f that the regime gives: status, code and
// message as def has them for the reason, in its envelope, or as problem details
// where env is nil. It does not change f. A door of any transport sends it, with
// Retry-After when f has one.
func RenderFailure(def *events.Definition, env *events.Envelope, f *events.Failure) (status int, contentType string, body []byte) {
	g := *f
	def.Answer(&g)
	g.Title = http.StatusText(g.Status)
	if env != nil {
		if contentType = def.Errors.ContentType; contentType == "" {
			contentType = "application/json"
		}
		return g.Status, contentType, env.Append(nil, &g)
	}
	p := &Problem{Type: "about:blank", Title: g.Title, Status: g.Status, Detail: g.Message, Code: g.Code, RequestID: g.RequestID, Errors: g.Fields}
	return g.Status, problemType, p.encode()
}

// WriteFailure answers f over HTTP, as RenderFailure says it. A failure without a
// request id takes the request's. Headers of its own that an answer needs beside
// Retry-After, as WWW-Authenticate, the caller has set.
func WriteFailure(w http.ResponseWriter, r *http.Request, def *events.Definition, env *events.Envelope, f *events.Failure) {
	g := *f
	if g.RequestID == "" {
		g.RequestID = RequestID(r)
	}
	status, contentType, body := RenderFailure(def, env, &g)
	if g.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(g.RetryAfter, 10))
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(body)
}

// Prefers reports whether the request's Prefer headers (RFC 7240) ask for the
// preference with this value. Names match in any case, of a name that stands
// twice the first counts, and what is not understood is ignored.
func Prefers(h http.Header, name, value string) bool {
	for _, line := range h.Values("Prefer") {
		for line != "" {
			var got, v string
			got, v, line = nextPreference(line)
			if strings.EqualFold(got, name) {
				return v == value
			}
		}
	}
	return false
}

// nextPreference cuts the first preference off a list of them, and drops its
// parameters.
func nextPreference(s string) (name, value, rest string) {
	i := strings.IndexAny(s, "=;,")
	if i < 0 {
		return trim(s), "", ""
	}
	name, s = trim(s[:i]), s[i:]
	if s[0] == '=' {
		value, s = word(strings.TrimLeft(s[1:], " \t"))
	}
	// Parameters may hold commas in quotes.
	for s != "" && s[0] != ',' {
		if s[0] == '"' {
			_, s = word(s)
			continue
		}
		s = s[1:]
	}
	return name, value, strings.TrimPrefix(s, ",")
}

// word cuts a token or a quoted string (RFC 9110, 5.6) off s.
func word(s string) (value, rest string) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, `;,"`)
		if i < 0 {
			i = len(s)
		}
		return trim(s[:i]), s[i:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:]
		case s[i] == '\\' && i+1 < len(s):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "" // it does not end: nothing of it is understood
}

func trim(s string) string { return strings.Trim(s, " \t") }
