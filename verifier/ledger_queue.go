package verifier

import (
	"sync"
	"time"

	"github.com/keytrail/keytrail/events"
)

// setOpen begins or ends the admission of decisions. After the end nothing gets a number.
func (l *Ledger) setOpen(open bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.setOpenLocked(open)
}

// setOpenLocked is setOpen. The caller holds mu.
func (l *Ledger) setOpenLocked(open bool) {
	l.open = open
	if !open {
		l.seal()
	}
	l.unknown.setOpen(open)
}

// next makes the slab that gives the next number, an empty one, or a count of lost ones
// while there is no room, and returns it with its ticket 0 taken. It is nil when there is
// one with tickets. The error is ErrLedgerClosed, or ErrSuppressed for a use of an unknown
// key that would be lost.
func (l *Ledger) next(known bool) (*slab, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open {
		return nil, ErrLedgerClosed
	}
	if c := l.cur.Load(); c != nil && !c.full() {
		return nil, nil
	}
	full := l.held >= l.most()
	if full && !known {
		return nil, ErrSuppressed
	}
	l.seal()
	var s *slab
	switch n := len(l.free); {
	case full:
		s = newLosses()
	case n > 0:
		s, l.free = l.free[n-1], l.free[:n-1]
		l.held++
	default: // the first one, or several were filled before a spare was there
		s = newSlab(l.cfg.BatchUses)
		l.held++
	}
	s.open(l.end)
	l.cur.Store(s)
	l.poke()
	return s, nil
}

// most is how many slabs of uses are held at the most: those of known keys, and
// the room beside them. What uses of unknown keys take is bounded by that room,
// so that they never cost a known key's use its place.
func (l *Ledger) most() int {
	return max((l.cfg.MaxUses+int(l.unknown.room))/l.cfg.BatchUses, 1)
}

// spare makes the slab after the current one, if none is empty. It does so outside the
// lock: a slab is a few hundred kilobytes.
func (l *Ledger) spare() {
	l.mu.Lock()
	missing := len(l.free) == 0 && l.held < l.most()
	l.mu.Unlock()
	if !missing {
		return
	}
	s := newSlab(l.cfg.BatchUses)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) < keepSlabs {
		l.free = append(l.free, s)
	}
}

// seal ends the current slab. The caller holds mu.
func (l *Ledger) seal() {
	if s := l.cur.Load(); s != nil {
		s.seal()
		l.end = s.first + s.n
		l.queue = append(l.queue, s)
	}
	l.cur.Store(nil)
	l.due, l.urgent = time.Time{}, false
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
		if wait = min(tallies, uses); wait > 0 && !(all && l.cur.Load() != nil) {
			return nil, wait
		}
		l.seal()
		if tallies == 0 {
			l.numberTallies(now)
		}
		if len(l.queue) == 0 {
			return nil, 0
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
	s := l.cur.Load()
	if s == nil {
		return time.Hour
	}
	if l.due.IsZero() {
		l.due = now.Add(l.cfg.FlushEvery)
	}
	if l.urgent || s.full() {
		return 0
	}
	return max(l.due.Sub(now), 0)
}

// numberTallies gives the suppressed uses that are due their numbers. The caller holds mu,
// and has sealed the current slab.
func (l *Ledger) numberTallies(now time.Time) {
	s := &slab{first: l.end, tallies: l.unknown.drain(now)}
	for i := range s.tallies {
		s.n += s.tallies[i].Count
	}
	if s.n > 0 {
		l.end += s.n
		l.queue = append(l.queue, s)
	}
}

// settle notes that s is on the record and takes it back for reuse. Once full, the ledger
// takes uses again when more than half of it is free, so that a slow stream makes few gaps
// and not thousands.
func (l *Ledger) settle(s *slab, spoiled bool) {
	unknown := int64(0)
	for i := range l.uses {
		if l.uses[i].Key.IsZero() {
			unknown++
		}
	}
	clear(l.uses) // so that the texts in it can be freed
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable = s.first + s.n - 1
	close(l.changed)
	l.changed = make(chan struct{})
	if spoiled {
		l.spoiled = append(l.spoiled, span{s.first, l.durable})
		if n := len(l.spoiled) - keepSpoiled; n > 0 {
			l.doubted = l.spoiled[n-1].last
			l.spoiled = append(l.spoiled[:0], l.spoiled[n:]...)
		}
	}
	if s.slots == nil {
		return
	}
	l.held--
	l.unknown.held.Add(-unknown)
	if len(l.free) < keepSlabs {
		l.free = append(l.free, s)
	}
	if c := l.cur.Load(); c != nil && c.lost != nil && l.held < max(l.most()/2, 1) {
		l.seal()
	}
}

// counts are the decisions that have a number, by reason. No decision is counted on its
// way: Run counts a slab before it stores it, and whoever asks counts first what was
// written since. So a count costs the path no shared word, and is exact when it is read, but
// for a slab that Run waits for: that counts when its slowest writer is done.
type counts struct {
	mu sync.Mutex // may not be locked while Ledger.mu is
	by [reasons]uint64
}

// decided returns how many decisions there were, by reason.
func (l *Ledger) decided() (by [reasons]uint64) {
	l.counts.mu.Lock()
	defer l.counts.mu.Unlock()
	// None of these slabs is emptied while counts.mu is held.
	for _, s := range l.waiting() {
		l.count(s)
	}
	for r, n := range l.counts.by {
		by[r] = n + l.unknown.suppressed(events.Reason(r))
	}
	return by
}

// waiting returns the slabs that Run has not taken.
func (l *Ledger) waiting() []*slab {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := append([]*slab(nil), l.queue...)
	if s := l.cur.Load(); s != nil {
		all = append(all, s)
	}
	return all
}

// count counts what was written into s since the last time. The caller holds counts.mu.
func (l *Ledger) count(s *slab) {
	for ; s.counted < uint64(len(s.slots)) && s.slots[s.counted].written.Load() == 1; s.counted++ {
		l.counts.by[s.slots[s.counted].use.Reason]++
	}
	if s.lost == nil {
		return
	}
	for r := range s.lost.by {
		n := s.lost.by[r].Load()
		l.counts.by[r] += n - s.lost.counted[r]
		l.lost.Add(n - s.lost.counted[r])
		s.lost.counted[r] = n
	}
}

// collect counts what is left of s, which is complete, moves its uses to l.uses and leaves
// its slots empty.
func (l *Ledger) collect(s *slab) {
	l.counts.mu.Lock()
	defer l.counts.mu.Unlock()
	l.count(s)
	l.uses, s.counted = l.uses[:0], 0
	if s.slots == nil {
		return
	}
	used := s.slots[:s.n]
	for i := range used {
		l.uses = append(l.uses, used[i].use)
	}
	clear(used)
}
