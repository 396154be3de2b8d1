package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// childArg makes a start of this binary an engine, see ChildMain.
	childArg = "__engine"

	// bootSQL opens the ports; bootQueries is how many statements it has, and
	// the quota of the user that runs them.
	bootSQL     = "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP;"
	bootQueries = 2

	// stopGrace is how long a stopping engine may take. It leaves within 10 ms,
	// unless a client holds a connection: then it would wait five seconds for
	// it, and no setting shortens that. Killing it is safe (invariant 7).
	stopGrace = 2 * time.Second
)

// launcher is what to run: the library in a child of this binary, or a
// clickhouse binary. Exactly one field is set.
type launcher struct {
	lib    string
	binary string
}

// command builds the engine's command line. It holds no secret (invariant 2).
func (l launcher) command(d *dir, tcpPort, httpPort int) *exec.Cmd {
	flags := []string{
		"--path=" + d.file("data"),
		"--listen_host=127.0.0.1",
		"--tcp_port=" + strconv.Itoa(tcpPort),
		"--http_port=" + strconv.Itoa(httpPort),
	}
	var cmd *exec.Cmd
	if l.lib != "" {
		// --interactive, with a terminal as stdin, does two things: the engine
		// stays until the terminal is closed, and it survives failed logins.
		// Without it any wrong password aborts the engine (ClickHouse #115666;
		// the fix, #115715, is in no published libchdb).
		cmd = exec.Command(self, append([]string{childArg, l.lib}, append(flags,
			"--config-file="+d.file("config.xml"),
			// Not in the file: there the level is ignored, and it is trace.
			"--log-level=warning",
			"--interactive", "--disable_suggestion", "--history_file=/dev/null",
			"--query="+bootSQL)...)...)
		cmd.Args[0] = "keytrail"
	} else {
		// By ClickHouse's documentation; no test runs it, for want of a binary.
		cmd = exec.Command(l.binary, append([]string{"server", "--config-file=" + d.file("config.xml"), "--",
			"--logger.level=warning", "--logger.console=1"}, flags...)...)
	}
	cmd.Dir = d.path
	// A small environment of its own: the parent's may hold secrets, and HOME
	// may hold a client configuration that the engine would read.
	cmd.Env = []string{"HOME=" + d.path, "PATH=" + os.Getenv("PATH"), "TZ=UTC"}
	if l.lib != "" {
		// The library owns the process; the Go side has nothing left to do in it
		// (signals for preemption were seen to upset purego elsewhere). Under the
		// race detector an exit would sleep a second.
		cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1", "GOGC=off", "GORACE=atexit_sleep_ms=0")
	}
	cmd.SysProcAttr = childAttr()
	return cmd
}

// process is one run of the engine.
type process struct {
	pid  int
	tail *tail
	done chan struct{} // closed when the process is gone and reaped
	err  error         // how it ended; readable after done

	// stop asks it to end.
	stop func() error
	// kill ends it. A process already gone is no error.
	kill func() error
}

// spawn starts the engine; it is not ready yet.
func spawn(l launcher, d *dir, tcpPort, httpPort int, secret string, log *slog.Logger) (*process, error) {
	cmd := l.command(d, tcpPort, httpPort)
	p := &process{tail: &tail{log: log, secret: secret}, done: make(chan struct{})}
	cmd.Stderr = p.tail

	var slave *os.File
	if l.lib != "" {
		master, end, err := openPTY()
		if err != nil {
			return nil, err
		}
		slave, cmd.Stdin = end, end
		p.stop = sync.OnceValue(master.Close)
	} else {
		p.stop = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	}
	p.kill = func() error {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("kill the engine: %w", err)
		}
		<-p.done
		return nil
	}

	// The kernel sends the parent-death signal when the *thread* that started
	// the child ends, so this goroutine keeps its thread as long as the child
	// lives (golang/go#27505). Whoever holds the process joins it through done.
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.err = cmd.Wait()
		close(p.done)
	}()
	err := <-started
	if slave != nil {
		// Its only job was to be inherited; nothing was written to it.
		_ = slave.Close()
	}
	if err != nil {
		if slave != nil {
			err = errors.Join(err, p.stop())
		}
		return nil, fmt.Errorf("start the engine: %w", err)
	}
	p.pid = cmd.Process.Pid
	return p, nil
}

// alive reports whether the process has not been seen to end.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// end stops the process, gently at first, and returns when it is gone.
func (p *process) end() error {
	err := p.ask()
	timer := time.NewTimer(stopGrace)
	defer timer.Stop()
	select {
	case <-p.done:
		return err
	case <-timer.C:
		return errors.Join(err, p.kill())
	}
}

// destroy ends the process at once and closes what was held for its sake.
func (p *process) destroy() error { return errors.Join(p.kill(), p.ask()) }

// ask is stop; that the process has gone before is no error.
func (p *process) ask() error {
	if err := p.stop(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the engine: %w", err)
	}
	return nil
}

// bootFailed reports whether a statement of bootSQL failed. The engine then stays
// at its prompt, deaf on that port; only stderr tells. The reason is the line after,
// which may come later.
func (p *process) bootFailed() bool {
	_, reason, failed := strings.Cut(p.tail.String(), "Received exception")
	return failed && strings.Contains(reason, "Code: ")
}

// cause says why the process ended, or failed to open its ports. The exit code
// says nothing, it is 0 after most failures; stderr does.
func (p *process) cause() error {
	text := p.tail.String()
	switch {
	case strings.Contains(text, "Address already in use"):
		return fmt.Errorf("%w: %s", errPortInUse, text)
	case strings.Contains(text, "Cannot lock file"):
		return fmt.Errorf("%w: %s", ErrDirInUse, text)
	case text == "":
		text = "it said nothing"
	}
	if !p.alive() && p.err != nil {
		return fmt.Errorf("engine ended: %w: %s", p.err, text)
	}
	return fmt.Errorf("engine ended: %s", text)
}

// stackFrame matches the lines of a stack trace, which in a stripped library are
// bare addresses that would push the message out of the tail.
var stackFrame = regexp.MustCompile(`^[0-9]+\. .*@ 0x[0-9a-f]+$`)

// tailLines is how much of stderr is kept for an error.
const tailLines = 12

// tail passes the lines of the engine's stderr to the log, without the password,
// which no message should hold anyway (invariant 2), and keeps the last ones that
// tell why the engine ended: all of them while it starts, then only those of a
// crash, because the rest are failed queries with their users' values in them.
type tail struct {
	log    *slog.Logger
	secret string

	mu      sync.Mutex // guards what follows
	part    []byte
	lines   []string
	started bool
}

// start ends the engine's starting phase.
func (t *tail) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines, t.started = nil, true
}

var _ io.Writer = (*tail)(nil)

// Write never fails: a full pipe would stop the engine.
func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.part = append(t.part, b...)
	for {
		line, rest, found := bytes.Cut(t.part, []byte("\n"))
		if !found {
			break
		}
		t.part = append([]byte(nil), rest...)
		text := strings.TrimSpace(strings.ReplaceAll(string(line), t.secret, "xxxxx"))
		if text == "" || stackFrame.MatchString(text) {
			continue
		}
		t.log.Debug("clickhouse engine", "line", text)
		if t.started && !strings.Contains(text, "<Fatal>") && !strings.Contains(text, "Terminate called") {
			continue
		}
		t.lines = append(t.lines, text)
		if len(t.lines) > tailLines {
			t.lines = t.lines[len(t.lines)-tailLines:]
		}
	}
	return len(b), nil
}

// String returns the lines kept as one text.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, " | ")
}
