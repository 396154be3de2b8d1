package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"sync"
	"time"
)

const (
	// startLimit is how long an engine may take to answer. A new directory
	// takes 0.1 s; the rest is for big ones on slow disks.
	startLimit = 2 * time.Minute
	// takeoverLimit is how long a directory may stay locked by an engine whose
	// parent is already gone: the kernel needs a moment to end it, and on a machine
	// under load several seconds. No living Keytrail is waited for: it holds the lock
	// of the directory.
	takeoverLimit = 30 * time.Second
	// portTries is how many pairs of ports the first start tries.
	portTries = 8

	// A restart waits restartMin, then twice as long each time it fails, up to
	// restartMax; after restartCalm of quiet it begins anew.
	restartMin  = 80 * time.Millisecond
	restartMax  = 5 * time.Second
	restartCalm = 10 * time.Second
)

// Engine is a running local ClickHouse. All methods may be called from any
// goroutine. It prints as its address, never with its password.
type Engine struct {
	cfg      Config
	launch   launcher
	dir      *dir
	endpoint endpoint
	password string
	tcpPort  int

	closing chan struct{}  // closed by Close
	runs    sync.WaitGroup // of Run; added to under mu while not closed

	mu      sync.Mutex
	closed  bool          // guarded by mu
	proc    *process      // guarded by mu; was ready when it was set
	changed chan struct{} // guarded by mu; closed and replaced with each proc
}

// Start starts the engine of a directory, fetching the library first if nobody
// on this account has done so yet (some ten seconds, 170 MB), and returns when
// it answers queries and the database keytrail exists. ctx ends the wait, not
// the engine: that is Close, which must be called.
//
// Errors: ErrNoEngine, ErrDirInUse, ErrUnavailable, ErrIntegrity, ErrVersion,
// each inside a sentence that says what to do; others are of the system.
func Start(ctx context.Context, cfg Config) (*Engine, error) {
	if unsupported != "" {
		return nil, fmt.Errorf("%w: %s", ErrNoEngine, unsupported)
	}
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("engine configuration: %w", err)
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	d, err := openDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, dir: d, closing: make(chan struct{}), changed: make(chan struct{})}
	if err := e.open(ctx); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return e, nil
}

// open is the first start, which may still choose its ports.
func (e *Engine) open(ctx context.Context) error {
	var err error
	if e.launch, err = findLauncher(ctx, e.cfg); err != nil {
		return err
	}
	if e.password, err = e.dir.password(); err != nil {
		return err
	}
	if err := e.dir.writeConfig(e.cfg, e.launch, e.password); err != nil {
		return err
	}
	takeover := time.Now().Add(takeoverLimit)
	for tries := 1; ; {
		if e.tcpPort, err = e.cfg.freePort(); err != nil {
			return err
		}
		httpPort, err := e.cfg.freePort()
		if err != nil {
			return err
		}
		e.endpoint = endpoint{addr: "127.0.0.1:" + strconv.Itoa(httpPort), port: httpPort, user: userName, password: e.password}
		err = e.startProcess(ctx)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errPortInUse) && tries < portTries:
			tries++
		case errors.Is(err, ErrDirInUse) && time.Now().Before(takeover):
			if err := pause(ctx, restartMin, e.closing); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// startProcess starts a process on the engine's ports and makes it the current
// one when it is ready. On an error no process is left behind.
func (e *Engine) startProcess(ctx context.Context) error {
	p, err := spawn(e.launch, e.dir, e.tcpPort, e.endpoint.port, e.password, e.cfg.Logger)
	if err != nil {
		return err
	}
	if err := e.awaitReady(ctx, p); err != nil {
		return errors.Join(err, p.destroy())
	}
	p.tail.start()
	e.setCurrent(p)
	return nil
}

// awaitReady waits for the ports, then asks what answers there. That it knows
// the password proves that it is this engine and no neighbour on its port. Another
// program may have taken the HTTP port since it was found free. It answers before the
// engine has tried to open the port, so a wrong answer is no failure yet: the engine
// says on stderr that the port is taken.
func (e *Engine) awaitReady(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("engine did not answer within %v", startLimit))
	defer cancel()
	var version string
	var wrong error // what answered the last time
	for {
		if !p.alive() || p.bootFailed() {
			return p.cause()
		}
		if e.endpoint.ping(ctx) {
			var err error
			if version, err = e.endpoint.query(ctx, "SELECT version()"); err == nil {
				break
			}
			if ctx.Err() == nil {
				wrong = fmt.Errorf("ask the engine for its version: %w", err)
			}
		}
		if err := pause(ctx, 5*time.Millisecond, e.closing); err != nil {
			return errors.Join(err, wrong)
		}
	}
	if err := checkVersion(version); err != nil {
		return err
	}
	if _, err := e.endpoint.query(ctx, "CREATE DATABASE IF NOT EXISTS "+databaseName+" ENGINE = Atomic"); err != nil {
		return fmt.Errorf("make the database %s: %w", databaseName, err)
	}
	return nil
}

// Run watches over the engine: if it ends unasked, Run starts it again on the
// same ports, and keeps trying, ever more slowly, while that fails; each end and
// each failure is logged. It returns nil when ctx ends or Close is called. It
// does not stop the engine: what writes to it may want to finish first. At most
// one Run at a time.
func (e *Engine) Run(ctx context.Context) error {
	if !e.enterRun() {
		return nil
	}
	defer e.runs.Done()

	wait := restartMin
	for {
		p, _ := e.current()
		began := time.Now()
		select {
		case <-ctx.Done():
			return nil
		case <-e.closing:
			return nil
		case <-p.done:
		}
		if time.Since(began) > restartCalm {
			wait = restartMin
		}
		e.cfg.Logger.WarnContext(ctx, "clickhouse engine ended, starting it again", "err", p.cause(), "wait", wait)
		if err := p.ask(); err != nil {
			return err
		}
		for {
			if pause(ctx, wait, e.closing) != nil {
				return nil
			}
			wait = min(2*wait, restartMax)
			err := e.startProcess(ctx)
			if err == nil {
				e.cfg.Logger.WarnContext(ctx, "clickhouse engine is back", "pid", e.PID())
				break
			}
			if ctx.Err() != nil || errors.Is(err, ErrClosed) {
				return nil
			}
			e.cfg.Logger.WarnContext(ctx, "clickhouse engine does not start, trying again", "err", err, "wait", wait)
		}
	}
}

// WaitReady returns when the engine runs and has answered: at once, or after
// Run has brought it back. Errors: ctx's, or ErrClosed.
func (e *Engine) WaitReady(ctx context.Context) error {
	for {
		p, changed := e.current()
		if p.alive() {
			return nil
		}
		select {
		case <-changed:
		case <-e.closing:
			return ErrClosed
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Close ends Run and then the engine: gently, and after two seconds by force,
// which costs nothing but the connections still open. Close client pools first
// and it takes 10 ms. After it the directory is free. A second Close does nothing.
func (e *Engine) Close() error {
	if !e.enterClose() {
		return nil
	}
	e.runs.Wait()
	p, _ := e.current()
	return errors.Join(p.end(), e.dir.close())
}

// Kill ends the engine's process with SIGKILL, as a crash would, and returns
// when it is gone. For tests: with Run at work it comes back (see WaitReady).
func (e *Engine) Kill() error {
	p, _ := e.current()
	return p.kill()
}

// PID returns the engine's process id, or 0 while there is none.
func (e *Engine) PID() int {
	if p, _ := e.current(); p.alive() {
		return p.pid
	}
	return 0
}

// DSN returns the address of the database keytrail over the native protocol,
// with the password in it: clickhouse://user:password@127.0.0.1:port/keytrail.
// It stays the same while the Engine lives. Show it only through Redact.
func (e *Engine) DSN() string {
	u := url.URL{
		Scheme: "clickhouse",
		User:   url.UserPassword(userName, e.password),
		Host:   "127.0.0.1:" + strconv.Itoa(e.tcpPort),
		Path:   "/" + databaseName,
	}
	return u.String()
}

// HTTPAddr returns host:port of the HTTP interface. It serves GET /ping, without
// a password, and POST / with a query, with the password; nothing else.
func (e *Engine) HTTPAddr() string { return e.endpoint.addr }

// String names the engine without its password.
func (e *Engine) String() string { return Redact(e.DSN()) }

// GoString is String: %#v would print the fields.
func (e *Engine) GoString() string { return e.String() }

// LogValue is String.
func (e *Engine) LogValue() slog.Value { return slog.StringValue(e.String()) }

// current returns the process and the channel that closes when it is replaced.
func (e *Engine) current() (*process, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.proc, e.changed
}

func (e *Engine) setCurrent(p *process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.proc = p
	close(e.changed)
	e.changed = make(chan struct{})
}

// enterRun counts a Run in, unless the Engine is closed: Close waits for it.
func (e *Engine) enterRun() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.runs.Add(1)
	}
	return !e.closed
}

// enterClose closes the Engine to new Runs and ends the one at work. It reports
// false if that was done before.
func (e *Engine) enterClose() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.closed = true
	close(e.closing)
	return true
}

// pause waits d. It returns early with an error if ctx ends or closing closes.
func pause(ctx context.Context, d time.Duration, closing <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-closing:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
