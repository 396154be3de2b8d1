package main

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

// TestFrozen is S2: what is published has not changed, and nothing is missing
// from the list.
func TestFrozen(t *testing.T) {
	fsys := os.DirFS("../..")
	old, err := os.ReadFile("../../" + sumFile)
	if err != nil {
		t.Fatal(err)
	}
	next, err := update(fsys, old, false)
	if err != nil {
		t.Fatal(err)
	}
	if string(next) != string(old) {
		t.Fatal("a published file is not in frozen.sum: run go generate ./schemas")
	}
}

func TestUpdate(t *testing.T) {
	fsys := fstest.MapFS{
		"events/key.created.v1.json": {Data: []byte("{}")},
		"keyspace.v1.json":           {Data: []byte("{}")},
		"notes.txt":                  {Data: []byte("not published")},
	}
	first, err := update(fsys, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(first), "\n"); n != 2 || !strings.HasSuffix(string(first), "  keyspace.v1.json\n") {
		t.Fatalf("%s", first)
	}

	fsys["events/key.created.v2.json"] = &fstest.MapFile{Data: []byte("{ }")}
	second, err := update(fsys, first, false)
	if err != nil || strings.Count(string(second), "\n") != 3 || !strings.Contains(string(second), "key.created.v2") {
		t.Fatalf("a new file is appended: %v\n%s", err, second)
	}

	fsys["keyspace.v1.json"].Data = []byte("{ }")
	if _, err := update(fsys, second, false); err == nil || !strings.Contains(err.Error(), "keyspace.v1.json") {
		t.Fatalf("a changed file: %v", err)
	}
	delete(fsys, "keyspace.v1.json")
	if _, err := update(fsys, second, false); err == nil || !strings.Contains(err.Error(), "keyspace.v1.json") {
		t.Fatalf("a vanished file: %v", err)
	}
	forced, err := update(fsys, second, true)
	if err != nil || strings.Count(string(forced), "\n") != 2 {
		t.Fatalf("forced: %v\n%s", err, forced)
	}
	if _, err := update(fsys, []byte("nonsense\n"), false); err == nil {
		t.Fatal("a broken list is accepted")
	}
}

func TestRunWritesOnlyChanges(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/keyspace.v1.json", []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run(dir, false); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(dir + "/" + sumFile)
	if err != nil || len(before) == 0 {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/keyspace.v1.json", []byte("{ }"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run(dir, false); err == nil {
		t.Fatal("a changed file is accepted")
	}
	if after, err := os.ReadFile(dir + "/" + sumFile); err != nil || string(after) != string(before) {
		t.Fatalf("the list changed although it was refused: %v", err)
	}
}
