package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/client"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/internal/files"
)

// maxBenchNodes bounds a deployment of a bench's own: each node is a process.
const maxBenchNodes = 64

// ownNodes is a deployment of a bench's own on the loopback interface: a log, two
// controls and verifiers, each a process, on a directory that is removed with it.
type ownNodes struct {
	dir, nats string
	env       []string
	log       *ownProcess
	controls  []*ownProcess
	verifiers []*ownProcess
	relays    []*relay // of the first verifiers, to the log
	started   atomic.Int64
}

// startNodes starts a deployment with n verifiers. close ends it, also after an error.
func (a *app) startNodes(ctx context.Context, n int) (d *ownNodes, err error) {
	d = new(ownNodes)
	defer a.progress("starting processes", int64(n+4), d.started.Load)()
	if d.dir, err = os.MkdirTemp("", "keytrail-bench-"); err != nil {
		return d, err
	}
	addr, err := freePort()
	if err != nil {
		return d, err
	}
	d.nats = "nats://" + addr
	var accounts strings.Builder
	for i := range n {
		text, err := server.NodeConf(nodeOf(i), "$KEYTRAIL_NODE_PASSWORD")
		if err != nil {
			return d, err
		}
		accounts.WriteString(text)
	}
	conf := filepath.Join(d.dir, "nodes.conf")
	if err := os.WriteFile(conf, []byte(accounts.String()), 0o600); err != nil {
		return d, err
	}
	for _, kv := range os.Environ() { // of this process, but nothing that says where its own deployment is
		if !strings.HasPrefix(kv, "KEYTRAIL_") || strings.HasPrefix(kv, "KEYTRAIL_TEST_") {
			d.env = append(d.env, kv)
		}
	}
	d.env = append(d.env, "KEYTRAIL_NATS="+d.nats, "KEYTRAIL_LOG_NODES="+conf)
	for _, user := range []string{"ADMIN", "CTRL", "SYS", "ROUTE", "NODE"} {
		d.env = append(d.env, "KEYTRAIL_"+user+"_PASSWORD=p"+rand.Text())
	}
	if d.log, err = d.start(ctx, "log", "--dir", filepath.Join(d.dir, "log"), "--listen", addr); err != nil {
		return d, err
	}
	if err := d.run(ctx, "init", "--root-key-file", d.rootKey()); err != nil {
		return d, err
	}
	for i := range 2 {
		c, err := d.start(ctx, "control", "--listen", "127.0.0.1:0", "--name", fmt.Sprint("control-", i+1))
		if err != nil {
			return d, err
		}
		d.controls = append(d.controls, c)
	}
	for i := range n {
		nats := d.nats
		if i < 2 {
			r, err := newRelay(addr)
			if err != nil {
				return d, err
			}
			d.relays = append(d.relays, r)
			nats = "nats://" + r.listener.Addr().String()
		}
		v, err := d.start(ctx, "verifier", "--nats", nats, "--listen", "127.0.0.1:0", "--name", string(nodeOf(i)))
		if err != nil {
			return d, err
		}
		d.verifiers = append(d.verifiers, v)
	}
	return d, nil
}

// benchOwn is bench on a deployment of its own, which is gone afterwards.
func (a *app) benchOwn(c *cobra.Command, f *benchFlags, nodes int, faults bool, measure func(ctx context.Context, b *bench) (benchReport, error)) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	own, err := a.startNodes(c.Context(), nodes)
	defer func() { err = errors.Join(err, own.close()) }()
	if err != nil {
		return err
	}
	key, err := files.ReadSecret(own.rootKey())
	if err != nil {
		return err
	}
	b := &bench{benchFlags: *f, app: a, space: keyspaceFor(f.mode), own: own, faults: faults, tenant: "own",
		control: &client.Client{Base: own.controls[0].url, UserAgent: "keytrail-cli", Key: events.NewSecret(key)}}
	for _, v := range own.verifiers {
		b.verifiers = append(b.verifiers, v.url)
	}
	return b.run(c.Context(), measure)
}

func nodeOf(i int) events.NodeID { return events.NodeID(fmt.Sprint("bench-", i+1)) }

func (d *ownNodes) rootKey() string { return filepath.Join(d.dir, "root.key") }

// close ends the processes and removes the directory.
func (d *ownNodes) close() error {
	for _, p := range append(append(d.verifiers, d.controls...), d.log) {
		if p != nil {
			p.kill()
		}
	}
	for _, r := range d.relays {
		r.close()
	}
	return os.RemoveAll(d.dir)
}

// hurt kills the control that leases the tokens of limits, and cuts two verifiers off for
// so long. It returns the address of the control that is left.
func (d *ownNodes) hurt(ctx context.Context, length time.Duration) (left string, err error) {
	i, err := d.leasing(ctx)
	if err != nil {
		return "", err
	}
	d.controls[i].kill()
	for _, r := range d.relays {
		r.cut(true)
	}
	pauseFor(ctx, length)
	for _, r := range d.relays {
		r.cut(false)
	}
	return d.controls[1-i].url, nil
}

// leasing returns which control leases the tokens. On a busy machine there is none for
// some seconds, when one takes over from the other.
func (d *ownNodes) leasing(ctx context.Context) (int, error) {
	for began := time.Now(); time.Since(began) < 20*time.Second && ctx.Err() == nil; pauseFor(ctx, 50*time.Millisecond) {
		for i, c := range d.controls {
			if leases, err := c.leases(ctx); err != nil || leases {
				return i, err
			}
		}
	}
	return 0, errors.New("no control leases the tokens of limits: --faults needs --mode exact or exact_else_local")
}

// run runs the command to its end.
func (d *ownNodes) run(ctx context.Context, args ...string) error {
	c, err := d.command(ctx, args...)
	if err != nil {
		return err
	}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("keytrail %s: %w\n%s", args[0], err, out)
	}
	d.started.Add(1)
	return nil
}

func (d *ownNodes) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := exec.CommandContext(ctx, self, args...)
	c.Env = d.env
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the bench
	return c, nil
}

// ownProcess is one role.
type ownProcess struct {
	cmd  *exec.Cmd
	url  string // "" of the log
	ends sync.WaitGroup
}

// start starts a role and waits until it is ready.
func (d *ownNodes) start(ctx context.Context, args ...string) (*ownProcess, error) {
	c, err := d.command(ctx, args...)
	if err != nil {
		return nil, err
	}
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	p := &ownProcess{cmd: c}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if i := strings.Index(lines.Text(), "http://"); i >= 0 && p.url == "" {
			p.url = lines.Text()[i:]
		}
		if lines.Text() == "ready" {
			p.ends.Go(func() { _, _ = io.Copy(io.Discard, out) })
			d.started.Add(1)
			return p, nil
		}
	}
	p.kill()
	return nil, fmt.Errorf("keytrail %s ended before it was ready\n%s", args[0], said.Bytes())
}

func (p *ownProcess) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	p.ends.Wait()
	_ = p.cmd.Wait()
}

// leases reports whether the control leases the tokens of limits.
func (p *ownProcess) leases(ctx context.Context) (bool, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/metrics", nil)
	if err != nil {
		return false, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	return bytes.Contains(text, []byte("\nkeytrail_limit_allocator 1\n")), err
}

// relay passes TCP connections on, unless it is cut.
type relay struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	isCut bool
	conns map[net.Conn]bool
}

func newRelay(to string) (*relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &relay{listener: l, to: to, conns: map[net.Conn]bool{}}
	go func() { // ends with close
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go r.pass(in)
		}
	}()
	return r, nil
}

// pass carries one connection until an end closes, or cut does.
func (r *relay) pass(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer out.Close()
	r.mu.Lock()
	if r.isCut {
		r.mu.Unlock()
		return
	}
	r.conns[in], r.conns[out] = true, true
	r.mu.Unlock()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() { _, _ = io.Copy(way[0], way[1]); done <- struct{}{} }()
	}
	<-done
	r.mu.Lock()
	delete(r.conns, in)
	delete(r.conns, out)
	r.mu.Unlock()
}

// cut closes all connections, and lets none through while on.
func (r *relay) cut(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.isCut = on; on {
		for c := range r.conns {
			c.Close()
		}
	}
}

func (r *relay) close() {
	r.listener.Close()
	r.cut(true)
}

// freePort returns an address of the loopback interface on which nobody listens now.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
