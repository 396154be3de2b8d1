package files

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "(absent)"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func create(t *testing.T, path string, replace bool, text string) *Output {
	t.Helper()
	o, err := Create(path, replace)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { o.Close() })
	if _, err := io.WriteString(o, text); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestOutputHasItsNameWhenItIsWhole(t *testing.T) {
	for _, replace := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "uses.csv")
		o := create(t, path, replace, "all")
		if got := content(t, path); got != "(absent)" {
			t.Errorf("replace %v: the name is there before the end: %s", replace, got)
		}
		if err := o.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := o.Close(); err != nil {
			t.Errorf("Close after Commit: %v", err)
		}
		if got := content(t, path); got != "all" {
			t.Errorf("replace %v: %q, want all", replace, got)
		}
		if got := content(t, o.Part()); got != "(absent)" {
			t.Errorf("replace %v: the part is still there: %s", replace, got)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("replace %v: %v, %v, want mode 0600", replace, info, err)
		}
	}
}

func TestBrokenOffOutputDoesNotBlockTheNext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses.csv")
	o := create(t, path, false, "a longer half")
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, o.Part()); got != "a longer half" {
		t.Errorf("the part is %q", got)
	}
	if err := create(t, path, false, "whole").Commit(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "whole" {
		t.Errorf("the retry wrote %q", got)
	}
}

func TestOutputThatSaidNothingLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses.csv")
	o := create(t, path, false, "")
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, o.Part()); got != "(absent)" {
		t.Errorf("the part is %q", got)
	}
}

func TestOutputDoesNotReplaceUnasked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses.csv")
	write(t, path, 0o600)
	_, err := Create(path, false)
	wantError(t, err, "is there already")

	other := filepath.Join(t.TempDir(), "uses.csv")
	o := create(t, other, false, "late")
	write(t, other, 0o600) // between Create and Commit
	wantError(t, o.Commit(), "made meanwhile")
	if got := content(t, other) + content(t, o.Part()); got != "content\nlate" {
		t.Errorf("after it: %q", got)
	}

	if err := create(t, path, true, "new").Commit(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "new" {
		t.Errorf("asked to replace: %q", got)
	}
}

func TestOutputIsWrittenByOneProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses.csv")
	o := create(t, path, false, "first")
	if _, err := Create(path, false); !errors.Is(err, ErrLocked) {
		t.Errorf("a second writer: %v, want ErrLocked", err)
	}
	if err := o.Commit(); err != nil || content(t, path) != "first" {
		t.Errorf("%v, %q", err, content(t, path))
	}
}

func TestOutputRejectsPlantedFiles(t *testing.T) {
	for _, p := range plants {
		t.Run("part: "+p.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "rejects.jsonl")
			p.plant(t, path+partSuffix)
			_, err := Create(path, true)
			wantError(t, err, p.sentence)
			if got := content(t, path+partSuffix+".target"); got != "(absent)" && got != "content\n" {
				t.Errorf("the link's target holds %q", got)
			}
		})
	}
	t.Run("name: a symbolic link", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "rejects.jsonl")
		plants[2].plant(t, path)
		_, err := Create(path, true)
		wantError(t, err, "not a regular file")
		if got := content(t, path+".target"); got != "content\n" {
			t.Errorf("the link's target holds %q", got)
		}
	})
}

func TestExchangedOutputIsNotRenamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "uses.csv")
	o := create(t, path, false, "mine")
	if err := os.Remove(o.Part()); err != nil {
		t.Fatal(err)
	}
	write(t, o.Part(), 0o600)
	wantError(t, o.Commit(), "exchanged")
	if got := content(t, path); got != "(absent)" {
		t.Errorf("the other file got the name: %q", got)
	}
}
