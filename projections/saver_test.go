package projections

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/parts"
)

func TestSaver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, v := newWorld(t), NewKeys()
		var said bytes.Buffer
		s := &Saver{View: v, Dir: t.TempDir(), Log: testLog, Every: time.Minute, Logger: slog.New(slog.NewTextHandler(&said, nil))}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		files := func(want int) {
			t.Helper()
			synctest.Wait()
			if got := len(snapshotFiles(s.Dir, "keys")); got != want {
				t.Errorf("%d files, want %d", got, want)
			}
		}
		time.Sleep(90 * time.Second)
		files(0) // nothing to save
		w.define("ks", definition())
		apply(t, v, w)
		time.Sleep(5 * time.Minute)
		files(1) // once, not five times
		w.define("ks", definition())
		apply(t, v, w)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		files(2) // the last word
		w.define("ks", definition())
		apply(t, v, w)
		s.Every, s.Tail = time.Hour, 2
		ctx, cancel = context.WithCancel(t.Context())
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Minute)
		files(2) // one event is no tail
		w.define("ks", definition())
		w.define("ks", definition())
		apply(t, v, w)
		time.Sleep(time.Minute)
		files(3) // two are
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		s.Dir = filepath.Join(s.Dir, "\x00")
		w.define("ks", definition())
		apply(t, v, w)
		s.save(t.Context())
		if s.failures.Load() != 1 || !strings.Contains(said.String(), "snapshot not saved") {
			t.Error("a failure is silent")
		}
	})
}

// A view that stands where it was saved or restored is not written again, unless that
// file is gone or another one.
func TestSaverWritesNothingTwice(t *testing.T) {
	dir := t.TempDir()
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	w.create("ks", "acme", "1", nil)
	apply(t, v, w)
	path := snapshotPath(dir, "keys", 2)
	// stop runs a saver until it has stopped, and reports whether it has written a file.
	stop := func(v View) bool {
		t.Helper()
		was, _ := os.Stat(path)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s := &Saver{View: v, Dir: dir, Log: testLog, Logger: slog.New(slog.DiscardHandler)}
		if err := s.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		is, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return was == nil || !os.SameFile(was, is)
	}
	if !stop(v) {
		t.Error("a view that was never saved is not saved")
	}
	if stop(v) {
		t.Error("what was saved is saved again")
	}
	restored, refused, err := RestoreKeys(dir, testLog, 2)
	if err != nil || refused != nil {
		t.Fatal(err, refused)
	}
	apply(t, restored, w) // the log shows the event (P8)
	if stop(restored) {
		t.Error("what was restored is saved again")
	}
	received, err := Receive(t.Context(), dir, bytes.NewReader(export(t, v)),
		func(r io.Reader) (*Keys, error) { return LoadKeys(r, testLog) }, func(*Keys, events.Hash) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	apply(t, received, w)
	if stop(received) {
		t.Error("what was received is saved again")
	}
	whole := snapshot(t, received)
	var was os.FileInfo
	for _, c := range []struct {
		what  string
		spoil func() error
	}{
		{"removed", func() error { return os.Remove(path) }},
		{"cut short", func() error { return os.Truncate(path, 60) }},
		{"altered", func() error {
			// Some file systems keep times by the tick of a clock.
			return errors.Join(os.WriteFile(path, append(whole[:len(whole)-1:len(whole)-1], 0), 0o600), os.Chtimes(path, time.Time{}, time.Unix(1, 0)))
		}},
		{"exchanged", func() error {
			return errors.Join(os.WriteFile(path+"2", whole, 0o600), os.Chtimes(path+"2", time.Time{}, was.ModTime()), os.Rename(path+"2", path))
		}},
	} {
		if stop(received) {
			t.Errorf("before its file is %s it is saved again", c.what)
		}
		if was, err = os.Stat(path); err != nil {
			t.Fatal(err)
		}
		if err := c.spoil(); err != nil {
			t.Fatal(err)
		}
		if !stop(received) {
			t.Errorf("a view is not saved whose file was %s", c.what)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, snapshot(t, received)) {
			t.Errorf("the file that was %s is not whole again: %v", c.what, err)
		}
	}
	path = snapshotPath(dir, "keys", 3)
	w.create("ks", "acme", "2", nil)
	apply(t, received, w)
	if !stop(received) {
		t.Error("a view that has moved on is not saved")
	}
}

// slowView is a view that does something while a snapshot is written.
type slowView struct {
	*Keys
	before func(io.Writer) error
	after  func()
}

func (v *slowView) Snapshot(w io.Writer, log events.LogID) (events.Seq, error) {
	if err := v.before(w); err != nil {
		return 0, err
	}
	defer v.after()
	return v.Keys.Snapshot(w, log)
}

// A snapshot that cannot be done in the time that the stop leaves is given up: what was
// there stays, and the stop is in order.
func TestSaverGivesUpInTime(t *testing.T) {
	const grace = time.Second
	ready := func(io.Writer) error { return nil }
	takes := func(d time.Duration) func(io.Writer) error {
		return func(io.Writer) error { time.Sleep(d); return nil }
	}
	long := func(w io.Writer) error {
		for range 100 {
			if _, err := w.Write(make([]byte, 100)); err != nil {
				return err
			}
			time.Sleep(grace / 10)
		}
		return nil
	}
	for _, c := range []struct {
		name   string
		before func(io.Writer) error
		after  time.Duration
		runs   time.Duration // until the stop
		saved  bool
	}{
		{"quick", takes(grace * 8 / 10), 0, 0, true},
		{"slow", takes(grace), 0, 0, false},
		{"long", long, 0, 0, false},
		{"late", ready, grace, 0, false},
		{"hanging since before the stop", takes(32 * time.Second), 0, 90 * time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir() // removed after the bubble
			synctest.Test(t, func(t *testing.T) {
				w, v := newWorld(t), NewKeys()
				w.define("ks", definition())
				apply(t, v, w)
				if _, err := Save(t.Context(), dir, v, testLog); err != nil {
					t.Fatal(err)
				}
				w.create("ks", "acme", "1", nil)
				apply(t, v, w)
				slow := &slowView{v, c.before, func() { time.Sleep(c.after) }}
				var said bytes.Buffer
				s := &Saver{View: slow, Dir: dir, Log: testLog, Every: time.Minute, Logger: slog.New(slog.NewTextHandler(&said, nil))}
				g := &parts.Group{Logger: s.Logger, Grace: grace}
				g.GoLong("saver", s.Run)
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(c.runs, cancel)
				began := time.Now()
				if err := g.Run(ctx); err != nil {
					t.Errorf("the stop is not in order: %v", err)
				}
				if took := time.Since(began); took >= c.runs+grace {
					t.Errorf("it took %v", took)
				}
				line, want := "snapshot abandoned", []string{"keys-00000000000000000001.snap"}
				if c.saved {
					line, want = "snapshot saved", append(want, "keys-00000000000000000002.snap")
				}
				if strings.Count(said.String(), "msg=") != 1 || !strings.Contains(said.String(), line) {
					t.Errorf("want one line with %q in the log:\n%s", line, said.String())
				}
				time.Sleep(2 * grace)
				synctest.Wait() // what was left behind has ended
				var got []string
				entries, err := os.ReadDir(dir)
				for _, e := range entries {
					got = append(got, e.Name())
				}
				if err != nil || !slices.Equal(got, want) {
					t.Errorf("files %v, want %v: %v", got, want, err)
				}
			})
		})
	}
}
