package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keytrail/keytrail/events"
)

// openTerminal returns a new terminal. wrote returns what was written to it since the
// last call.
func openTerminal(t *testing.T) (tty *os.File, wrote func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return tty, func() string {
		const end = "\x04" // the kernel hands on what is written in parts, and later
		if _, err := tty.WriteString(end); err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for b := make([]byte, 64<<10); !strings.HasSuffix(text.String(), end); {
			n, err := master.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			text.Write(b[:n])
		}
		return strings.TrimSuffix(text.String(), end)
	}
}

// The root key is shown to a person, once. Pipes and files are logs.
func TestRootKeyIsShownOnATerminalOnly(t *testing.T) {
	const secret = "kt_root_key_of_this_test"
	dir := t.TempDir()
	file := filepath.Join(dir, "root.key")
	greet := func(out *os.File, first bool) {
		(&app{out: &visible{w: &output{w: out}}}).greet("http://127.0.0.1:7070", upConfig{Dir: dir}, events.NewSecret(secret), first)
	}

	tty, wrote := openTerminal(t)
	greet(tty, true)
	if text := wrote(); !strings.Contains(text, "root key: "+secret) || !strings.Contains(text, "kept in "+file+", mode 0600") {
		t.Errorf("on a terminal: %s", text)
	}
	greet(tty, false)
	if text := wrote(); strings.Contains(text, secret) || strings.Contains(text, "root key") {
		t.Errorf("a later start, on a terminal: %s", text)
	}

	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // a character device, and no terminal
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if terminal(null) {
		t.Error("the null device passes for a terminal")
	}
	greet(log, true)
	b, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	if text := string(b); strings.Contains(text, secret) || !strings.Contains(text, "root key: in "+file+", mode 0600") {
		t.Errorf("in a file: %s", text)
	}
}
