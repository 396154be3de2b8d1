package verifier

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
)

func TestSegment(t *testing.T) {
	for _, c := range []struct {
		uri  string
		n    int
		want string
	}{
		{"/api/v1/projects/proj_1", 4, "proj_1"}, {"/api/v1/projects/proj_1", 1, "api"}, {"/api/v1/projects/proj_1/", 4, "proj_1"},
		{"/api/v1/projects/proj_1/files?x=/a/b", 4, "proj_1"}, {"/a?b=%2f", 1, "a"}, {"/a%41", 1, "aA"}, {"/%C3%A4", 1, "ä"},
		{"/api", 2, ""}, {"/", 1, ""}, {"", 1, ""}, {"api/x", 1, ""}, {"http://a/b", 2, ""}, {"*", 1, ""}, {"/?a", 1, ""},
		{"/a//b", 2, ""}, {"//a", 1, ""}, {"/a/../b", 1, ""}, {"/a/./b", 1, ""}, {"/a;x/b", 2, ""}, {`/a\b`, 1, ""}, {"/a/b#c", 2, ""},
		{"/a%2Fb/c", 2, ""}, {"/a/b%5cc", 1, ""}, {"/a/%2e%2E/b", 1, ""}, {"/a/%zz", 2, ""}, {"/a/%", 2, ""},
	} {
		if got, ok := segment(c.uri, c.n); got != c.want || ok != (c.want != "") {
			t.Errorf("segment %d of %s: %q %t, want %q", c.n, c.uri, got, ok, c.want)
		}
	}
	for id, want := range map[string]int{"{1}": 1, "{32}": 32, "{0}": 0, "{33}": 0, "{01}": 0, "{+1}": 0, "{-1}": 0, "{}": 0, "{": 0, "1}": 0, "": 0, "x{1}": 0, "{1}x": 0} {
		if n, ok := placeholder(id); ok != (want > 0) || ok && n != want {
			t.Errorf("%q: %d %t", id, n, ok)
		}
	}
}

// A gateway without variables lets Keytrail take the resource out of the path, which a
// trusted proxy says and nobody else.
func TestResourceOfThePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gateway := netip.MustParseAddr("192.0.2.9")
		w := endpointsWorld(t, func(c *NodeConfig) { c.TrustedProxies = []netip.Prefix{netip.PrefixFrom(gateway, 32)} })
		for _, c := range []struct {
			key, query, peer, uri string
			status                int
			says                  string
		}{
			{"project", "resource=project/{3}", "192.0.2.9", "/v1/projects/proj_1/files?a=b", 200, ""},
			{"project", "resource=project/{3}", "192.0.2.9", "/v1/projects/proj_2/files", 403, "resource_not_allowed"},
			{"project", "resource=project/%7B3%7D&scope=write", "192.0.2.9", "/v1/projects/proj_1", 200, ""},
			{"plain", "resource=project/{3}", "192.0.2.9", "/v1/projects/proj_2/files", 200, ""},
			{"plain", "resource=project/{3}", "192.0.2.9", "/v1/projects/a%2Fb", 403, "scope_missing"},
			{"plain", "resource=project/{3}", "192.0.2.9", "/v1/projects/%20", 200, ""}, // no key can be restricted to it
			{"project", "resource=project/{3}", "192.0.2.9", "/v1/projects/%20", 403, "resource_not_allowed"},
			{"plain", "resource=project/{3}", "192.0.2.9", "/v1/projects", 403, "scope_missing"},
			{"project", "resource=project/{3}", "192.0.2.9", "/v1/x/../projects/proj_1", 403, "scope_missing"},
			{"plain", "resource=project/{3}", "192.0.2.9", "", 503, "X-Forwarded-Uri"},
			{"plain", "resource=project/{3}", "192.0.2.10", "/v1/projects/proj_1", 503, "X-Forwarded-Uri"}, // not trusted
			{"plain", "resource=Project/{3}", "192.0.2.9", "/v1/projects/proj_1", 503, "kind"},
			{"plain", "resource=projcet/{3}", "192.0.2.9", "/v1/projects/proj_1", 503, "declares no resource"},
			{"plain", "resource=project/{0}", "192.0.2.9", "/v1/projects/proj_1", 503, "resource"},
			{"plain", "resource={3}/x", "192.0.2.9", "/v1/projects/proj_1", 503, "resource"},
		} {
			r := request("GET", "/v1/authorize/scribe-sight?"+c.query, c.peer+":1000")
			r.Header.Set("Authorization", "Bearer "+secretOf(c.key))
			r.Header.Set("X-Forwarded-For", "198.51.100.1")
			if c.uri != "" {
				r.Header.Set("X-Forwarded-Uri", c.uri)
			}
			if rec := serve(w, r); rec.Code != c.status || !strings.Contains(rec.Body.String(), c.says) {
				t.Errorf("%s, %s from %s of %s: %d %s", c.key, c.query, c.peer, c.uri, rec.Code, rec.Body)
			}
		}
		w.end()
	})
}
