package main

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
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
}

// gateway is a running one.
type gateway struct {
	kind gatewayKind
	url  string
}

// installed returns the path of the gateway's program, and logs its version.
func (k gatewayKind) installed(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath(k.name)
	if err != nil {
		path, err = exec.LookPath("/usr/sbin/" + k.name) // not on everybody's path
	}
	if err != nil {
		word := fmt.Sprintf("%s is not installed (Debian package %s)", k.name, k.name)
		if os.Getenv(gatewaysMustRun) != "" {
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

// startGateway runs the shipped configuration on other ports: that, and what
// change says, is all that differs. Without echo the shipped upstream stays out.
func startGateway(t *testing.T, k gatewayKind, keytrail, api, mirror string, echo bool, change ...string) *gateway {
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
	port := func(addr string) string { return addr[strings.LastIndex(addr, ":"):] }
	changes := strings.NewReplacer(change...)
	ports := strings.NewReplacer(":8080", port(listen), ":7070", port(keytrail), ":9090", port(api), ":9091", port(mirror))
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
		return os.WriteFile(to, []byte(ports.Replace(changes.Replace(string(b)))), 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}

	c := exec.Command(program, k.run(dir, echo)...)
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
		case <-time.After(10 * time.Second):
			c.Process.Kill()
			<-exited
		}
		if t.Failed() {
			t.Logf("%s said:\n%s", k.name, out.String())
		}
	})
	eventually(t, func() string {
		select {
		case <-exited:
			t.Fatalf("%s ended at once:\n%s", k.name, out.String())
		default:
		}
		conn, err := net.Dial("tcp", listen)
		if err != nil {
			return fmt.Sprintf("%s does not listen: %v\n%s", k.name, err, out.String())
		}
		conn.Close()
		return ""
	})
	return &gateway{kind: k, url: "http://" + listen}
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

// passage is one request and what came back.
type passage struct {
	status int
	header http.Header
	body   []byte
	reused bool // of the connection
}

// send sends a request with the header names spelt as they are and the path as it is.
func send(t *testing.T, client *http.Client, method, base, path string, header http.Header, body []byte) passage {
	t.Helper()
	x, err := trySend(t, client, method, base, path, header, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return x
}

func trySend(t *testing.T, client *http.Client, method, base, path string, header http.Header, body []byte) (x passage, err error) {
	t.Helper()
	req, err := http.NewRequest(method, base, bytes.NewReader(body))
	if err != nil {
		return x, err
	}
	if len(body) == 0 {
		req.Body = http.NoBody
	}
	req.URL = &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Opaque: path}
	req.Header = http.Header{"User-Agent": {"a new user"}}
	maps.Copy(req.Header, header)
	req = req.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		GotConn: func(i httptrace.GotConnInfo) { x.reused = i.Reused }}))
	resp, err := client.Do(req)
	if err != nil {
		return x, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	x.status, x.header, x.body = resp.StatusCode, resp.Header, b
	return x, err
}

func newClient(t *testing.T) *http.Client {
	tr := &http.Transport{MaxConnsPerHost: 1, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// refusalHeaders are the headers of a refusal that belong to the client.
var refusalHeaders = []string{"Content-Type", "WWW-Authenticate", "Retry-After", "Cache-Control",
	"X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit", "RateLimit-Policy"}

// sameRefusal says how the gateway's answer differs from the verifier's own.
func sameRefusal(direct, got passage) string {
	if got.status != direct.status {
		return fmt.Sprintf("status %d, the verifier answers %d\n%s", got.status, direct.status, got.body)
	}
	for _, h := range refusalHeaders {
		if a, b := direct.header.Values(h), got.header.Values(h); !slices.Equal(a, b) {
			return fmt.Sprintf("%s: %q, the verifier answers %q", h, b, a)
		}
	}
	var a, b any
	if err := json.Unmarshal(direct.body, &a); err != nil {
		return fmt.Sprintf("the verifier's body: %v\n%s", err, direct.body)
	}
	if err := json.Unmarshal(got.body, &b); err != nil {
		return fmt.Sprintf("body: %v\n%s", err, got.body)
	}
	id := got.header.Values("X-Request-Id")
	if len(id) != 1 || !strings.HasPrefix(id[0], "req_") {
		return fmt.Sprintf("X-Request-Id: %q", id)
	}
	// The ids of the two requests differ; each body must hold its own.
	a = replace(a, direct.header.Get("X-Request-Id"), "id")
	b = replace(b, id[0], "id")
	if !reflect.DeepEqual(a, b) {
		return fmt.Sprintf("body\n%s\nthe verifier answers\n%s", got.body, direct.body)
	}
	return ""
}

// replace returns v with the string from replaced by to wherever it stands.
func replace(v any, from, to string) any {
	switch v := v.(type) {
	case map[string]any:
		for k := range v {
			v[k] = replace(v[k], from, to)
		}
	case []any:
		for i := range v {
			v[i] = replace(v[i], from, to)
		}
	case string:
		if v == from {
			return to
		}
	}
	return v
}

// identityHeaders is all that reached the upstream under a name that could be
// taken for one of Keytrail's, as CGI spells them.
func identityHeaders(h http.Header) map[string][]string {
	out := map[string][]string{}
	for name, values := range h {
		if n := strings.ReplaceAll(strings.ToLower(name), "_", "-"); strings.HasPrefix(n, "x-keytrail") {
			out[n] = append(out[n], values...)
		}
	}
	return out
}

// TestGateways puts the real gateways, with the configuration that ships, between
// a client and an upstream.
func TestGateways(t *testing.T) {
	for _, k := range gatewayKinds {
		t.Run(k.name, func(t *testing.T) { testGateway(t, k) })
	}
}

func testGateway(t *testing.T, k gatewayKind) {
	k.installed(t) // before anything is started for it
	p := up(t, filepath.Join(t.TempDir(), "data"), "--trusted-proxy", "127.0.0.1/32")
	api, mirror := newUpstream(t), newUpstream(t)
	g := startGateway(t, k, strings.TrimPrefix(p.url, "http://"), api.addr(), mirror.addr(), false)
	client := newClient(t)

	p.must(t, "keyspace", "apply", "-f", regime)
	create := func(body map[string]any) (id string, header http.Header) {
		t.Helper()
		body["tenant"] = "acme"
		k := p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", body)
		secret := k["key"].(string)
		p.wantReason(t, "ok", map[string]any{"key": secret, "keyspace": "scribe-sight", "ip": "127.0.0.1", "min_position": k["__position"]})
		return k["id"].(string), http.Header{"Authorization": {"Bearer " + secret}}
	}
	id, full := create(map[string]any{"name": "full", "allowlist": []string{"127.0.0.1/32"}})
	elsewhereID, elsewhere := create(map[string]any{"name": "elsewhere", "allowlist": []string{"127.0.0.1/32"}})
	_, publishable := create(map[string]any{"name": "publishable", "type": "publishable"})
	projectID, project := create(map[string]any{"name": "project", "resources": []any{map[string]any{"kind": "project", "id": "proj_1"}}})
	revokedID, revoked := create(map[string]any{"name": "revoked"})
	p.must(t, "key", "revoke", revokedID, "--code", "superseded", "--reason", "rotated")
	p.must(t, "key", "allowlist", elsewhereID, "--allow", "198.51.100.7/32")
	limitedID, limited := create(map[string]any{"name": "limited"})
	p.must(t, "key", "limit", limitedID, "--per-minute", "1", "--burst", "3")

	with := func(h http.Header, more http.Header) http.Header {
		out := maps.Clone(h)
		maps.Copy(out, more)
		return out
	}
	// ask asks the verifier itself what the gateway has to ask.
	ask := func(t *testing.T, header http.Header, query string) passage {
		t.Helper()
		h := with(header, http.Header{"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}})
		return send(t, client, "GET", p.url, "/v1/authorize/scribe-sight?"+query, h, nil)
	}
	// reaches insists that the request reaches the upstream u and no other.
	reaches := func(t *testing.T, u *upstream, method, path string, header http.Header, body []byte) passage {
		t.Helper()
		before, other := u.hits.Load(), api.hits.Load()+mirror.hits.Load()
		x := send(t, client, method, g.url, path, header, body)
		if x.header.Get("X-Upstream") == "" || u.hits.Load() != before+1 || api.hits.Load()+mirror.hits.Load() != other+1 {
			t.Fatalf("%s %s did not reach the upstream: %d %s", method, path, x.status, x.body)
		}
		return x
	}
	// stopped insists that it reaches none.
	stopped := func(t *testing.T, method, path string, header http.Header, body []byte) passage {
		t.Helper()
		before := api.sent.Load() + mirror.sent.Load()
		x, err := trySend(t, client, method, g.url, path, header, body)
		if n := api.sent.Load() + mirror.sent.Load(); n != before {
			t.Fatalf("%s %s reached the upstream", method, path)
		}
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		return x
	}

	t.Run("allowed", func(t *testing.T) {
		direct := ask(t, full, "scope=read")
		x := reaches(t, api, "GET", "/api/v1/org?limit=100&q=a%20b", full, nil)
		if x.status != 200 || string(x.body) != "GET /api/v1/org" {
			t.Errorf("%d %s", x.status, x.body)
		}
		r, _ := api.seen()
		if r.RequestURI != "/api/v1/org?limit=100&q=a%20b" {
			t.Errorf("the upstream was asked for %s", r.RequestURI)
		}
		if r.Header.Get("X-Keytrail-Key-Id") != id || r.Header.Get("X-Keytrail-Tenant") != "acme" {
			t.Errorf("identity %v", identityHeaders(r.Header))
		}
		for name, want := range identityHeaders(direct.header) {
			got := r.Header.Values(name)
			if name == "x-keytrail-use-id" {
				if len(got) != 1 || got[0] == "" || got[0] == want[0] {
					t.Errorf("%s: %q", name, got)
				}
			} else if strings.Join(got, "|") != want[0] { // an empty one need not be sent
				t.Errorf("%s: %q, the verifier says %q", name, got, want)
			}
		}
		if r.Header.Get("Authorization") != "" {
			t.Error("the secret reached the upstream")
		}
		if v := r.Header.Values("X-Forwarded-For"); !slices.Equal(v, []string{"127.0.0.1"}) {
			t.Errorf("X-Forwarded-For: %q", v)
		}
		if v := x.header.Values("X-Request-Id"); len(v) != 1 || v[0] != r.Header.Get("X-Request-Id") || !strings.HasPrefix(v[0], "req_") {
			t.Errorf("X-Request-Id: %q to the client, %q to the upstream", v, r.Header.Values("X-Request-Id"))
		}
		for _, h := range refusalHeaders[4:] {
			if v := x.header.Values(h); len(v) != 0 {
				t.Errorf("a key without a limit: %s: %q", h, v)
			}
		}
	})

	t.Run("the upstream's own answers", func(t *testing.T) {
		for _, status := range []int{401, 403, 404, 429, 500, 502, 503} {
			x := reaches(t, api, "GET", fmt.Sprintf("/api/v1/org?status=%d", status), full, nil)
			if x.status != status || string(x.body) != "GET /api/v1/org" {
				t.Errorf("%d became %d %s", status, x.status, x.body)
			}
		}
	})

	t.Run("refused", func(t *testing.T) {
		secret := full.Get("Authorization")
		for _, tt := range []struct {
			name   string
			header http.Header
			path   string
			query  string
			status int
		}{
			{"key missing", http.Header{}, "/api/v1/org", "scope=read", 401},
			{"another scheme", http.Header{"Authorization": {"Basic Zm9vOmJhcg=="}}, "/api/v1/org", "scope=read", 401},
			{"key malformed", http.Header{"Authorization": {"Bearer sk_live_short"}}, "/api/v1/org", "scope=read", 401},
			{"key unknown", http.Header{"Authorization": {secret[:len(secret)-1] + flip(secret[len(secret)-1])}}, "/api/v1/org", "scope=read", 401},
			{"revoked", revoked, "/api/v1/org", "scope=read", 401},
			{"scope", publishable, "/api/v1/org", "scope=read", 403},
			{"address", elsewhere, "/api/v1/org", "scope=read", 403},
			{"another project", project, "/api/v1/projects/proj_2/files", "scope=read&resource=project/proj_2", 403},
			{"another project, disguised", project, "/api/v1/%70rojects/proj%5F2/files", "scope=read&resource=project/proj_2", 403},
			{"another project, in capitals", project, "/API/v1/Projects/proj_2/files", "scope=read&resource=project/proj_2", 403},
			{"a project that cannot be, in capitals", project, "/api/v1/PROJECTS/%C3%A4", "scope=read&resource=project/unreadable", 403},
			{"a project that cannot be", project, "/api/v1/projects/%C3%A4", "scope=read&resource=project/unreadable", 403},
		} {
			t.Run(tt.name, func(t *testing.T) {
				direct := ask(t, tt.header, tt.query)
				if direct.status != tt.status {
					t.Fatalf("the verifier answers %d %s", direct.status, direct.body)
				}
				got := stopped(t, "GET", tt.path, tt.header, nil)
				if diff := sameRefusal(direct, got); diff != "" {
					t.Error(diff)
				}
				// A HEAD is answered alike, without a body.
				head := stopped(t, "HEAD", tt.path, tt.header, nil)
				if len(head.body) != 0 {
					t.Errorf("HEAD has a body: %s", head.body)
				}
				head.body, direct.body = []byte("{}"), []byte("{}")
				if diff := sameRefusal(direct, head); diff != "" {
					t.Errorf("HEAD: %s", diff)
				}
			})
		}
		if x := reaches(t, api, "GET", "/api/v1/projects/proj_1/files", project, nil); x.status != 200 {
			t.Errorf("its own project: %d", x.status)
		}
		if x := reaches(t, api, "GET", "/api/v1/org", project, nil); x.status != 200 {
			t.Errorf("an organization-level endpoint: %d", x.status)
		}
		if x := reaches(t, api, "POST", "/api/v1/uploads", publishable, []byte("{}")); x.status != 200 {
			t.Errorf("an upload: %d", x.status)
		}
		for range 2 {
			if x := stopped(t, "GET", "/api/v1/org", http.Header{"Authorization": {secret, "Bearer other"}}, nil); x.status != 400 && x.status != 401 {
				t.Errorf("a credential presented twice: %d %s", x.status, x.body)
			}
		}
	})

	t.Run("limit", func(t *testing.T) {
		for i := range 3 {
			x := reaches(t, api, "GET", "/api/v1/org", limited, nil)
			for h, want := range map[string]string{"X-RateLimit-Limit": "3", "X-RateLimit-Remaining": strconv.Itoa(2 - i)} {
				if v := x.header.Values(h); !slices.Equal(v, []string{want}) {
					t.Errorf("request %d: %s: %q, want %s", i+1, h, v, want)
				}
			}
			if v := x.header.Values("X-RateLimit-Reset"); len(v) != 1 || v[0] == "of the upstream" {
				t.Errorf("request %d: X-RateLimit-Reset: %q", i+1, v)
			}
		}
		// The seconds of the two answers may lie on two sides of a tick.
		var diff string
		for range 3 {
			direct := ask(t, limited, "scope=read")
			if direct.status != 429 || direct.header.Get("Retry-After") == "" {
				t.Fatalf("the verifier answers %d %s", direct.status, direct.body)
			}
			if diff = sameRefusal(direct, stopped(t, "GET", "/api/v1/org", limited, nil)); diff == "" {
				break
			}
		}
		if diff != "" {
			t.Error(diff)
		}
	})

	t.Run("forged", func(t *testing.T) {
		// Spelt as net/http would not spell them.
		forged := http.Header{}
		for _, name := range []string{"Tenant", "Key-Id", "Type", "Scopes", "Environment", "Use-Id", "Scope", "Resource", "Refusal"} {
			n := "X-Keytrail-" + name
			forged[n] = []string{"forged", "forged too"}
			forged[strings.ToLower(n)] = []string{"forged", ""}
			forged[strings.ToUpper(n)] = []string{"forged"}
			forged[strings.ReplaceAll(n, "-", "_")] = []string{"forged"}
			forged[strings.Replace(n, "-", "_", 1)] = []string{"forged"}
			forged["X-Keytrail_"+strings.ReplaceAll(name, "-", "_")] = []string{"forged"}
			forged["x_keytrail-"+name] = []string{"forged"}
		}
		maps.Copy(forged, http.Header{"X-Request-Id": {"forged"}, "X-Forwarded-Proto": {"forged"}, "x-forwarded-proto": {"https"}, "X-Real-Ip": {"198.51.100.7"},
			"Forwarded": {"for=198.51.100.7;proto=https"}, "X-Forwarded-For": {"198.51.100.7", "198.51.100.7"}, "x-forwarded-for": {"198.51.100.7"},
			"X_Forwarded_For": {"198.51.100.7"}, "X_Forwarded-For": {"198.51.100.7"}, "X-Forwarded-Prefix": {"forged"}, "X-Forwarded-Port": {"forged"}, "X-Forwarded-Ssl": {"forged"}})
		reaches(t, api, "GET", "/api/v1/org", with(full, forged), nil)
		r, _ := api.seen()
		for name, values := range r.Header {
			for _, v := range values {
				if strings.Contains(v, "forged") || strings.Contains(v, "198.51.100.7") {
					t.Errorf("%s: %q survived", name, values)
				}
			}
		}
		want := identityHeaders(ask(t, full, "scope=read").header)
		for name, got := range identityHeaders(r.Header) {
			if len(got) != 1 || len(want[name]) != 1 || got[0] != want[name][0] && name != "x-keytrail-use-id" {
				t.Errorf("%s: %q, the verifier says %q", name, got, want[name])
			}
		}
		// Headers by which an upstream is told of another method or path than the one asked about.
		other := http.Header{}
		for _, name := range []string{"X-HTTP-Method", "X-HTTP-Method-Override", "X-Method-Override", "X-Original-URL", "X-Original-URI", "X-Rewrite-URL"} {
			for _, spelt := range []string{name, strings.ReplaceAll(name, "-", "_"), strings.Replace(name, "-", "_", 1), name[:2] + strings.ReplaceAll(name[2:], "-", "_")} {
				other[spelt] = []string{"forged"}
			}
		}
		reaches(t, api, "GET", "/api/v1/org", with(full, other), nil)
		r, _ = api.seen()
		for name := range other {
			if v := r.Header.Values(name); len(v) != 0 {
				t.Errorf("%s: %q survived", name, v)
			}
		}
		if r.Header.Get("X-Forwarded-Proto") != "http" || len(r.Header.Values("X-Forwarded-Proto")) != 1 {
			t.Errorf("X-Forwarded-Proto: %q", r.Header.Values("X-Forwarded-Proto"))
		}
		// The address that counts is not the one that the client gives.
		direct := ask(t, elsewhere, "scope=read")
		if diff := sameRefusal(direct, stopped(t, "GET", "/api/v1/org", with(elsewhere, forged), nil)); direct.status != 403 || diff != "" {
			t.Errorf("%d %s", direct.status, diff)
		}
		// Headers that a client calls hop-by-hop are not dropped on the way.
		raw := rawExchange(t, g.url, "GET /api/v1/org HTTP/1.1\r\nHost: api\r\nAuthorization: "+full.Get("Authorization")+
			"\r\nConnection: close, X-Keytrail-Tenant, X-Keytrail-Key-Id, X-Forwarded-For, Authorization\r\n\r\n")
		if r, _ := api.seen(); raw.status != 200 || r.Header.Get("X-Keytrail-Tenant") != "acme" || r.Header.Get("X-Keytrail-Key-Id") != id ||
			r.Header.Get("X-Forwarded-For") != "127.0.0.1" || strings.Contains(strings.ToLower(r.Header.Get("Connection")), "keytrail") {
			t.Errorf("Connection: %d %v", raw.status, r.Header)
		}
		// Nor does the client get a connection to the upstream of its own.
		raw = rawExchange(t, g.url, "GET /api/v1/org HTTP/1.1\r\nHost: api\r\nAuthorization: "+full.Get("Authorization")+
			"\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
		if r, _ := api.seen(); raw.status != 200 || r.Header.Get("Upgrade") != "" {
			t.Errorf("Upgrade: %d %v", raw.status, r.Header)
		}
		raw = rawExchange(t, g.url, "GET /api/v1/org HTTP/1.1\r\nHost: api\r\nAuthorization: "+elsewhere.Get("Authorization")+
			"\r\nX-Forwarded-For: 198.51.100.7\r\nConnection: close, X-Forwarded-For\r\n\r\n")
		if raw.status != 403 {
			t.Errorf("X-Forwarded-For called hop-by-hop: %d %s", raw.status, raw.body)
		}
	})

	t.Run("odd paths", func(t *testing.T) {
		for _, path := range []string{
			"/api/v1/projects/proj_1/../proj_2", "/api/v1/x/../projects/proj_2", "/api/v1//projects/proj_2", "/api/v1/./projects/proj_2",
			"/api/v1/x/%2e%2E/projects/proj_2", "/api/v1/projects%2fproj_2", "/api/v1/projects;x/proj_2", "/api/v1/projects/proj_1%3b/../proj_2",
			"/api/v1/projects%5Cproj_2", "/api/v1/projects/proj_1%00", "/api/v1/projects/proj_1%0d%0a", "/api/v1/..", "/api/v1/x%252f..",
			"/api/v1/projects/proj_1/..?a", `/api/v1/projects\proj_2`, "/api/v1/projects/proj_2%3Fx",
			"/api/v1/projects/proj_2/%zz", "/api/v1/projects/proj_2/%", "/api/v1/projects/proj_2/%4", "/api/v1/projects/proj_2/%4?a", "/api/v1/projects/proj_2%u002f",
		} {
			if x := stopped(t, "GET", path, project, nil); x.status != 400 {
				t.Errorf("%s: %d %s", path, x.status, x.body)
			}
		}
		// No path at all, and what makes a tunnel of the connection.
		for _, line := range []string{"GET *", "GET api/v1/projects/proj_2", "CONNECT api:443", "CONNECT /api/v1/org"} {
			before := api.sent.Load()
			x := rawExchange(t, g.url, line+" HTTP/1.1\r\nHost: api:443\r\nConnection: close\r\nAuthorization: "+full.Get("Authorization")+"\r\n\r\n")
			if x.status != 400 && x.status != 405 || api.sent.Load() != before {
				t.Errorf("%s: %d %s", line, x.status, x.body)
			}
		}
		for _, path := range []string{"/api/v1/org?next=/a/../b//c;d%2f", "/api/v1/a.b/..c/%20%C3%A4"} {
			if reaches(t, api, "GET", path, full, nil); lastURI(api) != path {
				t.Errorf("%s became %s", path, lastURI(api))
			}
		}
	})

	t.Run("methods and bodies", func(t *testing.T) {
		body := make([]byte, 1<<20)
		rand.Read(body)
		for _, method := range []string{"POST", "PUT", "PATCH"} {
			x := reaches(t, api, method, "/api/v1/projects/proj_1/files", full, body)
			r, sum := api.seen()
			if x.status != 200 || r.Method != method || r.ContentLength != 1<<20 || sum != sha256.Sum256(body) {
				t.Errorf("%s: %d, %d bytes of SHA-256 %s", method, x.status, r.ContentLength, hex.EncodeToString(sum[:]))
			}
		}
		// Without a length, and with the client waiting for a go.
		x := rawExchange(t, g.url, "POST /api/v1/org HTTP/1.1\r\nHost: api\r\nConnection: close\r\nAuthorization: "+full.Get("Authorization")+
			"\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
		if _, sum := api.seen(); x.status != 200 || sum != sha256.Sum256([]byte("hello")) {
			t.Errorf("chunked: %d %s", x.status, x.body)
		}
		x = reaches(t, api, "HEAD", "/api/v1/org", full, nil)
		if r, _ := api.seen(); x.status != 200 || r.Method != "HEAD" || len(x.body) != 0 {
			t.Errorf("HEAD: %d %s %q", x.status, r.Method, x.body)
		}
		if x := stopped(t, "DELETE", "/api/v1/projects/proj_1", publishable, nil); x.status != 403 {
			t.Errorf("DELETE: %d", x.status)
		}
		// Of a longer body a gateway may close the connection before it has read all.
		if x := stopped(t, "POST", "/api/v1/org", http.Header{}, body[:4096]); x.status != 401 {
			t.Errorf("a refused body: %d", x.status)
		}
	})

	t.Run("keep-alive", func(t *testing.T) {
		client = newClient(t)
		reaches(t, api, "GET", "/api/v1/org", full, nil)
		for range 3 {
			if x := reaches(t, api, "POST", "/api/v1/org", full, []byte("{}")); !x.reused {
				t.Error("the connection was closed after an allowed request")
			}
			if x := stopped(t, "GET", "/api/v1/org", http.Header{}, nil); x.status != 401 || !x.reused {
				t.Errorf("%d on a connection that was reused: %v", x.status, x.reused)
			}
			if x := stopped(t, "GET", "/api/v1/org", publishable, nil); x.status != 403 || !x.reused {
				t.Errorf("the connection was closed after a refusal")
			}
			// What one request's key has is not the next one's.
			if x := stopped(t, "GET", "/api/v1/org", limited, nil); x.status != 429 || !x.reused {
				t.Errorf("limited: %d", x.status)
			}
			if x := reaches(t, api, "GET", "/api/v1/org", full, nil); !x.reused || x.header.Get("X-RateLimit-Remaining") != "" {
				t.Errorf("the limit of another key: %q", x.header.Get("X-RateLimit-Remaining"))
			}
		}
	})

	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 8 {
			client := newClient(t)
			wg.Go(func() {
				for n := range 25 {
					header, want, status := full, "caller "+id, 200
					switch (i + n) % 3 {
					case 1:
						header, want = project, "caller "+projectID
					case 2:
						header, want, status = publishable, "", 403
					}
					x, err := trySend(t, client, "GET", g.url, "/api/v1/org", header, nil)
					if err != nil || x.status != status || x.header.Get("X-Upstream") != want {
						t.Errorf("%d, %q, want %d, %q: %v", x.status, x.header.Get("X-Upstream"), status, want, err)
						return
					}
				}
			})
		}
		wg.Wait()
	})

	// What a gateway's own configuration gets wrong opens nothing: HAProxy goes on
	// after an error in Lua.
	t.Run("no keyspace is named", func(t *testing.T) {
		broken := startGateway(t, k, strings.TrimPrefix(p.url, "http://"), api.addr(), mirror.addr(), false,
			"default scribe-sight;", `default "";`, `"scribe-sight?`, `"?`, "str(scribe-sight)", "str(scribe-sight) if { path /never }")
		before := api.sent.Load()
		for _, header := range []http.Header{full, with(full, http.Header{"X-Keytrail-Key-Id": {id}}), {}} {
			x := send(t, client, "GET", broken.url, "/api/v1/org", header, nil)
			if x.status != 503 && x.status != 404 || !strings.HasPrefix(x.header.Get("Content-Type"), "application/problem+json") || api.sent.Load() != before {
				t.Errorf("%d %s %s", x.status, x.header.Get("Content-Type"), x.body)
			}
		}
	})

	t.Run("the upstream is down", func(t *testing.T) {
		dead := startGateway(t, k, strings.TrimPrefix(p.url, "http://"), freeAddr(t), freeAddr(t), false)
		if x := send(t, client, "GET", dead.url, "/api/v1/org", full, nil); x.status < 502 || x.status > 504 {
			t.Errorf("%d %s", x.status, x.body)
		}
	})

	t.Run("the verifier is down", func(t *testing.T) {
		p.kill()
		client = newClient(t)
		closed := func(t *testing.T, word string) {
			t.Helper()
			for _, header := range []http.Header{full, with(full, http.Header{"X-Keytrail-Key-Id": {id}, "X-Keytrail-Tenant": {"acme"}}), {}} {
				for _, method := range []string{"GET", "POST"} {
					x := stopped(t, method, "/api/v1/org", header, nil)
					if x.status != 503 || !strings.HasPrefix(x.header.Get("Content-Type"), "application/problem+json") {
						t.Errorf("%s: %s is answered %d %s %s", word, method, x.status, x.header.Get("Content-Type"), x.body)
					}
				}
			}
		}
		if x := stopped(t, "GET", "/api/v1/org", full, nil); x.status != 503 { // HAProxy takes three seconds to be sure
			t.Errorf("no verifier: %d %s", x.status, x.body)
		}
		// Something else at its address.
		var answer atomic.Pointer[string]
		l, err := net.Listen("tcp", strings.TrimPrefix(p.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		var serving sync.WaitGroup
		defer serving.Wait()
		defer l.Close()
		serving.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				serving.Go(func() {
					defer c.Close()
					if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						io.Copy(io.Discard, r.Body)
						io.WriteString(c, *answer.Load())
					}
				})
			}
		})
		for _, a := range []string{
			"",
			"nonsense\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Keytrail-Key-Id: \r\nConnection: close\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Request-Id: req_1\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
			"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
			"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
			"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno",
		} {
			answer.Store(&a)
			closed(t, strconv.Quote(a))
		}
	})
}

// rawExchange writes request as it is and reads one answer.
func rawExchange(t *testing.T, base, request string) passage {
	t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	for err == nil && resp.StatusCode == http.StatusContinue {
		resp, err = http.ReadResponse(in, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return passage{status: resp.StatusCode, header: resp.Header, body: b}
}

func lastURI(u *upstream) string {
	r, _ := u.seen()
	return r.RequestURI
}

// TestGatewayExamples runs each example whole, with the upstream that ships with
// it: what a newcomer sees first.
func TestGatewayExamples(t *testing.T) {
	for _, k := range gatewayKinds {
		t.Run(k.name, func(t *testing.T) {
			k.installed(t)
			p := up(t, filepath.Join(t.TempDir(), "data"), "--trusted-proxy", "127.0.0.1/32")
			p.must(t, "keyspace", "apply", "-f", regime)
			key := p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
			p.wantReason(t, "ok", map[string]any{"key": key["key"], "keyspace": "scribe-sight", "min_position": key["__position"]})
			g := startGateway(t, k, strings.TrimPrefix(p.url, "http://"), freeAddr(t), freeAddr(t), true)
			client := newClient(t)
			x := send(t, client, "GET", g.url, "/api/v1/org", http.Header{"Authorization": {"Bearer " + key["key"].(string)}}, nil)
			for _, want := range []string{"GET /api/v1/org\n", "X-Keytrail-Key-Id: " + key["id"].(string) + "\n", "X-Keytrail-Tenant: acme\n",
				"X-Keytrail-Scopes: read upload write\n", "X-Keytrail-Environment: live\n", "X-Request-Id: " + x.header.Get("X-Request-Id") + "\n",
				"X-Forwarded-For: 127.0.0.1\n", "X-Forwarded-Proto: http\n", "Authorization: \n"} {
				if x.status != 200 || !strings.Contains(string(x.body), want) {
					t.Errorf("%d, no %q in\n%s", x.status, want, x.body)
				}
			}
			if x := send(t, client, "GET", g.url, "/api/v1/org", nil, nil); x.status != 401 {
				t.Errorf("without a key: %d %s", x.status, x.body)
			}
		})
	}
}

// TestGatewayRegimes changes nginx to each of the five regimes by the line that its
// README names: a client gets what the verifier answers under that regime.
func TestGatewayRegimes(t *testing.T) {
	nginx := gatewayKinds[0]
	nginx.installed(t)
	p := up(t, filepath.Join(t.TempDir(), "data"), "--trusted-proxy", "127.0.0.1/32")
	keytrail := strings.TrimPrefix(p.url, "http://")
	division := map[string]any{"kind": "division", "id": "eu"}
	project := map[string]any{"kind": "project", "id": "proj_1"}
	type request struct{ method, path, query string }
	for _, tt := range []struct {
		name    string
		regime  string
		key     map[string]any
		mirror  bool
		https   bool
		allowed []request
		refused map[request]int
	}{
		{name: "lathe-studio", key: map[string]any{"scopes": []string{"builds:create", "results:read", "results:submit"}},
			allowed: []request{{"POST", "/builds", "scope=builds:create"}, {"POST", "/testruns/1/results", "scope=results:submit"}, {"GET", "/testruns/1/results", "scope=results:read"}},
			refused: map[request]int{{"GET", "/builds/1", "scope=builds:read"}: 403, {"PATCH", "/builds/1", "scope=builds:update"}: 403, {"GET", "/testruns/1", "scope=testruns:read"}: 403,
				{"POST", "/testruns", "scope=testruns:create"}: 403, {"DELETE", "/webhooks/1", "scope=webhooks:manage"}: 403, {"GET", "/projects/1", "scope=projects:read"}: 403,
				{"GET", "/billing", "scope=unlisted"}: 403}},
		{name: "lattica", key: map[string]any{"scopes": []string{"read-only"}, "environment": "live"},
			allowed: []request{{"GET", "/v1/tasks", "scope=read-only"}}, refused: map[request]int{{"POST", "/v1/tasks", "scope=read-write"}: 403}},
		{name: "lattica, test key", regime: "lattica", key: map[string]any{"scopes": []string{"read-write"}, "environment": "test", "resources": []any{project}}, mirror: true,
			allowed: []request{{"GET", "/v1/tasks", "scope=read-only"}, {"POST", "/v1/projects/proj_1/tasks", "scope=read-write&resource=project/proj_1"}},
			refused: map[request]int{{"GET", "/v1/projects/proj_2", "scope=read-only&resource=project/proj_2"}: 403, {"GET", "/V1/Projects/proj_2", "scope=read-only&resource=project/proj_2"}: 403}},
		{name: "laserdata", key: map[string]any{"permissions": map[string]any{"scopes": []string{"member:read"}}, "expires_in": "90d"},
			allowed: []request{{"GET", "/tenants/acme/members", "scope=member:read"}},
			refused: map[request]int{{"POST", "/tenants/acme/members", "scope=unlisted"}: 403, {"GET", "/tenants/acme/api_keys", "scope=api_key:manage"}: 403}},
		{name: "laserdata, division key", regime: "laserdata", key: map[string]any{"permissions": map[string]any{"level": "division", "scopes": []string{"deployment:read"}}, "resources": []any{division}, "expires_in": "90d"},
			allowed: []request{{"GET", "/tenants/acme/divisions/eu/deployments", "scope=deployment:read&resource=division/eu"}},
			refused: map[request]int{{"GET", "/tenants/acme/divisions/us/deployments", "scope=deployment:read&resource=division/us"}: 404,
				{"GET", "/tenants/acme/divisions/eu/deployments/1/config", "scope=deployment:config:read&resource=division/eu"}: 403,
				{"PUT", "/tenants/acme/divisions/eu/deployments/1", "scope=deployment:manage&resource=division/eu"}:             403}},
		{name: "scribe-sight", key: map[string]any{"type": "publishable"},
			allowed: []request{{"POST", "/api/v1/projects/proj_1/uploads", "scope=upload&resource=project/proj_1"}},
			refused: map[request]int{{"GET", "/api/v1/org", "scope=read"}: 403, {"POST", "/api/v1/org", "scope=write"}: 403}},
		{name: "workspace", key: map[string]any{"scopes": []string{"write:all"}},
			refused: map[request]int{{"POST", "/v1/projects", "scope=write:all"}: 403}}, // plain HTTP
		{name: "workspace, https", regime: "workspace", key: map[string]any{"scopes": []string{"write:all"}}, https: true,
			allowed: []request{{"POST", "/v1/projects", "scope=write:all"}},
			refused: map[request]int{{"GET", "/v1/projects", "scope=read:all"}: 403, {"POST", "/v1/Team", "scope=admin"}: 403, {"PATCH", "/v1/team", "scope=admin"}: 403, {"DELETE", "/v1/projects/1", "scope=admin"}: 403}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := cmp.Or(tt.regime, tt.name)
			p.must(t, "keyspace", "apply", "-f", filepath.Join(filepath.Dir(regime), name+".yaml"))
			tt.key["tenant"], tt.key["name"] = "acme", tt.name
			key := p.data(t, 201, "POST", "/v1/keyspaces/"+name+"/keys", tt.key)
			p.verify(t, map[string]any{"key": key["key"], "keyspace": name, "min_position": key["__position"]}) // it is known now
			header := http.Header{"Authorization": {"Bearer " + key["key"].(string)}}
			if name == "laserdata" {
				header = http.Header{"Ld-Api-Key": {key["key"].(string)}}
			}
			api, mirror := newUpstream(t), newUpstream(t)
			change := []string{"include regimes/scribe-sight.conf;", "include regimes/" + name + ".conf;"}
			client, proto := newClient(t), "http"
			if tt.https {
				cert, pool := certificate(t)
				change = append(change, "listen 127.0.0.1:8080;", "listen 127.0.0.1:8080 ssl; ssl_certificate "+cert+"; ssl_certificate_key "+cert+";")
				client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}
				proto = "https"
			}
			g := startGateway(t, nginx, keytrail, api.addr(), mirror.addr(), false, change...)
			g.url = proto + strings.TrimPrefix(g.url, "http")
			u := api
			if tt.mirror {
				u = mirror
			}
			for i, r := range tt.allowed {
				x := send(t, client, r.method, g.url, r.path, header, nil)
				if x.status != 200 || u.hits.Load() != int64(i+1) {
					t.Fatalf("%s %s: %d %s", r.method, r.path, x.status, x.body)
				}
				seen, _ := u.seen()
				direct := send(t, newClient(t), "GET", p.url, "/v1/authorize/"+name+"?"+r.query, withHeader(header, proto), nil)
				for _, h := range []string{"X-Keytrail-Key-Id", "X-Keytrail-Tenant", "X-Keytrail-Type", "X-Keytrail-Scopes", "X-Keytrail-Environment"} {
					if direct.status != 200 || direct.header.Get(h) != seen.Header.Get(h) {
						t.Errorf("%s %s: %s is %q at the upstream, the verifier says %d %q", r.method, r.path, h, seen.Header.Get(h), direct.status, direct.header.Get(h))
					}
				}
				for h := range direct.header {
					if strings.Contains(h, "Ratelimit") && x.header.Get(h) == "" {
						t.Errorf("%s does not reach the client", h)
					}
				}
				if seen.Header.Get("Authorization")+seen.Header.Get("ld-api-key") != "" {
					t.Error("the secret reached the upstream")
				}
			}
			if len(tt.allowed) > 0 {
				r := tt.allowed[0]
				tt.refused[request{r.method, r.path, r.query + " without a key"}] = 401
			}
			for r, status := range tt.refused {
				header := header
				query, found := strings.CutSuffix(r.query, " without a key")
				if found {
					header = http.Header{}
				}
				var diff string
				for range 5 { // a limit stands in some: it counts each of the two
					direct := send(t, newClient(t), "GET", p.url, "/v1/authorize/"+name+"?"+query, withHeader(header, proto), nil)
					x := send(t, client, r.method, g.url, r.path, header, nil)
					if x.status != status {
						t.Fatalf("%s %s: %d %s, want %d", r.method, r.path, x.status, x.body, status)
					}
					for _, h := range []string{"X-Ratelimit-Remaining", "X-Ratelimit-Reset"} {
						if len(x.header.Values(h)) == len(direct.header.Values(h)) {
							x.header.Del(h)
							direct.header.Del(h)
						}
					}
					if diff = sameRefusal(direct, x); diff == "" {
						break
					}
				}
				if diff != "" {
					t.Errorf("%s %s: %s", r.method, r.path, diff)
				}
			}
			if n := api.hits.Load() + mirror.hits.Load(); n != int64(len(tt.allowed)) {
				t.Errorf("%d requests reached an upstream, %d were allowed", n, len(tt.allowed))
			}
		})
	}
}

// TestNewcomer does what a newcomer does: apply a regime, make a key, start nginx
// with the example as it ships and its upstream. The answers are those of the
// regime's document, bodies and all.
func TestNewcomer(t *testing.T) {
	nginx := gatewayKinds[0]
	nginx.installed(t)
	p := up(t, filepath.Join(t.TempDir(), "data"), "--trusted-proxy", "127.0.0.1/32")
	one := map[string]any{"per_minute": 1, "burst": 1}
	problem := func(status int, title, code, detail string) string {
		return fmt.Sprintf(`{"type":"about:blank","title":%q,"status":%d,"detail":%q,"code":%q,"request_id":"id"}`, title, status, detail, code)
	}
	const (
		missing = "no key was presented"
		scope   = "the key does not hold the scope that this needs"
	)
	const (
		withKey = iota
		anonymous
		revoked
	)
	type step struct {
		method, path string
		as           int
		status       int
		body         string // JSON with "id" for the request's id; of 200 the upstream's line for X-Keytrail-Scopes
	}
	for _, tt := range []struct {
		name   string
		regime string
		key    map[string]any
		tenant bool // its keys share a bucket of one
		https  bool
		header string // that holds the key alone; default Authorization: Bearer
		limits []string
		steps  []step
	}{
		{name: "lathe-studio", key: map[string]any{"scopes": []string{"builds:create"}}, steps: []step{
			{"POST", "/builds", anonymous, 401, problem(401, "Unauthorized", "key_missing", missing)},
			{"GET", "/builds", withKey, 403, problem(403, "Forbidden", "scope_missing", scope)},
			{"POST", "/builds", withKey, 200, "builds:create"},
			{"POST", "/builds", revoked, 401, problem(401, "Unauthorized", "key_revoked", "the key is revoked")},
		}},
		{name: "lattica", key: map[string]any{"scopes": []string{"read-only"}, "expires_in": "90d"}, tenant: true, limits: []string{"X-Ratelimit-Remaining", "X-Ratelimit-Reset"}, steps: []step{
			{"GET", "/v1/tasks", anonymous, 401, `{"error":{"code":"key_missing","message":"no key was presented","request_id":"id"}}`},
			{"POST", "/v1/tasks", withKey, 403, `{"error":{"code":"scope_missing","message":"the key does not hold the scope that this needs","request_id":"id"}}`},
			{"GET", "/v1/tasks?limit=100", withKey, 200, "read-only"},
			{"GET", "/v1/tasks", withKey, 429, `{"error":{"code":"rate_limited","message":"the tenant's rate limit is used up","request_id":"id"}}`},
			{"GET", "/v1/tasks", revoked, 401, `{"error":{"code":"key_revoked","message":"the key is revoked","request_id":"id"}}`},
		}},
		{name: "laserdata", header: "Ld-Api-Key", key: map[string]any{"permissions": map[string]any{"level": "division", "scopes": []string{"deployment:read"}},
			"resources": []any{map[string]any{"kind": "division", "id": "eu"}}, "limit": one, "expires_in": "90d"}, steps: []step{
			{"GET", "/tenants/acme/divisions/eu/deployments", anonymous, 401, `{"code":"unauthorized","reason":"Key missing, malformed, expired, or revoked"}`},
			{"POST", "/tenants/acme/divisions/eu/deployments", withKey, 403, `{"code":"insufficient_permissions","reason":"Key valid but missing the required permission"}`},
			{"GET", "/tenants/acme/divisions/us/deployments", withKey, 404, `{"code":"not_found","reason":"Resource does not exist or is not visible to this key"}`},
			{"GET", "/tenants/acme/divisions/eu/deployments", withKey, 200, "deployment:read"},
			{"GET", "/tenants/acme/divisions/eu/deployments", withKey, 429, `{"code":"rate_limited","reason":"Per-key rate limit exceeded; check Retry-After"}`},
			{"GET", "/tenants/acme/divisions/eu/deployments", revoked, 401, `{"code":"unauthorized","reason":"Key missing, malformed, expired, or revoked"}`},
		}},
		{name: "laserdata, a blocked IP", regime: "laserdata", header: "Ld-Api-Key", key: map[string]any{"permissions": map[string]any{"scopes": []string{"member:read"}},
			"allowlist": []string{"203.0.113.0/24"}, "expires_in": "90d"}, steps: []step{
			{"GET", "/tenants/acme/members", withKey, 403, `{"code":"ip_not_allowed","reason":"Request from a blocked IP"}`},
			{"GET", "/tenants/acme/members", revoked, 403, `{"code":"ip_not_allowed","reason":"Request from a blocked IP"}`},
		}},
		{name: "scribe-sight", key: map[string]any{"scopes": []string{"read"}, "resources": []any{map[string]any{"kind": "project", "id": "proj_xxx"}}}, steps: []step{
			{"GET", "/api/v1/org", anonymous, 401, `{"error":{"code":"authentication_required","message":"Invalid or missing API key"},"meta":{"request_id":"id"}}`},
			{"POST", "/api/v1/projects/proj_xxx/files", withKey, 403, `{"error":{"code":"insufficient_permissions","message":"Key lacks required scope"},"meta":{"request_id":"id"}}`},
			{"GET", "/api/v1/projects/proj_yyy/files", withKey, 403, `{"error":{"code":"insufficient_permissions","message":"Key is restricted to other projects"},"meta":{"request_id":"id"}}`},
			{"GET", "/api/v1/org", withKey, 200, "read"},
			{"GET", "/api/v1/org", revoked, 401, `{"error":{"code":"authentication_required","message":"Invalid or missing API key"},"meta":{"request_id":"id"}}`},
		}},
		{name: "workspace", key: map[string]any{"scopes": []string{"read:all"}}, steps: []step{
			{"GET", "/v1/projects", withKey, 403, problem(403, "Forbidden", "https_required", "plain HTTP is refused: use HTTPS, and replace a key that went over the wire in the clear")},
		}},
		{name: "workspace, https", regime: "workspace", https: true, key: map[string]any{"scopes": []string{"admin"}, "limit": one},
			limits: []string{"X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Ratelimit-Reset"}, steps: []step{
				{"GET", "/v1/projects", anonymous, 401, problem(401, "Unauthorized", "key_missing", missing)},
				{"GET", "/v1/billing", withKey, 200, "admin read:all write:all"},
				{"PATCH", "/v1/projects/1", withKey, 429, problem(429, "Too Many Requests", "rate_limited", "the key's rate limit is used up")},
				{"GET", "/v1/projects", revoked, 401, problem(401, "Unauthorized", "key_revoked", "the key is revoked")},
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name, header, scheme, tenant := cmp.Or(tt.regime, tt.name), "Authorization", "Bearer ", "newcomer"
			if tt.header != "" {
				header, scheme = tt.header, ""
			}
			p.must(t, "keyspace", "apply", "-f", filepath.Join(filepath.Dir(regime), name+".yaml"))
			if tt.tenant {
				p.data(t, 200, "PUT", "/v1/keyspaces/"+name+"/tenants/"+tenant+"/limit", map[string]any{"limit": one})
			}
			tt.key["tenant"], tt.key["name"] = tenant, tt.name
			key := p.data(t, 201, "POST", "/v1/keyspaces/"+name+"/keys", tt.key)
			known := func(at any) { // takes nothing from a limit
				p.verify(t, map[string]any{"key": key["key"], "keyspace": name, "scope": "none", "min_position": at})
			}
			known(key["__position"])
			change := []string{"include regimes/scribe-sight.conf;", "include regimes/" + name + ".conf;"}
			client, proto := newClient(t), "http"
			if tt.https {
				cert, pool := certificate(t)
				change = append(change, "listen 127.0.0.1:8080;", "listen 127.0.0.1:8080 ssl; ssl_certificate "+cert+"; ssl_certificate_key "+cert+";")
				client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}
				proto = "https"
			}
			g := startGateway(t, nginx, strings.TrimPrefix(p.url, "http://"), freeAddr(t), freeAddr(t), true, change...)
			url := proto + strings.TrimPrefix(g.url, "http")
			ended := false
			for _, s := range tt.steps {
				h := http.Header{}
				if s.as != anonymous {
					h.Set(header, scheme+key["key"].(string))
				}
				if s.as == revoked && !ended {
					known(p.data(t, 200, "DELETE", "/v1/keys/"+key["id"].(string), nil)["__position"])
					ended = true
				}
				x := send(t, client, s.method, url, s.path, h, nil)
				what := fmt.Sprintf("%s %s as %d", s.method, s.path, s.as)
				if x.status != s.status {
					t.Fatalf("%s: %d %s, want %d", what, x.status, x.body, s.status)
				}
				id := x.header.Get("X-Request-Id")
				if s.status == 200 {
					for _, line := range []string{s.method + " " + s.path, "X-Keytrail-Key-Id: " + key["id"].(string), "X-Keytrail-Tenant: " + tenant, "X-Keytrail-Scopes: " + s.body, "X-Request-Id: " + id} {
						if !strings.Contains(string(x.body), line+"\n") {
							t.Errorf("%s: no %q reached the upstream:\n%s", what, line, x.body)
						}
					}
				} else {
					var got, want any
					if err := json.Unmarshal(x.body, &got); err != nil {
						t.Fatalf("%s: %v\n%s", what, err, x.body)
					}
					if err := json.Unmarshal([]byte(s.body), &want); err != nil {
						t.Fatal(err)
					}
					if !reflect.DeepEqual(replace(got, id, "id"), want) {
						t.Errorf("%s: %s\nwant %s", what, x.body, s.body)
					}
				}
				for _, l := range tt.limits {
					if has := len(x.header.Values(l)) == 1; has != (s.as != anonymous) {
						t.Errorf("%s: %s: %q", what, l, x.header.Values(l))
					}
				}
				if seconds, _ := strconv.Atoi(x.header.Get("Retry-After")); (seconds > 0) != (s.status == 429) {
					t.Errorf("%s: Retry-After: %q", what, x.header.Get("Retry-After"))
				}
				if has := x.header.Get("WWW-Authenticate") != ""; has != (s.status == 401) {
					t.Errorf("%s: WWW-Authenticate: %q", what, x.header.Get("WWW-Authenticate"))
				}
			}
		})
	}
}

// withHeader is h as a gateway on this machine passes it on.
func withHeader(h http.Header, proto string) http.Header {
	h = maps.Clone(h)
	h.Set("X-Forwarded-For", "127.0.0.1")
	h.Set("X-Forwarded-Proto", proto)
	return h
}

// certificate writes a certificate for 127.0.0.1 and its key into one file.
func certificate(t *testing.T) (file string, pool *x509.CertPool) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, priv)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(cert)
	b := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	return writeFile(t, "gateway.pem", string(b)), pool
}
