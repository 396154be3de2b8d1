package projections

import (
	"math/rand/v2"
	"testing"
)

// TestIndex inserts and removes at random, past several growths and a reservation, and
// finds just what a map holds, with hashes that collide in shard, place and tag as well.
func TestIndex(t *testing.T) {
	for _, spread := range []uint64{1 << 63, 7} { // uniform; or a handful of hashes for all
		r := rand.New(rand.NewPCG(1, 2))
		var x index
		hashes := map[uint32]uint64{}
		x.hash = func(n uint32) uint64 { return hashes[n] }
		has := func(n uint32) bool {
			for at := x.probe(hashes[n]); ; {
				switch m, ok := at.next(); {
				case !ok:
					return false
				case m == n:
					return true
				}
			}
		}
		held := map[uint32]bool{}
		for i := range 6000 {
			if i == 1000 {
				x.reserve(2500)
			}
			n := r.Uint32N(3000)
			if _, known := hashes[n]; !known {
				hashes[n] = r.Uint64() % spread
			}
			if has(n) != held[n] {
				t.Fatalf("spread %d: element %d is found: %v, should be: %v", spread, n, has(n), held[n])
			}
			if held[n] {
				x.remove(n)
				delete(held, n)
			} else {
				x.insert(n)
				held[n] = true
			}
		}
		n := 0
		for s := range shardCount {
			x.shard(s, func(m uint32) {
				if n++; !held[m] {
					t.Fatalf("element %d is still there", m)
				}
			})
		}
		if n != len(held) {
			t.Fatalf("walked over %d elements, want %d", n, len(held))
		}
		for n := range held {
			if !has(n) {
				t.Fatalf("spread %d: element %d is lost", spread, n)
			}
		}
	}
}

// An arena keeps every element where it is, over all sizes of its blocks.
func TestArena(t *testing.T) {
	var a arena[uint64]
	var places []*uint64
	for i := range uint32(400 * chunkLen) {
		if i == 100*chunkLen {
			a.reserve(50*chunkLen + 1)
		}
		n, e := a.add()
		if n != i || *e != 0 {
			t.Fatalf("element %d is the next after %d, and holds %d", n, i, *e)
		}
		*e = uint64(i) + 1
		places = append(places, e)
	}
	for i, e := range places {
		if a.at(uint32(i)) != e || *e != uint64(i)+1 {
			t.Fatalf("element %d is elsewhere, or another's", i)
		}
	}
}
