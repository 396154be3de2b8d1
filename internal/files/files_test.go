package files

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// someoneElse is the owner of planted files; only root can give files away.
const someoneElse = 65534

func give(t *testing.T, path string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a file of another user's")
	}
	if err := os.Lchown(path, someoneElse, someoneElse); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte("content\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, err error, sentence string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), sentence) {
		t.Errorf("error %v, want one with %q", err, sentence)
	}
}

// plants are the ways to prepare a file at path that is not the user's own.
var plants = []struct {
	name, sentence string
	plant          func(t *testing.T, path string)
}{
	{"another owner, mode 0666", "belongs to another user (65534)", func(t *testing.T, path string) { write(t, path, 0o666); give(t, path) }},
	{"another owner, mode 0600", "belongs to another user (65534)", func(t *testing.T, path string) { write(t, path, 0o600); give(t, path) }},
	{"a symbolic link", "symbolic link", func(t *testing.T, path string) {
		write(t, path+".target", 0o600)
		if err := os.Symlink(path+".target", path); err != nil {
			t.Fatal(err)
		}
	}},
	{"a dangling symbolic link", "symbolic link", func(t *testing.T, path string) {
		if err := os.Symlink(path+".target", path); err != nil {
			t.Fatal(err)
		}
	}},
	{"a hard link", "hard link", func(t *testing.T, path string) {
		write(t, path+".target", 0o600)
		if err := os.Link(path+".target", path); err != nil {
			t.Fatal(err)
		}
	}},
	{"a named pipe", "not a file", func(t *testing.T, path string) {
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}},
}

func TestReadOwnRejectsPlantedFiles(t *testing.T) {
	for _, p := range plants {
		t.Run(p.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "root.key")
			p.plant(t, path)
			got, err := ReadOwn(path)
			wantError(t, err, p.sentence)
			if got != "" {
				t.Errorf("it was read: %q", got)
			}
		})
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o602, 0o644, 0o666} {
		path := filepath.Join(t.TempDir(), "root.key")
		write(t, path, mode)
		_, err := ReadOwn(path)
		wantError(t, err, "want mode 0600")
	}
}

func TestReadOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	if got, err := ReadOwn(path); got != "" || err != nil {
		t.Errorf("of an absent file: %q, %v", got, err)
	}
	if err := Write(path, []byte("secret\n")); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadOwn(path); got != "secret" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v: want mode 0600", info, err)
	}
}

// TestEmptyFilesAreNotAbsent: an emptied key file does not make a new key.
func TestEmptyFilesAreNotAbsent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "root.key")
	for _, text := range []string{"", "\n", " \t\r\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for name, read := range map[string]func(string) (string, error){"ReadOwn": ReadOwn, "ReadSecret": ReadSecret} {
			got, err := read(path)
			if got != "" {
				t.Errorf("%s of %q: %q", name, text, got)
			}
			wantError(t, err, path+" is empty")
		}
		wantError(t, CheckSecret(path), path+" is empty")
	}
}

func TestLockRejectsPlantedFiles(t *testing.T) {
	for _, p := range plants {
		t.Run(p.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "lock")
			p.plant(t, path)
			_, err := Lock(path)
			wantError(t, err, p.sentence)
			if _, err := os.Stat(path + ".target"); p.name == "a dangling symbolic link" && err == nil {
				t.Error("the lock was made where the link leads")
			}
		})
	}
}

func TestLockIsExclusive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); !errors.Is(err, ErrLocked) {
		t.Errorf("a second lock: %v, want ErrLocked", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Lock(path)
	if err != nil {
		t.Fatalf("after it was released: %v", err)
	}
	again.Close()
}

func TestReadSecret(t *testing.T) {
	for _, c := range []struct {
		name, sentence string
		prepare        func(t *testing.T, dir, path string)
	}{
		{"mode 0600", "", func(t *testing.T, _, path string) { write(t, path, 0o600) }},
		{"mode 0400", "", func(t *testing.T, _, path string) { write(t, path, 0o400) }},
		{"a mounted secret, behind links", "", func(t *testing.T, dir, path string) {
			write(t, filepath.Join(dir, "data"), 0o400)
			if err := os.Symlink("data", path); err != nil {
				t.Fatal(err)
			}
		}},
		{"of another user, put there by a trusted one", "", func(t *testing.T, _, path string) { write(t, path, 0o644); give(t, path) }},
		{"of another user, in a directory for all", "may have put it there", func(t *testing.T, dir, path string) {
			write(t, path, 0o644)
			give(t, path)
			if err := os.Chmod(dir, 0o777|fs.ModeSticky); err != nil {
				t.Fatal(err)
			}
		}},
		{"of another user, in a directory of that user", "may have put it there", func(t *testing.T, dir, path string) { write(t, path, 0o644); give(t, path); give(t, dir) }},
		{"readable by all", "'chmod 600' it", func(t *testing.T, _, path string) { write(t, path, 0o644) }},
		{"readable by the group", "'chmod 600' it", func(t *testing.T, _, path string) { write(t, path, 0o640) }},
		{"writable by all", "'chmod go-w' it", func(t *testing.T, _, path string) { write(t, path, 0o602) }},
		{"of another user, writable by all", "'chmod go-w' it", func(t *testing.T, _, path string) { write(t, path, 0o666); give(t, path) }},
		{"a directory", "not a file", func(t *testing.T, _, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}},
		{"too large", "larger than", func(t *testing.T, _, path string) {
			write(t, path, 0o600)
			if err := os.Truncate(path, maxSmall+1); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "secret")
			c.prepare(t, dir, path)
			got, err := ReadSecret(path)
			if c.sentence != "" {
				wantError(t, err, c.sentence)
			} else if err != nil || got != "content" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	if _, err := ReadSecret(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of an absent file: %v, want ErrNotExist", err)
	}
}

// keytrail --key-file <(pass show keytrail) reads a pipe.
func TestReadSecretFromAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(path, []byte("piped\n"), 0) }()
	got, err := ReadSecret(path)
	if err != nil || got != "piped" {
		t.Errorf("%q, %v", got, err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

func TestCheckTrusted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	write(t, path, 0o644)
	if err := CheckTrusted(path); err != nil {
		t.Errorf("an authority that all may read: %v", err)
	}
	write(t, path, 0o646)
	wantError(t, CheckTrusted(path), "other users can change it")
}

func TestMakeDir(t *testing.T) {
	mode := func(path string) fs.FileMode {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Mode().Perm()
	}
	path := filepath.Join(t.TempDir(), "new", "dir")
	if err := MakeDir(path); err != nil || mode(path) != 0o700 {
		t.Errorf("a new one: %v, mode %o, want 0700", err, mode(path))
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := MakeDir(path); err != nil || mode(path) != 0o700 {
		t.Errorf("an empty one for all: %v, mode %o, want it closed", err, mode(path))
	}
	write(t, filepath.Join(path, "member"), 0o600)
	for _, open := range []fs.FileMode{0o777, 0o770, 0o702, 0o777 | fs.ModeSticky} {
		if err := os.Chmod(path, open); err != nil {
			t.Fatal(err)
		}
		wantError(t, MakeDir(path), "other users can change it")
	}
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := MakeDir(path); err != nil {
		t.Errorf("one that all may read: %v", err)
	}
	wantError(t, MakeDir(filepath.Join(path, "member")), "not a directory")
	give(t, path)
	wantError(t, MakeDir(path), "belongs to another user (65534)")
}

func TestMakeDataDirChecksItsMembers(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	elsewhere := t.TempDir()
	if err := os.Chmod(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "root.key"), 0o600)
	if err := os.Symlink(elsewhere, filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	if err := MakeDataDir(dir); err != nil {
		t.Errorf("files of ours, and a link of ours to another disk: %v", err)
	}
	for name, plant := range map[string]func(t *testing.T, path string){
		"writable by all": func(t *testing.T, path string) { write(t, path, 0o666) },
		"a directory of another user": func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
			give(t, path)
		},
		"a link of another user": func(t *testing.T, path string) {
			if err := os.Symlink(elsewhere, path); err != nil {
				t.Fatal(err)
			}
			give(t, path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "planted")
			defer os.Remove(path)
			plant(t, path)
			wantError(t, MakeDataDir(dir), path)
		})
	}
	if err := os.Chmod(elsewhere, 0o777); err != nil {
		t.Fatal(err)
	}
	wantError(t, MakeDataDir(dir), "other users can change it")
}
