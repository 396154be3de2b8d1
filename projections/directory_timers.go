package projections

import (
	"cmp"
	"slices"

	"github.com/keytrail/keytrail/events"
)

// Timed is a key whose timer is to be set.
type Timed struct {
	Seq events.Seq // the event after which it is to be set
	key *entry
}

// Setting returns what the view says of the key's timer now, which may be after later
// events than Seq.
func (t Timed) Setting() events.TimerSetting {
	c := t.key.key.Load()
	return events.TimerSetting{Key: c.ref(), At: dueAt(c.status(), c.expires)}
}

// Timer returns what the view says of the key's timer; ok is false for a key that is
// not known.
func (d *Directory) Timer(id events.KeyID) (s events.TimerSetting, ok bool) {
	if e := d.entry(id); e != nil {
		return Timed{key: e}.Setting(), true
	}
	return s, false
}

// dueAt returns when a key becomes due, 0 = never.
func dueAt(s events.Status, expires events.Time) events.Time {
	if lives(s) {
		return expires
	}
	return 0
}

// Timers returns the keys whose timers events after the position after have set,
// moved or cleared, each once, in the order of Seq, and the view's position: what
// events up to there say is in the list. A key that has expired is not in it: its timer
// is what has ended it.
//
// With all the list is made from all keys. It may name keys whose timers are as they
// should be: the timers need not be as the events up to after say, only those of the
// keys that have no event after it. Without all it is made from the last events, if
// the view still knows them, and costs what it returns.
func (d *Directory) Timers(after events.Seq, all bool) (list []Timed, at events.Seq) {
	d.mu.RLock()
	at = d.At()
	if at <= after {
		d.mu.RUnlock()
		return nil, at
	}
	if !all && d.timed.from <= after {
		list = d.timed.after(after)
		d.mu.RUnlock()
		return list, at
	}
	var lists [][]*entry // each only grows behind its end
	for _, l := range d.lists {
		lists = append(lists, l.all)
	}
	d.mu.RUnlock()
	for _, l := range lists {
		for _, e := range l {
			c := e.key.Load()
			if c.chain.Seq > after && (dueAt(c.status(), c.expires) != 0 || e.created <= after && c.status() != events.StatusExpired) {
				list = append(list, Timed{min(c.chain.Seq, at), e})
			}
		}
	}
	slices.SortFunc(list, func(a, b Timed) int { return cmp.Compare(a.Seq, b.Seq) })
	return list, at
}

// recentTimed is how many of the last events about timers a view remembers.
const recentTimed = 1 << 14

// timed remembers the last events that have set, moved or cleared a timer.
type timed struct {
	from events.Seq // every such event after this one is remembered
	ring []Timed    // recentTimed of them at the most
	next int        // the place of the oldest, once the ring is full
}

// note remembers the event if it has changed when the key becomes due. Of a key that
// has expired the timer has fired.
func (t *timed) note(seq events.Seq, e *entry, old, k *events.Key) {
	if dueAt(k.Status, k.ExpiresAt) == dueAt(old.Status, old.ExpiresAt) || k.Status == events.StatusExpired {
		return
	}
	x := Timed{seq, e}
	if len(t.ring) < recentTimed {
		t.ring = append(t.ring, x)
		return
	}
	t.from, t.ring[t.next] = t.ring[t.next].Seq, x
	t.next = (t.next + 1) % recentTimed
}

// after returns those after the position, of each key the last.
func (t *timed) after(after events.Seq) (list []Timed) {
	seen := map[*entry]bool{}
	for i := range t.ring {
		x := t.ring[(t.next+len(t.ring)-1-i)%len(t.ring)]
		if x.Seq <= after {
			break
		}
		if !seen[x.key] {
			seen[x.key] = true
			list = append(list, x)
		}
	}
	slices.Reverse(list)
	return list
}
