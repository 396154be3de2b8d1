package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxSmall bounds the files that are read whole, in bytes.
const maxSmall = 1 << 20

// MakeDir makes the directory (mode 0700) if need be, and checks that no other
// user can add, exchange or remove what is in it. An empty directory of ours that
// others may write to is closed to them (0700).
func MakeDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if ownerOf(info) == os.Geteuid() && writableByOthers(info) {
		if members, err := os.ReadDir(path); err == nil && len(members) == 0 {
			return os.Chmod(path, 0o700)
		}
	}
	return CheckDir(path)
}

// CheckDir is the check of MakeDir for a directory that is there.
func CheckDir(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", path)
	}
	if err := checkShut(path, info); err != nil {
		return fmt.Errorf("%w; check what is in it and close it with 'chmod go-w', or choose another directory", err)
	}
	return nil
}

// MakeDataDir is MakeDir for a directory whose content is trusted when it is read
// back: owner and mode of each member are checked too. Members of members are
// not: a directory that this process made has mode 0700.
func MakeDataDir(path string) error {
	if err := MakeDir(path); err != nil {
		return err
	}
	members, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, m := range members {
		if err := checkMember(filepath.Join(path, m.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) { // removed since
			return fmt.Errorf("%w; remove it, or, if you trust it, 'chown' it to the user that runs keytrail and 'chmod go-w' it", err)
		}
	}
	return nil
}

func checkMember(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		// A link has no mode of its own, and its owner chose where it leads.
		if err := checkOwner(path, info); err != nil {
			return err
		}
		if info, err = os.Stat(path); err != nil {
			return err
		}
	}
	return checkShut(path, info)
}

// ReadOwn returns the trimmed content of a small file that this process or an
// earlier one wrote, "" when there is none. It must be a file of ours, not a
// link, that nobody else can read or write. Write leaves no empty file, so an
// empty one is refused: taken for absent, it would make a new key or a new log.
func ReadOwn(path string) (text string, err error) {
	err = readOwn(path, func(f *os.File) (err error) {
		if text, err = readSmall(f, path); err == nil && text == "" {
			err = fmt.Errorf("%s is empty: restore it from a backup, or remove it to begin without it", path)
		}
		return err
	})
	return text, err
}

// ReadOwnData returns what Write has written to the file, nil when there is none. The file
// is as of ReadOwn, and has at most so many bytes.
func ReadOwnData(path string, most int64) (data []byte, err error) {
	err = readOwn(path, func(f *os.File) (err error) {
		data, err = io.ReadAll(io.LimitReader(f, most+1))
		if err == nil && int64(len(data)) > most {
			data, err = nil, fmt.Errorf("%s has more than %d bytes: remove it", path, most)
		}
		return err
	})
	return data, err
}

func readOwn(path string, read func(*os.File) error) error {
	f, err := openOwn(path, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // read only
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o: other users can read or change it; want mode 0600. If you trust its content, 'chmod 600' it", path, info.Mode().Perm())
	}
	return read(f)
}

// ReadSecret returns the trimmed content of a small file that the user named and
// that holds a secret. Links are followed and pipes are read, as secrets are
// mounted and passed that way. No other user may have been able to put the secret
// there; nor may another user be able to read a file of ours. (A file of
// another's, as root's in a container, has readers that its owner chose.)
// An absent file is fs.ErrNotExist, and an empty one an error too.
func ReadSecret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close() // read only
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if err := checkNamed(path, info); err != nil {
		return "", err
	}
	if ownerOf(info) == os.Geteuid() && info.Mode().IsRegular() && info.Mode().Perm()&0o044 != 0 {
		return "", fmt.Errorf("%s has mode %04o: other users can read the secret in it; 'chmod 600' it, or mount it with mode 0400", path, info.Mode().Perm())
	}
	text, err := readSmall(f, path)
	if err == nil && text == "" {
		err = fmt.Errorf("%s is empty: want a secret in it", path)
	}
	return text, err
}

// CheckSecret is ReadSecret for a file that a library reads.
func CheckSecret(path string) error {
	_, err := ReadSecret(path)
	return err
}

// CheckTrusted checks a file that the user named, whose content decides what we
// trust: no other user may be able to change it. All may read it.
func CheckTrusted(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return checkNamed(path, info)
}

// checkNamed checks a file that the user named by path.
func checkNamed(path string, info fs.FileInfo) error {
	if info.Mode()&fs.ModeNamedPipe != 0 {
		return checkOwner(path, info)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", path)
	}
	if writableByOthers(info) {
		return fmt.Errorf("%s has mode %04o: other users can change it; 'chmod go-w' it", path, info.Mode().Perm())
	}
	if trusted(info) {
		return nil
	}
	// Of another user: only where a trusted one put it.
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	dir, err := os.Stat(filepath.Dir(real))
	if err != nil {
		return err
	}
	if !trusted(dir) || writableByOthers(dir) {
		return fmt.Errorf("%s belongs to another user (%d), and others can write to its directory: that user may have put it there; 'chown' it to yourself if you trust it", path, ownerOf(info))
	}
	return nil
}

// openOwn opens a file that belongs to a trusted user and has no other name,
// never through a symbolic link, and without waiting for the other end of a pipe.
func openOwn(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, fmt.Errorf("%s is a symbolic link; want the file itself", path)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", path)
	}
	if err == nil {
		err = checkOwner(path, info)
	}
	if err == nil && info.Sys().(*syscall.Stat_t).Nlink > 1 {
		err = fmt.Errorf("%s is one of several names (hard links) of a file; want a file of its own", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func readSmall(f *os.File, path string) (string, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(b) > maxSmall {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxSmall)
	}
	return strings.TrimSpace(string(b)), err
}

// checkShut checks that only trusted users can change it.
func checkShut(path string, info fs.FileInfo) error {
	if err := checkOwner(path, info); err != nil {
		return err
	}
	if writableByOthers(info) {
		return fmt.Errorf("%s has mode %04o: other users can change it", path, info.Mode().Perm())
	}
	return nil
}

func checkOwner(path string, info fs.FileInfo) error {
	if !trusted(info) {
		return fmt.Errorf("%s belongs to another user (%d), who can change it; keytrail runs as user %d", path, ownerOf(info), os.Geteuid())
	}
	return nil
}

func trusted(info fs.FileInfo) bool {
	owner := ownerOf(info)
	return owner == os.Geteuid() || owner == 0
}

func ownerOf(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

func writableByOthers(info fs.FileInfo) bool { return info.Mode().Perm()&0o022 != 0 }
