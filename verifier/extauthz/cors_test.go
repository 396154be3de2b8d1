package extauthz

import (
	"net/http"
	"testing"

	"google.golang.org/grpc/codes"
)

// A preflight carries no key and is no use: Envoy answers it as the definition says, and
// hands nothing on. A page that may call reads why it was refused.
func TestWebPages(t *testing.T) {
	for _, raw := range []bool{false, true} {
		w := newWorld(t)
		w.heartbeat()
		client, _ := w.serve()
		began, err := w.log.LastUse(t.Context()) // of the ledger's own
		if err != nil {
			t.Fatal(err)
		}
		asks := http.Header{"Origin": {page}, "Access-Control-Request-Method": {"DELETE"}}
		for _, c := range []struct {
			name   string
			held   held
			status int
			allow  string
		}{
			{"a preflight", held{route: scribe("scope", "upload"), method: "OPTIONS", header: asks}, 204, page},
			{"of another page", held{route: scribe(), method: "OPTIONS", header: http.Header{"Origin": {"https://b.example"}, "Access-Control-Request-Method": {"GET"}}}, 204, ""},
			{"with a key", held{route: scribe(), method: "OPTIONS", header: http.Header{"Origin": {page}, "Access-Control-Request-Method": {"GET"}, "Authorization": bearer("plain")}}, 204, page},
			{"a fault of the route", held{route: scribe("scope", "no scope"), method: "OPTIONS", header: asks}, 503, page},
			{"not asked by a method", held{route: scribe(), method: "OPTIONS", header: http.Header{"Origin": {page}}}, 401, page},
			{"of another method", held{route: scribe(), method: "GET", header: asks}, 401, page},
			{"a refusal", held{route: scribe("scope", "upload"), header: http.Header{"Origin": {page}, "Authorization": bearer("plain")}}, 403, page},
			{"a refusal of another page", held{route: scribe(), header: http.Header{"Origin": {"https://b.example"}}}, 401, ""},
		} {
			resp, err := client.Check(t.Context(), c.held.check(raw))
			if err != nil {
				t.Fatal(err)
			}
			if err := resp.ValidateAll(); err != nil {
				t.Errorf("%s: Envoy would not take this: %v", c.name, err)
			}
			denied := resp.GetDeniedResponse()
			if resp.Status.Code == int32(codes.OK) || int(denied.GetStatus().GetCode()) != c.status || denied.GetBody() != "" == (c.status == 204) {
				t.Errorf("%s: %v", c.name, resp)
			}
			h := valuesOf(denied.GetHeaders())
			if h.Get("Access-Control-Allow-Origin") != c.allow || (h.Get("Access-Control-Allow-Methods") != "") != (c.status == 204 && c.allow != "") || h.Get("Vary") != "Origin" {
				t.Errorf("%s: %v", c.name, h)
			}
			if c.name == "a fault of the route" { // what came before it is no use
				if last, err := w.log.LastUse(t.Context()); err != nil || last != began || w.ledger.Buffered() != 0 {
					t.Errorf("preflights are uses: %d, %v", last, err)
				}
			}
		}
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	}
}
