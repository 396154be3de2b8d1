package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestTheRecordSaysWhatHappened: refused calls of operators, the request that a
// refusal named, a killed process and a misspelt name all show in the commands.
func TestTheRecordSaysWhatHappened(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	p := up(t, dir)
	var reader struct{ Data keyView }
	unjson(t, p.must(t, "--json", "key", "create", "--keyspace", "keytrail", "--tenant", "operators", "--name", "the reader", "--scope", "keys:read"), &reader)

	_, refused, code := (&proc{url: p.url, root: reader.Data.Key}).proves(t, "key", "disable", reader.Data.ID)
	if code != exitFailed || !strings.Contains(refused, "scope_missing, req_") {
		t.Fatalf("exit %d: %s", code, refused)
	}
	_, rest, _ := strings.Cut(refused, "scope_missing, ")
	request, _, _ := strings.Cut(rest, ")")
	const endpoint = "POST /v1/keys/{id}/disable"
	eventually(t, func() string {
		out := p.must(t, "audit", "uses", "--request-id", request)
		if !strings.Contains(out, "scope_missing") || !strings.Contains(out, "keys:write") || !strings.Contains(out, endpoint) || !strings.Contains(out, reader.Data.ID) {
			return "the refused call is not in the ledger: " + out
		}
		return ""
	})
	if out := p.must(t, "audit", "uses", "--endpoint", endpoint, "--outcome", "allowed"); strings.Contains(out, "ok") {
		t.Errorf("a refused call is on the record as allowed: %s", out)
	}

	eventually(t, func() string { // the counts follow within a second
		if out := p.must(t, "audit", "usage"); !strings.Contains(out, "scope_missing") {
			return out
		}
		return ""
	})
	if out := p.must(t, "audit", "events", "--type", "key.created"); !strings.Contains(out, "(root)") {
		t.Errorf("the trail does not name the actor:\n%s", out)
	}
	// As JSON each command prints one page, also of a whole walk.
	for _, kind := range []string{"events", "uses", "usage"} {
		var page struct {
			Data       []any
			NextCursor *string `json:"next_cursor"`
		}
		if kind == "usage" { // never in parts
			if unjson(t, p.must(t, "--json", "audit", kind), &page); len(page.Data) < 2 || page.NextCursor != nil {
				t.Errorf("usage: %d rows, cursor %v", len(page.Data), page.NextCursor)
			}
			continue
		}
		unjson(t, p.must(t, "--json", "audit", kind, "--limit", "1"), &page)
		if len(page.Data) != 1 || page.NextCursor == nil {
			t.Errorf("%s --limit 1: %d rows, cursor %v", kind, len(page.Data), page.NextCursor)
		}
		page.NextCursor = nil
		unjson(t, p.must(t, "--json", "audit", kind, "--all", "--limit", "1"), &page)
		if len(page.Data) < 2 || page.NextCursor != nil {
			t.Errorf("%s --all: %d rows, cursor %v", kind, len(page.Data), page.NextCursor)
		}
	}

	// A name that was never seen.
	for _, args := range [][]string{{"events"}, {"uses"}, {"usage"}, {"export", "--kind", "uses", "-o", filepath.Join(t.TempDir(), "x.jsonl")}} {
		out, errs, code := p.proves(t, append([]string{"audit"}, append(args, "--tenant", "acmee")...)...)
		if code != 0 || !strings.Contains(errs, "note: nothing of a tenant acmee was ever recorded") {
			t.Errorf("%v: exit %d, %s%s", args, code, out, errs)
		}
	}

	floodIsCounted(t, p)

	// Killed: how many uses are lost is not known, and every answer says so.
	p.kill()
	p = up(t, dir)
	eventually(t, func() string {
		for _, args := range [][]string{{"uses"}, {"usage"}, {"uses", "--all"}, {"export", "--kind", "uses"}} {
			_, errs, code := p.cli(t, append([]string{"audit"}, args...)...)
			if code != 0 || !strings.Contains(errs, "note: the ledger has 1 gap(s) in the time asked for: an unknown number of uses is not on the record") {
				return fmt.Sprintf("%v: exit %d, %s", args, code, errs)
			}
		}
		return ""
	})
	if _, errs, code := p.proves(t, "audit", "uses", "--to", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)); code != 0 || strings.Contains(errs, "gap") {
		t.Errorf("a gap an hour before it: %s", errs)
	}
	patient{t, p.url, p.root}.eventuallySays(nil, "healthy", "note ledger")
}

// floodIsCounted guesses keys at full rate from many blocks of addresses: the record
// has each guess once, in a bounded number of rows.
func floodIsCounted(t *testing.T, p *proc) {
	t.Helper()
	const batches, each, blocks = 60, 100, 500
	began := time.Now()
	asked := map[string]uint64{} // by block
	for i := range batches {
		var requests []map[string]any
		for j := range each {
			n := (i*each + j) * 7 % blocks
			requests = append(requests, map[string]any{"key": fmt.Sprintf("guess_%016d", i*each+j), "ip": fmt.Sprintf("10.%d.%d.%d", n/256, n%256, j)})
			asked[fmt.Sprintf("10.%d.%d.0/24", n/256, n%256)]++
		}
		if status, ans := p.do(t, "POST", "/v1/verify/batch", nil, map[string]any{"requests": requests}); status != http.StatusOK {
			t.Fatal(status, ans)
		}
	}
	seconds := uint64(time.Since(began)/time.Second) + 2 // that it can have touched
	eventually(t, func() string {
		var count, recorded, other uint64
		for _, b := range rows[struct {
			Block           string
			Count, Recorded uint64
		}](t, p.must(t, "--json", "audit", "blocks", "--reason", "key_unknown", "--ip", "10.0.0.0/8", "--all", "--limit", "100")) {
			count, recorded = count+b.Count, recorded+b.Recorded
			if b.Block == "other" {
				other += b.Count
			} else if b.Count > asked[b.Block] {
				t.Errorf("%s: %d guesses of %d", b.Block, b.Count, asked[b.Block])
			}
		}
		switch {
		case count > batches*each:
			t.Errorf("%d guesses on the record of %d", count, batches*each)
		case count < batches*each:
			return fmt.Sprintf("%d guesses on the record of %d", count, batches*each)
		case recorded == 0 || recorded > 100*seconds || other == 0:
			t.Errorf("%d rows in %d seconds, %d not told apart", recorded, seconds, other)
		}
		return ""
	})
	out, errs, code := p.cli(t, "audit", "uses", "--reason", "key_unknown", "--limit", "1")
	if code != 0 || !strings.Contains(errs, " more uses of unknown keys match and were only counted: keytrail audit blocks") {
		t.Errorf("exit %d %s%s", code, out, errs)
	}
}

// TestExportThroughNginx takes exports through a real nginx, which drops trailers:
// the manifest stands in for them. One that a proxy cuts off is an error, leaves
// what came in a .part file, and can be taken again.
func TestExportThroughNginx(t *testing.T) {
	t.Parallel()
	program := gatewayKinds[0].installed(t)
	p := up(t, filepath.Join(t.TempDir(), "data"))
	for _, version := range []string{"1.0", "1.1"} {
		url := "http://" + startNginx(t, program, strings.TrimPrefix(p.url, "http://"), version)
		for _, format := range []string{"csv", "jsonl"} {
			file := filepath.Join(t.TempDir(), "out."+format)
			_, errs, code := cliAt(t, url, p.root, "audit", "export", "--kind", "events", "--format", format, "-o", file)
			if code != 0 || !strings.Contains(errs, " rows, SHA-256 ") {
				t.Errorf("HTTP/%s, %s: exit %d, %s", version, format, code, errs)
			}
			if b, err := os.ReadFile(file); err != nil || len(b) == 0 {
				t.Errorf("HTTP/%s, %s: %d bytes, %v", version, format, len(b), err)
			}
		}
	}

	cut := true
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, p.url+r.URL.RequestURI(), r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		req.Header = r.Header
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		for name, v := range resp.Header {
			w.Header()[name] = v
		}
		w.WriteHeader(resp.StatusCode)
		var body io.Reader = resp.Body
		if cut && r.Method == http.MethodPost {
			body = io.LimitReader(body, 500) // and an end in good order, as where the hop behind speaks HTTP/1.0
		}
		io.Copy(w, body)
	}))
	defer proxy.Close()
	file := filepath.Join(t.TempDir(), "cut.jsonl")
	_, errs, code := cliAt(t, proxy.URL, p.root, "audit", "export", "--kind", "events", "-o", file)
	if code != exitFailed || !strings.Contains(errs, file+".part") {
		t.Errorf("a cut copy: exit %d, %s", code, errs)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Error("a cut copy has the name of a whole one")
	}
	cut = false
	if _, errs, code := cliAt(t, proxy.URL, p.root, "audit", "export", "--kind", "events", "-o", file); code != 0 {
		t.Errorf("again: exit %d, %s", code, errs)
	}
}

// startNginx runs nginx as a plain proxy that speaks this version of HTTP to its
// upstream, and returns its address.
func startNginx(t *testing.T, program, upstream, version string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keytrail-nginx-") // its workers may be another user's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	listen := freeAddr(t)
	conf := fmt.Sprintf(`daemon off; pid nginx.pid; error_log stderr warn; events {}
http {
	access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	server { listen %s; location / { proxy_pass http://%s; proxy_http_version %s; proxy_set_header Connection ""; } }
}`, listen, upstream, version)
	if err := os.WriteFile(filepath.Join(dir, "nginx.conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, program, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"))
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = patience
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var out lockedBuffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); c.Wait() })
	eventually(t, func() string {
		conn, err := net.Dial("tcp", listen)
		if err != nil {
			return fmt.Sprintf("nginx does not listen: %v\n%s", err, out.String())
		}
		conn.Close()
		return ""
	})
	return listen
}
