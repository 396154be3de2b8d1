package ops

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
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

func TestLimitStop(t *testing.T) {
	defer func() { exit = os.Exit }()
	run := func(t *testing.T, end, release time.Duration) (code int, after time.Duration, said string) {
		code = -1
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			var w bytes.Buffer
			exit = func(c int) { code, after = c, time.Since(began) }
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			off := LimitStop(ctx, &w)
			time.AfterFunc(end, cancel)
			time.Sleep(release)
			off()
			synctest.Wait()
			said = w.String()
		})
		return code, after, said
	}
	if code, after, said := run(t, time.Hour, 2*time.Hour); code != 1 || after != time.Hour+StopLimit || !strings.Contains(said, "had not stopped 14s after it was asked to") {
		t.Errorf("a stop that hangs: exit code %d after %v: %s", code, after, said)
	}
	if code, _, said := run(t, time.Hour, time.Hour+StopLimit-time.Second); code != -1 || said != "" {
		t.Errorf("a stop in time: exit code %d: %s", code, said)
	}
	if code, _, said := run(t, 3*time.Hour, 2*time.Hour); code != -1 || said != "" {
		t.Errorf("an end that nobody asked for: exit code %d: %s", code, said)
	}
}

func TestDirIsHeldByOneProcess(t *testing.T) {
	path := t.TempDir() + "/data"
	d, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDir(path); err == nil {
		t.Fatal("a second process got the directory")
	}
	d.Close()
	again, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
