//go:build !noengine && linux && amd64

package engine_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/audit/engine"
)

// A password that another user wrote, or can read, would give that user the
// engine; a library of another user's would give the process.
func TestPlantedFilesAreRejected(t *testing.T) {
	shut := func() string {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	open := func(path string) {
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, name := range []string{"password", "lock", "users.xml", "data"} {
		dir := shut()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("planted-planted-planted\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		open(path)
		if _, err := engine.Start(t.Context(), engine.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s planted: %v, want an error that names it", name, err)
		}
	}

	dir := shut()
	target := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(target, []byte("planted-planted-planted\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(dir, "password")); err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Start(t.Context(), engine.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("the password is a link: %v", err)
	}

	t.Setenv(engine.EnvLibrary, "")
	cache := shut()
	if err := os.MkdirAll(filepath.Join(cache, "chdb", "a member"), 0o700); err != nil {
		t.Fatal(err)
	}
	open(filepath.Join(cache, "chdb"))
	if _, err := engine.Locate(engine.Config{Cache: cache}); err == nil || !strings.Contains(err.Error(), filepath.Join(cache, "chdb")) {
		t.Errorf("a cache for all: %v, want an error that names it", err)
	}
}
