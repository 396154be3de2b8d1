package parts

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestGroupStopsInReverseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stopped []string
		g := &Group{Logger: slog.New(slog.DiscardHandler)}
		for _, name := range []string{"log", "follower", "endpoint"} {
			g.Go(name, func(ctx context.Context) error {
				<-ctx.Done()
				stopped = append(stopped, name)
				return ctx.Err()
			})
		}
		g.OnStop("first", func(context.Context) { stopped = append(stopped, "first") })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if want := []string{"first", "endpoint", "follower", "log"}; !slices.Equal(stopped, want) {
			t.Fatalf("stopped %v, want %v", stopped, want)
		}
	})
}

func TestGroupEndsWithAFailedPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		g := &Group{Logger: slog.New(slog.DiscardHandler)}
		g.Go("steady", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		g.Go("bad", func(context.Context) error { return boom })
		if err := g.Run(t.Context()); !errors.Is(err, boom) {
			t.Fatalf("got %v, want boom", err)
		}
	})
}

// Whatever hangs, the stop ends within the grace, and a part that does not hang
// is stopped in its turn.
func TestGroupStopsInTimeWhateverHangs(t *testing.T) {
	for _, grace := range []time.Duration{0, time.Second} {
		want := grace
		if want == 0 {
			want = DefaultGrace
		}
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			hang := func(context.Context) error { <-release; return nil }
			g := &Group{Logger: slog.New(slog.DiscardHandler), Grace: grace}
			ledger := time.Duration(0)
			g.OnStop("hanging close", func(context.Context) { <-release })
			g.GoLong("ledger", func(ctx context.Context) error {
				<-ctx.Done()
				began := time.Now()
				time.Sleep(want / 3) // what it has to do
				ledger = time.Since(began)
				return nil
			})
			for range 4 {
				g.Go("hanging part", hang)
			}
			g.OnStop("another hanging close", func(context.Context) { <-release })
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			began := time.Now()
			err := g.Run(ctx)
			if took := time.Since(began); took > want {
				t.Errorf("it took %v, want %v at most", took, want)
			}
			if err == nil || !strings.Contains(err.Error(), "another hanging close, hanging part, hanging part, hanging part, hanging part, hanging close") {
				t.Errorf("error %v, want one that names what hangs", err)
			}
			if ledger != want/3 {
				t.Error("the part that does not hang had no time")
			}
			close(release)
		})
	}
}

func TestGroupGivesWhatIsLeftToThoseThatAreLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Group{Logger: slog.New(slog.DiscardHandler)}
		g.OnStop("quick", func(context.Context) {})
		g.GoLong("ledger", func(ctx context.Context) error { <-ctx.Done(); time.Sleep(DefaultGrace*4/5 - 1); return nil })
		for range 10 {
			g.OnStop("quick", func(context.Context) {})
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := g.Run(ctx); err != nil {
			t.Errorf("a part that needs four fifths of the grace: %v", err)
		}
	})
}

// A part that needs longer than its share, as after a pause of the process, is not
// left behind while the grace lasts; what it says in the end counts.
func TestGroupWaitsForALatePart(t *testing.T) {
	for _, boom := range []error{nil, errors.New("boom")} {
		synctest.Test(t, func(t *testing.T) {
			var stopped []string
			g := &Group{Logger: slog.New(slog.DiscardHandler)}
			for range 8 {
				g.OnStop("quick", func(context.Context) { stopped = append(stopped, "quick") })
			}
			g.Go("late", func(ctx context.Context) error { <-ctx.Done(); time.Sleep(DefaultGrace - 1); return boom })
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			began := time.Now()
			err := g.Run(ctx)
			if !errors.Is(err, boom) || time.Since(began) != DefaultGrace-1 || len(stopped) != 8 {
				t.Errorf("%v after %v, %d others stopped", err, time.Since(began), len(stopped))
			}
		})
	}
}

// A group that is a part of another one stops within what that leaves it, and says
// which of its parts hangs.
func TestGroupWithinAGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		logger := slog.New(slog.DiscardHandler)
		inner := &Group{Logger: logger}
		inner.Go("hanging part", func(context.Context) error { <-release; return nil })
		outer := &Group{Logger: logger, Grace: time.Second}
		outer.GoLong("inner", inner.Run)
		outer.Go("quick", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began := time.Now()
		err := outer.Run(ctx)
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v, want 1s at most", took)
		}
		if err == nil || err.Error() != "inner: did not stop in time: hanging part" {
			t.Errorf("error %v, want one that names what hangs", err)
		}
		close(release)
	})
}
