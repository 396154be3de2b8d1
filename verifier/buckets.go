package verifier

import (
	"sync"
	"sync/atomic"

	"github.com/keytrail/keytrail/projections"
)

// Buckets are the token buckets of a node, of the keys and tenants of one view. They are
// no part of the fold: the view only gives each key and each tenant a place that no
// other ever has, so a bucket stays whatever becomes of the key, its limit and its
// keyspace, and none is ever inherited. The zero value holds full buckets, and is ready
// for use. It is safe for concurrent use.
//
// A bucket costs 16 bytes, and only where one of the 1,024 keys, or tenants, around it
// was asked about under a limit.
type Buckets struct{ keys, tenants bucketArena }

// Bucket is a token bucket, two words that the limiter owns: when it was last used, in
// milliseconds, and what was owed to it then. The zero Bucket is full.
type Bucket struct{ At, Owed atomic.Int64 }

// bucketArena is a sparse array. Its elements never move.
type bucketArena struct {
	chunks atomic.Pointer[[]atomic.Pointer[bucketChunk]]
	mu     sync.Mutex // of who makes a chunk, or a longer list
}

type bucketChunk [1024]Bucket

// touch looks at the bucket at the slot, if it is there.
func (a *bucketArena) touch(slot projections.Slot) {
	if c := a.find(slot); c != nil {
		c[slot%1024].At.Load()
	}
}

// find returns the chunk of the slot, nil if there is none yet.
func (a *bucketArena) find(slot projections.Slot) *bucketChunk {
	if chunks := a.chunks.Load(); chunks != nil && int(slot/1024) < len(*chunks) {
		return (*chunks)[slot/1024].Load()
	}
	return nil
}

// at returns the bucket at the slot. It takes no lock but for the first of a chunk.
func (a *bucketArena) at(slot projections.Slot) *Bucket {
	c := a.find(slot)
	if c == nil {
		c = a.chunk(int(slot / 1024))
	}
	return &c[slot%1024]
}

// chunk returns chunk i, made if need be.
func (a *bucketArena) chunk(i int) *bucketChunk {
	a.mu.Lock()
	defer a.mu.Unlock()
	var chunks []atomic.Pointer[bucketChunk]
	if list := a.chunks.Load(); list != nil {
		chunks = *list
	}
	if i >= len(chunks) {
		longer := make([]atomic.Pointer[bucketChunk], i+i/4+1)
		for n := range chunks {
			longer[n].Store(chunks[n].Load())
		}
		a.chunks.Store(&longer)
		chunks = longer
	}
	if chunks[i].Load() == nil {
		chunks[i].Store(new(bucketChunk))
	}
	return chunks[i].Load()
}
