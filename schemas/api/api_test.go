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
)

type body struct {
	Name  string            `json:"name"`
	Count int64             `json:"count"`
	List  []events.Resource `json:"list"`
	ID    events.KeyID      `json:"id"`
}

func TestDecodeNamesTheFault(t *testing.T) {
	for _, tt := range []struct {
		name, contentType, body string
		status                  int
		code, field             string
	}{
		{"right", "application/json", `{"name":"a","count":1}`, 0, "", ""},
		{"with a charset", "application/json; charset=utf-8", `{}`, 0, "", ""},
		{"without a content type", "", `{}`, 0, "", ""},
		{"a form", "application/x-www-form-urlencoded", `{}`, 415, "unsupported_media_type", ""},
		{"empty", "application/json", " \n", 400, "bad_body", ""},
		{"cut off", "application/json", `{"name":`, 400, "bad_body", ""},
		{"two values", "application/json", `{} {}`, 400, "bad_body", ""},
		{"bad UTF-8", "application/json", "{\"name\":\"\xff\"}", 400, "bad_body", ""},
		{"repeated", "application/json", `{"name":"a","name":"b"}`, 400, "bad_body", ""},
		{"unknown", "application/json", `{"nmae":"a"}`, 422, "unknown_field", "nmae"},
		{"another case", "application/json", `{"Name":"a"}`, 422, "unknown_field", "Name"},
		{"wrong type", "application/json", `{"count":"1"}`, 422, "invalid", "count"},
		{"no integer", "application/json", `{"count":1.5}`, 422, "invalid", "count"},
		{"deep", "application/json", `{"list":[{"kind":"a","id":"b"},{"kind":1}]}`, 422, "invalid", "list[1].kind"},
		{"a text that guards itself", "application/json", `{"id":"key_1"}`, 422, "invalid", "id"},
		{"too large", "application/json", `{"name":"` + strings.Repeat("a", MaxBody) + `"}`, 413, "body_too_large", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/", strings.NewReader(tt.body))
			r.Header.Del("Content-Type")
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			err := Decode(r, new(body))
			if tt.status == 0 {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var p *Problem
			if !errors.As(err, &p) || p.Status != tt.status {
				t.Fatalf("got %v, want a problem of status %d", err, tt.status)
			}
			code, field := p.Code, ""
			if len(p.Errors) > 0 {
				code, field = p.Errors[0].Code, p.Errors[0].Field
			}
			if code != tt.code || field != tt.field {
				t.Errorf("got %s at %q, want %s at %q", code, field, tt.code, tt.field)
			}
		})
	}
}

func TestWriteMapsEachClassOfError(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		code   string
		retry  string
	}{
		{Errorf(404, "not_found", "no such thing"), 404, "not_found", ""},
		{events.FieldErrors{{Field: "name", Code: "required", Message: "want one"}}, 422, "invalid", ""},
		{fmt.Errorf("append: %w", events.ErrConflict), 409, "conflict", ""},
		{fmt.Errorf("append: %w", events.ErrUnavailable), 503, "unavailable", "1"},
		{fmt.Errorf("append: %w", events.ErrUnknownOutcome), 503, "unavailable", "1"},
		{fmt.Errorf("append: %w", events.ErrFull), 507, "log_full", ""},
		{errors.New("password=hunter2"), 500, "internal", ""},
	} {
		w := httptest.NewRecorder()
		var inner *http.Request
		WithRequestID(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { inner = r; Write(w, r, tt.err) })).
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
	WithRequestID(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
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
