package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

// TestBenchMeasuresNoRefusals: a key that is denied leaves one use on the record,
// and no figure.
func TestBenchMeasuresNoRefusals(t *testing.T) {
	var asked atomic.Int64
	var answer atomic.Value // the server may still be answering a question that bench gave up
	answer.Store(`{"allowed":false,"reason":"key_revoked","status":401}`)
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/verify" {
			asked.Add(1)
		}
		w.Write([]byte(answer.Load().(string)))
	}))
	defer endpoint.Close()
	t.Setenv("KEYTRAIL_SECRET", "sk_live_0123456789012345678901234567")
	bench := func() (string, string, int) {
		return cliAt(t, endpoint.URL, "", "bench", "--keyspace", "k", "--scope", "read", "--time", "100ms", "--clients", "2")
	}
	out, errs, code := bench()
	if code != exitFailed || out != "" || !strings.Contains(errs, "the key is denied (key_revoked)") || asked.Load() != 1 {
		t.Errorf("exit %d after %d questions: %s%s", code, asked.Load(), out, errs)
	}
	answer.Store(`{"allowed":true,"reason":"ok","status":200}`)
	if out, errs, code := bench(); code != 0 || !strings.Contains(out, "ratio ") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	answer.Store(`<html>`)
	if out, errs, code := bench(); code != exitFailed || out != "" || !strings.Contains(errs, "does not answer as a verifier") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}
