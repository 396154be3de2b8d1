package commands

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// Code says why a command was refused. The set is closed.
type Code string

// The codes of refusals. Bad fields are events.FieldErrors instead (422 invalid).
const (
	CodeNotFound          Code = "not_found"              // or out of the caller's reach, which looks the same
	CodeAlready           Code = "already"                // the key is already what was asked for
	CodeState             Code = "state"                  // the key's life does not admit it any more
	CodeAlreadyRotated    Code = "already_rotated"        // names the successor
	CodeScopesFixed       Code = "scopes_fixed"           // the regime fixes what a key holds at its creation
	CodeViolations        Code = "violations"             // a definition that keys which live do not fit
	CodeDuplicateName     Code = "duplicate_name"         // a live key of the tenant holds the name
	CodeDigestKnown       Code = "digest_known"           // a key has the digest that was to be imported
	CodeLastAdmin         Code = "last_admin"             // nobody could administer Keytrail after it
	CodeBeyondOwnPower    Code = "beyond_own_power"       // the caller does not hold what it would give or touch
	CodeBuiltinProtected  Code = "builtin_protected"      // the built-in keyspace is not defined through a door
	CodeIdempotencyReused Code = "idempotency_key_reused" // the same Idempotency-Key with another request
	CodeCursor            Code = "cursor"                 // a cursor of another listing
	CodeQuery             Code = "unknown_parameter"      // a query parameter that the route does not have
)

var codeStatus = map[Code]int{
	CodeNotFound:          http.StatusNotFound,
	CodeAlready:           http.StatusConflict,
	CodeState:             http.StatusConflict,
	CodeAlreadyRotated:    http.StatusConflict,
	CodeScopesFixed:       http.StatusConflict,
	CodeViolations:        http.StatusConflict,
	CodeDuplicateName:     http.StatusConflict,
	CodeDigestKnown:       http.StatusConflict,
	CodeLastAdmin:         http.StatusConflict,
	CodeBeyondOwnPower:    http.StatusForbidden,
	CodeBuiltinProtected:  http.StatusForbidden,
	CodeIdempotencyReused: http.StatusUnprocessableEntity,
	CodeCursor:            http.StatusUnprocessableEntity,
	CodeQuery:             http.StatusUnprocessableEntity,
}

// Refusal is a command that was understood and refused. Nothing was written.
type Refusal struct {
	Code   Code
	Detail string // a sentence for people, without secrets
	Field  string // the field at fault, "" when it is not one field
}

func (e *Refusal) Error() string { return string(e.Code) + ": " + e.Detail }

// Problem returns the refusal as the door answers it.
func (e *Refusal) Problem() *api.Problem {
	p := api.Errorf(codeStatus[e.Code], string(e.Code), "%s", e.Detail)
	if e.Field != "" {
		p.Errors = events.FieldErrors{{Field: e.Field, Code: string(e.Code), Message: e.Detail}}
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
