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
	Node events.NodeID // belongs to one running process at a time: a second one fences the first (L7)
	Log  events.LogID  // the lifecycle log that the positions belong to

	// MaxUses bounds the decisions held in memory while the stream cannot be
	// reached, default 1,048,576 (about 200 MB when full). Past it decisions are
	// numbered, counted and lost: they become a gap record. Uses of keys that are
	// not known have a small room of their own beside it.
	MaxUses int
	// UnknownPerSecond is how many uses of keys that are not known are recorded one
	// by one in a second, default 100; a quarter of them, at most, from one block of
	// addresses (/24, /48). The others are counted by keyspace and reason.
	UnknownPerSecond int
	// BatchUses is how many decisions make a full message, default 1536: 32 to 64
	// KiB on the wire. More than 2000 may exceed the stream's largest message.
	BatchUses int
	// FlushEvery is how long a decision waits for company, default 100 ms.
	FlushEvery time.Duration
	// Drain is how long an orderly stop goes on trying to store what is held,
	// default 10 s. Past it the epoch stays open and the next start writes down
	// the gap.
	Drain time.Duration

	// Alive reports whether another process holds the name now, and which one, for
	// people. A start is refused while one does. An error says that this is not
	// known: the start then goes on and fences whoever is there. nil: nobody is asked.
	Alive func(ctx context.Context, node events.NodeID) (alive bool, holder string, err error)

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
	// ErrSuppressed: the decision is counted, and gets no number of its own: it is
	// one of too many on keys that are not known.
	ErrSuppressed = errors.New("a use of an unknown key beyond the budget: counted, not recorded")
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
	suppressed                     [reasons]atomic.Uint64

	wake chan struct{} // tells Run to look again; never blocks
	done chan struct{} // closed when Run has returned

	last events.Seq // Run's: the sequence of the node's last message; every append expects it

	mu      sync.Mutex
	open    bool          // guards admission: an epoch is open and not closing
	fenced  error         // another process has taken the name: open is false for good
	epoch   int64         // set once
	next    uint64        // number of the next decision
	cur     *slab         // being filled, nil when none
	due     time.Time     // when cur is sent even if not full; zero until Run has seen it
	urgent  bool          // someone waits for a use in cur
	queue   []*slab       // sealed, oldest first
	free    []*slab       // empty, for reuse
	held    int           // slabs of uses in cur, queue and Run's hands
	unknown unknowns      // uses of keys that are not known
	durable uint64        // every number up to here is on the record
	spoiled []span        // stored as a gap though Append took them: the codec refused the batch; the last few
	doubted uint64        // the last number of the spans that spoiled has forgotten
	changed chan struct{} // closed and replaced when durable grows
}

// NewLedger returns a ledger that admits nothing until Run has opened an epoch.
func NewLedger(cfg LedgerConfig) *Ledger {
	def := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	def(&cfg.MaxUses, 1<<20)
	def(&cfg.BatchUses, 1536)
	def(&cfg.UnknownPerSecond, 100)
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
	l := &Ledger{cfg: cfg, next: 1, wake: make(chan struct{}, 1), done: make(chan struct{}), changed: make(chan struct{})}
	l.unknown.init(&cfg)
	return l
}

// Append gives the decision its number and holds it until it is stored, within
// FlushEvery when the stream is well. It does not wait, and allocates only the
// next slab. The error is ErrLedgerClosed (no number was given), ErrLedgerFull
// (it will be part of a gap) or ErrSuppressed (it is counted).
func (l *Ledger) Append(u *events.Use) (events.UseID, error) {
	id, wake, short, err := l.append(u)
	if wake {
		l.poke()
	}
	if short { // outside the lock: a slab is a few hundred kilobytes
		l.spare(&slab{uses: make([]events.Use, 0, l.cfg.BatchUses)})
	}
	return id, err
}

// append reports whether Run is to look, and whether an empty slab will be missing.
func (l *Ledger) append(u *events.Use) (id events.UseID, wake, short bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open {
		return events.UseID{}, false, false, ErrLedgerClosed
	}
	c := l.cur
	unknown := u.Key.IsZero()
	if unknown && !l.admits(u) {
		wake = l.unknown.count(u)
		l.suppressed[u.Reason].Add(1)
		return events.UseID{}, wake, false, ErrSuppressed
	}
	id = events.UseID{Node: l.cfg.Node, Epoch: l.epoch, N: l.next}
	if c == nil || len(c.uses) == cap(c.uses) {
		c = l.roll()
		wake = true
	}
	l.next++
	if cap(c.uses) == 0 {
		if c.lost == 0 {
			c.since, c.until = u.Time, u.Time
		}
		c.since, c.until = min(c.since, u.Time), max(c.until, u.Time)
		c.lost++
		l.lost.Add(1)
		return id, wake, false, ErrLedgerFull
	}
	c.uses = append(c.uses, *u)
	if unknown {
		c.unknown++
		l.unknown.held++
	}
	return id, wake, len(l.free) == 0 && len(c.uses) == (cap(c.uses)+1)/2 && l.held < l.most(), nil
}

// admits reports whether a use of a key that is not known gets a record of its
// own: within its budget, and where it takes no room from others. The caller
// holds mu.
func (l *Ledger) admits(u *events.Use) bool {
	full := l.held >= l.most() && (l.cur == nil || len(l.cur.uses) == cap(l.cur.uses))
	return !full && l.unknown.admits(u)
}

// most is how many slabs of uses are held at the most: those of known keys, and
// the room beside them. What uses of unknown keys take is bounded by that room,
// so that they never cost a known key's use its place.
func (l *Ledger) most() int {
	return max((l.cfg.MaxUses+l.unknown.room)/l.cfg.BatchUses, 1)
}

// roll returns the slab that takes the next number: an empty one, or a count of
// lost ones while there is no room. Once full, the ledger takes uses again when
// more than half of it is free, so that a slow stream makes few gaps and not
// thousands.
// The caller holds mu.
func (l *Ledger) roll() *slab {
	most := l.most()
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
	default: // the first one, or several were filled before Append could make a spare
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
//
// Suppressed uses get their numbers here, when nothing else waits to be stored:
// while the stream is away they are only counted, and take no place between the
// others.
func (l *Ledger) take(now time.Time, all bool) (s *slab, wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		tallies, uses := l.unknown.wait(now), l.untilDue(now)
		if all && l.unknown.pending > 0 {
			tallies = 0
		}
		if wait = min(tallies, uses); wait > 0 && !(all && l.cur != nil) {
			return nil, wait
		}
		l.seal()
		if tallies == 0 {
			s := &slab{first: l.next, tallies: l.unknown.drain()}
			l.next += s.count()
			l.queue = append(l.queue, s)
		}
	}
	s = l.queue[0]
	l.queue[0] = nil
	l.queue = l.queue[1:]
	return s, 0
}

// untilDue returns how long the current slab waits for company. The caller holds
// mu.
func (l *Ledger) untilDue(now time.Time) time.Duration {
	if l.cur == nil {
		return time.Hour
	}
	if l.due.IsZero() {
		l.due = now.Add(l.cfg.FlushEvery)
	}
	if l.urgent || len(l.cur.uses) == cap(l.cur.uses) {
		return 0
	}
	return max(l.due.Sub(now), 0)
}

// settle notes that s is on the record and takes it back for reuse.
func (l *Ledger) settle(s *slab, spoiled bool) {
	clear(s.uses) // Run alone has it: not under the lock
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable = s.first + s.count() - 1
	close(l.changed)
	l.changed = make(chan struct{})
	if spoiled {
		l.spoiled = append(l.spoiled, span{s.first, l.durable})
		if n := len(l.spoiled) - keepSpoiled; n > 0 {
			l.doubted = l.spoiled[n-1].last
			l.spoiled = append(l.spoiled[:0], l.spoiled[n:]...)
		}
	}
	if cap(s.uses) > 0 {
		l.held--
		l.unknown.held -= s.unknown
		if len(l.free) < keepSlabs {
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
	if n <= l.doubted {
		return false, nil, ErrNotDurable
	}
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

// Ready reports whether decisions can be recorded: nil, or ErrLedgerClosed, with
// ErrFenced when another process has taken the node's name.
func (l *Ledger) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fenced != nil {
		return fmt.Errorf("%w: %w", ErrLedgerClosed, l.fenced)
	}
	if !l.open {
		return ErrLedgerClosed
	}
	return nil
}

// Buffered returns how many decisions are not yet on the record.
func (l *Ledger) Buffered() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.next - 1 - l.durable + l.unknown.pending
}
