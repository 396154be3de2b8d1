package projections

import (
	"slices"

	"github.com/keytrail/keytrail/events"
)

// memory is what a view remembers of the way to its position, besides the tree. With
// it the view recognises a head, a position and a leaf of its own history. It is part
// of snapshots: a view that was restored knows its past as before.
type memory struct {
	marks  marks
	prints prints
	recent []head // the one of size n is at n % recentHeads; nil until there is one
}

const (
	// recentHeads is how many of its last heads a view remembers.
	recentHeads = 4096
	// keptPrints is of how many of its last events a view remembers a print: a
	// megabyte.
	keptPrints = 1 << 18
)

// prints are the first bytes of the hashes of the last events, the newest last. They
// hold keptPrints, and up to as many again before the older are dropped.
type prints [][4]byte

func (p *prints) take(hash events.Hash) {
	if len(*p) == 2*keptPrints {
		*p = append((*p)[:0], (*p)[keptPrints:]...)
	}
	*p = append(*p, [4]byte(hash[:4]))
}

// clone returns a copy that later events do not change.
func (m *memory) clone() memory {
	last := m.prints[max(0, len(m.prints)-keptPrints):]
	return memory{m.marks, slices.Clone(last), slices.Clone(m.recent)}
}

// remember keeps a head for a while.
func (m *memory) remember(h head) {
	if m.recent == nil {
		m.recent = make([]head, recentHeads)
	}
	m.recent[h.size%recentHeads] = h
}

// of reports whether the memory is of a view at the position.
func (m *memory) of(h *history) bool {
	return uint64(len(m.marks)) == uint64(h.at)/MarkEvery && uint64(len(m.prints)) <= uint64(h.at)
}

// fingerprint returns the fingerprint of the history at seq, if the view still has the
// print of that event.
func (f *fold) fingerprint(seq events.Seq) (p events.Fingerprint, known bool) {
	if seq == 0 {
		return p, true
	}
	if seq > f.past.at || uint64(f.past.at-seq) >= uint64(len(f.prints)) {
		return p, false
	}
	event := f.prints[uint64(len(f.prints))-1-uint64(f.past.at-seq)]
	root, known := f.marks.root(seq)
	copy(p[:4], event[:])
	copy(p[4:], root[:])
	return p, known
}

// latestPrint is fingerprint for the position that the view tells, without the lock.
func (f *fold) latestPrint(seq events.Seq) (events.Fingerprint, bool) {
	if t := f.latest.Load(); t != nil && t.size == seq {
		return t.print, true
	}
	return events.Fingerprint{}, false
}

// holds reports whether the view has come to the position, in its history (P9).
func (f *fold) holds(p events.Position) bool {
	if f.past.foreign || p.Seq > f.past.at {
		return false
	}
	if known, ok := f.fingerprint(p.Seq); ok {
		return known == p.History
	}
	root, ok := f.marks.root(p.Seq)
	return ok && events.NewFingerprint(events.Hash{}, root).Root() == p.History.Root()
}

// memory writes it as one record.
func (e *encoder) memory(m *memory) {
	e.byte(recMemory)
	for _, r := range m.marks {
		e.bytes(r[:])
	}
	e.uint(uint64(len(m.prints)))
	for i := range m.prints {
		e.bytes(m.prints[i][:])
	}
	for _, h := range m.recent {
		if h.size > 0 {
			e.uint(uint64(h.size))
			e.bytes(h.root[:])
		}
	}
	e.uint(0)
	e.flush()
}

// memory reads that of a view at the position.
func (d *decoder) memory(at events.Seq) (m memory) {
	for range at / MarkEvery {
		var root events.Hash
		if copy(root[:], d.next(len(root))); d.err != nil {
			return m
		}
		m.marks = append(m.marks, [32]byte(root))
	}
	n := d.count(keptPrints)
	for range n {
		b := d.next(4)
		if d.err != nil {
			return m
		}
		m.prints = append(m.prints, [4]byte(b))
	}
	for size := d.uint(); size > 0 && d.err == nil; size = d.uint() {
		h := head{size: events.Seq(size)}
		if copy(h.root[:], d.next(len(h.root))); h.size > at {
			d.fail(errDamaged)
		}
		m.remember(h)
	}
	return m
}
