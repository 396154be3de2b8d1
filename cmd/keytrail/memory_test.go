package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestBodiesHoldNoMemory: whoever can reach a node, with a key or without one, does
// not fill its memory with bodies. A megabyte of empty items, of levels, of members
// and of values each time, 32 at once at every endpoint that takes a body.
func TestBodiesHoldNoMemory(t *testing.T) {
	t.Parallel()
	p := up(t, filepath.Join(t.TempDir(), "data"))
	const size, atOnce, rounds = 1 << 20, 32, 2
	fill := func(head, item, tail string) []byte {
		n := (size - len(head) - len(tail)) / len(item)
		return []byte(head + strings.TrimSuffix(strings.Repeat(item, n), ",") + tail)
	}
	bodies := map[string][]byte{
		"empty items":    fill(`{"requests":[`, `{},`, `]}`),
		"empty keys":     fill(`{"keys":[`, `{},`, `]}`),
		"key types":      fill(`{"key_types":[`, `{},`, `]}`),
		"scopes":         fill(`{"scopes":[`, `{},`, `]}`),
		"texts":          fill(`{"requests":["`, `","`, `"]}`),
		"an escape":      fill(`{"r\u0065quests":[`, `{},`, `]}`),
		"levels":         fill(`{"requests":`, `[`, ``),
		"levels of both": fill(`{"requests":`, `[{"":`, ``),
		"members":        fill(`{"metadata":{`, `"a":0,`, `}}`),
		"lists of lists": fill(`{"requests":[`, `[0],`, `]}`),
		"numbers":        fill(`[`, `0,`, `]`),
	}
	endpoints := []struct{ method, path string }{
		{"POST", "/v1/verify"}, {"POST", "/v1/verify/batch"},
		{"PUT", "/v1/keyspaces/big"}, {"POST", "/v1/keyspaces/big/keys"}, {"POST", "/v1/keyspaces/big/keys/import"},
		{"POST", "/v1/audit/exports"},
	}
	before := peak(t, p)
	for what, body := range bodies {
		var g errgroup.Group
		g.SetLimit(atOnce)
		for i := range atOnce * rounds {
			e := endpoints[i%len(endpoints)]
			g.Go(func() error {
				req, err := http.NewRequest(e.method, p.url+e.path, bytes.NewReader(body))
				if err != nil {
					return err
				}
				req.Header.Set("Authorization", "Bearer "+p.root)
				req.Header.Set("Content-Type", "application/json")
				resp, err := unwatched.RoundTrip(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					return err
				}
				if resp.StatusCode/100 != 4 && resp.StatusCode != http.StatusServiceUnavailable {
					return fmt.Errorf("%s %s with %s: %s", e.method, e.path, what, resp.Status)
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}
	// 2 x 16 MiB of bodies at once, and what the collector leaves lying while it works.
	if grown := peak(t, p) - before; grown > 300<<10 {
		t.Errorf("the process grew by %d MiB", grown>>10)
	} else {
		t.Logf("the process grew by %d MiB", grown>>10)
	}
	p.stop(t)
}

// peak returns the most memory that the process has held, in KiB.
func peak(t testing.TB, p *proc) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Skip("no /proc here: ", err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}
