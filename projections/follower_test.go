package projections

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(logtest.Settled(m)) }

func follow(ctx context.Context, log events.Log, fs ...events.Follower) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- Follow(ctx, log, fs...) }()
	return func() error { cancel(); return <-done }
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		log := logtest.New(t)
		logtest.Append(t, log, events.KeyspaceAggregate("ks"), &events.KeyspaceDefined{Definition: definition()})
		ref := logtest.NewKeyRef("ks", "acme")
		logtest.Append(t, log, ref.Aggregate(), logtest.Created("1"))

		keys, dir := NewKeys(), NewDirectory()
		stop := follow(ctx, log, keys, dir)
		if err := errors.Join(keys.Wait(ctx, 2), dir.Wait(ctx, 2)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		fresh := keys.FreshAt()
		if fresh == 0 {
			t.Error("no heartbeat was taken")
		}
		time.Sleep(2 * time.Second) // in the bubble
		if keys.FreshAt() <= fresh {
			t.Error("a quiet log does not keep the view fresh")
		}

		waited := make(chan error, 2)
		for range 2 {
			go func() { waited <- keys.Wait(ctx, 4) }()
		}
		logtest.Append(t, log, ref.Aggregate(), &events.KeyDisabled{})
		synctest.Wait()
		if len(waited) != 0 {
			t.Error("a wait for 4 ended at 3")
		}
		logtest.Append(t, log, ref.Aggregate(), &events.KeyEnabled{})
		if err := errors.Join(<-waited, <-waited); err != nil {
			t.Error(err)
		}

		// The log away: the view answers, its freshness stands still, and when the
		// log is back it catches up.
		log.SetDown(true)
		synctest.Wait()
		fresh = keys.FreshAt()
		time.Sleep(5 * time.Second)
		if keys.FreshAt() != fresh || byID(keys, ref.Key) == nil {
			t.Error("a view without its log must answer and grow stale")
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := keys.Wait(short, 5); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait ended with %v", err)
		}
		log.SetDown(false)
		logtest.Append(t, log, ref.Aggregate(), &events.KeyRevoked{Code: events.RevokeCompromise})
		if err := keys.Wait(ctx, 5); err != nil {
			t.Fatal(err)
		}
		if got := byID(keys, ref.Key).Status(); got != events.StatusRevoked {
			t.Errorf("status %s", got)
		}
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Errorf("follow ended with %v", err)
		}

		// A restart: the views go on from where they stand, one of them from the start.
		logtest.Append(t, log, events.RoleAggregate("ks", "acme", "dev"), &events.RoleDefined{Scopes: []string{"read"}})
		late := NewDirectory()
		stop = follow(ctx, log, keys, dir, late)
		if err := errors.Join(keys.Wait(ctx, 6), dir.Wait(ctx, 6), late.Wait(ctx, 6)); err != nil {
			t.Fatal(err)
		}
		log.Break(&events.CorruptError{Seq: 6, Reason: "broken"})
		synctest.Wait()
		var corrupt *events.CorruptError
		if err := stop(); !errors.As(err, &corrupt) {
			t.Errorf("a broken log ended the follow with %v", err)
		}
	})
}

func TestFollowStopsAtARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.NewMemLog() // its own checks off: a second creation is a foul
		ref := logtest.NewKeyRef("ks", "acme")
		logtest.Append(t, log, ref.Aggregate(), logtest.Created("1"), logtest.Created("2"))
		v := NewKeys()
		var refused *events.TransitionError
		if err := Follow(t.Context(), log, v, NewDirectory()); !errors.As(err, &refused) {
			t.Errorf("follow ended with %v", err)
		}
		if v.At() != 1 || v.FreshAt() != 0 {
			t.Errorf("at %d, fresh at %d; a view that stands still is not fresh", v.At(), v.FreshAt())
		}
	})
}

// TestReadersDuringApply lets readers run while the tables grow and records
// change. Who saw At() >= s must see every effect up to s (P2), and a record is
// whole at any time (P1).
func TestReadersDuringApply(t *testing.T) {
	const keys, changes = 4000, 6000
	r := rand.New(rand.NewPCG(1, 2))
	w := newWorld(t)
	w.define("ks", definition())
	var digests []events.Digest
	at := map[events.KeyID][]events.Seq{} // where each key's events are
	note := func(ref events.KeyRef) { at[ref.Key] = append(at[ref.Key], events.Seq(len(w.log))) }
	for len(digests) < keys || len(w.log) < keys+changes {
		if len(digests) < keys && r.IntN(2) == 0 {
			secret := fmt.Sprint(len(digests))
			note(w.create("ks", "acme", secret, func(d *events.KeyCreated) { d.ExpiresAt, d.Scopes = 1, []string{"read"} } /* its expiry is its rev */))
			digests = append(digests, events.NewSecret(secret).Digest())
		} else if len(w.refs) > 0 {
			ref := w.refs[r.IntN(len(w.refs))]
			w.add(ref.Aggregate(), &events.KeyExpiryChanged{After: events.Time(len(at[ref.Key]) + 1)})
			note(ref)
		}
	}
	v := NewKeys()
	done := make(chan struct{})
	var wg sync.WaitGroup
	for n := range 3 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(3, uint64(n)))
			for ended := false; !ended; {
				select {
				case <-done:
					ended = true // one more round over the final state
				default:
				}
				for range 200 {
					i := r.IntN(keys)
					ref, seen := w.refs[i], v.At()
					want := 0
					for _, s := range at[ref.Key] {
						if s <= seen {
							want++
						}
					}
					for _, k := range []*Key{lookup(v, digests[i]), byID(v, ref.Key)} {
						switch {
						case k == nil && want > 0:
							t.Errorf("key %d is missing at %d", i, seen)
						case k == nil:
						case int(k.ExpiresAt) < want:
							t.Errorf("key %d is at rev %d at %d, want %d", i, k.ExpiresAt, seen, want)
						case k.ID != ref.Key || k.Tenant != "acme" || k.Space.ID != "ks" || !k.HasScope("read"):
							t.Errorf("key %d is not whole", i)
						}
					}
				}
			}
		})
	}
	var saved []*Keys
	for i := 0; i < len(w.log); {
		n := min(1+r.IntN(64), len(w.log)-i)
		if err := v.Apply(w.log[i:][:n]); err != nil {
			t.Error(err)
			break
		}
		if i += n; len(saved) < 3 && i > len(w.log)/4*(len(saved)+1) {
			saved = append(saved, reload(t, v, LoadKeys))
		}
	}
	close(done)
	wg.Wait()
	for _, s := range saved {
		apply(t, s, w)
		for i, ref := range w.refs {
			if got := lookup(s, digests[i]); got == nil || int(got.ExpiresAt) != len(at[ref.Key]) || *byID(s, ref.Key) != *got {
				t.Fatalf("snapshot and tail differ from the whole log at key %d", i)
			}
		}
	}
}

// TestSnapshotDuringApply takes snapshots from another goroutine than the fold's.
func TestSnapshotDuringApply(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	for i := range 2000 {
		w.create("ks", "acme", fmt.Sprint(i), nil)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range w.log {
			if err := v.Apply(w.log[i : i+1]); err != nil {
				t.Error(err)
			}
		}
	})
	for v.At() < events.Seq(len(w.log)) {
		s := reloadAnywhere(t, v)
		if s.Len() != max(0, int(s.Resume())-1) {
			t.Fatalf("%d keys at %d: not the picture of one position", s.Len(), s.Resume())
		}
	}
	wg.Wait()
}
