package verifier

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// operatorsWorld has an operator's key with the given scopes.
func operatorsWorld(t *testing.T, scopes ...string) (w *world, secret string) {
	w = newWorld(t, nil)
	secret = "kt_" + strings.Repeat("a", 40)
	w.keyIn(events.Builtin, events.RootTenant, secret, func(c *events.KeyCreated) {
		c.KeyType, c.Environment, c.Scopes = "operator", "", scopes
	})
	return w, secret
}

// orderWriter remembers how many uses the ledger held when the answer began.
type orderWriter struct {
	*httptest.ResponseRecorder
	ledger *Ledger
	held   uint64
}

func (w *orderWriter) WriteHeader(status int) {
	w.held = w.ledger.Buffered()
	w.ResponseRecorder.WriteHeader(status)
}

// TestOperatorsCallIsOnTheRecordWithItsOutcome: whatever becomes of an operator's
// call, it is one use, with the scope that the endpoint demands, the endpoint, the
// request and the reason; and it is there before the answer begins.
func TestOperatorsCallIsOnTheRecordWithItsOutcome(t *testing.T) {
	const endpoint = "PUT /v1/keys/{id}/scopes"
	write := func(status int) func(http.ResponseWriter) error {
		return func(w http.ResponseWriter) error { w.WriteHeader(status); return nil }
	}
	fails := func(err error) func(http.ResponseWriter) error {
		return func(http.ResponseWriter) error { return err }
	}
	for _, c := range []struct {
		name   string
		scope  string
		serve  func(http.ResponseWriter) error
		status int
		want   events.Reason
	}{
		{"done", events.ScopeKeysWrite, write(200), 200, events.ReasonOK},
		{"an answer without WriteHeader", events.ScopeKeysWrite, func(w http.ResponseWriter) error { _, err := w.Write([]byte("{}")); return err }, 200, events.ReasonOK},
		{"no scope", events.ScopeAdmin, write(200), 403, events.ReasonScopeMissing},
		{"a scope that the endpoint asks for later", events.ScopeKeysWrite, fails(api.ScopeMissing(events.ScopeAdmin)), 403, events.ReasonScopeMissing},
		{"beyond its power", events.ScopeKeysWrite, fails(api.Errorf(403, "beyond_own_power", "no")), 403, events.ReasonBeyondOwnPower},
		{"a refusal that hides", events.ScopeKeysWrite, fails(fmt.Errorf("wrapped: %w", hidden{})), 500, events.ReasonBeyondOwnPower},
		{"bad fields", events.ScopeKeysWrite, fails(input.FieldErrors{{Field: "a", Code: "invalid", Message: "b"}}), 422, events.ReasonOK},
		{"not found", events.ScopeKeysWrite, fails(api.Errorf(404, "not_found", "no")), 404, events.ReasonOK},
		{"conflict", events.ScopeKeysWrite, fails(events.ErrConflict), 409, events.ReasonOK},
		{"the log is down", events.ScopeKeysWrite, fails(events.ErrUnavailable), 503, events.ReasonOK},
		{"a fault of ours", events.ScopeKeysWrite, fails(errors.New("broken")), 500, events.ReasonOK},
	} {
		synctest.Test(t, func(t *testing.T) {
			w, secret := operatorsWorld(t, events.ScopeKeysWrite)
			id := events.NewRequestID()
			r := httptest.NewRequest("PUT", "/v1/keys/key_1/scopes", nil)
			r.Header.Set("Authorization", "Bearer "+secret)
			r.Header.Set(api.RequestIDHeader, id.String())
			before := w.ledger.Buffered()
			rec := &orderWriter{ResponseRecorder: httptest.NewRecorder(), ledger: w.ledger}
			mux := http.NewServeMux()
			routes := &api.Routes{Mux: mux, Auth: w.node}
			routes.Handle(api.Endpoint{Pattern: endpoint, Scope: c.scope}, func(rw http.ResponseWriter, _ *api.Request) error {
				if w.ledger.Buffered() != before {
					t.Errorf("%s: on the record before its outcome is known", c.name)
				}
				return c.serve(rw)
			})
			mux.ServeHTTP(rec, r)
			if rec.Code != c.status || c.name != "an answer without WriteHeader" && rec.held != before+1 {
				t.Errorf("%s: %d, want %d; %d uses held as the answer began, want %d", c.name, rec.Code, c.status, rec.held, before+1)
			}
			uses := w.end()[0].uses
			if len(uses) != 1 || uses[1].Reason != c.want || uses[1].Scope != c.scope || uses[1].Endpoint != endpoint || uses[1].RequestID != id ||
				uses[1].Keyspace != events.Builtin || uses[1].Tenant != events.RootTenant || uses[1].Key.IsZero() {
				t.Errorf("%s: on the record %+v, want one use with %s", c.name, uses, c.want)
			}
		})
	}
}

// hidden is a refusal that does not look like one.
type hidden struct{}

func (hidden) Error() string         { return "not found" }
func (hidden) Denied() events.Reason { return events.ReasonBeyondOwnPower }

// TestBrokenCallsAreOnTheRecord: an endpoint that panics and a client that hangs
// up leave a use.
func TestBrokenCallsAreOnTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, secret := operatorsWorld(t, events.ScopeAuditRead)
		call := func(ctx context.Context, serve func() error) {
			defer func() { _ = recover() }()
			r := httptest.NewRequestWithContext(ctx, "GET", "/v1/audit/uses", nil)
			r.Header.Set("Authorization", "Bearer "+secret)
			mux := http.NewServeMux()
			routes := &api.Routes{Mux: mux, Auth: w.node}
			routes.Handle(api.Endpoint{Pattern: "GET /v1/audit/uses", Scope: events.ScopeAuditRead}, func(http.ResponseWriter, *api.Request) error { return serve() })
			mux.ServeHTTP(httptest.NewRecorder(), r)
		}
		call(t.Context(), func() error { panic("a fault of ours") })
		call(t.Context(), func() error { panic(http.ErrAbortHandler) })
		gone, cancel := context.WithCancel(t.Context())
		call(gone, func() error { cancel(); return gone.Err() })
		uses := w.end()[0].uses
		if len(uses) != 3 {
			t.Fatalf("%d uses, want 3", len(uses))
		}
		for i, u := range uses {
			if u.Reason != events.ReasonOK || u.Endpoint != "GET /v1/audit/uses" || u.Scope != events.ScopeAuditRead {
				t.Errorf("use %d: %+v", i, u)
			}
		}
	})
}

// TestRefusedCallersAreOnTheRecord: also who was never let in is there with the
// endpoint; and while no epoch of the ledger is open, nobody is let in.
func TestRefusedCallersAreOnTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, secret := operatorsWorld(t, events.ScopeAdmin)
		id := events.NewRequestID()
		ask := func(bearer string) (*api.Caller, error) {
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set(api.RequestIDHeader, id.String())
			if bearer != "" {
				r.Header.Set("Authorization", "Bearer "+bearer)
			}
			return w.node.Authenticate(r, events.ScopeKeysRead, "GET /v1/keys/{id}")
		}
		for bearer, want := range map[string]int{"": 401, "kt_" + strings.Repeat("b", 40): 401} {
			c, err := ask(bearer)
			var p *api.Problem
			if !errors.As(err, &p) || p.Status != want || c == nil || c.Principal.Actor != (events.Actor{}) {
				t.Errorf("%q: %+v, %v", bearer, c, err)
			}
		}
		uses := w.end()[0].uses
		if len(uses) != 2 {
			t.Fatalf("%d uses, want 2", len(uses))
		}
		for _, u := range uses {
			if u.Reason.Allowed() || u.Endpoint != "GET /v1/keys/{id}" || u.Scope != events.ScopeKeysRead || u.RequestID != id {
				t.Errorf("%+v", u)
			}
		}
		var p *api.Problem
		if _, err := ask(secret); !errors.As(err, &p) || p.Status != 503 || p.Code != "verifier_stale" {
			t.Errorf("without a ledger: %v, want 503 verifier_stale", err)
		}
	})
}

// TestRefusalsNameTheirRequest: the request id that a refusal shows is in its use;
// an allowed use has none.
func TestRefusalsNameTheirRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		w.key("good", nil)
		srv := api.Handler(w.mux)
		var denied []string
		for _, c := range []struct{ path, body, bearer string }{
			{"/v1/verify", `{"key":"` + secretOf("nobody") + `","keyspace":"scribe-sight"}`, ""},
			{"/v1/verify/batch", `{"requests":[{"key":"` + secretOf("nobody") + `"},{"key":"` + secretOf("good") + `"}]}`, ""},
			{"/v1/authorize/scribe-sight", "", secretOf("nobody")},
			{"/v1/verify", `{"key":"` + secretOf("good") + `"}`, ""},
		} {
			r := httptest.NewRequest("POST", c.path, strings.NewReader(c.body))
			r.Header.Set("Authorization", "Bearer "+c.bearer)
			rec := httptest.NewRecorder()
			srv.ServeHTTP(rec, r)
			denied = append(denied, rec.Header().Get(api.RequestIDHeader))
		}
		uses := w.end()[0].uses
		if len(uses) != 5 {
			t.Fatalf("%d uses, want 5", len(uses))
		}
		for i, want := range []string{denied[0], denied[1], "", denied[2], ""} {
			u := uses[uint64(i+1)]
			if got := u.RequestID.String(); got != want || u.Endpoint != "" || u.Reason.Allowed() != (want == "") {
				t.Errorf("use %d: request %q, want %q; %+v", i+1, got, want, u)
			}
		}
	})
}
