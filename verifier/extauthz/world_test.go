package extauthz

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/verifier"
)

const (
	stranger = "198.51.100.9"
	office   = "203.0.113.7" // on the allowlist of the key "office"
	proxy    = "10.0.0.1"    // trusted

	page     = "https://app.example.com" // whose scripts may call
	imported = "legacy,key,with,commas"  // of another issuer
)

// world is a node with some keys, its clock standing still.
type world struct {
	t      testing.TB
	log    *logtest.MemLog
	view   *projections.Keys
	ledger *verifier.Ledger
	node   *verifier.Node
	logged lockedBuffer
	level  slog.LevelVar // of what is logged; debug
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
	w.level.Set(slog.LevelDebug)
	logger := slog.New(slog.NewJSONHandler(&w.logged, &slog.HandlerOptions{Level: &w.level}))
	w.ledger = verifier.NewLedger(verifier.LedgerConfig{Sink: w.log, Node: "node-1", Log: w.log.ID(), Logger: logger})
	w.node = verifier.NewNode(verifier.NodeConfig{View: w.view, Ledger: w.ledger, Leases: w.log, Log: w.log.ID(), Logger: logger,
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Now: func() time.Time { return w.now }})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.ledger.Run(ctx) }()
	w.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { w.stop() })
	for end := time.Now().Add(2 * time.Minute); w.ledger.Ready() != nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the ledger opens no epoch")
		}
	}
	for name, cred := range map[events.KeyspaceID]keyspace.Credential{"scribe-sight": {}, "other": {Header: "X-Api-Key"}} {
		w.put(events.KeyspaceAggregate(name), &events.KeyspaceDefined{Definition: keyspace.Definition{
			Credential: cred,
			CORS:       keyspace.CORS{Origins: []string{page}},
			KeyTypes:   []keyspace.KeyType{{Name: "secret", Environments: []string{"live"}, Prefix: "sk_live_"}},
			Scopes:     []keyspace.ScopeDef{{Name: "read"}, {Name: "write", Implies: []string{"read"}}, {Name: "upload"}},
			Resources:  []string{"project"},
		}})
	}
	w.key("plain", nil)
	w.key("bare", func(c *events.KeyCreated) { c.Environment, c.Scopes = "", nil })
	w.key("limited", func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{PerMinute: 60, Burst: 1} })
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

// heartbeat makes the node ready.
func (w *world) heartbeat() {
	w.view.Fresh(events.At(w.now), w.view.At())
	if err := w.log.Raise(w.t.Context(), events.Head{Log: w.log.ID(), Size: w.view.At()}); err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.node.Confirm(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

func secretOf(word string) string {
	return "sk_live_" + (word + strings.Repeat("x", keyspace.DefaultSecretLength))[:keyspace.DefaultSecretLength]
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

// serve serves the endpoint as a process does, and returns Envoy's end.
func (w *world) serve() (client authv3.AuthorizationClient, url string) {
	w.t.Helper()
	mux := http.NewServeMux()
	Routes(mux, w.node, slog.New(slog.NewJSONHandler(&w.logged, nil)))
	w.node.Routes(mux)
	srv := httptest.NewUnstartedServer(api.Handler(mux))
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
	method string // "" = GET
	path   string // "" = /v1/documents
	header http.Header
}

func (h held) check(raw bool) *authv3.CheckRequest {
	r := &authv3.AttributeContext_HttpRequest{Id: "1", Method: cmp.Or(h.method, "GET"), Host: "api.example.com", Path: cmp.Or(h.path, "/v1/documents"), Scheme: h.scheme, Protocol: "HTTP/2"}
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
