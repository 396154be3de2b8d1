package ops

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
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

// TestClientsHaveDeadlines: a client that does not send, or does not read what it
// asked for, holds a request for a bounded time.
func TestClientsHaveDeadlines(t *testing.T) {
	s, err := Listen("127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	s.Mux.HandleFunc("GET /large", func(w http.ResponseWriter, _ *http.Request) {
		chunk, err := make([]byte, 1<<20), error(nil)
		for err == nil {
			_, err = w.Write(chunk)
		}
		ended <- err
	})
	srv := s.server()
	for name, d := range map[string]time.Duration{"header": srv.ReadHeaderTimeout, "request": srv.ReadTimeout, "answer": srv.WriteTimeout, "next request": srv.IdleTimeout} {
		if d <= 0 || d > 2*time.Minute {
			t.Errorf("the deadline of the %s is %s", name, d)
		}
	}
	srv.WriteTimeout = 50 * time.Millisecond
	defer srv.Close()
	go func() { _ = srv.Serve(s.ln) }() // ends with Close
	c, err := net.Dial("tcp", s.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("an answer that nobody reads ends with %v", err)
	}
}
