package verifier

import (
	"context"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
)

// seeds are the requests of testdata/endpoints.txt.
func seeds(f *testing.F) (requests []string) {
	data, err := os.ReadFile("testdata/endpoints.txt")
	if err != nil {
		f.Fatal(err)
	}
	for _, block := range strings.Split(string(data), "\n\n") {
		if request, _, _ := strings.Cut(block, "\n< "); strings.HasPrefix(request, "> ") {
			requests = append(requests, request)
		}
	}
	return requests
}

// Whatever the body, the endpoint answers with decisions or with a clear 4xx, and
// each decision, and nothing else, is on the record.
func FuzzVerifyBody(f *testing.F) {
	w := endpointsWorld(f, nil)
	f.Cleanup(func() { w.stop() })
	for _, s := range seeds(f) {
		if _, body, ok := strings.Cut(s, "\n{"); ok {
			f.Add("{" + w.expand(body))
		}
	}
	f.Fuzz(func(t *testing.T, body string) {
		if len(body) > 10_000 || strings.Contains(body, "min_position") {
			return // waits are tested elsewhere
		}
		w.heartbeat()
		for _, path := range []string{"/v1/verify", "/v1/verify/batch"} {
			before := w.ledger.nextNumber()
			rec := httptest.NewRecorder()
			w.mux.ServeHTTP(rec, httptest.NewRequest("POST", path, strings.NewReader(body)))
			decided := w.ledger.nextNumber() - before
			switch {
			case rec.Code == 200:
				type answer struct {
					Allowed bool          `json:"allowed"`
					Reason  events.Reason `json:"reason"`
					Status  int           `json:"status"`
					Use     string        `json:"use_id"`
					Error   *api.Problem  `json:"error"`
				}
				var batch struct {
					Data []answer `json:"data"`
				}
				if path == "/v1/verify" {
					batch.Data = make([]answer, 1)
					if err := json.Unmarshal(rec.Body.Bytes(), &batch.Data[0]); err != nil {
						t.Fatal(err)
					}
				} else if err := json.Unmarshal(rec.Body.Bytes(), &batch); err != nil {
					t.Fatal(err)
				}
				refused := 0
				for _, a := range batch.Data {
					if a.Error != nil {
						refused++
						if path == "/v1/verify" || a.Error.Status/100 != 4 || a.Use != "" || a.Allowed {
							t.Fatalf("%+v", a)
						}
						continue
					}
					if _, err := events.ParseUseID(a.Use); err != nil || a.Status != statusOf(&noKeyspace, a.Reason) || a.Allowed != a.Reason.Allowed() {
						t.Fatalf("%+v", a)
					}
				}
				if uint64(len(batch.Data)-refused) != decided {
					t.Fatalf("%d answers, %d of them refusals, %d decisions", len(batch.Data), refused, decided)
				}
			case rec.Code >= 400 && rec.Code < 500:
				if decided != 0 || rec.Header().Get("Content-Type") != "application/problem+json" {
					t.Fatalf("%d with %d decisions", rec.Code, decided)
				}
			default:
				t.Fatalf("%s: %d", path, rec.Code)
			}
		}
	})
}

// Whatever the headers and the query, forward-auth lets nobody through without a
// live key of the keyspace, and what it records can be read.
func FuzzAuthorizeHeaders(f *testing.F) {
	w := endpointsWorld(f, nil)
	f.Cleanup(func() {
		if err := w.stop(); err != nil {
			f.Error(err)
		}
	})
	f.Add("Bearer "+secretOf("plain"), "203.0.113.7, 10.0.0.1", "read", "project/proj_1", "scope=read", "")
	f.Add("bearer  "+secretOf("office"), "203.0.113.7", "", "", "", "Bearer x")
	f.Add("Basic eA==", ", ,", "a b", "/", "resource=project/x&scope=%zz", "")
	f.Add(secretOf("revoked"), "::1%eth0", "\x00", "x/", ";", "")
	f.Add("Bearer "+secretOf("revoked"), "", "", "", "refusal=header", "")
	f.Fuzz(func(t *testing.T, auth, forwarded, scope, resource, query, second string) {
		w.heartbeat()
		r := httptest.NewRequest("GET", "/v1/authorize/scribe-sight", nil)
		r.URL.RawQuery = query
		r.Header.Set("Authorization", auth)
		if second != "" {
			r.Header.Add("Authorization", second)
		}
		for name, v := range map[string]string{"X-Forwarded-For": forwarded, "X-Keytrail-Scope": scope, "X-Keytrail-Resource": resource} {
			if v != "" {
				r.Header.Set(name, v)
			}
		}
		rec := httptest.NewRecorder()
		before := w.ledger.nextNumber()
		w.mux.ServeHTTP(rec, r)
		if n := w.ledger.nextNumber(); n > before {
			if err := w.ledger.Sync(context.Background(), n-1); err != nil {
				t.Fatalf("a decision that cannot be recorded: %v", err)
			}
		}
		switch rec.Code {
		case 200:
			live := false
			for _, word := range []string{"plain", "limited", "office", "project"} {
				live = live || second == "" && strings.HasSuffix(strings.TrimRight(auth, " \t"), " "+secretOf(word))
			}
			if !live || rec.Header().Get("X-Keytrail-Key-Id") == "" {
				t.Fatalf("let through with %q", auth)
			}
		case 400, 401, 403, 422, 429, 503:
			if rec.Header().Get("X-Keytrail-Key-Id") != "" {
				t.Fatal("an identity beside a refusal")
			}
			if line := rec.Header().Get(headerRefusal); (line != "") != (rec.Body.Len() == 0) || line != "" && (rec.Code != 403 || !jsontext.Value(line).IsValid()) {
				t.Fatalf("%d says %q and %q", rec.Code, line, rec.Body)
			}
		default:
			t.Fatalf("%d: %s", rec.Code, rec.Body)
		}
	})
}
