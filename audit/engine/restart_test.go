//go:build !noengine && linux && amd64

package engine_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keytrail/keytrail/audit/engine"
)

// run runs the engine's supervisor until the test ends.
func run(t *testing.T, e *engine.Engine) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestRestart(t *testing.T) {
	e, log := start(t, engine.Config{})
	run(t, e)
	dsn, http := e.DSN(), e.HTTPAddr()
	execute(t, open(t, options(t, e)), "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n")

	for round := range uint64(3) {
		execute(t, open(t, options(t, e)), fmt.Sprintf("INSERT INTO kept SELECT number FROM numbers(%d, 1000)", round*1000))
		if err := open(t, options(t, e)).Exec(t.Context(), "SELECT throwIf(1, 'a value of a user')"); code(t, err) != 395 {
			t.Fatal(err)
		}
		before := e.PID()
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := e.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		if after := e.PID(); after == before || after == 0 {
			t.Errorf("round %d: pid %d after %d", round, after, before)
		}
		if e.DSN() != dsn || e.HTTPAddr() != http {
			t.Errorf("round %d: the address changed", round)
		}
		if got, want := value[uint64](t, open(t, options(t, e)), "SELECT uniqExact(n) FROM kept"), (round+1)*1000; got != want {
			t.Errorf("round %d: %d rows, want %d", round, got, want)
		}
	}
	// What users asked is for the debug log only.
	told := 0
	for line := range strings.Lines(log.String()) {
		if !strings.Contains(line, "starting it again") {
			continue
		}
		told++
		if strings.Contains(line, "a value of a user") || !strings.Contains(line, "killed") {
			t.Errorf("the log says of a restart: %s", line)
		}
	}
	if told != 3 {
		t.Errorf("the log tells of %d restarts, want 3", told)
	}
}

// A port that is taken while the engine is down is waited for, not changed.
func TestRestartWaitsForItsPort(t *testing.T) {
	e, log := start(t, engine.Config{})
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	squatter, err := net.Listen("tcp4", options(t, e).Addr[0])
	if err != nil {
		t.Fatal(err)
	}
	run(t, e)
	for !strings.Contains(log.String(), "does not start, trying again") {
		select {
		case <-t.Context().Done():
			t.Fatal("no word about the taken port")
		case <-time.After(5 * time.Millisecond): // the log has no signal to wait on
		}
	}
	if err := squatter.Close(); err != nil {
		t.Fatal(err)
	}
	if err := e.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := open(t, options(t, e)).Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsRun(t *testing.T) {
	e, _ := start(t, engine.Config{})
	done := make(chan error, 1)
	go func() { done <- e.Run(context.Background()) }()
	if err := e.Kill(); err != nil { // so that Close may meet a start at work
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if e.PID() != 0 {
		t.Error("the engine lives after Close")
	}
	if err := e.Run(t.Context()); err != nil {
		t.Errorf("Run after Close: %v", err)
	}
}

// A port may be taken between the look that found it free and the engine's own try. At
// the HTTP port another engine may then answer, which does not know the password.
func TestFirstStartTriesOtherPorts(t *testing.T) {
	neighbour := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ping" {
			http.Error(w, "Code: 516. DB::Exception: keytrail: Authentication failed", http.StatusForbidden)
		}
	}))
	defer neighbour.Close()
	taken := neighbour.Listener.Addr().(*net.TCPAddr).Port
	var picked []int
	e, _ := start(t, engine.WithPorts(engine.Config{}, func() (int, error) {
		if n := len(picked); n == 0 || n == 3 { // for TCP, then for HTTP
			picked = append(picked, taken)
			return taken, nil
		}
		port, err := engine.FreePort()
		picked = append(picked, port)
		return port, err
	}))
	if n := len(picked); n < 6 {
		t.Fatalf("ports were picked %d times, want 3 pairs at least", n)
	}
	last := picked[len(picked)-2:]
	if tcp, http := fmt.Sprint("127.0.0.1:", last[0]), fmt.Sprint("127.0.0.1:", last[1]); options(t, e).Addr[0] != tcp || e.HTTPAddr() != http {
		t.Errorf("it is on %s and %s, want %s and %s", options(t, e).Addr[0], e.HTTPAddr(), tcp, http)
	}
}

// envParent makes the test binary a parent with an engine, to be killed.
const envParent = "KEYTRAIL_ENGINE_TEST_PARENT"

func beParent(dir string) {
	e, err := engine.Start(context.Background(), engine.Config{Dir: dir})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(e.PID())
	select {}
}

// Invariant 6: a parent that is killed leaves no engine and no locked directory.
func TestNoOrphan(t *testing.T) {
	dir := t.TempDir()
	parent := exec.CommandContext(t.Context(), os.Args[0])
	parent.Env = append(os.Environ(), envParent+"="+dir)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the parent said %q", line)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)

	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // killed, as meant

	start(t, engine.Config{Dir: dir})

	// A pidfd is readable when the process has ended. Any signal ends a Poll.
	n, err := 0, error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
	}
	if err != nil || n != 1 {
		t.Errorf("the engine of a killed parent still runs (%d, %v)", n, err)
	}
}
