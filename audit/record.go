package audit

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// Recorder writes down who read the record, before they read it (A8). Each reader
// has a history of its own in the log. It is safe for concurrent use.
type Recorder struct {
	log    events.LastOfLog
	now    func() time.Time
	source string

	mu      sync.Mutex
	readers map[string]*reader // guarded by mu
}

// NewRecorder returns a recorder that writes as the component of the name, the
// events' source ("/keytrail/auditor/<node>").
func NewRecorder(log events.LastOfLog, source string, now func() time.Time) *Recorder {
	return &Recorder{log: log, now: now, source: source, readers: map[string]*reader{}}
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

// Record appends one event to the reader's history. It returns when that is
// durable; an error is a *api.Problem or the log's own, and nothing may be read.
func (r *Recorder) Record(ctx context.Context, who *events.Principal, data events.Data) error {
	rd := r.reader(who.Actor)
	select {
	case rd.slot <- struct{}{}:
		defer func() { <-rd.slot }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	e := events.Event{
		ID: events.EventID(ulid.Make()), Aggregate: events.ReaderAggregate(who.Actor), Time: events.At(r.now()), Source: r.source,
		Actor: who.Actor, IP: who.IP, UserAgent: who.UserAgent, RequestID: who.RequestID, Data: data,
	}
	err := r.append(ctx, rd, &e)
	if err != nil {
		rd.known = false
	}
	if errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrUnknownOutcome) || errors.Is(err, events.ErrConflict) {
		return api.Unavailable(1, "reading the record is itself on the record, and the event log did not take the entry; nothing was read")
	}
	return err
}

func (r *Recorder) append(ctx context.Context, rd *reader, e *events.Event) (err error) {
	unsure := false // an append of unknown outcome may have been stored
	for range recordTries {
		if unsure && !rd.known {
			// Another auditor may have appended after it: only the whole history tells.
			history, err := r.log.Load(ctx, e.Aggregate)
			if err != nil {
				return err
			}
			if slices.ContainsFunc(history, func(h events.Recorded) bool { return h.ID == e.ID }) {
				return nil
			}
		}
		if !rd.known {
			last, ok, err := r.log.LastOf(ctx, e.Aggregate)
			if err != nil {
				return err
			}
			rd.chain = events.Chain{}
			if ok {
				rd.chain = events.Chain{Rev: last.Rev, Head: last.Hash, Seq: last.Seq}
			}
			rd.known = true
		}
		e.Rev, e.Prev = rd.chain.Rev+1, rd.chain.Head
		m, eerr := events.Encode(e)
		if eerr != nil {
			return eerr
		}
		var seq events.Seq
		seq, err = r.log.Append(ctx, events.Write{Event: *e, Expect: rd.chain.Seq})
		switch {
		case err == nil:
			rd.chain = events.Chain{Rev: e.Rev, Head: m.Hash(), Seq: seq}
			return nil
		case errors.Is(err, events.ErrUnknownOutcome):
			unsure = true // the very same write again, until the answer is definite
		case errors.Is(err, events.ErrConflict):
			rd.known = false // another auditor appended, or the first try was stored
		default:
			return err
		}
	}
	return err
}
