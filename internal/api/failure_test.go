package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

func TestPrefers(t *testing.T) {
	for _, tt := range []struct {
		want  bool
		lines []string
	}{
		{false, nil},
		{true, []string{"envelope=regime"}},
		{true, []string{"Envelope=regime"}},
		{true, []string{`envelope="regime"`}},
		{true, []string{`envelope="re\gime"`}},
		{true, []string{"envelope = regime ; a=b;c"}},
		{true, []string{"respond-async, wait=10, envelope=regime"}},
		{true, []string{"respond-async;x=\"a,envelope=other\"", "return=minimal,\tenvelope=regime"}},
		{true, []string{"", " , ,envelope=regime,"}},
		{true, []string{"envelope=regime", "envelope=other"}},
		{false, []string{"envelope=other, envelope=regime"}}, // the first counts
		{false, []string{"envelope", "envelope=regime"}},
		{false, []string{"envelope=Regime"}},
		{false, []string{"envelope=regimes"}},
		{false, []string{`x="envelope=regime"`}},
		{false, []string{`x="a\", envelope=regime"`}},
		{false, []string{`x=y;envelope=regime`}},
		{false, []string{`"envelope=regime`}},
		{false, []string{`x="never ends, envelope=regime`}},
		{false, []string{"envelope=", "=regime", ";", `"`, "=", `envelope="`}},
	} {
		h := http.Header{"Prefer": tt.lines}
		if got := Prefers(h, "envelope", "regime"); got != tt.want {
			t.Errorf("%q: %t", tt.lines, got)
		}
	}
}

func FuzzPrefers(f *testing.F) {
	f.Add(`a, envelope=regime;x="y\"`, "wait=1")
	f.Add(`"`, `=;,"\`)
	f.Fuzz(func(t *testing.T, a, b string) {
		got := Prefers(http.Header{"Prefer": {a, b}}, "envelope", "regime")
		if first := Prefers(http.Header{"Prefer": {a}}, "envelope", "regime"); first && !got {
			t.Errorf("%q asks for it, and with %q behind it does not", a, b)
		}
		if !Prefers(http.Header{"Prefer": {"envelope=regime", a}}, "envelope", "regime") {
			t.Errorf("%q hides what stands before it", a)
		}
	})
}

func TestFailureOfProblem(t *testing.T) {
	for status, want := range map[int]string{
		400: "invalid", 413: "invalid", 415: "invalid", 422: "invalid", 403: "forbidden", 404: "not_found",
		409: "conflict", 503: "unavailable", 507: "unavailable", 500: "internal",
	} {
		p := Errorf(status, "some_code", "a sentence")
		p.RequestID, p.RetryAfter, p.Errors = "req_1", 7, input.FieldErrors{{Field: "a", Code: "b", Message: "c"}}
		f := p.Failure()
		if f.Reason != want || f.Status != status || f.Code != "some_code" || f.Message != "a sentence" || f.RequestID != "req_1" || f.RetryAfter != 7 || len(f.Fields) != 1 {
			t.Errorf("%d: %+v", status, f)
		}
	}
}

func TestRenderFailure(t *testing.T) {
	answers := []keyspace.ErrorAnswer{{Reasons: []string{"scope_missing"}, Status: 404, Code: "gone", Message: "want {scope}"}}
	enveloped := keyspace.Definition{Errors: keyspace.ErrorRules{Answers: answers, Envelope: []byte(`{"code":"{code}","text":"{message}","title":"{title}","id":"{request_id}","in":"{retry_after}"}`)}}
	typed := enveloped
	typed.Errors.ContentType = "application/vnd.x+json"
	plain := keyspace.Definition{Errors: keyspace.ErrorRules{Answers: answers}}
	missing := keyspace.Failure{Reason: "scope_missing", Status: 403, Code: "scope_missing", Message: "no", Scope: "read", RequestID: "req_1"}
	limited := keyspace.Failure{Reason: "rate_limited", Status: 429, Code: "rate_limited", Message: "slow down", RetryAfter: 3}
	for _, tt := range []struct {
		name    string
		def     keyspace.Definition
		failure keyspace.Failure
		want    string
	}{
		{"in the envelope", enveloped, missing, `404 application/json {"code":"gone","text":"want read","title":"Not Found","id":"req_1"}`},
		{"of a type of its own", typed, limited, `429 application/vnd.x+json {"code":"rate_limited","text":"slow down","title":"Too Many Requests","in":3}`},
		{"without one", plain, missing, `404 application/problem+json {"type":"about:blank","title":"Not Found","status":404,"detail":"want read","code":"gone","request_id":"req_1"}`},
		{"where nothing is said", plain, limited, `429 application/problem+json {"type":"about:blank","title":"Too Many Requests","status":429,"detail":"slow down","code":"rate_limited"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rules := keyspace.Compile(tt.def, nil)
			before := tt.failure.Status
			status, contentType, body := RenderFailure(rules, &tt.failure)
			if got := fmt.Sprintf("%d %s %s", status, contentType, body); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if tt.failure.Status != before {
				t.Error("the failure was changed")
			}
			// Over HTTP it is the same, with the request's id where it had none.
			r := httptest.NewRequest("GET", "/", nil)
			r.Header.Set(RequestIDHeader, tt.failure.RequestID)
			w := httptest.NewRecorder()
			failure := tt.failure
			failure.RequestID = ""
			WriteFailure(w, r, rules, &failure)
			if got := fmt.Sprintf("%d %s %s", w.Code, w.Header().Get("Content-Type"), w.Body); got != tt.want {
				t.Errorf("over HTTP: %s", got)
			}
			retry := ""
			if tt.failure.RetryAfter > 0 {
				retry = fmt.Sprint(tt.failure.RetryAfter)
			}
			if w.Header().Get("Retry-After") != retry || w.Header().Get("Cache-Control") != "no-store" {
				t.Errorf("headers %v", w.Header())
			}
		})
	}
}

// TestFailureNamesFields: an envelope may have no place for fields but its message.
func TestFailureNamesFields(t *testing.T) {
	var errs input.FieldErrors
	for _, tt := range []struct{ field, want string }{
		{"name", "name: want name"},
		{"a.0", "name: want name; a.0: want a.0"},
		{"b", "name: want name; a.0: want a.0; b: want b"},
		{"c", "name: want name; a.0: want a.0; b: want b; and 1 more"},
		{"d", "name: want name; a.0: want a.0; b: want b; and 2 more"},
	} {
		errs.Add(tt.field, "bad", "want "+tt.field)
		if got := Invalid(errs).Failure().Message; got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
