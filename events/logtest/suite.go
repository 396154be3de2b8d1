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
const patience = time.Minute

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
		{"1000 writes fit, 1001 are refused", logMaxWrites},
		{"an event near 1 MiB fits, a larger one is refused", logMaxSize},
		{"an invalid event is refused and stores nothing", logInvalid},
		{"an event of the other log is refused and stores nothing", logOther},
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

// note is an event that is legal at any time in the history of noted: a role may be
// defined again and again.
func note(i int) events.Data {
	return &events.RoleDefined{Description: fmt.Sprint("note ", i), Scopes: []string{}}
}

func noted(name string) events.Aggregate {
	return events.RoleAggregate("shop", "acme", events.RoleID(name))
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
	Append(t, log, noted("r"), note(1))
	if log.ID() != id {
		t.Errorf("the identity changed from %s to %s", id, log.ID())
	}
}

// logLastOf is for logs that offer it, as the product's own do.
func logLastOf(t *testing.T, ctx context.Context, log events.Log) {
	l, ok := log.(events.ReadLog)
	if !ok {
		t.Fatalf("%T does not offer LastOf and At", log)
	}
	a, other := noted("a"), noted("b")
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
		if at, ok, err := l.At(ctx, r.Seq); !ok || err != nil || !reflect.DeepEqual(at, r) {
			t.Fatalf("at %d stands %+v, %t, %v", r.Seq, at, ok, err)
		}
	}
}

// logOther: what was read is not in the lifecycle log.
func logOther(t *testing.T, ctx context.Context, log events.Log) {
	read := first(events.ReaderAggregate(events.Actor{ID: "r"}), &events.AuditQueried{Kind: "uses"})
	for _, ws := range [][]events.Write{{read}, {first(noted("a"), note(1)), read}} {
		if seq, err := log.Append(ctx, ws...); err == nil || seq != 0 || errors.Is(err, events.ErrConflict) || !strings.Contains(err.Error(), "belongs to the log of reads") {
			t.Errorf("%d writes: %d, %v", len(ws), seq, err)
		}
	}
	if last := wantLast(t, ctx, log); last != 0 {
		t.Errorf("the log ends at %d", last)
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
	until(t, "fresh on an empty log", func() bool { return len(f.heartbeats()) > 0 })
	if b := f.heartbeats()[0]; b.last != 0 || b.at.Validate() != nil {
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

func logCatalogue(t *testing.T, ctx context.Context, log events.Log) {
	want := slices.DeleteFunc(Samples(), func(w events.Write) bool { return w.Event.Aggregate.Stream() != events.Lifecycle })
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
