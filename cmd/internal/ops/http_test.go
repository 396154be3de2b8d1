package ops

import (
	"net/http"
	"net/http/httptest"
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
