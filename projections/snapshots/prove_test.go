package snapshots

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// A row that is not the log's is found, also by a node that was restarted with later
// snapshots of its own. It is named with its source, the view says nothing any more, and
// the next start begins with the log and does not ask the source again.
func TestAWrongRowIsFound(t *testing.T) {
	w := newWorld(t)
	liar := sending("http://liar", lie(t, w.export(w.keys)))
	n := w.node()
	_, v := n.start(liar)
	if status(v, w.bad.Key) != events.StatusActive {
		t.Fatal("the lie is not believed, so it is no test")
	}
	w.grow()
	if err := v.Apply(w.all[v.At():]); err != nil {
		t.Fatal(err)
	}
	n.keep(v)
	s, v := n.start(liar) // from its own snapshot
	n.keep(v)
	err := n.proof(s)
	corrupt, ok := errors.AsType[*events.CorruptError](err)
	if !ok || corrupt.Seq != 7 || !strings.Contains(err.Error(), "of the keys at event 7 that came from http://liar does not say what the log says: key "+w.bad.Key.String()+" is active in it, and revoked in the log") {
		t.Fatal(err)
	}
	if v.At() != 0 || !errors.Is(v.Apply(nil), corrupt) {
		t.Errorf("the view still says that it is at %d", v.At())
	}
	n.keep(w.dir) // of another view: it stays

	crash := n.files()
	for _, after := range []string{"at once", "once more"} {
		s, v = n.start(liar)
		if status(v, w.bad.Key) != events.StatusRevoked || v.At() != w.last || s.Proven() != nil {
			t.Errorf("started again %s: at %d, %v", after, v.At(), s.Proven())
		}
		n.wantSaid("a source is not asked")
		if got := n.files(); got != "directory-00000000000000000007.snap refused" {
			t.Errorf("started again %s, the directory had %s and has %s", after, crash, got)
		}
	}
	s, v = n.start(liar, sending("http://honest", w.export(w.keys)))
	if err := n.proof(s); err != nil || v.Resume() == 0 {
		t.Errorf("from another source: %v", err)
	}
	n.wantSaid("from=http://honest")
}

// The directory is proven as the keys are; a difference in any member is found.
func TestAWrongDirectoryIsFound(t *testing.T) {
	w := newWorld(t)
	for name, bad := range map[string][]byte{"status": lie(t, w.export(w.dir)), "name": withSum(replaced(w.export(w.dir), "acme", "acne"))} {
		t.Run(name, func(t *testing.T) {
			n := w.node()
			s := n.open(sending("http://liar", bad))
			v, ok, err := Fetch(t.Context(), s, projections.LoadDirectory)
			if !ok || err != nil {
				t.Fatal(err, n.said.String())
			}
			if err := s.Watch(v); err != nil {
				t.Fatal(err)
			}
			if err := v.Apply(w.all[v.Resume()-1:]); err != nil {
				t.Fatal(err)
			}
			if err := n.proof(s); err == nil || !strings.Contains(err.Error(), "snapshot of the directory at event 7 that came from http://liar") || !strings.Contains(err.Error(), ": key key_") || v.At() != 0 {
				t.Errorf("%v; the view is at %d", err, v.At())
			}
		})
	}
}

func replaced(b []byte, old, by string) []byte {
	return []byte(strings.Replace(string(b), old, by, 1))
}

// Two views of two sources at two positions are proven in one pass; one of them that is
// wrong takes the other along, because the process ends, and is refused alone.
func TestTwoViewsAreProven(t *testing.T) {
	for _, wrong := range []bool{false, true} {
		w := newWorld(t)
		dir := w.export(w.dir)
		if wrong {
			dir = lie(t, dir)
		}
		w.grow()
		if err := w.keys.Apply(w.all[w.last-1:]); err != nil {
			t.Fatal(err)
		}
		n := w.node()
		s, _ := n.start(sending("http://a", w.export(w.keys)))
		s.cfg.Sources = []Source{sending("http://b", dir)}
		d, ok, err := Fetch(t.Context(), s, projections.LoadDirectory)
		if !ok || err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Watch(d), d.Apply(w.all[d.Resume()-1:])); err != nil {
			t.Fatal(err)
		}
		if err := n.proof(s); (err != nil) != wrong {
			t.Fatal(err)
		}
		s = n.open()
		if got := n.files(); s.Proven() != nil || n.has(unprovenFile) || strings.Contains(got, "directory") == wrong || !strings.Contains(got, "keys") {
			t.Errorf("wrong %v: %s, %v", wrong, got, s.Proven())
		}
	}
}

// An event that was altered after the snapshot was fetched is the log's fault, and not
// the source's.
func TestAnAlteredLogIsNotTheSourcesFault(t *testing.T) {
	w := newWorld(t)
	n := w.node()
	s, _ := n.start(sending("http://a", w.export(w.keys)))
	w.all = slices.Clone(w.all)
	w.all[2].Hash[31] ^= 1
	if err := n.proof(s); err == nil || !strings.Contains(err.Error(), "the log was altered while this node ran") || n.has(refusedFile) || !n.has(unprovenFile) {
		t.Errorf("%v, %s", err, n.files())
	}
}

// A view that begins with the first event follows from nothing that was fetched: a crash
// before the snapshot had its name, or an operator who removed it.
func TestNothingIsProvenWithoutItsSnapshot(t *testing.T) {
	w := newWorld(t)
	n := w.node()
	n.start(sending("http://liar", lie(t, w.export(w.keys))))
	snaps, err := filepath.Glob(filepath.Join(n.path, "*.snap"))
	if err != nil || len(snaps) != 1 || os.Remove(snaps[0]) != nil {
		t.Fatal(snaps, err)
	}
	s, v := n.start()
	if err := n.proof(s); err != nil || w.replayed > 0 || v.At() != w.last || n.files() != "" {
		t.Errorf("%v, %d events replayed, at %d, %s", err, w.replayed, v.At(), n.files())
	}
}

// A node that stops before its proof has ended begins it again.
func TestAProofOutlivesItsProcess(t *testing.T) {
	w := newWorld(t)
	n := w.node()
	s, _ := n.start(sending("http://a", w.export(w.keys)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); !errors.Is(err, context.Canceled) || s.Proven() == nil || s.Wait(ctx) == nil {
		t.Error(err, s.Proven())
	}
	w.replayed = 0
	s, _ = n.start()
	if err := n.proof(s); err != nil || w.replayed < 7 || s.Proven() != nil {
		t.Errorf("%v, %d events replayed", err, w.replayed)
	}
}

// A snapshot that cannot be removed stays marked: it never becomes the node's own.
func TestWhatCannotBeRemovedStaysUnproven(t *testing.T) {
	w := newWorld(t)
	stuck := func(n *node) string { // a name of a snapshot that cannot be removed
		path := filepath.Join(n.path, "keys-00000000000000000001.snap")
		if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Run("a wrong one", func(t *testing.T) {
		n := w.node()
		s, _ := n.start(sending("http://liar", lie(t, w.export(w.keys))))
		if err := n.proof(s); err == nil {
			t.Fatal("the lie is not found")
		}
		path := stuck(n)
		for range 2 {
			if _, err := Open(Config{Dir: n.path, Log: w, Logger: slog.New(slog.DiscardHandler)}); err == nil || !n.has(unprovenFile) {
				t.Fatalf("the store opens with %v, the directory has %s", err, n.files())
			}
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if _, v := n.start(); status(v, w.bad.Key) != events.StatusRevoked {
			t.Error("the lie is used")
		}
	})
	t.Run("one that is received and not used", func(t *testing.T) {
		n := w.node()
		path := stuck(n)
		for _, name := range []string{"keys-00000000000000000002.snap", "keys-00000000000000000003.snap"} {
			if err := os.WriteFile(filepath.Join(n.path, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s := n.open(sending("http://liar", lie(t, w.export(w.keys)))) // Receive fails after the rename
		if _, ok, err := Fetch(t.Context(), s, projections.LoadKeys); ok || err == nil || !n.has(unprovenFile) {
			t.Fatalf("used %v, %v, %s", ok, err, n.files())
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if _, v := n.start(); status(v, w.bad.Key) != events.StatusRevoked {
			t.Error("the snapshot of the liar is this node's own")
		}
	})
}
