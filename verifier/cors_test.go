package verifier

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/keytrail/keytrail/events"
)

// A page's browser asks first, without a key, and the answer is the definition's at each
// endpoint; it is no use, and neither the handler nor the upstream sees it.
func TestPreflight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		for ks, origins := range map[events.KeyspaceID][]string{"all": {"*"}, "some": {"https://a.example", "http://localhost:3000"}, "none": nil} {
			d := scribeDefinition()
			d.CORS.Origins = origins
			if ks == "some" {
				d.Credential.Header = "X-Api-Key"
			}
			w.define(ks, d)
		}
		began, err := w.log.LastUse(t.Context()) // of the ledger's own
		if err != nil {
			t.Fatal(err)
		}
		reached := 0
		protected := func(ks events.KeyspaceID) http.Handler {
			return w.node.Protect(ks, nil)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ }))
		}
		ask := func(h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(method, target, nil)
			for i := 0; i < len(header); i += 2 {
				r.Header.Add(header[i], header[i+1])
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			return rec
		}
		const mine = "https://a.example"
		for _, c := range []struct {
			ks     events.KeyspaceID
			origin string
			allow  string
		}{
			{"all", mine, "*"}, {"all", "null", "*"}, {"some", mine, mine}, {"some", "http://localhost:3000", "http://localhost:3000"},
			{"some", "https://b.example", ""}, {"some", "https://a.example.evil", ""}, {"some", "null", ""}, {"none", mine, ""},
		} {
			for endpoint, rec := range map[string]*httptest.ResponseRecorder{
				"GET":     ask(w.mux, "GET", "/v1/preflight/"+string(c.ks)+"?of=the+client", "Origin", c.origin, "Access-Control-Request-Method", "DELETE"),
				"OPTIONS": ask(w.mux, "OPTIONS", "/v1/preflight/"+string(c.ks), "Origin", c.origin, "Access-Control-Request-Method", "DELETE"),
				"protect": ask(protected(c.ks), "OPTIONS", "/anything", "Origin", c.origin, "Access-Control-Request-Method", "DELETE"),
			} {
				h := rec.Header()
				if rec.Code != 204 || rec.Body.Len() != 0 || h.Get(headerAllowOrigin) != c.allow || h.Get("Cache-Control") != "no-store" || h.Get(headerExposeHeaders) != "" {
					t.Errorf("%s: %s from %s: %d %v", endpoint, c.ks, c.origin, rec.Code, h)
				}
				if allowed := c.allow != ""; allowed != strings.Contains(h.Get(headerAllowMethods), "DELETE") || allowed != (h.Get(headerMaxAge) == "600") ||
					allowed != (h.Get(headerAllowHeaders) == map[events.KeyspaceID]string{"all": "Authorization, *", "some": "X-Api-Key, *", "none": "some"}[c.ks]) {
					t.Errorf("%s: %s from %s: %v", endpoint, c.ks, c.origin, h)
				}
				if (h.Get("Vary") == "Origin") != (c.ks == "some") {
					t.Errorf("%s: %s: Vary: %q", endpoint, c.ks, h.Get("Vary"))
				}
			}
		}
		if last, err := w.log.LastUse(t.Context()); err != nil || last != began || reached != 0 || w.ledger.Buffered() != 0 {
			t.Errorf("preflights are uses: %d, %v, %d reached the handler", last, err, reached)
		}
		// What only looks like one needs a key, and a question about one is no preflight:
		// a gateway passes a 2xx on.
		for _, header := range [][]string{{}, {"Origin", mine}, {"Access-Control-Request-Method", "GET"}} {
			if rec := ask(protected("all"), "OPTIONS", "/", header...); rec.Code != 401 {
				t.Errorf("OPTIONS with %q: %d", header, rec.Code)
			}
		}
		if rec := ask(protected("all"), "GET", "/", "Origin", mine, "Access-Control-Request-Method", "GET"); rec.Code != 401 {
			t.Errorf("GET: %d", rec.Code)
		}
		if rec := ask(w.mux, "OPTIONS", "/v1/authorize/all", "Origin", mine, "Access-Control-Request-Method", "GET", "X-Forwarded-Method", "OPTIONS"); rec.Code != 401 {
			t.Errorf("authorize: %d", rec.Code)
		}
		// A gateway's mistake is told, as at authorize.
		for _, path := range []string{"/v1/preflight/nowhere", "/v1/preflight/No_Good", "/v1/preflight", "/v1/preflight/a/b"} {
			if rec := ask(w.mux, "OPTIONS", path, "Origin", mine, "Access-Control-Request-Method", "GET"); rec.Code != 503 || !strings.Contains(rec.Body.String(), codeMisconfigured) {
				t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
			}
		}
		if reached != 0 {
			t.Errorf("%d requests reached the handler", reached)
		}
		w.end()
	})
}

// A page can read why it was refused, if the definition allows its origin; what an
// upstream answers is the upstream's to open.
func TestPagesReadRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		d := scribeDefinition()
		d.CORS.Origins = []string{"https://a.example"}
		w.define(scribe, d)
		w.key("plain", nil)
		key := []string{"Authorization", "Bearer " + secretOf("plain")}
		for _, c := range []struct {
			name, query string
			key         []string
			status      int
		}{
			{"no key", "", nil, 401}, {"scope", "?scope=upload", key, 403}, {"misconfigured", "?scope=nothing", key, 503}, {"cannot be read", "?scope=no+scope", key, 503},
			{"in a header", "?refusal=header&scope=upload", key, 403}, {"allowed", "", key, 200}, {"gRPC-web", "", []string{"Content-Type", "application/grpc-web"}, 401},
		} {
			for origin, allow := range map[string]string{"https://a.example": "https://a.example", "https://b.example": "", "": ""} {
				if c.status == 200 {
					allow = ""
				}
				header := c.key
				if origin != "" {
					header = append([]string{"Origin", origin}, c.key...)
				}
				for endpoint, h := range map[string]http.Handler{"authorize": w.mux, "protect": w.handler(scribe)} {
					if endpoint == "protect" && strings.Contains(c.query, "refusal") {
						continue
					}
					rec := get(h, "/v1/authorize/scribe-sight"+c.query, header...)
					expose, vary := rec.Header().Get(headerExposeHeaders), rec.Header().Get("Vary")
					if rec.Code != c.status || rec.Header().Get(headerAllowOrigin) != allow || (expose == "*") != (allow != "") || (vary == "Origin") != (c.status != 200) {
						t.Errorf("%s at %s from %q: %d %v", c.name, endpoint, origin, rec.Code, rec.Header())
					}
				}
			}
		}
		if rec := get(w.mux, "/v1/authorize/scribe-sight", "Origin", "https://a.example", "Origin", "https://a.example"); rec.Header().Get(headerAllowOrigin) != "" {
			t.Errorf("two origins: %v", rec.Header())
		}
		w.end()
	})
}
