package projections

import (
	"math"
	"sync/atomic"
)

// arena is a growing array with one writer and any number of readers that take no
// lock. It grows by chunks, so an element never moves, and growth copies nothing but
// the list of chunks (P4). What an element holds is the matter of who wrote it: a
// reader has its number from a place that was stored after the element was.
type arena[T any] struct {
	chunks atomic.Pointer[[]*[chunkLen]T]
	n      uint32 // elements; owned by the writer
}

const chunkLen = 1024

// mostOfAKind leaves room for all that one event can bring.
const mostOfAKind = math.MaxUint32 - 1<<16

// at returns element i, of those that add has returned.
func (a *arena[T]) at(i uint32) *T { return &(*a.chunks.Load())[i/chunkLen][i%chunkLen] }

// add returns the next number and its element, which is zero. Writer only.
func (a *arena[T]) add() (uint32, *T) {
	if a.n%chunkLen == 0 {
		var chunks []*[chunkLen]T
		if old := a.chunks.Load(); old != nil {
			chunks = *old
		}
		// No reader looks behind the end that it knows.
		chunks = append(chunks, new([chunkLen]T))
		a.chunks.Store(&chunks)
	}
	i := a.n
	a.n++
	return i, a.at(i)
}
