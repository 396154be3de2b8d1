package logtest

import (
	"slices"
	"sync"
	"time"

	"github.com/keytrail/keytrail/events"
)

// patience is how long the suite waits for what must happen soon: the real
// parts fsync, elect and reconnect on busy machines.
const patience = 30 * time.Second

// recorder is a follower that remembers what it was told.
type recorder struct {
	fail events.Seq // Apply fails when it is handed this sequence

	mu    sync.Mutex
	got   []events.Recorded
	fresh []freshness
	wrong []string // broken promises
}

type freshness struct {
	at   events.Time
	last events.Seq
	seen int // events applied when it came
}

func (r *recorder) Apply(batch []events.Recorded) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(batch) == 0 {
		r.wrong = append(r.wrong, "an empty batch")
	}
	for _, e := range batch {
		if r.fail != 0 && e.Seq == r.fail {
			return errDone
		}
		r.got = append(r.got, e)
	}
	clear(batch[:0:len(batch)]) // the slice is ours until we return
	return nil
}

func (r *recorder) Fresh(at events.Time, last events.Seq) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fresh = append(r.fresh, freshness{at, last, len(r.got)})
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.fresh)
}

func (r *recorder) seqs() []events.Seq {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []events.Seq
	for _, e := range r.got {
		out = append(out, e.Seq)
	}
	return slices.Clip(out)
}
