package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/nats-io/nats-server/v2/server"

	"github.com/keytrail/keytrail/audit"
	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/cmd/client"
)

// patient is one deployment that the doctor looks at.
type patient struct {
	t         *testing.T
	url, root string
}

// says runs the doctor and insists on each line: "FAIL clock", or with what it
// found or advises after it. ok insists that nothing has failed.
func (p patient) says(args []string, lines ...string) {
	p.t.Helper()
	if word := p.check(args, lines...); word != "" {
		p.t.Error(word)
	}
}

// eventuallySays is says for what a process needs a moment to notice.
func (p patient) eventuallySays(args []string, lines ...string) {
	p.t.Helper()
	eventually(p.t, func() string { return p.check(args, lines...) })
}

func (p patient) check(args []string, lines ...string) string {
	p.t.Helper()
	out, errs, code := cliAt(p.t, p.url, p.root, append([]string{"doctor"}, args...)...)
	if fail := strings.Contains(out, "FAIL"); fail != (code == exitFailed) || !fail && code != 0 {
		return fmt.Sprintf("doctor %v: exit %d\n%s%s", args, code, out, errs)
	}
	flat := strings.Join(strings.Fields(strings.ReplaceAll(out, "\n", " | ")), " ")
	for _, want := range lines {
		if want == "healthy" {
			if code != 0 {
				return fmt.Sprintf("doctor %v of a healthy deployment: exit %d\n%s%s", args, code, out, errs)
			}
			continue
		}
		if !strings.Contains(flat, want) {
			return fmt.Sprintf("doctor %v does not say %q:\n%s%s", args, want, out, errs)
		}
	}
	return ""
}

// TestDoctorOfUp makes each fault that a single process can have, reads the
// sentence, and does what it advises.
func TestDoctorOfUp(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	first := up(t, dir)
	p := patient{t, first.url, first.root}
	first.must(t, "keyspace", "apply", "-f", regime)
	first.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	p.eventuallySays(nil, "healthy", "ok endpoint "+p.url+", role up", "ok clock", "ok ready up", "ok operator key accepted", "ok record can be read")
	p.eventuallySays([]string{"--json"}, "healthy", `"check": "operator key"`, `"status": "ok"`)
	p.eventuallySays([]string{"--deep"}, "healthy", "note log not read: `keytrail up` has no NATS port", "--deep --dir DIR")
	p.says([]string{"--deep", "--dir", dir}, "FAIL data directory", "is in use by another keytrail", "do: stop `keytrail up` with Ctrl-C")
	p.says([]string{"--deep", "--dir", t.TempDir()}, "FAIL data directory there is no log in", "do: name the data directory")

	wrong := p
	wrong.root = "kt_" + strings.Repeat("x", 10)
	wrong.says(nil, "FAIL operator key", "do: name the file of an operator key with --key-file, or set KEYTRAIL_ROOT_KEY; `keytrail up` keeps it in <dir>/root.key")
	wrong.root = "" // the advice
	wrong.eventuallySays([]string{"--key-file", filepath.Join(dir, "root.key")}, "healthy")

	first.stop(t)
	p.says(nil, "FAIL endpoint nothing answers at "+p.url, "do: start it, or correct --url or KEYTRAIL_URL")
	p.says([]string{"--deep", "--dir", dir}, "ok log", "no gap, every chain whole", "ok copy", "are the same in the log and in its copy")
	again := up(t, dir)
	p.url = again.url
	p.eventuallySays(nil, "healthy")

	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	p.url = other.URL
	p.says(nil, "FAIL endpoint", "do: start it, or correct --url")
	again.stop(t)
}

// TestDoctorOfKeys: each way in which an operator key stops being one has its
// sentence, and the way back in that it names works.
func TestDoctorOfKeys(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	first := up(t, dir)
	admin := func(name string, more map[string]any) (id, secret string) {
		body := map[string]any{"tenant": "operators", "name": name, "scopes": []string{"admin"}}
		for k, v := range more {
			body[k] = v
		}
		d := first.data(t, 201, "POST", "/v1/keyspaces/keytrail/keys", body)
		return d["id"].(string), d["key"].(string)
	}
	const another = "use another administrator's key with --key-file or KEYTRAIL_ROOT_KEY; if there is none, make a new root key"
	says := func(secret string, lines ...string) {
		t.Helper()
		patient{t, first.url, secret}.eventuallySays(nil, lines...)
	}
	id, secret := admin("revoked", nil)
	first.must(t, "key", "revoke", id)
	says(secret, "FAIL operator key", "do: "+another)
	id, secret = admin("disabled", nil)
	first.must(t, "key", "disable", id)
	says(secret, "FAIL operator key", "do: "+another)
	// A key that has expired was created while it had not.
	for in := time.Second; ; in *= 2 {
		status, v := first.do(t, "POST", "/v1/keyspaces/keytrail/keys", nil, map[string]any{"tenant": "operators", "name": "expired", "scopes": []string{"admin"},
			"expires_at": time.Now().Add(in).UTC().Format(time.RFC3339Nano)})
		if status == http.StatusCreated {
			secret = v["data"].(map[string]any)["key"].(string)
			break
		}
		if in > patience { // even that was over before the request was read
			t.Fatal(status, v)
		}
	}
	says(secret, "FAIL operator key", "do: "+another)
	_, secret = admin("elsewhere", map[string]any{"allowlist": []string{"198.51.100.0/24"}})
	says(secret, "FAIL operator key", "do: call from an address of the key's allowlist, or "+another)
	_, secret = admin("limited", map[string]any{"limit": map[string]any{"per_minute": 1, "burst": 1}})
	says(secret, "FAIL operator key", "do: wait for the limit of this key or of its tenant, or "+another)
	_, secret = admin("reader", map[string]any{"scopes": []string{"audit:read"}})
	says(secret, "healthy", "note operator key accepted, without the scope keyspaces:read")
	_, secret = admin("writer", map[string]any{"scopes": []string{"keyspaces:read"}})
	says(secret, "healthy", "ok operator key accepted", "note record this key may not read it")

	// The root key itself is gone: a start without its file makes another.
	rootID := ""
	for line := range strings.Lines(first.must(t, "key", "list", "--keyspace", "keytrail", "--all")) {
		if f := strings.Fields(line); strings.Contains(line, " root ") {
			rootID = f[0]
		}
	}
	admin("last but one", nil) // the last administrator cannot be revoked
	first.must(t, "key", "revoke", rootID)
	says(first.root, "FAIL operator key", "do: "+another)
	first.stop(t)
	if err := os.Remove(filepath.Join(dir, "root.key")); err != nil {
		t.Fatal(err)
	}
	again := up(t, dir)
	if again.root == first.root {
		t.Fatal("the root key is the old one")
	}
	patient{t, again.url, again.root}.eventuallySays(nil, "healthy")
	again.stop(t)
}

// TestDoctorOfRoles makes the faults of separate processes.
func TestDoctorOfRoles(t *testing.T) {
	c := startCluster(t, 1)
	c.control.must(t, "keyspace", "apply", "-f", regime)
	p := patient{t, c.control.url, c.root}
	t.Setenv("KEYTRAIL_VERIFY_URL", c.verifiers[0].url)
	t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
	deep := []string{"--deep", "--nats", c.nats, "--clickhouse", c.dsn}
	p.eventuallySays(deep, "healthy", "role control", "role verifier", "role auditor", "every chain whole", "every server syncs", "are the same in the log and in its copy")
	p.says([]string{"--verifier", c.verifiers[0].url, "--verifier", "http://127.0.0.1:1"}, "FAIL endpoint nothing answers at http://127.0.0.1:1", "do: start it, or correct --verifier or KEYTRAIL_VERIFY_URL")

	roles := t // they outlive the parts of this test
	t.Run("auditor's URL", func(t *testing.T) {
		t.Setenv("KEYTRAIL_AUDIT_URL", c.control.url)
		patient{t, p.url, p.root}.eventuallySays(nil, "FAIL record", "does not serve the record", "do: name the auditor with KEYTRAIL_AUDIT_URL")
		t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
		patient{t, p.url, p.root}.eventuallySays(nil, "healthy")
	})
	t.Run("clock", func(t *testing.T) {
		u, err := url.Parse(c.verifiers[0].url)
		if err != nil {
			t.Fatal(err)
		}
		proxy := httputil.NewSingleHostReverseProxy(u) // the verifier, with the clock of another host
		proxy.ModifyResponse = func(r *http.Response) error {
			r.Header.Set("Date", time.Now().Add(-5*time.Minute).UTC().Format(http.TimeFormat))
			return nil
		}
		late := httptest.NewServer(proxy)
		defer late.Close()
		began := time.Now()
		out, errs, _ := cliAt(t, p.url, p.root, "doctor", "--verifier", late.URL)
		m := regexp.MustCompile(`FAIL +clock +the clock of ` + late.URL + ` differs by (\S+) from the one here\n +do: synchronise the clocks of both hosts`).FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("doctor says nothing of the clock:\n%s%s", out, errs)
		}
		if skew, err := time.ParseDuration(m[1]); err != nil || skew < -5*time.Minute-time.Second || skew > -5*time.Minute+time.Since(began)+time.Second {
			t.Errorf("a clock that is five minutes late differs by %v, %v", skew, err)
		}
	})
	t.Run("copy", func(t *testing.T) {
		empty := enginetest.Database(t)
		p := patient{t, p.url, p.root}
		p.says([]string{"--deep", "--nats", c.nats, "--clickhouse", empty}, "FAIL copy", "is at step 0 of", "start the auditor of this release: it makes the tables")
		s, err := audit.Open(t.Context(), audit.StoreConfig{DSN: empty}) // as an auditor does
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		p.says([]string{"--deep", "--nats", c.nats, "--clickhouse", empty}, "FAIL copy", "does not catch up", "do: start the auditor; if it runs, is this its database?")
		aud := c.role(t, "auditor", "--name", "auditor-2", "--clickhouse", empty) // the advice
		p.eventuallySays([]string{"--deep", "--nats", c.nats, "--clickhouse", empty}, "healthy", "are the same in the log and in its copy")
		aud.stop(t)
		p.says([]string{"--deep", "--nats", c.nats, "--clickhouse", "clickhouse://u:hunter2@127.0.0.1:1/keytrail"}, "FAIL copy", "do: start ClickHouse, or correct the DSN")
		p.says([]string{"--deep", "--nats", c.nats, "--clickhouse", "clickhouse://u:hunter2@127.0.0.1:1"}, "FAIL copy", "do: correct the DSN")

		o, err := clickhouse.ParseDSN(empty)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := clickhouse.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.Exec(t.Context(), "ALTER TABLE events UPDATE reason = 'nothing to see' WHERE seq = 1 SETTINGS mutations_sync = 2"); err != nil {
			t.Fatal(err)
		}
		p.says([]string{"--deep", "--nats", c.nats, "--clickhouse", empty}, "FAIL copy events: seq 1: the row was altered", "do: the log wins: rebuild the copy in a fresh database")
	})
	t.Run("ClickHouse is down", func(t *testing.T) {
		p := patient{t, p.url, p.root}
		supervised, stop := context.WithCancel(t.Context())
		defer stop()
		c.engine.Kill()
		p.eventuallySays(nil, "FAIL record", "do: start ClickHouse, or correct KEYTRAIL_CLICKHOUSE of the auditor; nothing is lost meanwhile")
		p.eventuallySays(nil, "FAIL copy", "the copy of the uses is", "s behind the log", "do: start ClickHouse; if it runs")
		done := make(chan struct{})
		go func() { defer close(done); c.engine.Run(supervised) }() // starts it again; joined below
		p.eventuallySays(deep, "healthy", "are the same in the log and in its copy")
		stop()
		<-done
	})
	t.Run("the log is down", func(t *testing.T) {
		p := patient{t, p.url, p.root}
		args := c.log.cmd.Args[1:]
		c.log.stop(t)
		p.eventuallySays(nil, "FAIL ready verifier: this node's lease was last renewed", "the log cannot be reached", "do: wait while it applies the log after a start; otherwise check that the log's servers run")
		p.says([]string{"--deep", "--nats", c.nats}, "FAIL log", "do: start the log, name it with --nats or KEYTRAIL_NATS, and give the password of the user ctrl in KEYTRAIL_CTRL_PASSWORD")
		c.log = spawn(roles, c.env, args...)
		p.eventuallySays([]string{"--deep", "--nats", c.nats}, "ok ready verifier", "every chain whole")
		t.Setenv("KEYTRAIL_CTRL_PASSWORD", "wrong")
		p.says([]string{"--deep", "--nats", c.nats}, "FAIL log", "do: start the log, name it with --nats or KEYTRAIL_NATS, and give the password")
		t.Setenv("KEYTRAIL_CTRL_PASSWORD", "pw-of-ctrl")
		t.Setenv("KEYTRAIL_SYS_PASSWORD", "wrong")
		p.says([]string{"--deep", "--nats", c.nats}, "FAIL fsync", "do: correct KEYTRAIL_SYS_PASSWORD")
		os.Unsetenv("KEYTRAIL_SYS_PASSWORD") // until the test's own end, which t.Setenv minds
		p.says([]string{"--deep", "--nats", c.nats}, "note fsync not asked: KEYTRAIL_SYS_PASSWORD is not set here")
	})
	t.Run("uses were lost", func(t *testing.T) {
		made := c.control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
		v := c.verifiers[0]
		eventually(t, func() string { // it hears the log again
			if r := v.verify(t, map[string]any{"key": made["key"], "keyspace": "scribe-sight"})["reason"]; r != "ok" {
				return fmt.Sprint("the new key is ", r)
			}
			return ""
		})
		logArgs, nodeArgs := c.log.cmd.Args[1:], v.cmd.Args[1:]
		c.log.kill() // at once: the verifier answers for the rest of its lease
		for range 3 {
			v.wantReason(t, "ok", map[string]any{"key": made["key"], "keyspace": "scribe-sight"})
		}
		v.kill() // with what the log has not taken
		c.log = spawn(roles, c.env, logArgs...)
		again := spawn(roles, c.env, nodeArgs...)
		patient{t, p.url, p.root}.eventuallySays([]string{"--verifier", again.url}, "ok ready verifier", "note uses "+again.url+": 1 gaps were recorded since this process started: uses were lost")
	})
}

// A slow answer is not a wrong clock.
func TestDoctorAllowsForTheAnswersTime(t *testing.T) {
	sent := time.Date(2026, 1, 6, 10, 0, 0, 900_000_000, time.UTC)
	for _, c := range []struct {
		dated, answered time.Duration // after sent
		want            string
	}{
		{0, 0, "ok"},
		{-time.Second, 0, "ok"},
		{15 * time.Second, 30 * time.Second, "ok"},
		{32 * time.Second, 30 * time.Second, "ok"},
		{-3 * time.Second, 30 * time.Second, "the clock of http://v differs by -3s from the one here"},
		{33 * time.Second, 30 * time.Second, "the clock of http://v differs by 3s from the one here"},
		{-5 * time.Minute, 0, "the clock of http://v differs by -5m0s from the one here"},
	} {
		d := &doctor{}
		(&role{doctor: d, client: client.Client{Base: "http://v"}}).clock(sent.Add(c.dated).Format(http.TimeFormat), sent, sent.Add(c.answered))
		if f := d.findings; len(f) != 1 || f[0].Found != c.want && f[0].Status != c.want {
			t.Errorf("dated %v after the question, answered after %v: %+v, want %s", c.dated, c.answered, f, c.want)
		}
	}
}

// TestDoctorOfNATS: a server that is not prepared, and one that does not fsync
// before it acknowledges, each named; what the advice says mends it.
func TestDoctorOfNATS(t *testing.T) {
	for _, kv := range append(passwords(), "NATS_MAX_STORE=1073741824", "NATS_NAME=n1", "NATS_ROUTES=[]") {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	conf, err := os.ReadFile("../../deploy/nats/nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := os.ReadFile("../../deploy/nats/nodes.conf")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nodes.conf"), nodes, 0o600); err != nil {
		t.Fatal(err)
	}
	serve := func(change func(*server.Options)) *server.Server {
		t.Helper()
		path := filepath.Join(dir, "nats.conf")
		if err := os.WriteFile(path, conf, 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := server.ProcessConfigFile(path)
		if err != nil {
			t.Fatal(err)
		}
		o.Host, o.Port, o.HTTPPort, o.Cluster, o.StoreDir, o.NoLog, o.NoSigs = "127.0.0.1", -1, 0, server.ClusterOpts{}, filepath.Join(dir, "store"), true, true
		change(o)
		s, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		go s.Start() // ends with Shutdown below
		if !s.ReadyForConnections(patience) {
			t.Fatal("the server does not start")
		}
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		return s
	}
	p := patient{t, "http://127.0.0.1:1", "kt_x"}
	lazy := serve(func(o *server.Options) { o.SyncAlways, o.SyncInterval = false, 2*time.Minute })
	p.says([]string{"--deep", "--nats", lazy.ClientURL()}, "FAIL log", "do: if this is a new NATS server, run `keytrail init` once")
	var out, errw bytes.Buffer
	if code := run(t.Context(), []string{"init", "--nats", lazy.ClientURL(), "--max-store", "536870912", "--root-key-file", filepath.Join(dir, "root.key")}, nil, &out, &errw); code == 0 {
		p.says([]string{"--deep", "--nats", lazy.ClientURL()}, "FAIL fsync", "do: set sync_interval: always on every server of the log, as deploy/nats/nats.conf does, and restart it")
	} else if !strings.Contains(errw.String(), "sync") {
		t.Fatalf("init: %s%s", out.String(), errw.String())
	}
	lazy.Shutdown()
	lazy.WaitForShutdown()
	synced := serve(func(*server.Options) {})
	errw.Reset()
	if code := run(t.Context(), []string{"init", "--nats", synced.ClientURL(), "--max-store", "536870912", "--root-key-file", filepath.Join(dir, "root.key")}, nil, &out, &errw); code != 0 {
		t.Fatalf("init: %s%s", out.String(), errw.String())
	}
	p.says([]string{"--deep", "--nats", synced.ClientURL()}, "ok log", "ok fsync every server syncs before it acknowledges")
}

// TestDoctorRefuses: what it would not use is a mistake of the command line.
func TestDoctorRefuses(t *testing.T) {
	for _, args := range [][]string{{"--clickhouse", "clickhouse://h:9000/d"}, {"--nats", "nats://127.0.0.1:4222"}, {"--dir", "data"}, {"--deep", "--dir", "data", "--nats", "nats://127.0.0.1:4222"}} {
		if _, errs, code := cliAt(t, "http://127.0.0.1:1", "kt_x", append([]string{"doctor"}, args...)...); code != exitUsage || !strings.Contains(errs, args[len(args)-2][2:]) {
			t.Errorf("doctor %v: exit %d, %s", args, code, errs)
		}
	}
}
