//go:build !noengine && linux && amd64

package engine_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keytrail/keytrail/audit/engine"
)

// The real fetch, by two at once, over what a broken copy left.
func TestFetch(t *testing.T) {
	t.Setenv(engine.EnvLibrary, "")
	cache := t.TempDir()
	folder := filepath.Join(cache, "chdb", "26.7.3-stable.1-linux-x64-gnu")
	abandoned := filepath.Join(cache, "chdb", "fetch-abandoned")
	for _, dir := range []string{folder, abandoned} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	lib := filepath.Join(folder, "libchdb.so")
	if err := os.WriteFile(lib, []byte("half a library"), 0o600); err != nil {
		t.Fatal(err)
	}

	// File locks belong to open files, so two goroutines meet as two processes do. The
	// one that fetches goes on when the other has told that it waits, or has ended.
	var told [2]journal
	var waits, ended [2]chan struct{}
	for i := range told {
		waits[i], ended[i] = make(chan struct{}), make(chan struct{})
	}
	var group sync.WaitGroup
	for i := range told {
		other := 1 - i
		waiting := sync.OnceFunc(func() { close(waits[i]) })
		progress := writerFunc(func(b []byte) (int, error) {
			if strings.Contains(string(b), "waiting for another Keytrail") {
				waiting()
			} else {
				select {
				case <-waits[other]:
				case <-ended[other]:
				}
			}
			return told[i].Write(b)
		})
		group.Go(func() {
			defer close(ended[i])
			got, err := engine.Ensure(t.Context(), engine.Config{Cache: cache, Progress: progress})
			if err != nil || got != lib {
				t.Errorf("Ensure: %s, %v, want %s", got, err, lib)
			}
		})
	}
	group.Wait()
	both := told[0].String() + told[1].String()
	if n := strings.Count(both, "MB to download"); n != 1 {
		t.Errorf("fetched %d times, want once:\n%s", n, both)
	}
	if !strings.Contains(both, "waiting for another Keytrail") {
		t.Errorf("nobody waited:\n%s", both)
	}
	if left := entries(t, filepath.Join(cache, "chdb")); left != "26.7.3-stable.1-linux-x64-gnu lock" {
		t.Errorf("the cache holds %s", left)
	}

	// What is in the cache is not hashed again, which would take half a second: other
	// bytes of the same size and time pass.
	change := func(flag int) {
		t.Helper()
		f, err := os.OpenFile(lib, os.O_WRONLY|flag, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.Stat(lib)
	if err != nil {
		t.Fatal(err)
	}
	change(0)
	if err := os.Chtimes(lib, time.Time{}, before.ModTime()); err != nil {
		t.Fatal(err)
	}
	if got, err := engine.Locate(engine.Config{Cache: cache}); err != nil || got != lib {
		t.Errorf("Locate: %s, %v, want %s", got, err, lib)
	}

	// A library that changed is not the one that was verified.
	change(os.O_APPEND)
	if _, err := engine.Locate(engine.Config{Cache: cache}); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("Locate of a changed library: %v, want ErrUnavailable", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func entries(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range list {
		names = append(names, entry.Name())
	}
	return strings.Join(names, " ")
}

// program puts a shell script on an otherwise empty PATH.
func program(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
}

func TestFetchFailures(t *testing.T) {
	sh := func(lines ...string) string {
		return "echo '" + strings.Join(lines, "' >&2; echo '") + "' >&2; exit 1"
	}
	const three = "KEYTRAIL_CLICKHOUSE|install npm|clickhouse binary on PATH"
	for _, c := range []struct {
		name   string
		npm    string // script; empty: there is no npm
		kind   error
		phrase string // parts that the message must hold
	}{
		{"no npm", "", engine.ErrUnavailable, "npm, which fetches it, is not on PATH|" + three},
		{"offline", sh("npm error code ENOTFOUND", "npm error network request failed"),
			engine.ErrUnavailable, "cannot reach its registry|npm error network request failed|" + three},
		{"offline cache", sh("npm error code ENOTCACHED", "npm error request failed"),
			engine.ErrUnavailable, "cannot reach its registry|" + three},
		{"not there", sh("npm error code E404"), engine.ErrUnavailable, "does not have the pinned engine|" + three},
		{"full disk", sh("npm error code ENOSPC"), engine.ErrUnavailable, "disk is full|" + three},
		{"wrong hash", sh("npm error code EINTEGRITY", "npm error sha512-A integrity checksum failed"),
			engine.ErrIntegrity, "not the pinned engine|integrity checksum failed"},
		{"anything else", sh("1", "2", "3", "4", "5", "6", "npm error strange"),
			engine.ErrUnavailable, "exit status 1|2 | 3|npm error strange|" + three},
		{"wrong library", `for d in node_modules node_modules/@chdb node_modules/@chdb/lib-linux-x64-gnu; do /bin/mkdir $d; done
			echo other > node_modules/@chdb/lib-linux-x64-gnu/libchdb.so`,
			engine.ErrIntegrity, "expected 566330096|nothing was kept"},
		{"nothing installed", "exit 0", engine.ErrIntegrity, "libchdb.so"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv(engine.EnvLibrary, "")
			path, cache := t.TempDir(), t.TempDir()
			t.Setenv("PATH", path)
			if c.npm != "" {
				program(t, path, "npm", c.npm)
			}
			_, err := engine.Start(t.Context(), engine.Config{Dir: t.TempDir(), Cache: cache})
			if !errors.Is(err, c.kind) {
				t.Fatalf("%v, want %v", err, c.kind)
			}
			for part := range strings.SplitSeq(strings.ReplaceAll(c.phrase, " | ", "\x00"), "|") {
				if part = strings.ReplaceAll(part, "\x00", " | "); !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not say %q", err, part)
				}
			}
			if left := entries(t, filepath.Join(cache, "chdb")); left != "lock" {
				t.Errorf("the cache holds %s", left)
			}
		})
	}
}

// A clickhouse on PATH is asked for its version before it is used, and is no way
// around a download that was tampered with.
func TestBinaryOnPath(t *testing.T) {
	t.Setenv(engine.EnvLibrary, "")
	path := t.TempDir()
	program(t, path, "clickhouse", "echo 18.16.1.0")
	_, err := engine.Start(t.Context(), engine.Config{Dir: t.TempDir(), Cache: t.TempDir()})
	if !errors.Is(err, engine.ErrVersion) || !strings.Contains(err.Error(), "KEYTRAIL_CLICKHOUSE") {
		t.Errorf("an old clickhouse: %v, want ErrVersion and the ways out", err)
	}
	program(t, path, "npm", "echo npm error code EINTEGRITY; exit 1")
	_, err = engine.Start(t.Context(), engine.Config{Dir: t.TempDir(), Cache: t.TempDir()})
	if !errors.Is(err, engine.ErrIntegrity) {
		t.Errorf("a tampered download: %v, want ErrIntegrity", err)
	}
}

func TestNamedLibrary(t *testing.T) {
	lib, err := engine.Ensure(t.Context(), engine.Config{Progress: os.Stderr})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir())

	t.Setenv(engine.EnvLibrary, lib)
	start(t, engine.Config{Cache: t.TempDir()})

	t.Setenv(engine.EnvLibrary, filepath.Join(t.TempDir(), "none.so"))
	_, err = engine.Start(t.Context(), engine.Config{Dir: t.TempDir()})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), engine.EnvLibrary) {
		t.Errorf("a library that is not there: %v, want one that names %s", err, engine.EnvLibrary)
	}

	text := filepath.Join(t.TempDir(), "text.so")
	if err := os.WriteFile(text, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(engine.EnvLibrary, text)
	_, err = engine.Start(t.Context(), engine.Config{Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "open the library") {
		t.Errorf("a library that is none: %v", err)
	}
}

// Release builds carry the tag noengine, and nothing of the library's loader: it
// alone would make them depend on the machine's libc.
func TestReleaseBuildHasNoLoader(t *testing.T) {
	for tags, want := range map[string]bool{"": true, "noengine": false} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags="+tags, ".").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(out), "github.com/ebitengine/purego"); got != want {
			t.Errorf("with tags %q: purego is linked: %v, want %v", tags, got, want)
		}
	}
}
