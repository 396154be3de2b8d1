package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// hop is an API behind a gateway that shows what reached it, whatever it was.
type hop struct {
	*httptest.Server
	mu   sync.Mutex
	seen []seen
}

// seen is one request as it reached the API.
type seen struct {
	method, uri, proto string
	header, trailer    http.Header
	length             int64
	sum                [sha256.Size]byte
}

func newHop(t *testing.T) *hop {
	h := &hop{}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := seen{method: r.Method, uri: r.RequestURI, proto: r.Proto, header: r.Header}
		sum := sha256.New()
		s.length, _ = io.Copy(sum, r.Body)
		s.sum, s.trailer = [sha256.Size]byte(sum.Sum(nil)), r.Trailer
		h.mu.Lock()
		h.seen = append(h.seen, s)
		h.mu.Unlock()
		if origin := r.URL.Query().Get("cors"); origin != "" {
			w.Header().Set("Access-Control-Allow-Origin", origin)
			w.Header().Set("Access-Control-Allow-Credentials", "true")
		}
		if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || !strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
			io.WriteString(w, "of the API")
			return
		}
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		accept := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455, 4.2.2
		fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(accept[:]))
		rw.Flush()
		line, _ := rw.ReadString('\n')
		rw.WriteString("echo " + line)
		rw.Flush()
	}))
	t.Cleanup(h.Close)
	return h
}

// take returns what reached the API since it was last asked.
func (h *hop) take() []seen {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := h.seen
	h.seen = nil
	return out
}

func (h *hop) addr() string { return h.Listener.Addr().String() }

// readable says why a page of the origin could not read the answer, as the Fetch
// standard has it for a request without cookies.
func (x passage) readable(origin string) string {
	if allow := x.header.Values("Access-Control-Allow-Origin"); len(allow) != 1 || allow[0] != "*" && allow[0] != origin {
		return fmt.Sprintf("Access-Control-Allow-Origin: %q", allow)
	}
	if expose := x.header.Values("Access-Control-Expose-Headers"); len(expose) != 1 || expose[0] != "*" {
		return fmt.Sprintf("Access-Control-Expose-Headers: %q", expose)
	}
	return ""
}

// TestGatewayHops tries, at each gateway, what the hop before it and the hop
// behind it may do: methods, sizes, addresses, protocols, web pages.
func TestGatewayHops(t *testing.T) {
	t.Parallel()
	for _, k := range gatewayKinds {
		t.Run(k.name, func(t *testing.T) { testGatewayHops(t, k) })
	}
}

func testGatewayHops(t *testing.T, k gatewayKind) {
	k.installed(t)
	p := up(t, filepath.Join(t.TempDir(), "data"), "--trusted-proxy", "127.0.0.1/32")
	keytrail := strings.TrimPrefix(p.url, "http://")
	h := newHop(t)
	start := func(t *testing.T, change ...string) *gateway {
		t.Helper()
		return startGateway(t, k, keytrail, h.addr(), h.addr(), false, change...)
	}
	// The keyspace of the shipped configuration, with more scopes than fit into a header.
	var many []string
	scopes := []any{map[string]any{"name": "read"}, map[string]any{"name": "write", "implies": []string{"read"}}, map[string]any{"name": "upload"}}
	for i := range 196 {
		many = append(many, fmt.Sprintf("scope-%03d:%s", i, strings.Repeat("x", 89)))
		scopes = append(scopes, map[string]any{"name": many[i]})
	}
	p.data(t, 200, "PUT", "/v1/keyspaces/scribe-sight", map[string]any{
		"key_types": []any{map[string]any{"name": "secret", "environments": []string{"live"}, "prefix": "sk_live_"}},
		"scopes":    scopes, "resources": []string{"project"}, "cors": map[string]any{"origins": []string{"https://app.example.com"}},
	})
	create := func(body map[string]any) (id string, header http.Header) {
		t.Helper()
		body["tenant"] = "acme"
		k := p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", body)
		p.reached(t, map[string]any{"key": k["key"], "keyspace": "scribe-sight", "scope": "unlisted", "min_position": k["__position"]}) // it is known now
		return k["id"].(string), http.Header{"Authorization": {"Bearer " + k["key"].(string)}}
	}
	id, reader := create(map[string]any{"name": "reader", "scopes": []string{"read"}, "allowlist": []string{"127.0.0.1/32", "::1/128"}})
	_, writer := create(map[string]any{"name": "writer", "scopes": []string{"write"}})
	_, project := create(map[string]any{"name": "project", "scopes": []string{"write"}, "resources": []any{map[string]any{"kind": "project", "id": "proj_1"}}})
	_, strongest := create(map[string]any{"name": "strongest", "scopes": append([]string{"read", "write", "upload"}, many...)})
	_, limited := create(map[string]any{"name": "limited", "scopes": []string{"read"}, "limit": map[string]any{"per_minute": 1, "burst": 1}})
	with := func(h http.Header, more ...string) http.Header {
		out := maps.Clone(h)
		for i := 0; i < len(more); i += 2 {
			out.Add(more[i], more[i+1])
		}
		return out
	}
	client := newClient(t)
	g := start(t)
	raw := func(request string) passage { t.Helper(); return rawExchange(t, g.url, request) }
	authorization := func(h http.Header) string { return "Authorization: " + h.Get("Authorization") + "\r\n" }

	t.Run("methods", func(t *testing.T) {
		for method, want := range map[string]int{"GET": 200, "HEAD": 200, "POST": 403, "PUT": 403, "PATCH": 403, "DELETE": 403, "OPTIONS": 403, "PURGE": 403} {
			x := send(t, client, method, g.url, "/api/v1/org", reader, nil)
			if n := len(h.take()); x.status != want || (n == 1) != (want == 200) {
				t.Errorf("%s with read alone: %d, %d requests reached the API", method, x.status, n)
			}
		}
	})

	t.Run("web pages", func(t *testing.T) {
		const origin, another = "https://app.example.com", "https://other.example.com"
		// A browser asks first, without a key, whether it may send one. The definition says.
		for _, method := range []string{"GET", "POST", "DELETE", "PUT", "PATCH"} {
			for _, path := range []string{"/api/v1/org", "/api/v1/projects/proj_1/files"} {
				for page, allow := range map[string]string{origin: origin, another: ""} {
					x := send(t, client, "OPTIONS", g.url, path, http.Header{"Origin": {page}, "Access-Control-Request-Method": {method},
						"Access-Control-Request-Headers": {"authorization,content-type,ld-api-key"}}, nil)
					headers := x.header.Get("Access-Control-Allow-Headers")
					if x.status/100 != 2 || strings.Join(x.header.Values("Access-Control-Allow-Origin"), "|") != allow || x.header.Get("Access-Control-Allow-Credentials") != "" ||
						allow != "" && (!strings.Contains(x.header.Get("Access-Control-Allow-Methods"), method) || !strings.Contains(headers, "Authorization") || !strings.Contains(headers, "*")) {
						t.Errorf("a preflight of %s for %s %s: %d %v", page, method, path, x.status, x.header)
					}
				}
			}
		}
		// Only that is let off the key: an upstream may run its handler for any method.
		for _, header := range []http.Header{{}, {"Origin": {origin}}, {"Access-Control-Request-Method": {"GET"}}} {
			if x := send(t, client, "OPTIONS", g.url, "/api/v1/org", header, nil); x.status != 401 {
				t.Errorf("OPTIONS with %v: %d", header, x.status)
			}
		}
		send(t, client, "OPTIONS", g.url, "/api/v1/org", with(writer, "Origin", origin, "Access-Control-Request-Method", "POST"), []byte("a body"))
		if n := len(h.take()); n != 0 {
			t.Errorf("%d preflights reached the API", n)
		}
		// A refusal can be read by the pages that the definition allows, an answer of the
		// gateway's own by all. Neither says anything of pages to others.
		send(t, client, "GET", g.url, "/api/v1/org", limited, nil)
		h.take()
		tooLarge := 40 << 10
		if k.name == "caddy" { // takes up to a megabyte: Keytrail refuses
			tooLarge = 80 << 10
		}
		for _, c := range []struct {
			name, path string
			header     http.Header
			status     int
			own        bool
		}{
			{"no key", "/api/v1/org", http.Header{}, 401, false},
			{"scope", "/api/v1/projects/proj_2", project, 403, false},
			{"limit", "/api/v1/org", limited, 429, false},
			{"odd path", "/api/v1//org", reader, 400, true},
			{"headers too large", "/api/v1/org", with(reader, "X-Large", strings.Repeat("x", tooLarge)), 431, true},
		} {
			x := send(t, client, "GET", g.url, c.path, with(c.header, "Origin", origin), nil)
			if why := x.readable(origin); x.status != c.status || why != "" && !(c.own && k.bare()) {
				t.Errorf("%s: %d, %s", c.name, x.status, why)
			}
			if x = send(t, client, "GET", g.url, c.path, with(c.header, "Origin", another), nil); x.status != c.status || (x.readable(another) == "") != (c.own && !k.bare()) {
				t.Errorf("%s, from another page: %d %v", c.name, x.status, x.header)
			}
			x = send(t, client, "GET", g.url, c.path, c.header, nil)
			if v := x.header.Values("Access-Control-Allow-Origin"); x.status != c.status || len(v) != 0 {
				t.Errorf("%s, not from a page: %d, %q", c.name, x.status, v)
			}
		}
		// The upstream's answers are the upstream's.
		for _, cors := range []string{"", origin, "https://other.example.com"} {
			x := send(t, client, "GET", g.url, "/api/v1/org?cors="+cors, with(reader, "Origin", origin), nil)
			got := x.header.Values("Access-Control-Allow-Origin")
			if x.status != 200 || strings.Join(got, "|") != cors || len(got) > 1 || (x.header.Get("Access-Control-Allow-Credentials") != "") != (cors != "") {
				t.Errorf("an upstream that says %q: %d, %q", cors, x.status, got)
			}
		}
		h.take()
	})

	t.Run("websocket", func(t *testing.T) {
		upgrade := func(headers string) (status int, line string) {
			t.Helper()
			c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			fmt.Fprintf(c, "GET /api/v1/socket HTTP/1.1\r\nHost: api\r\n%sSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", headers)
			in := bufio.NewReader(c)
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode == http.StatusSwitchingProtocols {
				io.WriteString(c, "hello\n")
				line, _ = in.ReadString('\n')
			}
			return resp.StatusCode, line
		}
		for _, ask := range []string{"Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: keep-alive, Upgrade, X-Keytrail-Tenant, X-Keytrail-Key-Id\r\nUpgrade: WebSocket\r\n"} {
			if status, line := upgrade(ask + authorization(reader) + "X-Keytrail-Tenant: forged\r\n"); status != 101 || line != "echo hello\n" {
				t.Errorf("%q: %d %q", ask, status, line)
			}
			s := h.take()
			if len(s) != 1 || s[0].header.Get("X-Keytrail-Key-Id") != id || s[0].header.Get("X-Keytrail-Tenant") != "acme" || s[0].header.Get("Authorization") != "" {
				t.Errorf("%q: the API sees %v", ask, s)
			}
			if status, _ := upgrade(ask); status != 401 || len(h.take()) != 0 {
				t.Errorf("%q without a key: %d", ask, status)
			}
		}
		for _, other := range []string{"h2c", "websocket, h2c", "TLS/1.0", "websockets"} {
			if status, _ := upgrade("Connection: Upgrade\r\nUpgrade: " + other + "\r\n" + authorization(reader)); status == 101 {
				t.Errorf("Upgrade: %s is let through", other)
			}
			for _, s := range h.take() {
				if s.header.Get("Upgrade") != "" {
					t.Errorf("Upgrade: %s reached the API as %q", other, s.header.Get("Upgrade"))
				}
			}
		}
	})

	t.Run("sizes of bodies", func(t *testing.T) {
		// The limit is raised where the API's requests are, and nowhere else.
		g := start(t, "location / {\n", "location / {\n\t\tclient_max_body_size 128m;\n")
		body := bytes.Repeat([]byte("0123456789abcdef"), 100<<20/16)
		for _, chunked := range []bool{false, true} {
			r, err := http.NewRequestWithContext(t.Context(), "POST", g.url+"/api/v1/org", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if chunked {
				r.ContentLength = -1
			}
			r.Header = writer.Clone()
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			s := h.take()
			if resp.StatusCode != 200 || len(s) != 1 || s[0].length != int64(len(body)) || s[0].sum != sha256.Sum256(body) {
				t.Errorf("100 MB, chunked %t: %d", chunked, resp.StatusCode)
			}
		}
		// Of a refused body a gateway need not read all; it never becomes a 5xx.
		if x, err := trySend(t, newClient(t), "POST", g.url, "/api/v1/org", http.Header{}, body); err == nil && x.status != 401 || len(h.take()) != 0 {
			t.Errorf("100 MB without a key: %d", x.status)
		}
	})

	t.Run("sizes of headers", func(t *testing.T) {
		for _, one := range []bool{true, false} {
			refused := 0
			for _, size := range []int{1 << 10, 4 << 10, 7 << 10, 12 << 10, 20 << 10, 28 << 10, 36 << 10, 44 << 10, 80 << 10, 200 << 10} {
				header := maps.Clone(reader)
				if one {
					header.Set("X-Large", strings.Repeat("x", size))
				} else {
					for i := 0; i < size; i += 1 << 10 {
						header.Set(fmt.Sprintf("X-Large-%d", i), strings.Repeat("x", 1<<10-20))
					}
				}
				x, err := trySend(t, newClient(t), "GET", g.url, "/api/v1/org", header, nil)
				n := len(h.take())
				if k.name == "haproxy" && size > 100<<10 && n == 0 && (err != nil || x.status == 400) {
					continue // it closes the connection when its own buffer is full
				}
				if err != nil {
					t.Fatalf("%d bytes: %v", size, err)
				}
				switch {
				case x.status == 200 && n == 1 && refused == 0:
				case x.status == 431 && n == 0 && size > 7<<10 && x.header.Get("Retry-After") == "":
					refused++
				default:
					t.Errorf("%d bytes, in one header %t: %d, %d requests reached the API", size, one, x.status, n)
				}
			}
			if refused == 0 {
				t.Error("no size was too large: the test tries too little")
			}
		}
		// A gateway that takes more than Keytrail reads says so too.
		large := start(t, "client_max_body_size 64m;", "client_max_body_size 64m; large_client_header_buffers 8 128k;",
			"tune.bufsize 98304", "tune.bufsize 524288", "gt 32768", "gt 400000")
		x := send(t, newClient(t), "GET", large.url, "/api/v1/org", with(reader, "X-Large", strings.Repeat("x", 100<<10)), nil)
		if n := len(h.take()); x.status != 431 || n != 0 || x.header.Get("Retry-After") != "" {
			t.Errorf("100 KB: %d %v, %d requests reached the API", x.status, x.header, n)
		}
	})

	t.Run("the strongest key", func(t *testing.T) {
		x := send(t, client, "GET", g.url, "/api/v1/org", with(strongest, "X-Keytrail-Scopes", "forged", "X-Keytrail-Scopes-Omitted", "forged"), nil)
		s := h.take()
		if x.status != 200 || len(s) != 1 || s[0].header.Get("X-Keytrail-Scopes") != "" || s[0].header.Get("X-Keytrail-Scopes-Omitted") != "199" {
			t.Errorf("%d, the API sees %v", x.status, s)
		}
		x = send(t, client, "GET", g.url, "/api/v1/org", with(writer, "X-Keytrail-Scopes-Omitted", "forged"), nil)
		s = h.take()
		if x.status != 200 || len(s) != 1 || s[0].header.Get("X-Keytrail-Scopes") != "read write" || s[0].header.Get("X-Keytrail-Scopes-Omitted") != "" {
			t.Errorf("%d, the API sees %v", x.status, s)
		}
	})

	t.Run("forms of requests", func(t *testing.T) {
		for _, c := range []struct {
			name, request string
			statuses      []int
			uri           string // that reaches the API; "" = nothing may
		}{
			{"HTTP/1.0", "GET /api/v1/org HTTP/1.0\r\n" + authorization(reader) + "\r\n", []int{200, 400}, "/api/v1/org"},
			{"absolute form", "GET http://api/api/v1/org HTTP/1.1\r\nHost: api\r\nConnection: close\r\n" + authorization(reader) + "\r\n", []int{200, 400}, "/api/v1/org"},
			{"absolute form, another project", "GET http://api/api/v1/projects/proj_2 HTTP/1.1\r\nHost: api\r\nConnection: close\r\n" + authorization(project) + "\r\n", []int{403, 400}, ""},
			{"absolute form, another host's path", "GET http://api/api/v1/org/../projects/proj_2 HTTP/1.1\r\nHost: api\r\nConnection: close\r\n" + authorization(project) + "\r\n", []int{400}, ""},
			{"two hosts", "GET /api/v1/org HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n" + authorization(reader) + "\r\n", []int{400}, ""},
			{"two lengths", "POST /api/v1/org HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\nConnection: close\r\n" + authorization(writer) + "\r\nhello!", []int{400}, ""},
			{"a folded key", "GET /api/v1/org HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-A: b\r\n " + authorization(reader) + "\r\n", []int{400, 401}, ""},
			{"a space before the colon", "GET /api/v1/org HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + strings.Replace(authorization(reader), ":", " :", 1) + "\r\n", []int{400, 401}, ""},
			{"a key in a trailer", "POST /api/v1/org HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTrailer: Authorization\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + authorization(writer) + "\r\n", []int{401}, ""},
		} {
			x := raw(c.request)
			s := h.take()
			if !slices.Contains(c.statuses, x.status) || len(s) > 1 || len(s) == 1 && (x.status != 200 || s[0].uri != c.uri) || len(s) == 0 && x.status == 200 {
				t.Errorf("%s: %d %s, the API sees %v", c.name, x.status, x.body, s)
			}
		}
		// What hides behind a body is no request of its own.
		for _, framing := range []string{"Content-Length: 6\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 6", "Transfer-Encoding: xchunked\r\nContent-Length: 6",
			"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"} {
			c, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "POST /api/v1/org HTTP/1.1\r\nHost: api\r\n%s%s\r\n\r\n0\r\n\r\nGET /api/v1/projects/proj_2 HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n", authorization(writer), framing)
			c.SetReadDeadline(time.Now().Add(patience))
			io.Copy(io.Discard, c)
			c.Close()
			for _, s := range h.take() {
				if s.uri != "/api/v1/org" || s.header.Get("X-Keytrail-Key-Id") == "" {
					t.Errorf("%q: %s %s reached the API", framing, s.method, s.uri)
				}
			}
		}
		// Trailers name no caller.
		raw("POST /api/v1/org HTTP/1.1\r\nHost: api\r\nConnection: close\r\n" + authorization(writer) + "Trailer: X-Keytrail-Tenant, X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Keytrail-Tenant: forged\r\nX-Sum: 1\r\n\r\n")
		for _, s := range h.take() {
			if s.header.Get("X-Keytrail-Tenant") != "acme" {
				t.Errorf("a trailer became a header: %v", s.header)
			}
			// HAProxy 2.6 cannot take trailers away: its README says so.
			if k.name != "haproxy" && s.trailer.Get("X-Keytrail-Tenant") != "" {
				t.Errorf("trailers reach the API: %v", s.trailer)
			}
		}
	})

	t.Run("an IPv6 client", func(t *testing.T) {
		if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
			t.Skip("this machine has no IPv6")
		} else {
			l.Close()
		}
		g := start(t, "listen 127.0.0.1:8080;", "listen [::1]:8080;", "bind 127.0.0.1\n\troute", "bind [::1]\n\troute", "bind 127.0.0.1:8080", "bind [::1]:8080", "address: 127.0.0.1:8080", "address: '[::1]:8080'")
		x := send(t, newClient(t), "GET", g.url, "/api/v1/org", reader, nil)
		if s := h.take(); x.status != 200 || len(s) != 1 || s[0].header.Get("X-Forwarded-For") != "::1" {
			t.Errorf("%d %s, the API sees %v", x.status, x.body, s)
		}
	})

	t.Run("gRPC", func(t *testing.T) {
		g := start(t, "listen 127.0.0.1:8080;", "listen 127.0.0.1:8080 http2;", "auto_https off", "auto_https off\n\tservers {\n\t\tprotocols h1 h2c\n\t}", "bind 127.0.0.1:8080", "bind 127.0.0.1:8080 proto h2")
		conn, err := grpc.NewClient(strings.TrimPrefix(g.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		for _, c := range []struct {
			name, method string
			key          http.Header
			code         codes.Code
			message      string
		}{
			{"no key", "/api/v1/org", nil, codes.Unauthenticated, "no key was presented"},
			{"scope", "/api/v1/org", reader, codes.PermissionDenied, "the key does not hold the scope that this needs"},
			{"resource", "/api/v1/projects/proj_2", project, codes.PermissionDenied, "the key does not reach this resource"},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if c.key != nil {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", c.key.Get("Authorization"))
			}
			err := conn.Invoke(ctx, c.method, &emptypb.Empty{}, &emptypb.Empty{})
			cancel()
			// Traefik answers with the HTTP status of a refusal, which names the code alone.
			if s := status.Convert(err); s.Code() != c.code || s.Message() != c.message && !k.bare() {
				t.Errorf("%s: %v", c.name, err)
			}
		}
		if n := len(h.take()); n != 0 {
			t.Errorf("%d calls reached the API", n)
		}
	})

	// Keytrail takes a segment of the path that the gateway was asked for, and not of one
	// that the client tells.
	t.Run("a segment of the path", func(t *testing.T) {
		if k.name != "nginx" && k.name != "traefik" {
			t.Skip("it tells Keytrail no path")
		}
		g := start(t, "project/$kt_id", `"project/{4}"`)
		forged := project.Clone()
		forged.Set("X-Forwarded-Uri", "/api/v1/projects/proj_1")
		for path, want := range map[string]int{"/api/v1/projects/proj_1/files?a=b": 200, "/api/v1/projects/proj_2/files": 403, "/api/v1/projects/%7B4%7D": 403} {
			x := send(t, client, "GET", g.url, path, forged, nil)
			if n := len(h.take()); x.status != want || (n == 1) != (want == 200) {
				t.Errorf("%s: %d %s, %d requests reached the API", path, x.status, x.body, n)
			}
		}
	})

	// A misspelt word of the gateway's configuration opens nothing, whatever the key,
	// and the operator is told.
	t.Run("a misspelt configuration", func(t *testing.T) {
		for fault, change := range map[string][]string{
			"keyspace":      {"default scribe-sight;", "default scribe-sihgt;", "vars kt_keyspace scribe-sight", "vars kt_keyspace scribe-sihgt", "str(${KEYTRAIL_KEYSPACE})", "str(scribe-sihgt)", "/v1/authorize/{{ $keyspace }}", "/v1/authorize/scribe-sihgt"},
			"scope":         {"read;", "raed;", `HEAD) " read`, `HEAD) " raed`, "HEAD)/ read", "HEAD)/ raed", `"read" "GET HEAD"`, `"raed" "GET HEAD"`},
			"resource kind": {"project/$kt_id", "projcet/$kt_id", "project/${1}", "projcet/${1}", `project/\1`, `projcet/\1`, "project/{4}", "projcet/{4}"},
		} {
			g := start(t, change...)
			for _, header := range []http.Header{reader, project, {}} {
				x := send(t, client, "GET", g.url, "/api/v1/projects/proj_1/files", header, nil)
				if n := len(h.take()); x.status != 503 || n != 0 || !strings.Contains(string(x.body), `"code":"gateway_misconfigured"`) {
					t.Errorf("%s: %d %s, %d requests reached the API", fault, x.status, x.body, n)
				}
			}
			patient{t, p.url, p.root}.eventuallySays(nil, "FAIL", fmt.Sprintf("with the fault %q", fault))
		}
	})
}

// TestGatewaysAskForWhatIsDeclared holds the scopes and kinds that the shipped
// configurations ask for against the documents that they are for.
func TestGatewaysAskForWhatIsDeclared(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(gatewaysDir, "nginx", "regimes", "*.conf"))
	if err != nil || len(files) != 5 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".conf")
		b, err := os.ReadFile(filepath.Join(filepath.Dir(regime), name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var def struct {
			Scopes    []struct{ Name string }
			Resources []string
		}
		if err := yaml.Unmarshal(b, &def); err != nil {
			t.Fatal(err)
		}
		declared := map[string]bool{"unlisted": true}
		for _, s := range def.Scopes {
			declared[s.Name] = true
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		asked, variable := 0, ""
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			switch {
			case len(fields) > 1 && fields[0] == "map":
				variable = fields[len(fields)-2]
			case len(fields) < 2 || fields[0] == "#":
			default:
				value := strings.Trim(strings.TrimSuffix(fields[len(fields)-1], ";"), `"`)
				kind, _, isResource := strings.Cut(value, "/")
				if variable == "$kt_scope" && !declared[value] || variable == "$kt_resource" && isResource && !slices.Contains(def.Resources, kind) || variable == "$kt_keyspace" && value != name {
					t.Errorf("%s: %s asks for %s, which %s does not declare", file, variable, value, name)
				}
				asked++
			}
		}
		if asked < 4 {
			t.Errorf("%s: only %d lines were read", file, asked)
		}
		// The other gateways ask for the same.
		want := wordsOf(t, "kt_scope", file)
		for _, other := range []string{"caddy/regimes/" + name + ".caddy", "haproxy/regimes/" + name + "/scope.map"} {
			if got := wordsOf(t, "kt_scope", filepath.Join(gatewaysDir, other)); !slices.Equal(got, want) || len(want) < 2 {
				t.Errorf("%s asks for the scopes %q, nginx for %q", other, got, want)
			}
		}
		if got := rowsOfTraefik(t, name, "scopes"); !slices.Equal(got, want) {
			t.Errorf("traefik asks for the scopes %q of %s, nginx for %q", got, name, want)
		}
		want = wordsOf(t, "kt_resource", file)
		for _, other := range []string{"caddy/regimes/" + name + ".caddy", "haproxy/regimes/" + name + "/resource.map"} {
			if got := wordsOf(t, "kt_resource", filepath.Join(gatewaysDir, other)); !slices.Equal(got, want) {
				t.Errorf("%s asks for the resources %q, nginx for %q", other, got, want)
			}
		}
	}
}

// wordsOf returns in order what the map of a variable in a regime's file may come to. A
// file of HAProxy is one map.
func wordsOf(t *testing.T, variable, file string) (words []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	in := filepath.Ext(file) == ".map"
	id := strings.NewReplacer("$kt_id", "ID", "${1}", "ID", `\1`, "ID")
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) > 1 && fields[0] == "map":
			in = strings.Trim(fields[len(fields)-2], "${}") == variable
		case len(fields) == 1 && fields[0] == "}":
			in = false // the end of a map
		case in && len(fields) > 1 && fields[0] != "#":
			if word := id.Replace(strings.Trim(fields[len(fields)-1], `";`)); word != "" {
				words = append(words, word)
			}
		}
	}
	slices.Sort(words)
	return words
}

// rowsOfTraefik returns in order the first column of a regime's table in Traefik's template.
func rowsOfTraefik(t *testing.T, regime, table string) (words []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(gatewaysDir, "traefik", "gateway.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	_, rows, found := strings.Cut(string(text), "\t"+`"`+regime+`" (dict`)
	_, rows, of := strings.Cut(rows, `"`+table+`" (list`)
	if !found || !of {
		t.Fatalf("Traefik has no %s of %s", table, regime)
	}
	for line := range strings.Lines(rows) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, `(list "`) {
			words = append(words, strings.Split(line, `"`)[1])
		} else if line != "" {
			break
		}
	}
	slices.Sort(words)
	return words
}
