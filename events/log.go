package events

import (
	"context"
	"errors"
)

// Write is one event to append and the place in the log where its aggregate's
// history must end for the append to be right.
type Write struct {
	Event Event
	// Expect is the sequence of the aggregate's last event, 0 for none. For the
	// second and later event of one aggregate in one Append it is ignored: they
	// follow the first.
	Expect Seq
}

// Log is the lifecycle log: every event of every aggregate, in one order, for
// ever. It is safe for concurrent use. eventlog implements it on JetStream,
// logtest in memory; logtest.TestLog is this contract as an executable list.
type Log interface {
	// ID returns the identity of the log, fixed at its initialisation.
	ID() LogID

	// Append stores all writes or none, in the order given, with consecutive
	// sequences, and returns the sequence of the last. On return they are durable
	// (fsynced; on a cluster by a majority) and every later Load sees them.
	// At most 100 writes of at most 1 MiB each.
	//
	// Errors, for errors.Is; anything else is a fault of the caller's events and
	// stored nothing:
	//   ErrConflict        an expectation does not hold; nothing is stored. Load, decide again.
	//   ErrUnavailable     nothing is stored; the same Append may be retried later.
	//   ErrFull            nothing is stored; an operator must make room.
	//   ErrUnknownOutcome  it may or may not be stored. Append the very same writes
	//                      again: an event id is stored once at most, and the answer
	//                      is then definite. If that answer is ErrConflict, Load tells
	//                      by event id whether the first try was stored.
	Append(ctx context.Context, writes ...Write) (Seq, error)

	// Load returns the history of one aggregate in order, empty if there is none.
	// It includes everything whose Append returned before the call began.
	// Errors: ErrUnavailable; a *CorruptError when what is stored cannot be read.
	Load(ctx context.Context, a Aggregate) ([]Recorded, error)

	// Last returns the sequence of the last event, 0 for an empty log, at least
	// that of every Append that returned before the call began.
	Last(ctx context.Context) (Seq, error)

	// Follow hands every event after the given sequence to f, strictly by
	// sequence, each once, and goes on with new events until ctx ends (it then
	// returns ctx's error), f fails (f's error), or the log turns out to be
	// broken (*CorruptError, which no retry mends). A log that ends before after is
	// broken: it was cut or replaced. Loss of connection is not an error: Follow
	// reconnects, repairs the gap and goes on.
	Follow(ctx context.Context, after Seq, f Follower) error
}

// LastOfLog is a Log that can continue a long history without reading it whole:
// who read the record has one event for each time.
type LastOfLog interface {
	Log
	// LastOf returns the last event of one aggregate; ok is false when there is
	// none. It is as recent as Load, and fails as Load does.
	LastOf(ctx context.Context, a Aggregate) (r Recorded, ok bool, err error)
}

// Follower takes what Log.Follow delivers. Its methods are called by one
// goroutine, never concurrently.
type Follower interface {
	// Apply takes the next events, contiguous, at least one. The slice is the
	// callee's only until it returns; the events may be kept.
	Apply(batch []Recorded) error
	// Fresh says that when the log's own clock read at, its last sequence was
	// last, and all events up to last have been applied. It comes at least every
	// 500 ms while the log can be reached, and soon after Follow has caught up.
	Fresh(at Time, last Seq)
}

// The error classes of the logs. See Log.Append and UseLog.Publish.
var (
	ErrConflict       = errors.New("the history has moved on")
	ErrUnavailable    = errors.New("the log cannot be reached")
	ErrFull           = errors.New("the log is full")
	ErrUnknownOutcome = errors.New("the outcome of the append is unknown")
)

// CorruptError says that what is stored contradicts the log's promises. The
// process must stop; Error says what to do.
type CorruptError struct {
	Seq    Seq    // first sequence that is wrong, 0 when it is not one event
	Reason string // a whole sentence, with what to do
}

func (e *CorruptError) Error() string { return e.Reason }

// KeyRef names a key together with where its history is.
type KeyRef struct {
	Keyspace KeyspaceID
	Tenant   TenantID
	Key      KeyID
}

// Aggregate returns the key's aggregate.
func (r KeyRef) Aggregate() Aggregate { return KeyAggregate(r.Keyspace, r.Tenant, r.Key) }

// Timers wakes the expirer. It is a rebuildable convenience over the log:
// enforcement never waits for it.
type Timers interface {
	// Changes hands each event of the lifecycle log, in order, to one of the
	// processes that call it, and again after a failure or a crash until f
	// returns nil. It returns when ctx ends.
	Changes(ctx context.Context, f func(context.Context, *Recorded) error) error
	// Set makes key due at the instant at, replacing an earlier setting. An
	// instant in the past is due at once.
	Set(ctx context.Context, key KeyRef, at Time) error
	// Clear forgets the key's setting; none is no error.
	Clear(ctx context.Context, key KeyRef) error
	// Due hands each key that has become due to one of the processes that call
	// it, never before its instant, again until f returns nil. It returns when
	// ctx ends.
	Due(ctx context.Context, f func(context.Context, KeyRef) error) error
}
