package events

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events/input"
)

// Head says how far one log reaches: it has Size events, and Root is the root of
// the Merkle tree over them (RFC 6962). A zero Root is not known.
type Head struct {
	Log  LogID `json:"log"`
	Size Seq   `json:"size"`
	Root Hash  `json:"root,omitzero"`
}

// Floor is the head that Leases.Raise has made durable: every command that was
// acknowledged before is among its first Size events.
type Floor struct {
	Head
	Release   Release    `json:"release,omitzero"`   // which release every event of the log may need: each process that runs has it or a newer one; "" = the first
	Allocator InstanceID `json:"allocator,omitzero"` // which run of which node leases the tokens of limits; zero = none was appointed
	Seq       Seq        `json:"-"`                  // where it stands in the log of leases; 0 = no floor was ever raised
}

// Covers reports whether the floor says already what raising it to h would say. A
// floor whose root is not known does not cover a head of its size with a root. A
// head of its size with another root is of another history: the *CorruptError names
// both.
func (f *Floor) Covers(h Head) (bool, error) {
	switch {
	case f.Seq == 0 || f.Size < h.Size:
		return false, nil
	case f.Size > h.Size || h.Root.IsZero() || f.Root == h.Root:
		return true, nil
	case f.Root.IsZero():
		return false, nil
	}
	return false, &CorruptError{Seq: h.Size, Reason: fmt.Sprintf("two histories of one log: the tree over the first %d events has root %.16s here, "+
		"and the floor of the leases at %d, that control has raised, has root %.16s. The log was restored from an older copy and written on, or altered. "+
		"No command is acknowledged. Find out which history is right: keys that were revoked after the copy was made are alive in it", h.Size, h.Root, f.Seq, f.Root)}
}

// InstanceID names one run of a node, from its start to its end. It prints as a
// ULID; its time is that of the start by the node's own clock.
type InstanceID ulid.ULID

// NewInstanceID draws an id for a run that starts at the instant at.
func NewInstanceID(at time.Time) InstanceID {
	return InstanceID(ulid.MustNew(ulid.Timestamp(at), rand.Reader))
}

// ParseInstanceID reads what String prints.
func ParseInstanceID(s string) (InstanceID, error) {
	u, err := parseULID(s)
	if err != nil {
		return InstanceID{}, fmt.Errorf("instance %s: want a ULID of 26 characters", input.Echo(s))
	}
	return InstanceID(u), nil
}

// String returns the 26 characters of the ULID.
func (i InstanceID) String() string { return ulid.ULID(i).String() }

// MarshalText implements encoding.TextMarshaler.
func (i InstanceID) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (i *InstanceID) UnmarshalText(b []byte) (err error) {
	*i, err = ParseInstanceID(string(b))
	return err
}

// LeaseState says whether an instance may still answer.
type LeaseState string

// The states of a lease.
const (
	LeaseLive  LeaseState = "live"  // it may answer until its life is over
	LeaseEnded LeaseState = "ended" // it has stopped in order, and answers no more
)

// The bounds of a lease's life, in the record's own unit.
const (
	MinLeaseLife = time.Second
	MaxLeaseLife = 24 * time.Hour
)

// NodeLease is what one run of a node says about itself each time it renews its
// lease. A run has a record of its own, so that a process that takes over a name
// does not hide one that may still answer under it.
type NodeLease struct {
	Node      NodeID     `json:"node"`
	Instance  InstanceID `json:"instance"`
	State     LeaseState `json:"state"`
	LifeMS    int64      `json:"life_ms"`          // for how long after it asked the node may answer on this lease, or on any that it was granted before
	Floor     Seq        `json:"floor"`            // Floor.Seq of the floor that the lease stands on; Renew sets it
	First     Seq        `json:"first,omitzero"`   // Floor.Seq of the first lease that this run was granted; 0 = it holds none yet
	Applied   Head       `json:"applied"`          // what the node's view holds; a view never goes back
	Epoch     int64      `json:"epoch,omitzero"`   // the epoch of the node's ledger; 0 = none is open yet
	Decisions uint64     `json:"decisions"`        // how many decisions the node has numbered in that epoch
	Release   Release    `json:"release,omitzero"` // whose events the node reads; "" = the first
}

// Life returns for how long after it asked the node may answer on this lease.
func (l *NodeLease) Life() time.Duration { return time.Duration(l.LifeMS) * time.Millisecond }

// Validate reports the first member that a lease cannot have.
func (l *NodeLease) Validate() error {
	switch {
	case l.Node.Validate() != nil:
		return l.Node.Validate()
	case l.Instance == InstanceID{}:
		return errors.New("instance: want the id of this run of the node")
	case l.State != LeaseLive && l.State != LeaseEnded:
		return fmt.Errorf("state %s: want live or ended", input.Echo(l.State))
	case l.LifeMS < MinLeaseLife.Milliseconds() || l.LifeMS > MaxLeaseLife.Milliseconds():
		return fmt.Errorf("life_ms %d: want %d to %d milliseconds", l.LifeMS, MinLeaseLife.Milliseconds(), MaxLeaseLife.Milliseconds())
	case l.Applied.Log.IsZero():
		return errors.New("applied: want the log that the node follows")
	case l.Release != "":
		return l.Release.Validate()
	}
	return nil
}

// EncodeLease returns the record of a lease: one JSON object.
func EncodeLease(l *NodeLease) ([]byte, error) {
	if err := l.Validate(); err != nil {
		return nil, fmt.Errorf("lease: %w", err)
	}
	return json.Marshal(l)
}

// DecodeLease reads exactly what EncodeLease writes, and ignores the members that a
// later release adds at its end; everything else is an error
// that repeats nothing of data.
func DecodeLease(data []byte) (l NodeLease, err error) {
	err = decodeExactly(data, &l, func() ([]byte, error) { return EncodeLease(&l) })
	if err != nil {
		return NodeLease{}, fmt.Errorf("lease: %w", err)
	}
	return l, nil
}

// EncodeHead returns a head as one JSON object.
func EncodeHead(h *Head) ([]byte, error) {
	if h.Log.IsZero() {
		return nil, errors.New("head: log: want the identity of a log")
	}
	return json.Marshal(h)
}

// DecodeHead reads exactly what EncodeHead writes, and ignores the members that a
// later release adds at its end; everything else is an error
// that repeats nothing of data.
func DecodeHead(data []byte) (h Head, err error) {
	err = decodeExactly(data, &h, func() ([]byte, error) { return EncodeHead(&h) })
	if err != nil {
		return Head{}, fmt.Errorf("head: %w", err)
	}
	return h, nil
}

// EncodeFloor returns a floor as one JSON object, without its place in the log.
func EncodeFloor(f *Floor) ([]byte, error) {
	if f.Log.IsZero() {
		return nil, errors.New("floor: log: want the identity of a log")
	}
	if f.Release != "" {
		if err := f.Release.Validate(); err != nil {
			return nil, fmt.Errorf("floor: %w", err)
		}
	}
	return json.Marshal(f)
}

// DecodeFloor reads exactly what EncodeFloor writes, and ignores the members that a
// later release adds at its end; everything else is an error
// that repeats nothing of data.
func DecodeFloor(data []byte) (f Floor, err error) {
	err = decodeExactly(data, &f, func() ([]byte, error) { return EncodeFloor(&f) })
	if err != nil {
		return Floor{}, fmt.Errorf("floor: %w", err)
	}
	return f, nil
}

// maxLease bounds a record of a lease or a head.
const maxLease = 1 << 10

// errRecord repeats nothing of what was read.
var errRecord = errors.New("not a record as this release writes it")

// decodeExactly reads data into v and accepts it only if it is what encode prints of
// v, and after that the members that a later release may have added to the record.
func decodeExactly[T any](data []byte, v *T, encode func() ([]byte, error)) error {
	var record struct {
		Known T              `json:",embed"`
		Later jsontext.Value `json:",embed"`
	}
	if len(data) > maxLease || json.Unmarshal(data, &record) != nil {
		return errRecord
	}
	*v = record.Known
	if _, err := encode(); err != nil {
		return errRecord
	}
	if again, err := json.Marshal(&record); err != nil || !bytes.Equal(again, data) {
		return errRecord
	}
	return nil
}

// StoredLease is a lease as the log of leases holds it.
type StoredLease struct {
	NodeLease
	Seq    Seq  // its place in the log of leases
	Stored Time // by the server's clock, which says when the record is dropped; never compared with a clock of this machine
}

// LeaseGrant is what a renewal has proved.
type LeaseGrant struct {
	Floor Floor // the newest floor at some moment after Renew was called; without a record, where the log ended then: Floor.Seq is 0
	Seq   Seq   // where the node's own record stands; 0 = none was stored
}

// Leases is the log of leases: one floor, and one record for each run of each
// node. It is safe for concurrent use. eventlog implements it on JetStream,
// logtest in memory; logtest.TestLeases is this contract as an executable list.
//
// No method trusts a read: an answer rests on a write that the log has committed,
// or shows by its content that it is not older than one. The exception is a log on
// one server that stores nothing, as on a full disk: nobody else can lead it, so that
// its own word of where it ends is proof enough for Renew.
type Leases interface {
	// Raise makes sure that the floor's Size is at least h.Size: on return such a
	// floor is durable, and no lease that is renewed from now on stands on an older
	// one. It never lowers the floor. Concurrent calls share a write.
	// Errors: a *CorruptError: the floor is at h.Size with another root;
	// ErrUnavailable or ErrUnknownOutcome, in both cases the floor may have been raised
	// or not, and Raise may be called again, with ErrNotStoring when an operator has
	// made room; anything else is the caller's fault, or a floor of another log.
	Raise(ctx context.Context, h Head) error

	// RaiseRelease makes sure that the floor's Release is at least r: on return that is durable,
	// and every lease that is renewed from now on shows it. A floor must be there.
	// Errors: ErrNoFloor; ErrUnavailable or ErrUnknownOutcome as of Raise.
	RaiseRelease(ctx context.Context, r Release) error

	// Renew stores the record, with LeaseGrant.Floor.Seq as its Floor, if and only if
	// that floor is the newest at the moment when the record is stored, and tries
	// again with a newer floor until it succeeds or ctx ends. So every command that
	// was acknowledged before Renew was called is among the first Floor.Size events.
	// A log on one server that stores nothing grants the lease without a record
	// (LeaseGrant.Seq is 0), to a run whose last record others can still see. That
	// proves the same, and a list that comes meanwhile says so (NodeLeases.Unrecorded):
	// a run that is on it may answer until its life after the newest such list.
	// Errors: ErrUnavailable: there is no grant, though a record may be stored;
	// ErrNoFloor: no floor was raised yet, try again later; anything else is the
	// caller's fault, or a floor of another log.
	Renew(ctx context.Context, l NodeLease) (LeaseGrant, error)

	// Release stores the record as ended: its instance answers no more. It needs no
	// floor. Errors: ErrUnavailable: others wait until the life of its last lease is
	// over; anything else is the caller's fault.
	Release(ctx context.Context, l NodeLease) error

	// Nodes returns the newest record of every run of every node, by the order of
	// their places, and the floor, all as of one moment at which the floor stood at
	// atLeast or later. A record is dropped KeepLease after the life of its lease is
	// over. Errors: ErrUnavailable.
	Nodes(ctx context.Context, atLeast Seq) (NodeLeases, error)
}

// NodeLeases is the state of the log of leases at one moment.
type NodeLeases struct {
	Floor  Floor
	Leases []StoredLease
	// Unrecorded says that the log of leases stores nothing, as far as this process has
	// seen: each run on the list whose lease has not ended may be granted a lease now
	// that leaves no record.
	Unrecorded bool
	// Unreadable are the nodes with a record that is not as Keytrail writes it. Such
	// a node may answer for MaxLeaseLife after it: nothing is known about it. It is
	// dropped KeepLease later.
	Unreadable []NodeID
}

// KeepLease is for how long past its life the record of a lease is kept, by the
// servers' clocks. An hour is far more than clocks jump.
const KeepLease = time.Hour

// ErrNoFloor says that no floor was ever raised: control has not started yet.
var ErrNoFloor = errors.New("no floor was raised yet: it is when keytrail init or control has started on this log")

// Prompts carries a question to every node at once, and the answers. Nothing of it
// is durable, and any of it may be lost: who asks, asks again. eventlog implements it
// on NATS without JetStream, logtest in memory. It is safe for concurrent use.
type Prompts interface {
	// Ask asks every node to say what it has applied as soon as its view holds h.Size
	// events, again and again until ctx ends, and calls heard for each answer, one
	// at a time. An answer's Node is the one whose subject it came on; its Instance is
	// what the node says. It returns ctx's error, or why it cannot ask.
	Ask(ctx context.Context, h Head, heard func(NodeLease)) error

	// Listen calls asked for each question until ctx ends, one at a time, and returns
	// ctx's error, or why it cannot listen.
	Listen(ctx context.Context, asked func(Head)) error

	// Say answers, to whoever asks now, with the node's lease as it is at this moment.
	// It does not wait for anybody to hear it.
	Say(l NodeLease) error
}
