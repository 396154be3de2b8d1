package logtest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
)

// The bounds of Log.Append.
const (
	maxWrites  = 1000
	maxMessage = 1 << 20
)

// heartbeat is how often Follow says Fresh, and the longest that anything here
// waits before it looks at the clock again.
const heartbeat = 250 * time.Millisecond

// maxBatch keeps Apply's batches small, so that tests meet more than one.
const maxBatch = 64

// MemLog is the lifecycle log, the stream of uses and the timers in memory,
// with the real semantics; Reads is the read log beside it. It polices its callers: a write whose expectation
// holds but whose rev or prev does not continue the history is refused with an
// error outside the classes of events/log.go, and with New also fails the test.
type MemLog struct {
	// RetrySucceeds chooses between the two answers that the contract allows to
	// the retry of writes that are already stored: ErrConflict (false; what a
	// single server answers) or success with the first sequence (true; what a
	// cluster answers). Set it before first use.
	RetrySucceeds bool

	id     events.LogID
	stream events.Stream
	reads  *MemLog     // nil for the read log itself
	misuse func(error) // nil: the returned error is all

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each change
	down    bool
	broken  *events.CorruptError
	faults  [numOps][]Fault
	pauses  [numOps][]*Pause
	records []events.Recorded // records[i].Seq == i+1
	byID    map[events.EventID]events.Seq
	chains  map[events.Aggregate]*history
	uses    useStream
	timers  timers
	leases  leaseLog
	prompts prompts
	limits  limitMail
	clock   func() time.Time
	lastNow events.Time
}

type history struct {
	chain events.Chain
	seqs  []events.Seq
}

var (
	_ events.Log       = (*MemLog)(nil)
	_ events.ReadLog   = (*MemLog)(nil)
	_ events.UseSink   = (*MemLog)(nil)
	_ events.UseSource = (*MemLog)(nil)
	_ events.Timers    = (*MemLog)(nil)
	_ events.Leases    = (*MemLog)(nil)
)

// NewMemLog returns an empty log with an identity of its own.
func NewMemLog() *MemLog {
	id := events.LogID(ulid.Make())
	l := newMemLog(id, events.Lifecycle)
	l.reads = newMemLog(id, events.Reads)
	return l
}

func newMemLog(id events.LogID, stream events.Stream) *MemLog {
	return &MemLog{
		id:      id,
		stream:  stream,
		changed: make(chan struct{}),
		clock:   time.Now,
		byID:    map[events.EventID]events.Seq{},
		chains:  map[events.Aggregate]*history{},
		uses:    useStream{ids: map[string]events.Seq{}, tail: map[events.NodeID]events.Seq{}},
		timers:  timers{set: map[events.KeyRef]*setting{}},
		leases:  leaseLog{records: map[leaseRun]events.StoredLease{}},
	}
}

// New is NewMemLog whose misuse fails t, and whose content is checked by
// CheckLog when t ends.
func New(t testing.TB) *MemLog {
	l := NewMemLog()
	for _, l := range []*MemLog{l, l.reads} {
		l.misuse = func(err error) { t.Error(err) }
		t.Cleanup(func() { checkRecords(t, l.Records()) })
	}
	return l
}

// Reads returns the read log that goes with l: with faults, a clock and an outage
// of its own, so that a test can break one of the two.
func (l *MemLog) Reads() *MemLog { return l.reads }

// SetClock makes clock the log's own instead of time.Now. It may be shared and
// stepped: everything that waits looks again within 250 ms.
func (l *MemLog) SetClock(clock func() time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock = clock
}

// ID implements events.Log.
func (l *MemLog) ID() events.LogID { return l.id }

// Records returns everything that is stored, in order.
func (l *MemLog) Records() []events.Recorded {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.records)
}

// now returns the log's clock, which never goes back. l.mu is held.
func (l *MemLog) now() events.Time {
	l.lastNow = max(l.lastNow, events.At(l.clock()))
	return l.lastNow
}

// wake tells all who wait that something changed. l.mu is held.
func (l *MemLog) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// misused reports a fault of the caller. l.mu is held.
func (l *MemLog) misused(format string, a ...any) error {
	err := fmt.Errorf("logtest: misuse: "+format, a...)
	if l.misuse != nil {
		l.misuse(err)
	}
	return err
}

// Append implements events.Log.
func (l *MemLog) Append(ctx context.Context, writes ...events.Write) (last events.Seq, err error) {
	err = l.call(ctx, OpAppend, func() error {
		last, err = l.append(writes)
		return err
	})
	if err != nil {
		return 0, err
	}
	return last, nil
}

func (l *MemLog) append(writes []events.Write) (events.Seq, error) {
	if len(writes) == 0 || len(writes) > maxWrites {
		return 0, l.misused("append of %d writes: want 1 to %d", len(writes), maxWrites)
	}
	messages := make([]events.Message, len(writes))
	hashes := make([]events.Hash, len(writes))
	for i := range writes {
		if err := l.stream.Accepts(writes[i].Event.Aggregate); err != nil {
			return 0, l.misused("append: %w", err)
		}
		m, err := l.encode(&writes[i])
		if errors.Is(err, events.ErrUnavailable) {
			return 0, fmt.Errorf("append: %w", err)
		}
		if err != nil {
			return 0, l.misused("append: %w", err)
		}
		if len(m.Data) > maxMessage {
			return 0, l.misused("append: event of %d bytes: want at most %d", len(m.Data), maxMessage)
		}
		messages[i], hashes[i] = m, m.Hash()
	}
	if seq, ok := l.retry(writes, hashes); ok {
		if l.RetrySucceeds {
			return seq, nil
		}
		return 0, events.ErrConflict
	}
	// Expectations first: a conflict is the caller's to decide again, whatever
	// else is wrong with events that were made from an old state.
	after := map[events.Aggregate]events.Chain{}
	for _, w := range writes {
		a := w.Event.Aggregate
		if _, again := after[a]; again {
			continue
		}
		var c events.Chain
		if h := l.chains[a]; h != nil {
			c = h.chain
		}
		if c.Seq != w.Expect {
			return 0, events.ErrConflict
		}
		after[a] = c
	}
	fresh := make([]events.Recorded, len(writes))
	ids := map[events.EventID]bool{}
	for i, w := range writes {
		e := w.Event
		if _, stored := l.byID[e.ID]; stored || ids[e.ID] {
			return 0, l.misused("append: event id %s is used twice", e.ID)
		}
		ids[e.ID] = true
		fresh[i] = messages[i].Record(e, events.Seq(len(l.records)+i+1), l.now())
		c, err := after[e.Aggregate].Advance(&fresh[i])
		if err != nil {
			return 0, l.misused("append: the expectation holds, but %w", err)
		}
		after[e.Aggregate] = c
	}
	for _, r := range fresh {
		l.records = append(l.records, r)
		l.byID[r.ID] = r.Seq
		h := l.chains[r.Aggregate]
		if h == nil {
			h = new(history)
			l.chains[r.Aggregate] = h
		}
		h.chain, h.seqs = events.Chain{Rev: r.Rev, Head: r.Hash, Seq: r.Seq}, append(h.seqs, r.Seq)
	}
	l.wake()
	return events.Seq(len(l.records)), nil
}

// retry reports whether exactly these writes are stored already, and where the
// last of them is.
func (l *MemLog) retry(writes []events.Write, hashes []events.Hash) (events.Seq, bool) {
	first := l.byID[writes[0].Event.ID]
	for i := range writes {
		seq := l.byID[writes[i].Event.ID]
		if first == 0 || seq != first+events.Seq(i) || l.records[seq-1].Hash != hashes[i] {
			return 0, false
		}
	}
	return first + events.Seq(len(writes)) - 1, true
}

// LastOf implements events.ReadLog; OpLoad is its fault point too.
func (l *MemLog) LastOf(ctx context.Context, a events.Aggregate) (r events.Recorded, ok bool, err error) {
	err = l.call(ctx, OpLoad, func() error {
		if l.broken != nil {
			return l.broken
		}
		if h := l.chains[a]; h != nil && len(h.seqs) > 0 {
			r, ok = l.records[h.seqs[len(h.seqs)-1]-1], true
		}
		return nil
	})
	return r, ok, err
}

// At implements events.ReadLog; OpLoad is its fault point too.
func (l *MemLog) At(ctx context.Context, seq events.Seq) (r events.Recorded, ok bool, err error) {
	err = l.call(ctx, OpLoad, func() error {
		if l.broken != nil {
			return l.broken
		}
		if ok = seq > 0 && seq <= events.Seq(len(l.records)); ok {
			r = l.records[seq-1]
		}
		return nil
	})
	return r, ok, err
}

// encode encodes a write in a version that every reader of the log knows. l.mu is held.
func (l *MemLog) encode(w *events.Write) (events.Message, error) {
	m, err := w.Encode()
	readers := cmp.Or(l.leases.floor.Release, events.FirstRelease)
	if err == nil && (w.Readers == "" || readers.Before(w.Readers)) {
		err = events.Needs(&w.Event).Beyond(readers)
	}
	anew := events.Write{Event: w.Event, Readers: w.Readers}
	if again, aerr := anew.Encode(); err == nil && (aerr != nil || !bytes.Equal(again.Data, m.Data)) {
		return m, errors.New("the event was changed after the write was prepared")
	}
	return m, err
}

// Load implements events.Log.
func (l *MemLog) Load(ctx context.Context, a events.Aggregate) (out []events.Recorded, err error) {
	err = l.call(ctx, OpLoad, func() error {
		if l.broken != nil {
			return l.broken
		}
		if h := l.chains[a]; h != nil {
			for _, s := range h.seqs {
				out = append(out, l.records[s-1])
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Last implements events.Log.
func (l *MemLog) Last(ctx context.Context) (last events.Seq, err error) {
	err = l.call(ctx, OpLast, func() error {
		last = events.Seq(len(l.records))
		return nil
	})
	if err != nil {
		return 0, err
	}
	return last, nil
}

// Follow implements events.Log.
func (l *MemLog) Follow(ctx context.Context, after events.Seq, f events.Follower) error {
	for ctx.Err() == nil {
		s := l.see(after)
		if s.err != nil {
			return s.err
		}
		if s.down {
			wait(ctx, s.changed, heartbeat)
			continue
		}
		if len(s.batch) > 0 {
			after += events.Seq(len(s.batch)) // before Apply: the slice is the follower's to spoil
			if err := f.Apply(s.batch); err != nil {
				return err
			}
		}
		if after != s.last {
			continue // more is waiting
		}
		f.Fresh(s.at, s.last)
		wait(ctx, s.changed, heartbeat)
	}
	return ctx.Err()
}

// sight is what one look at the log shows a follower.
type sight struct {
	batch   []events.Recorded
	at      events.Time
	last    events.Seq
	down    bool
	changed <-chan struct{}
	err     error
}

func (l *MemLog) see(after events.Seq) (s sight) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.at, s.last, s.down, s.changed = l.now(), events.Seq(len(l.records)), l.down, l.changed
	switch {
	case l.down:
	case l.broken != nil:
		s.err = l.broken
	case after > s.last:
		s.err = &events.CorruptError{Seq: after, Reason: fmt.Sprintf("the log ends at %d, before %d that was seen of it: "+
			"it was cut or replaced; restore it from its archive mirror or a backup", s.last, after)}
	default:
		n := min(int(s.last-after), maxBatch)
		s.batch = slices.Clone(l.records[after:][:n])
	}
	return s
}

// wait returns when ctx ends, changed is closed, or d has passed.
func wait(ctx context.Context, changed <-chan struct{}, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-changed:
	case <-t.C:
	}
}
