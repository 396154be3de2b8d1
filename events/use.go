package events

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Reason is the outcome of one verification: ok, or why it was denied. The set
// is closed; the numbers are on the wire and never change.
type Reason uint8

// The reasons.
const (
	ReasonNone               Reason = 0 // not a decision
	ReasonOK                 Reason = 1
	ReasonKeyMissing         Reason = 2
	ReasonKeyMalformed       Reason = 3
	ReasonKeyUnknown         Reason = 4
	ReasonKeyRevoked         Reason = 5
	ReasonKeyExpired         Reason = 6
	ReasonKeyDisabled        Reason = 7
	ReasonAddressNotAllowed  Reason = 8
	ReasonScopeMissing       Reason = 9
	ReasonResourceNotAllowed Reason = 10
	ReasonRateLimited        Reason = 11
	ReasonVerifierStale      Reason = 12
	ReasonHTTPSRequired      Reason = 13
	ReasonBeyondOwnPower     Reason = 14 // at Keytrail's own endpoints only: the command exceeds the caller's power or reach
)

// LastReason is the reason with the highest number, for tables by reason.
const LastReason = ReasonBeyondOwnPower

var reasonNames = [...]string{
	ReasonNone:               "",
	ReasonOK:                 "ok",
	ReasonKeyMissing:         keyspace.FailureKeyMissing,
	ReasonKeyMalformed:       keyspace.FailureKeyMalformed,
	ReasonKeyUnknown:         keyspace.FailureKeyUnknown,
	ReasonKeyRevoked:         keyspace.FailureKeyRevoked,
	ReasonKeyExpired:         keyspace.FailureKeyExpired,
	ReasonKeyDisabled:        keyspace.FailureKeyDisabled,
	ReasonAddressNotAllowed:  keyspace.FailureAddressNotAllowed,
	ReasonScopeMissing:       keyspace.FailureScopeMissing,
	ReasonResourceNotAllowed: keyspace.FailureResourceNotAllowed,
	ReasonRateLimited:        keyspace.FailureRateLimited,
	ReasonVerifierStale:      keyspace.FailureVerifierStale,
	ReasonHTTPSRequired:      keyspace.FailureHTTPSRequired,
	ReasonBeyondOwnPower:     "beyond_own_power",
}

// Reasons lists the closed set in the order of their numbers.
func Reasons() []Reason {
	out := make([]Reason, 0, len(reasonNames)-1)
	for i := 1; i < len(reasonNames); i++ {
		out = append(out, Reason(i))
	}
	return out
}

// String returns the reason's name, as "scope_missing".
func (r Reason) String() string {
	if int(r) >= len(reasonNames) {
		return "reason_" + strconv.Itoa(int(r))
	}
	return reasonNames[r]
}

// Allowed reports whether the decision was to allow.
func (r Reason) Allowed() bool { return r == ReasonOK }

// ParseReason reads what String prints of the closed set.
func ParseReason(s string) (Reason, error) {
	for i := 1; i < len(reasonNames); i++ {
		if reasonNames[i] == s {
			return Reason(i), nil
		}
	}
	return 0, fmt.Errorf("reason %s: want one of %s", input.Echo(s), strings.Join(reasonNames[1:], ", "))
}

// MarshalText implements encoding.TextMarshaler.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is as strict as ParseReason.
func (r *Reason) UnmarshalText(b []byte) (err error) {
	*r, err = ParseReason(string(b))
	return err
}

// NodeID names a verifier node: the grammar of TenantID. It is a token of the
// subject of the node's uses.
type NodeID string

// Validate reports whether the id follows its grammar.
func (n NodeID) Validate() error {
	if !nameWord.Match(string(n)) {
		return fmt.Errorf("node %s: want 1 to 64 letters, digits, '_' or '-', not starting with '-'", input.Echo(n))
	}
	return nil
}

// Use is one verification decision.
type Use struct {
	Time     Time
	Keyspace KeyspaceID // "" when the request named none and the key is unknown
	Tenant   TenantID   // "" when the key is unknown
	Key      KeyID      // zero when the key is unknown
	Reason   Reason
	Scope    string   // the scope asked for, "" for none
	Resource Resource // the resource asked for
	IP       netip.Addr
	Cost     uint32 // tokens asked of the limit; at least 1
	Seq      Seq    // position in the lifecycle log at which it was decided

	Endpoint  string    // which of Keytrail's own endpoints an operator called, as "GET /v1/keys/{id}"; "" for a product's uses
	RequestID RequestID // the HTTP request behind it: of denied uses and of operators' calls; else zero
}

// maxEndpoint bounds the name of an endpoint, in characters.
const maxEndpoint = 128

// ValidEndpoint reports whether s names an endpoint: a method, a space and the
// pattern of a path, as "PUT /v1/keys/{id}/scopes".
func ValidEndpoint(s string) error {
	method, path, _ := strings.Cut(s, " ")
	ok := len(s) <= maxEndpoint && len(method) >= 3 && strings.HasPrefix(path, "/")
	for _, c := range []byte(method) {
		ok = ok && c >= 'A' && c <= 'Z'
	}
	for _, c := range []byte(path) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("/{}_.-", c) >= 0)
	}
	if !ok {
		return fmt.Errorf("endpoint %s: want a method and the pattern of a path, as \"GET /v1/keys/{id}\"", input.Echo(s))
	}
	return nil
}

// UseID names one use for ever: node, epoch and the number in the epoch.
type UseID struct {
	Node  NodeID
	Epoch int64
	N     uint64
}

// String returns "<node>/<epoch>/<n>".
func (u UseID) String() string {
	return string(u.Append(make([]byte, 0, 64)))
}

// Append appends what String returns to b.
func (u UseID) Append(b []byte) []byte {
	b = append(append(b, u.Node...), '/')
	b = append(strconv.AppendInt(b, u.Epoch, 10), '/')
	return strconv.AppendUint(b, u.N, 10)
}

// ParseUseID reads what String prints.
func ParseUseID(s string) (UseID, error) {
	parts := strings.Split(s, "/")
	if len(parts) == 3 {
		epoch, err1 := strconv.ParseInt(parts[1], 10, 64)
		n, err2 := strconv.ParseUint(parts[2], 10, 64)
		u := UseID{NodeID(parts[0]), epoch, n}
		if err1 == nil && err2 == nil && u.Node.Validate() == nil && u.String() == s {
			return u, nil
		}
	}
	return UseID{}, fmt.Errorf("use id %s: want <node>/<epoch>/<n>", input.Echo(s))
}

// BatchKind says what a message of the use stream is.
type BatchKind uint8

// The kinds. An epoch is open; uses, gaps and suppressed ones in any order; close.
// The numbers are on the wire.
const (
	BatchUses  BatchKind = 1 // Uses numbered First, First+1, ...
	BatchOpen  BatchKind = 2 // the epoch begins; nothing is numbered
	BatchClose BatchKind = 3 // the epoch ended in order; First-1 is its last number
	BatchGap   BatchKind = 4 // Count decisions from number First on were made and lost; 0 = an unknown number, up to the epoch's end
	// BatchSuppressed says of decisions on keys that are not known how many were
	// made, by second, block of addresses, keyspace and reason: beyond its budget a
	// node counts them only.
	BatchSuppressed BatchKind = 5
)

// UseBatch is one message of the use stream.
type UseBatch struct {
	Log   LogID // the lifecycle log that the positions belong to
	Node  NodeID
	Epoch int64 // microseconds since the Unix epoch when the node started: grows from start to start
	Kind  BatchKind
	First uint64
	Count uint64 // BatchGap only
	Note  string // BatchGap only: why, for people, at most 200 characters
	Since Time   // BatchGap only: the lost decisions were made from here on, by the node's clock; 0 = not known
	Until Time   // BatchGap only: and up to here; 0 = not known
	Uses  []Use  // BatchUses only

	Tallies []Tally // BatchSuppressed only: their counts together are the numbers from First on
}

// Len returns how many numbers of the epoch the batch accounts for.
func (b *UseBatch) Len() uint64 {
	switch b.Kind {
	case BatchUses:
		return uint64(len(b.Uses))
	case BatchGap:
		return b.Count
	case BatchSuppressed:
		n := uint64(0)
		for i := range b.Tallies {
			n += b.Tallies[i].Count
		}
		return n
	}
	return 0
}

// LastTime returns when the last decision that the batch accounts for was made,
// or the epoch began; 0 when that is not known.
func (b *UseBatch) LastTime() Time {
	switch b.Kind {
	case BatchUses:
		return b.Uses[len(b.Uses)-1].Time
	case BatchOpen:
		return Time(b.Epoch / 1000)
	case BatchGap:
		return b.Until
	case BatchSuppressed:
		last := Time(0)
		for i := range b.Tallies {
			last = max(last, b.Tallies[i].Until)
		}
		return last
	}
	return 0
}

// UsePrefix starts every subject of the use stream; the node's id follows.
const UsePrefix = "kt.use."

// UseMessage is one stored message of the use stream.
type UseMessage struct {
	Seq    Seq  // in the use stream
	Stored Time // by the log's own clock, which may have been set: it can fall from one message to the next
	Node   NodeID
	Data   []byte // DecodeUses reads it
}

// UseSink is where a verifier node writes its uses.
type UseSink interface {
	// Publish stores one encoded batch under the node's subject, durable on
	// return, and returns its sequence. It stores it only while the node's last
	// message has the sequence expect (0: the node has none, or retention took
	// them all); so a process that another one has replaced writes nothing more.
	//
	// id names this batch alone and must be unguessable: the stream drops a
	// message whose id it knows, whoever sent it. A call that is repeated with the
	// same arguments, before the next batch, stores the batch once and returns the
	// same sequence: this settles ErrUnknownOutcome.
	//
	// Errors: a *FencedError when another message of the node follows expect, and
	// nothing is stored; else as Log.Append's, without ErrConflict.
	Publish(ctx context.Context, node NodeID, id string, expect Seq, data []byte) (Seq, error)
	// Tail returns the last message stored under the node's subject; ok is false
	// when there is none.
	Tail(ctx context.Context, node NodeID) (m UseMessage, ok bool, err error)
}

// ErrFenced is the class of FencedError.
var ErrFenced = errors.New("another process writes under this node's name")

// FencedError says that a message of another process follows the node's last
// message that the caller knows of.
type FencedError struct {
	Last UseMessage // the node's last message now
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("%v: message %d of the use stream, stored at %s, is not of this one", ErrFenced, e.Last.Seq, e.Last.Stored)
}

// Unwrap returns ErrFenced.
func (e *FencedError) Unwrap() error { return ErrFenced }

// UseSource is where the auditor reads all uses.
type UseSource interface {
	// ReadUses returns messages after the given sequence, in order, at most max,
	// at least one; it waits for the first until ctx ends. A sequence that
	// retention has already taken is a *TrimmedError: those uses are gone from
	// the stream and must be written down as a gap.
	ReadUses(ctx context.Context, after Seq, max int) ([]UseMessage, error)
	// LastUse returns the sequence of the last message, 0 for an empty stream.
	LastUse(ctx context.Context) (Seq, error)
}

// LastUseAtLeastSource is a UseSource that does not take one answer for the loss of
// its end: LastUseAtLeast is to LastUse as Log's LastAtLeast is to Last.
type LastUseAtLeastSource interface {
	UseSource
	LastUseAtLeast(ctx context.Context, seq Seq) (Seq, error)
}

// LastUseAtLeast returns the sequence of the last message to a caller that knows
// message seq to be stored. An answer before seq means that the stream's end is lost.
func LastUseAtLeast(ctx context.Context, uses UseSource, seq Seq) (Seq, error) {
	if u, ok := uses.(LastUseAtLeastSource); ok {
		return u.LastUseAtLeast(ctx, seq)
	}
	return uses.LastUse(ctx)
}

// CopiedSource is a UseSource that is told how far its reader has come, so that it
// knows which messages somebody still needs.
type CopiedSource interface {
	UseSource
	// Copied tells that nobody needs the messages up to seq any more. It may get lost:
	// tell it again now and then.
	Copied(seq Seq) error
}

// TrimmedError says that the use stream no longer holds what was asked for.
type TrimmedError struct {
	After Seq // asked for what follows it
	First Seq // the first sequence that is still there
}

func (e *TrimmedError) Error() string {
	return fmt.Sprintf("the use stream begins at %d, after %d: messages in between are past its retention", e.First, e.After)
}
