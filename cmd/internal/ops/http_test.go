package ops

import (
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestFallback(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /a/{id}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("PUT /a/{id}", func(http.ResponseWriter, *http.Request) {})
	Fallback(mux)
	for _, tt := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"GET", "/a/1", 200, ""},
		{"POST", "/a/1", 405, "GET, HEAD, PUT"},
		{"OPTIONS", "/a/1", 405, "GET, HEAD, PUT"},
		{"GET", "/b", 404, ""},
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.status || w.Header().Get("Allow") != tt.allow {
			t.Errorf("%s %s: %d, Allow %q; want %d, %q", tt.method, tt.path, w.Code, w.Header().Get("Allow"), tt.status, tt.allow)
		}
		if w.Code >= 400 && w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: no problem document", tt.method, tt.path)
		}
	}
}

// /readyz tells a part that the role needs from one that it works without.
func TestReadyAndDegraded(t *testing.T) {
	s, err := Listen("127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer s.ln.Close()
	s.Role = "control"
	var part, log error
	s.Check("verifier", func() error { return part })
	s.Warn("log", func() error { return log })
	for _, c := range []struct {
		part, log error
		status    int
		body      string
	}{
		{nil, nil, 200, `{"status":"ready","role":"control"}`},
		{nil, errors.New("full"), 200, `{"status":"degraded","role":"control","warnings":[{"field":"log","code":"degraded","message":"full"}]}`},
		{errors.New("behind"), errors.New("full"), 503, `"errors":[{"field":"verifier","code":"not_ready","message":"behind"}]`},
	} {
		part, log = c.part, c.log
		w := httptest.NewRecorder()
		s.Mux.ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.body) {
			t.Errorf("%v, %v: %d %s, want %d %s", c.part, c.log, w.Code, w.Body, c.status, c.body)
		}
		if (s.Ready() == nil) != (c.part == nil) {
			t.Errorf("ready: %v", s.Ready())
		}
	}
}
