package eventlog

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// Headers of a publish.
const (
	hdrMsgID       = "Nats-Msg-Id"
	hdrStream      = "Nats-Expected-Stream"
	hdrContentType = "Content-Type" // which mode of the NATS binding for CloudEvents it is
	hdrExpect      = "Nats-Expected-Last-Subject-Sequence"
	hdrBatchID     = "Nats-Batch-Id"
	hdrBatchSeq    = "Nats-Batch-Sequence"
	hdrBatchCommit = "Nats-Batch-Commit"
)

// MaxWrites is the most events that one Append takes.
const MaxWrites = 1000

// Append implements events.Log. A single event is a plain publish; several are
// one atomic batch (ADR-50). The same messages are sent again while there is no
// definite answer and time is left: the id and the expectation let an event in
// once at most (L3).
func (l *Lifecycle) Append(ctx context.Context, writes ...events.Write) (events.Seq, error) {
	msgs, err := l.messages(writes)
	if err != nil {
		return 0, fmt.Errorf("append: %w", err)
	}
	ctx, cancel := l.bound(ctx)
	defer cancel()
	seq, err := l.deliver(ctx, l.stream, msgs, func(ctx context.Context) (events.Seq, verdict) { return l.settle(ctx, writes) })
	l.note(l.stream, err)
	if err != nil {
		return 0, fmt.Errorf("append to %s: %w", writes[0].Event.Aggregate, err)
	}
	return seq, nil
}

// messages encodes and checks the writes.
func (l *Lifecycle) messages(writes []events.Write) ([]*nats.Msg, error) {
	if len(writes) == 0 || len(writes) > MaxWrites {
		return nil, fmt.Errorf("%d events: want 1 to %d", len(writes), MaxWrites)
	}
	msgs := make([]*nats.Msg, len(writes))
	seen := make(map[string]bool, len(writes))
	ids := make(map[events.EventID]bool, len(writes))
	for i := range writes {
		e := &writes[i].Event
		if err := l.events.Accepts(e.Aggregate); err != nil {
			return nil, err
		}
		m, err := l.encode(&writes[i])
		if err != nil {
			return nil, err
		}
		if len(m.Data) > streams.MaxMessage {
			return nil, fmt.Errorf("event %s: %d bytes, want at most %d", e.Type(), len(m.Data), streams.MaxMessage)
		}
		if ids[e.ID] {
			return nil, fmt.Errorf("event %s: its id stands twice in one append", e.Type())
		}
		ids[e.ID] = true
		msgs[i] = &nats.Msg{Subject: m.Subject, Data: m.Data, Header: nats.Header{hdrContentType: {events.ContentType}}}
		msgs[i].Header.Set(hdrMsgID, e.ID.String())
		msgs[i].Header.Set(hdrStream, l.stream)
		if !seen[m.Subject] { // a second event of an aggregate follows the first; an expectation on it is refused
			seen[m.Subject] = true
			msgs[i].Header.Set(hdrExpect, strconv.FormatUint(uint64(writes[i].Expect), 10))
		}
	}
	return msgs, nil
}

// encode checks and encodes a write, in a version that every reader of the log knows.
func (l *Lifecycle) encode(w *events.Write) (events.Message, error) {
	m, err := w.Encode()
	if err == nil && (w.Readers == "" || l.Readers().Before(w.Readers)) {
		err = events.Needs(&w.Event).Beyond(l.Readers())
	}
	return m, err
}

// settleAtOnce is how many expectations of one append are read side by side.
const settleAtOnce = 16

// settle reads what stands after each expectation. If an event of ours was
// stored it stands exactly there, since only there was it allowed to; and as
// the append is atomic, the first event answers for all.
func (l *Lifecycle) settle(ctx context.Context, writes []events.Write) (events.Seq, verdict) {
	if seq, v := l.stands(ctx, &writes[0]); v == ours {
		return seq + events.Seq(len(writes)-1), ours
	} else if v != open {
		return 0, v
	}
	seen := map[events.Aggregate]bool{writes[0].Event.Aggregate: true}
	found := make([]verdict, len(writes))
	at := make([]events.Seq, len(writes))
	var wg sync.WaitGroup
	slots := make(chan struct{}, settleAtOnce)
	for i := range writes {
		found[i] = open
		if w := &writes[i]; !seen[w.Event.Aggregate] {
			seen[w.Event.Aggregate] = true
			slots <- struct{}{}
			wg.Go(func() { at[i], found[i] = l.stands(ctx, w); <-slots })
		}
	}
	wg.Wait()
	if i := slices.Index(found, ours); i >= 0 { // an earlier try was stored after the first was read
		return at[i] + events.Seq(len(writes)-1-i), ours
	}
	switch {
	case slices.Contains(found, moved):
		return 0, moved
	case slices.Contains(found, unclear):
		return 0, unclear
	}
	return 0, open
}

// stands reads what stands after the expectation of one write, and where.
func (l *Lifecycle) stands(ctx context.Context, w *events.Write) (events.Seq, verdict) {
	subject := w.Event.Aggregate.Subject()
	next, err := l.leaderGet(ctx, l.stream, getRequest{Seq: w.Expect + 1, NextFor: subject})
	switch {
	case err != nil:
		return 0, unclear
	case next != nil && next.header.Get(hdrMsgID) == w.Event.ID.String():
		return next.seq, ours
	case next != nil:
		return 0, moved
	case w.Expect == 0:
		return 0, open
	}
	at, err := l.leaderGet(ctx, l.stream, getRequest{Seq: w.Expect}) // is it the aggregate's last at all?
	switch {
	case err != nil:
		return 0, unclear
	case at == nil || at.subject != subject:
		return 0, moved
	}
	return 0, open
}
