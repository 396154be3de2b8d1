package audit

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// Recorder writes down who read the record, before they read it (A8). Each reader
// has a history of its own in the read log. It is safe for concurrent use.
//
// A walk is one question with all its pages: it is on the record once, with its
// filters, when its first page is asked for. Its cursors carry the sequence of that
// event, and a later page looks the event up in the log, so that a made-up cursor
// reads nothing unrecorded. A walk has no event at its end: a reader who asks for no
// further page does not say so, and what it may have read is what its filters admit.
// An export has one (A11).
type Recorder struct {
	log     events.ReadLog
	secrets events.SecretFinder // nil: none is known
	now     func() time.Time
	source  string

	mu      sync.Mutex
	readers map[string]*reader // guarded by mu
}

// NewRecorder returns a recorder that writes as the component of the name, the
// events' source ("/keytrail/auditor/<node>").
func NewRecorder(log events.ReadLog, secrets events.SecretFinder, source string, now func() time.Time) *Recorder {
	return &Recorder{log: log, secrets: secrets, now: now, source: source, readers: map[string]*reader{}}
}

// reader is where the history of one reader stands, as far as is known here.
type reader struct {
	slot  chan struct{} // holds one token while someone appends
	chain events.Chain  // owned by who holds the slot
	known bool          // owned by who holds the slot: chain has been read from the log
}

// maxReaders bounds what is remembered; forgetting costs one read each.
const maxReaders = 1000

func (r *Recorder) reader(actor events.Actor) *reader {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.readers) >= maxReaders {
		clear(r.readers)
	}
	rd := r.readers[actor.ID]
	if rd == nil {
		rd = &reader{slot: make(chan struct{}, 1)}
		r.readers[actor.ID] = rd
	}
	return rd
}

// recordTries is enough for a few auditors serving one reader at once.
const recordTries = 10

// walkLife is how long after its first page a walk may go on under that page's
// event. A page that comes later is a walk of its own on the record.
const walkLife = time.Hour

// Walk puts a question on the record, once for all its pages. walk is 0 for the first
// page, and for a later one what the page before it returned. It returns the walk's
// sequence in the read log, when that is durable. A walk that is older than an hour,
// or is not this reader's with this very question, is put on the record anew. Errors
// are as of Record.
func (r *Recorder) Walk(ctx context.Context, who *events.Principal, walk events.Seq, question *events.AuditQueried) (events.Seq, error) {
	if walk != 0 {
		ok, err := r.goesOn(ctx, who, walk, question)
		if err != nil {
			return 0, refusal(err)
		}
		if ok {
			return walk, nil
		}
	}
	_, seq, err := r.record(ctx, who, "", question)
	return seq, err
}

// goesOn reports whether the event at the sequence is the beginning of the walk.
func (r *Recorder) goesOn(ctx context.Context, who *events.Principal, walk events.Seq, question *events.AuditQueried) (bool, error) {
	e, ok, err := r.log.At(ctx, walk)
	if !ok || err != nil {
		return false, err
	}
	q, ok := e.Data.(*events.AuditQueried)
	return ok && e.Aggregate == events.ReaderAggregate(who.Actor) && q.Kind == question.Kind && maps.Equal(q.Filter, question.Filter) &&
		events.At(r.now()) < e.Stored.Add(walkLife), nil
}

// Record appends one event to the reader's history. It returns when that is
// durable; an error is a *api.Problem or the log's own, and nothing may be read.
//
// What was asked for is on the record for ever: with a secret in it, it is refused.
func (r *Recorder) Record(ctx context.Context, who *events.Principal, data events.Data) error {
	_, _, err := r.record(ctx, who, "", data)
	return err
}

// record is Record with a reason, and the id and the sequence of the event.
func (r *Recorder) record(ctx context.Context, who *events.Principal, reason string, data events.Data) (events.EventID, events.Seq, error) {
	if err := r.screen(data); err != nil {
		return events.EventID{}, 0, err
	}
	en := r.entry(who, reason, data)
	seq, err := r.append(ctx, en)
	return en.ID, seq, refusal(err)
}

// insist puts on the record what has happened already, and so cannot be refused any
// more: while the log takes nothing it tries again, until the context ends. It returns
// when the event is durable, once.
func (r *Recorder) insist(ctx context.Context, who *events.Principal, reason string, data events.Data) error {
	en := r.entry(who, reason, data)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		_, err := r.append(ctx, en)
		if err == nil || !errors.Is(err, events.ErrUnavailable) && !errors.Is(err, events.ErrUnknownOutcome) && !errors.Is(err, events.ErrConflict) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}

// entry is an event on its way to a reader's history.
type entry struct {
	events.Event
	unsure bool // an append of unknown outcome may have stored it
}

func (r *Recorder) entry(who *events.Principal, reason string, data events.Data) *entry {
	return &entry{Event: events.Event{
		ID: events.EventID(ulid.Make()), Aggregate: events.ReaderAggregate(who.Actor), Time: events.At(r.now()), Source: r.source,
		Actor: who.Actor, IP: who.IP, UserAgent: who.UserAgent, RequestID: who.RequestID, Reason: reason, Data: data,
	}}
}

// refusal makes an answer of an error of the read log; the rest goes through.
func refusal(err error) error {
	if state, ok := errors.AsType[*events.StateError](err); ok && (errors.Is(err, events.ErrFull) || errors.Is(err, events.ErrNotStoring)) {
		return api.Errorf(http.StatusInsufficientStorage, "log_full", "reading the record is itself on the record, and %s; nothing was read. Keys are still verified, changed and revoked", state.Reason)
	}
	if errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrUnknownOutcome) || errors.Is(err, events.ErrConflict) {
		return api.Unavailable(1, "reading the record is itself on the record, and the log of reading did not take the entry; nothing was read")
	}
	return err
}

// screen refuses a reading whose filter holds a secret.
func (r *Recorder) screen(data events.Data) error {
	var filter map[string]string
	switch d := data.(type) {
	case *events.AuditQueried:
		filter = d.Filter
	case *events.AuditExported:
		filter = d.Filter
	}
	var f input.FieldErrors
	for _, name := range slices.Sorted(maps.Keys(filter)) {
		if r.secrets != nil && events.HoldsSecret(r.secrets, filter[name]) {
			f = append(f, api.SecretFault(name))
		}
	}
	if len(f) > 0 {
		return api.SecretFound(f)
	}
	return nil
}

// append appends the entry, which may have been tried before, as the next event of
// its reader.
func (r *Recorder) append(ctx context.Context, e *entry) (seq events.Seq, err error) {
	rd := r.reader(e.Actor)
	select {
	case rd.slot <- struct{}{}:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	defer func() {
		if err != nil {
			rd.known = false
		}
		<-rd.slot
	}()
	readers := r.log.Readers()
	for range recordTries {
		if e.unsure && !rd.known {
			// Another auditor may have appended after it: only the whole history tells.
			history, err := r.log.Load(ctx, e.Aggregate)
			if err != nil {
				return 0, err
			}
			if i := slices.IndexFunc(history, func(h events.Recorded) bool { return h.ID == e.ID }); i >= 0 {
				return history[i].Seq, nil
			}
		}
		if !rd.known {
			last, ok, err := r.log.LastOf(ctx, e.Aggregate)
			if err != nil {
				return 0, err
			}
			rd.chain = events.Chain{}
			if ok {
				rd.chain = events.Chain{Rev: last.Rev, Head: last.Hash, Seq: last.Seq}
			}
			rd.known = true
		}
		e.Rev, e.Prev = rd.chain.Rev+1, rd.chain.Head
		m, eerr := events.EncodeFor(&e.Event, readers)
		if eerr != nil {
			return 0, eerr
		}
		seq, err = r.log.Append(ctx, events.Write{Event: e.Event, Expect: rd.chain.Seq, Readers: readers})
		switch {
		case err == nil:
			rd.chain = events.Chain{Rev: e.Rev, Head: m.Hash(), Seq: seq}
			return seq, nil
		case errors.Is(err, events.ErrNotStoring): // nor will it before an operator has mended it
			return 0, err
		case errors.Is(err, events.ErrUnknownOutcome):
			e.unsure = true // the very same write again, until the answer is definite
		case errors.Is(err, events.ErrConflict):
			rd.known = false // another auditor appended, or the first try was stored
		default:
			return 0, err
		}
	}
	return 0, err
}
