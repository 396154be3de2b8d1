package verifier

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// X-Forwarded-Proto counts from a trusted proxy only, and one hop without TLS
// is enough.
func TestSchemeOfTheClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorsWorld(t, nil)
		defer w.end()
		const proxy, stranger = "192.0.2.1", "192.0.2.2"
		for _, c := range []struct {
			peer     string
			tls      bool
			protos   []string
			insecure bool
		}{
			{stranger, false, nil, true},
			{stranger, true, nil, false},
			{stranger, false, []string{"https"}, true}, // a stranger's word
			{stranger, true, []string{"http"}, false},
			{proxy, false, nil, true},
			{proxy, true, nil, false},
			{proxy, false, []string{"https"}, false},
			{proxy, false, []string{" HTTPS\t"}, false},
			{proxy, false, []string{"https, https"}, false},
			{proxy, true, []string{"http"}, true},
			{proxy, true, []string{"https, http"}, true},
			{proxy, true, []string{"https", "http"}, true},
			{proxy, true, []string{"https,"}, true},
			{proxy, true, []string{""}, true},
			{proxy, true, []string{"wss"}, true},
			{"", false, []string{"https"}, true}, // nobody knows who says so
		} {
			peer, _ := netip.ParseAddr(c.peer)
			header := http.Header{"X-Forwarded-Proto": c.protos}
			if _, insecure := w.node.client(&Ask{Peer: peer, Secure: c.tls, Header: header.Values}); insecure != c.insecure {
				t.Errorf("peer %q, TLS %v, %q: insecure %v", c.peer, c.tls, c.protos, insecure)
			}
		}
	})
}

// An answer that allows has every identity field, also where there is nothing
// to say, and every answer has the request's id.
func TestAnswersAreComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorsWorld(t, nil)
		w.keyIn(scribe, "acme", secretOf("bare"), func(c *events.KeyCreated) { c.Environment, c.Scopes = "", nil })
		defer w.end()
		doors := api.WithRequestID(w.mux)
		for word, status := range map[string]int{"bare": 200, "plain": 200, "revoked": 401, "nobody": 401} {
			for _, path := range []string{"/v1/authorize/scribe-sight", "/v1/authorize/scribe-sight?refusal=header", "/v1/authorize/nowhere"} {
				r := httptest.NewRequest("GET", path, nil)
				r.Header.Set("Authorization", "Bearer "+secretOf(word))
				r.Header.Set(api.RequestIDHeader, "forged")
				rec := httptest.NewRecorder()
				doors.ServeHTTP(rec, r)
				id := rec.Header().Values(api.RequestIDHeader)
				if len(id) != 1 || !strings.HasPrefix(id[0], "req_") {
					t.Errorf("%s at %s: request id %q", word, path, id)
				}
				want := status
				if strings.HasSuffix(path, "nowhere") {
					want = 404
				} else if want != 200 && strings.HasSuffix(path, "refusal=header") {
					want = 403
				}
				if rec.Code != want {
					t.Errorf("%s at %s: %d, want %d", word, path, rec.Code, want)
				}
				if said := rec.Body.String() + rec.Header().Get(headerRefusal); want != 200 && !strings.Contains(said, id[0]) {
					t.Errorf("%s at %s: the refusal does not name its request: %s", word, path, said)
				}
				for _, name := range []string{"X-Keytrail-Key-Id", "X-Keytrail-Tenant", "X-Keytrail-Type", "X-Keytrail-Scopes", "X-Keytrail-Environment", "X-Keytrail-Use-Id"} {
					v, there := rec.Header()[name]
					if there != (want == 200) {
						t.Errorf("%s at %s: %s %q with status %d", word, path, name, v, rec.Code)
					}
					if empty := name == "X-Keytrail-Scopes" || name == "X-Keytrail-Environment"; want == 200 && (v[0] == "") != (word == "bare" && empty) {
						t.Errorf("%s: %s %q", word, name, v)
					}
				}
			}
		}
	})
}

// Whatever JSON a refusal is, its header says the same in visible ASCII.
func FuzzASCIILine(f *testing.F) {
	f.Add("{\n\t\"message\": \"geht nicht: \u00e4\u20ac \U0001f511 \x7f\"\r\n}")
	f.Add(`["\u00e4\n", 1e3, null]`)
	f.Fuzz(func(t *testing.T, s string) {
		if !jsontext.Value(s).IsValid() {
			return
		}
		line := asciiLine([]byte(s))
		for _, c := range []byte(line) {
			if c < ' ' || c > '~' {
				t.Fatalf("%q holds %q", line, c)
			}
		}
		var was, is any
		if err := json.Unmarshal([]byte(s), &was); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(line), &is); err != nil {
			t.Fatalf("%q of %q: %v", line, s, err)
		}
		a, _ := json.Marshal(was, json.Deterministic(true))
		b, _ := json.Marshal(is, json.Deterministic(true))
		if string(a) != string(b) {
			t.Fatalf("%q became %q", s, line)
		}
	})
}
