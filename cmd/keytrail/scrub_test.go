package main

import (
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

func TestScrubFile(t *testing.T) {
	id := events.LogID{1, 2}
	var r tree.Range
	for range 77 {
		r.Append(tree.Hash{3})
	}
	text := string(formatScrub(id, &r))
	if got, err := parseScrub(text, id); err != nil || got != r {
		t.Errorf("read back: %v", err)
	}
	if got, err := parseScrub(text, events.LogID{9}); err != nil || got != (tree.Range{}) {
		t.Errorf("the file of another log counts: %v", err)
	}
	for _, bad := range []string{"x", strings.Replace(text, scrubForm, "keytrail scrub 9", 1), strings.Replace(text, "=\n", "\n", 1), text + "more", text[:len(text)-20]} {
		if got, err := parseScrub(bad, id); err == nil || got != (tree.Range{}) || !strings.Contains(err.Error(), "delete it") {
			t.Errorf("%q is read: %v", bad, err)
		}
	}
}

func FuzzParseScrub(f *testing.F) {
	id := events.LogID{1, 2}
	f.Add(string(formatScrub(id, &tree.Range{})))
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseScrub(text, id)
		if again, err2 := parseScrub(string(formatScrub(id, &r)), id); err == nil && (err2 != nil || again != r) {
			t.Errorf("%q is not read back as it was: %v", text, err2)
		}
	})
}
