package files

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrLocked: another process holds the lock, or writes the output.
var ErrLocked = errors.New("in use by another process")

// Lock takes an exclusive lock on the file, which is made (mode 0600) if need be.
// It ends when the file is closed or the process ends. ErrLocked if another
// process has it, or this one already.
func Lock(path string) (*os.File, error) {
	f, err := openOwn(path, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f, nil
}

// Write replaces a file with data, mode 0600: content and name are on disk before
// it returns. A crash leaves the old file or the new one, whole, and at most a
// hidden one beside it.
func Write(path string, data []byte) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+rand.Text())
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return syncDir(path)
}

// partSuffix ends the name of an output that is not whole yet.
const partSuffix = ".part"

// Output is a file that the user asked for. It is written under its name and
// .part, mode 0600, and gets its name when it is whole:
//
//	out, err := files.Create(path, false)
//	…
//	defer out.Close()
//	… write …
//	return out.Commit()
//
// A run that breaks off leaves the .part file, to be looked at; the next run
// replaces it.
type Output struct {
	f       *os.File
	path    string
	replace bool
	done    bool
}

// Create starts an output. Without replace, a file that is there already is an
// error, now and at Commit; with it, Commit replaces a regular file. ErrLocked if
// another process is writing the same output.
func Create(path string, replace bool) (*Output, error) {
	if err := vacant(path, replace); err != nil {
		return nil, err
	}
	o := &Output{path: path, replace: replace}
	f, err := Lock(o.Part())
	if err != nil {
		return nil, err
	}
	o.f = f
	err = o.stillOurs() // whoever had the lock before may have renamed the file
	if err == nil {
		err = f.Chmod(0o600)
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return o, nil
}

// Part returns the name of the file as long as it is not whole.
func (o *Output) Part() string { return o.path + partSuffix }

// Write appends to the output.
func (o *Output) Write(b []byte) (int, error) { return o.f.Write(b) }

// Commit gives the output its name. On return its content and its name are on
// disk, and the file is closed.
func (o *Output) Commit() error {
	if err := o.f.Sync(); err != nil {
		return err
	}
	if err := o.stillOurs(); err != nil {
		return err
	}
	if err := o.rename(); err != nil {
		return err
	}
	o.done = true
	return errors.Join(o.f.Close(), syncDir(o.path))
}

// rename replaces the output's name, or takes it if it is free.
func (o *Output) rename() error {
	if !o.replace {
		err := os.Link(o.Part(), o.path) // fails if the name is taken
		if err == nil {
			return os.Remove(o.Part())
		}
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s was made meanwhile; what was written is in %s", o.path, o.Part())
		}
		// A file system without hard links.
	}
	if err := vacant(o.path, o.replace); err != nil {
		return err
	}
	return os.Rename(o.Part(), o.path)
}

// Close ends an output that Commit did not: the .part file stays, unless it is
// empty. After Commit it does nothing.
func (o *Output) Close() error {
	if o.done {
		return nil
	}
	o.done = true
	info, err := o.f.Stat()
	if err == nil && info.Size() == 0 && o.stillOurs() == nil {
		err = os.Remove(o.Part())
	}
	return errors.Join(err, o.f.Close())
}

// stillOurs checks that the name of the part is still this file's.
func (o *Output) stillOurs() error {
	opened, err := o.f.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(o.Part())
	if err == nil && !os.SameFile(opened, named) {
		err = errors.New("it is another file now")
	}
	if err != nil {
		return fmt.Errorf("%s was exchanged while it was written: %w", o.Part(), err)
	}
	return nil
}

// vacant checks that path may become an output's name.
func vacant(path string, replace bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !replace:
		return fmt.Errorf("%s is there already: remove it, or choose another name", path)
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file, so it is not replaced: choose another name", path)
	}
	return nil
}

// syncDir makes the name of a file durable.
func syncDir(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if errors.Is(err, fs.ErrPermission) {
		return nil // a directory that may be written and not read: its names cannot be synced
	}
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
