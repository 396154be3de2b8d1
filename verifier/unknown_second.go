package verifier

import (
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
)

// unknownSecond counts the uses of keys that are not known of one second. What it
// tells apart is bounded: a client may name any keyspace, and come from many
// addresses. Beyond the bounds uses count as of any block, by keyspace and reason;
// and beyond the next, by reason alone.
type unknownSecond struct {
	second  int64       // by the time of the uses
	endless atomic.Bool // it takes the uses of all seconds
	seen    time.Time   // when Run saw it first; unknowns.mu guards it
	salt    uint64      // random: clients cannot know which blocks share

	taken  atomic.Int32                 // uses recorded one by one
	blocks [1024]unknownBlock           // by the hash of a block: two that meet share
	slots  [256]atomic.Pointer[tallyOf] // a hash table with open addressing, never full

	mu        sync.Mutex // guards new entries of slots, and what follows
	closed    bool
	named     atomic.Int32 // entries of a block
	remainder atomic.Int32 // entries of any block that name a keyspace
}

// unknownBlock is what one block of addresses has had of a second.
type unknownBlock struct {
	recorded atomic.Int32 // uses recorded one by one
	named    atomic.Int32 // entries of slots
}

// The bounds of the tallies of one second. With one for each reason, of any block and
// keyspace, there are fewer than 100.
const (
	maxTallies       = 64 // that name a block
	maxBlockTallies  = 8  // of one block
	maxRestKeyspaces = 16 // of any block that name a keyspace
)

// tallied is what is counted apart.
type tallied struct {
	block    uint64 // blockID
	keyspace events.KeyspaceID
	reason   events.Reason
}

// hash is that of a table of this process: clients cannot know which entries meet. The seed
// goes in before the bits are scattered. After that, the blocks that meet in one process
// would meet in all.
func (k *tallied) hash(seed maphash.Seed) uint64 {
	return scatter(maphash.String(seed, string(k.keyspace)) ^ k.block ^ uint64(k.reason)<<52)
}

// scatter is the finalizer of MurmurHash3: each bit of x changes half of the result's.
func scatter(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// tallyOf is one counter.
type tallyOf struct {
	tallied
	first, last atomic.Int64  // events.Time
	n           atomic.Uint64 // from sealedTally on: closed, whatever is added
}

const sealedTally = 1 << 63

// add counts one use and reports whether it did: false when the counter is sealed.
func (e *tallyOf) add(at events.Time) bool {
	for t := e.first.Load(); int64(at) < t && !e.first.CompareAndSwap(t, int64(at)); t = e.first.Load() {
	}
	for t := e.last.Load(); int64(at) > t && !e.last.CompareAndSwap(t, int64(at)); t = e.last.Load() {
	}
	return e.n.Add(1) < sealedTally
}

// takes reports whether uses of the second belong here.
func (t *unknownSecond) takes(second int64) bool {
	return t != nil && (t.second == second || t.endless.Load())
}

// due returns when the counts are to be stored. The caller holds unknowns.mu.
func (t *unknownSecond) due(now time.Time) time.Time {
	if t.seen.IsZero() {
		t.seen = now
	}
	return t.seen.Add(tallyEvery)
}

func (t *unknownSecond) block(id uint64) *unknownBlock {
	return &t.blocks[scatter(id^t.salt)%uint64(len(t.blocks))]
}

// admits takes one use from the budget of the second and of the block.
func (t *unknownSecond) admits(block uint64, total, share int32) bool {
	return t.taken.Load() < total && takeOne(&t.block(block).recorded, share) && takeOne(&t.taken, total)
}

// takeOne raises n unless it has reached most.
func takeOne(n *atomic.Int32, most int32) bool {
	for v := n.Load(); v < most; v = n.Load() {
		if n.CompareAndSwap(v, v+1) {
			return true
		}
	}
	return false
}

// count adds one use to its tally, and reports whether it did: false when the second
// is sealed.
func (t *unknownSecond) count(seed maphash.Seed, k tallied, at events.Time) bool {
	e := t.find(k.hash(seed), &k)
	if e == nil {
		e = t.other(seed, k)
	}
	return e != nil && e.add(at)
}

// find returns the entry of k, nil if there is none.
func (t *unknownSecond) find(hash uint64, k *tallied) *tallyOf {
	for i := hash; ; i++ {
		e := t.slots[i%uint64(len(t.slots))].Load()
		if e == nil || e.tallied == *k {
			return e
		}
	}
}

// other returns the entry that k counts in, which has none of its own: a new one,
// while there is room for it; else the one of all that are not told apart. nil when
// the second is sealed.
func (t *unknownSecond) other(seed maphash.Seed, k tallied) *tallyOf {
	if e := t.widened(seed, &k); e != nil {
		return e
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	if e := t.widened(seed, &k); e != nil {
		return e
	}
	switch {
	case k.block != anyBlock:
		t.named.Add(1)
		t.block(k.block).named.Add(1)
	case k.keyspace != "":
		t.remainder.Add(1)
	}
	e := &tallyOf{tallied: k}
	e.first.Store(math.MaxInt64)
	for i := k.hash(seed); ; i++ {
		if s := &t.slots[i%uint64(len(t.slots))]; s.Load() == nil {
			s.Store(e)
			return e
		}
	}
}

// widened takes from k what there is no room to tell apart, and returns its entry;
// nil if there is none yet.
func (t *unknownSecond) widened(seed maphash.Seed, k *tallied) *tallyOf {
	if k.block != anyBlock && (t.named.Load() >= maxTallies || t.block(k.block).named.Load() >= maxBlockTallies) {
		k.block = anyBlock
	}
	e := t.find(k.hash(seed), k)
	if e == nil && k.block == anyBlock && k.keyspace != "" && t.remainder.Load() >= maxRestKeyspaces {
		k.keyspace = ""
		e = t.find(k.hash(seed), k)
	}
	return e
}

// seal ends the second and returns its tallies.
func (t *unknownSecond) seal() (out []events.Tally) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for i := range t.slots {
		e := t.slots[i].Load()
		if e == nil {
			continue
		}
		if n := e.n.Swap(sealedTally); n > 0 {
			out = append(out, events.Tally{Time: events.Time(e.first.Load()), Until: events.Time(e.last.Load()),
				Keyspace: e.keyspace, Reason: e.reason, Block: blockFor(e.block), Count: n})
		}
	}
	return out
}

// addTo adds what is counted here to the sums by reason.
func (t *unknownSecond) addTo(sum *[reasons]uint64) {
	if t == nil {
		return
	}
	for i := range t.slots {
		if e := t.slots[i].Load(); e != nil {
			sum[e.reason] += e.n.Load()
		}
	}
}
