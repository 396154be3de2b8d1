package extauthz

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/go-json-experiment/json"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/internal/loadtest"
)

func TestMain(m *testing.M) {
	loadtest.Main(playChecks())
	goleak.VerifyTestMain(logtest.Settled(m), goleak.Cleanup(os.Exit))
}

// Each reason at Envoy's endpoint, with both ways that Envoy has to send headers.
func TestCheck(t *testing.T) {
	type outcome struct {
		status int
		code   string
	}
	for raw, commas := range map[bool]outcome{false: {401, "key_malformed"}, true: {200, ""}} {
		t.Run(map[bool]string{false: "joined headers", true: "raw headers"}[raw], func(t *testing.T) {
			w := newWorld(t)
			w.heartbeat()
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
				{"scope by the client", held{route: scribe("scope", "upload"), header: http.Header{"Authorization": bearer("plain"), "X-Keytrail-Scope": {"read"}}}, 403, "scope_missing"},
				{"resource", held{route: scribe("resource", "project/proj_2"), header: http.Header{"Authorization": bearer("project")}}, 403, "resource_not_allowed"},
				{"limit, the first", held{route: scribe(), header: http.Header{"Authorization": bearer("limited")}}, 200, ""},
				{"limit, the second", held{route: scribe(), header: http.Header{"Authorization": bearer("limited")}}, 429, "rate_limited"},
				{"another header", held{route: map[string]string{"keyspace": "other"}, header: http.Header{"X-Api-Key": {secretOf("elsewhere")}}}, 200, ""},
				{"the wrong header", held{route: map[string]string{"keyspace": "other"}, header: http.Header{"Authorization": bearer("elsewhere")}}, 401, "key_missing"},
				{"no such keyspace", held{route: map[string]string{"keyspace": "nowhere"}, header: http.Header{"Authorization": bearer("plain")}}, 503, "gateway_misconfigured"},

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
			if !strings.Contains(w.logged.String(), `"endpoint":"envoy"`) {
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
	w.heartbeat()
	client, _ := w.serve()
	names := identityNames
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
			empty := name == "X-Keytrail-Scopes-Omitted" || word == "bare" && (name == "X-Keytrail-Scopes" || name == "X-Keytrail-Environment")
			if (len(got[name]) == 0) != empty {
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

// A route that does not say what it asks for lets nobody through, also where
// Envoy lets failed calls through, and the operator is told.
func TestRouteThatCannotBeAnswered(t *testing.T) {
	misconfigured := func(t *testing.T, name string, resp *authv3.CheckResponse, err error) {
		t.Helper()
		denied := resp.GetDeniedResponse()
		if err != nil || denied.GetStatus().GetCode() != typev3.StatusCode_ServiceUnavailable || resp.Status.Code == int32(codes.OK) ||
			!strings.Contains(denied.Body, `"code":"gateway_misconfigured"`) || valuesOf(denied.Headers).Get("Retry-After") != "" {
			t.Errorf("%s: %v %v", name, resp, err)
		}
	}
	for _, c := range []struct {
		name  string
		route map[string]string
		want  string // in the log
	}{
		{"nothing", nil, "keyspace"},
		{"no keyspace", map[string]string{"scope": "read"}, "context_extensions.keyspace"},
		{"an empty keyspace", map[string]string{"keyspace": ""}, "context_extensions.keyspace"},
		{"a bad keyspace", map[string]string{"keyspace": "No Good"}, "context_extensions.keyspace"},
		{"an empty scope", scribe("scope", ""), "context_extensions.scope"},
		{"a bad scope", scribe("scope", "a scope"), "context_extensions.scope"},
		{"an empty resource", scribe("resource", ""), "context_extensions.resource"},
		{"a bad resource", scribe("resource", "proj_1"), "context_extensions.resource"},
		{"an unknown name", scribe("scopes", "read"), "want keyspace, scope, resource and min_position_header only"},
		{"another case", scribe("Scope", "read"), "want keyspace, scope, resource and min_position_header only"},
		{"a keyspace that is not defined", map[string]string{"keyspace": "nowhere"}, `"fault":"keyspace"`},
		{"a scope that is not declared", scribe("scope", "raed"), `"fault":"scope"`},
		{"a kind that is not declared", scribe("resource", "projcet/proj_1"), `"fault":"resource_kind"`},
	} {
		w := newWorld(t)
		w.heartbeat()
		client, _ := w.serve()
		resp, err := client.Check(t.Context(), held{route: c.route, header: http.Header{"Authorization": bearer("plain")}}.check(false))
		misconfigured(t, c.name, resp, err)
		if logged := w.logged.String(); !strings.Contains(logged, "a gateway is misconfigured") || !strings.Contains(logged, c.want) {
			t.Errorf("%s: the log does not say it: %s", c.name, logged)
		}
		logtest.CheckNoSecrets(t, []byte(w.logged.String()), events.NewSecret(secretOf("plain")))
	}
	w := newWorld(t)
	w.heartbeat()
	client, _ := w.serve()
	network := held{route: scribe()}.check(false)
	network.Attributes.Request = nil
	for _, req := range []*authv3.CheckRequest{network, {}} {
		resp, err := client.Check(t.Context(), req)
		misconfigured(t, "not of the HTTP filter", resp, err)
	}
	if w.ledger.Buffered() != 0 {
		t.Error("what cannot be asked is no decision")
	}
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

// A client may insist on a position in the header that the route names, and in no other.
func TestPosition(t *testing.T) {
	w := newWorld(t)
	w.heartbeat()
	client, _ := w.serve()
	asks := scribe("min_position_header", "X-Min-Position")
	reached := events.Position{Log: w.log.ID(), Seq: w.view.At()}
	reached.History, _ = w.view.Fingerprint(reached.Seq)
	foreign := events.Position{Log: events.LogID{1}, Seq: 1}
	for _, c := range []struct {
		name   string
		route  map[string]string
		values []string
		status int // 0 = allowed
	}{
		{"reached", asks, []string{reached.String()}, 0},
		{"none", asks, nil, 0},
		{"not asked for", scribe(), []string{"x"}, 0},
		{"unreadable", asks, []string{"x"}, 422},
		{"empty", asks, []string{""}, 422},
		{"twice", asks, []string{reached.String(), reached.String()}, 422},
		{"of another log", asks, []string{foreign.String()}, 422},
		{"in the key's header", scribe("min_position_header", "Authorization"), nil, 503},
	} {
		h := held{route: c.route, header: http.Header{"Authorization": bearer("plain"), "X-Min-Position": c.values}}
		for _, raw := range []bool{true, false} {
			resp, err := client.Check(t.Context(), h.check(raw))
			if err != nil || (resp.GetOkResponse() != nil) != (c.status == 0) || int(resp.GetDeniedResponse().GetStatus().GetCode()) != c.status {
				t.Errorf("%s, raw %t: %v %v, want %d", c.name, raw, resp, err, c.status)
			}
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
	w.heartbeat()
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

// TestCallsHoldBoundedMemory: calls whose message does not end hold no more than the
// bodies of all other endpoints may, and the others are told so. Then a call of the
// usual size is still answered.
func TestCallsHoldBoundedMemory(t *testing.T) {
	w := newWorld(t)
	w.heartbeat()
	client, url := w.serve()
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &h2c}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	const calls, bound = 60, 16 // megabytes
	exhausted, ended := make(chan struct{}), make(chan struct{}, calls)
	for range calls {
		unfinished, write := io.Pipe()
		defer write.Close()
		go write.Write([]byte("\x00\x00\x0f\xff\xf0" + strings.Repeat("\x00", 1_000_000)))
		go func() {
			defer func() { ended <- struct{}{} }()
			r, err := http.NewRequestWithContext(ctx, "POST", url+Path, unfinished)
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("Content-Type", "application/grpc")
			resp, err := transport.RoundTrip(r)
			if err != nil {
				return // cancelled at the end
			}
			defer resp.Body.Close()
			if got := resp.Header.Get("Grpc-Status"); resp.StatusCode != 200 || got != "8" {
				t.Errorf("%s, Grpc-Status %q, want 8", resp.Status, got)
			}
			exhausted <- struct{}{}
		}()
	}
	for range calls - bound {
		<-exhausted
	}
	if resp, err := client.Check(t.Context(), held{route: scribe()}.check(false)); err != nil {
		t.Errorf("%v %v", resp, err)
	}
	cancel()
	for n := 0; n < calls; {
		select {
		case <-exhausted:
		case <-ended:
			n++
		}
	}
}

// A keyspace may answer with a status that Envoy does not know.
func TestStatusThatEnvoyDoesNotKnow(t *testing.T) {
	for code, want := range map[int]int{401: 401, 404: 404, 422: 422, 429: 429, 503: 503, 498: 403, 599: 403, 0: 403} {
		s := httpStatus(code)
		if int(s.Code) != want || s.ValidateAll() != nil {
			t.Errorf("%d becomes %v", code, s)
		}
	}
}

// A gRPC client's refusal has its status in the header that Envoy leaves as it is
// when it turns the answer into gRPC's, and no body that would become the message.
func TestRefusalOfGRPC(t *testing.T) {
	w := newWorld(t)
	w.heartbeat()
	client, _ := w.serve()
	for _, raw := range []bool{false, true} {
		h := held{route: scribe(), header: http.Header{"Content-Type": {"application/grpc"}}}
		resp, err := client.Check(t.Context(), h.check(raw))
		denied := resp.GetDeniedResponse()
		got := valuesOf(denied.GetHeaders())
		if err != nil || denied.GetStatus().GetCode() != typev3.StatusCode_Unauthorized || denied.GetBody() != "" ||
			got.Get("Grpc-Status") != "16" || got.Get("Grpc-Message") != "no key was presented" || got.Get("Content-Type") != "application/grpc" {
			t.Errorf("%v %v", resp, err)
		}
	}
}

// A bug in the endpoint is an error of one call, and not the end of the process.
func TestPanicIsOneCallsError(t *testing.T) {
	var logged bytes.Buffer
	d := &endpoint{logger: slog.New(slog.NewJSONHandler(&logged, nil))} // without a node
	resp, err := d.Check(t.Context(), held{route: scribe(), header: http.Header{"Authorization": bearer("plain")}}.check(false))
	if resp != nil || status.Code(err) != codes.Internal || !strings.Contains(logged.String(), "nil pointer") {
		t.Errorf("%v %v %s", resp, err, &logged)
	}
}

// Whatever Envoy sends, the answer is one that Envoy takes, and nobody comes
// through without a live key presented once.
func FuzzCheck(f *testing.F) {
	w := newWorld(f)
	w.heartbeat()
	d := &endpoint{node: w.node, logger: slog.New(slog.DiscardHandler)}
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
		if err != nil { // Envoy may let a failed call through
			t.Fatal(err)
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
			if !live || second != "" || resp.Status.Code != int32(codes.OK) || len(ok.Headers)+len(ok.HeadersToRemove) != 7 {
				t.Fatalf("let through with %q and %q: %v", auth, second, resp)
			}
		} else if resp.GetDeniedResponse() == nil || resp.Status.Code == int32(codes.OK) {
			t.Fatalf("neither allowed nor denied: %v", resp)
		}
	})
}
