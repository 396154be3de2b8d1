package logtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

func TestMemLog(t *testing.T) {
	for _, succeeds := range []bool{false, true} {
		t.Run(fmt.Sprint("retry succeeds ", succeeds), func(t *testing.T) {
			TestLog(t, func(t *testing.T) events.Log {
				l := NewMemLog()
				l.RetrySucceeds = succeeds
				return l
			})
		})
	}
}

func TestMemReads(t *testing.T) {
	TestReadLog(t, func(*testing.T) (life, reads events.ReadLog) {
		l := NewMemLog()
		return l, l.Reads()
	})
}

func TestMemUses(t *testing.T) { TestUses(t, func(t *testing.T) Uses { return NewMemLog() }) }

func TestMemLeases(t *testing.T) { TestLeases(t, func(t *testing.T) LeaseLog { return NewMemLog() }) }

func TestMemTimers(t *testing.T) { TestTimers(t, func(t *testing.T) TimerLog { return New(t) }) }

// What the suites cannot ask of a real part in tolerable time, MemLog is asked
// here, to the millisecond, in a bubble.
func TestMemClock(t *testing.T) {
	t.Run("fresh at least every 500 ms", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := New(t)
			f := &recorder{}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := l.Follow(ctx, 0, f); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			heartbeats := f.heartbeats()
			for i := 1; i < len(heartbeats); i++ {
				if d := heartbeats[i].at - heartbeats[i-1].at; d > 500 {
					t.Errorf("%d ms between two heartbeats", d)
				}
			}
			if len(heartbeats) < 20 {
				t.Errorf("%d heartbeats in 10 s", len(heartbeats))
			}
		})
	})
	t.Run("due to the very millisecond", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := New(t)
			var got list[arrival]
			stop := collect(t, t.Context(), l, &got)
			at := soon(3*time.Hour + 7*time.Millisecond)
			set(t, t.Context(), l, NewKeyRef("shop", "acme"), at)
			time.Sleep(4 * time.Hour)
			stop()
			if a := got.get(); len(a) != 1 || a[0].at != at {
				t.Errorf("due %v, want once at %s", a, at)
			}
		})
	})
	t.Run("a stepped clock", func(t *testing.T) {
		var mu sync.Mutex
		now := time.Date(2026, 1, 6, 10, 0, 0, 0, time.UTC)
		l := New(t)
		l.SetClock(func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return now
		})
		var got list[arrival]
		defer collect(t, t.Context(), l, &got)()
		set(t, t.Context(), l, NewKeyRef("shop", "acme"), events.At(now)+1)
		if len(got.get()) != 0 {
			t.Error("due while the clock stands")
		}
		func() {
			mu.Lock()
			defer mu.Unlock()
			now = now.Add(time.Millisecond)
		}()
		until(t, "due after the step", func() bool { return len(got.get()) == 1 })
	})
}

func TestTrimmed(t *testing.T) {
	l := New(t)
	ctx := t.Context()
	for i := range 5 {
		publish(t, ctx, l, "n1", fmt.Sprint(i), "x")
	}
	l.TrimUses(3)
	for after := range events.Seq(5) {
		got, err := l.ReadUses(ctx, after, 10)
		var trimmed *events.TrimmedError
		if after < 3 {
			if !errors.As(err, &trimmed) || trimmed.After != after || trimmed.First != 4 {
				t.Errorf("read after %d: %v", after, err)
			}
		} else if err != nil || got[0].Seq != after+1 {
			t.Errorf("read after %d: %d messages, %v", after, len(got), err)
		}
	}
	l.TrimUses(5)
	if _, ok, err := l.Tail(ctx, "n1"); ok || err != nil {
		t.Errorf("tail past retention: %v, %v", ok, err)
	}
}

// A due key that crashes its process comes again.
func TestCrashedProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(t)
		set(t, t.Context(), l, NewKeyRef("shop", "acme"), soon(-time.Hour))
		tries := 0
		for range 2 {
			func() {
				defer func() { _ = recover() }()
				_ = l.Due(t.Context(), func(context.Context, events.KeyRef) error { tries++; panic("crash") })
			}()
		}
		if tries != 2 {
			t.Errorf("handed over %d times, want again after a crash", tries)
		}
	})
}

// CheckLog is itself checked: each kind of damage must be seen.
func TestCheckLogSeesDamage(t *testing.T) {
	whole := Records(Samples())
	if got := complaints(whole); len(got) != 0 {
		t.Fatalf("the samples are whole, and yet: %v", got)
	}
	for name, damage := range map[string]func(r []events.Recorded) []events.Recorded{
		"a missing event":       func(r []events.Recorded) []events.Recorded { return slices.Delete(r, 7, 8) },
		"a repeated event":      func(r []events.Recorded) []events.Recorded { return slices.Insert(r, 7, r[7]) },
		"two events swapped":    func(r []events.Recorded) []events.Recorded { r[7], r[8] = r[8], r[7]; return r },
		"an altered reason":     func(r []events.Recorded) []events.Recorded { r[7].Reason = "another"; return r },
		"an altered hash":       func(r []events.Recorded) []events.Recorded { r[7].Hash[0] ^= 1; return r },
		"an altered prev":       func(r []events.Recorded) []events.Recorded { r[8].Prev[0] ^= 1; return r },
		"a clock that ran back": func(r []events.Recorded) []events.Recorded { r[8].Stored--; return r },
		"an illegal life": func(r []events.Recorded) []events.Recorded {
			return reseal(r, func(r []events.Recorded) { r[7].Data = &events.KeyEnabled{} })
		},
		"a false before": func(r []events.Recorded) []events.Recorded {
			return reseal(r, func(r []events.Recorded) { r[7].Data = &events.KeyExpiryChanged{Before: 1, After: r[7].Time} })
		},
		"a false before of a tenant": func(r []events.Recorded) []events.Recorded {
			return reseal(r, func(r []events.Recorded) {
				r[3].Data = &events.TenantLimitUpdated{Before: &keyspace.Limit{Plan: "pro"}}
			})
		},
		"a secret that stands twice": func(r []events.Recorded) []events.Recorded {
			return reseal(r, func(r []events.Recorded) {
				for i := range r {
					if c, ok := r[i].Data.(*events.KeyCreated); ok {
						twice := *c
						twice.Digest = events.NewSecret("same").Digest()
						r[i].Data = &twice
					}
				}
			})
		},
	} {
		if got := complaints(damage(slices.Clone(whole))); len(got) == 0 {
			t.Errorf("%s goes unseen", name)
		}
	}
}

// reseal damages and then rebuilds every hash, so that only meaning is wrong.
func reseal(r []events.Recorded, damage func([]events.Recorded)) []events.Recorded {
	damage(r)
	heads := map[events.Aggregate]events.Chain{}
	var ws []events.Write
	for _, x := range r {
		c := heads[x.Aggregate]
		ws = append(ws, Stamp(&c, x.Event))
		heads[x.Aggregate] = c
	}
	return Records(ws)
}

// complaints runs checkRecords on a stand-in for t.
func complaints(r []events.Recorded) []string {
	f := &fake{}
	checkRecords(f, r)
	return f.errors
}

type fake struct {
	testing.TB
	errors []string
}

func (*fake) Helper()                     {}
func (f *fake) Errorf(s string, a ...any) { f.errors = append(f.errors, fmt.Sprintf(s, a...)) }

func TestCheckNoSecretsSees(t *testing.T) {
	f := &fake{}
	CheckNoSecrets(f, []byte("a line with kt_abc in it"), events.NewSecret("kt_abc"), events.NewSecret("kt_xyz"), events.Secret{})
	if len(f.errors) != 2 {
		t.Errorf("%d complaints, want one of the secret that is there and one of the empty one: %v", len(f.errors), f.errors)
	}
	CheckNoSecrets(t, []byte(fmt.Sprint(f.errors)), events.NewSecret("kt_abc"))
}

func TestHistoriesAreLegal(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		l := NewMemLog()
		for i, w := range GenHistory(60).Draw(r, "history") {
			if seq, err := l.Append(t.Context(), w); err != nil || seq != events.Seq(i+1) {
				r.Fatalf("write %d: %d, %v", i+1, seq, err)
			}
		}
		if got := complaints(l.Records()); len(got) != 0 {
			r.Fatalf("%v", got)
		}
	})
}

// The histories reach everything. Their seeds are fixed, so that it is no luck.
func TestHistoriesReachEverything(t *testing.T) {
	seen := map[events.Type]bool{}
	statuses := map[events.Status]bool{}
	for seed := range 100 {
		h := GenHistory(60).Example(seed)
		l := NewMemLog()
		if _, err := l.Append(t.Context(), h[:min(len(h), 100)]...); err != nil {
			t.Fatal(err)
		}
		for _, w := range h {
			seen[w.Event.Type()] = true
		}
		for _, ref := range keysOf(h) {
			hist, err := l.Load(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			k, err := events.FoldKey(hist)
			if err != nil {
				t.Fatal(err)
			}
			statuses[k.Status] = true
		}
	}
	for _, typ := range Types() {
		if !seen[typ] && !strings.HasPrefix(string(typ), "audit.") {
			t.Errorf("no history holds %s", typ)
		}
	}
	for _, s := range []events.Status{events.StatusActive, events.StatusDisabled, events.StatusRevoked, events.StatusExpired} {
		if !statuses[s] {
			t.Errorf("no history ends with a key that is %s", s)
		}
	}
}

func keysOf(h []events.Write) (out []events.Aggregate) {
	for _, w := range h {
		if w.Event.Aggregate.Kind == events.KindKey && w.Event.Rev == 1 {
			out = append(out, w.Event.Aggregate)
		}
	}
	return out
}

// The life that CheckLog follows is the contract's state machine, and shares nothing
// with the one of package events.
func TestLife(t *testing.T) {
	data := map[byte]events.Data{
		'c': &events.KeyCreated{}, 'i': &events.KeyImported{}, 'j': &events.KeyImported{Status: events.StatusDisabled},
		'k': &events.KeyImported{Status: events.StatusRevoked}, 's': &events.KeyScopesAssigned{}, 'd': &events.KeyDisabled{},
		'e': &events.KeyEnabled{}, 'o': &events.KeyRotated{}, 'v': &events.KeyRevoked{}, 'x': &events.KeyExpired{},
	}
	for story, legal := range map[string]bool{
		"csdsev": true, "cosv": true, "codx": true, "isv": true, "jsev": true, "k": true, "cdv": true, "cdex": true,
		"s": false, "v": false, "cc": false, "ci": false, "cdd": false, "ce": false, "coo": false, "cdo": false,
		"cvs": false, "cvv": false, "cxe": false, "kv": false, "jsd": false, "cvx": false,
	} {
		l, ok := life{}, true
		for i := 0; i < len(story) && ok; i++ {
			l, ok = l.next(&events.Recorded{Event: events.Event{Data: data[story[i]]}})
		}
		if ok != legal {
			t.Errorf("%s: legal %v, want %v", story, ok, legal)
		}
	}
}
