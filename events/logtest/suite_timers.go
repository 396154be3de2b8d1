package logtest

import (
	"context"
	"errors"
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
		{"the mark moves with the settings, from the newest mark only", setFromMark},
		{"of many that set from one mark, one does", setOnce},
		{"as many as one set takes are set", setMany},
		{"rearm sets only where the mark stands", rearmed},
		{"a key is due at its instant, never before", dueOnTime},
		{"an instant in the past is due at once", duePast},
		{"set replaces, earlier and later", dueReplaced},
		{"never forgets, and forgetting nothing is no error", dueCleared},
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

var errOnce = errors.New("a failure on purpose")

func mustMark(t *testing.T, ctx context.Context, log TimerLog) events.TimerMark {
	t.Helper()
	mark, err := log.Mark(ctx)
	if err != nil {
		t.Fatalf("mark: %v", err)
	}
	return mark
}

func setFromMark(t *testing.T, ctx context.Context, log TimerLog) {
	var got list[arrival]
	defer collect(t, ctx, log, &got)()
	key, other, fence := NewKeyRef("shop", "acme"), NewKeyRef("shop", "acme"), NewKeyRef("shop", "acme")
	if mark := mustMark(t, ctx, log); mark != (events.TimerMark{}) {
		t.Fatalf("timers that nobody set have the mark %+v", mark)
	}
	day := soon(24 * time.Hour)
	first, err := log.Set(ctx, events.TimerMark{}, 7, events.TimerSetting{Key: key, At: soon(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	if mark := mustMark(t, ctx, log); mark != first || mark.Through != 7 {
		t.Errorf("the mark is %+v, Set returned %+v", mark, first)
	}
	second, err := log.Set(ctx, first, 9) // without a setting
	if err != nil || second.Through != 9 || second.Place == first.Place {
		t.Fatalf("%+v after %+v: %v", second, first, err)
	}
	for _, old := range []events.TimerMark{{}, first} {
		mark, err := log.Set(ctx, old, 12, events.TimerSetting{Key: key, At: day}, events.TimerSetting{Key: other, At: soon(0)})
		if !errors.Is(err, events.ErrConflict) {
			t.Errorf("set from the older mark %+v: %+v, %v", old, mark, err)
		}
	}
	if mark := mustMark(t, ctx, log); mark != second {
		t.Errorf("the mark is %+v, want %+v", mark, second)
	}
	back, err := log.Set(ctx, second, 0, events.TimerSetting{Key: fence, At: soon(2 * time.Second)})
	if err != nil || back.Through != 0 || mustMark(t, ctx, log) != back {
		t.Errorf("the mark moved back: %+v, %v", back, err)
	}
	untilDue(t, &got, key, fence)
	if n, not := arrivalsOf(got.get(), key), arrivalsOf(got.get(), other); n != 1 || not != 0 {
		t.Errorf("the key that was set came %d times, the one that was not came %d times", n, not)
	}
}

func setOnce(t *testing.T, ctx context.Context, log TimerLog) {
	var got list[arrival]
	defer collect(t, ctx, log, &got)()
	mark, want := events.TimerMark{}, map[events.KeyRef]bool{}
	for range 20 {
		type end struct {
			key  events.KeyRef
			mark events.TimerMark
			err  error
		}
		ends := make(chan end, 4)
		for i := range cap(ends) {
			go func() { // joined below
				e := end{key: NewKeyRef("shop", "acme")}
				e.mark, e.err = log.Set(ctx, mark, events.Seq(i), events.TimerSetting{Key: e.key, At: soon(0)}, events.TimerSetting{Key: NewKeyRef("shop", "acme")})
				ends <- e
			}()
		}
		won, next := 0, mark
		for range cap(ends) {
			switch e := <-ends; {
			case e.err == nil:
				won, next, want[e.key] = won+1, e.mark, true
			case !errors.Is(e.err, events.ErrConflict):
				t.Error(e.err)
			}
		}
		if mark = next; won != 1 || mustMark(t, ctx, log) != mark {
			t.Fatalf("%d of %d set from one mark", won, cap(ends))
		}
	}
	until(t, "twenty keys due", func() bool { return len(got.get()) >= 20 })
	for _, a := range got.get() {
		if !want[a.key] {
			t.Error("a key came due that a refused batch has set")
		}
	}
}

func setMany(t *testing.T, ctx context.Context, log TimerLog) {
	var got list[arrival]
	defer collect(t, ctx, log, &got)()
	var many, cleared []events.TimerSetting
	for i := range events.MaxTimers {
		s := events.TimerSetting{Key: NewKeyRef("shop", "acme"), At: soon(24 * time.Hour)}
		if many = append(many, s); i%50 != 0 {
			cleared = append(cleared, events.TimerSetting{Key: s.Key})
		} else {
			s.At = soon(0)
			cleared = append(cleared, s)
		}
	}
	mark, err := log.Set(ctx, events.TimerMark{}, 1, many...)
	if err == nil {
		_, err = log.Set(ctx, mark, 2, cleared...)
	}
	if err != nil {
		t.Fatal(err)
	}
	until(t, "one in fifty due", func() bool { return len(got.get()) >= events.MaxTimers/50+1 })
	for _, s := range cleared {
		if n := arrivalsOf(got.get(), s.Key); (n == 1) != (s.At != 0) {
			t.Errorf("a key came %d times", n)
		}
	}
}

func rearmed(t *testing.T, ctx context.Context, log TimerLog) {
	var got list[arrival]
	defer collect(t, ctx, log, &got)()
	old, key, fence := NewKeyRef("shop", "acme"), NewKeyRef("shop", "acme"), NewKeyRef("shop", "acme")
	if err := log.Rearm(ctx, events.TimerMark{}, events.TimerSetting{Key: key, At: soon(24 * time.Hour)}); err != nil {
		t.Errorf("rearm before any mark: %v", err)
	}
	mark, err := log.Set(ctx, events.TimerMark{}, 7, events.TimerSetting{Key: key, At: soon(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Rearm(ctx, events.TimerMark{}, events.TimerSetting{Key: old, At: soon(0)}); !errors.Is(err, events.ErrConflict) {
		t.Errorf("rearm at an older mark: %v", err)
	}
	key, _ = inTime(func(key events.KeyRef, at events.Time) {
		for range 2 {
			if err := log.Rearm(ctx, mark, events.TimerSetting{Key: key, At: at}); err != nil {
				t.Errorf("rearm: %v", err)
			}
		}
	})
	if now := mustMark(t, ctx, log); now != mark {
		t.Errorf("rearm moved the mark from %+v to %+v", mark, now)
	}
	if _, err := log.Set(ctx, mark, 8, events.TimerSetting{Key: fence, At: soon(time.Second)}); err != nil {
		t.Error(err)
	}
	untilDue(t, &got, key, fence)
	if n, not := arrivalsOf(got.get(), key), arrivalsOf(got.get(), old); n != 1 || not != 0 {
		t.Errorf("the key that was set came %d times, the one at an older mark %d times", n, not)
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
	mark := mustMark(t, ctx, log)
	if _, err := log.Set(ctx, mark, mark.Through+1, events.TimerSetting{Key: key, At: at}); err != nil {
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

// untilDue waits until each of the keys has come: when several are due, a busy machine
// may hand them over in another order.
func untilDue(t *testing.T, got *list[arrival], keys ...events.KeyRef) {
	t.Helper()
	until(t, "the keys due", func() bool {
		all := got.get()
		return !slices.ContainsFunc(keys, func(k events.KeyRef) bool { return arrivalsOf(all, k) == 0 })
	})
}

// inTime calls f with a new key, and an instant soon, until f has ended before that
// instant, which is later each time. It returns both.
func inTime(f func(key events.KeyRef, at events.Time)) (events.KeyRef, events.Time) {
	for d := time.Second; ; d *= 2 {
		key, at := NewKeyRef("shop", "acme"), soon(d)
		if f(key, at); events.At(time.Now()) < at {
			return key, at
		}
	}
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
	earlier, fence := NewKeyRef("shop", "acme"), NewKeyRef("shop", "acme")
	set(t, ctx, log, earlier, soon(24*time.Hour))
	set(t, ctx, log, earlier, soon(200*time.Millisecond))
	later, at := inTime(func(key events.KeyRef, at events.Time) {
		set(t, ctx, log, key, at)
		set(t, ctx, log, key, soon(24*time.Hour))
	})
	set(t, ctx, log, fence, at.Add(time.Second))
	untilDue(t, &got, earlier, fence)
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
	fence := NewKeyRef("shop", "acme")
	setAndClear := func(key events.KeyRef, at events.Time) {
		set(t, ctx, log, key, at)
		set(t, ctx, log, key, 0)
	}
	cleared, first := inTime(setAndClear)
	again, second := inTime(setAndClear)
	set(t, ctx, log, NewKeyRef("shop", "acme"), 0)
	set(t, ctx, log, again, second) // what was cleared may be set anew
	set(t, ctx, log, fence, max(first, second).Add(time.Second))
	untilDue(t, &got, again, fence)
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
