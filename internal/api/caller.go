package api

import (
	"errors"
	"net/http"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// Authenticator decides which operator calls one of Keytrail's own endpoints. It
// is implemented by verifier.
type Authenticator interface {
	// FindSecret finds the secrets of the keys that the node knows.
	events.SecretFinder
	// Knows reports whether the request presents a key that the node knows. It
	// decides nothing and leaves no record: it says whether a body is worth reading.
	Knows(r *http.Request) bool
	// Authenticate decides whether the request comes with a key of the built-in
	// keyspace that holds the scope ("" = any key), and takes a token of its limit.
	// endpoint is the pattern of the endpoint, as "PUT /v1/keys/{id}/scopes".
	//
	// A refusal is a *Problem (401, 403, 429, or 503 when the verifier is stale) and
	// on the record when it is returned. Otherwise the use goes on the record with
	// Caller.Record. The Caller is never nil; of a refused one the Principal is set
	// when the key is good and lacks the scope only.
	Authenticate(r *http.Request, scope, endpoint string) (*Caller, error)
}

// Caller is an authenticated operator and the one use that its call is on the
// record. A request has one; it is for one goroutine, but for Recheck.
type Caller struct {
	Principal events.Principal
	recheck   func() error
	record    func(events.Reason)
}

// NewCaller returns a caller whose use record appends to the ledger; nil when it
// is there already. recheck is what Recheck asks; nil: it may go on.
func NewCaller(p events.Principal, recheck func() error, record func(events.Reason)) *Caller {
	return &Caller{p, recheck, record}
}

// Recheck returns nil while the caller may still do what it was let in for, by the
// newest that the node knows, and else the *Problem that it would be answered now. It
// takes nothing of a limit and leaves no record. It is safe for concurrent use.
func (c *Caller) Recheck() error {
	if c.recheck == nil {
		return nil
	}
	return c.recheck()
}

// Record appends the use of the call to the ledger with the outcome that err
// means (Outcome). The first call counts; later ones do nothing. It must come
// before the answer: Routes.Handle sees to that.
func (c *Caller) Record(err error) {
	if record := c.record; record != nil {
		c.record = nil
		record(Outcome(err))
	}
}

// Outcome returns what err says about the authority of the caller: the reason of
// an error that implements Denied, such as a *Problem, and ok for all others. A
// request that is invalid, in conflict or failed was allowed to be made.
func Outcome(err error) events.Reason {
	var d interface{ Denied() events.Reason }
	if errors.As(err, &d) {
		if r := d.Denied(); r != events.ReasonNone {
			return r
		}
	}
	return events.ReasonOK
}

// Denied returns the reason that a use refused with this problem has on the
// record; ReasonNone when the problem is not one of authority.
func (p *Problem) Denied() events.Reason {
	switch p.Code {
	case "scope_missing":
		return events.ReasonScopeMissing
	case "beyond_own_power":
		return events.ReasonBeyondOwnPower
	}
	return events.ReasonNone
}

// ScopeMissing makes the 403 problem of an operator whose key lacks the scope.
func ScopeMissing(scope string) *Problem {
	return Errorf(http.StatusForbidden, "scope_missing", "this needs a key of keyspace %s with scope %s", input.Quote(events.Builtin), input.Quote(scope))
}

// recordingWriter puts the caller's use on the record before the answer begins.
type recordingWriter struct {
	http.ResponseWriter
	caller *Caller
}

func (w *recordingWriter) WriteHeader(status int) {
	w.caller.Record(nil)
	w.ResponseWriter.WriteHeader(status)
}

func (w *recordingWriter) Write(b []byte) (int, error) {
	w.caller.Record(nil)
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *recordingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
