package logtest

import (
	"fmt"
	"sync"

	"github.com/keytrail/keytrail/events"
)

// recorder is a follower that remembers what it was told and notices broken
// promises.
type recorder struct {
	after events.Seq // where the follow started
	fail  events.Seq // Apply fails when it is handed this sequence

	mu     sync.Mutex
	stored events.Time // of the last event
	got    []events.Recorded
	fresh  []freshness
	wrong  []string
}

// freshness is one call of Fresh.
type freshness struct {
	at   events.Time
	last events.Seq
}

func (r *recorder) Apply(batch []events.Recorded) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(batch) == 0 {
		r.wrong = append(r.wrong, "Apply of no events")
	}
	for _, e := range batch {
		if e.Seq == r.fail {
			return errDone
		}
		if want := r.after + events.Seq(len(r.got)) + 1; e.Seq != want {
			r.wrong = append(r.wrong, fmt.Sprintf("event %d came where %d belongs", e.Seq, want))
		}
		r.got = append(r.got, e)
		r.stored = e.Stored
	}
	clear(batch) // it is ours until we return: a log that lends out its own memory breaks here
	return nil
}

func (r *recorder) Fresh(at events.Time, last events.Seq) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if have := r.after + events.Seq(len(r.got)); have < last {
		r.wrong = append(r.wrong, fmt.Sprintf("Fresh up to %d when only %d is applied", last, have))
	} else if have == last && at < r.stored {
		r.wrong = append(r.wrong, fmt.Sprintf("Fresh at %s, before event %d was stored at %s", at, last, r.stored))
	}
	if n := len(r.fresh); n > 0 && (at < r.fresh[n-1].at || last < r.fresh[n-1].last) {
		r.wrong = append(r.wrong, fmt.Sprintf("Fresh goes back from %v to {%d %d}", r.fresh[n-1], at, last))
	}
	r.fresh = append(r.fresh, freshness{at, last})
}

func (r *recorder) heartbeats() []freshness {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fresh[:len(r.fresh):len(r.fresh)]
}

func (r *recorder) events() []events.Recorded {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got[:len(r.got):len(r.got)]
}

func (r *recorder) broken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.wrong[:len(r.wrong):len(r.wrong)]
}
