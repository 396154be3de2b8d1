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
	last     uint64        // the number of its last ask
	heard    time.Duration // when that was
	holdings map[ID]*holding
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
	s := a.session(node, q.Instance)
	if s == nil || q.Number <= s.last {
		return r, false, false
	}
	s.last, s.heard = q.Number, now
	r = answer{Instance: q.Instance, Number: q.Number, Buckets: make([]answerBucket, len(q.Buckets))}
	for i := range q.Buckets {
		b, newer := a.bucket(s, &q.Buckets[i].ID)
		if unproved = unproved || newer; b == nil {
			continue
		}
		n, ok := a.numbers(b)
		if !ok {
			continue
		}
		b.advance(now, n)
		r.Buckets[i] = a.lease(node, s, b, &q.Buckets[i], now)
	}
	return r, true, unproved
}

func (a *allocator) lease(node events.NodeID, s *session, b *bucket, q *askBucket, now time.Duration) answerBucket {
	h := s.holdings[q.ID]
	if h == nil {
		if a.held(node) >= maxHoldings {
			return answerBucket{Numbers: b.numbers, Owed: b.owed, Wait: waitMost}
		}
		h = &holding{session: s, bucket: b, id: q.ID}
		s.holdings[q.ID] = h
		b.holders = append(b.holders, h)
	}
	b.settle(h, q)
	h.ask, h.demand, h.asked, h.ends = s.last, q.Demand, now, now+a.life
	return b.lease(h, q, now)
}

// session returns that of the run, nil if the node has too many.
func (a *allocator) session(node events.NodeID, run events.InstanceID) *session {
	runs := a.sessions[node]
	if runs == nil {
		runs = map[events.InstanceID]*session{}
		a.sessions[node] = runs
	}
	s := runs[run]
	if s == nil && len(runs) < maxSessions {
		s = &session{holdings: map[ID]*holding{}}
		runs[run] = s
	}
	return s
}

// held returns how many holdings the node has.
func (a *allocator) held(node events.NodeID) (n int) {
	for _, s := range a.sessions[node] {
		n += len(s.holdings)
	}
	return n
}

// expire forgets the holdings that are over at now, and runs of nodes that have not asked
// for a while.
func (a *allocator) expire(now time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for node, runs := range a.sessions {
		for run, s := range runs {
			for _, h := range s.holdings {
				if now > h.ends {
					a.advance(h.bucket, now)
				}
			}
			if len(s.holdings) == 0 && now-s.heard > 10*Life {
				delete(runs, run)
			}
		}
		if len(runs) == 0 {
			delete(a.sessions, node)
		}
	}
}

// sweep forgets the buckets that nobody holds and that are full at now.
func (a *allocator) sweep(now time.Duration) {
	a.mu.Lock()
	ids := slices.Collect(maps.Keys(a.buckets))
	a.mu.Unlock()
	for some := range slices.Chunk(ids, 256) { // asks are answered in between
		a.sweepSome(some, now)
	}
}

func (a *allocator) sweepSome(ids []ID, now time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range ids {
		b := a.buckets[id]
		if b == nil {
			continue
		}
		if a.advance(b, now); b.owed == 0 && len(b.holders) == 0 && (b.young || a.empty(b.numbers, now) == 0) {
			delete(a.buckets, id)
		}
	}
}

// advance brings the bucket to now. Where there is no limit any more the last one pays
// back what is owed: another limit may come.
func (a *allocator) advance(b *bucket, now time.Duration) {
	n, ok := a.numbers(b)
	if !ok {
		n = b.numbers
	}
	b.advance(now, n)
}

// empty returns what a bucket owes at now that was empty when the allocator began.
func (a *allocator) empty(n Numbers, now time.Duration) int64 {
	return n.refill(n.full(), millis(now)-millis(a.since))
}

// bucket returns the bucket that the run names, nil if it is not known here. newer says
// that it is newer than the floor that is proved: the allocator before this one must not
// have served it. A key shares the bucket of the key that it was rotated from.
func (a *allocator) bucket(s *session, id *ID) (b *bucket, newer bool) {
	if h := s.holdings[*id]; h != nil {
		return h.bucket, false
	}
	root := *id
	var began events.Seq
	var ok bool
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
	if !ok || began > a.floor {
		return nil, ok
	}
	if b = a.buckets[root]; b != nil {
		return b, false
	}
	b = &bucket{root: root, newest: id.Key, young: began > a.after, at: millis(a.since)}
	n, ok := a.numbers(b)
	if !ok {
		return nil, false
	}
	if b.numbers = n; !b.young {
		b.owed = n.full()
	}
	a.buckets[root] = b
	return b, false
}

// numbers returns the limit of the bucket: of keys that were rotated, that of the newest.
func (a *allocator) numbers(b *bucket) (n Numbers, ok bool) {
	var l *keyspace.Limit
	space := b.root.Keyspace
	if b.newest.IsZero() {
		l = a.dir.Tenant(space, b.root.Tenant).Limit
	} else {
		k, known := a.dir.Key(b.newest)
		for known && !k.RotatedTo.IsZero() {
			next, there := a.dir.Key(k.RotatedTo)
			if !there {
				break // it comes with the next events
			}
			k, b.newest = next, next.ID
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
	if b.newest.IsZero() {
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
