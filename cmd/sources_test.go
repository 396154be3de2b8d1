package cmd_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// eachSource calls see with the path of each Go file of the tree that is no test.
// Other tests make and remove files there meanwhile: what is gone is no source.
func eachSource(t *testing.T, see func(path string) error) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && d.Name() == ".git":
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		if err := see(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
