package extauthz

import (
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ext_authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

const filter = "envoy.filters.http.ext_authz"

// unpack decodes a typed_config and checks it as Envoy does.
func unpack[M interface {
	proto.Message
	ValidateAll() error
}](t *testing.T, a *anypb.Any) M {
	t.Helper()
	m, err := a.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	v, ok := m.(M)
	if !ok {
		t.Fatalf("a %T", m)
	}
	if err := v.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	return v
}

// The example configuration is one that Envoy takes, it fails closed, and each of
// its routes asks for what the keyspace has.
func TestExampleConfiguration(t *testing.T) {
	text, err := os.ReadFile("../../deploy/gateways/envoy/envoy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	boot := new(bootstrapv3.Bootstrap)
	if err := protojson.Unmarshal(asJSON, boot); err != nil {
		t.Fatal(err)
	}
	if err := boot.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	clusters := map[string]bool{}
	for _, c := range boot.StaticResources.Clusters {
		clusters[c.Name] = true
		if c.Name == "keytrail" {
			o := unpack[*httpv3.HttpProtocolOptions](t, c.TypedExtensionProtocolOptions["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"])
			if o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() == nil {
				t.Error("gRPC needs HTTP/2")
			}
			if a := c.LoadAssignment.Endpoints[0].LbEndpoints[0].GetEndpoint().Address.GetSocketAddress(); a.Address != "127.0.0.1" || a.GetPortValue() != 7070 {
				t.Errorf("keytrail is looked for at %v", a)
			}
		}
	}
	hcm := unpack[*hcmv3.HttpConnectionManager](t, boot.StaticResources.Listeners[0].FilterChains[0].Filters[0].GetTypedConfig())
	if !hcm.UseRemoteAddress.GetValue() {
		t.Error("a client could write its own X-Forwarded-Proto")
	}
	if n := len(hcm.HttpFilters); n != 2 || hcm.HttpFilters[0].Name != filter {
		t.Fatalf("the filters are %v", hcm.HttpFilters)
	}
	if _, err := hcm.HttpFilters[1].GetTypedConfig().UnmarshalNew(); err != nil {
		t.Error(err)
	}
	if u := hcm.UpgradeConfigs; len(u) != 1 || u[0].UpgradeType != "websocket" {
		t.Errorf("upgrades: %v", u)
	}
	// Keytrail reads 64 KB of headers, and a client's come with Envoy's own.
	if kb := hcm.MaxRequestHeadersKb.GetValue(); kb == 0 || kb > 60 {
		t.Errorf("%d KB of headers", kb)
	}
	authz := unpack[*ext_authzv3.ExtAuthz](t, hcm.HttpFilters[0].GetTypedConfig())
	if authz.FailureModeAllow || authz.WithRequestBody != nil || !clusters[authz.GetGrpcService().GetEnvoyGrpc().GetClusterName()] {
		t.Errorf("the filter is %v", authz)
	}
	var sent []string
	for _, p := range authz.AllowedHeaders.GetPatterns() {
		sent = append(sent, p.GetExact())
	}
	for _, want := range []string{keyspace.Credential{}.HeaderName(), "X-Forwarded-For", "X-Forwarded-Proto", "Content-Type", "Origin", "Access-Control-Request-Method"} {
		if !slices.Contains(sent, strings.ToLower(want)) {
			t.Errorf("%s is not sent", want)
		}
	}
	if slices.Contains(sent, "forwarded") {
		t.Error("Forwarded is the client's own word: Envoy does not maintain it")
	}

	var regime struct {
		Name      string                  `yaml:"name"`
		Scopes    []struct{ Name string } `yaml:"scopes"`
		Resources []string                `yaml:"resources"`
	}
	if text, err = os.ReadFile("../../deploy/regimes/scribe-sight.yaml"); err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &regime); err != nil {
		t.Fatal(err)
	}
	host := hcm.GetRouteConfig().VirtualHosts[0]
	general, _ := extensions(t, host.TypedPerFilterConfig)
	var open []string
	asked := map[string]string{}             // scope by route
	merged := map[string]map[string]string{} // what a route says to the filter
	for _, r := range host.Routes {
		if d := r.GetDirectResponse(); d != nil { // the upstream is not asked
			if d.Status != 400 {
				t.Errorf("%s answers %d", r.Name, d.Status)
			}
			continue
		}
		if !clusters[r.GetRoute().GetCluster()] {
			t.Errorf("%s goes to %q", r.Name, r.GetRoute().GetCluster())
		}
		own, disabled := extensions(t, r.TypedPerFilterConfig)
		if disabled {
			open = append(open, r.Name)
			for _, f := range identityNames {
				if !slices.Contains(r.RequestHeadersToRemove, strings.ToLower(f)) {
					t.Errorf("%s asks nobody, and %s of the client's goes through", r.Name, f)
				}
			}
			continue
		}
		said := maps.Clone(general)
		maps.Copy(said, own)
		ask, faults := question(held{route: said, path: "/v1/projects/proj_1", header: http.Header{}}.check(authz.EncodeRawHeaders).Attributes)
		if len(faults) > 0 {
			t.Errorf("%s: %v", r.Name, faults)
			continue
		}
		asked[r.Name], merged[r.Name] = ask.Scope, said
		if string(ask.Keyspace) != regime.Name || !slices.ContainsFunc(regime.Scopes, func(s struct{ Name string }) bool { return s.Name == ask.Scope }) ||
			!ask.Resource.IsZero() && !slices.Contains(regime.Resources, ask.Resource.Kind) {
			t.Errorf("%s asks for %v, which the regime does not have", r.Name, said)
		}
	}
	if !slices.Equal(open, []string{"health"}) || asked["uploads"] != "upload" || asked["everything-else"] != "write" {
		t.Errorf("open to all: %v; asked: %v", open, asked)
	}
	for _, name := range []string{"authorization", "forwarded"} {
		if !slices.Contains(host.RequestHeadersToRemove, name) {
			t.Errorf("%s reaches the upstream", name)
		}
	}
	// HEAD reads.
	for request, scope := range map[string]string{
		"GET /v1/documents": "read", "HEAD /v1/documents": "read", "POST /v1/documents": "write", "OPTIONS /v1/documents": "write",
		"HEAD /v1/projects/proj_1": "read", "DELETE /v1/projects/proj_1": "write", "HEAD /v1/uploads": "read", "POST /v1/uploads": "upload",
	} {
		if r := route(t, host.Routes, request); asked[r.Name] != scope {
			t.Errorf("%s takes the route %s, which asks for %q; want %q", request, r.Name, asked[r.Name], scope)
		}
	}
	// A key restricted to one project reaches no other: whatever the method, the
	// route names a resource.
	project := events.Resource{Kind: "project", ID: "proj_1"}
	for _, path := range []string{"/v1/projects;x/proj_2", "/v1/projects%3bx/proj_2", "/v1/projects%2Fproj_2", "/v1/projects/%zz", "/v1/projects/%", "/v1/projects/%4", "/healthz;x", `/v1\projects`} {
		if r := route(t, host.Routes, "GET "+path); r.GetDirectResponse() == nil {
			t.Errorf("%s takes the route %s", path, r.Name)
		}
	}
	for request, want := range map[string]events.Resource{
		"GET /v1/projects/proj_1": project, "GET /v1/projects/proj_1/files?a=/b": project, "DELETE /v1/projects/proj_1/": project,
		"GET /v1/projects/proj_2": {Kind: "project", ID: "proj_2"}, "POST /v1/Projects/proj_2/files": {Kind: "project", ID: "proj_2"},
		"GET /v1/projects": {}, "GET /v1/documents": {}, "GET /v1/%20%C3%A4": {},
	} {
		r := route(t, host.Routes, request)
		_, path, _ := strings.Cut(request, " ")
		if ask, faults := question(held{route: merged[r.Name], path: path}.check(authz.EncodeRawHeaders).Attributes); len(faults) > 0 || ask.Resource != want {
			t.Errorf("%s takes the route %s, which asks for %v %v; want %v", request, r.Name, ask.Resource, faults, want)
		}
	}
	if last := host.Routes[len(host.Routes)-1].Match; last.GetPathSpecifier().(*routev3.RouteMatch_Prefix).Prefix != "/" {
		t.Errorf("the last route is %v", last)
	}
}

// identityNames are the headers that say who the client is.
var identityNames = []string{"X-Keytrail-Key-Id", "X-Keytrail-Tenant", "X-Keytrail-Type", "X-Keytrail-Scopes", "X-Keytrail-Scopes-Omitted", "X-Keytrail-Environment", "X-Keytrail-Use-Id"}

// route returns the first route that the request ("GET /v1/documents") fits, as
// Envoy does.
func route(t *testing.T, routes []*routev3.Route, request string) *routev3.Route {
	t.Helper()
	method, path, _ := strings.Cut(request, " ")
	for _, r := range routes {
		fits := true
		for _, h := range r.Match.Headers {
			m := h.GetStringMatch()
			fits = fits && h.Name == ":method" && (m.GetExact() == method || m.GetSafeRegex() != nil && regexp.MustCompile("^(?:"+m.GetSafeRegex().Regex+")$").MatchString(method))
		}
		is := path
		if s := r.Match.CaseSensitive; s != nil && !s.Value {
			is = strings.ToLower(path) // as the routes' own paths are
		}
		switch m := r.Match.PathSpecifier.(type) {
		case *routev3.RouteMatch_Path:
			fits = fits && is == m.Path
		case *routev3.RouteMatch_Prefix:
			fits = fits && strings.HasPrefix(is, m.Prefix)
		case *routev3.RouteMatch_PathSeparatedPrefix:
			fits = fits && strings.HasPrefix(is+"/", m.PathSeparatedPrefix+"/")
		case *routev3.RouteMatch_SafeRegex:
			fits = fits && regexp.MustCompile("^(?:"+m.SafeRegex.Regex+")$").MatchString(is)
		default:
			t.Fatalf("%s: a path of type %T", r.Name, m)
		}
		if fits {
			return r
		}
	}
	t.Fatalf("%s takes no route", request)
	return nil
}

// extensions returns what a virtual host or a route says to the filter.
func extensions(t *testing.T, per map[string]*anypb.Any) (ext map[string]string, disabled bool) {
	t.Helper()
	if per[filter] == nil {
		return nil, false
	}
	c := unpack[*ext_authzv3.ExtAuthzPerRoute](t, per[filter])
	return c.GetCheckSettings().GetContextExtensions(), c.GetDisabled()
}
