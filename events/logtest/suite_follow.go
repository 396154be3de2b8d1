package logtest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

func logFollow(t *testing.T, ctx context.Context, log events.Log) {
	const before, during = 40, 80
	c := events.Chain{}
	ws := make([]events.Write, before)
	for i := range ws {
		ws[i] = Stamp(&c, Event(noted("past"), note(i)))
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
		a := noted(fmt.Sprint("r", i))
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
		Append(t, log, noted("r"), note(i))
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
	Append(t, log, noted("r"), note(1))
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
		seq := Append(t, log, noted("r"), note(i))
		until(t, "fresh after an append", func() bool {
			b := f.heartbeats()
			return len(b) > 0 && b[len(b)-1].last >= seq
		})
	}
	// While all is quiet the clock goes on.
	n, at := len(f.heartbeats()), f.heartbeats()[len(f.heartbeats())-1].at
	until(t, "four more while all is quiet", func() bool { return len(f.heartbeats()) >= n+4 })
	if later := f.heartbeats()[n+3]; later.at <= at || later.last != 3 {
		t.Errorf("quiet heartbeats went from %s to %s, last %d", at, later.at, later.last)
	}
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("follow ended with %v", err)
	}
	for _, w := range f.broken() {
		t.Error(w)
	}
}
