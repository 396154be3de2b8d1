package projections

import (
	"math"
	"sync/atomic"
	"unsafe"
)

// arena is a growing array with one writer and any number of readers that take no
// lock. It grows by chunks, so an element never moves, and growth copies nothing but
// the list of chunks (P4). What an element holds is the matter of who wrote it: a
// reader has its number from a place that was stored after the element was.
type arena[T any] struct {
	chunks atomic.Pointer[[]*[chunkLen]T]

	// Owned by the writer.
	n     uint32        // elements
	spare [][chunkLen]T // chunks of the last block that are not in use yet
}

const chunkLen = 1024

// manyBytes is how large a block of chunks is at least that large pages are worth.
const manyBytes = 256 << 10

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
		if len(a.spare) == 0 {
			a.block(min(len(chunks)/4, 64))
		}
		chunks = append(chunks, &a.spare[0])
		a.spare = a.spare[1:]
		a.chunks.Store(&chunks)
	}
	i := a.n
	a.n++
	return i, a.at(i)
}

// reserve makes room for n elements more. Writer only.
func (a *arena[T]) reserve(n int) {
	if len(a.spare) == 0 {
		a.block((n + chunkLen - 1) / chunkLen)
	}
}

// block makes chunks that lie side by side, one at least.
func (a *arena[T]) block(chunks int) {
	a.spare = make([][chunkLen]T, max(chunks, 1))
	if size := uintptr(len(a.spare)) * unsafe.Sizeof(a.spare[0]); size >= manyBytes {
		adviseHuge(unsafe.Pointer(&a.spare[0]), size)
	}
}
