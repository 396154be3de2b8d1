package logtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

// TimerLog is a log with its timers.
type TimerLog interface {
	events.Log
	events.Timers
}

// TestTimers is the contract of events.Timers. open returns a new, empty log
// and closes it when its test ends. Its clock must be this machine's.
func TestTimers(t *testing.T, open func(t *testing.T) TimerLog) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, ctx context.Context, log TimerLog)
	}{
		{"changes come in order, a failed one again before the next", changesInOrder},
		{"changes go to one of many processes", changesShared},
		{"changes go on where they stopped", changesResume},
		{"a key is due at its instant, never before", dueOnTime},
		{"an instant in the past is due at once", duePast},
		{"set replaces, earlier and later", dueReplaced},
		{"clear forgets, and forgetting nothing is no error", dueCleared},
		{"a failed due comes again", dueAgain},
		{"each due goes to one of many processes", dueShared},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they wait for the clock, not for the machine
			log := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
			defer cancel()
			c.run(t, ctx, log)
		})
	}
}

// beside runs a long-lived call beside the test. stop ends and joins it and
// wants it to have returned because its context ended.
func beside(t *testing.T, ctx context.Context, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- run(ctx) }() // joined by stop
	return sync.OnceFunc(func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
}

// list is a list that several goroutines append to.
type list[T any] struct {
	mu  sync.Mutex
	all []T
}

func (l *list[T]) add(x T) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, x)
	return len(l.all)
}

func (l *list[T]) get() []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

func numbers(n int) (out []events.Seq) {
	for i := range n {
		out = append(out, events.Seq(i+1))
	}
	return out
}

var errOnce = errors.New("a failure on purpose")

func changesInOrder(t *testing.T, ctx context.Context, log TimerLog) {
	for i := range 3 {
		Append(t, log, reader("r"), note(i))
	}
	var tried, done list[events.Seq]
	failed := false
	defer beside(t, ctx, func(ctx context.Context) error {
		return log.Changes(ctx, func(_ context.Context, r *events.Recorded) error {
			tried.add(r.Seq)
			if r.Seq == 2 && !failed {
				failed = true
				return errOnce
			}
			done.add(r.Seq)
			return nil
		})
	})()
	for i := range 3 {
		Append(t, log, reader("r"), note(i))
	}
	until(t, "six changes", func() bool { return len(done.get()) >= 6 })
	if got := done.get(); !slices.Equal(got, numbers(6)) {
		t.Errorf("done %v, want 1 to 6 in order", got)
	}
	if got, want := tried.get(), []events.Seq{1, 2, 2, 3, 4, 5, 6}; !slices.Equal(got, want) {
		t.Errorf("tried %v, want %v", got, want)
	}
}

func changesShared(t *testing.T, ctx context.Context, log TimerLog) {
	var done list[events.Seq]
	for range 3 {
		defer beside(t, ctx, func(ctx context.Context) error {
			return log.Changes(ctx, func(_ context.Context, r *events.Recorded) error {
				done.add(r.Seq)
				return nil
			})
		})()
	}
	for i := range 20 {
		Append(t, log, reader("r"), note(i))
	}
	until(t, "twenty changes", func() bool { return len(done.get()) >= 20 })
	if got := done.get(); !slices.Equal(got, numbers(20)) {
		t.Errorf("three processes were handed %v, want 1 to 20, each once, in order", got)
	}
}

func changesResume(t *testing.T, ctx context.Context, log TimerLog) {
	var done list[events.Seq]
	take := func(n int) func() {
		return beside(t, ctx, func(ctx context.Context) error {
			return log.Changes(ctx, func(_ context.Context, r *events.Recorded) error {
				if len(done.get()) == n {
					return errOnce // not ours any more
				}
				done.add(r.Seq)
				return nil
			})
		})
	}
	for i := range 6 {
		Append(t, log, reader("r"), note(i))
	}
	for _, n := range []int{3, 6} {
		stop := take(n)
		until(t, fmt.Sprint(n, " changes"), func() bool { return len(done.get()) >= n })
		stop()
	}
	if got := done.get(); !slices.Equal(got, numbers(6)) {
		t.Errorf("done %v, want 1 to 6", got)
	}
}

// arrival is a key that became due and when it was handed over.
type arrival struct {
	key events.KeyRef
	at  events.Time
}

// collect runs Due beside the test.
func collect(t *testing.T, ctx context.Context, log TimerLog, into *list[arrival]) (stop func()) {
	return beside(t, ctx, func(ctx context.Context) error {
		return log.Due(ctx, func(_ context.Context, key events.KeyRef) error {
			into.add(arrival{key, events.At(time.Now())})
			return nil
		})
	})
}

func set(t *testing.T, ctx context.Context, log TimerLog, key events.KeyRef, at events.Time) {
	t.Helper()
	if err := log.Set(ctx, key, at); err != nil {
		t.Fatalf("set: %v", err)
	}
}

func soon(d time.Duration) events.Time { return events.At(time.Now().Add(d)) }

func arrivalsOf(all []arrival, key events.KeyRef) (n int) {
	for _, a := range all {
		if a.key == key {
			n++
		}
	}
	return n
}

func dueOnTime(t *testing.T, ctx context.Context, log TimerLog) {
	var got list[arrival]
	defer collect(t, ctx, log, &got)()
	want := map[events.KeyRef]events.Time{}
	for i := range 20 { // odd milliseconds, so that rounding to anything shows
		key := NewKeyRef("shop", "acme")
		want[key] = soon(time.Duration(150+i*61) * time.Millisecond)
		set(t, ctx, log, key, want[key])
	}
	until(t, "twenty keys due", func() bool { return len(got.get()) >= len(want) })
	for _, a := range got.get() {
		if at, ok := want[a.key]; !ok || a.at < at {
			t.Errorf("%s came at %s, %dms early (known: %v)", a.key.Key, a.at, at-a.at, ok)
		}
		if n := arrivalsOf(got.get(), a.key); n != 1 {
			t.Errorf("%s came %d times", a.key.Key, n)
		}
	}
}

func duePast(t *testing.T, ctx context.Context, log TimerLog) {
	var got list[arrival]
	defer collect(t, ctx, log, &got)()
	for _, ago := range []time.Duration{time.Millisecond, time.Minute, 24 * 365 * time.Hour} {
		set(t, ctx, log, NewKeyRef("shop", "acme"), soon(-ago))
	}
	until(t, "three past keys due", func() bool { return len(got.get()) == 3 })
}

func dueReplaced(t *testing.T, ctx context.Context, log TimerLog) {
	var got list[arrival]
	defer collect(t, ctx, log, &got)()
	earlier, later, fence := NewKeyRef("shop", "acme"), NewKeyRef("shop", "acme"), NewKeyRef("shop", "acme")
	set(t, ctx, log, earlier, soon(24*time.Hour))
	set(t, ctx, log, earlier, soon(200*time.Millisecond))
	set(t, ctx, log, later, soon(time.Second))
	set(t, ctx, log, later, soon(24*time.Hour))
	set(t, ctx, log, fence, soon(2*time.Second))
	until(t, "the last key due", func() bool { return arrivalsOf(got.get(), fence) == 1 })
	if n := arrivalsOf(got.get(), earlier); n != 1 {
		t.Errorf("the key that was moved forward came %d times", n)
	}
	if n := arrivalsOf(got.get(), later); n != 0 {
		t.Errorf("the key that was put off came %d times", n)
	}
}

func dueCleared(t *testing.T, ctx context.Context, log TimerLog) {
	var got list[arrival]
	defer collect(t, ctx, log, &got)()
	cleared, again, fence := NewKeyRef("shop", "acme"), NewKeyRef("shop", "acme"), NewKeyRef("shop", "acme")
	for _, key := range []events.KeyRef{cleared, again} {
		set(t, ctx, log, key, soon(time.Second))
		if err := log.Clear(ctx, key); err != nil {
			t.Errorf("clear: %v", err)
		}
	}
	if err := log.Clear(ctx, NewKeyRef("shop", "acme")); err != nil {
		t.Errorf("clear of a key without a setting: %v", err)
	}
	set(t, ctx, log, again, soon(time.Second)) // what was cleared may be set anew
	set(t, ctx, log, fence, soon(2*time.Second))
	until(t, "the last key due", func() bool { return arrivalsOf(got.get(), fence) == 1 })
	if n := arrivalsOf(got.get(), cleared); n != 0 {
		t.Errorf("the cleared key came %d times", n)
	}
	if n := arrivalsOf(got.get(), again); n != 1 {
		t.Errorf("the key that was cleared and set anew came %d times", n)
	}
}

func dueAgain(t *testing.T, ctx context.Context, log TimerLog) {
	var tried list[events.KeyRef]
	key := NewKeyRef("shop", "acme")
	done := make(chan struct{})
	defer beside(t, ctx, func(ctx context.Context) error {
		return log.Due(ctx, func(_ context.Context, k events.KeyRef) error {
			if k != key {
				t.Errorf("%s came, which was never set", k.Key)
			}
			switch tried.add(k) {
			case 1, 2:
				return errOnce
			case 3:
				close(done)
			}
			return nil
		})
	})()
	set(t, ctx, log, key, soon(50*time.Millisecond))
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("tried %d times, want 3", len(tried.get()))
	}
}

func dueShared(t *testing.T, ctx context.Context, log TimerLog) {
	var got list[arrival]
	for range 3 {
		defer collect(t, ctx, log, &got)()
	}
	fence := NewKeyRef("shop", "acme")
	set(t, ctx, log, fence, soon(2*time.Second))
	for range 20 {
		set(t, ctx, log, NewKeyRef("shop", "acme"), soon(300*time.Millisecond))
	}
	until(t, "all keys due", func() bool { return len(got.get()) >= 21 && arrivalsOf(got.get(), fence) == 1 })
	for _, a := range got.get() {
		if n := arrivalsOf(got.get(), a.key); n != 1 {
			t.Errorf("%s came to %d processes", a.key.Key, n)
		}
	}
}
