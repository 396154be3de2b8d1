package commands

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// Code says why a command was refused. The set is closed.
type Code string

// The codes of refusals. Bad fields are input.FieldErrors instead (422 invalid).
const (
	CodeNotFound          Code = "not_found"              // or out of the caller's reach, which looks the same
	CodeAlready           Code = "already"                // the key is already what was asked for
	CodeState             Code = "state"                  // the key's life does not admit it any more
	CodeAlreadyRotated    Code = "already_rotated"        // names the successor
	CodeScopesFixed       Code = "scopes_fixed"           // the keyspace fixes what a key holds at its creation
	CodeViolations        Code = "violations"             // a definition that keys which live do not fit
	CodeWidening          Code = "widening"               // a definition by which keys that live gain power
	CodeHolders           Code = "holders"                // a deleted role that keys which live hold still
	CodeDuplicateName     Code = "duplicate_name"         // a live key of the tenant holds the name
	CodeDigestKnown       Code = "digest_known"           // a key has the digest that was to be imported
	CodeLastAdmin         Code = "last_admin"             // nobody could administer Keytrail after it
	CodeBeyondOwnPower    Code = "beyond_own_power"       // the caller does not hold what it would give or touch
	CodeBuiltinProtected  Code = "builtin_protected"      // the built-in keyspace is not defined through an endpoint
	CodePrecondition      Code = "precondition_failed"    // the resource does not stand at the revision that If-Match or If-None-Match asks for
	CodeIdempotencyReused Code = "idempotency_key_reused" // the same Idempotency-Key with another request
	CodeSecret            Code = "secret"                 // a secret stands where text is stored, or an id belongs
	CodeConfirm           Code = "confirm"                // what is confirmed is not what the preview has told
	CodeCursor            Code = "cursor"                 // a cursor of another listing
)

var codeStatus = map[Code]int{
	CodeNotFound:          http.StatusNotFound,
	CodeAlready:           http.StatusConflict,
	CodeState:             http.StatusConflict,
	CodeAlreadyRotated:    http.StatusConflict,
	CodeScopesFixed:       http.StatusConflict,
	CodeViolations:        http.StatusConflict,
	CodeWidening:          http.StatusConflict,
	CodeHolders:           http.StatusConflict,
	CodeDuplicateName:     http.StatusConflict,
	CodeDigestKnown:       http.StatusConflict,
	CodeLastAdmin:         http.StatusConflict,
	CodeBeyondOwnPower:    http.StatusForbidden,
	CodeBuiltinProtected:  http.StatusForbidden,
	CodePrecondition:      http.StatusPreconditionFailed,
	CodeIdempotencyReused: http.StatusUnprocessableEntity,
	CodeSecret:            http.StatusUnprocessableEntity,
	CodeConfirm:           http.StatusConflict,
	CodeCursor:            http.StatusUnprocessableEntity,
}

// Refusal is a command that was understood and refused. Nothing was written.
type Refusal struct {
	Code   Code
	Detail string // a sentence for people, without secrets
	Field  string // the field at fault, "" when it is not one field
	hides  bool   // not_found only: it exists, out of the caller's reach
	etag   string // of the resource, when its revision is what is wrong
}

func (e *Refusal) Error() string { return string(e.Code) + ": " + e.Detail }

// Denied returns the reason that the refusal has on the record of uses: the caller
// may not do what it asked for, which a not_found may hide. ReasonNone for all
// other refusals.
func (e *Refusal) Denied() events.Reason {
	if e.hides || e.Code == CodeBeyondOwnPower || e.Code == CodeBuiltinProtected {
		return events.ReasonBeyondOwnPower
	}
	return events.ReasonNone
}

// notFound refuses what does not exist, or what exists out of the caller's reach:
// both look the same to the caller, and hides tells them apart on the record.
func notFound(hides bool, format string, args ...any) *Refusal {
	r := refuse(CodeNotFound, "", format, args...)
	r.hides = hides
	return r
}

// Problem returns the refusal as the endpoint answers it.
func (e *Refusal) Problem() *api.Problem {
	p := api.Errorf(codeStatus[e.Code], string(e.Code), "%s", e.Detail)
	if e.Field != "" {
		p.Errors = input.FieldErrors{{Field: e.Field, Code: string(e.Code), Message: e.Detail}}
	}
	return p
}

func refuse(code Code, field, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// problem turns what a command returned into what api.Write knows.
func problem(err error) error {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Problem()
	}
	return err
}
