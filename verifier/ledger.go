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
	// addresses (/24, /48). The others are counted by block, keyspace and reason.
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
// not for more of them. ledger_slab.go says how a number is given without a lock.
type Ledger struct {
	cfg   LedgerConfig
	epoch int64                // set before cur is for the first time
	cur   atomic.Pointer[slab] // gives the next number; nil: ask next. Changed under mu
	_     [64]byte             // what is above changes rarely, and each decision reads it

	published, retries, gaps, lost atomic.Uint64 // for the metrics
	counts                         counts        // of decisions by reason

	unknown unknowns // uses of keys that are not known; it has a lock of its own

	wake chan struct{} // tells Run to look again; never blocks
	done chan struct{} // closed when Run has returned

	last events.Seq   // Run's: the sequence of the node's last message; every append expects it
	uses []events.Use // Run's: of the batch on its way

	mu      sync.Mutex
	open    bool          // guards admission: an epoch is open and not closing
	fenced  error         // another process has taken the name: open is false for good
	end     uint64        // first number after the sealed slabs: cur's own first while there is one
	due     time.Time     // when cur is sent even if not full; zero until Run has seen it
	urgent  bool          // someone waits for a use in cur
	queue   []*slab       // sealed, oldest first
	free    []*slab       // empty, for reuse
	held    int           // slabs of uses in cur, queue and Run's hands
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
	l := &Ledger{cfg: cfg, end: 1, wake: make(chan struct{}, 1), done: make(chan struct{}), changed: make(chan struct{})}
	l.unknown.init(&cfg)
	return l
}

// Append gives the decision its number and holds it until it is stored, within
// FlushEvery when the stream is well. It does not wait, and allocates only the
// next slab. The error is ErrLedgerClosed (no number was given), ErrLedgerFull
// (it will be part of a gap) or ErrSuppressed (it is counted).
func (l *Ledger) Append(u *events.Use) (events.UseID, error) {
	_ = &l.counts.by[u.Reason] // a bad reason panics here, where it has no number yet
	if !u.Key.IsZero() {
		return l.number(u, true)
	}
	if l.unknown.admits(u) {
		if id, err := l.number(u, false); !errors.Is(err, ErrSuppressed) {
			return id, err
		}
	}
	wake, open := l.unknown.count(u)
	if wake {
		l.poke()
	}
	if !open {
		return events.UseID{}, ErrLedgerClosed
	}
	return events.UseID{}, ErrSuppressed
}

// number gives u the next number and puts it where Run finds it. A use of a key that is
// not known gets no number that only a gap would account for: the error is then
// ErrSuppressed, and the caller counts it.
func (l *Ledger) number(u *events.Use, known bool) (events.UseID, error) {
	for {
		s := l.cur.Load()
		if s != nil && s.lost != nil && !known {
			return events.UseID{}, ErrSuppressed
		}
		i, ok := uint64(0), false
		if s != nil {
			i, ok = s.ticket()
		}
		if !ok {
			var err error
			if s, err = l.next(known); err != nil {
				return events.UseID{}, err
			}
			if s == nil {
				continue // another decision was faster
			}
			i = 0
		}
		if !known {
			l.unknown.held.Add(1)
		}
		id := events.UseID{Node: l.cfg.Node, Epoch: l.epoch, N: s.put(i, u)}
		switch {
		case s.lost != nil:
			return id, ErrLedgerFull
		case i == uint64(len(s.slots)-1)/2:
			l.spare()
		}
		return id, nil
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
	if s := l.cur.Load(); s != nil && n >= s.first {
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
	return l.buffered()
}

// buffered is Buffered. The caller holds mu.
func (l *Ledger) buffered() uint64 {
	return l.numberedTo() - 1 - l.durable + l.unknown.pending()
}

// nextNumber returns the number that the next decision gets.
func (l *Ledger) nextNumber() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.numberedTo()
}

// numberedTo is nextNumber. The caller holds mu.
func (l *Ledger) numberedTo() uint64 {
	if s := l.cur.Load(); s != nil {
		return s.first + s.taken()
	}
	return l.end
}
