package limits

import (
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

// TestNoMillisecondRefillsTwice: of two goroutines that look at the clock one may be
// paused, and come second with the earlier instant.
func TestNoMillisecondRefillsTwice(t *testing.T) {
	dir := &oneKey{id: events.KeyID{15: 1}}
	dir.limit.PerMinute, dir.limit.Burst = 60, 10
	a := newAllocator(dir, 0, 0)
	a.floor = 1
	number, of := uint64(0), uint64(0)
	// take spends what it gets at once.
	take := func(at time.Duration, want int64) int64 {
		number++
		r, ok, _ := a.serve("n1", &ask{Instance: events.InstanceID{1}, Number: number, Buckets: []askBucket{{ID: dir.id0(), Of: of, Want: want}}}, at)
		if !ok {
			t.Fatal("no answer")
		}
		of = number
		return r.Buckets[0].Tokens
	}
	if n := take(time.Second, 20); n != 10 {
		t.Fatalf("%d tokens of a full bucket", n)
	}
	take(time.Second, 0) // says that they are spent
	total := int64(0)
	for range 5 {
		a.sweep(4 * time.Second)
		total += take(2*time.Second, 20)
		take(2*time.Second, 0)
	}
	if total += take(4*time.Second, 20); total != 3 {
		t.Errorf("%d tokens within 3 s at one a second", total)
	}
}
