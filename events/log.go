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
	// Readers says which release reads the event for certain (Log.Readers): it is
	// stored in the newest version that this release reads. "" = the newest version. An
	// event that continues it names the hash of the document in that version.
	Readers Release

	message *Message // what Prepare made
}

// Encode returns the message of the write, or the first reason why its event must not
// be appended (CanAppend, EncodeFor).
func (w *Write) Encode() (Message, error) {
	if w.message != nil {
		return *w.message, nil
	}
	if err := w.Event.CanAppend(); err != nil {
		return Message{}, err
	}
	return EncodeFor(&w.Event, w.Readers)
}

// Prepare is Encode for who needs the message before the append: Append then takes it
// as it is. Event and Readers must not be changed any more.
func (w *Write) Prepare() (Message, error) {
	m, err := w.Encode()
	if err == nil {
		w.message = &m
	}
	return m, err
}

// Log is one of the two logs of events: every event of every aggregate of its
// Stream, in one order, for ever. Most often it is the lifecycle log; ReadLog is the
// other. It is safe for concurrent use. eventlog implements it on JetStream, logtest
// in memory; logtest.TestLog is this contract as an executable list.
type Log interface {
	// ID returns the identity of the log, fixed at its initialisation. The two logs of
	// one installation share it.
	ID() LogID

	// Readers returns the release that every process of the deployment has at least, as
	// far as is known here (Floor.Release); it never goes back. Append refuses an event
	// that only a later one reads, with ErrUnavailable.
	Readers() Release

	// Append stores all writes or none, in the order given, with consecutive
	// sequences, and returns the sequence of the last. On return they are durable
	// (fsynced; on a cluster by a majority) and every later Load sees them.
	// At most 1,000 writes of at most 1 MiB each, all of aggregates of the log's Stream.
	//
	// Errors, for errors.Is; anything else is a fault of the caller's events (each
	// must pass CanAppend) and stored nothing:
	//   ErrConflict        an expectation does not hold; nothing is stored. Load, decide again.
	//   ErrUnavailable     nothing is stored; the same Append may be retried later.
	//   ErrFull            nothing is stored; an operator must make room.
	//   ErrNotStoring      beside ErrUnknownOutcome: the log answers, but no write is
	//                      confirmed; an operator must look at its disk.
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

// ReadLog is the log of who read the record: one history per reader. It has the
// identity of the lifecycle log that it belongs to, and sequences of its own. A
// reader's history grows without end, so nobody loads it to continue it.
type ReadLog interface {
	Log
	// LastOf returns the last event of one aggregate; ok is false when there is
	// none. It is as recent as Load, and fails as Load does.
	LastOf(ctx context.Context, a Aggregate) (r Recorded, ok bool, err error)
	// At returns the event with the sequence; ok is false when there is none. It is as
	// recent as Load, and fails as Load does.
	At(ctx context.Context, seq Seq) (r Recorded, ok bool, err error)
}

// LastAtLeastLog is a Log that does not take one answer for the loss of its end.
type LastAtLeastLog interface {
	Log
	// LastAtLeast is Last for a caller that knows event seq to be stored: an answer
	// before it is given only when it stands, after as long as a change of the
	// log's leader takes.
	LastAtLeast(ctx context.Context, seq Seq) (Seq, error)
}

// LastAtLeast returns the sequence of the log's last event to a caller that knows
// event seq to be stored. An answer before seq means that the end of the log is lost.
func LastAtLeast(ctx context.Context, log Log, seq Seq) (Seq, error) {
	if l, ok := log.(LastAtLeastLog); ok {
		return l.LastAtLeast(ctx, seq)
	}
	return log.Last(ctx)
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

// Untimed is a Follower that does not look at Recorded.Stored. A log may leave it
// zero for one, because a bulk read without it costs a third.
type Untimed interface {
	Follower
	Untimed()
}

// The error classes of the logs. See Log.Append and UseLog.Publish.
var (
	ErrConflict       = errors.New("the history has moved on")
	ErrUnavailable    = errors.New("the log cannot be reached")
	ErrFull           = errors.New("the log is full")
	ErrUnknownOutcome = errors.New("the outcome of the append is unknown")
	ErrNotStoring     = errors.New("the log answers, and stores nothing")
)

// StateError says which part of the log is in which state, where that is known.
// It is of the classes ErrUnavailable, ErrFull or ErrNotStoring, as Class says.
type StateError struct {
	Class  error
	Reason string // a clause for people, as "the stream KT_LIFE has reached its size limit"
	Cause  error  // what the server or the connection said, for the operator's log
}

func (e *StateError) Error() string {
	if e.Cause == nil {
		return e.Reason
	}
	return e.Reason + " (" + e.Cause.Error() + ")"
}

// Unwrap returns the class and the cause.
func (e *StateError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Class}
	}
	return []error{e.Class, e.Cause}
}

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
