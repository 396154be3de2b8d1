package eventlog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/keytrail/keytrail/events"
)

// Headers of a publish.
const (
	hdrMsgID       = "Nats-Msg-Id"
	hdrStream      = "Nats-Expected-Stream"
	hdrExpect      = "Nats-Expected-Last-Subject-Sequence"
	hdrBatchID     = "Nats-Batch-Id"
	hdrBatchSeq    = "Nats-Batch-Sequence"
	hdrBatchCommit = "Nats-Batch-Commit"
)

// MaxWrites is the most events that one Append takes.
const MaxWrites = 100

// pubAck is JetStream's answer to a publish.
type pubAck struct {
	Error     *apiError `json:"error"`
	Stream    string    `json:"stream"`
	Seq       uint64    `json:"seq"`
	Duplicate bool      `json:"duplicate"`
}

// A try that ended without an answer.
var (
	errNotSent  = errors.New("not sent")  // nothing can have been stored
	errNoAnswer = errors.New("no answer") // anything may have happened
)

// Append implements events.Log. A single event is a plain publish; several are
// one atomic batch (ADR-50). The same messages are sent again while there is no
// definite answer and time is left: the id and the expectation let an event in
// once at most (L3).
func (l *Log) Append(ctx context.Context, writes ...events.Write) (events.Seq, error) {
	msgs, err := messages(writes)
	if err != nil {
		return 0, fmt.Errorf("append: %w", err)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	seq, err := l.append(ctx, writes, msgs)
	if err != nil {
		return 0, fmt.Errorf("append to %s: %w", writes[0].Event.Aggregate, err)
	}
	return seq, nil
}

func (l *Log) append(ctx context.Context, writes []events.Write, msgs []*nats.Msg) (events.Seq, error) {
	maybe := false // an earlier try may have been, or may yet be, stored
	for {
		ack, err := l.publish(ctx, msgs)
		code := 0
		switch {
		case errors.Is(err, errNoAnswer):
			maybe = true
		case err == nil && ack.Error == nil && !ack.Duplicate:
			return events.Seq(ack.Seq), nil
		case err == nil && ack.Error != nil:
			code, err = ack.Error.ErrCode, ack.Error
		}
		switch code {
		case codeWrongLast, codeWrongLastConstant, codeDuplicateInBatch, codeDuplicateInFlight:
			seq, v := l.settle(ctx, writes)
			switch {
			case v == ours:
				return seq, nil
			case v == moved, v == unclear && (code == codeWrongLast || code == codeWrongLastConstant):
				return 0, events.ErrConflict
			case code == codeDuplicateInBatch && v == open:
				return 0, errors.New("event id: an event with this id is already in another history")
			}
			// The expectation holds: the conflict is with a write still in flight.
		case codeStoreFailed, codeInsufficient, codeMemoryExceeded, codeStorageExceeded, codeAccountExceeded:
			if maybe { // the room may have gone to the first try
				if seq, v := l.settle(ctx, writes); v == ours {
					return seq, nil
				}
				return 0, fmt.Errorf("%w: then %w", events.ErrUnknownOutcome, err)
			}
			return 0, fmt.Errorf("%w: %w; give the stream KT_LIFE more room (max_bytes, max_file_store), its events are never deleted", events.ErrFull, err)
		case codeMessageTooBig:
			return 0, err
		case 0:
			if err == nil { // a duplicate
				seq, v := l.settle(ctx, writes)
				switch v {
				case ours:
					return seq, nil
				case moved, open:
					return 0, errors.New("event id: an event with this id is already in another history")
				}
				maybe = true // it is stored, but where cannot be read now
			}
		}
		if l.nc.IsClosed() || waitFor(ctx, pause) != nil {
			if err == nil {
				err = ctx.Err()
			}
			if maybe {
				return 0, fmt.Errorf("%w: %w", events.ErrUnknownOutcome, err)
			}
			return 0, fmt.Errorf("%w: %w", events.ErrUnavailable, err)
		}
	}
}

// messages encodes and checks the writes.
func messages(writes []events.Write) ([]*nats.Msg, error) {
	if len(writes) == 0 || len(writes) > MaxWrites {
		return nil, fmt.Errorf("%d events: want 1 to %d", len(writes), MaxWrites)
	}
	msgs := make([]*nats.Msg, len(writes))
	seen := make(map[string]bool, len(writes))
	ids := make(map[events.EventID]bool, len(writes))
	for i := range writes {
		e := &writes[i].Event
		m, err := events.Encode(e)
		if err != nil {
			return nil, err
		}
		if len(m.Data) > MaxMessage {
			return nil, fmt.Errorf("event %s: %d bytes, want at most %d", e.Type(), len(m.Data), MaxMessage)
		}
		if ids[e.ID] {
			return nil, fmt.Errorf("event %s: its id stands twice in one append", e.Type())
		}
		ids[e.ID] = true
		msgs[i] = &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}
		msgs[i].Header.Set(hdrMsgID, e.ID.String())
		msgs[i].Header.Set(hdrStream, lifeStream)
		if !seen[m.Subject] { // a second event of an aggregate follows the first; an expectation on it is refused
			seen[m.Subject] = true
			msgs[i].Header.Set(hdrExpect, strconv.FormatUint(uint64(writes[i].Expect), 10))
		}
	}
	return msgs, nil
}

// publish tries once. The error is errNotSent or errNoAnswer.
func (l *Log) publish(ctx context.Context, msgs []*nats.Msg) (pubAck, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := ctx.Err(); err != nil || l.nc.IsClosed() {
		return pubAck{}, fmt.Errorf("%w: %w", errNotSent, cmp.Or(err, nats.ErrConnectionClosed))
	}
	if len(msgs) == 1 {
		return l.publishOne(ctx, msgs[0])
	}
	return l.publishBatch(ctx, msgs)
}

func (l *Log) publishOne(ctx context.Context, m *nats.Msg) (pubAck, error) {
	r, err := l.nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return pubAck{}, sendError(err)
	}
	var ack pubAck
	if err := json.Unmarshal(r.Data, &ack); err != nil {
		return pubAck{}, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return ack, nil
}

// sendError tells a message that never left from one whose fate is unknown.
func sendError(err error) error {
	switch {
	case errors.Is(err, nats.ErrNoResponders), // no stream heard it
		errors.Is(err, nats.ErrReconnectBufExceeded), // the connection is down and nothing is buffered
		errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadSubject):
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	return fmt.Errorf("%w: %w", errNoAnswer, err)
}

// publishBatch sends all messages in one go and waits for the commit's answer.
// All of them name one inbox: what is refused early is told early, and a batch
// of which one message is refused or lost is not stored.
func (l *Log) publishBatch(ctx context.Context, msgs []*nats.Msg) (pubAck, error) {
	inbox := l.nc.NewInbox()
	sub, err := l.nc.SubscribeSync(inbox)
	if err != nil {
		return pubAck{}, fmt.Errorf("%w: %w", errNotSent, err)
	}
	defer sub.Unsubscribe()
	batch := nuid.Next() // anew in each try: the server may still hold the broken one
	for i, m := range msgs {
		m.Reply = inbox
		m.Header.Set(hdrBatchID, batch)
		m.Header.Set(hdrBatchSeq, strconv.Itoa(i+1))
		if i == len(msgs)-1 {
			m.Header.Set(hdrBatchCommit, "1")
		}
		if err := l.nc.PublishMsg(m); err != nil {
			if i == len(msgs)-1 {
				return pubAck{}, sendError(err)
			}
			return pubAck{}, fmt.Errorf("%w: %w", errNotSent, err) // without its commit the batch is never stored
		}
	}
	for {
		r, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return pubAck{}, sendError(err)
		}
		if r.Header.Get("Status") == "503" {
			return pubAck{}, fmt.Errorf("%w: %w", errNotSent, nats.ErrNoResponders)
		}
		if len(r.Data) == 0 { // "got it, go on"
			continue
		}
		var ack pubAck
		if err := json.Unmarshal(r.Data, &ack); err != nil {
			return pubAck{}, fmt.Errorf("%w: %w", errNoAnswer, err)
		}
		return ack, nil
	}
}

// verdict is what the log says about an append that was refused.
type verdict int

const (
	unclear verdict = iota // the log cannot be read now
	ours                   // an earlier try was stored
	moved                  // another event stands where ours belongs
	open                   // every expectation still holds
)

// settle reads what stands after each expectation. If an event of ours was
// stored it stands exactly there, since only there was it allowed to; and as
// the append is atomic, the first event answers for all.
func (l *Log) settle(ctx context.Context, writes []events.Write) (events.Seq, verdict) {
	seen := make(map[events.Aggregate]bool, len(writes))
	for i := range writes {
		w := &writes[i]
		if seen[w.Event.Aggregate] {
			continue
		}
		seen[w.Event.Aggregate] = true
		subject := w.Event.Aggregate.Subject()
		next, err := l.leaderGet(ctx, lifeStream, getRequest{Seq: w.Expect + 1, NextFor: subject})
		if err != nil {
			return 0, unclear
		}
		if next != nil {
			if i == 0 && next.header.Get(hdrMsgID) == w.Event.ID.String() {
				return next.seq + events.Seq(len(writes)-1), ours
			}
			return 0, moved
		}
		if w.Expect > 0 { // is it the aggregate's last at all?
			at, err := l.leaderGet(ctx, lifeStream, getRequest{Seq: w.Expect})
			if err != nil {
				return 0, unclear
			}
			if at == nil || at.subject != subject {
				return 0, moved
			}
		}
	}
	return 0, open
}

// send publishes one message that carries an id but no expectation, until the
// answer is definite or ctx ends. It serves uses and timers.
func (l *Log) send(ctx context.Context, m *nats.Msg) (pubAck, error) {
	maybe := false
	for {
		ack, err := l.publish(ctx, []*nats.Msg{m})
		if errors.Is(err, errNoAnswer) {
			maybe = true
		}
		if err == nil && ack.Error == nil {
			return ack, nil
		}
		if err == nil {
			err = ack.Error
			switch ack.Error.ErrCode {
			case codeStoreFailed, codeInsufficient, codeMemoryExceeded, codeStorageExceeded, codeAccountExceeded:
				if !maybe {
					return ack, fmt.Errorf("%w: %w", events.ErrFull, err)
				}
			default:
				if ack.Error.Code != codeUnavailableHTTPLike && ack.Error.ErrCode != codeDuplicateInFlight && ack.Error.ErrCode != codeTooManyRequests {
					return ack, err
				}
			}
		}
		if l.nc.IsClosed() || waitFor(ctx, pause) != nil {
			if maybe {
				return ack, fmt.Errorf("%w: %w", events.ErrUnknownOutcome, err)
			}
			return ack, fmt.Errorf("%w: %w", events.ErrUnavailable, err)
		}
	}
}
