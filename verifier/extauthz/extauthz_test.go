package extauthz

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/go-json-experiment/json"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/schemas/api"
	"github.com/keytrail/keytrail/verifier"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(os.Exit))
}

const (
	stranger = "198.51.100.9"
	office   = "203.0.113.7" // on the allowlist of the key "office"
	proxy    = "10.0.0.1"    // trusted

	imported = "legacy,key,with,commas" // of another issuer
)

// world is a node with some keys, its clock standing still.
type world struct {
	t      testing.TB
	log    *logtest.MemLog
	view   *projections.Keys
	ledger *verifier.Ledger
	node   *verifier.Node
	logged lockedBuffer
	now    time.Time
	stop   func() error
	made   byte
}

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

func newWorld(t testing.TB) *world {
	w := &world{t: t, log: logtest.New(t), view: projections.NewKeys(), now: time.Now()}
	logger := slog.New(slog.NewJSONHandler(&w.logged, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.ledger = verifier.NewLedger(verifier.LedgerConfig{Sink: w.log, Node: "node-1", Log: w.log.ID(), Logger: logger})
	w.node = verifier.NewNode(verifier.NodeConfig{View: w.view, Ledger: w.ledger, Log: w.log.ID(), Logger: logger,
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Now: func() time.Time { return w.now }})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.ledger.Run(ctx) }()
	w.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { w.stop() })
	for end := time.Now().Add(10 * time.Second); w.ledger.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the ledger opens no epoch")
		}
	}
	for name, cred := range map[events.KeyspaceID]events.Credential{"scribe-sight": {}, "other": {Header: "X-Api-Key"}} {
		w.put(events.KeyspaceAggregate(name), &events.KeyspaceDefined{Definition: events.Definition{
			Credential: cred,
			KeyTypes:   []events.KeyType{{Name: "secret", Environments: []string{"live"}, Prefix: "sk_live_"}},
			Scopes:     []events.ScopeDef{{Name: "read"}, {Name: "write", Implies: []string{"read"}}, {Name: "upload"}},
			Resources:  []string{"project"},
		}})
	}
	w.key("plain", nil)
	w.key("bare", func(c *events.KeyCreated) { c.Environment, c.Scopes = "", nil })
	w.key("limited", func(c *events.KeyCreated) { c.Limit = &events.Limit{PerMinute: 60, Burst: 1} })
	w.key("office", func(c *events.KeyCreated) { c.Allowlist = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")} })
	w.key("project", func(c *events.KeyCreated) { c.Resources = []events.Resource{{Kind: "project", ID: "proj_1"}} })
	w.put(w.key("revoked", nil), &events.KeyRevoked{Code: events.RevokeCompromise})
	w.key("expired", func(c *events.KeyCreated) { c.ExpiresAt = events.At(w.now) })
	w.put(w.key("disabled", nil), &events.KeyDisabled{})
	w.keyIn("other", "elsewhere", nil)
	w.keyIn("other", "imported", func(c *events.KeyCreated) { c.Digest = events.NewSecret(imported).Digest() })
	return w
}

func (w *world) put(a events.Aggregate, data events.Data) {
	w.t.Helper()
	logtest.Append(w.t, w.log, a, data)
	if err := w.view.Apply(w.log.Records()[w.view.At():]); err != nil {
		w.t.Fatal(err)
	}
}

// beat makes the node ready.
func (w *world) beat() {
	w.view.Fresh(events.At(w.now), w.view.At())
	w.node.Fresh(events.At(w.now), w.view.At())
}

func secretOf(word string) string {
	return "sk_live_" + (word + strings.Repeat("x", events.DefaultSecretLength))[:events.DefaultSecretLength]
}

func (w *world) key(word string, change func(*events.KeyCreated)) events.Aggregate {
	w.t.Helper()
	return w.keyIn("scribe-sight", word, change)
}

func (w *world) keyIn(ks events.KeyspaceID, word string, change func(*events.KeyCreated)) events.Aggregate {
	w.t.Helper()
	w.made++
	c := logtest.Created(secretOf(word))
	c.Environment, c.Scopes = "live", []string{"write"}
	if change != nil {
		change(c)
	}
	a := events.KeyAggregate(ks, "acme", events.KeyID{0: 1, 15: w.made})
	w.put(a, c)
	return a
}

// serve serves the door as a process does, and returns Envoy's end.
func (w *world) serve() (client authv3.AuthorizationClient, url string) {
	w.t.Helper()
	mux := http.NewServeMux()
	Routes(mux, w.node, slog.New(slog.NewJSONHandler(&w.logged, nil)))
	w.node.Routes(mux)
	srv := httptest.NewUnstartedServer(api.WithRequestID(mux))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	w.t.Cleanup(srv.Close)
	conn, err := grpc.NewClient(srv.Listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return authv3.NewAuthorizationClient(conn), srv.URL
}

// held is a client's request at Envoy.
type held struct {
	route  map[string]string // context_extensions
	peer   string            // "" = a pipe
	scheme string
	header http.Header
}

func (h held) check(raw bool) *authv3.CheckRequest {
	r := &authv3.AttributeContext_HttpRequest{Id: "1", Method: "GET", Host: "api.example.com", Path: "/v1/documents", Scheme: h.scheme, Protocol: "HTTP/2"}
	if raw {
		r.HeaderMap = &corev3.HeaderMap{}
	} else {
		r.Headers = map[string]string{}
	}
	for name, vs := range h.header {
		name = strings.ToLower(name)
		for _, v := range vs {
			if raw {
				r.HeaderMap.Headers = append(r.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(v)})
			} else if was, twice := r.Headers[name]; twice {
				r.Headers[name] = was + "," + v
			} else {
				r.Headers[name] = v
			}
		}
	}
	address := &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "/run/envoy.sock"}}}
	if h.peer != "" {
		address.Address = &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: h.peer, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 4711}}}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source:            &authv3.AttributeContext_Peer{Address: address},
		Request:           &authv3.AttributeContext_Request{Http: r},
		ContextExtensions: h.route,
	}}
}

// upstream is the request that Envoy hands on after ok.
func (h held) upstream(ok *authv3.OkHttpResponse) http.Header {
	out := h.header.Clone()
	for _, v := range ok.Headers {
		out.Set(v.Header.Key, v.Header.Value)
	}
	for _, name := range ok.HeadersToRemove {
		out.Del(name)
	}
	return out
}

func bearer(word string) []string { return []string{"Bearer " + secretOf(word)} }

func scribe(more ...string) map[string]string {
	route := map[string]string{"keyspace": "scribe-sight"}
	for i := 0; i < len(more); i += 2 {
		route[more[i]] = more[i+1]
	}
	return route
}

// valuesOf returns the headers as a client's HTTP library would see them.
func valuesOf(list []*corev3.HeaderValueOption) http.Header {
	h := http.Header{}
	for _, v := range list {
		h.Add(v.Header.Key, v.Header.Value)
	}
	return h
}

// Each reason at Envoy's door, with both ways that Envoy has to send headers.
func TestCheck(t *testing.T) {
	type outcome struct {
		status int
		code   string
	}
	for raw, commas := range map[bool]outcome{false: {401, "key_malformed"}, true: {200, ""}} {
		t.Run(map[bool]string{false: "joined headers", true: "raw headers"}[raw], func(t *testing.T) {
			w := newWorld(t)
			w.beat()
			client, _ := w.serve()
			for _, c := range []struct {
				name   string
				held   held
				status int
				code   string
			}{
				{"a comma in the key", held{route: map[string]string{"keyspace": "other"}, header: http.Header{"X-Api-Key": {imported}}}, commas.status, commas.code},
				{"two schemes", held{route: scribe(), header: http.Header{"Authorization": {"Basic eA==", bearer("plain")[0]}}}, 401, "key_malformed"},
				{"a key", held{route: scribe(), header: http.Header{"Authorization": bearer("plain")}}, 200, ""},
				{"scope and resource", held{route: scribe("scope", "read", "resource", "project/proj_1"), header: http.Header{"Authorization": bearer("project")}}, 200, ""},
				{"no key", held{route: scribe()}, 401, "key_missing"},
				{"another scheme", held{route: scribe(), header: http.Header{"Authorization": {"Basic eA=="}}}, 401, "key_missing"},
				{"a short key", held{route: scribe(), header: http.Header{"Authorization": {"Bearer short"}}}, 401, "key_malformed"},
				{"a key twice", held{route: scribe(), header: http.Header{"Authorization": append(bearer("plain"), bearer("plain")...)}}, 401, "key_malformed"},
				{"two keys", held{route: scribe(), header: http.Header{"Authorization": append(bearer("plain"), bearer("limited")...)}}, 401, "key_malformed"},
				{"joined by the client", held{route: scribe(), header: http.Header{"Authorization": {bearer("plain")[0] + ", " + bearer("plain")[0]}}}, 401, "key_malformed"},
				{"nobody's key", held{route: scribe(), header: http.Header{"Authorization": bearer("nobody")}}, 401, "key_unknown"},
				{"another keyspace's key", held{route: scribe(), header: http.Header{"Authorization": bearer("elsewhere")}}, 401, "key_unknown"},
				{"revoked", held{route: scribe(), header: http.Header{"Authorization": bearer("revoked")}}, 401, "key_revoked"},
				{"expired", held{route: scribe(), header: http.Header{"Authorization": bearer("expired")}}, 401, "key_expired"},
				{"disabled", held{route: scribe(), header: http.Header{"Authorization": bearer("disabled")}}, 401, "key_disabled"},
				{"scope missing", held{route: scribe("scope", "upload"), header: http.Header{"Authorization": bearer("plain")}}, 403, "scope_missing"},
				{"scope by the client", held{route: scribe("scope", "upload"), header: http.Header{"Authorization": bearer("plain"), verifier.HeaderScope: {"read"}}}, 403, "scope_missing"},
				{"resource", held{route: scribe("resource", "project/proj_2"), header: http.Header{"Authorization": bearer("project")}}, 403, "resource_not_allowed"},
				{"limit, the first", held{route: scribe(), header: http.Header{"Authorization": bearer("limited")}}, 200, ""},
				{"limit, the second", held{route: scribe(), header: http.Header{"Authorization": bearer("limited")}}, 429, "rate_limited"},
				{"another header", held{route: map[string]string{"keyspace": "other"}, header: http.Header{"X-Api-Key": {secretOf("elsewhere")}}}, 200, ""},
				{"the wrong header", held{route: map[string]string{"keyspace": "other"}, header: http.Header{"Authorization": bearer("elsewhere")}}, 401, "key_missing"},
				{"no such keyspace", held{route: map[string]string{"keyspace": "nowhere"}, header: http.Header{"Authorization": bearer("plain")}}, 404, "keyspace_unknown"},

				{"from the office", held{route: scribe(), peer: office, header: http.Header{"Authorization": bearer("office")}}, 200, ""},
				{"mapped", held{route: scribe(), peer: "::ffff:" + office, header: http.Header{"Authorization": bearer("office")}}, 200, ""},
				{"from elsewhere", held{route: scribe(), peer: stranger, header: http.Header{"Authorization": bearer("office")}}, 403, "address_not_allowed"},
				{"a forged X-Forwarded-For", held{route: scribe(), peer: stranger, header: http.Header{"Authorization": bearer("office"), "X-Forwarded-For": {office}}}, 403, "address_not_allowed"},
				{"as Envoy appends to it", held{route: scribe(), peer: stranger, header: http.Header{"Authorization": bearer("office"), "X-Forwarded-For": {office + ", " + stranger}}}, 403, "address_not_allowed"},
				{"behind a proxy", held{route: scribe(), peer: proxy, header: http.Header{"Authorization": bearer("office"), "X-Forwarded-For": {stranger + ", " + office + "," + proxy}}}, 200, ""},
				{"forged behind a proxy", held{route: scribe(), peer: proxy, header: http.Header{"Authorization": bearer("office"), "X-Forwarded-For": {office, stranger}}}, 403, "address_not_allowed"},
				{"an entry that cannot be read", held{route: scribe(), peer: proxy, header: http.Header{"Authorization": bearer("office"), "X-Forwarded-For": {office + ",unknown"}}}, 403, "address_not_allowed"},
				{"a pipe", held{route: scribe(), header: http.Header{"Authorization": bearer("office"), "X-Forwarded-For": {office}}}, 403, "address_not_allowed"},
			} {
				t.Run(c.name, func(t *testing.T) {
					resp, err := client.Check(t.Context(), c.held.check(raw))
					if err != nil {
						t.Fatal(err)
					}
					if err := resp.ValidateAll(); err != nil {
						t.Fatalf("Envoy would not take this: %v", err)
					}
					if c.status == 200 {
						ok := resp.GetOkResponse()
						if resp.Status.Code != int32(codes.OK) || ok == nil {
							t.Fatalf("not let through: %v", resp)
						}
						if h := valuesOf(ok.ResponseHeadersToAdd); !strings.HasPrefix(h.Get("X-Request-Id"), "req_") ||
							(h.Get("X-RateLimit-Remaining") == "0") != (c.name == "limit, the first") {
							t.Errorf("to the client: %v", h)
						}
						return
					}
					denied := resp.GetDeniedResponse()
					if resp.Status.Code == int32(codes.OK) || denied == nil || denied.Status.Code != typev3.StatusCode(c.status) {
						t.Fatalf("want %d, got %v", c.status, resp)
					}
					h := valuesOf(denied.Headers)
					var p api.Problem
					if err := json.Unmarshal([]byte(denied.Body), &p); err != nil || p.Code != c.code || p.Status != c.status ||
						p.RequestID == "" || p.RequestID != h.Get("X-Request-Id") {
						t.Errorf("want %s, got %s with %v", c.code, denied.Body, h)
					}
					if h.Get("Content-Type") != "application/problem+json" || h.Get("Cache-Control") != "no-store" ||
						(h.Get("WWW-Authenticate") != "") != (c.status == 401) || (h.Get("Retry-After") != "") != (c.status == 429) ||
						(h.Get("X-RateLimit-Limit") != "") != (c.status == 429) || h.Get("X-Keytrail-Key-Id") != "" {
						t.Errorf("%d with %v", c.status, h)
					}
				})
			}
			if err := w.stop(); err != nil {
				t.Fatal(err)
			}
			logtest.CheckLog(t, w.log)
			var secrets []events.Secret
			for _, word := range []string{"plain", "limited", "office", "project", "revoked", "expired", "disabled", "elsewhere", "nobody"} {
				secrets = append(secrets, events.NewSecret(secretOf(word)))
			}
			secrets = append(secrets, events.NewSecret(imported))
			if !strings.Contains(w.logged.String(), `"door":"envoy"`) {
				t.Fatal("nothing was logged")
			}
			logtest.CheckNoSecrets(t, []byte(w.logged.String()), secrets...)
		})
	}
}

// What a client writes into the identity headers does not reach the upstream,
// also where the key has nothing to put there.
func TestForgedIdentityDoesNotSurvive(t *testing.T) {
	w := newWorld(t)
	w.beat()
	client, _ := w.serve()
	names := []string{"X-Keytrail-Key-Id", "X-Keytrail-Tenant", "X-Keytrail-Type", "X-Keytrail-Scopes", "X-Keytrail-Environment", "X-Keytrail-Use-Id"}
	for _, word := range []string{"plain", "bare"} {
		h := held{route: scribe(), peer: stranger, header: http.Header{"Authorization": bearer(word), "Accept": {"*/*"}}}
		for _, name := range names {
			h.header[name] = []string{"forged", "forged again"}
		}
		resp, err := client.Check(t.Context(), h.check(false))
		if err != nil {
			t.Fatal(err)
		}
		ok := resp.GetOkResponse()
		got := h.upstream(ok)
		if got.Get("Accept") != "*/*" || got.Get("X-Keytrail-Tenant") != "acme" || got.Get("X-Keytrail-Type") != "secret" {
			t.Errorf("%s: the upstream sees %v", word, got)
		}
		for _, name := range names {
			if strings.Contains(strings.Join(got[name], ","), "forged") {
				t.Errorf("%s: %s is the client's: %q", word, name, got[name])
			}
			if empty := name == "X-Keytrail-Scopes" || name == "X-Keytrail-Environment"; (len(got[name]) == 0) != (word == "bare" && empty) {
				t.Errorf("%s: %s %q", word, name, got[name])
			}
		}
		for _, o := range slices.Concat(ok.Headers, ok.ResponseHeadersToAdd) {
			want := corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
			if o.Header.Key == api.RequestIDHeader {
				want = corev3.HeaderValueOption_ADD_IF_ABSENT
			}
			if o.AppendAction != want || o.Header.Value == "" {
				t.Errorf("%s is set with %v to %q", o.Header.Key, o.AppendAction, o.Header.Value)
			}
		}
	}
}

// A route that does not say what it asks for lets nobody through, and the
// operator is told.
func TestRouteThatCannotBeAnswered(t *testing.T) {
	w := newWorld(t)
	w.beat()
	client, _ := w.serve()
	for _, c := range []struct {
		name  string
		route map[string]string
		want  string
	}{
		{"nothing", nil, "context_extensions.keyspace"},
		{"no keyspace", map[string]string{"scope": "read"}, "context_extensions.keyspace"},
		{"an empty keyspace", map[string]string{"keyspace": ""}, "context_extensions.keyspace"},
		{"a bad keyspace", map[string]string{"keyspace": "No Good"}, "context_extensions.keyspace"},
		{"an empty scope", scribe("scope", ""), "context_extensions.scope"},
		{"a bad scope", scribe("scope", "a scope"), "context_extensions.scope"},
		{"an empty resource", scribe("resource", ""), "context_extensions.resource"},
		{"a bad resource", scribe("resource", "proj_1"), "context_extensions.resource"},
		{"an unknown name", scribe("scopes", "read"), "want keyspace, scope and resource only"},
		{"another case", scribe("Scope", "read"), "want keyspace, scope and resource only"},
	} {
		h := held{route: c.route, header: http.Header{"Authorization": bearer("plain")}}
		resp, err := client.Check(t.Context(), h.check(false))
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(status.Convert(err).Message(), c.want) {
			t.Errorf("%s: %v %v", c.name, resp, err)
		}
		if logged := w.logged.String(); !strings.Contains(logged, "route's configuration") || !strings.Contains(logged, c.want) {
			t.Errorf("%s: the log does not say it: %s", c.name, logged)
		}
	}
	network := held{route: scribe()}.check(false)
	network.Attributes.Request = nil
	for _, req := range []*authv3.CheckRequest{network, {}} {
		if _, err := client.Check(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", req, err)
		}
	}
	if w.ledger.Buffered() != 0 {
		t.Error("what cannot be asked is no decision")
	}
	logtest.CheckNoSecrets(t, []byte(w.logged.String()), events.NewSecret(secretOf("plain")))
}

// A node that cannot vouch for anything denies with 503, for any keyspace.
func TestNodeNotReady(t *testing.T) {
	w := newWorld(t)
	client, _ := w.serve()
	for _, ks := range []string{"scribe-sight", "nowhere"} {
		h := held{route: map[string]string{"keyspace": ks}, header: http.Header{"Authorization": bearer("plain")}}
		resp, err := client.Check(t.Context(), h.check(true))
		if err != nil {
			t.Fatal(err)
		}
		denied := resp.GetDeniedResponse()
		if denied.GetStatus().GetCode() != typev3.StatusCode_ServiceUnavailable || valuesOf(denied.Headers).Get("Retry-After") != "1" || !strings.Contains(denied.Body, "verifier_stale") {
			t.Errorf("%s: %v", ks, resp)
		}
	}
}

// The scheme is what Envoy says of the connection, or a trusted proxy; :scheme
// alone is an HTTP/2 client's own word.
func TestSchemeIsEnvoys(t *testing.T) {
	for _, c := range []struct {
		scheme string
		protos []string
		secure bool
	}{
		{"https", []string{"https"}, true},
		{"HTTPS", nil, true},
		{"http", nil, false},
		{"", nil, false},
		{"", []string{"https"}, false},
		{"http", []string{"https"}, false},
		{"https", []string{"http"}, false},
		{"https", []string{"https", "http"}, false},
		{"https", []string{""}, false},
	} {
		for _, raw := range []bool{false, true} {
			h := held{route: scribe(), peer: stranger, scheme: c.scheme, header: http.Header{"X-Forwarded-Proto": c.protos}}
			ask, faults := question(h.check(raw).Attributes)
			if len(faults) > 0 || ask.Secure != c.secure {
				t.Errorf("%q with %q: secure %v, %v", c.scheme, c.protos, ask.Secure, faults)
			}
		}
	}
}

// The request's id is the one of the server's middleware, whatever the caller
// sends; and who does not speak gRPC is told in words.
func TestCallersOfOtherKinds(t *testing.T) {
	w := newWorld(t)
	w.beat()
	client, url := w.serve()
	ctx := metadata.AppendToOutgoingContext(t.Context(), api.RequestIDHeader, "forged")
	resp, err := client.Check(ctx, held{route: scribe()}.check(false))
	if err != nil || strings.Contains(resp.String(), "forged") {
		t.Errorf("%v %v", resp, err)
	}
	huge := held{route: scribe(), header: http.Header{"Cookie": {strings.Repeat("x", api.MaxBody)}}}
	if _, err := client.Check(t.Context(), huge.check(false)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a huge request: %v", err)
	}
	for contentType, want := range map[string]int{"application/json": 415, "": 415, "application/grpc": 400, "application/grpc-web": 415} {
		r, err := http.NewRequest("POST", url+Path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", contentType)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%q: %d %s", contentType, resp.StatusCode, resp.Header.Get("Content-Type"))
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// A regime may answer with a status that Envoy does not know.
func TestStatusThatEnvoyDoesNotKnow(t *testing.T) {
	for code, want := range map[int]int{401: 401, 404: 404, 422: 422, 429: 429, 503: 503, 498: 403, 599: 403, 0: 403} {
		s := httpStatus(code)
		if int(s.Code) != want || s.ValidateAll() != nil {
			t.Errorf("%d becomes %v", code, s)
		}
	}
}

// A bug in the door is an error of one call, and not the end of the process.
func TestPanicIsOneCallsError(t *testing.T) {
	var logged bytes.Buffer
	d := &door{logger: slog.New(slog.NewJSONHandler(&logged, nil))} // without a node
	resp, err := d.Check(t.Context(), held{route: scribe(), header: http.Header{"Authorization": bearer("plain")}}.check(false))
	if resp != nil || status.Code(err) != codes.Internal || !strings.Contains(logged.String(), "nil pointer") {
		t.Errorf("%v %v %s", resp, err, &logged)
	}
}

// Whatever Envoy sends, the answer is one that Envoy takes, and nobody comes
// through without a live key presented once.
func FuzzCheck(f *testing.F) {
	w := newWorld(f)
	w.beat()
	d := &door{node: w.node, logger: slog.New(slog.DiscardHandler)}
	f.Add(true, "scribe-sight", "scope", "read", "Authorization", "Bearer "+secretOf("plain"), "", office, stranger, "https")
	f.Add(false, "scribe-sight", "resource", "project/proj_1", "authorization", "Bearer "+secretOf("project"), "", "a,b", proxy, "http")
	f.Add(false, "scribe-sight", "scope", "", "Authorization", "Bearer "+secretOf("plain"), "Bearer "+secretOf("plain"), ",", "::1%eth0", "")
	f.Add(true, "other", "x", "\x00", "X-Api-Key", secretOf("elsewhere"), "", "", "", "")
	f.Fuzz(func(t *testing.T, raw bool, ks, name, value, header, auth, second, forwarded, peer, scheme string) {
		h := held{route: map[string]string{"keyspace": ks}, peer: peer, scheme: scheme, header: http.Header{header: {auth}}}
		if name != "" {
			h.route[name] = value
		}
		if second != "" {
			h.header[header] = append(h.header[header], second)
		}
		if forwarded != "" {
			h.header["X-Forwarded-For"] = []string{forwarded}
			h.header["X-Forwarded-Proto"] = []string{forwarded}
		}
		resp, err := d.Check(t.Context(), h.check(raw))
		if err != nil {
			if status.Code(err) != codes.InvalidArgument || resp != nil {
				t.Fatal(resp, err)
			}
			return
		}
		if err := resp.ValidateAll(); err != nil {
			t.Fatalf("Envoy would not take this: %v", err)
		}
		if _, err := proto.Marshal(resp); err != nil {
			t.Fatal(err)
		}
		if ok := resp.GetOkResponse(); ok != nil {
			live := false
			for _, word := range []string{"plain", "bare", "limited", "office", "project", "elsewhere"} {
				live = live || strings.HasSuffix(strings.TrimRight(auth, " \t"), secretOf(word))
			}
			if !live || second != "" || resp.Status.Code != int32(codes.OK) || len(ok.Headers)+len(ok.HeadersToRemove) != 6 {
				t.Fatalf("let through with %q and %q: %v", auth, second, resp)
			}
		} else if resp.GetDeniedResponse() == nil || resp.Status.Code == int32(codes.OK) {
			t.Fatalf("neither allowed nor denied: %v", resp)
		}
	})
}
