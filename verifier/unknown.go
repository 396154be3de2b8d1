package verifier

import (
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
)

// unknowns bounds what uses of keys that are not known cost the ledger. Anybody
// can make any number of them, so only the first ones of a second are recorded one
// by one; the others are counted, exactly, by second, block of addresses, keyspace
// and reason (unknown_second.go).
//
// It has no lock on the path of a decision: that finds its counter and adds one. mu
// guards what happens once a second.
type unknowns struct {
	room  int64 // most uses held one by one
	total int32 // most uses recorded one by one in a second, and what one block may take of them
	share int32
	seed  maphash.Seed
	held  atomic.Int64 // uses that are recorded one by one and not yet stored

	cur, prev atomic.Pointer[unknownSecond] // the second that runs, and another for who is late; nil for none

	mu      sync.Mutex // guards what follows, and changes of cur and prev
	open    bool
	sealed  []events.Tally  // of the seconds that are over
	counted [reasons]uint64 // ever, in seconds that are over
}

const (
	// tallyEvery is how long after a second began, as Run saw it, its counts are
	// stored: when nobody adds to them any more.
	tallyEvery = 1250 * time.Millisecond
	// maxSealed bounds the tallies held while the stream is away, about 2 MB. From
	// then on the second that runs does not end: its counts stay exact, and say from
	// when to when they were made.
	maxSealed = 16_384
	// maxDrain is how many tallies make one message, at the most: far below the
	// stream's largest, also when each names a keyspace of its own.
	maxDrain = 4096
)

func (n *unknowns) init(cfg *LedgerConfig) {
	n.room = int64(cfg.BatchUses * max(1, cfg.MaxUses/64/cfg.BatchUses))
	n.total, n.share = int32(cfg.UnknownPerSecond), int32(max(1, cfg.UnknownPerSecond/4))
	n.seed = maphash.MakeSeed()
}

// admits takes one use from the budget of its second, node and block of
// addresses, and reports whether it was there.
func (n *unknowns) admits(u *events.Use) bool {
	if n.held.Load() >= n.room {
		return false
	}
	t, _ := n.at(u.Time)
	return t != nil && t.admits(blockID(u.IP), n.total, n.share)
}

// count adds u to its tally. wake says that Run is to look, open that the epoch was
// open: else nothing was counted.
func (n *unknowns) count(u *events.Use) (wake, open bool) {
	k := tallied{blockID(u.IP), u.Keyspace, u.Reason}
	for {
		t, begun := n.at(u.Time)
		if t == nil {
			return wake, false
		}
		wake = wake || begun
		if t.count(n.seed, k, u.Time) {
			return wake, true
		}
		// Sealed meanwhile: by now another one is in its place.
	}
}

// at returns the counts of the instant's second, nil while no epoch is open; begun
// says that they are new.
func (n *unknowns) at(now events.Time) (t *unknownSecond, begun bool) {
	second := int64(now) / 1000
	if t := n.cur.Load(); t.takes(second) {
		return t, false
	}
	if t := n.prev.Load(); t.takes(second) {
		return t, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch cur := n.cur.Load(); {
	case !n.open:
		return nil, false
	case cur.takes(second):
		return cur, false
	case n.prev.Load().takes(second):
		return n.prev.Load(), false
	case cur != nil && len(n.sealed) >= maxSealed:
		cur.endless.Store(true)
		return cur, false
	}
	n.seal(&n.prev)
	n.prev.Store(n.cur.Load())
	t = &unknownSecond{second: second, salt: rand.Uint64()}
	n.cur.Store(t)
	return t, true
}

// seal ends the counts that p points to, if any. The caller holds mu.
func (n *unknowns) seal(p *atomic.Pointer[unknownSecond]) {
	t := p.Swap(nil)
	if t == nil {
		return
	}
	for _, c := range t.seal() {
		n.sealed = append(n.sealed, c)
		n.counted[c.Reason] += c.Count
	}
}

// setOpen begins or ends the counting. What was counted is drained after the end.
func (n *unknowns) setOpen(open bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open = open; !open {
		n.seal(&n.prev)
		n.seal(&n.cur)
	}
}

// wait returns how long nothing is to be stored, 0 when tallies are due.
func (n *unknowns) wait(now time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.sealed) > 0 {
		return 0
	}
	wait := time.Hour
	for _, p := range []*atomic.Pointer[unknownSecond]{&n.prev, &n.cur} {
		if t := p.Load(); t != nil {
			wait = min(wait, max(t.due(now).Sub(now), 0))
		}
	}
	return wait
}

// drain takes the tallies that are due, maxDrain at most.
func (n *unknowns) drain(now time.Time) []events.Tally {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range []*atomic.Pointer[unknownSecond]{&n.prev, &n.cur} {
		if t := p.Load(); t != nil && (t.endless.Load() || !t.due(now).After(now)) {
			n.seal(p)
		}
	}
	out := n.sealed[:min(len(n.sealed), maxDrain):min(len(n.sealed), maxDrain)]
	if n.sealed = n.sealed[len(out):]; len(n.sealed) == 0 {
		n.sealed = nil
	}
	return out
}

// pending returns how many uses are counted and not yet drained.
func (n *unknowns) pending() (sum uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.sealed {
		sum += n.sealed[i].Count
	}
	for _, c := range n.running() {
		sum += c
	}
	return sum
}

// suppressed returns how many uses of the reason were ever counted.
func (n *unknowns) suppressed(r events.Reason) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counted[r] + n.running()[r]
}

// running returns what is counted of the seconds that are not over, by reason. The
// caller holds mu.
func (n *unknowns) running() (sum [reasons]uint64) {
	n.prev.Load().addTo(&sum)
	n.cur.Load().addTo(&sum)
	return sum
}

// blockID is events.BlockOf as a number that is cheap to compare: the family, and
// the bits of the prefix.
func blockID(ip netip.Addr) uint64 {
	switch ip = ip.Unmap(); {
	case ip.Is4():
		b := ip.As4()
		return 1<<62 | uint64(b[0])<<16 | uint64(b[1])<<8 | uint64(b[2])
	case ip.Is6():
		b := ip.As16()
		return 2<<62 | uint64(b[0])<<40 | uint64(b[1])<<32 | uint64(b[2])<<24 | uint64(b[3])<<16 | uint64(b[4])<<8 | uint64(b[5])
	}
	return 0
}

// anyBlock is the blockID of events.AnyBlock().
const anyBlock = 3 << 62

// blockFor returns the block of addresses that a blockID stands for.
func blockFor(id uint64) netip.Prefix {
	switch id >> 62 {
	case 1:
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(id >> 16), byte(id >> 8), byte(id)}), events.BlockBits4)
	case 2:
		return netip.PrefixFrom(netip.AddrFrom16([16]byte{byte(id >> 40), byte(id >> 32), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}), events.BlockBits6)
	case 3:
		return events.AnyBlock()
	}
	return netip.Prefix{}
}
