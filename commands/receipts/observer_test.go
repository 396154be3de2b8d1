package receipts

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// A node is live while its record is renewed, and lapsed once this observer's own
// clock has passed its life, whatever time the record was stored with.
func TestAgeIsTheObserversOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		log.SetClock(func() time.Time { return time.Now().Add(-72 * time.Hour) })
		o := NewObserver(log, slog.New(slog.DiscardHandler))
		if err := log.Raise(t.Context(), events.Head{Log: log.ID(), Size: 3}); err != nil {
			t.Fatal(err)
		}
		lease := logtest.Lease(log.ID(), "n1") // for 10 s
		renew := func() {
			if _, err := log.Renew(t.Context(), lease); err != nil {
				t.Fatal(err)
			}
		}
		want := func(state State, age time.Duration) {
			t.Helper()
			s, err := o.Look(t.Context(), 0)
			if err != nil || len(s.Runs) != 1 || s.Floor.Size != 3 {
				t.Fatal(s, err)
			}
			if r := s.Runs[0]; r.State != state || s.At.Sub(r.Seen) != age {
				t.Errorf("%s, seen %s ago; want %s, %s", r.State, s.At.Sub(r.Seen), state, age)
			}
		}
		renew()
		time.Sleep(5 * time.Second)
		want(Live, 0) // it does not know more
		time.Sleep(10*time.Second + 100*time.Millisecond)
		want(Live, 10*time.Second+100*time.Millisecond) // clocks may drift apart by as much
		time.Sleep(time.Millisecond)
		want(Lapsed, 10*time.Second+101*time.Millisecond)
		renew() // it was only paused
		want(Live, 0)
		if err := log.Release(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		want(Ended, 0)
		if n := testutil.CollectAndCount(o); n != 4 {
			t.Errorf("%d metrics, want the four counts: an ended run has none of its own", n)
		}
	})
}

// late is a log of leases that answers late, with what it held long before.
type late struct {
	Leases
	by time.Duration
}

func (l *late) Nodes(ctx context.Context, atLeast events.Seq) (events.NodeLeases, error) {
	n, err := l.Leases.Nodes(ctx, atLeast)
	time.Sleep(l.by)
	return n, err
}

// A list that was long on its way shows no lapse of a run whose lease was not over
// when it was asked for: the run may have been renewed meanwhile.
func TestALateListShowsNoLapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		list := &late{Leases: log}
		o := NewObserver(list, slog.New(slog.DiscardHandler))
		if err := log.Raise(t.Context(), events.Head{Log: log.ID(), Size: 3}); err != nil {
			t.Fatal(err)
		}
		if _, err := log.Renew(t.Context(), logtest.Lease(log.ID(), "n1")); err != nil { // for 10 s
			t.Fatal(err)
		}
		for i, c := range []struct {
			after, by time.Duration
			want      State
		}{{0, 0, Live}, {8 * time.Second, 4 * time.Second, Live}, {0, 0, Lapsed}} {
			time.Sleep(c.after)
			list.by = c.by
			if s, err := o.Look(t.Context(), 0); err != nil || len(s.Runs) != 1 || s.Runs[0].State != c.want {
				t.Errorf("look %d: %+v, %v; want %s", i, s.Runs, err, c.want)
			}
		}
	})
}

// unrecorded is a log of leases that may store nothing.
type unrecorded struct {
	Leases
	on bool
}

func (u *unrecorded) Nodes(ctx context.Context, atLeast events.Seq) (events.NodeLeases, error) {
	n, err := u.Leases.Nodes(ctx, atLeast)
	n.Unrecorded = u.on
	return n, err
}

// While leases leave no record, and until the first list after that, no run lapses,
// and one that had may be back.
func TestNoRunLapsesUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		list := &unrecorded{Leases: log}
		o := NewObserver(list, slog.New(slog.DiscardHandler))
		if err := log.Raise(t.Context(), events.Head{Log: log.ID(), Size: 3}); err != nil {
			t.Fatal(err)
		}
		if _, err := log.Renew(t.Context(), logtest.Lease(log.ID(), "n1")); err != nil { // for 10 s
			t.Fatal(err)
		}
		for i, c := range []struct {
			after time.Duration
			on    bool
			want  State
		}{
			{0, false, Live}, {11 * time.Second, false, Lapsed},
			{0, true, Live}, {11 * time.Second, true, Live},
			{11 * time.Second, false, Live}, // the lists between may have been too early
			{10 * time.Second, false, Live}, {time.Second, false, Lapsed},
		} {
			time.Sleep(c.after)
			list.on = c.on
			if s, err := o.Look(t.Context(), 0); err != nil || len(s.Runs) != 1 || s.Runs[0].State != c.want {
				t.Errorf("look %d: %+v, %v; want %s", i, s.Runs, err, c.want)
			}
		}
	})
}

// The floor's sizes are known with the first moment at which each was seen.
func TestReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		o := NewObserver(log, slog.New(slog.DiscardHandler))
		began := time.Now()
		for size := events.Seq(10); size <= 10*(maxFloors+1); size += 10 {
			if err := log.Raise(t.Context(), events.Head{Log: log.ID(), Size: size}); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := o.Look(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second)
		}
		const dropped = maxFloors / 4
		for seq, want := range map[events.Seq]time.Duration{
			10*maxFloors + 10: maxFloors * time.Second, 10*maxFloors + 1: maxFloors * time.Second,
			10 * maxFloors: (maxFloors - 1) * time.Second,
			1:              dropped * time.Second, // later than it was: never earlier
		} {
			if at, ok := o.reached(seq); !ok || at.Sub(began) != want {
				t.Errorf("event %d: reached at %s, %v; want %s", seq, at.Sub(began), ok, want)
			}
		}
		if _, ok := o.reached(10*maxFloors + 11); ok {
			t.Error("a floor that was never seen is reached")
		}
	})
}
