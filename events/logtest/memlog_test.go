package logtest

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
)

func TestPairedFaults(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		fault  Fault
		want   error
		stored bool
	}{
		{Unavailable, events.ErrUnavailable, false},
		{Full, events.ErrFull, false},
		{UnknownNotStored, events.ErrUnknownOutcome, false},
		{UnknownStored, events.ErrUnknownOutcome, true},
	} {
		l := New(t)
		ref := NewKeyRef("shop", "acme")
		l.FailNext(OpAppend, c.fault)
		w := Stamp(&events.Chain{}, Event(ref.Aggregate(), Created("s")))
		if _, err := l.Append(ctx, w); !errors.Is(err, c.want) {
			t.Errorf("fault %d: append: %v, want %v", c.fault, err, c.want)
		}
		if got := len(l.Records()) == 1; got != c.stored {
			t.Errorf("fault %d: stored %v, want %v", c.fault, got, c.stored)
		}
		l.FailNext(OpPublish, c.fault)
		if _, err := l.Publish(ctx, "n1", "id", 0, []byte("x")); !errors.Is(err, c.want) {
			t.Errorf("fault %d: publish: %v, want %v", c.fault, err, c.want)
		}
		if n, err := l.LastUse(ctx); err != nil || (n == 1) != c.stored {
			t.Errorf("fault %d: published %d, %v, want stored %v", c.fault, n, err, c.stored)
		}
		l.FailNext(OpLoad, c.fault)
		if _, err := l.Load(ctx, ref.Aggregate()); !errors.Is(err, c.want) {
			t.Errorf("fault %d: load: %v, want %v", c.fault, err, c.want)
		}
		l.FailNext(OpReadUses, c.fault)
		if _, err := l.ReadUses(ctx, 0, 1); !errors.Is(err, c.want) {
			t.Errorf("fault %d: read uses: %v, want %v", c.fault, err, c.want)
		}
		if _, err := l.Load(ctx, ref.Aggregate()); err != nil {
			t.Errorf("fault %d: it spoils more than one call: %v", c.fault, err)
		}
	}
}

func TestMisuseIsRefused(t *testing.T) {
	ctx := t.Context()
	l := NewMemLog()
	ref := NewKeyRef("shop", "acme")
	Append(t, l, ref.Aggregate(), Created("s"))
	history, err := l.Load(ctx, ref.Aggregate())
	if err != nil {
		t.Fatal(err)
	}
	good := ChainOf(history)
	write := func(change func(*events.Write)) events.Write {
		c := good
		w := Stamp(&c, Event(ref.Aggregate(), &events.KeyDisabled{}))
		change(&w)
		return w
	}
	many := make([]events.Write, 1001)
	for i := range many {
		many[i] = Stamp(&events.Chain{}, Event(NewKeyRef("shop", "acme").Aggregate(), Created("x")))
	}
	other := Stamp(&events.Chain{}, Event(NewKeyRef("shop", "acme").Aggregate(), Created("y")))
	for name, writes := range map[string][]events.Write{
		"no writes":     {},
		"1001 writes":   many,
		"gap in rev":    {write(func(w *events.Write) { w.Event.Rev++ })},
		"rev repeated":  {write(func(w *events.Write) { w.Event.Rev, w.Event.Prev = 1, events.Hash{} })},
		"wrong prev":    {write(func(w *events.Write) { w.Event.Prev[0] ^= 1 })},
		"invalid event": {write(func(w *events.Write) { w.Event.Source = "" })},
		"id of another": {write(func(w *events.Write) { w.Event.ID = history[0].ID })},
		"id twice":      {other, write(func(w *events.Write) { w.Event.ID = other.Event.ID })},
		"altered": {write(func(w *events.Write) {
			if _, err := w.Prepare(); err != nil {
				t.Fatal(err)
			}
			w.Event.Reason = "another"
		})},
		"second misplaced": {other, write(func(w *events.Write) { w.Event.Rev = 9 })},
	} {
		_, err := l.Append(ctx, writes...)
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		for _, class := range []error{events.ErrConflict, events.ErrUnavailable, events.ErrFull, events.ErrUnknownOutcome} {
			if errors.Is(err, class) {
				t.Errorf("%s: reported as %v", name, class)
			}
		}
	}
	if _, err := l.Publish(ctx, "no.dots", "id", 0, []byte("x")); err == nil {
		t.Error("publish for a node that is no subject token: accepted")
	}
	if _, err := l.ReadUses(ctx, 0, 0); err == nil {
		t.Error("read of at most 0 uses: accepted")
	}
	if got := len(l.Records()); got != 1 {
		t.Errorf("misuse stored something: %d events, want 1", got)
	}
}

func TestPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, point := range []Point{BeforeEffect, AfterEffect} {
			l := New(t)
			p := l.PauseNext(OpAppend, point)
			ctx, cancel := context.WithCancel(t.Context())
			answer := make(chan error)
			go func() {
				_, err := l.Append(ctx, Stamp(&events.Chain{}, Event(NewKeyRef("shop", "acme").Aggregate(), Created("s"))))
				answer <- err
			}()
			<-p.Entered()
			if got := len(l.Records()) == 1; got != (point == AfterEffect) {
				t.Errorf("point %d: stored %v", point, got)
			}
			cancel()
			want := events.ErrUnavailable
			if point == AfterEffect {
				want = events.ErrUnknownOutcome
			}
			if err := <-answer; !errors.Is(err, want) || !errors.Is(err, context.Canceled) {
				t.Errorf("point %d: cancelled append: %v, want %v", point, err, want)
			}
			p = l.PauseNext(OpLoad, point)
			go func() {
				_, err := l.Load(t.Context(), events.KeyspaceAggregate("shop"))
				answer <- err
			}()
			<-p.Entered()
			p.Resume()
			p.Resume()
			if err := <-answer; err != nil {
				t.Errorf("point %d: resumed load: %v", point, err)
			}
		}
	})
}

// A log that is down answers nothing and sends no heartbeat; when it is back,
// followers go on where they were.
func TestDownAndBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(t)
		ref := NewKeyRef("shop", "acme")
		Append(t, l, ref.Aggregate(), Created("s"))
		ctx, cancel := context.WithCancel(t.Context())
		f := &recorder{}
		done := make(chan error)
		go func() { done <- l.Follow(ctx, 0, f) }()
		synctest.Wait()
		l.SetDown(true)
		synctest.Wait()
		heartbeats := len(f.heartbeats())
		time.Sleep(10 * time.Second)
		if got := len(f.heartbeats()); got != heartbeats {
			t.Errorf("%d heartbeats while down", got-heartbeats)
		}
		if _, err := l.Last(ctx); !errors.Is(err, events.ErrUnavailable) {
			t.Errorf("last while down: %v", err)
		}
		l.SetDown(false)
		Append(t, l, ref.Aggregate(), &events.KeyDisabled{})
		synctest.Wait()
		if got := f.events(); len(got) != 2 || len(f.heartbeats()) == heartbeats {
			t.Errorf("after it came back: %d events, %d heartbeats", len(got), len(f.heartbeats())-heartbeats)
		}
		l.Break(&events.CorruptError{Seq: 1, Reason: "bit rot"})
		var corrupt *events.CorruptError
		if err := <-done; !errors.As(err, &corrupt) {
			t.Errorf("follow of a broken log: %v", err)
		}
		if _, err := l.Load(ctx, ref.Aggregate()); !errors.As(err, &corrupt) {
			t.Errorf("load of a broken log: %v", err)
		}
		l.Break(nil)
		cancel()
	})
}

func TestMemCheckpoints(t *testing.T) {
	TestCheckpoints(t, func(*testing.T) events.Checkpoints { return new(MemCheckpoints) })
}
