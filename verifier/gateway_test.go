package verifier

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
)

// X-Forwarded-Proto counts from a trusted proxy only, and one hop without TLS
// is enough.
func TestSchemeOfTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		const proxy, stranger = "192.0.2.1", "192.0.2.2"
		for _, c := range []struct {
			peer     string
			tls      bool
			protos   []string
			insecure bool
		}{
			{stranger, false, nil, true},
			{stranger, true, nil, false},
			{stranger, false, []string{"https"}, true}, // a stranger's word
			{stranger, true, []string{"http"}, false},
			{proxy, false, nil, true},
			{proxy, true, nil, false},
			{proxy, false, []string{"https"}, false},
			{proxy, false, []string{" HTTPS\t"}, false},
			{proxy, false, []string{"https, https"}, false},
			{proxy, true, []string{"http"}, true},
			{proxy, true, []string{"https, http"}, true},
			{proxy, true, []string{"https", "http"}, true},
			{proxy, true, []string{"https,"}, true},
			{proxy, true, []string{""}, true},
			{proxy, true, []string{"wss"}, true},
			{"", false, []string{"https"}, true}, // nobody knows who says so
			{proxy, false, []string{"for=203.0.113.7;proto=https"}, false},
			{proxy, false, []string{"for=203.0.113.7;proto=https, for=10.1.2.3;PROTO=\"HTTPS\""}, false},
			{proxy, true, []string{"for=203.0.113.7;proto=http"}, true},
			{proxy, false, []string{"for=203.0.113.7"}, true},
			{proxy, true, []string{"for=203.0.113.7"}, false},
			{proxy, true, []string{"for="}, true},
		} {
			peer, _ := netip.ParseAddr(c.peer)
			header := http.Header{"X-Forwarded-Proto": c.protos}
			if len(c.protos) == 1 && strings.HasPrefix(c.protos[0], "for=") {
				header = http.Header{"Forwarded": c.protos}
			}
			var req Request
			if w.node.origin(&Ask{Peer: peer, Secure: c.tls, Header: header.Values}, &req); req.Insecure != c.insecure {
				t.Errorf("peer %q, TLS %v, %q: insecure %v", c.peer, c.tls, c.protos, req.Insecure)
			}
		}
	})
}

// An answer that allows has every identity field, also where there is nothing
// to say, and every answer has the request's id.
func TestAnswersAreComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		w.keyIn(scribe, "acme", secretOf("bare"), func(c *events.KeyCreated) { c.Environment, c.Scopes = "", nil })
		defer w.end()
		endpoints := api.Handler(w.mux)
		for word, status := range map[string]int{"bare": 200, "plain": 200, "revoked": 401, "nobody": 401} {
			for _, path := range []string{"/v1/authorize/scribe-sight", "/v1/authorize/scribe-sight?refusal=header", "/v1/authorize/nowhere"} {
				r := httptest.NewRequest("GET", path, nil)
				r.Header.Set("Authorization", "Bearer "+secretOf(word))
				r.Header.Set(api.RequestIDHeader, "forged")
				rec := httptest.NewRecorder()
				endpoints.ServeHTTP(rec, r)
				id := rec.Header().Values(api.RequestIDHeader)
				if len(id) != 1 || !strings.HasPrefix(id[0], "req_") {
					t.Errorf("%s at %s: request id %q", word, path, id)
				}
				want := status
				if strings.HasSuffix(path, "nowhere") {
					want = 503
				} else if want != 200 && strings.HasSuffix(path, "refusal=header") {
					want = 403
				}
				if rec.Code != want {
					t.Errorf("%s at %s: %d, want %d", word, path, rec.Code, want)
				}
				if said := rec.Body.String() + rec.Header().Get(headerRefusal); want != 200 && !strings.Contains(said, id[0]) {
					t.Errorf("%s at %s: the refusal does not name its request: %s", word, path, said)
				}
				for _, name := range []string{"X-Keytrail-Key-Id", "X-Keytrail-Tenant", "X-Keytrail-Type", "X-Keytrail-Scopes", "X-Keytrail-Scopes-Omitted", "X-Keytrail-Environment", "X-Keytrail-Use-Id"} {
					v, there := rec.Header()[name]
					if there != (want == 200) {
						t.Errorf("%s at %s: %s %q with status %d", word, path, name, v, rec.Code)
					}
					empty := name == "X-Keytrail-Scopes-Omitted" || word == "bare" && (name == "X-Keytrail-Scopes" || name == "X-Keytrail-Environment")
					if want == 200 && (v[0] == "") != empty {
						t.Errorf("%s: %s %q", word, name, v)
					}
				}
			}
		}
	})
}

// Whatever JSON a refusal is, its header says the same in visible ASCII.
func FuzzASCIILine(f *testing.F) {
	f.Add("{\n\t\"message\": \"geht nicht: \u00e4\u20ac \U0001f511 \x7f\"\r\n}")
	f.Add(`["\u00e4\n", 1e3, null]`)
	f.Fuzz(func(t *testing.T, s string) {
		if !jsontext.Value(s).IsValid() {
			return
		}
		line := asciiLine([]byte(s))
		for _, c := range []byte(line) {
			if c < ' ' || c > '~' {
				t.Fatalf("%q holds %q", line, c)
			}
		}
		var was, is any
		if err := json.Unmarshal([]byte(s), &was); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(line), &is); err != nil {
			t.Fatalf("%q of %q: %v", line, s, err)
		}
		a, _ := json.Marshal(was, json.Deterministic(true))
		b, _ := json.Marshal(is, json.Deterministic(true))
		if string(a) != string(b) {
			t.Fatalf("%q became %q", s, line)
		}
	})
}

// An answer that allows fits into the smallest buffers on the way, whatever the
// key holds: a list of scopes that does not is left out whole, and said to be.
func TestIdentityFitsIntoDefaultBuffers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		// Everything as long as it may be.
		name := func(n int) string { return strings.Repeat("n", n) }
		header := func(s string) string { return s + strings.Repeat("h", 64-len(s)) }
		def := keyspace.Definition{
			KeyTypes:     []keyspace.KeyType{{Name: name(32), Environments: []string{name(32)}, Prefix: "sk_live_"}},
			LimitHeaders: keyspace.LimitHeaders{Limit: header("X-A"), Remaining: header("X-B"), Reset: header("X-C")},
			Limit:        &keyspace.Limit{PerMinute: 1, Burst: 1000000000},
		}
		var scopes []string
		for i := range keyspace.MaxScopes {
			scopes = append(scopes, fmt.Sprintf("%03d%s", i, name(97)))
			def.Scopes = append(def.Scopes, keyspace.ScopeDef{Name: scopes[i]})
		}
		ks, tenant := events.KeyspaceID(name(63)), events.TenantID(name(64))
		if err := errors.Join(def.Validate().OrNil(), ks.Validate(), tenant.Validate()); err != nil {
			t.Fatal(err)
		}
		w.define(ks, def)
		for _, c := range []struct {
			held            int
			scopes, omitted string
		}{
			{0, "", ""},
			{1, scopes[0], ""},
			{20, strings.Join(scopes[:20], " "), ""},
			{21, "", "21"},
			{keyspace.MaxScopes, "", "200"},
		} {
			secret := secretOf(fmt.Sprint("key", c.held))
			w.keyIn(ks, tenant, secret, func(k *events.KeyCreated) {
				k.KeyType, k.Environment, k.Scopes = name(32), name(32), scopes[:c.held]
			})
			r := request("GET", "/v1/authorize/"+string(ks), "198.51.100.9:1")
			r.Header.Set("Authorization", "Bearer "+secret)
			rec := httptest.NewRecorder()
			api.Handler(w.mux).ServeHTTP(rec, r)
			h := rec.Header()
			if rec.Code != 200 || h.Get("X-Keytrail-Scopes") != c.scopes || h.Get("X-Keytrail-Scopes-Omitted") != c.omitted {
				t.Errorf("%d scopes: %d, %q, omitted %q", c.held, rec.Code, h.Get("X-Keytrail-Scopes"), h.Get("X-Keytrail-Scopes-Omitted"))
			}
			var wire bytes.Buffer
			h.Write(&wire)
			if n := wire.Len() + len("HTTP/1.1 200 OK\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\nContent-Length: 0\r\n\r\n"); n > 4096 {
				t.Errorf("%d scopes: %d bytes", c.held, n)
			}
		}
	})
}

// A refusal of a gRPC client says so in gRPC's own headers, and its HTTP status
// stays one that no gateway lets pass.
func TestRefusalOfGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		w.define("words", func() keyspace.Definition {
			d := scribeDefinition()
			d.Errors.Envelope = []byte(`{"error":"{message}"}`)
			d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"key_missing"}, Status: 400, Message: "Schl\u00fcssel fehlt: 100%"}}
			return d
		}())
		defer w.end()
		for _, c := range []struct {
			path, word     string
			status         int
			grpc, message  string
			retry, anybody bool
		}{
			{path: "scribe-sight", status: 401, grpc: "16", message: "no key was presented"},
			{path: "scribe-sight", word: "revoked", status: 401, grpc: "16", message: "the key is revoked"},
			{path: "scribe-sight?scope=upload", word: "plain", status: 403, grpc: "7", message: "the key does not hold the scope that this needs"},
			{path: "scribe-sight", word: "limited", status: 429, grpc: "8", message: "the key's rate limit is used up", retry: true},
			{path: "words", status: 400, grpc: "3", message: "Schl%C3%BCssel fehlt: 100%25"},
			{path: "nowhere", word: "plain", status: 503, grpc: "14", message: "the gateway is misconfigured: there is no keyspace of this name"},
			{path: "scribe-sight?scope=", word: "plain", status: 503, grpc: "14", message: "the gateway is misconfigured: its question cannot be read"},
			{path: "scribe-sight", word: "plain", status: 200},
		} {
			for _, contentType := range []string{"application/grpc", "application/grpc+proto", "Application/gRPC;x=y", "application/grpc-web", "application/json", ""} {
				for _, inHeader := range []bool{false, true} {
					path := "/v1/authorize/" + c.path
					if inHeader {
						path += map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + "refusal=header"
					}
					r := request("GET", path, "198.51.100.9:1")
					if contentType != "" {
						r.Header.Set("Content-Type", contentType)
					}
					if c.word != "" {
						r.Header.Set("Authorization", "Bearer "+secretOf(c.word))
					}
					rec := serve(w, r)
					for c.status == 429 && rec.Code == 200 {
						rec = serve(w, r)
					}
					h := rec.Header()
					status, grpc := rec.Code, strings.HasPrefix(strings.ToLower(contentType), "application/grpc") && !strings.Contains(contentType, "web") && c.status != 200
					kind, text := h.Get("Content-Type"), rec.Body.String()
					if inHeader && c.status != 200 {
						if status != 403 {
							t.Errorf("%s: %d", path, status)
						}
						kind, text = h.Get(headerRefusalType), h.Get(headerRefusal)
						if want := map[bool]int{true: 200, false: c.status}[grpc]; h.Get(headerRefusalStatus) != strconv.Itoa(want) {
							t.Errorf("%s as %q: status %s, want %d", path, contentType, h.Get(headerRefusalStatus), want)
						}
					} else if status != c.status {
						t.Errorf("%s as %q: %d, want %d", path, contentType, status, c.status)
					}
					if (h.Get("Grpc-Status") != "") != grpc || (h.Get("Grpc-Message") != "") != grpc {
						t.Errorf("%s as %q: %v", path, contentType, h)
					}
					if grpc && (h.Get("Grpc-Status") != c.grpc || h.Get("Grpc-Message") != c.message || kind != "application/grpc" || text != "" || (h.Get("Retry-After") != "") != c.retry) {
						t.Errorf("%s as %q: %v %q", path, contentType, h, text)
					}
					w.heartbeat()
				}
			}
		}
	})
}

// A gateway that announces the client's body and does not send it has its answer
// at once, and what it sends next on the connection is not read as that body.
func TestAuthorizeDoesNotWaitForABody(t *testing.T) {
	now := time.Now() // stands still, so that the lease does not run out
	w := endpointsWorld(t, func(c *NodeConfig) { c.Now = func() time.Time { return now } })
	srv := httptest.NewServer(w.mux)
	defer w.end()
	defer srv.Close()
	for _, announced := range []string{"Content-Length: 70000000", "Content-Length: 5", "Transfer-Encoding: chunked", "Expect: 100-continue\r\nContent-Length: 5"} {
		c, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(2 * time.Minute)) // the body never comes
		fmt.Fprintf(c, "GET /v1/authorize/scribe-sight HTTP/1.1\r\nHost: k\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n", secretOf("plain"), announced)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 || !resp.Close {
			t.Errorf("%s: %v, %v", announced, resp, err)
		}
		c.Close()
	}
	// Without one the connection stays.
	for range 2 {
		resp, err := http.Get(srv.URL + "/v1/authorize/scribe-sight")
		if err != nil || resp.Close {
			t.Errorf("%v, %v", resp, err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}
