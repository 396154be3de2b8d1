package audit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/keytrail/keytrail/internal/api"
)

// ErrUnavailable says that ClickHouse cannot be reached or cannot answer now: a
// *Fault says which. The same call may be made again later.
var ErrUnavailable = errors.New("ClickHouse does not answer now")

// Fault is an answer of ClickHouse that its operator can do something about, or
// the lack of an answer. It is ErrUnavailable if the same call may succeed later.
type Fault struct {
	// Reason is a sentence for people, without values of the question.
	Reason string
	// Later is true if waiting may mend it.
	Later bool

	err error
}

func (f *Fault) Error() string { return f.Reason + ": " + f.err.Error() }

// Unwrap returns what ClickHouse or the driver said.
func (f *Fault) Unwrap() error { return f.err }

// Problem is what a caller of an endpoint is told: 503, with Retry-After if the
// same call may succeed later.
func (f *Fault) Problem() *api.Problem {
	const text = "%s; nothing is lost, the record catches up when it can"
	if f.Later {
		return api.Unavailable(2, text, f.Reason)
	}
	return api.Errorf(http.StatusServiceUnavailable, "copy_refused", text, f.Reason)
}

// Is reports Later as ErrUnavailable.
func (f *Fault) Is(target error) bool { return target == ErrUnavailable && f.Later }

// faults are the classes of what goes wrong in a sound Keytrail, by ClickHouse's
// codes (its ErrorCodes.cpp). Any other code is a fault of ours.
var faults = []struct {
	codes  []int
	later  bool
	reason string
}{
	{[]int{codeNone, 198, 209, 210, 279}, true,
		"ClickHouse cannot be reached"},
	{[]int{159, 160}, true,
		"ClickHouse took longer than its time limit (max_execution_time)"},
	{[]int{codeBusy, 203, 473, 700, 745}, true,
		"ClickHouse has too much to do (a limit of concurrent queries, sessions or locks)"},
	{[]int{codeQueryRuns}, true,
		"ClickHouse still runs an earlier query of the same name"},
	{[]int{236, 394}, true,
		"ClickHouse cancelled the query, as a server does that stops"},
	{[]int{241, 173}, true,
		"ClickHouse has no memory left for this (max_server_memory_usage or max_memory_usage is reached): give it more memory, or narrow the question"},
	{[]int{252}, true,
		"ClickHouse merges more slowly than rows come (too many parts): its disk or processor is too slow, or merges are stopped"},
	{[]int{75, 243}, true,
		"ClickHouse cannot write to its disk: it is full or broken"},
	{[]int{225, 242, 999}, true,
		"ClickHouse's tables are read-only now: its Keeper does not answer"},
	{[]int{201}, true,
		"ClickHouse rejects the user of the DSN for now: its quota is used up"},
	{[]int{158, 307, 396}, false,
		"ClickHouse rejects the question: it passes a limit of the DSN's user on rows or bytes; raise the limit, or narrow the question"},
	{[]int{codeAuthentication, 192, 193, 194, 195}, false,
		"ClickHouse refuses the user or the password of the DSN"},
	{[]int{164, 497}, false,
		"ClickHouse's user of the DSN lacks a right on the copy's database"},
	{[]int{16, 47, 60, codeUnknownDatabase}, false,
		"ClickHouse lacks tables or columns of the copy: another release made them, or they were dropped; restart the auditor of this release, it makes them"},
}

// Codes that are also looked at one by one.
const (
	codeNone            = 0 // no answer
	codeUnknownDatabase = 81
	codeBusy            = 202
	codeQueryRuns       = 216
	codeAuthentication  = 516
)

// code returns the code of ClickHouse's own answer, codeNone if err is none.
func code(err error) int {
	var a *clickhouse.Exception
	if errors.As(err, &a) {
		return int(a.Code)
	}
	if b, ok := ch.AsException(err); ok {
		return int(b.Code)
	}
	if errors.Is(err, clickhouse.ErrAcquireConnTimeout) {
		return codeBusy // of our own pool
	}
	return codeNone
}

// fault says what was being done, and makes a *Fault of what the operator can do
// something about.
func (s *Store) fault(ctx context.Context, doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
	}
	return fmt.Errorf("%s: %w", doing, classify(err))
}

// classify makes a *Fault of an error of ClickHouse or its driver, if it is of one
// of the classes.
func classify(err error) error {
	c := code(err)
	for _, f := range faults {
		if slices.Contains(f.codes, c) {
			return &Fault{Reason: f.reason, Later: f.later, err: err}
		}
	}
	return err
}
