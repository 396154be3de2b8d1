package limits

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Directory says which limit holds for a bucket; projections.Directory is one.
type Directory interface {
	Key(events.KeyID) (events.Key, bool)
	Created(events.KeyID) (events.Seq, bool) // where in the log the key begins
	Rules(events.KeyspaceID) *keyspace.Compiled
	Tenant(events.KeyspaceID, events.TenantID) events.Tenant
	Began(events.KeyspaceID, events.TenantID) (events.Seq, bool) // where in the log the tenant's first key begins
}

// allocator is the account of all buckets that somebody uses. A bucket that nobody uses
// costs nothing. It is safe for concurrent use. Its clock is one that cannot be set, and
// may stand still while the machine is suspended.
type allocator struct {
	dir   Directory
	since time.Duration // by its clock: every bucket was empty then (R4)
	after events.Seq    // but those of what began after this place in the log, which were full
	life  time.Duration // for which a lease counts after it was answered

	mu       sync.Mutex
	floor    events.Seq // what is proved; guarded by mu, as is the rest
	buckets  map[ID]*bucket
	sessions map[events.NodeID]map[events.InstanceID]*session
}

// session is one run of a node.
type session struct {
	last  uint64        // the number of its last ask
	heard time.Duration // when that was
	held  int           // holdings
}

// newAllocator returns the allocator whose wait is over at now.
func newAllocator(dir Directory, now time.Duration, after events.Seq) *allocator {
	return &allocator{dir: dir, since: now, after: after, life: lifeAtAllocator, floor: after, buckets: map[ID]*bucket{}, sessions: map[events.NodeID]map[events.InstanceID]*session{}}
}

// proved tells that the floor includes the first seq events.
func (a *allocator) proved(seq events.Seq) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.floor = max(a.floor, seq)
}

// The bounds of what one node can make the allocator keep.
const (
	maxSessions = 16
	maxHoldings = 100_000
)

// serve takes an ask of the node at now. ok is false when there is no answer: it was taken
// before, or is late. unproved says that it is about something newer than the floor that
// is proved.
func (a *allocator) serve(node events.NodeID, q *ask, now time.Duration) (r answer, ok, unproved bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.session(node, q.Instance, now)
	if s == nil || q.Number <= s.last {
		return r, false, false
	}
	s.last, s.heard = q.Number, now
	r = answer{Instance: q.Instance, Number: q.Number, Buckets: make([]answerBucket, len(q.Buckets))}
	for i := range q.Buckets {
		b := &q.Buckets[i]
		root, n, began, ok := a.resolve(b.ID)
		switch {
		case !ok:
		case began > a.floor: // the allocator before this one must not have served it
			unproved = true
		default:
			r.Buckets[i] = a.lease(s, root, b, n, began, now)
		}
	}
	return r, true, unproved
}

func (a *allocator) lease(s *session, root ID, q *askBucket, n Numbers, began events.Seq, now time.Duration) answerBucket {
	b := a.buckets[root]
	if b == nil {
		b = &bucket{at: millis(a.since), holders: map[holder]*holding{}}
		if began <= a.after {
			b.owed = n.full()
		}
		a.buckets[root] = b
	}
	b.advance(now, n)
	who := holder{s, q.ID}
	h := b.holders[who]
	if h == nil {
		if s.held >= maxHoldings {
			return answerBucket{Numbers: n, Owed: b.owed, Wait: waitMost}
		}
		h = new(holding)
		s.held++
		b.holders[who] = h
	}
	b.settle(h, q)
	h.ask, h.demand, h.heard, h.ends = s.last, q.Demand, now, now+a.life
	return b.lease(h, q, n, now)
}

func (a *allocator) session(node events.NodeID, run events.InstanceID, now time.Duration) *session {
	runs := a.sessions[node]
	if runs == nil {
		runs = map[events.InstanceID]*session{}
		a.sessions[node] = runs
	}
	s := runs[run]
	if s == nil && len(runs) < maxSessions {
		s = &session{heard: now}
		runs[run] = s
	}
	return s
}

// sweep forgets what is over at now: holdings, buckets that are full, and runs of nodes
// that have not asked for a while.
func (a *allocator) sweep(now time.Duration) {
	a.mu.Lock()
	ids := slices.Collect(maps.Keys(a.buckets))
	a.mu.Unlock()
	for some := range slices.Chunk(ids, 256) { // asks are answered in between
		a.sweepSome(some, now)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for node, runs := range a.sessions {
		maps.DeleteFunc(runs, func(_ events.InstanceID, s *session) bool { return s.held == 0 && now-s.heard > 10*Life })
		if len(runs) == 0 {
			delete(a.sessions, node)
		}
	}
}

func (a *allocator) sweepSome(ids []ID, now time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range ids {
		b := a.buckets[id]
		n, ok := a.numbers(id)
		if b == nil || !ok {
			continue
		}
		if b.advance(now, n); b.owed == 0 && len(b.holders) == 0 && a.full(id, n, now) {
			delete(a.buckets, id)
		}
	}
}

// full reports whether a bucket that is made anew at now would be full.
func (a *allocator) full(id ID, n Numbers, now time.Duration) bool {
	_, _, began, _ := a.resolve(id)
	return began > a.after || n.refill(n.full(), millis(now)-millis(a.since)) == 0
}

// resolve returns the bucket that id names, its limit, and where in the log its history
// begins.
func (a *allocator) resolve(id ID) (root ID, n Numbers, began events.Seq, ok bool) {
	root = id
	if id.Key.IsZero() {
		began, ok = a.dir.Began(id.Keyspace, id.Tenant)
	} else {
		k, known := a.dir.Key(id.Key)
		for known && !k.RotatedFrom.IsZero() {
			root.Key = k.RotatedFrom
			k, known = a.dir.Key(root.Key)
		}
		began, ok = a.dir.Created(root.Key)
	}
	if !ok {
		return root, n, 0, false
	}
	n, ok = a.numbers(id)
	return root, n, began, ok
}

// numbers returns the limit of the bucket that id names: of keys that were rotated, that
// of the newest.
func (a *allocator) numbers(id ID) (n Numbers, ok bool) {
	var l *keyspace.Limit
	space := id.Keyspace
	if id.Key.IsZero() {
		l = a.dir.Tenant(id.Keyspace, id.Tenant).Limit
	} else {
		k, known := a.dir.Key(id.Key)
		for known && !k.RotatedTo.IsZero() {
			next, there := a.dir.Key(k.RotatedTo)
			if !there {
				break // it comes with the next events
			}
			k = next
		}
		if !known {
			return n, false
		}
		l, space = k.Limit, k.Keyspace
	}
	rules := a.dir.Rules(space)
	if rules == nil {
		return n, false
	}
	if id.Key.IsZero() {
		l = rules.WholeLimit(l)
	} else {
		l = rules.KeyLimit(l)
	}
	n.PerMinute, n.Burst, ok = rules.Resolve(l)
	return n, ok
}

// leased returns how many buckets are in use, and how many tokens are out.
func (a *allocator) leased() (buckets int, tokens int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, b := range a.buckets {
		tokens += b.leased
	}
	return len(a.buckets), tokens
}
