package main

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// TestEnvoyCheck asks the running program as Envoy does, on the port of all
// other endpoints.
func TestEnvoyCheck(t *testing.T) {
	t.Parallel()
	p := up(t, filepath.Join(t.TempDir(), "data"), "--trusted-proxy", "10.0.0.0/8")
	conn, err := grpc.NewClient(strings.TrimPrefix(p.url, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	envoy := authv3.NewAuthorizationClient(conn)
	check := func(ext, header map[string]string, peer string) (*authv3.CheckResponse, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return envoy.Check(ctx, &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
			ContextExtensions: ext,
			Source: &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: peer, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 4711}}}}},
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: "/v1/documents", Scheme: "https", Headers: header}},
		}})
	}
	const inside, outside, proxy = "203.0.113.7", "198.51.100.9", "10.0.0.1"
	ext := map[string]string{"keyspace": "scribe-sight", "scope": "read"}

	p.must(t, "keyspace", "apply", "-f", regime)
	created := p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci", "scopes": []string{"read"},
		"allowlist": []string{"203.0.113.0/24"}, "limit": map[string]any{"per_minute": 60, "burst": 1000}})
	secret := created["key"].(string)
	p.wantReason(t, "ok", map[string]any{"key": secret, "ip": inside, "min_position": created["__position"]})
	header := func(more ...string) map[string]string {
		h := map[string]string{"authorization": "Bearer " + secret, "x-keytrail-tenant": "forged"}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = more[i+1]
		}
		return h
	}

	resp, err := check(ext, header(), inside)
	if err != nil {
		t.Fatal(err)
	}
	upstream := map[string]string{}
	for _, h := range resp.GetOkResponse().GetHeaders() {
		upstream[h.Header.Key] = h.Header.Value
	}
	use := upstream["X-Keytrail-Use-Id"]
	delete(upstream, "X-Keytrail-Use-Id")
	if want := map[string]string{"X-Keytrail-Key-Id": created["id"].(string), "X-Keytrail-Tenant": "acme", "X-Keytrail-Type": "secret",
		"X-Keytrail-Scopes": "read", "X-Keytrail-Environment": "live"}; !maps.Equal(upstream, want) || !strings.HasPrefix(use, "up/") {
		t.Errorf("the upstream gets %v and use %s, want %v", upstream, use, want)
	}
	client := map[string]string{}
	for _, h := range resp.GetOkResponse().GetResponseHeadersToAdd() {
		client[h.Header.Key] = h.Header.Value
	}
	if client["X-RateLimit-Limit"] != "1000" || !strings.HasPrefix(client["X-Request-Id"], "req_") {
		t.Errorf("the client gets %v", client)
	}

	denied := func(want int, code string, ext, header map[string]string, peer string) {
		t.Helper()
		resp, err := check(ext, header, peer)
		if err != nil || int(resp.GetDeniedResponse().GetStatus().GetCode()) != want || !strings.Contains(resp.GetDeniedResponse().GetBody(), `"code":"`+code+`"`) {
			t.Errorf("want %d %s, got %v %v", want, code, resp, err)
		}
	}
	denied(401, "authentication_required", ext, nil, inside)
	denied(401, "authentication_required", ext, header("authorization", "Bearer "+secret+",Bearer "+secret), inside)
	denied(403, "insufficient_permissions", map[string]string{"keyspace": "scribe-sight", "scope": "upload"}, header(), inside)
	denied(403, "insufficient_permissions", ext, header("x-forwarded-for", inside), outside)
	denied(403, "insufficient_permissions", ext, header("x-forwarded-for", inside+", "+outside), proxy)
	denied(503, "gateway_misconfigured", map[string]string{"keyspace": "nowhere"}, header(), inside)
	denied(503, "gateway_misconfigured", map[string]string{"keyspace": "scribe-sight", "scope": "raed"}, header(), inside)
	if resp, err := check(ext, header("x-forwarded-for", outside+", "+inside), proxy); err != nil || resp.GetOkResponse() == nil {
		t.Errorf("behind a trusted proxy: %v %v", resp, err)
	}
	for _, ext := range []map[string]string{nil, {"keyspace": "scribe-sight", "scpoe": "read"}} {
		denied(503, "gateway_misconfigured", ext, header(), inside)
	}
	for _, fault := range []string{"keyspace", "scope", "malformed"} {
		patient{t, p.url, p.root}.eventuallySays(nil, "FAIL", fmt.Sprintf("with the fault %q", fault))
	}
	if err := conn.Invoke(t.Context(), "/envoy.service.auth.v3.Authorization/Other", &authv3.CheckRequest{}, &authv3.CheckResponse{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("another method: %v", err)
	}

	// The other endpoints answer over HTTP/2 without TLS too, and over HTTP/1 as ever.
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	h2 := &http.Transport{Protocols: &protocols}
	defer h2.CloseIdleConnections()
	r, err := http.NewRequest("GET", p.url+"/v1/authorize/scribe-sight?refusal=header", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := (&http.Client{Transport: h2}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.ProtoMajor != 2 || answer.StatusCode != 403 || answer.Header.Get("X-Keytrail-Refusal-Status") != "401" {
		t.Errorf("over HTTP/2: %s %d %v", answer.Proto, answer.StatusCode, answer.Header)
	}
	if _, _, metrics := p.raw(t, "GET", "/metrics", nil, nil); !strings.Contains(string(metrics), `keytrail_verifier_request_seconds_count{endpoint="envoy"} 8`) {
		t.Error("the decisions of this endpoint are not counted apart")
	}

	// What was decided is on the record, and a revocation ends it at once.
	revoked := p.data(t, 200, "DELETE", "/v1/keys/"+created["id"].(string), nil)
	p.wantReason(t, "key_revoked", map[string]any{"key": secret, "min_position": revoked["__position"]})
	denied(401, "authentication_required", ext, header(), inside)
	eventually(t, func() string {
		if out := p.must(t, "audit", "uses", "--key", created["id"].(string)); !strings.Contains(out, use) || !strings.Contains(out, outside) {
			return fmt.Sprintf("use %s is not in the ledger:\n%s", use, out)
		}
		return ""
	})

	p.stop(t) // orderly, while Envoy's connection is open
	if strings.Contains(p.stderr.String(), secret) || !strings.Contains(p.stderr.String(), "context_extensions") {
		t.Errorf("the log:\n%s", p.stderr.String())
	}
}
