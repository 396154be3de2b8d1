package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net/http"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
)

// TestGatewayExamples runs each example whole, with the upstream that ships with
// it: what a newcomer sees first.
func TestGatewayExamples(t *testing.T) {
	t.Parallel()
	for _, k := range gatewayKinds {
		t.Run(k.name, func(t *testing.T) {
			if k.name == "traefik" {
				t.Skip("it comes with no upstream")
			}
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

// regimeIs changes the regime of the shipped configurations by the line that their READMEs
// name.
func regimeIs(name string) []string {
	return []string{"include regimes/scribe-sight.conf;", "include regimes/" + name + ".conf;", "import regimes/scribe-sight.caddy", "import regimes/" + name + ".caddy",
		"presetenv KEYTRAIL_KEYSPACE scribe-sight", "presetenv KEYTRAIL_KEYSPACE " + name,
		`$keyspace := "scribe-sight"`, `$keyspace := "` + name + `"`}
}

// servesHTTPS gives the shipped configurations the certificate and key in file, as their
// READMEs say.
func servesHTTPS(file string) []string {
	return []string{"listen 127.0.0.1:8080;", "listen 127.0.0.1:8080 ssl; ssl_certificate " + file + "; ssl_certificate_key " + file + ";",
		"http://:8080 {", "https://:8080 {\n\ttls " + file + " " + file, "bind 127.0.0.1:8080", "bind 127.0.0.1:8080 ssl crt " + file,
		"aliasHeadersStrategy: delete", "tls: {}\n      aliasHeadersStrategy: delete", "\nhttp:\n  routers:", "\ntls:\n  certificates:\n    - certFile: " + file + "\n      keyFile: " + file + "\nhttp:\n  routers:"}
}

// TestGatewayRegimes changes each gateway to each of the five regimes: a client gets what
// the verifier answers under that regime.
func TestGatewayRegimes(t *testing.T) {
	t.Parallel()
	for _, k := range gatewayKinds {
		t.Run(k.name, func(t *testing.T) { testGatewayRegimes(t, k) })
	}
}

func testGatewayRegimes(t *testing.T, k gatewayKind) {
	k.installed(t)
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
			p.reached(t, map[string]any{"key": key["key"], "keyspace": name, "min_position": key["__position"]}) // it is known now
			header := http.Header{"Authorization": {"Bearer " + key["key"].(string)}}
			if name == "laserdata" {
				header = http.Header{"Ld-Api-Key": {key["key"].(string)}}
			}
			api, mirror := newUpstream(t), newUpstream(t)
			change := regimeIs(name)
			client, proto := newClient(t), "http"
			if tt.https {
				cert, pool := certificate(t)
				change = append(change, servesHTTPS(cert)...)
				client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: pool}
				proto = "https"
			}
			g := startGateway(t, k, keytrail, api.addr(), mirror.addr(), false, change...)
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
					if strings.Contains(h, "Ratelimit") && x.header.Get(h) == "" && !k.keepsLimits() {
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
	t.Parallel()
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
				p.reached(t, map[string]any{"key": key["key"], "keyspace": name, "scope": "none", "min_position": at})
			}
			known(key["__position"])
			change := regimeIs(name)
			client, proto := newClient(t), "http"
			if tt.https {
				cert, pool := certificate(t)
				change = append(change, servesHTTPS(cert)...)
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
