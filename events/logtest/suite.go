package logtest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

// patience is how long the suites wait for what must happen soon. Real parts
// fsync, elect and reconnect on busy machines; passing runs never wait so long.
const patience = 30 * time.Second

// tick is how often a condition is polled.
const tick = 5 * time.Millisecond

// writers is how many concurrent writers the suites set upon one spot.
const writers = 8

// TestLog is the contract of events.Log. open returns a new, empty log and
// closes it when its test ends. After each case CheckLog must pass.
func TestLog(t *testing.T, open func(t *testing.T) events.Log) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, ctx context.Context, log events.Log)
	}{
		{"the identity is fixed", logIdentity},
		{"an empty log has no last, no history, and is fresh", logEmpty},
		{"append stores in the order given, with consecutive sequences", logOrder},
		{"whoever was answered is seen by every later load", logVisible},
		{"a wrong expectation conflicts and stores nothing", logConflict},
		{"one wrong expectation of two stores neither", logAllOrNothing},
		{"a second event of one aggregate follows the first", logSecondEvent},
		{"100 writes fit, 101 are refused", logMaxWrites},
		{"an event near 1 MiB fits, a larger one is refused", logMaxSize},
		{"an invalid event is refused and stores nothing", logInvalid},
		{"the same writes again are stored once", logRetry},
		{"an append whose context has ended is settled by event id", logCancelled},
		{"one winner per revision on a hot aggregate", logHot},
		{"concurrent appends to two aggregates stay whole", logHotPair},
		{"load returns one aggregate only, in order", logLoad},
		{"the last event of an aggregate is what load ends with", logLastOf},
		{"every type of the catalogue survives", logCatalogue},
		{"follow delivers each event once, in order, from any start, while others append", logFollow},
		{"follow ends with the follower's error", logFollowerError},
		{"follow ends with its context's error", logFollowContext},
		{"follow refuses to start past the end", logFollowPastEnd},
		{"fresh comes soon, comes again, and tells the truth", logFresh},
	} {
		t.Run(c.name, func(t *testing.T) {
			log := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
			defer cancel()
			c.run(t, ctx, log)
			if !t.Failed() {
				CheckLog(t, log)
			}
		})
	}
}

// note is an event that is legal at any time: a reader's aggregate is a plain list.
func note(i int) events.Data {
	return &events.AuditQueried{Kind: "events", Filter: map[string]string{"n": fmt.Sprint(i)}}
}

func reader(name string) events.Aggregate {
	return events.ReaderAggregate(events.Actor{Kind: events.ActorSystem, ID: name})
}

// first returns the write that starts the history of a.
func first(a events.Aggregate, d events.Data) events.Write {
	return Stamp(&events.Chain{}, Event(a, d))
}

func chainAt(t *testing.T, ctx context.Context, log events.Log, a events.Aggregate) events.Chain {
	t.Helper()
	h, err := log.Load(ctx, a)
	if err != nil {
		t.Fatalf("load %s: %v", a, err)
	}
	return ChainOf(h)
}

// wantRefused appends writes and wants an error of the given class (nil: none of
// the classes) and nothing stored.
func wantRefused(t *testing.T, ctx context.Context, log events.Log, class error, writes ...events.Write) {
	t.Helper()
	before := wantLast(t, ctx, log)
	_, err := log.Append(ctx, writes...)
	if err == nil {
		t.Fatalf("accepted, want %v", class)
	}
	for _, c := range []error{events.ErrConflict, events.ErrUnavailable, events.ErrFull, events.ErrUnknownOutcome} {
		if errors.Is(err, c) != (c == class) {
			t.Errorf("answered %v, want class %v", err, class)
		}
	}
	if after := wantLast(t, ctx, log); after != before {
		t.Errorf("refused, and yet the log went from %d to %d", before, after)
	}
}

func wantLast(t *testing.T, ctx context.Context, log events.Log) events.Seq {
	t.Helper()
	last, err := log.Last(ctx)
	if err != nil {
		t.Fatalf("last: %v", err)
	}
	return last
}

// settle appends as a careful caller does: it retries what may be retried and
// settles an unknown outcome by event id. It reports whether the writes are in.
func settle(ctx context.Context, log events.Log, writes ...events.Write) (stored bool, err error) {
	unknown := false
	for ctx.Err() == nil {
		_, err = log.Append(ctx, writes...)
		switch {
		case errors.Is(err, events.ErrUnknownOutcome):
			unknown = true
		case errors.Is(err, events.ErrUnavailable):
		case errors.Is(err, events.ErrConflict) && unknown:
			h, err := log.Load(ctx, writes[0].Event.Aggregate)
			return slices.ContainsFunc(h, func(r events.Recorded) bool { return r.ID == writes[0].Event.ID }), err
		case errors.Is(err, events.ErrConflict):
			return false, nil
		default:
			return err == nil, err
		}
	}
	return false, context.Cause(ctx)
}

// each runs f n times at once and waits for all.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}

// until polls cond and fails t when it does not hold in time.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	poll := time.NewTicker(tick)
	defer poll.Stop()
	for !cond() {
		select {
		case <-poll.C:
		case <-deadline.C:
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// following runs Follow beside the test. stop ends it and returns its error.
func following(ctx context.Context, log events.Log, f *recorder) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- log.Follow(ctx, f.after, f) }() // joined by stop
	return func() error {
		cancel()
		return <-done
	}
}

func logIdentity(t *testing.T, ctx context.Context, log events.Log) {
	id := log.ID()
	if id.IsZero() {
		t.Error("the log has no identity")
	}
	Append(t, log, reader("r"), note(1))
	if log.ID() != id {
		t.Errorf("the identity changed from %s to %s", id, log.ID())
	}
}

// logLastOf is for logs that offer it, as the product's own do.
func logLastOf(t *testing.T, ctx context.Context, log events.Log) {
	l, ok := log.(events.LastOfLog)
	if !ok {
		t.Fatalf("%T does not offer LastOf", log)
	}
	a, other := reader("a"), reader("b")
	if r, ok, err := l.LastOf(ctx, a); ok || err != nil {
		t.Fatalf("of no history: %v %t %v", r.Seq, ok, err)
	}
	for i := range 3 {
		for _, agg := range []events.Aggregate{a, other} {
			c := chainAt(t, ctx, log, agg)
			if _, err := log.Append(ctx, Stamp(&c, Event(agg, note(i)))); err != nil {
				t.Fatal(err)
			}
		}
		h, err := log.Load(ctx, a)
		if err != nil {
			t.Fatal(err)
		}
		r, ok, err := l.LastOf(ctx, a)
		if want := h[len(h)-1]; !ok || err != nil || !reflect.DeepEqual(r, want) {
			t.Fatalf("last is %+v, %t, %v, want %+v", r, ok, err, want)
		}
	}
}

func logEmpty(t *testing.T, ctx context.Context, log events.Log) {
	if last := wantLast(t, ctx, log); last != 0 {
		t.Errorf("last of an empty log is %d", last)
	}
	if h, err := log.Load(ctx, events.KeyspaceAggregate("shop")); err != nil || len(h) != 0 {
		t.Errorf("load of what never was: %d events, %v", len(h), err)
	}
	f := &recorder{}
	stop := following(ctx, log, f)
	defer func() { _ = stop() }()
	until(t, "fresh on an empty log", func() bool { return len(f.beats()) > 0 })
	if b := f.beats()[0]; b.last != 0 || b.at.Validate() != nil {
		t.Errorf("fresh on an empty log: %v", b)
	}
}

func logOrder(t *testing.T, ctx context.Context, log events.Log) {
	var want []events.EventID
	for round := range 5 {
		var ws []events.Write
		for i := range round + 1 {
			w := first(NewKeyRef("shop", "acme").Aggregate(), Created(fmt.Sprint(round, "/", i)))
			ws, want = append(ws, w), append(want, w.Event.ID)
		}
		seq, err := log.Append(ctx, ws...)
		if err != nil || seq != events.Seq(len(want)) {
			t.Fatalf("append of %d after %d: %d, %v", len(ws), len(want)-len(ws), seq, err)
		}
	}
	for i, r := range ReadAll(t, log) {
		if r.ID != want[i] || r.Seq != events.Seq(i+1) {
			t.Errorf("place %d holds event %s with sequence %d, want %s", i+1, r.ID, r.Seq, want[i])
		}
	}
}

func logVisible(t *testing.T, ctx context.Context, log events.Log) {
	each(writers, func(i int) {
		a := reader(fmt.Sprint("r", i))
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
	if seq, err := log.Append(ctx, batch(100)...); err != nil || seq != 100 {
		t.Errorf("100 writes: %d, %v", seq, err)
	}
	wantRefused(t, ctx, log, nil, batch(101)...)
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
	a, b := reader("a"), reader("b")
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
		w := first(reader(fmt.Sprint("r", i)), note(i))
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
	a := reader("hot")
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
	a, b := reader("a"), reader("b")
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

func logCatalogue(t *testing.T, ctx context.Context, log events.Log) {
	want := Samples()
	for i := range want {
		w := want[i]
		if _, err := log.Append(ctx, w); err != nil {
			t.Fatalf("append %s: %v", w.Event.Type(), err)
		}
	}
	for i, r := range ReadAll(t, log) {
		if got, want := jsonOf(wire(t, &r.Event)), jsonOf(wire(t, &want[i].Event)); got != want {
			t.Errorf("%s came back as\n%s\nwant\n%s", r.Type(), got, want)
		}
	}
}

func wire(t *testing.T, e *events.Event) events.Message {
	t.Helper()
	m, err := events.Encode(e)
	if err != nil {
		t.Fatalf("encode %s: %v", e.Type(), err)
	}
	return m
}

func logFollow(t *testing.T, ctx context.Context, log events.Log) {
	const before, during = 40, 80
	c := events.Chain{}
	ws := make([]events.Write, before)
	for i := range ws {
		ws[i] = Stamp(&c, Event(reader("past"), note(i)))
	}
	if _, err := log.Append(ctx, ws...); err != nil {
		t.Fatal(err)
	}
	var followers []*recorder
	var stops []func() error
	for _, after := range []events.Seq{0, 1, before / 2, before - 1, before} {
		f := &recorder{after: after}
		followers, stops = append(followers, f), append(stops, following(ctx, log, f))
	}
	each(writers, func(i int) {
		a := reader(fmt.Sprint("r", i))
		var c events.Chain
		for n := range during / writers {
			ws := []events.Write{Stamp(&c, Event(a, note(n)))}
			seq, err := log.Append(ctx, ws...)
			if err != nil {
				t.Errorf("append: %v", err)
				return
			}
			c.Seq = seq
		}
	})
	all := ReadAll(t, log)
	if len(all) != before+during {
		t.Fatalf("%d events, want %d", len(all), before+during)
	}
	for i, f := range followers {
		until(t, fmt.Sprintf("the follower from %d has everything", f.after), func() bool {
			return len(f.events()) >= len(all)-int(f.after)
		})
		if err := stops[i](); !errors.Is(err, context.Canceled) {
			t.Errorf("follow from %d ended with %v", f.after, err)
		}
		for _, w := range f.broken() {
			t.Errorf("follow from %d: %s", f.after, w)
		}
		for j, r := range f.events() {
			if want := all[int(f.after)+j]; r.ID != want.ID || r.Hash != want.Hash || r.Stored != want.Stored {
				t.Errorf("follow from %d: event %d differs from what another reader sees", f.after, r.Seq)
			}
		}
	}
}

func logFollowerError(t *testing.T, ctx context.Context, log events.Log) {
	for i := range 5 {
		Append(t, log, reader("r"), note(i))
	}
	f := &recorder{fail: 4}
	if err := log.Follow(ctx, 0, f); !errors.Is(err, errDone) {
		t.Errorf("follow: %v, want the follower's own error", err)
	}
	if n := len(f.events()); n > 3 {
		t.Errorf("%d events applied, want those before the failing one only", n)
	}
}

func logFollowContext(t *testing.T, ctx context.Context, log events.Log) {
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := log.Follow(over, 0, &recorder{}); !errors.Is(err, context.Canceled) {
		t.Errorf("follow with a context that has ended: %v", err)
	}
	late, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := log.Follow(late, 0, &recorder{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("follow past its deadline: %v", err)
	}
}

func logFollowPastEnd(t *testing.T, ctx context.Context, log events.Log) {
	Append(t, log, reader("r"), note(1))
	within, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var corrupt *events.CorruptError
	if err := log.Follow(within, 2, &recorder{after: 2}); !errors.As(err, &corrupt) || corrupt.Reason == "" {
		t.Errorf("follow from 2 of a log that ends at 1: %v, want a *CorruptError", err)
	}
}

func logFresh(t *testing.T, ctx context.Context, log events.Log) {
	f := &recorder{}
	stop := following(ctx, log, f)
	for i := range 3 {
		seq := Append(t, log, reader("r"), note(i))
		until(t, "fresh after an append", func() bool {
			b := f.beats()
			return len(b) > 0 && b[len(b)-1].last >= seq
		})
	}
	// While all is quiet the clock goes on.
	n, at := len(f.beats()), f.beats()[len(f.beats())-1].at
	until(t, "four more while all is quiet", func() bool { return len(f.beats()) >= n+4 })
	if later := f.beats()[n+3]; later.at <= at || later.last != 3 {
		t.Errorf("quiet heartbeats went from %s to %s, last %d", at, later.at, later.last)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("follow ended with %v", err)
	}
	for _, w := range f.broken() {
		t.Error(w)
	}
}
