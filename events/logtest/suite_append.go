package logtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

func logVisible(t *testing.T, ctx context.Context, log events.Log) {
	each(writers, func(i int) {
		a := noted(fmt.Sprint("r", i))
		var c events.Chain
		for n := range 15 {
			seq, err := log.Append(ctx, Stamp(&c, Event(a, note(n))))
			if err != nil {
				t.Errorf("append: %v", err)
				return
			}
			c.Seq = seq
			if h, err := log.Load(ctx, a); err != nil || len(h) != n+1 || h[n].Seq != seq {
				t.Errorf("after %d acknowledged appends load returned %d events, %v", n+1, len(h), err)
				return
			}
			if last, err := log.Last(ctx); err != nil || last < seq {
				t.Errorf("after the acknowledged %d last is %d, %v", seq, last, err)
				return
			}
		}
	})
}

func logConflict(t *testing.T, ctx context.Context, log events.Log) {
	a, b := NewKeyRef("shop", "acme").Aggregate(), NewKeyRef("shop", "acme").Aggregate()
	Append(t, log, a, Created("a"))
	Append(t, log, b, Created("b"))
	Append(t, log, a, &events.KeyDisabled{})
	good := chainAt(t, ctx, log, a)
	for _, expect := range []events.Seq{0, 1, 2, 4, 1 << 40} {
		c := good
		w := Stamp(&c, Event(a, &events.KeyEnabled{}))
		w.Expect = expect
		wantRefused(t, ctx, log, events.ErrConflict, w)
	}
	w := first(NewKeyRef("shop", "acme").Aggregate(), Created("c"))
	w.Expect = 2
	wantRefused(t, ctx, log, events.ErrConflict, w) // expects history where there is none
	c := good
	if _, err := log.Append(ctx, Stamp(&c, Event(a, &events.KeyEnabled{}))); err != nil {
		t.Errorf("the right expectation after all those: %v", err)
	}
}

func logAllOrNothing(t *testing.T, ctx context.Context, log events.Log) {
	a := NewKeyRef("shop", "acme").Aggregate()
	Append(t, log, a, Created("a"))
	for i := range 3 { // the wrong one stands first, in the middle, last
		var ws []events.Write
		for j := range 3 {
			ws = append(ws, first(NewKeyRef("shop", "acme").Aggregate(), Created(fmt.Sprint(i, j))))
		}
		ws[i] = first(a, Created("again")) // expects nothing, but there is a
		wantRefused(t, ctx, log, events.ErrConflict, ws...)
		for _, w := range slices.Delete(ws, i, i+1) {
			if h, err := log.Load(ctx, w.Event.Aggregate); err != nil || len(h) != 0 {
				t.Errorf("part of a refused append is there: %d events, %v", len(h), err)
			}
		}
	}
	// And the reverse: right expectations of two aggregates pass together.
	b := NewKeyRef("shop", "acme").Aggregate()
	c := chainAt(t, ctx, log, a)
	if _, err := log.Append(ctx, Stamp(&c, Event(a, &events.KeyDisabled{})), first(b, Created("b"))); err != nil {
		t.Errorf("two right expectations: %v", err)
	}
}

func logSecondEvent(t *testing.T, ctx context.Context, log events.Log) {
	a, b := NewKeyRef("shop", "acme").Aggregate(), NewKeyRef("shop", "acme").Aggregate()
	var ca, cb events.Chain
	ws := []events.Write{
		Stamp(&ca, Event(a, Created("a"))),
		Stamp(&cb, Event(b, Created("b"))),
		Stamp(&ca, Event(a, &events.KeyDisabled{})),
		Stamp(&ca, Event(a, &events.KeyEnabled{})),
		Stamp(&cb, Event(b, &events.KeyDisabled{})),
	}
	ws[2].Expect, ws[3].Expect = 77, 0 // ignored
	seq, err := log.Append(ctx, ws...)
	if err != nil || seq != 5 {
		t.Fatalf("append: %d, %v", seq, err)
	}
	for agg, want := range map[events.Aggregate][]events.Seq{a: {1, 3, 4}, b: {2, 5}} {
		h, err := log.Load(ctx, agg)
		var got []events.Seq
		for _, r := range h {
			got = append(got, r.Seq)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("history stands at %v, %v, want %v", got, err, want)
		}
	}
	// The first one's expectation still counts.
	c := chainAt(t, ctx, log, a)
	x, y := Stamp(&c, Event(a, &events.KeyDisabled{})), Stamp(&c, Event(a, &events.KeyEnabled{}))
	x.Expect, y.Expect = 3, 4
	wantRefused(t, ctx, log, events.ErrConflict, x, y)
}

func logMaxWrites(t *testing.T, ctx context.Context, log events.Log) {
	batch := func(n int) (ws []events.Write) {
		for i := range n {
			ws = append(ws, first(NewKeyRef("shop", "acme").Aggregate(), Created(fmt.Sprint(n, "/", i))))
		}
		return ws
	}
	if seq, err := log.Append(ctx, batch(1000)...); err != nil || seq != 1000 {
		t.Errorf("1000 writes: %d, %v", seq, err)
	}
	wantRefused(t, ctx, log, nil, batch(1001)...)
	wantRefused(t, ctx, log, nil)
}

func logMaxSize(t *testing.T, ctx context.Context, log events.Log) {
	a := NewKeyRef("shop", "acme").Aggregate()
	Append(t, log, a, Created("a"))
	// What is before is not bounded by Validate, so it can be of any size.
	sized := func(n int) events.Data {
		d := &events.RoleDefined{Scopes: []string{"read"}}
		for len(d.Before)*103 < n {
			d.Before = append(d.Before, strings.Repeat("x", 100))
		}
		return d
	}
	role := events.RoleAggregate("shop", "acme", "big")
	wantRefused(t, ctx, log, nil, first(role, sized(1<<20+1)))
	w := first(role, sized(1<<20-4096))
	if _, err := log.Append(ctx, w); err != nil {
		t.Fatalf("an event just under 1 MiB: %v", err)
	}
	if h, err := log.Load(ctx, role); err != nil || len(h) != 1 || h[0].ID != w.Event.ID {
		t.Errorf("an event just under 1 MiB loads as %d events, %v", len(h), err)
	}
}

func logInvalid(t *testing.T, ctx context.Context, log events.Log) {
	good := first(NewKeyRef("shop", "acme").Aggregate(), Created("good"))
	for name, spoil := range map[string]func(*events.Event){
		"no id":               func(e *events.Event) { e.ID = events.EventID{} },
		"no data":             func(e *events.Event) { e.Data = nil },
		"rev 0":               func(e *events.Event) { e.Rev = 0 },
		"data of other kind":  func(e *events.Event) { e.Data = &events.RoleDeleted{} },
		"tenant with a dot":   func(e *events.Event) { e.Aggregate.Tenant = "a.b" },
		"wildcard in subject": func(e *events.Event) { e.Aggregate.Tenant = "*" },
		"bad UTF-8":           func(e *events.Event) { e.Reason = "\xff" },
	} {
		w := first(NewKeyRef("shop", "acme").Aggregate(), Created(name))
		spoil(&w.Event)
		wantRefused(t, ctx, log, nil, w)
		wantRefused(t, ctx, log, nil, good, w)
	}
}

func logRetry(t *testing.T, ctx context.Context, log events.Log) {
	a, b := noted("a"), noted("b")
	var ca, cb events.Chain
	one := []events.Write{Stamp(&ca, Event(a, note(1)))}
	two := []events.Write{Stamp(&cb, Event(b, note(1))), Stamp(&cb, Event(b, note(2)))}
	for _, ws := range [][]events.Write{one, two} {
		agg := ws[0].Event.Aggregate
		want, err := log.Append(ctx, ws...)
		if err != nil {
			t.Fatal(err)
		}
		again := func(when string) {
			t.Helper()
			seq, err := log.Append(ctx, ws...)
			if !errors.Is(err, events.ErrConflict) && (err != nil || seq != want) {
				t.Errorf("%s: %d, %v; want ErrConflict, or %d", when, seq, err, want)
			}
			h, err := log.Load(ctx, agg)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range ws {
				n := 0
				for _, r := range h {
					if r.ID == w.Event.ID {
						n++
					}
				}
				if n != 1 {
					t.Errorf("%s: event %s is stored %d times", when, w.Event.ID, n)
				}
			}
		}
		again("at once")
		Append(t, log, agg, note(9))
		again("when the history has moved on")
		each(writers, func(int) { again("all at once") })
	}
}

func logCancelled(t *testing.T, ctx context.Context, log events.Log) {
	for i := range 20 {
		over, cancel := context.WithCancel(ctx)
		w := first(noted(fmt.Sprint("r", i)), note(i))
		if i%2 == 0 {
			cancel()
		} else {
			stop := time.AfterFunc(time.Duration(i)*50*time.Microsecond, cancel)
			defer stop.Stop()
		}
		_, err := log.Append(over, w)
		h, err2 := log.Load(ctx, w.Event.Aggregate)
		if err2 != nil {
			t.Fatal(err2)
		}
		switch {
		case err == nil && len(h) != 1:
			t.Error("acknowledged, and not stored")
		case err != nil && !errors.Is(err, events.ErrUnknownOutcome) && len(h) != 0:
			t.Errorf("stored, though the answer %v says that it is not", err)
		}
		if i%2 == 0 && err == nil {
			t.Error("an append whose context had ended before it began was acknowledged")
		}
		cancel()
		if stored, err := settle(ctx, log, w); err != nil || !stored && len(h) == 0 {
			t.Errorf("the retry: stored %v, %v", stored, err)
		}
	}
}

func logHot(t *testing.T, ctx context.Context, log events.Log) {
	const revisions = 60
	a := noted("hot")
	var mu sync.Mutex
	won := map[uint64]int{}
	each(writers, func(i int) {
		for {
			h, err := log.Load(ctx, a)
			if err != nil {
				t.Errorf("load: %v", err)
				return
			}
			c := ChainOf(h)
			if c.Rev >= revisions {
				return
			}
			stored, err := settle(ctx, log, Stamp(&c, Event(a, note(i))))
			if err != nil {
				t.Errorf("append: %v", err)
				return
			}
			if stored {
				func() {
					mu.Lock()
					defer mu.Unlock()
					won[c.Rev]++
				}()
			}
		}
	})
	if len(won) != revisions {
		t.Errorf("%d revisions have a winner, want %d", len(won), revisions)
	}
	for rev, n := range won {
		if n != 1 {
			t.Errorf("rev %d has %d winners", rev, n)
		}
	}
	if last := wantLast(t, ctx, log); last != revisions {
		t.Errorf("the log holds %d events, want %d", last, revisions)
	}
}

func logHotPair(t *testing.T, ctx context.Context, log events.Log) {
	a, b := noted("a"), noted("b")
	each(writers, func(i int) {
		for range 6 {
			for {
				ha, err := log.Load(ctx, a)
				hb, err2 := log.Load(ctx, b)
				if err != nil || err2 != nil {
					t.Errorf("load: %v, %v", err, err2)
					return
				}
				ca, cb := ChainOf(ha), ChainOf(hb)
				ws := []events.Write{Stamp(&ca, Event(a, note(i))), Stamp(&cb, Event(b, note(i)))}
				if i%2 == 1 {
					slices.Reverse(ws)
				}
				stored, err := settle(ctx, log, ws...)
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				if stored {
					break
				}
			}
		}
	})
	records := ReadAll(t, log)
	if len(records) != 2*6*writers {
		t.Fatalf("%d events, want %d", len(records), 2*6*writers)
	}
	for i := 0; i < len(records); i += 2 {
		if x, y := records[i], records[i+1]; x.Rev != y.Rev || x.Aggregate == y.Aggregate {
			t.Errorf("events %d and %d are not one append: %s rev %d, %s rev %d", x.Seq, y.Seq, x.Aggregate, x.Rev, y.Aggregate, y.Rev)
		}
	}
}

func logLoad(t *testing.T, ctx context.Context, log events.Log) {
	// Neighbours: one id is the start of another, one id in two tenants and keyspaces.
	aggs := []events.Aggregate{
		events.RoleAggregate("shop", "acme", "dev"), events.RoleAggregate("shop", "acme", "dev2"),
		events.RoleAggregate("shop", "acme2", "dev"), events.RoleAggregate("shop2", "acme", "dev"),
	}
	const rounds = 30
	for i := range rounds {
		for _, a := range aggs {
			Append(t, log, a, &events.RoleDefined{Scopes: []string{fmt.Sprint("s", i)}})
		}
	}
	for n, a := range aggs {
		h, err := log.Load(ctx, a)
		if err != nil || len(h) != rounds {
			t.Fatalf("load %s: %d events, %v", a, len(h), err)
		}
		for i, r := range h {
			if r.Aggregate != a || r.Rev != uint64(i+1) || r.Seq != events.Seq(i*len(aggs)+n+1) {
				t.Errorf("load %s: place %d holds rev %d of %s at %d", a, i, r.Rev, r.Aggregate, r.Seq)
			}
		}
	}
}
