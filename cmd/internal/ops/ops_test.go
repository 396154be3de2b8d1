package ops

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

func TestGroupStopsInReverseOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stopped []string
		g := &Group{Logger: slog.New(slog.DiscardHandler)}
		for _, name := range []string{"log", "follower", "door"} {
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
		if want := []string{"first", "door", "follower", "log"}; !slices.Equal(stopped, want) {
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

func TestGroupLeavesAStuckPartBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		g := &Group{Logger: slog.New(slog.DiscardHandler), Grace: time.Second}
		g.Go("stuck", func(context.Context) error { <-release; return nil })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		start := time.Now()
		if err := g.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != time.Second {
			t.Fatalf("waited %v, want the grace of 1s", d)
		}
		close(release)
	})
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
	if got, err := d.Read("root.key"); got != "" || err != nil {
		t.Fatalf("got %q, %v of an absent file", got, err)
	}
	if err := d.WriteOnce("root.key", "kt_x"); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Read("root.key"); got != "kt_x" || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	info, err := os.Stat(d.Sub("root.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v, want 0600", info.Mode(), err)
	}
	d.Close()
	again, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}
