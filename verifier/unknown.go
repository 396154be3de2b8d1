package verifier

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
)

// unknowns bounds what uses of keys that are not known cost the ledger. Anybody
// can make any number of them, so only some are recorded one by one; the others
// are counted, exactly, by keyspace and reason. It has a lock of its own, which uses of
// known keys never wait for.
type unknowns struct {
	room int64        // most uses held one by one
	held atomic.Int64 // uses that are recorded one by one and not yet stored

	mu       sync.Mutex // guards what follows
	open     bool
	total    int // most uses recorded one by one in a second, and what one block may take of them
	share    int
	second   int64 // of the counts below
	taken    int
	blocks   [1024]int // by the hash of a block of addresses: two that meet share
	seed     maphash.Seed
	tallies  []events.Tally
	place    map[tallied]int // in tallies
	counted  uint64          // sum of the tallies
	ever     [reasons]uint64 // counted so far
	deadline time.Time       // when the tallies are stored; zero until Run has seen them
}

type tallied struct {
	keyspace events.KeyspaceID
	reason   events.Reason
}

const (
	// tallyEvery is how long suppressed uses are counted before they are stored.
	tallyEvery = time.Second
	// maxTallies bounds the keyspaces told apart: a client may name any.
	maxTallies = 64
)

func (n *unknowns) init(cfg *LedgerConfig) {
	n.room = int64(cfg.BatchUses * max(1, cfg.MaxUses/64/cfg.BatchUses))
	n.total, n.share = cfg.UnknownPerSecond, max(1, cfg.UnknownPerSecond/4)
	n.seed = maphash.MakeSeed()
	n.place = map[tallied]int{}
}

// admits takes one use from the budget of its second, node and block of
// addresses, and reports whether it was there.
func (n *unknowns) admits(u *events.Use) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := int64(u.Time) / 1000; s != n.second {
		n.second, n.taken = s, 0
		clear(n.blocks[:])
	}
	block := &n.blocks[maphash.Comparable(n.seed, blockOf(u.IP))%uint64(len(n.blocks))]
	if n.held.Load() >= n.room || n.taken >= n.total || *block >= n.share {
		return false
	}
	n.taken++
	*block++
	return true
}

// blockOf returns the addresses that count as one client: as many as one
// commonly has. An address that is not known is a block of its own.
func blockOf(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap()
	bits := 48
	if ip.Is4() {
		bits = 24
	}
	p, _ := ip.WithZone("").Prefix(bits)
	return p
}

// count adds u to its tally. wake says that Run is to look, open that the epoch was
// open: else nothing was counted.
func (n *unknowns) count(u *events.Use) (wake, open bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.open {
		return false, false
	}
	key := tallied{u.Keyspace, u.Reason}
	i, ok := n.place[key]
	if !ok && len(n.tallies) >= maxTallies {
		key.keyspace = ""
		i, ok = n.place[key]
	}
	if !ok {
		i = len(n.tallies)
		n.place[key] = i
		n.tallies = append(n.tallies, events.Tally{Time: u.Time, Keyspace: key.keyspace, Reason: key.reason})
	}
	n.tallies[i].Count++
	n.counted++
	n.ever[u.Reason]++
	return n.counted == 1, true
}

// setOpen begins or ends the counting. What was counted is drained after the end.
func (n *unknowns) setOpen(open bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open = open
}

// wait returns how long the tallies may still grow, 0 when they are due.
func (n *unknowns) wait(now time.Time) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.counted == 0:
		return time.Hour
	case !n.open:
		return 0
	}
	if n.deadline.IsZero() {
		n.deadline = now.Add(tallyEvery)
	}
	return max(n.deadline.Sub(now), 0)
}

// drain returns the tallies and begins new ones.
func (n *unknowns) drain() []events.Tally {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.tallies
	n.tallies, n.counted, n.deadline = nil, 0, time.Time{}
	clear(n.place)
	return out
}

// pending returns how many uses are counted and not yet drained.
func (n *unknowns) pending() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.counted
}

// suppressed returns how many uses of the reason were ever counted.
func (n *unknowns) suppressed(r events.Reason) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ever[r]
}
