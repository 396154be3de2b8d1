package verifier

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
)

// # How a number is given without a lock
//
// A slab is a run of consecutive numbers that starts at first. A decision takes a
// ticket i of the current slab with one fetch-add. If the slab has a slot i and is not
// sealed, the decision has the number first+i: it writes its use into that slot and then
// sets the slot's written word. Otherwise the ticket is worth nothing, and the decision
// asks for the next slab, under the ledger's lock: once for each BatchUses decisions.
//
// Numbers have no hole. A slab is sealed by setting the top bit of its ticket word. The
// word's value at that instant says how many tickets were valid: all that were taken
// before, up to the slots there are. None that is taken later is valid, for the bit stays
// set until the slab is empty and used again. The next slab starts right after that many.
// Closing the ledger is the same act without a next slab.
//
// Each number is stored once. Run stores a sealed slab after every valid ticket's slot is
// written. So a writer that is paused between its ticket and its slot delays the record, and
// makes no hole in it. It blocks no other writer: they have slots of their own.
//
// A slab is used again while a paused writer may still know it as the current one. That
// writer has no valid ticket (Run would have waited for it). Its fetch-add comes either
// before the reopening, and finds the top bit, or after it, and takes a valid ticket of the
// new run. It reads first after its fetch-add, so it reads the new one.
//
// Memory order. All of these words are sync/atomic's, which are sequentially consistent and
// order what is before and after them (go.dev/ref/mem). first is written before the store
// that opens the tickets, and read after a fetch-add that saw the store. A use is written
// before its slot's written word is set, and read after that was seen set. A writer reads
// nothing of the slab after setting it, so Run may change all of it then.
//
// What is shared on the path: the ticket word, in a cache line of its own. A slot is three
// whole lines, so that neighbours share none. Rejected: slabs of one processor each, which
// are numbered when they are stored (the answer tells the use's number, so it must be known
// at once; by measurement the pool that finds the processor's slab also costs more than the
// fetch-add); a ring with a sequence word in each slot (all of MaxUses would be allocated at
// the start, and counted uses would need slots for their numbers); one counter of written
// slots (a second shared word).

// slot holds one use. It is three cache lines of 64 bytes.
type slot struct {
	use     events.Use
	written atomic.Uint64 // 1: use is complete, and belongs to who reads it
}

// slab is a run of consecutive numbers: uses, a count of lost ones, or tallies.
type slab struct {
	slots   []slot         // of uses; nil otherwise
	lost    *losses        // not nil: its decisions are counted only
	tallies []events.Tally // of suppressed uses, when it is of those
	first   uint64
	n       uint64 // how many numbers it has, once sealed; guarded by Ledger.mu until Run takes the slab
	counted uint64 // how many of its uses are in Ledger.counts; guarded by counts.mu

	_       [64]byte
	tickets atomic.Uint64 // how many were taken, more than there are slots perhaps; and sealed
	_       [64]byte
}

// sealed is the bit of a ticket word that makes every later ticket worthless.
const sealed = 1 << 63

// newSlab returns a slab for size uses. It gives no ticket until it is opened.
func newSlab(size int) *slab {
	s := &slab{slots: make([]slot, size)}
	s.tickets.Store(sealed)
	return s
}

// newLosses returns a slab without room: it numbers decisions that will be part of a gap.
func newLosses() *slab {
	s := &slab{lost: new(losses)}
	s.lost.since.Store(math.MaxInt64)
	s.tickets.Store(sealed)
	return s
}

// open makes s ready for numbers from first on, and takes its first ticket, 0.
func (s *slab) open(first uint64) {
	s.first, s.n = first, 0
	s.tickets.Store(1)
}

// ticket takes the next ticket; ok is false when it is worth nothing.
func (s *slab) ticket() (i uint64, ok bool) {
	i = s.tickets.Add(1) - 1
	return i, i < s.size()
}

// size returns how many tickets may be valid.
func (s *slab) size() uint64 {
	if s.lost != nil {
		return sealed
	}
	return uint64(len(s.slots))
}

// put completes ticket i, and returns its number.
func (s *slab) put(i uint64, u *events.Use) (n uint64) {
	n = s.first + i
	if s.lost != nil {
		s.lost.add(u)
		return n
	}
	to := &s.slots[i]
	to.use = *u
	to.written.Store(1)
	return n
}

// taken returns how many valid tickets were taken so far.
func (s *slab) taken() uint64 { return min(s.tickets.Load()&^sealed, s.size()) }

// full reports whether no ticket is left.
func (s *slab) full() bool { return s.taken() == s.size() }

// seal ends the tickets. From here on n says how many numbers the slab has.
func (s *slab) seal() { s.n = min(s.tickets.Or(sealed)&^sealed, s.size()) }

// complete reports whether every number of the sealed slab, from the one after done on,
// is written, and how many are.
func (s *slab) complete(done uint64) (uint64, bool) {
	if s.lost != nil {
		done = s.lost.count()
	} else if s.slots != nil {
		for done < s.n && s.slots[done].written.Load() == 1 {
			done++
		}
	} else {
		done = s.n
	}
	return done, done == s.n
}

// wait returns when every number of the sealed slab is written, which takes as long as
// the slowest writer, or when ctx ends.
func (s *slab) wait(ctx context.Context) error {
	done, ok := s.complete(0)
	for spins := 0; !ok; spins++ {
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ErrNotDurable, context.Cause(ctx))
		}
		if spins < 32 {
			runtime.Gosched()
		} else { // the writer's thread is not running
			time.Sleep(min(time.Duration(spins)*time.Microsecond, time.Millisecond))
		}
		done, ok = s.complete(done)
	}
	return nil
}

// losses counts decisions that have a number and no record of their own. It is used
// while the ledger is full only.
type losses struct {
	since, until atomic.Int64 // events.Time of the first and the last
	by           [reasons]atomic.Uint64
	counted      [reasons]uint64 // of by, in Ledger.counts; guarded by counts.mu
}

// add counts u. The count comes last: whoever sees it sees the times.
func (l *losses) add(u *events.Use) {
	t := int64(u.Time)
	for old := l.since.Load(); t < old && !l.since.CompareAndSwap(old, t); old = l.since.Load() {
	}
	for old := l.until.Load(); t > old && !l.until.CompareAndSwap(old, t); old = l.until.Load() {
	}
	l.by[u.Reason].Add(1)
}

func (l *losses) count() (n uint64) {
	for r := range l.by {
		n += l.by[r].Load()
	}
	return n
}

// times returns when the first and the last of the decisions of s were made, of which uses
// were in its slots; zeros when it has none to tell.
func (s *slab) times(uses []events.Use) (since, until events.Time) {
	since, until = math.MaxInt64, 0
	for i := range uses {
		since, until = min(since, uses[i].Time), max(until, uses[i].Time)
	}
	for i := range s.tallies {
		since, until = min(since, s.tallies[i].Time), max(until, s.tallies[i].Time)
	}
	if since > until {
		return 0, 0
	}
	return since, until
}

// span is a run of numbers.
type span struct{ first, last uint64 }

const (
	// keepSlabs is how many empty slabs are kept for reuse.
	keepSlabs = 8
	// keepSpoiled is how many runs of uses that could not be encoded are remembered
	// for those who wait for one. Of older ones nobody is told that they are durable.
	keepSpoiled = 16
	// reasons is how many reasons there are, with ReasonNone.
	reasons = int(events.LastReason) + 1
)
