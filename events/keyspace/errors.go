package keyspace

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events/input"
)

// ErrorRules are what a keyspace answers to its own clients when it refuses.
// Without an envelope the answer is RFC 9457 problem details.
type ErrorRules struct {
	ContentType string         `json:"content_type,omitzero"` // default application/json; with an envelope only
	Envelope    jsontext.Value `json:"envelope,omitzero"`     // an object whose strings may hold placeholders (CompileEnvelope); on the log without white space
	Answers     []ErrorAnswer  `json:"answers,omitempty"`     // a reason that none names is answered with the default
}

// ErrorAnswer is what the keyspace says for some reasons. What it leaves out takes
// the default.
type ErrorAnswer struct {
	Reasons []string `json:"reasons"`          // each of FailureReasons once at most
	Status  int      `json:"status,omitzero"`  // 400 to 599
	Code    string   `json:"code,omitzero"`    // for machines
	Message string   `json:"message,omitzero"` // for people; may hold {scope}, {resource}, {retry_after}
}

// The reasons of a refused verification, as events.Reason prints them, and of
// management answers.
const (
	FailureKeyMissing         = "key_missing"
	FailureKeyMalformed       = "key_malformed"
	FailureKeyUnknown         = "key_unknown"
	FailureKeyRevoked         = "key_revoked"
	FailureKeyExpired         = "key_expired"
	FailureKeyDisabled        = "key_disabled"
	FailureAddressNotAllowed  = "address_not_allowed"
	FailureScopeMissing       = "scope_missing"
	FailureResourceNotAllowed = "resource_not_allowed"
	FailureRateLimited        = "rate_limited"
	FailureVerifierStale      = "verifier_stale"
	FailureHTTPSRequired      = "https_required"

	FailureInvalid     = "invalid"     // a request with bad fields
	FailureNotFound    = "not_found"   // what is named does not exist, or is not visible
	FailureConflict    = "conflict"    // not possible as things stand
	FailureForbidden   = "forbidden"   // the caller may not do that
	FailureUnavailable = "unavailable" // something that is needed is down
)

// FailureReasons lists every reason that a keyspace may give an answer for: those of
// refused verifications, then those of management answers. The keys of products
// never meet events.ReasonBeyondOwnPower.
func FailureReasons() []string {
	return []string{FailureKeyMissing, FailureKeyMalformed, FailureKeyUnknown, FailureKeyRevoked, FailureKeyExpired, FailureKeyDisabled,
		FailureAddressNotAllowed, FailureScopeMissing, FailureResourceNotAllowed, FailureRateLimited, FailureVerifierStale, FailureHTTPSRequired,
		FailureInvalid, FailureNotFound, FailureConflict, FailureForbidden, FailureUnavailable}
}

// Failure is one refusal on its way to a client.
type Failure struct {
	Reason     string // one of FailureReasons
	Status     int    // HTTP status
	Title      string // of the status, as Unauthorized
	Code       string // for machines
	Message    string // for people
	RequestID  string
	Scope      string            // the scope asked for
	Resource   string            // the resource asked for, as kind/id
	RetryAfter int64             // seconds; 0 = not said
	Fields     input.FieldErrors // of FailureInvalid: one for each bad field
}

var (
	// JSON media types alone: a browser must not run an answer that repeats a request.
	contentTypeRE = regexp.MustCompile(`^application/([a-z0-9.-]+\+)?json(; ?charset=utf-8)?$`)
	codeRE        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$`)
)

// validate reports every fault of the rules, paths relative to them.
func (e *ErrorRules) validate() input.FieldErrors {
	var f input.FieldErrors
	if e.ContentType != "" {
		if len(e.ContentType) > 64 || !contentTypeRE.MatchString(e.ContentType) {
			f.Add("content_type", "invalid", "want a JSON media type: application/json, or application/ and a name that ends in +json")
		}
		if e.Envelope == nil {
			f.Add("content_type", "conflict", "want it with an envelope only: without one the answer is application/problem+json")
		}
	}
	if e.Envelope != nil {
		if _, err := CompileEnvelope(e.Envelope); err != nil {
			f.Add("envelope", "invalid", err.Error())
		}
	}
	known := FailureReasons()
	if len(e.Answers) > len(known) {
		f.Add("answers", "too_many", fmt.Sprintf("want at most %d", len(known)))
		return f
	}
	seen := map[string]bool{}
	for i := range e.Answers {
		a, p := &e.Answers[i], fmt.Sprintf("answers[%d]", i)
		if len(a.Reasons) == 0 {
			f.Add(p+".reasons", "required", "want at least one reason")
		}
		for j, r := range a.Reasons {
			path := fmt.Sprintf("%s.reasons[%d]", p, j)
			if !slices.Contains(known, r) {
				f.Add(path, "unknown_reason", fmt.Sprintf("reason %s: want one of %s", input.Echo(r), strings.Join(known, ", ")))
				if j > len(known) {
					break
				}
			} else if seen[r] {
				f.Add(path, "duplicate", fmt.Sprintf("reason %s has an answer already", input.Echo(r)))
			}
			seen[r] = true
		}
		if a.Status != 0 && (a.Status < 400 || a.Status > 599) {
			f.Add(p+".status", "invalid", "want 400 to 599")
		}
		if a.Code != "" && !codeRE.MatchString(a.Code) {
			f.Add(p+".code", "invalid", "want at most 64 letters, digits, '_', '.', ':' or '-'")
		}
		f.Text(p+".message", a.Message, 300)
		t, err := parseTemplate(a.Message)
		if err != nil {
			f.Add(p+".message", "invalid", err.Error())
		}
		for _, x := range t {
			if x.name != "" && x.name != "scope" && x.name != "resource" && x.name != "retry_after" {
				f.Add(p+".message", "invalid", fmt.Sprintf("{%s}: want only {scope}, {resource} and {retry_after} in a message", x.name))
			}
		}
	}
	return f
}
