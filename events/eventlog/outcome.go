package eventlog

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
)

// answer is what one try of a publish came back with.
type answer int

const (
	accepted  answer = iota // stored by this try
	duplicate               // a message with this id is stored; by an earlier try, or in another place
	wrongLast               // the expectation does not hold, or a write in flight may break it
	inFlight                // a message with this id is in flight
	sameID                  // an event of the batch is stored already
	noRoom                  // a limit is reached
	rejected                // this message is never taken
	unserved                // not sent, or not taken by a server that may take it later
	silent                  // no answer: it may have been stored, or may yet be
	answers
)

// answerOf tells what a try came back with, and its error.
func answerOf(ack *pubAck, err error) (answer, error) {
	switch {
	case errors.Is(err, errNoAnswer):
		return silent, err
	case err != nil:
		return unserved, err
	case ack.Error == nil && ack.Duplicate:
		return duplicate, errors.New("a message with this id is stored")
	case ack.Error == nil:
		return accepted, nil
	}
	switch ack.Error.ErrCode {
	case codeWrongLast, codeWrongLastConstant:
		return wrongLast, ack.Error
	case codeDuplicateInFlight:
		return inFlight, ack.Error
	case codeDuplicateInBatch:
		return sameID, ack.Error
	case codeStoreFailed, codeInsufficient, codeMemoryExceeded, codeStorageExceeded, codeAccountExceeded:
		return noRoom, ack.Error
	case codeIncompleteBatch, codeTooManyBatches, codeTooManyRequests, codeLastNotReady:
		return unserved, ack.Error
	}
	if ack.Error.Code >= 500 {
		return unserved, ack.Error
	}
	return rejected, ack.Error
}

// verdict is what the log says about a publish, read where it expected to stand.
type verdict int

const (
	unasked verdict = iota // nothing is read of this kind of message
	unclear                // the log cannot be read now
	ours                   // an earlier try was stored
	moved                  // another message stands where ours belongs
	open                   // every expectation still holds
	verdicts
)

// outcome is what the caller is told.
type outcome int

const (
	again    outcome = iota // try again; when the time ends: unknown if it may have been stored, else unavailable
	done                    // nil: it is stored
	conflict                // events.ErrConflict: not stored, nor will it be
	full                    // events.ErrFull: not stored, nor will it be
	invalid                 // another error: not stored, nor will it be
	unknown                 // events.ErrUnknownOutcome
)

// outcomes is the one table of what a publish came to. What the log holds decides
// over what an answer says: an answer is of one try, and an earlier one may have been
// stored. So without a reading (unclear) nothing is a conflict. noRoom and rejected
// are certain only while no earlier try may have been stored.
var outcomes = [answers]struct{ first, later [verdicts]outcome }{
	//                  unasked   unclear  ours    moved     open
	duplicate: both(outcomeRow{done, again, done, invalid, invalid}),
	wrongLast: both(outcomeRow{conflict, again, done, conflict, again}),
	inFlight:  both(outcomeRow{again, again, done, conflict, again}),
	sameID:    both(outcomeRow{invalid, again, done, conflict, invalid}),
	silent:    both(outcomeRow{again, again, done, conflict, again}),
	unserved:  both(outcomeRow{again, again, again, again, again}),
	noRoom: {first: outcomeRow{full, full, done, full, full},
		later: outcomeRow{again, again, done, conflict, unknown}},
	rejected: {first: outcomeRow{invalid, invalid, done, invalid, invalid},
		later: outcomeRow{unknown, again, done, conflict, unknown}},
	accepted: both(outcomeRow{done, done, done, done, done}),
}

type outcomeRow = [verdicts]outcome

func both(r outcomeRow) struct{ first, later [verdicts]outcome } {
	return struct{ first, later [verdicts]outcome }{r, r}
}

// unconfirmed is how many tries in a row must go without an answer, each for
// patience, before the log is said to store nothing. A server that cannot write
// to its disk does not answer a publish, while it goes on answering reads; the
// election of a new leader is told apart by reads that fail too.
const unconfirmed = 2

// deliver publishes msgs until the table tells what became of them, or ctx ends. The
// messages must be safe to send again. settle reads what an earlier try did; nil =
// nothing can be read. It returns the sequence of the last message.
func (t *transport) deliver(ctx context.Context, stream string, msgs []*nats.Msg, settle func(context.Context) (events.Seq, verdict)) (events.Seq, error) {
	var (
		r     retry
		maybe bool // an earlier try may have been, or may yet be, stored
		quiet int  // tries in a row without an answer, over one connection
		conns uint64
		last  error // why the try before was not stored
	)
	for {
		ack, err := t.publish(ctx, msgs)
		a, err := answerOf(&ack, reasonOf(ctx, err, &last))
		if n := t.nc.Stats().Reconnects; a != silent || ctx.Err() != nil || n != conns {
			quiet, conns = 0, n
		}
		if a == silent && ctx.Err() == nil {
			quiet++
		}
		seq, v := events.Seq(ack.Seq), unasked
		if settle != nil && a != accepted && a != unserved && (a != silent || quiet >= unconfirmed) {
			seq, v = t.settled(ctx, settle)
		}
		row := outcomes[a].first
		if maybe {
			row = outcomes[a].later
		}
		switch row[v] {
		case done:
			return seq, nil
		case conflict:
			return 0, fmt.Errorf("%w: %w", events.ErrConflict, err)
		case full:
			return 0, fullError(stream, ack.Error)
		case invalid:
			if a == duplicate || a == sameID {
				err = errors.New("event id: an event with this id is already in another history")
			}
			return 0, err
		case unknown:
			return 0, fmt.Errorf("%w: then %w", events.ErrUnknownOutcome, err)
		}
		maybe = maybe || a == silent || a == inFlight || v == unclear
		if quiet >= unconfirmed && (v == open || v == unasked) && t.serves(ctx, stream, msgs[0].Subject) && t.nc.Stats().Reconnects == conns {
			return 0, fmt.Errorf("%w: %w", events.ErrUnknownOutcome, notStoring(stream, quiet))
		}
		if t.nc.IsClosed() || r.wait(ctx) != nil {
			if maybe {
				return 0, fmt.Errorf("%w: %w", events.ErrUnknownOutcome, err)
			}
			return 0, t.unavailable(stream, err)
		}
	}
}

func (t *transport) settled(ctx context.Context, settle func(context.Context) (events.Seq, verdict)) (events.Seq, verdict) {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	return settle(ctx)
}

// reasonOf returns err, unless the time ran out before this try was sent: then
// the try before says more, and last holds its error.
func reasonOf(ctx context.Context, err error, last *error) error {
	if *last != nil && ctx.Err() != nil && errors.Is(err, errNotSent) {
		return *last
	}
	*last = err
	return err
}

// serves reports whether the stream's leader leads and answers a read now.
func (t *transport) serves(ctx context.Context, stream, subject string) bool {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	if _, err := t.leaderGet(ctx, stream, getRequest{LastFor: subject}); err != nil {
		return false
	}
	if t.api != controlAPI && stream != lifeStream {
		return true // a verifier may not ask about this stream
	}
	_, err := t.confirmed(ctx, stream)
	return err == nil
}
