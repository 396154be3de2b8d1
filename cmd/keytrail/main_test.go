package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/internal/loadtest"
)

// asMain makes the test binary be keytrail itself, so that the tests run the
// real program in processes of its own.
const asMain = "KEYTRAIL_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	engine.ChildMain()
	loadtest.Main(loadtest.HTTP())
	if os.Getenv(asMain) != "" {
		main()
	}
	var err error
	if answers.doc, err = readDocument(); err != nil {
		panic(err)
	}
	http.DefaultTransport = &answers
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue { // those tests wait for processes most of the time
		flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0)))
	}
	code := m.Run()
	if !answers.finish() && code == 0 {
		code = 1
	}
	os.Exit(code)
}

// proc is a running keytrail.
type proc struct {
	cmd    *exec.Cmd
	url    string
	root   string
	stdout lockedBuffer
	stderr lockedBuffer
	exited chan struct{}
	err    error // of Wait; read after exited is closed
}

// lockedBuffer collects what a process prints.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// spawn runs keytrail with args and waits for its "ready" line.
func spawn(t testing.TB, env []string, args ...string) *proc {
	t.Helper()
	p, err := trySpawn(t, env, args...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func trySpawn(t testing.TB, env []string, args ...string) (*proc, error) {
	t.Helper()
	return trySpawnOf(t, os.Args[0], env, args...)
}

// trySpawnOf is trySpawn of another binary.
func trySpawnOf(t testing.TB, bin string, env []string, args ...string) (*proc, error) {
	t.Helper()
	args, dsn := withoutDSN(args)
	p := &proc{cmd: exec.Command(bin, args...), exited: make(chan struct{})}
	own := func(v string) bool {
		return strings.HasPrefix(v, "KEYTRAIL_URL=") || strings.HasPrefix(v, "KEYTRAIL_ROOT_KEY=")
	}
	p.cmd.Env = append(append(append(slices.DeleteFunc(os.Environ(), own), asMain+"=1"), env...), dsn...)
	p.cmd.Stderr = &p.stderr
	// A process that dies with its parent leaves nothing behind a killed test.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(func() { p.kill() })
	ready := make(chan struct{})
	var read sync.WaitGroup
	read.Go(func() {
		s := bufio.NewScanner(out)
		for s.Scan() {
			line := s.Text()
			fmt.Fprintln(&p.stdout, line)
			if i := strings.Index(line, "http://"); i >= 0 && p.url == "" {
				p.url = line[i:]
				answers.watch(p.url)
			}
			if line == "ready" {
				close(ready)
			}
		}
	})
	go func() { // ends with the process, which kill ends
		read.Wait()
		if p.url != "" {
			answers.leave(p.url)
		}
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	select {
	case <-ready:
		return p, nil
	case <-p.exited:
		return p, fmt.Errorf("keytrail %s ended before it was ready: %v\n%s%s", strings.Join(args, " "), p.err, p.stdout.String(), p.stderr.String())
	case <-time.After(patience):
		p.kill()
		return p, fmt.Errorf("keytrail %s was not ready in time\n%s%s", strings.Join(args, " "), p.stdout.String(), p.stderr.String())
	}
}

// stop asks for an orderly end and insists on exit code 0.
func (p *proc) stop(t testing.TB) {
	t.Helper()
	p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.exited:
		if p.err != nil {
			t.Fatalf("after an interrupt: %v\n%s", p.err, p.stderr.String())
		}
	case <-time.After(patience):
		t.Fatalf("did not stop within %v of the interrupt\n%s", patience, p.stderr.String())
	}
}

// kill ends the process as a crash would.
func (p *proc) kill() {
	p.cmd.Process.Kill()
	<-p.exited
}

// up runs `keytrail up` on a directory.
func up(t testing.TB, dir string, more ...string) *proc {
	t.Helper()
	p := spawn(t, nil, append([]string{"up", "--dir", dir, "--listen", "127.0.0.1:0"}, more...)...)
	b, err := os.ReadFile(filepath.Join(dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	p.root = strings.TrimSpace(string(b))
	return p
}

// cli runs one operator command in this process against p.
func (p *proc) cli(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return cliAt(t, p.url, p.root, args...)
}

// withoutDSN moves a DSN with a password from the arguments to the environment, as
// operators must.
func withoutDSN(args []string) (rest, env []string) {
	i := slices.Index(args, "--clickhouse")
	if i < 0 || !passwordIn.MatchString(args[i+1]) {
		return args, nil
	}
	return slices.Delete(slices.Clone(args), i, i+2), []string{"KEYTRAIL_CLICKHOUSE=" + args[i+1]}
}

func cliAt(t testing.TB, url, root string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	args, dsn := withoutDSN(args)
	if len(dsn) > 0 {
		setenv(t, "KEYTRAIL_CLICKHOUSE", strings.TrimPrefix(dsn[0], "KEYTRAIL_CLICKHOUSE="))
	}
	args = append([]string{"--url", url}, args...)
	if root != "" { // not in the environment, which tests that run beside this one share
		file := filepath.Join(t.TempDir(), "operator.key")
		if err := os.WriteFile(file, []byte(root), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"--key-file", file}, args...)
	}
	var out, errw bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(""), &out, &errw)
	return out.String(), errw.String(), code
}

// command runs keytrail as a process with env, to its end, which has to be a success.
func command(t testing.TB, env []string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), os.Args[0], args...)
	c.Env = append(append(os.Environ(), asMain+"=1"), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("keytrail %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// setenv sets a variable, or takes it away, to the end of the test. No test may that
// runs beside others.
func setenv(t testing.TB, name, value string) {
	t.Setenv(name, value)
	if value == "" {
		os.Unsetenv(name)
	}
}

// proves is cli, tried again while the node cannot prove its answer yet.
func (p *proc) proves(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	for again := patiently(t); ; {
		stdout, stderr, code = p.cli(t, args...)
		if code == 0 || !strings.Contains(stderr, "(503 ") || !unproved.MatchString(stderr) {
			return stdout, stderr, code
		}
		again("keytrail " + strings.Join(args, " ") + ": " + stderr)
	}
}

// must is cli for a command that has to succeed.
func (p *proc) must(t testing.TB, args ...string) string {
	t.Helper()
	out, errs, code := p.proves(t, args...)
	if code != 0 {
		t.Fatalf("keytrail %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// do calls an endpoint and returns status and body.
func (p *proc) do(t testing.TB, method, path string, header map[string]string, body any) (int, map[string]any) {
	t.Helper()
	status, _, raw := p.raw(t, method, path, header, body)
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s %s answered %d with no JSON: %s", method, path, status, raw)
	}
	return status, v
}

func (p *proc) raw(t testing.TB, method, path string, header map[string]string, body any) (int, http.Header, []byte) {
	t.Helper()
	status, h, b, err := p.tryRaw(t, method, path, header, body)
	if err != nil {
		t.Fatal(err)
	}
	return status, h, b
}

func (p *proc) tryRaw(t testing.TB, method, path string, header map[string]string, body any) (int, http.Header, []byte, error) {
	t.Helper()
	var in io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		in = strings.NewReader(b)
	default:
		j, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		in = bytes.NewReader(j)
	}
	req, err := http.NewRequest(method, p.url+path, in)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+p.root)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, b, err
}

// proved is raw, asked again while the answer is that the node cannot prove it yet. An
// answer to a body that is too large may be lost, if the server has closed the connection
// before it is looked at: it does not read such a body to its end.
func (p *proc) proved(t testing.TB, method, path string, header map[string]string, body any) (int, http.Header, []byte) {
	t.Helper()
	for again := patiently(t); ; {
		status, h, b, err := p.tryRaw(t, method, path, header, body)
		lost := errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
		if text, _ := body.(string); lost && len(text) < 1<<20 || err != nil && !lost {
			t.Fatal(err)
		}
		if !lost && (status != http.StatusServiceUnavailable || !unproved.Match(b)) {
			return status, h, b
		}
		again(fmt.Sprintf("%s %s: %s, %v", method, path, b, err))
	}
}

// data is do for a request that must answer with want; it returns its data.
func (p *proc) data(t testing.TB, want int, method, path string, body any) map[string]any {
	t.Helper()
	status, v := p.do(t, method, path, nil, body)
	for again := patiently(t); status != want && status == http.StatusServiceUnavailable && unproved.MatchString(fmt.Sprint(v["detail"])); status, v = p.do(t, method, path, nil, body) {
		again(fmt.Sprint(method, " ", path, ": ", v))
	}
	if status != want {
		t.Fatalf("%s %s: %d, want %d: %v", method, path, status, want, v)
	}
	d, _ := v["data"].(map[string]any)
	if d == nil {
		t.Fatalf("%s %s: no data: %v", method, path, v)
	}
	if pos, ok := v["position"].(string); ok {
		d["__position"] = pos
	}
	return d
}

// verify asks the verify endpoint.
func (p *proc) verify(t testing.TB, body map[string]any) map[string]any {
	t.Helper()
	status, v := p.do(t, "POST", "/v1/verify", nil, body)
	if status != http.StatusOK {
		t.Fatalf("verify: %d %v", status, v)
	}
	return v
}

// reached verifies until the node's view has reached the min_position of body, which it
// waits for only a little, and its lease is new enough.
func (p *proc) reached(t testing.TB, body map[string]any) map[string]any {
	t.Helper()
	v := p.verify(t, body)
	for again := patiently(t); v["reason"] == "verifier_stale"; v = p.verify(t, body) {
		again(fmt.Sprint("verify ", body["scope"], ": ", v))
	}
	return v
}

// wantReason verifies and insists on the outcome.
func (p *proc) wantReason(t testing.TB, want string, body map[string]any) map[string]any {
	t.Helper()
	ask := p.reached
	if want == "verifier_stale" {
		ask = p.verify
	}
	v := ask(t, body)
	if v["reason"] != want || v["allowed"] != (want == "ok") {
		t.Fatalf("verify %v: %v, want %s", body["scope"], v, want)
	}
	return v
}

// patience is how long a test waits for what must come: a busy machine may take long,
// and a wait that ends well costs nothing.
const patience = 2 * time.Minute

// unproved matches a 503 of a node that could not prove within three seconds that it
// sees everything, or that a reading is on the record, and of an auditor whose ClickHouse
// did not answer in time. On a busy machine that is the right answer, which asks for a
// retry.
var unproved = regexp.MustCompile("nothing was written, try again|nothing was read|catches up when it can|took longer than")

// patiently returns what is called before each retry. It fails the test with the last
// answer when patience is at its end.
func patiently(t testing.TB) func(answer string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	return func(answer string) {
		t.Helper()
		if time.Now().After(deadline) {
			t.Fatal(answer)
		}
		t.Log("asked again after ", answer)
		time.Sleep(20 * time.Millisecond) // a real process on the other side
	}
}

// eventually polls until f returns "", and fails with its last word after a while.
func eventually(t testing.TB, f func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		word := f()
		if word == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(word)
		}
		time.Sleep(20 * time.Millisecond) // a real process on the other side: poll, do not wait blindly
	}
}

// given are the ports that freeAddr has returned.
var given sync.Map

// freeAddr returns a loopback address that nobody listens on, never the same twice. Its
// port is below those that the system chooses, so no connection and no listener on port
// 0 takes it before its process listens, nor while that process is restarted.
func freeAddr(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 10000+rand.IntN(22000))
		if _, again := given.LoadOrStore(addr, true); again {
			continue
		}
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			return addr
		}
	}
	t.Fatal("no port is free")
	return ""
}
