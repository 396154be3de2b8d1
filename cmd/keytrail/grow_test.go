package main

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{"1": 1, "4096": 4096, "1KiB": 1 << 10, "64GiB": 64 << 30, "2TiB": 2 << 40, "7MiB": 7 << 20,
		"": 0, "0": 0, "-1": 0, "+1": 0, "1.5GiB": 0, "64GB": 0, "64 GiB": 0, "GiB": 0, "9999999999TiB": 0, "18446744073709551616": 0} {
		if got, err := parseSize(s); got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
}

// TestFullReadsAndGrow fills the stream of readings of a `keytrail up`: no question
// and no export is answered, since it could not go on the record; keys are verified
// and revoked. Then the stream of the stopped process is grown, and all is as before.
func TestFullReadsAndGrow(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	p := up(t, dir)
	p.must(t, "keyspace", "apply", "-f", regime)
	create := func(name string) map[string]any {
		return p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": name})
	}
	kept, lost := create("kept"), create("lost")
	p.must(t, "audit", "events", "--limit", "1")
	if out, code := cliRun(t, "log", "grow", "--dir", dir, streams.Read, "64GiB"); code == 0 || !strings.Contains(out, "stop `keytrail up`") {
		t.Errorf("grown while it runs: exit %d\n%s", code, out)
	}
	p.stop(t)
	full, old := setLimit(t, dir, streams.Read, 1)

	p = up(t, dir)
	for _, c := range []struct {
		method, path string
		body         any
	}{
		{"GET", "/v1/audit/events?limit=1", nil},
		{"GET", "/v1/audit/uses?limit=1", nil},
		{"POST", "/v1/audit/exports", map[string]any{"kind": "events", "format": "jsonl"}},
	} {
		status, _, b := p.proved(t, c.method, c.path, nil, c.body)
		if body := string(b); status != http.StatusInsufficientStorage || !strings.Contains(body, `"code":"log_full"`) ||
			!strings.Contains(body, "nothing was read. Keys are still verified, changed and revoked") || !strings.Contains(body, streams.Read) {
			t.Errorf("%s %s with a full %s: %d %s", c.method, c.path, streams.Read, status, body)
		}
	}
	p.wantReason(t, "ok", map[string]any{"key": kept["key"], "keyspace": "scribe-sight"})
	revoked := p.data(t, 200, "DELETE", "/v1/keys/"+lost["id"].(string), nil)
	p.wantReason(t, "key_revoked", map[string]any{"key": lost["key"], "keyspace": "scribe-sight", "min_position": revoked["__position"]})
	create("made meanwhile")
	p.stop(t)

	grow := func(size string, wantCode bool, want string) {
		t.Helper()
		if out, code := cliRun(t, "log", "grow", "--dir", dir, streams.Read, size); (code == 0) != wantCode || !strings.Contains(out, want) {
			t.Errorf("grow to %s: exit %d, want it to say %q\n%s", size, code, want, out)
		}
	}
	grow("1", false, "never lowered")
	grow(fmt.Sprint(int64(1)<<61), false, "bytes free")
	grow(fmt.Sprint(old), true, fmt.Sprintf("%s: %d bytes, before %d\n", streams.Read, old, full))
	grow(fmt.Sprint(old), false, fmt.Sprintf("has a limit of %d bytes", old))

	p = up(t, dir)
	if out := p.must(t, "audit", "events", "--limit", "1"); out == "" {
		t.Error("the record is silent")
	}
	p.wantReason(t, "ok", map[string]any{"key": kept["key"], "keyspace": "scribe-sight"})
	p.wantReason(t, "key_revoked", map[string]any{"key": lost["key"], "keyspace": "scribe-sight"})
	p.stop(t)
}

// setLimit sets the limit of a stream of a stopped `keytrail up`, lower than an
// operator may, and returns it with the one before.
func setLimit(t *testing.T, dir, stream string, limit int64) (now, before int64) {
	t.Helper()
	srv, stop := ownServer(t, dir)
	defer stop()
	nc, err := srv.ConnectAdmin()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c := streamConfig(t, nc, stream)
	before, c.MaxBytes = c.MaxBytes, limit
	js, err := jetstream.New(nc)
	if err == nil {
		_, err = js.UpdateStream(t.Context(), c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return limit, before
}

func streamConfig(t *testing.T, nc *nats.Conn, stream string) jetstream.StreamConfig {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Config
}

// TestGrowServer grows a stream of a server over TCP: only the administrator's
// password opens it, and only its quota has room.
func TestGrowServer(t *testing.T) {
	pw := server.Passwords{Admin: "admin-password", Ctrl: "ctrl-password", Sys: "sys-password"}
	srv, err := server.Start(server.Config{Dir: t.TempDir(), Listen: "127.0.0.1:0", MaxStore: 4 << 30, Passwords: pw})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.Stop)
	admin, err := srv.ConnectAdmin()
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	grow := func(password, stream, size string, ok bool, want string) {
		t.Helper()
		t.Setenv("KEYTRAIL_ADMIN_PASSWORD", password)
		out, code := cliRun(t, "log", "grow", "--nats", srv.URL(), stream, size)
		if (code == 0) != ok || !strings.Contains(out, want) || strings.Contains(out, pw.Admin) {
			t.Errorf("grow %s to %s: exit %d, want it to say %q\n%s", stream, size, code, want, out)
		}
	}
	grow("admin-password", streams.Life, "1GiB", false, "holds no Keytrail log")
	if _, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	old := streamConfig(t, admin, streams.Life).MaxBytes
	grow("ctrl-password", streams.Life, "2GiB", false, "")
	grow("admin-password", "KT_OTHER", "2GiB", false, "want one of KT_LIFE")
	grow("admin-password", streams.Life, fmt.Sprint(old), false, "never lowered")
	grow("admin-password", streams.Life, "64GiB", false, "--max-store")
	if got := streamConfig(t, admin, streams.Life).MaxBytes; got != old {
		t.Errorf("a limit of %d bytes after refusals, want %d", got, old)
	}
	grow("admin-password", streams.Life, "2GiB", true, fmt.Sprintf("%s: %d bytes, before %d\n", streams.Life, int64(2<<30), old))
	if got := streamConfig(t, admin, streams.Life).MaxBytes; got != 2<<30 {
		t.Errorf("a limit of %d bytes, want %d", got, int64(2<<30))
	}
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	for name := range js.StreamNames(t.Context()).Name() {
		made++
		more := streamConfig(t, admin, name).MaxBytes + 4096
		grow("admin-password", name, fmt.Sprint(more), true, name+": ")
	}
	if made != len(streams.Names()) {
		t.Errorf("init makes %d streams, the table has %d", made, len(streams.Names()))
	}
}
