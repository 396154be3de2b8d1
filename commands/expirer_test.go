package commands_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
)

// expirers runs n of them on the world's log until stop. Time is the bubble's.
func expirers(w *world, dir *projections.Directory, n int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		x := commands.NewExpirer(commands.ExpirerConfig{Log: w.log, Leases: w.log, Timers: w.log, Dir: dir, Node: events.NodeID(string(rune('a' + i))), Logger: slog.New(slog.NewJSONHandler(w.out, nil))})
		wg.Go(func() {
			if err := x.Run(ctx); !errors.Is(err, context.Canceled) {
				w.Errorf("expirer: %v", err)
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

// sleep lets the bubble's time pass.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func expiries(history []events.Recorded) (n int, at events.Time) {
	for _, r := range history {
		if r.Type() == events.TypeKeyExpired {
			n, at = n+1, r.Time
		}
	}
	return n, at
}

func TestExpirer(t *testing.T) {
	for name, tt := range map[string]struct {
		then func(t *testing.T, w *world, n *node, id events.KeyID) // at half the key's minute
		want time.Duration                                          // when it expires, 0 = never
	}{
		"left alone": {func(*testing.T, *world, *node, events.KeyID) {}, time.Minute},
		"earlier": {func(t *testing.T, w *world, n *node, id events.KeyID) {
			must(t, n, w, id, &commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("10s")}})
		}, 40 * time.Second},
		"later": {func(t *testing.T, w *world, n *node, id events.KeyID) {
			must(t, n, w, id, &commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("60s")}})
		}, 90 * time.Second},
		"never": {func(t *testing.T, w *world, n *node, id events.KeyID) {
			must(t, n, w, id, &commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresAt: commands.Null[string]()}})
		}, 0},
		"never, then in a while": {func(t *testing.T, w *world, n *node, id events.KeyID) {
			must(t, n, w, id, &commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresAt: commands.Null[string]()}})
			must(t, n, w, id, &commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("45s")}})
		}, 75 * time.Second},
		"revoked":              {func(t *testing.T, w *world, n *node, id events.KeyID) { must(t, n, w, id, new(commands.Revoke)) }, 0},
		"disabled keys expire": {func(t *testing.T, w *world, n *node, id events.KeyID) { must(t, n, w, id, new(commands.Disable)) }, time.Minute},
		"rotated": {func(t *testing.T, w *world, n *node, id events.KeyID) {
			if _, err := n.Rotate(t.Context(), w.call("", ""), id, &commands.Rotate{Overlap: ptr("5s")}); err != nil {
				t.Fatal(err)
			}
		}, 35 * time.Second},
		"faults": {func(t *testing.T, w *world, n *node, id events.KeyID) {
			for _, f := range []logtest.Fault{logtest.Unavailable, logtest.UnknownNotStored, logtest.UnknownStored, logtest.Unavailable} {
				w.log.FailNext(logtest.OpAppend, f)
			}
			w.log.FailNext(logtest.OpLoad, logtest.Unavailable)
			w.log.FailNext(logtest.OpTimer, logtest.Unavailable)
		}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorldAt(t, new(clock))
				n := w.node("one")
				defer expirers(w, n.dir, 3)()
				w.define(n, "acme", acme)
				born := w.clock.at()
				key := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "a", ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("60s")}}).Key
				sleep(30 * time.Second)
				tt.then(t, w, n, key.ID)
				// The millisecond before, the moment itself with what retries take, and
				// long after.
				if tt.want > 0 {
					sleep(tt.want - 30*time.Second - time.Millisecond)
					if _, history := w.load(&key); count(history) != 0 {
						t.Fatal("expired before its millisecond")
					}
					sleep(2 * time.Second)
					_, history := w.load(&key)
					if n, at := expiries(history); n != 1 || at < born.Add(tt.want) || at > born.Add(tt.want+2*time.Second) {
						t.Errorf("expired %d times, at %s; want once at %s", n, at, born.Add(tt.want))
					}
				}
				sleep(5 * time.Minute)
				if _, history := w.load(&key); count(history) != min(1, int(tt.want)) {
					t.Errorf("minutes later: expired %d times", count(history))
				}
			})
		})
	}
}

func count(history []events.Recorded) int { n, _ := expiries(history); return n }

func must(t *testing.T, n *node, w *world, id events.KeyID, c commands.Change) {
	t.Helper()
	if _, err := n.Change(t.Context(), w.call("", ""), "test", id, c); err != nil {
		t.Fatal(err)
	}
}

// TestExpirerStartsLate: an expirer that was away finds all that it missed.
func TestExpirerStartsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldAt(t, new(clock))
		n := w.node("one")
		w.define(n, "acme", acme)
		in := commands.ExpiryWish{ExpiresIn: ptr("60s")}
		a := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "a", ExpiryWish: in}).Key
		b := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "b", ExpiryWish: in}).Key
		must(t, n, w, b.ID, new(commands.Revoke))
		sleep(2 * time.Minute)
		defer expirers(w, n.dir, 2)()
		sleep(2 * time.Second)
		if _, history := w.load(&a); count(history) != 1 {
			t.Errorf("expired %d times", count(history))
		}
		if k, _ := w.load(&b); k.Status != events.StatusRevoked {
			t.Errorf("the revoked key is %s", k.Status)
		}
	})
}

// TestExpirerClockBehind: the timers' clock is ahead of the expirer's. It waits
// for its own and does not spin.
func TestExpirerClockBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldAt(t, new(clock))
		w.log.SetClock(func() time.Time { return time.Now().Add(5 * time.Second) })
		n := w.node("one")
		w.define(n, "acme", acme)
		defer expirers(w, n.dir, 2)()
		key := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "a", ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("60s")}}).Key
		sleep(time.Minute - time.Millisecond)
		if _, history := w.load(&key); count(history) != 0 {
			t.Error("expired before its millisecond")
		}
		sleep(2 * time.Second)
		if _, history := w.load(&key); count(history) != 1 {
			t.Error("not expired")
		}
	})
}
