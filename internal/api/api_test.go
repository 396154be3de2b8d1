package api

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

func TestWriteMapsEachClassOfError(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		code   string
		retry  string
	}{
		{Errorf(404, "not_found", "no such thing"), 404, "not_found", ""},
		{input.FieldErrors{{Field: "name", Code: "required", Message: "want one"}}, 422, "invalid", ""},
		{fmt.Errorf("append: %w", events.ErrConflict), 409, "conflict", ""},
		{fmt.Errorf("append: %w", events.ErrUnavailable), 503, "unavailable", "1"},
		{fmt.Errorf("append: %w", events.ErrUnknownOutcome), 503, "unavailable", "1"},
		{fmt.Errorf("append: %w", events.ErrFull), 507, "log_full", ""},
		{errors.New("password=hunter2"), 500, "internal", ""},
	} {
		w := httptest.NewRecorder()
		var inner *http.Request
		Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inner = r; Write(w, r, tt.err) })).
			ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		var p Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p, json.RejectUnknownMembers(true)); err != nil {
			t.Fatalf("%v: %v", tt.err, err)
		}
		if w.Code != tt.status || p.Status != tt.status || p.Code != tt.code || w.Header().Get("Retry-After") != tt.retry {
			t.Errorf("%v: %d %+v", tt.err, w.Code, p)
		}
		if p.RequestID == "" || p.RequestID != RequestID(inner) || w.Header().Get(RequestIDHeader) != p.RequestID {
			t.Errorf("%v: request id %q", tt.err, p.RequestID)
		}
		if strings.Contains(w.Body.String(), "hunter2") {
			t.Errorf("an internal cause is told: %s", w.Body)
		}
	}
}

func TestRequestIDIsOurs(t *testing.T) {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set(RequestIDHeader, "forged")
	Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if id := RequestID(r); !strings.HasPrefix(id, "req_") || len(id) != 30 {
			t.Errorf("request id %q", id)
		}
	})).ServeHTTP(httptest.NewRecorder(), r)
}

func FuzzPlain(f *testing.F) {
	f.Add("Mozilla/5.0\r\nX: y", 10)
	f.Add("\xff\xfe héllo\u202e", 3)
	f.Fuzz(func(t *testing.T, s string, max int) {
		max = max & 0xff
		got := Plain(s, max)
		if !utf8.ValidString(got) || utf8.RuneCountInString(got) > max || strings.ContainsFunc(got, unicode.IsControl) {
			t.Errorf("Plain(%q, %d) = %q", s, max, got)
		}
	})
}
