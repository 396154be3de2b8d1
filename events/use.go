package events

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
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
)

var reasonNames = [...]string{"", "ok", "key_missing", "key_malformed", "key_unknown", "key_revoked", "key_expired",
	"key_disabled", "address_not_allowed", "scope_missing", "resource_not_allowed", "rate_limited", "verifier_stale", "https_required"}

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
	return 0, fmt.Errorf("reason %q: want one of %s", clip(s), strings.Join(reasonNames[1:], ", "))
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
	if !nameWord.match(string(n)) {
		return fmt.Errorf("node %q: want 1 to 64 letters, digits, '_' or '-', not starting with '-'", clip(string(n)))
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
}

// UseID names one use for ever: node, epoch and the number in the epoch.
type UseID struct {
	Node  NodeID
	Epoch int64
	N     uint64
}

// String returns "<node>/<epoch>/<n>".
func (u UseID) String() string {
	return string(u.Node) + "/" + strconv.FormatInt(u.Epoch, 10) + "/" + strconv.FormatUint(u.N, 10)
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
	return UseID{}, fmt.Errorf("use id %q: want <node>/<epoch>/<n>", clip(s))
}

// BatchKind says what a message of the use stream is.
type BatchKind uint8

// The kinds. An epoch is open, uses and gaps in any order, close. The numbers
// are on the wire.
const (
	BatchUses  BatchKind = 1 // Uses numbered First, First+1, ...
	BatchOpen  BatchKind = 2 // the epoch begins; nothing is numbered
	BatchClose BatchKind = 3 // the epoch ended in order; First-1 is its last number
	BatchGap   BatchKind = 4 // Count decisions from number First on were made and lost; 0 = an unknown number, up to the epoch's end
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
	Uses  []Use  // BatchUses only
}

// Len returns how many numbers of the epoch the batch accounts for.
func (b *UseBatch) Len() uint64 {
	switch b.Kind {
	case BatchUses:
		return uint64(len(b.Uses))
	case BatchGap:
		return b.Count
	}
	return 0
}

// MessageID returns the id under which the stream stores the batch once:
// "<node>/<epoch>/<kind>/<first>".
func (b *UseBatch) MessageID() string {
	return fmt.Sprintf("%s/%d/%d/%d", b.Node, b.Epoch, b.Kind, b.First)
}

// UsePrefix starts every subject of the use stream; the node's id follows.
const UsePrefix = "kt.use."

// UseMessage is one stored message of the use stream.
type UseMessage struct {
	Seq    Seq  // in the use stream
	Stored Time // by the log's own clock; never before that of a lower Seq that the same reader was given
	Node   NodeID
	Data   []byte // DecodeUses reads it
}

// UseSink is where a verifier node writes its uses.
type UseSink interface {
	// Publish stores one encoded batch under the node's subject, durable on
	// return, once at most per id within the stream's deduplication window (two
	// minutes). Errors as Log.Append's; ErrUnknownOutcome is settled by calling
	// again with the same id. It may be called concurrently.
	Publish(ctx context.Context, node NodeID, id string, data []byte) (Seq, error)
	// Tail returns the last message stored under the node's subject; ok is false
	// when there is none.
	Tail(ctx context.Context, node NodeID) (m UseMessage, ok bool, err error)
}

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

// TrimmedError says that the use stream no longer holds what was asked for.
type TrimmedError struct {
	After Seq // asked for what follows it
	First Seq // the first sequence that is still there
}

func (e *TrimmedError) Error() string {
	return fmt.Sprintf("the use stream begins at %d, after %d: messages in between are past its retention", e.First, e.After)
}
