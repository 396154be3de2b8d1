package verifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
)

// LedgerConfig is what a ledger needs. Sink, Node and Log are required.
type LedgerConfig struct {
	Sink events.UseSink
	Node events.NodeID // belongs to one running process at a time: two would write over each other's epochs
	Log  events.LogID  // the lifecycle log that the positions belong to

	// MaxUses bounds the decisions held in memory while the stream cannot be
	// reached, default 1,048,576 (about 170 MB when full). Past it decisions are
	// numbered, counted and lost: they become a gap record.
	MaxUses int
	// BatchUses is how many decisions make a full message, default 1536: 32 to 64
	// KiB on the wire. More than 2000 may exceed the stream's largest message.
	BatchUses int
	// FlushEvery is how long a decision waits for company, default 100 ms.
	FlushEvery time.Duration
	// Drain is how long an orderly stop goes on trying to store what is held,
	// default 10 s. Past it the epoch stays open and the next start writes down
	// the gap.
	Drain time.Duration

	Now    func() time.Time // names the epoch; default time.Now
	Logger *slog.Logger     // default slog.Default()
}

// The ledger's refusals.
var (
	// ErrLedgerClosed: no epoch is open, nothing was numbered; decide nothing.
	ErrLedgerClosed = errors.New("the ledger of uses is not open")
	// ErrLedgerFull: the decision has its number, but will be recorded as part of
	// a gap only.
	ErrLedgerFull = errors.New("the ledger of uses is full: the decision is counted and lost")
	// ErrNotDurable: the use was not stored while the caller waited. It is still
	// held and will be, or will become part of a gap.
	ErrNotDurable = errors.New("the use is not stored yet")
)

// Ledger numbers every decision of this node 1..n within the epoch that began
// with the process, and writes all of them to the use stream (L1 to L5 of the
// package comment). It is safe for concurrent use. Messages go out one after
// the other: only then does the last message under the node's subject say, after
// a crash, exactly where the record ends. A slow stream makes for fuller batches,
// not for more of them.
type Ledger struct {
	cfg LedgerConfig

	published, retries, gaps, lost atomic.Uint64 // for the metrics

	wake chan struct{} // tells Run to look again; never blocks
	done chan struct{} // closed when Run has returned

	mu      sync.Mutex
	open    bool          // guards admission: an epoch is open and not closing
	epoch   int64         // set once
	next    uint64        // number of the next decision
	cur     *slab         // being filled, nil when none
	due     time.Time     // when cur is sent even if not full; zero until Run has seen it
	urgent  bool          // someone waits for a use in cur
	queue   []*slab       // sealed, oldest first
	free    []*slab       // empty, for reuse
	held    int           // slabs of uses in cur, queue and Run's hands
	durable uint64        // every number up to here is on the record
	spoiled []span        // stored as a gap though Append took them: the codec refused the batch
	changed chan struct{} // closed and replaced when durable grows
}

// slab is a run of consecutive numbers: uses, or a count of lost ones.
type slab struct {
	first uint64
	uses  []events.Use
	lost  uint64
}

func (s *slab) count() uint64 { return uint64(len(s.uses)) + s.lost }

type span struct{ first, last uint64 }

// keepSlabs is how many empty slabs are kept for reuse.
const keepSlabs = 8

// NewLedger returns a ledger that admits nothing until Run has opened an epoch.
func NewLedger(cfg LedgerConfig) *Ledger {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&cfg.MaxUses, 1<<20)
	def(&cfg.BatchUses, 1536)
	cfg.BatchUses = min(cfg.BatchUses, cfg.MaxUses)
	if cfg.FlushEvery <= 0 {
		cfg.FlushEvery = 100 * time.Millisecond
	}
	if cfg.Drain <= 0 {
		cfg.Drain = 10 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Ledger{cfg: cfg, next: 1, wake: make(chan struct{}, 1), done: make(chan struct{}), changed: make(chan struct{})}
}

// Append gives the decision its number and holds it until it is stored, within
// FlushEvery when the stream is well. It does not wait and does not allocate.
// The error is ErrLedgerClosed (no number was given) or ErrLedgerFull.
func (l *Ledger) Append(u *events.Use) (events.UseID, error) {
	id, wake, err := l.append(u)
	if wake {
		l.poke()
	}
	return id, err
}

func (l *Ledger) append(u *events.Use) (id events.UseID, wake bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open {
		return events.UseID{}, false, ErrLedgerClosed
	}
	id = events.UseID{Node: l.cfg.Node, Epoch: l.epoch, N: l.next}
	c := l.cur
	if c == nil || len(c.uses) == cap(c.uses) {
		c = l.roll()
		wake = true
	}
	l.next++
	if cap(c.uses) == 0 {
		c.lost++
		l.lost.Add(1)
		return id, wake, ErrLedgerFull
	}
	c.uses = append(c.uses, *u)
	return id, wake, nil
}

// roll returns the slab that takes the next number: an empty one, or a count of
// lost ones while there is no room. Once full, the ledger takes uses again when
// more than half of it is free, so that a slow stream makes few gaps and not
// thousands.
// The caller holds mu.
func (l *Ledger) roll() *slab {
	most := l.cfg.MaxUses / l.cfg.BatchUses
	if l.cur != nil && l.cur.lost > 0 {
		most /= 2
	}
	full := l.held >= max(most, 1)
	if full && l.cur != nil && l.cur.lost > 0 {
		return l.cur
	}
	l.seal()
	s := new(slab)
	switch n := len(l.free); {
	case full:
	case n > 0:
		s, l.free = l.free[n-1], l.free[:n-1]
		l.held++
	default:
		s.uses = make([]events.Use, 0, l.cfg.BatchUses)
		l.held++
	}
	s.first = l.next
	l.cur = s
	return s
}

// seal ends the current slab. The caller holds mu.
func (l *Ledger) seal() {
	if l.cur != nil {
		l.queue = append(l.queue, l.cur)
	}
	l.cur, l.due, l.urgent = nil, time.Time{}, false
}

// take returns the oldest slab that is to be stored now, nil for none and how
// long until there may be one. With all, nothing waits for company.
func (l *Ledger) take(now time.Time, all bool) (s *slab, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 && l.cur != nil {
		if l.due.IsZero() {
			l.due = now.Add(l.cfg.FlushEvery)
		}
		if wait = l.due.Sub(now); wait > 0 && !all && !l.urgent && len(l.cur.uses) < cap(l.cur.uses) {
			return nil, wait
		}
		l.seal()
	}
	if len(l.queue) == 0 {
		return nil, time.Hour
	}
	s = l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	return s, 0
}

// settle notes that s is on the record and takes it back for reuse.
func (l *Ledger) settle(s *slab, spoiled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable = s.first + s.count() - 1
	close(l.changed)
	l.changed = make(chan struct{})
	if spoiled {
		l.spoiled = append(l.spoiled, span{s.first, l.durable})
	}
	if cap(s.uses) > 0 {
		l.held--
		if len(l.free) < keepSlabs {
			clear(s.uses)
			*s = slab{uses: s.uses[:0]}
			l.free = append(l.free, s)
		}
	}
}

// Sync waits until use n, which Append took, is durable. The error is
// ErrNotDurable when ctx ends or the ledger stops before that, or when n could
// be stored only as part of a gap.
func (l *Ledger) Sync(ctx context.Context, n uint64) error {
	for {
		stored, changed, err := l.progress(n)
		if stored || err != nil {
			return err
		}
		l.poke()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNotDurable, context.Cause(ctx))
		case <-l.done:
			if stored, _, err := l.progress(n); stored || err != nil {
				return err
			}
			return ErrNotDurable
		}
	}
}

// progress says whether n is stored, and asks for haste if it is not.
func (l *Ledger) progress(n uint64) (stored bool, changed <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.spoiled {
		if s.first <= n && n <= s.last {
			return false, nil, ErrNotDurable
		}
	}
	if n <= l.durable {
		return true, nil, nil
	}
	if l.cur != nil && n >= l.cur.first {
		l.urgent = true
	}
	return false, l.changed, nil
}

func (l *Ledger) poke() {
	select {
	case l.wake <- struct{}{}:
	default: // Run has yet to look: it will see this too
	}
}

// Ready reports whether decisions can be recorded: nil, or ErrLedgerClosed.
func (l *Ledger) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open {
		return ErrLedgerClosed
	}
	return nil
}

// Buffered returns how many numbers are given but not yet on the record.
func (l *Ledger) Buffered() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next - 1 - l.durable
}
