package eventlog

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// fullError turns the server's refusal to take more into an error that says what is full.
func fullError(stream string, refusal *apiError) error {
	reason := "the log server's quota for streams is used up (max_file_store)"
	if refusal.ErrCode == codeStoreFailed {
		reason = fmt.Sprintf("the stream %s has reached its size limit (max_bytes)", stream)
	}
	return &events.StateError{Class: events.ErrFull, Reason: reason, Cause: refusal}
}

// notStoring is told when no write was confirmed while the stream's leader
// answered a read.
func notStoring(stream string, tries int) error {
	return &events.StateError{Class: events.ErrNotStoring, Reason: fmt.Sprintf("the log server answers, and stores nothing in %s: its disk is full or cannot be written", stream),
		Cause: fmt.Errorf("%d writes without an answer in %s", tries, time.Duration(tries)*patience)}
}

// unavailable says why nothing can have been stored, as far as it can be told from here.
func (t *transport) unavailable(stream string, cause error) error {
	reason := "the log server does not answer"
	switch {
	case !t.nc.IsConnected():
		reason = "no log server can be reached"
	case errors.Is(cause, nats.ErrNoResponders):
		reason = fmt.Sprintf("the stream %s has no leader: a majority of the log's servers is needed", stream)
	}
	return &events.StateError{Class: events.ErrUnavailable, Reason: reason, Cause: cause}
}

// state remembers, of each stream, why the last write to it was not stored.
type state struct {
	mu     sync.Mutex
	faults map[string]fault // by stream; guarded by mu
	fills  map[string]Fill  // by stream, as last seen; guarded by mu
}

type fault struct {
	err        error
	reconnects uint64 // of the connection, when it was seen
}

// note remembers the outcome of a write that was full or not stored, and forgets
// it with the first write that was.
func (t *transport) note(stream string, err error) {
	s := &t.state
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		delete(s.faults, stream)
	case errors.Is(err, events.ErrFull), errors.Is(err, events.ErrNotStoring):
		if state, ok := errors.AsType[*events.StateError](err); ok {
			s.put(stream, fault{state, t.nc.Stats().Reconnects})
		}
	}
}

// saw notes what a stream's leader said of it.
func (t *transport) saw(si *jetstream.StreamInfo) {
	stream, known := streams.Find(si.Config.Name)
	f := Fill{Stream: si.Config.Name, Bytes: int64(si.State.Bytes), Limit: si.Config.MaxBytes, Consumers: si.State.Consumers, MaxConsumers: si.Config.MaxConsumers,
		Keeps: stream.Keeps || !known}
	if f.MaxConsumers <= 0 {
		f.MaxConsumers = defaultConsumers
	}
	s := &t.state
	s.mu.Lock()
	if s.fills == nil {
		s.fills = map[string]Fill{}
	}
	s.fills[f.Stream] = f
	s.mu.Unlock()
	if si.Config.Discard == jetstream.DiscardNew {
		t.fill(f.Stream, f.Bytes, f.Limit)
	}
}

// fill notes that a stream which refuses what does not fit is full, and forgets it
// when there is room again for more than one event.
func (t *transport) fill(stream string, bytes, limit int64) {
	s := &t.state
	s.mu.Lock()
	defer s.mu.Unlock()
	known := errors.Is(s.faults[stream].err, events.ErrFull)
	switch room := limit - bytes; {
	case limit > 0 && room < leastRoom:
		if _, ok := s.faults[stream]; !ok {
			s.put(stream, fault{err: fullError(stream, &apiError{ErrCode: codeStoreFailed, Text: fmt.Sprintf("%d of %d bytes are used", bytes, limit)})})
		}
	case known && (limit <= 0 || room >= min(streams.MaxMessage, limit/20)):
		delete(s.faults, stream)
	}
}

// leastRoom is less than any event takes.
const leastRoom = 512

// put remembers a fault. The caller holds mu.
func (s *state) put(stream string, f fault) {
	if s.faults == nil {
		s.faults = map[string]fault{}
	}
	s.faults[stream] = f
}

// Storing reports whether the log stores what is written to it, as far as this
// process has seen: nil, or the error of a write that was not stored. A server
// that cannot write to its disk needs a restart, so what was seen of it holds until
// the connection has been lost once, or a write is stored.
func (t *transport) Storing() error {
	for _, stream := range streams.Names() {
		if err := t.fault(stream); err != nil {
			return err
		}
	}
	return nil
}

// fault is Storing for one stream.
func (t *transport) fault(stream string) error {
	s := &t.state
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.faults[stream]
	if errors.Is(f.err, events.ErrNotStoring) && f.reconnects != t.nc.Stats().Reconnects {
		delete(s.faults, stream)
		return nil
	}
	return f.err
}
