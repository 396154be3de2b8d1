package api

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Failure returns the problem as the rules of a keyspace take it.
func (p *Problem) Failure() *keyspace.Failure {
	f := &keyspace.Failure{
		Reason: "internal", Status: p.Status, Code: p.Code, Message: p.Detail,
		RequestID: p.RequestID, RetryAfter: int64(p.RetryAfter), Fields: p.Errors,
	}
	if p.Code == codeInvalid && len(p.Errors) > 0 {
		f.Message = faults(p.Errors)
	}
	switch p.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		f.Reason = keyspace.FailureInvalid
	case http.StatusForbidden:
		f.Reason = keyspace.FailureForbidden
	case http.StatusNotFound:
		f.Reason = keyspace.FailureNotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		f.Reason = keyspace.FailureConflict
	case http.StatusServiceUnavailable, http.StatusInsufficientStorage:
		f.Reason = keyspace.FailureUnavailable
	}
	return f
}

// faults says which fields are bad and why, for envelopes that have a message but
// no place for fields. Of many it tells the first.
func faults(errs input.FieldErrors) string {
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

// RenderFailure returns the answer to f that the keyspace gives: status, code and
// message as its rules have them for the reason, in its envelope, or as problem
// details where it has none. It does not change f. An endpoint of any transport sends it, with
// Retry-After when f has one.
func RenderFailure(rules *keyspace.Compiled, f *keyspace.Failure) (status int, contentType string, body []byte) {
	g := *f
	rules.Answer(&g)
	g.Title = http.StatusText(g.Status)
	if env := rules.Envelope; env != nil {
		if contentType = rules.Errors.ContentType; contentType == "" {
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
func WriteFailure(w http.ResponseWriter, r *http.Request, rules *keyspace.Compiled, f *keyspace.Failure) {
	g := *f
	if g.RequestID == "" {
		g.RequestID = RequestID(r)
	}
	status, contentType, body := RenderFailure(rules, &g)
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
