package projections

import (
	"sync/atomic"
	"unsafe"
)

// index is a hash index with one writer and any number of readers that take no lock
// (P1): from a hash to the numbers of the elements of an arena that have it.
//
// It is cut into shards by the first bits of the hash. Each shard is open addressing
// over words of 8 bytes: the number of the element, and 31 bits of the hash that
// spare a look at the elements of other hashes. So a lookup costs one miss for the
// word and one for the element. A full shard is copied into a larger one that is then
// published whole; the others are not touched (P4). The table stays some 70 % full:
// 11 to 12 bytes an element.
//
// Rejected: one map swapped copy-on-write (O(n) per event); sync.Map (boxed in
// interfaces: over 100 bytes per key more and an allocation per lookup); a map per
// shard under RWMutex (readers write a shared word, and wait); the records themselves
// in the shards, which spares a miss, but then they move, and so would whatever is
// kept beside them.
type index struct {
	shards [shardCount]atomic.Pointer[[]atomic.Uint64]
	counts [shardCount]uint32          // owned by the writer
	hash   func(element uint32) uint64 // what the table is ordered by; writer only
	spare  []atomic.Uint64             // of the last block of words; owned by the writer
}

// word is what the index holds of an element: the low 31 bits of its hash as a tag and
// its number. The top bit is always set, so that no word is 0.
func word(h uint64, element uint32) uint64 { return (h|1<<31)<<32 | uint64(element) }

// probe walks over the elements whose hash may be h.
type probe struct {
	words []atomic.Uint64
	i     int
	tag   uint64
}

func (x *index) probe(h uint64) (p probe) {
	if s := x.shards[shardOf(h)].Load(); s != nil {
		p = probe{*s, firstLine(h, len(*s)), word(h, 0) >> 32}
	}
	return p
}

// next returns the next element, or that there is none.
func (p *probe) next() (element uint32, ok bool) {
	for p.i < len(p.words) {
		w := p.words[p.i].Load()
		if w == 0 {
			break
		}
		if p.i++; p.i == len(p.words) {
			p.i = 0
		}
		if w>>32 == p.tag {
			return uint32(w), true
		}
	}
	return 0, false
}

// insert adds an element that the table does not hold yet. Writer only.
func (x *index) insert(element uint32) {
	h := x.hash(element)
	n := shardOf(h)
	var words []atomic.Uint64
	if s := x.shards[n].Load(); s != nil {
		words = *s
	}
	if int(x.counts[n])+1 > len(words)*4/5 { // one word at least stays free, or a search would not end
		words = x.grow(n, len(words)+len(words)/3+4)
	}
	seat(words, h, element)
	x.counts[n]++
}

func seat(words []atomic.Uint64, h uint64, element uint32) {
	i := firstLine(h, len(words))
	for words[i].Load() != 0 {
		if i++; i == len(words) {
			i = 0
		}
	}
	words[i].Store(word(h, element))
}

// grow publishes the shard with room for more.
func (x *index) grow(n uint64, room int) []atomic.Uint64 {
	bigger := x.words(room)
	if s := x.shards[n].Load(); s != nil {
		for i := range *s {
			if w := (*s)[i].Load(); w != 0 {
				seat(bigger, x.hash(uint32(w)), uint32(w))
			}
		}
	}
	x.shards[n].Store(&bigger)
	return bigger
}

// words returns so many free words. Shards that are large lie side by side, 64 together:
// those grow at about the same time, so the block does not stay long after that.
func (x *index) words(n int) []atomic.Uint64 {
	if n*8*64 < manyBytes {
		return make([]atomic.Uint64, n)
	}
	if len(x.spare) < n {
		x.spare = make([]atomic.Uint64, n*64)
		adviseHuge(unsafe.Pointer(&x.spare[0]), uintptr(len(x.spare))*8)
	}
	words := x.spare[:n:n]
	x.spare = x.spare[n:]
	return words
}

// reserve makes room for n elements, and for the shards that get more than their share.
// Writer only.
func (x *index) reserve(n int) {
	share := n / shardCount
	room := (share+share/8+8)*5/4 + 1
	for i := range x.shards {
		if s := x.shards[i].Load(); s == nil || len(*s) < room {
			x.grow(uint64(i), room)
		}
	}
}

// remove takes an element out. Only for a table without readers: it moves others.
func (x *index) remove(element uint32) {
	h := x.hash(element)
	n := shardOf(h)
	words := *x.shards[n].Load()
	next := func(i int) int {
		if i++; i == len(words) {
			i = 0
		}
		return i
	}
	i := firstLine(h, len(words))
	for uint32(words[i].Load()) != element {
		i = next(i)
	}
	// What follows may stand where it does only because of what stood here.
	for j := next(i); words[j].Load() != 0; j = next(j) {
		w := words[j].Load()
		home := firstLine(x.hash(uint32(w)), len(words))
		if (j-home+len(words))%len(words) >= (j-i+len(words))%len(words) {
			words[i].Store(w)
			i = j
		}
	}
	words[i].Store(0)
	x.counts[n]--
}

// shard yields the elements of one shard. Writer only: a reader would see a moving
// picture.
func (x *index) shard(n int, yield func(element uint32)) {
	if s := x.shards[n].Load(); s != nil {
		for i := range *s {
			if w := (*s)[i].Load(); w != 0 {
				yield(uint32(w))
			}
		}
	}
}
