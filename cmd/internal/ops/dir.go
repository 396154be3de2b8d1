package ops

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/keytrail/keytrail/internal/files"
)

// Dir is the data directory of a process, held by one process at a time.
type Dir struct {
	Path string
	lock *os.File
}

// OpenDir makes the directory if need be (mode 0700), checks that no other user
// can change what is in it (files.MakeDataDir) and locks it.
func OpenDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := files.MakeDataDir(abs); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := files.Lock(filepath.Join(abs, "lock"))
	if errors.Is(err, files.ErrLocked) {
		return nil, fmt.Errorf("the data directory %s is in use by another keytrail; stop it or choose another --dir", path)
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	return &Dir{Path: abs, lock: lock}, nil
}

// Close releases the lock.
func (d *Dir) Close() error { return d.lock.Close() }

// Sub returns the path of a member.
func (d *Dir) Sub(name ...string) string { return filepath.Join(append([]string{d.Path}, name...)...) }
