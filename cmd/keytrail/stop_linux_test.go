package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/internal/parts"
)

// hangingRequest sends the first half of a request to p: its handler waits for
// the rest, and an orderly stop waits for the handler.
func hangingRequest(t *testing.T, p *proc) {
	t.Helper()
	u, err := url.Parse(p.url)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	// The server says 100 Continue when the handler reads the body.
	fmt.Fprintf(conn, "POST /v1/verify HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n", u.Host)
	b := make([]byte, len("HTTP/1.1 100"))
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "HTTP/1.1 100" {
		t.Fatalf("%q, %v", b, err)
	}
}

// stopEngine makes the local engine of p hang: it is there, and answers nothing.
func stopEngine(t *testing.T, p *proc) {
	t.Helper()
	parent := strconv.Itoa(p.cmd.Process.Pid)
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // gone
		}
		// PID (NAME) STATE PPID …
		pid, rest, _ := strings.Cut(string(b), " (")
		name, rest, _ := strings.Cut(rest, ") ")
		if fields := strings.Fields(rest); name == "keytrail-engine" && len(fields) > 1 && fields[1] == parent {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(n, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("the engine's process was not found")
}

func (p *proc) exitCode(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(within):
		t.Fatalf("the process still runs after %v\n%s", within, p.stderr.String())
	}
	if exit, ok := p.err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	return 0
}

// lateness returns by how much the timers of this process were late in all until done
// is closed: how long the machine had other work to do.
func lateness(done <-chan struct{}) <-chan time.Duration {
	sum := make(chan time.Duration, 1)
	go func() { // ends with done
		const step = 20 * time.Millisecond
		late := time.Duration(0)
		for {
			began := time.Now()
			select {
			case <-done:
				sum <- late
				return
			case <-time.After(step):
				late += time.Since(began) - step
			}
		}
	}()
	return sum
}

func TestSecondInterruptEndsAtOnce(t *testing.T) {
	p := up(t, filepath.Join(t.TempDir(), "data"))
	hangingRequest(t, p)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	began := time.Now() // the process begins to count later
	p.cmd.Process.Signal(os.Interrupt)
	p.cmd.Process.Signal(os.Interrupt) // an echo, as timeout(1) makes it
	for ended := false; !ended; {
		select {
		case <-p.exited:
			ended = true
		case <-tick.C:
			p.cmd.Process.Signal(os.Interrupt)
		}
	}
	took := time.Since(began)
	if code := p.exitCode(t, time.Minute); code != 128+int(syscall.SIGINT) || !strings.Contains(p.stderr.String(), "ended at once by a second Ctrl-C") {
		t.Errorf("exit %d after %v: %s%s", code, took, p.stdout.String(), p.stderr.String())
	}
	if took < 400*time.Millisecond {
		t.Errorf("ended after %v: the echo of the first signal counted", took)
	}
}

// A client that does not finish its request and an engine that hangs cost time,
// and never more than compose gives.
func TestStopsInTimeWhateverHangs(t *testing.T) {
	p := up(t, filepath.Join(t.TempDir(), "data"))
	hangingRequest(t, p)
	stopEngine(t, p)
	late := lateness(p.exited)
	began := time.Now()
	p.cmd.Process.Signal(syscall.SIGTERM)
	code := p.exitCode(t, ops.StopLimit+patience)
	took, others := time.Since(began), <-late
	t.Logf("it took %v, exit %d; timers were late by %v", took, code, others)
	if took > ops.StopLimit+time.Second+others {
		t.Errorf("it took %v, want %v at most, and %v for the other work of this machine", took, ops.StopLimit, others)
	}
	if strings.Contains(p.stderr.String(), "panic") {
		t.Error(p.stderr.String())
	}
}

// TestTerminalGone: a terminal or a pipeline that goes away stops the process, and
// does not kill it.
func TestTerminalGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	// Under nohup this process ignores the signal, and a child would inherit that.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	p := &proc{cmd: exec.Command(os.Args[0], "up", "--dir", dir, "--listen", "127.0.0.1:0"), exited: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), asMain+"=1")
	p.cmd.Stdout, p.cmd.Stderr = write, write
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = p.cmd.Start()
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	go func() { // ends with the process, which kill ends
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	lines := bufio.NewScanner(read)
	for lines.Scan() && lines.Text() != "ready" {
	}
	if lines.Text() != "ready" {
		t.Fatalf("not ready: %q, %v", lines.Text(), lines.Err())
	}
	read.Close() // from here on every line of it finds nobody
	p.cmd.Process.Signal(syscall.SIGHUP)
	if code := p.exitCode(t, patience); code != exitFailed { // "stopped" was not written
		t.Errorf("%v, want exit %d", p.err, exitFailed)
	}
}

// Compose kills after stop_grace_period, without a word.
func TestStopLimitIsBelowComposesGrace(t *testing.T) {
	b, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Image string `yaml:"image"`
			Grace string `yaml:"stop_grace_period"`
		} `yaml:"services"`
	}
	if err := yaml.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	ours := 0
	for name, s := range file.Services {
		if !strings.Contains(s.Image, "KEYTRAIL_IMAGE") {
			continue
		}
		ours++
		if grace, err := time.ParseDuration(s.Grace); err != nil || grace <= ops.StopLimit || ops.StopLimit <= parts.DefaultGrace {
			t.Errorf("%s: compose gives %q (%v); want more than %v, which must be more than %v", name, s.Grace, err, ops.StopLimit, parts.DefaultGrace)
		}
	}
	if ours < 5 {
		t.Errorf("%d services of ours", ours)
	}
}
