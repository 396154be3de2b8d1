package ops

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Dir is the directory of one `keytrail up`, held by one process at a time.
type Dir struct {
	Path string
	lock *os.File
}

// OpenDir makes the directory if need be (mode 0700) and locks it.
func OpenDir(path string) (*Dir, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(abs, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("the data directory %s is in use by another keytrail; stop it or choose another --dir", path)
	}
	return &Dir{Path: abs, lock: f}, nil
}

// Close releases the lock.
func (d *Dir) Close() error { return d.lock.Close() }

// Sub returns the path of a member.
func (d *Dir) Sub(name ...string) string { return filepath.Join(append([]string{d.Path}, name...)...) }

// Read returns the trimmed content of a small file, "" when it does not exist.
func (d *Dir) Read(name string) (string, error) { return ReadSmall(d.Sub(name)) }

// WriteOnce writes a small file as WriteSmall does.
func (d *Dir) WriteOnce(name, content string) error { return WriteSmall(d.Sub(name), content) }

// ReadSmall returns the trimmed content of a small file, "" when it does not exist.
func ReadSmall(path string) (string, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(b)), err
}

// WriteSmall writes a small file durably with mode 0600: content and name are on
// disk before it returns. A crash leaves the file whole or absent.
func WriteSmall(path, content string) error {
	dirPath, name := filepath.Split(path)
	if dirPath == "" {
		dirPath = "."
	}
	tmp := filepath.Join(dirPath, "."+name+"."+rand.Text())
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = f.WriteString(content + "\n")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write %s: %w", name, err)
	}
	dir, err := os.Open(dirPath)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
