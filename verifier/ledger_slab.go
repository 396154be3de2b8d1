package verifier

import (
	"github.com/keytrail/keytrail/events"
)

// slab is a run of consecutive numbers: uses, a count of lost ones, or tallies.
type slab struct {
	first   uint64
	uses    []events.Use
	unknown int // how many of uses are of keys that are not known
	lost    uint64
	since   events.Time // of the first of the lost
	until   events.Time // and of the last
	tallies []events.Tally
}

func (s *slab) count() uint64 {
	n := uint64(len(s.uses)) + s.lost
	for i := range s.tallies {
		n += s.tallies[i].Count
	}
	return n
}

// span returns when the first and the last of the decisions were made.
func (s *slab) span() (since, until events.Time) {
	since, until = s.since, s.until
	add := func(t events.Time) {
		if since == 0 || t < since {
			since = t
		}
		until = max(until, t)
	}
	for i := range s.uses {
		add(s.uses[i].Time)
	}
	for i := range s.tallies {
		add(s.tallies[i].Time)
	}
	return since, until
}

type span struct{ first, last uint64 }

const (
	// keepSlabs is how many empty slabs are kept for reuse.
	keepSlabs = 8
	// keepSpoiled is how many spans of uses that could not be encoded are remembered
	// for those who wait for one. Of older ones nobody is told that they are durable.
	keepSpoiled = 16
	// reasons is how many reasons there are, with ReasonNone.
	reasons = int(events.LastReason) + 1
)

// spare keeps an empty slab for reuse.
func (l *Ledger) spare(s *slab) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) < keepSlabs {
		l.free = append(l.free, s)
	}
}
