package projections

import (
	"hash/maphash"
	"sync/atomic"
)

// pool keeps one copy of each value that keys share, under a number, and counts its
// users so that what nobody uses any more goes. A number is used again then: who
// reads without a lock must make sure that it still stood where it was found after
// the value was read. The values themselves never change. Owned by the writer but for
// get.
type pool[T any] struct {
	values arena[atomic.Pointer[T]]
	uses   arena[uint32]
	free   []uint32 // numbers without a value
	index  index
	hash   func(*T) uint64
	same   func(a, b *T) bool
}

var poolSeed = maphash.MakeSeed()

func newPool[T any](hash func(*T) uint64, same func(a, b *T) bool) *pool[T] {
	p := &pool[T]{hash: hash, same: same}
	p.index.hash = func(i uint32) uint64 { return hash(p.get(i)) }
	return p
}

// newValues is a pool of values that == compares.
func newValues[T comparable]() *pool[T] {
	return newPool(func(v *T) uint64 { return maphash.Comparable(poolSeed, *v) }, func(a, b *T) bool { return *a == *b })
}

// get returns value i, nil if the number is not in use. It is for readers too.
func (p *pool[T]) get(i uint32) *T { return p.values.at(i).Load() }

// find returns the number of the value that is the same as like.
func (p *pool[T]) find(like *T) (uint32, bool) {
	for at := p.index.probe(p.hash(like)); ; {
		i, ok := at.next()
		if !ok || p.same(p.get(i), like) {
			return i, ok
		}
	}
}

// add stores a value that the pool does not hold, without a user yet.
func (p *pool[T]) add(v *T) (i uint32) {
	if n := len(p.free); n > 0 {
		i, p.free = p.free[n-1], p.free[:n-1]
	} else {
		i, _ = p.values.add()
		p.uses.add()
	}
	p.values.at(i).Store(v)
	p.index.insert(i)
	return i
}

// hold counts one user more.
func (p *pool[T]) hold(i uint32) { *p.uses.at(i)++ }

// drop counts one user less and reports whether it was the last: then the value is
// gone from the pool.
func (p *pool[T]) drop(i uint32) bool {
	n := p.uses.at(i)
	if *n--; *n > 0 {
		return false
	}
	p.index.remove(i)
	p.values.at(i).Store(nil)
	p.free = append(p.free, i)
	return true
}

// len returns how many values there are.
func (p *pool[T]) len() int { return int(p.values.n) - len(p.free) }

// all yields each value with its number.
func (p *pool[T]) all(yield func(uint32, *T) bool) {
	for i := range p.values.n {
		if v := p.get(i); v != nil && !yield(i, v) {
			return
		}
	}
}
