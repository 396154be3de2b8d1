package main

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestGateways puts the real gateways, with the configuration that ships, between
// a client and an upstream.
func TestGateways(t *testing.T) {
	t.Parallel()
	for _, k := range gatewayKinds {
		t.Run(k.name, func(t *testing.T) { testGateway(t, k) })
	}
}

func testGateway(t *testing.T, k gatewayKind) {
	k.installed(t) // before anything is started for it
	// In the end another listens at this address.
	p := up(t, filepath.Join(t.TempDir(), "data"), "--trusted-proxy", "127.0.0.1/32", "--listen", freeAddr(t))
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
	projectID, project := create(map[string]any{"name": "project", "resources": []any{map[string]any{"kind": "project", "id": "proj_1"}}})
	revokedID, revoked := create(map[string]any{"name": "revoked"})
	p.must(t, "key", "revoke", revokedID, "--code", "superseded", "--reason", "rotated")
	p.must(t, "key", "allowlist", elsewhereID, "--allow", "198.51.100.7/32")
	limitedID, limited := create(map[string]any{"name": "limited"})
	p.must(t, "key", "limit", limitedID, "--per-minute", "1", "--burst", "3")
	_, publishable := create(map[string]any{"name": "publishable", "type": "publishable"}) // the last: the view holds all of these

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
		if v := x.header.Values("X-Request-Id"); !k.keepsLimits() && (len(v) != 1 || v[0] != r.Header.Get("X-Request-Id") || !strings.HasPrefix(v[0], "req_")) {
			t.Errorf("X-Request-Id: %q to the client, %q to the upstream", v, r.Header.Values("X-Request-Id"))
		}
		for _, h := range refusalHeaders[4:] {
			if v := x.header.Values(h); len(v) != 0 && !k.keepsLimits() {
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
				v := x.header.Values(h)
				if r, _ := api.seen(); k.keepsLimits() {
					v = r.Header.Values(h)
				}
				if !slices.Equal(v, []string{want}) {
					t.Errorf("request %d: %s: %q, want %s", i+1, h, v, want)
				}
			}
			if v := x.header.Values("X-RateLimit-Reset"); !k.keepsLimits() && (len(v) != 1 || v[0] == "of the upstream") {
				t.Errorf("request %d: X-RateLimit-Reset: %q", i+1, v)
			}
		}
		direct := func() passage {
			x := ask(t, limited, "scope=read")
			if x.status != 429 || x.header.Get("Retry-After") == "" {
				t.Fatalf("the verifier answers %d %s", x.status, x.body)
			}
			return x
		}
		if diff := sameRefusalAs(t, direct, func() passage { return stopped(t, "GET", "/api/v1/org", limited, nil) }); diff != "" {
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
			"X_Forwarded_For": {"198.51.100.7"}, "X_Forwarded-For": {"198.51.100.7"}, "X-Forwarded-Prefix": {"forged"}, "X-Forwarded-Port": {"forged"}, "X-Forwarded-Ssl": {"forged"},
			"X-Forwarded-Method": {"forged"}, "X-Forwarded-Uri": {"/forged"}})
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
		// Headers that a client calls hop-by-hop are not dropped on the way. Traefik drops the
		// key itself, so that there is none.
		named := ", Authorization"
		if k.name == "traefik" {
			named = ""
		}
		raw := rawExchange(t, g.url, "GET /api/v1/org HTTP/1.1\r\nHost: api\r\nAuthorization: "+full.Get("Authorization")+
			"\r\nConnection: close, X-Keytrail-Tenant, X-Keytrail-Key-Id, X-Forwarded-For"+named+"\r\n\r\n")
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
			want := path
			if k.name == "traefik" {
				want = strings.Replace(path, ";", "%3B", 1) // an old separator of members
			}
			if reaches(t, api, "GET", path, full, nil); lastURI(api) != want {
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
			// What one request's key has is not the next one's. A minute may have given it a token.
			for range 4 {
				if ask(t, limited, "scope=read").status == 429 {
					break
				}
			}
			if x := stopped(t, "GET", "/api/v1/org", limited, nil); x.status != 429 || !x.reused {
				t.Errorf("limited: %d", x.status)
			}
			if x := reaches(t, api, "GET", "/api/v1/org", full, nil); !x.reused || x.header.Get("X-RateLimit-Remaining") != "" && !k.keepsLimits() {
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

	// What a gateway's own configuration gets wrong opens nothing.
	if k.name == "haproxy" {
		t.Run("an error in Lua", func(t *testing.T) { // after which HAProxy goes on
			broken := startGateway(t, k, strings.TrimPrefix(p.url, "http://"), api.addr(), mirror.addr(), false, "local url = verifier", "local url = nothing.here")
			before := api.sent.Load()
			for _, header := range []http.Header{full, with(full, http.Header{"X-Keytrail-Key-Id": {id}}), {}} {
				if x := send(t, client, "GET", broken.url, "/api/v1/org", header, nil); x.status != 503 || api.sent.Load() != before {
					t.Errorf("%d %s", x.status, x.body)
				}
			}
		})
	}
	t.Run("no keyspace is named", func(t *testing.T) {
		broken := startGateway(t, k, strings.TrimPrefix(p.url, "http://"), api.addr(), mirror.addr(), false,
			"default scribe-sight;", `default "";`, "vars kt_keyspace scribe-sight", `vars kt_keyspace ""`, `"str(${KEYTRAIL_KEYSPACE})"`, `"str(${KEYTRAIL_KEYSPACE})" if { path /never }`,
			"/v1/authorize/{{ $keyspace }}", "/v1/authorize/")
		before := api.sent.Load()
		for _, header := range []http.Header{full, with(full, http.Header{"X-Keytrail-Key-Id": {id}}), {}} {
			x := send(t, client, "GET", broken.url, "/api/v1/org", header, nil)
			if x.status != 503 || !strings.HasPrefix(x.header.Get("Content-Type"), "application/problem+json") || api.sent.Load() != before ||
				!strings.Contains(string(x.body), `"code":"gateway_misconfigured"`) || !strings.Contains(string(x.body), `"field":"keyspace"`) || x.header.Get("Retry-After") != "" {
				t.Errorf("%d %s %s", x.status, x.header.Get("Content-Type"), x.body)
			}
		}
	})

	// A question that cannot be read is the operator's mistake, and the body says what is.
	t.Run("a parameter that is no parameter", func(t *testing.T) {
		broken := startGateway(t, k, strings.TrimPrefix(p.url, "http://"), api.addr(), mirror.addr(), false,
			"&scope=$kt_scope", "&scpoe=$kt_scope", "?scope=", "?scpoe=", `"scope", "resource"`, `"scpoe", "resource"`, "(txn.kt_scope)", "(txn.kt_scpoe)")
		before := api.sent.Load()
		for _, header := range []http.Header{full, {}} {
			x := send(t, client, "GET", broken.url, "/api/v1/org", header, nil)
			if x.status != 503 || !strings.Contains(string(x.body), `"code":"gateway_misconfigured"`) || !strings.Contains(string(x.body), "want only scope, resource") ||
				x.header.Get("Retry-After") != "" || api.sent.Load() != before {
				t.Errorf("%d %v %s", x.status, x.header, x.body)
			}
		}
	})

	t.Run("a position", func(t *testing.T) {
		asking := startGateway(t, k, strings.TrimPrefix(p.url, "http://"), api.addr(), mirror.addr(), false,
			"?refusal=header", "?refusal=header&min_position_header=X-Min-Position", "rewrite /v1/authorize/{args.0}", "rewrite /v1/authorize/{args.0}&min_position_header=X-Min-Position",
			"#\thttp-request set-var(txn.kt_min_position_header)", "http-request set-var(txn.kt_min_position_header)",
			"&resource={{ . }}{{ end }}'", "&resource={{ . }}{{ end }}&min_position_header=X-Min-Position'")
		narrowedID, narrowed := create(map[string]any{"name": "narrowed"})
		change := p.data(t, 200, "PUT", "/v1/keys/"+narrowedID+"/scopes", map[string]any{"scopes": []string{"upload"}})
		at := change["__position"].(string)
		// Refused at once, because the decision knows of the change.
		if x := send(t, client, "GET", asking.url, "/api/v1/org", with(narrowed, http.Header{"X-Min-Position": {at}}), nil); x.status != 403 {
			t.Errorf("after a change: %d %s", x.status, x.body)
		}
		for _, bad := range []string{"x", at + "x"} {
			x := send(t, client, "GET", asking.url, "/api/v1/org", with(full, http.Header{"X-Min-Position": {bad}}), nil)
			if x.status != 422 || !strings.Contains(string(x.body), "X-Min-Position") {
				t.Errorf("a position that cannot be read: %d %s", x.status, x.body)
			}
		}
		// Who does not ask for it reads no header.
		if x := reaches(t, api, "GET", "/api/v1/org", with(project, http.Header{"X-Min-Position": {"x"}}), nil); x.status != 200 {
			t.Errorf("a gateway that does not ask: %d", x.status)
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
					if k.bare() && (x.status == 503 || x.status == 401 || x.status == 403) {
						continue // it cannot tell a refusal of Keytrail's from another
					}
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
