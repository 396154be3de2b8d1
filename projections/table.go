package projections

import (
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
)

// table is a hash index of records with one writer and any number of readers
// that take no lock. Directory has two: by digest and by id.
//
// It is cut into shards by the first bits of the hash. Each shard is open
// addressing over lines of one cache line: a word of seven 8-bit tags and seven
// pointers, so a lookup costs one miss for the line and one for the record.
// Nothing is ever removed (P5), so a line with a free slot ends every search.
// A full shard is copied into a larger one that is then published whole; the
// others are not touched (P4). Any number of lines is allowed, so growth is by
// half and the table stays two thirds full on average: about 14 bytes per key.
//
// Rejected: one map swapped copy-on-write (O(n) per event); sync.Map (keys boxed
// in interfaces: over 100 bytes per key more and an allocation per lookup);
// a map per shard under RWMutex (readers write a shared word, and wait).
type table[R any] struct {
	shards [shardCount]atomic.Pointer[shard[R]]
	counts [shardCount]int   // owned by the writer
	hash   func(r *R) uint64 // what the table is ordered by
}

const (
	shardBits  = 10
	shardCount = 1 << shardBits
	shardMask  = (shardCount - 1) << (64 - shardBits) // of a hash
	lineSlots  = 7
)

type shard[R any] struct{ lines []line[R] }

type line[R any] struct {
	tags    atomic.Uint64 // byte i is the tag of slot i, 0 = free; slots fill from 0 up; byte 7 stays 0
	records [lineSlots]atomic.Pointer[R]
}

// hashSeed is drawn by each process. Digests come from outside: an import names them, and
// the id follows from the digest. Who does not know the seed cannot choose many that
// collide, which would slow down every view.
var hashSeed = [4]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64(), rand.Uint64()}

// hashDigest mixes the words of a digest that a record has. The shard is still the
// digest's own first bits: so a snapshot has the keys in the order of the shards of every
// process (P10). All keys in one shard cost a pause when it grows, and no more.
func hashDigest(d *[3]uint64) uint64 {
	h := spread(fold64(d[0]^hashSeed[0], d[1]^hashSeed[1]) ^ fold64(d[2]^hashSeed[2], hashSeed[3]))
	return d[0]&shardMask | h&^shardMask
}

// hashWhole is hashDigest of all of a digest.
func hashWhole(d *events.Digest) uint64 {
	w := words(d)
	return hashDigest(&w) ^ spread(fold64(binary.LittleEndian.Uint64(d[24:])^hashSeed[2], hashSeed[0]))&^shardMask
}

func hashID(id *[2]uint64) uint64 { return spread(fold64(id[0]^hashSeed[0], id[1]^hashSeed[1])) }

func hashKeyID(id *events.KeyID) uint64 {
	w := idWords(id)
	return hashID(&w)
}

// spread breaks the pattern that one multiplication makes of numbers in a row.
func spread(h uint64) uint64 { return fold64(h, 0x9e3779b97f4a7c15) }

func fold64(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// The hash is cut into shard (top bits), line (the bits below) and tag (the low
// seven bits; the eighth is always set, so that no tag is 0).
func shardOf(h uint64) uint64       { return h >> (64 - shardBits) }
func tagOf(h uint64) uint64         { return h&0x7f | 0x80 }
func firstLine(h uint64, n int) int { i, _ := bits.Mul64(h<<shardBits, uint64(n)); return int(i) }
func full(tags uint64) bool         { return tags>>(8*(lineSlots-1)) != 0 }
func matches(tags, tag uint64) uint64 { // bit 8i+7 is set for a slot i that has the tag, rarely for another used slot
	const ones = 0x0101010101010101
	x := tags ^ tag*ones
	return (x - ones) &^ x & (ones << 7)
}

// find returns the record for which same holds, nil if there is none.
func (t *table[R]) find(h uint64, same func(*R) bool) *R {
	if p := t.slot(h, same); p != nil {
		return p.Load()
	}
	return nil
}

// slot returns the place of the record for which same holds, nil if there is none.
func (t *table[R]) slot(h uint64, same func(*R) bool) *atomic.Pointer[R] {
	s := t.shards[shardOf(h)].Load()
	if s == nil {
		return nil
	}
	for i := firstLine(h, len(s.lines)); ; {
		l := &s.lines[i]
		tags := l.tags.Load()
		for m := matches(tags, tagOf(h)); m != 0; m &= m - 1 {
			if p := &l.records[bits.TrailingZeros64(m)/8]; same(p.Load()) {
				return p
			}
		}
		if !full(tags) {
			return nil
		}
		if i++; i == len(s.lines) {
			i = 0
		}
	}
}

// insert adds a record that the table does not hold yet. Writer only.
func (t *table[R]) insert(r *R) {
	h := t.hash(r)
	n := shardOf(h)
	s := t.shards[n].Load()
	if s == nil {
		s = &shard[R]{make([]line[R], 1)}
		t.shards[n].Store(s)
	}
	if t.counts[n]+1 > len(s.lines)*lineSlots*4/5 { // one slot at least stays free, or a search would not end
		s = s.grown(t.hash, len(s.lines)+len(s.lines)/2+1)
		t.shards[n].Store(s)
	}
	s.insert(h, r)
	t.counts[n]++
}

// reserve makes room for n records, and for the shards that get more than their share.
// Writer only.
func (t *table[R]) reserve(n int) {
	share := n / shardCount
	lines := (share+share/8+8)*5/(lineSlots*4) + 1
	for i := range t.shards {
		switch s := t.shards[i].Load(); {
		case s == nil:
			t.shards[i].Store(&shard[R]{make([]line[R], lines)})
		case len(s.lines) < lines:
			t.shards[i].Store(s.grown(t.hash, lines))
		}
	}
}

func (s *shard[R]) insert(h uint64, r *R) {
	for i := firstLine(h, len(s.lines)); ; {
		l := &s.lines[i]
		if tags := l.tags.Load(); !full(tags) {
			j := (bits.Len64(tags) + 7) / 8
			l.records[j].Store(r) // before its tag: a reader that sees the tag finds the record
			l.tags.Store(tags | tagOf(h)<<(8*j))
			return
		}
		if i++; i == len(s.lines) {
			i = 0
		}
	}
}

func (s *shard[R]) grown(hash func(*R) uint64, lines int) *shard[R] {
	bigger := &shard[R]{make([]line[R], lines)}
	for r := range s.all {
		bigger.insert(hash(r), r)
	}
	return bigger
}

func (s *shard[R]) all(yield func(*R) bool) {
	for i := range s.lines {
		l := &s.lines[i]
		for j := range (bits.Len64(l.tags.Load()) + 7) / 8 {
			if !yield(l.records[j].Load()) {
				return
			}
		}
	}
}

// all yields every record. Writer only: a reader would see a moving picture.
func (t *table[R]) all(yield func(*R) bool) {
	for i := range t.shards {
		if s := t.shards[i].Load(); s != nil {
			for r := range s.all {
				if !yield(r) {
					return
				}
			}
		}
	}
}
