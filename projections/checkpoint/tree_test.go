package checkpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// What a restart reads again, and what it refuses.
func TestRestart(t *testing.T) {
	change := func(f func(b []byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, f(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(t *testing.T, path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		file string
		do   func(*testing.T, string)
		read int // leaves of 1000 + 50
	}{
		"untouched":      {hashesFile, func(*testing.T, string) {}, 50},
		"longer":         {hashesFile, change(func(b []byte) []byte { return append(b, make([]byte, 999)...) }), 50},
		"shorter":        {hashesFile, change(func(b []byte) []byte { return b[:len(b)-1] }), 1050},
		"right edge":     {hashesFile, change(func(b []byte) []byte { b[len(b)-1] ^= 1; return b }), 1050},
		"no hashes":      {hashesFile, remove, 1050},
		"no mark":        {markFile, remove, 1050},
		"a damaged mark": {markFile, change(func(b []byte) []byte { b[70] ^= 1; return b }), 1050},
		"half of a mark": {markFile, change(func(b []byte) []byte { return b[:50] }), 1050},
		"an empty mark":  {markFile, change(func(b []byte) []byte { return nil }), 1050},
		"mark of another": {markFile, func(t *testing.T, path string) {
			change(func([]byte) []byte { h := events.Head{Log: newWorld().id, Size: 3}; return formatMark(&h) })(t, path)
		}, 1050},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w := newWorld()
			w.grow(1000, "a")
			p := w.open(t, dir, nil)
			w.mustRound(t, p)
			if err := p.tree.close(); err != nil {
				t.Fatal(err)
			}
			c.do(t, filepath.Join(dir, c.file))
			w.grow(50, "a")
			w.read = 0
			p = w.open(t, dir, nil)
			w.mustRound(t, p)
			if p.servedSize() != 1050 || w.read != c.read {
				t.Errorf("size %d, %d leaves were read, want %d", p.servedSize(), w.read, c.read)
			}
			if err := p.tree.hashes.Load().Verify(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A hash that is damaged within the file, where no root shows it, is found by the check
// and mended from the log.
func TestDamagedWithin(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	w.grow(1000, "a")
	p := w.open(t, dir, func(c *Config) { c.Verify = time.Millisecond })
	w.mustRound(t, p)
	f, err := os.OpenFile(filepath.Join(dir, hashesFile), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("damage"), 3200)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	await(t, "the hashes are mended", func() bool {
		h := p.tree.hashes.Load()
		r := h.Range()
		return r.Size() == 1000 && h.Verify(t.Context()) == nil
	})
	cancel()
	<-done
	if last, _ := w.cps.Last(t.Context()); last.Seq != 1 {
		t.Errorf("%d checkpoints", last.Seq)
	}
}

// A bundle is made of the events of the tree, or not at all.
func TestBundleOfAnAlteredLog(t *testing.T) {
	w := newWorld()
	w.grow(300, "a")
	p := w.open(t, t.TempDir(), nil)
	w.mustRound(t, p)
	bundle := tree.Tile{Level: tree.EntriesLevel, Index: 1, Width: 44}
	b, err := p.bundle(t.Context(), bundle)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := tree.ParseBundle(b, 44)
	if err != nil {
		t.Fatal(err)
	}
	if subject, document, err := tree.ParseEntry(entries[43]); err != nil || subject != w.events[299].subject || document != w.events[299].document {
		t.Errorf("%q, %v", entries[43], err)
	}
	w.events[299].document[0] ^= 1
	if _, err := p.bundle(t.Context(), bundle); err == nil || !strings.Contains(err.Error(), "event 300 is not") {
		t.Error(err)
	}
}

func TestOneControlADirectory(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	w.open(t, dir, nil)
	if _, err := New(Config{Dir: dir, Log: w, View: w, Checkpoints: w.cps}); err == nil || !strings.Contains(err.Error(), "--dir of its own") {
		t.Error(err)
	}
}

// The log shows other events than the view has applied.
func TestAlteredLog(t *testing.T) {
	w := newWorld()
	w.grow(10, "a")
	p := w.open(t, t.TempDir(), nil)
	w.mustRound(t, p)
	w.grow(10, "a")
	w.events[14].document[0] ^= 1
	if _, ok := errors.AsType[*forkError](p.round(t.Context())); !ok {
		t.Error("it goes on")
	}
	if last, _ := w.cps.Last(t.Context()); last.Seq != 1 {
		t.Error("it was signed")
	}
}

func TestMark(t *testing.T) {
	want := events.Head{Log: newWorld().id, Size: 7, Root: events.Hash{1}}
	if got, err := parseMark(string(formatMark(&want))); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzMark(f *testing.F) {
	h := events.Head{Log: newWorld().id, Size: 7, Root: events.Hash{1}}
	f.Add(string(formatMark(&h)))
	f.Add("{}\n44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\n")
	f.Fuzz(func(t *testing.T, text string) {
		h, err := parseMark(text)
		if err == nil && strings.TrimSpace(string(formatMark(&h))) != strings.TrimSpace(text) {
			t.Errorf("%q is read as %+v", text, h)
		}
	})
}
