package verifier

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/keytrail/keytrail/events"
)

// handler is a program's own, behind Protect of the keyspace; what it demands is in the
// query, as /v1/authorize has it, and cost.
func (w *world) handler(ks events.KeyspaceID) http.Handler {
	demand := func(r *http.Request) (d Demand) {
		q := r.URL.Query()
		d.Scope = q.Get("scope")
		d.Resource.Kind, d.Resource.ID, _ = strings.Cut(q.Get("resource"), "/")
		fmt.Sscan(q.Get("cost"), &d.Cost)
		d.MinPositionHeader = q.Get("min_position_header")
		return d
	}
	return w.node.Protect(ks, demand)(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		p, ok := PrincipalFrom(r.Context())
		fmt.Fprintf(rw, "%v %s of %s in %s, %s %s: %v", ok, p.Key, p.Tenant, p.Keyspace, p.Type, p.Environment, p.Scopes)
	}))
}

func get(h http.Handler, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("GET", target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// Protect answers what /v1/authorize answers a gateway for the client, and lets through
// what it lets through.
func TestProtectIsAuthorize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		defer w.end()
		for _, key := range []string{"plain", "limited", "office", "project", "revoked", "expired", "disabled", "elsewhere", "nobody's", ""} {
			for _, query := range []string{
				"", "scope=write", "scope=rewrite", "scope=unlisted", "scope=no+scope", "resource=project/proj_1", "resource=project/proj_2",
				"resource=projekt/proj_1", "resource=Project/1", "min_position_header=X-Position", "min_position_header=No+Header",
			} {
				for _, ks := range []events.KeyspaceID{scribe, "other", "none", "Not+one"} {
					for _, more := range []string{"", "application/grpc"} {
						header := []string{"Authorization", "Bearer " + secretOf(key), "X-Api-Key", "Bearer " + secretOf(key), "Content-Type", more, "X-Position", "0"}
						if key == "" {
							header = header[4:]
						}
						want := get(w.mux, "/v1/authorize/"+url.PathEscape(string(ks))+"?"+query, header...)
						got := get(w.handler(ks), "/?"+query, header...)
						what := fmt.Sprintf("%q, %q, %s, %s", key, query, ks, more)
						if want.Header().Get(headerGRPCStatus) != "" {
							want.Code = http.StatusOK // as the gateway answers it
						}
						if want.Code == http.StatusOK && want.Header().Get("X-Keytrail-Key-Id") != "" {
							if got.Code != http.StatusOK || !strings.HasPrefix(got.Body.String(), "true "+want.Header().Get("X-Keytrail-Key-Id")+" of acme in ") {
								t.Errorf("%s: %d %s", what, got.Code, got.Body)
							}
							continue
						}
						id := got.Header().Get("X-Request-Id")
						// The endpoint gets its id from api.Handler, which is not here.
						body := strings.ReplaceAll(got.Body.String(), `,"request_id":"`+id+`"`, "")
						if got.Code != want.Code || id == "" || body != want.Body.String() {
							t.Errorf("%s: %d %s\nwant %d %s", what, got.Code, got.Body, want.Code, want.Body)
						}
						for name := range want.Header() {
							if name != "Connection" && !slices.Equal(got.Header()[name], want.Header()[name]) {
								t.Errorf("%s: %s is %q, want %q", what, name, got.Header()[name], want.Header()[name])
							}
						}
					}
				}
			}
		}
	})
}

func TestProtect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		h := w.handler(scribe)
		limit, remaining := "X-RateLimit-Limit", "X-RateLimit-Remaining" // as the keyspace spells them
		limited := []string{"Authorization", "Bearer " + secretOf("limited"), "X-Request-Id", "req_01ARZ3NDEKTSV4RRFFQ69G5FAV"}
		if got := get(h, "/?cost=2", limited...); got.Code != 200 || !slices.Equal(got.Header()[remaining], []string{"0"}) || got.Header().Get("X-Request-Id") != "" ||
			got.Body.String() != "true key_01000000000000000000000002 of acme in scribe-sight, secret live: [read write]" {
			t.Errorf("%d %s %v", got.Code, got.Body, got.Header())
		}
		refused := get(h, "/", limited...)
		if refused.Code != 429 || refused.Header().Get("Retry-After") != "1" || !slices.Equal(refused.Header()[limit], []string{"2"}) {
			t.Errorf("%d %s %v", refused.Code, refused.Body, refused.Header())
		}
		if _, ok := PrincipalFrom(t.Context()); ok {
			t.Error("a principal out of nowhere")
		}
		any := w.node.Protect(scribe, nil)(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			for name := range r.Header {
				if strings.Contains(strings.ToLower(name), "keytrail") {
					t.Errorf("the client's %s came through", name)
				}
			}
		}))
		forged := []string{"Authorization", "Bearer " + secretOf("plain"), "x-keytrail-tenant", "root", "X-Keytrail-Scopes", "admin", "X_Keytrail_Key_Id", "key_1", "X-KEYTRAIL_Type", "root"}
		if got := get(any, "/", forged...); got.Code != 200 {
			t.Errorf("with forged headers: %d", got.Code)
		}
		if got := get(any, "/", "Authorization", "Bearer "+secretOf("plain")); got.Code != 200 {
			t.Errorf("any key: %d", got.Code)
		}
		if got := get(any, "/"); got.Code != 401 {
			t.Errorf("no key: %d", got.Code)
		}
		for target, status := range map[string]int{
			"/?resource=project/": 403, "/?resource=project/..%2F": 403, // what a client writes
			"/?scope=no+scope": 503, "/?resource=/proj_1": 503, "/?resource=Project/1": 503, // the program's mistakes, which leave no use
			"/?resource=project/" + secretOf("plain"): 422, // nor does a secret
		} {
			if got := get(h, target, "Authorization", "Bearer "+secretOf("plain")); got.Code != status || strings.Contains(got.Body.String(), secretOf("plain")) {
				t.Errorf("%s: %d %s", target, got.Code, got.Body)
			}
		}
		var reasons []events.Reason
		uses := w.end()[0].uses
		for n := range len(uses) {
			u := uses[uint64(n+1)]
			reasons = append(reasons, u.Reason)
			if u.Reason == events.ReasonRateLimited && u.RequestID.String() != refused.Header().Get("X-Request-Id") {
				t.Errorf("the refusal is recorded under %s, its answer says %s", u.RequestID, refused.Header().Get("X-Request-Id"))
			}
		}
		want := []events.Reason{events.ReasonOK, events.ReasonRateLimited, events.ReasonOK, events.ReasonOK, events.ReasonKeyMissing, events.ReasonScopeMissing, events.ReasonScopeMissing}
		if !slices.Equal(reasons, want) {
			t.Errorf("recorded %v, want %v", reasons, want)
		}
	})
}
