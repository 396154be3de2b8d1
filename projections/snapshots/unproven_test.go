package snapshots

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
)

var someFetched = []fetched{
	{"keys", 7, events.Hash{1}, events.Hash{2}, "https://a:7070"},
	{"directory", 1<<63 + 1, events.Hash{3}, events.Hash{4}, "http://[::1]:7070/x?"},
}

func TestFileOfFetchedSnapshots(t *testing.T) {
	id := events.LogID{1, 2}
	text := format(id, someFetched)
	list, log, err := parse(text)
	if err != nil || log != id || !slices.Equal(list, someFetched) {
		t.Errorf("read back: %v, %v, %v", list, log, err)
	}
	for _, bad := range []string{"x", form, strings.Replace(text, "snapshots 1", "snapshots 9", 1), strings.Replace(text, "keys", "kays", 1), strings.Replace(text, " 7 ", " 07 ", 1),
		strings.Replace(text, " 7 ", " 0 ", 1), text + "more", text[:100], strings.Replace(text, " 7 ", "  7 ", 1)} {
		if list, _, err := parse(bad); err == nil {
			t.Errorf("%q is read: %v", bad, list)
		}
	}

	w := newWorld(t)
	n := w.node()
	if err := os.WriteFile(filepath.Join(n.path, unprovenFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := n.open(); s.Proven() != nil {
		t.Errorf("the file of another log counts: %v", s.Proven())
	}
	if err := os.WriteFile(filepath.Join(n.path, unprovenFile), []byte(text[:60]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Dir: n.path, Log: w}); err == nil || !strings.Contains(err.Error(), "remove the directory of snapshots") {
		t.Errorf("a damaged file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(format(events.LogID{1, 2}, someFetched))
	f.Fuzz(func(t *testing.T, text string) {
		list, log, err := parse(text)
		if err == nil && format(log, list) != strings.TrimSpace(text)+"\n" {
			t.Errorf("%q is read as %v", text, list)
		}
	})
}
