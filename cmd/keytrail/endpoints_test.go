package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/schemas"
)

// TestEveryEndpointOfTheDocumentAnswers calls each route that openapi.json describes:
// none of them may be unknown to the running program, and none may answer 5xx to
// nonsense.
func TestEveryEndpointOfTheDocumentAnswers(t *testing.T) {
	p := up(t, filepath.Join(t.TempDir(), "data"))
	fill := strings.NewReplacer("{keyspace}", "no-such", "{id}", "key_01ARZ3NDEKTSV4RRFFQ69G5FAV", "{tenant}", "acme", "{role}", "r")
	for _, route := range schemas.Routes() {
		method, path, _ := strings.Cut(route, " ")
		for _, body := range []string{"", "{", "[]", `{"no_such_field":1}`, `{"key":{"a":1}}`, "\xff", `{"a":1,"a":2}`, strings.Repeat(" ", 2<<20) + "{}"} {
			status, header, raw := p.proved(t, method, fill.Replace(path), nil, body)
			gateways := strings.Contains(path, "/v1/authorize/") || strings.Contains(path, "/v1/preflight/")
			misconfigured := gateways && strings.Contains(string(raw), "gateway_misconfigured")
			if status >= 500 && !misconfigured { // no such keyspace: for a gateway that is the operator's error
				t.Errorf("%s with %.20q: %d %s", route, body, status, raw)
			}
			if strings.Contains(string(raw), "no such endpoint") || status == 405 {
				t.Errorf("%s is in the document but not an endpoint: %d %s", route, status, raw)
			}
			if status >= 400 && !strings.HasPrefix(header.Get("Content-Type"), "application/problem+json") && !gateways {
				t.Errorf("%s with %.20q: %d is no problem document: %s", route, body, status, header.Get("Content-Type"))
			}
		}
	}
	for _, path := range []string{"/no/such/endpoint", "/v1/audit/no-such-endpoint"} {
		if status, _, raw := p.raw(t, "GET", path, nil, nil); status != 404 || !strings.Contains(string(raw), "no such endpoint") {
			t.Errorf("an unknown path: %d %s", status, raw)
		}
	}
	// Nothing of it was written: the log ends with what the start put there, and
	// with what was read.
	if out := p.must(t, "--json", "keyspace", "list"); strings.Count(out, `"definition"`) != 1 {
		t.Errorf("nonsense made a keyspace:\n%s", out)
	}
	if out := p.must(t, "--json", "key", "list", "--keyspace", "keytrail", "--all"); strings.Count(out, `"hint"`) != 1 {
		t.Errorf("nonsense made a key:\n%s", out)
	}
	eventually(t, func() string {
		last := 0
		for _, e := range rows[eventView](t, p.must(t, "--json", "audit", "events", "--all")) {
			last = max(last, int(e.Seq))
			if e.Type != "keyspace.defined" && e.Type != "key.created" && !strings.HasPrefix(e.Type, "audit.") {
				t.Errorf("nonsense was written down: %+v", e)
			}
		}
		if last < 3 {
			return "the trail has no reading yet"
		}
		return ""
	})
	p.stop(t)
}
