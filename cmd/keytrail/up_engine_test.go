package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestUpServesBeforeItsEngine: an engine that does not come up keeps nobody from being
// verified; only the record waits for it. And the process stops when it is asked to.
func TestUpServesBeforeItsEngine(t *testing.T) {
	t.Parallel()
	bin, dir, addr := t.TempDir(), filepath.Join(t.TempDir(), "data"), freeAddr(t)
	// No npm is on the path to fetch the library with, and the clickhouse that is never answers.
	if err := os.WriteFile(filepath.Join(bin, "clickhouse"), []byte("#!/bin/sh\nexec /bin/sleep 600\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := exec.Command(os.Args[0], "up", "--dir", dir, "--listen", addr)
	p.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "KEYTRAIL_CHDB_LIB=") }),
		asMain+"=1", "PATH="+bin, "XDG_CACHE_HOME="+t.TempDir())
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs strings.Builder
	p.Stderr = &errs
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.Wait() }()
	t.Cleanup(func() { _ = p.Process.Kill() }) // if it still runs
	status := func(path string) int {
		root, _ := os.ReadFile(filepath.Join(dir, "root.key"))
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(root)))
		resp, err := unwatched.RoundTrip(req)
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for began := time.Now(); status("/v1/keyspaces") != 200; time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v\n%s", err, errs.String())
		default:
		}
		if time.Since(began) > patience {
			t.Fatalf("keys are not served: %d", status("/v1/keyspaces"))
		}
	}
	for path, want := range map[string]int{"/v1/audit/events": 503, "/readyz": 503} {
		if got := status(path); got != want {
			t.Errorf("%s without the engine: %d, want %d", path, got, want)
		}
	}
	_ = p.Process.Signal(os.Interrupt)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("after an interrupt: %v\n%s", err, errs.String())
		}
	case <-time.After(patience):
		t.Error("it did not stop")
	}
}
