//go:build !noengine && linux && (amd64 || arm64)

package engine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"
)

// unsupported is why this build has no engine; empty if it has one.
const unsupported = ""

// self names the running binary, also after it was replaced by an upgrade.
const self = "/proc/self/exe"

// ChildMain turns the process into the engine and exits, if it was started as
// one by Start; otherwise it returns at once. Call it first in main and in
// TestMain, before flags are parsed and anything is opened.
func ChildMain() {
	if len(os.Args) < 3 || os.Args[1] != childArg {
		return
	}
	// Started through /proc/self/exe, the process is called "exe" in ps and top.
	// A name is a courtesy: without it all works.
	_ = os.WriteFile("/proc/self/comm", []byte("keytrail-engine"), 0)
	// libchdb installs its signal handlers and runs its start-up on this thread.
	runtime.LockOSThread()
	if err := runLibrary(os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "keytrail engine:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// runLibrary is clickhouse-local's main, called in the library. It returns when
// stdin ends. The parent judges by the ports and by stderr: the library reports
// success also after a failure.
func runLibrary(lib string, flags []string) error {
	handle, err := purego.Dlopen(lib, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return fmt.Errorf("open the library: %w", err)
	}
	main, err := purego.Dlsym(handle, "chdb_query_cmdline")
	if err != nil {
		return fmt.Errorf("find the library's entry: %w", err)
	}

	var pin runtime.Pinner
	defer pin.Unpin()
	argv := make([]*byte, 0, len(flags)+2)
	for _, arg := range append([]string{"clickhouse"}, flags...) {
		p, err := unix.BytePtrFromString(arg)
		if err != nil {
			return fmt.Errorf("argument %q: %w", arg, err)
		}
		pin.Pin(p)
		argv = append(argv, p)
	}
	argv = append(argv, nil)
	pin.Pin(&argv[0])
	purego.SyscallN(main, uintptr(len(argv)-1), uintptr(unsafe.Pointer(&argv[0])))
	return nil
}

// openPTY returns the two ends of a new pseudo terminal.
func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a pseudo terminal: %w", err)
	}
	conn, err := master.SyscallConn()
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open a pseudo terminal: %w", err), master.Close())
	}
	var number int
	var ioctlErr error
	err = conn.Control(func(fd uintptr) {
		if ioctlErr = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); ioctlErr == nil {
			number, ioctlErr = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err := errors.Join(err, ioctlErr); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("unlock a pseudo terminal: %w", err), master.Close())
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open a pseudo terminal: %w", err), master.Close())
	}
	return master, slave, nil
}

// childAttr: a process group of its own, so that ^C in a terminal reaches only
// the parent, which then stops the engine when it is done with it; and SIGKILL
// when the parent is gone (invariant 6). The end of the pty would do that too,
// but only after two seconds, in which a new start would find the directory taken.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
