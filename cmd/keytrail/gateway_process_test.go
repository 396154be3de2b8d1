package main

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// gatewaysMustRun makes a gateway that is not installed a failure.
const gatewaysMustRun = "KEYTRAIL_TEST_GATEWAYS"

const gatewaysDir = "../../deploy/gateways"

// gatewayKind is one folder of deploy/gateways and how its program is run there.
type gatewayKind struct {
	name    string // of the folder, the program and the Debian package
	version string // the argument that makes it print its version
	run     func(dir string, echo bool) []string
}

var gatewayKinds = []gatewayKind{
	{"nginx", "-v", func(dir string, _ bool) []string {
		return []string{"-p", dir, "-c", filepath.Join(dir, "nginx.conf")}
	}},
	{"caddy", "version", func(dir string, _ bool) []string {
		return []string{"run", "--config", filepath.Join(dir, "Caddyfile")}
	}},
	{"haproxy", "-v", func(dir string, echo bool) []string {
		args := []string{"-C", dir, "-f", "haproxy.cfg"}
		if echo {
			args = append(args, "-f", "echo.cfg")
		}
		return args
	}},
	{"traefik", "version", func(dir string, _ bool) []string {
		return []string{"--configFile=" + filepath.Join(dir, "traefik.yaml")}
	}},
}

// traefikProgram names a Traefik that is not on the path, as "make traefik" builds it.
const traefikProgram = "KEYTRAIL_TEST_TRAEFIK"

// keepsLimits reports whether the headers of an allowed answer reach the upstream alone:
// Traefik's forwardAuth passes none of them on to the client.
func (k gatewayKind) keepsLimits() bool { return k.name == "traefik" }

// bare reports whether the gateway's own answers are a status and no more: Traefik can word
// none without an upstream for it.
func (k gatewayKind) bare() bool { return k.name == "traefik" }

// gateway is a running one.
type gateway struct {
	kind gatewayKind
	url  string
	pid  int
}

// installed returns the path of the gateway's program, and logs its version.
func (k gatewayKind) installed(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath(k.name)
	if program := os.Getenv(traefikProgram); k.name == "traefik" && program != "" {
		path, err = exec.LookPath(program)
	}
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + k.name) // not on everybody's path
	}
	if err != nil {
		word := fmt.Sprintf("%s is not installed (Debian package %s)", k.name, k.name)
		if k.name == "traefik" { // no Debian package
			word = "no traefik on the path, and " + traefikProgram + " names none: make traefik"
		}
		if os.Getenv(gatewaysMustRun) != "" && (k.name != "traefik" || os.Getenv(traefikProgram) != "") {
			t.Fatal(word)
		}
		t.Skip(word)
	}
	out, err := exec.Command(path, k.version).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", path, k.version, err, out)
	}
	version, _, _ := strings.Cut(string(out), "\n")
	t.Logf("%s: %s", k.name, version)
	return path
}

// unhurried gives Keytrail as long for its answer as the tests have: a busy machine is
// no verifier that does not answer.
var unhurried = strings.NewReplacer(
	"proxy_connect_timeout 1s;", "proxy_connect_timeout 120s;", "proxy_send_timeout    3s;", "proxy_send_timeout 120s;", "proxy_read_timeout    3s;", "proxy_read_timeout 120s;",
	"dial_timeout 1s", "dial_timeout 120s", "response_header_timeout 3s", "response_header_timeout 120s",
	"timeout connect 1s", "timeout connect 120s", "timeout = 3000", "timeout = 120000", "timeout http-request 10s", "timeout http-request 120s",
	"timeout http-keep-alive 60s", "timeout http-keep-alive 120s", "keepalive_timeout 4s;", "keepalive_timeout 120s;", "keepalive 4s", "keepalive 120s",
	"dialTimeout: 1s", "dialTimeout: 120s", "responseHeaderTimeout: 3s", "responseHeaderTimeout: 120s", "idleConnTimeout: 4s", "idleConnTimeout: 120s")

// startGateway runs the shipped configuration on other ports and without hurry: that,
// and what change says, is all that differs. Without echo the shipped upstream stays out.
func startGateway(t testing.TB, k gatewayKind, keytrail, api, mirror string, echo bool, change ...string) *gateway {
	t.Helper()
	program := k.installed(t)
	// Not t.TempDir: nginx started as root has workers that are not, and they keep
	// bodies here.
	dir, err := os.MkdirTemp("", "keytrail-gateway-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	listen := freeAddr(t)
	if slices.ContainsFunc(change, func(s string) bool { return strings.Contains(s, "[::1]") }) {
		listen = strings.Replace(listen, "127.0.0.1", "[::1]", 1)
	}
	port := func(addr string) string { return addr[strings.LastIndex(addr, ":"):] }
	changes := strings.NewReplacer(change...)
	ports := strings.NewReplacer(":8080", port(listen), ":7070", port(keytrail), ":9090", port(api), ":9091", port(mirror), ":7069", port(freeAddr(t)))
	from := filepath.Join(gatewaysDir, k.name)
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(from, path)
		to := filepath.Join(dir, name)
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		if strings.HasPrefix(d.Name(), "echo.") && !echo {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, []byte(ports.Replace(changes.Replace(unhurried.Replace(string(b))))), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}

	c := exec.Command(program, k.run(dir, echo)...)
	c.Dir = dir
	c.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
	var out lockedBuffer
	c.Stdout, c.Stderr = &out, &out
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} // by which nginx ends its workers too
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { // ends with the process, which the cleanup ends
		c.Wait()
		close(exited)
	}()
	t.Cleanup(func() {
		c.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(patience):
			c.Process.Kill()
			<-exited
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", k.name, out.String())
		}
	})
	serves := []string{listen}
	if echo {
		serves = append(serves, api)
	}
	// Traefik listens before it knows what to do: until then there is no page.
	https := slices.ContainsFunc(change, func(s string) bool { return strings.HasPrefix(s, "tls: {}") })
	eventually(t, func() string {
		select {
		case <-exited:
			t.Fatalf("%s ended at once:\n%s", k.name, out.String())
		default:
		}
		for _, addr := range serves {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				return fmt.Sprintf("%s does not listen: %v\n%s", k.name, err, out.String())
			}
			conn.Close()
		}
		if k.name == "traefik" {
			return knowsItsRoutes(t, listen, https)
		}
		return ""
	})
	return &gateway{kind: k, url: "http://" + listen, pid: c.Process.Pid}
}

// knowsItsRoutes says why Traefik at addr does not answer a path that it refuses without
// asking anybody.
func knowsItsRoutes(t testing.TB, addr string, https bool) string {
	client, url := newClient(t), "http://"+addr
	if https {
		client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		url = "https://" + addr
	}
	x, err := trySend(t, client, "GET", url, "/;", nil, nil)
	if err != nil || x.status != http.StatusBadRequest {
		return fmt.Sprintf("it has no routes: %d %v", x.status, err)
	}
	return ""
}

// upstream is the API behind the gateways. It keeps what reached it, and says
// itself what only Keytrail may say to the client.
type upstream struct {
	*httptest.Server
	hits atomic.Int64
	sent atomic.Int64 // what came, request or not
	mu   sync.Mutex
	last *http.Request
	body [sha256.Size]byte
}

func newUpstream(t *testing.T) *upstream {
	u := &upstream{}
	u.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		u.mu.Lock()
		u.last, u.body = r, sha256.Sum256(b)
		u.mu.Unlock()
		u.hits.Add(1)
		for _, h := range []string{"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit", "RateLimit-Policy", "X-Request-Id"} {
			w.Header().Set(h, "of the upstream")
		}
		w.Header().Set("X-Upstream", "caller "+r.Header.Get("X-Keytrail-Key-Id"))
		// An upstream's own refusals are not the gateway's to rewrite.
		status, _ := strconv.Atoi(r.URL.Query().Get("status"))
		w.WriteHeader(cmp.Or(status, http.StatusOK))
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.Path)
	}))
	u.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateActive {
			u.sent.Add(1)
		}
	}
	u.Start()
	t.Cleanup(u.Close)
	return u
}

func (u *upstream) seen() (*http.Request, [sha256.Size]byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last, u.body
}

// addr is the server's host and port.
func (u *upstream) addr() string { return u.Listener.Addr().String() }
