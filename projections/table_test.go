package projections

import (
	"math/rand/v2"
	"testing"

	"github.com/keytrail/keytrail/events"
)

// TestTable fills an index past several growths and a reservation, and finds every
// record, the missing ones not, with hashes that collide in shard, line and tag as well.
func TestTable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, spread := range []uint64{1 << 63, 7} { // uniform; or a handful of hashes for all
		table := &table[events.Digest]{}
		table.hash = func(k *events.Digest) uint64 { return hashWhole(k) % spread }
		find := func(k *events.Digest) *events.Digest {
			if p := table.slot(table.hash(k), func(o *events.Digest) bool { return *o == *k }); p != nil {
				return p.Load()
			}
			return nil
		}
		var keys []*events.Digest
		for i := range 3000 {
			if i == 1000 {
				table.reserve(2500)
			}
			k := new(events.Digest)
			for j := range k {
				k[j] = byte(r.Uint32())
			}
			if find(k) != nil {
				t.Fatal("found before it was there")
			}
			table.insert(k)
			keys = append(keys, k)
		}
		for _, k := range keys {
			if find(k) != k {
				t.Fatalf("spread %d: a record is lost", spread)
			}
		}
		n := 0
		for range table.all {
			n++
		}
		if n != len(keys) {
			t.Fatalf("walked over %d records, want %d", n, len(keys))
		}
	}
}

// TestHashID says that ids drawn in one millisecond by counting up, as a
// monotonic ULID source does, spread over the shards.
func TestHashID(t *testing.T) {
	var counts [shardCount]int
	var id events.KeyID
	for i := range 100 * shardCount {
		id[13], id[14], id[15] = byte(i>>16), byte(i>>8), byte(i)
		counts[shardOf(hashKeyID(&id))]++
	}
	for i, n := range counts {
		if n < 40 || n > 200 {
			t.Fatalf("shard %d holds %d of 100 expected", i, n)
		}
	}
}
