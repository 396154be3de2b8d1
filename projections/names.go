package projections

import (
	"hash/maphash"

	"github.com/keytrail/keytrail/events"
)

// names finds the keys that are active or disabled, as the events say, by tenant and
// name. It is a hash table of chains that run through the entries, in shards as
// table's, so that growth is per shard (P4). It is not a table, because a key leaves
// its name. The lock of Directory guards it.
type names struct {
	shards [shardCount]struct {
		chains []*entry // the first of each
		n      int      // entries
	}
}

// nameRef is a name within its tenant.
type nameRef struct {
	space  events.KeyspaceID
	tenant events.TenantID
	name   string
}

var nameSeed = maphash.MakeSeed()

func (r nameRef) hash() uint64 { return maphash.Comparable(nameSeed, r) }

// first returns the first entry of the chain that holds those with the hash, nil if
// it is empty.
func (x *names) first(h uint64) *entry {
	if s := &x.shards[shardOf(h)]; len(s.chains) > 0 {
		return s.chains[firstLine(h, len(s.chains))]
	}
	return nil
}

// add enters e under the name, which its key has as long as it is entered.
func (x *names) add(name nameRef, e *entry) {
	h := name.hash()
	s := &x.shards[shardOf(h)]
	if s.n == len(s.chains) {
		x.resize(shardOf(h), s.n+s.n/2+1)
	}
	s.n++
	push(s.chains, h, e)
}

func push(chains []*entry, h uint64, e *entry) {
	i := firstLine(h, len(chains))
	e.named, chains[i] = chains[i], e
}

// remove takes e out from under the name.
func (x *names) remove(name nameRef, e *entry) {
	h := name.hash()
	s := &x.shards[shardOf(h)]
	at := &s.chains[firstLine(h, len(s.chains))]
	for *at != e {
		at = &(*at).named
	}
	*at, e.named = e.named, nil
	s.n--
}

// reserve makes room for n entries, and for the shards that get more than their share.
func (x *names) reserve(n int) {
	share := n / shardCount
	for i := range x.shards {
		x.resize(uint64(i), max(share+share/8+8, len(x.shards[i].chains)))
	}
}

func (x *names) resize(shard uint64, size int) {
	chains := make([]*entry, size)
	for _, e := range x.shards[shard].chains {
		for e != nil {
			next := e.named
			push(chains, e.key.Load().nameRef().hash(), e)
			e = next
		}
	}
	x.shards[shard].chains = chains
}
