package extauthz

import (
	"maps"
	"net/http"
	"os"
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
// its routes asks for what the regime has.
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
	authz := unpack[*ext_authzv3.ExtAuthz](t, hcm.HttpFilters[0].GetTypedConfig())
	if authz.FailureModeAllow || authz.WithRequestBody != nil || !clusters[authz.GetGrpcService().GetEnvoyGrpc().GetClusterName()] {
		t.Errorf("the filter is %v", authz)
	}
	var sent []string
	for _, p := range authz.AllowedHeaders.GetPatterns() {
		sent = append(sent, p.GetExact())
	}
	for _, want := range []string{events.Credential{}.HeaderName(), "X-Forwarded-For", "X-Forwarded-Proto"} {
		if !slices.Contains(sent, strings.ToLower(want)) {
			t.Errorf("%s is not sent", want)
		}
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
	asked := map[string]string{} // scope by route
	for _, r := range host.Routes {
		if !clusters[r.GetRoute().GetCluster()] {
			t.Errorf("%s goes to %q", r.Name, r.GetRoute().GetCluster())
		}
		own, disabled := extensions(t, r.TypedPerFilterConfig)
		if disabled {
			open = append(open, r.Name)
			continue
		}
		merged := maps.Clone(general)
		maps.Copy(merged, own)
		ask, faults := question(held{route: merged, header: http.Header{}}.check(authz.EncodeRawHeaders).Attributes)
		if len(faults) > 0 {
			t.Errorf("%s: %v", r.Name, faults)
			continue
		}
		asked[r.Name] = ask.Scope
		if string(ask.Keyspace) != regime.Name || !slices.ContainsFunc(regime.Scopes, func(s struct{ Name string }) bool { return s.Name == ask.Scope }) ||
			!ask.Resource.IsZero() && !slices.Contains(regime.Resources, ask.Resource.Kind) {
			t.Errorf("%s asks for %v, which the regime does not have", r.Name, merged)
		}
	}
	if !slices.Equal(open, []string{"health"}) || asked["uploads"] != "upload" || asked["everything-else"] != "write" {
		t.Errorf("open to all: %v; asked: %v", open, asked)
	}
	if last := host.Routes[len(host.Routes)-1].Match; last.GetPathSpecifier().(*routev3.RouteMatch_Prefix).Prefix != "/" {
		t.Errorf("the last route is %v", last)
	}
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
