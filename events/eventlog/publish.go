package eventlog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

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

// publish tries once. The error is errNotSent or errNoAnswer.
func (t *transport) publish(ctx context.Context, msgs []*nats.Msg) (pubAck, error) {
	ctx, cancel := context.WithTimeout(ctx, t.patience)
	defer cancel()
	if err := ctx.Err(); err != nil || t.nc.IsClosed() {
		return pubAck{}, fmt.Errorf("%w: %w", errNotSent, cmp.Or(err, nats.ErrConnectionClosed))
	}
	began := time.Now()
	ack, err := t.publishMsgs(ctx, msgs)
	switch {
	case err != nil:
		t.doubt(began, err)
	case ack.Error == nil:
		t.trust()
	case ack.Error.Code == codeUnavailableHTTPLike, ack.Error.ErrCode == codeDuplicateInFlight: // a deposed leader never ends what is in flight
		t.doubt(began, ack.Error)
	}
	return ack, err
}

func (t *transport) publishMsgs(ctx context.Context, msgs []*nats.Msg) (pubAck, error) {
	if len(msgs) == 1 {
		return t.publishOne(ctx, msgs[0])
	}
	return t.publishBatch(ctx, msgs)
}

func (t *transport) publishOne(ctx context.Context, m *nats.Msg) (pubAck, error) {
	r, err := t.nc.RequestMsgWithContext(ctx, m)
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
func (t *transport) publishBatch(ctx context.Context, msgs []*nats.Msg) (pubAck, error) {
	inbox := t.nc.NewInbox()
	sub, err := t.nc.SubscribeSync(inbox)
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
		if err := t.nc.PublishMsg(m); err != nil {
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

// send publishes one message until the answer is definite or ctx ends. A duplicate
// counts as stored: the message carries an id, or may be stored twice.
func (t *transport) send(ctx context.Context, m *nats.Msg) (pubAck, error) {
	stream := m.Header.Get(hdrStream)
	seq, err := t.deliver(ctx, stream, []*nats.Msg{m}, nil)
	t.note(stream, err)
	return pubAck{Seq: uint64(seq)}, err
}
