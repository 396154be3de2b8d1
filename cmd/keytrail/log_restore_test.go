package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/backup"
	"github.com/keytrail/keytrail/events/logtest"
)

// bigBackup writes a backup of n events without a server.
func bigBackup(t testing.TB, path string, n int) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := backup.NewWriter(f, backup.Header{Log: events.LogID{15: 1}, Made: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Stream(backup.Life, 1); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		var c events.Chain
		write := logtest.Stamp(&c, logtest.Event(logtest.NewKeyRef("shop", "acme").Aggregate(), logtest.Created(fmt.Sprint(i))))
		m, err := events.Encode(&write.Event)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Put(&backup.Message{Seq: uint64(i + 1), Stored: time.Now().UnixNano(), Subject: m.Subject, Data: m.Data}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{backup.Read, backup.Use} {
		if err := w.Stream(name, 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

var restoreKills = flag.Int("restore-kills", 3, "how many restores TestRestoreIsKilledAnywhere kills")

// TestRestoreIsKilledAnywhere kills a restore at moments that are drawn. What it
// leaves is nothing, a log that is marked and that `keytrail up` refuses, or the
// whole log. Another restore, with --restart, ends it.
func TestRestoreIsKilledAnywhere(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "log.backup")
	const n = 6_000 // six batches
	bigBackup(t, file, n)
	began := time.Now()
	whole := filepath.Join(t.TempDir(), "whole")
	mustRun(t, "log", "restore", "--dir", whole, file)
	took := time.Since(began)
	seed := uint64(time.Now().UnixNano())
	t.Logf("a restore of %d events took %s; seed %d", n, took.Round(time.Millisecond), seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	found := map[string]int{}
	for range *restoreKills {
		dir := filepath.Join(t.TempDir(), "data")
		cmd := exec.Command(os.Args[0], "log", "restore", "--dir", dir, file)
		cmd.Env = append(os.Environ(), asMain+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Duration(rng.Int64N(int64(took)))) // any moment: the point of the test
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if _, err := os.Stat(filepath.Join(dir, logMarker)); err == nil {
			found["whole"]++
			mustRun(t, "log", "verify", "--dir", dir)
			continue
		}
		out, code := cliRun(t, "log", "restore", "--dir", dir, file)
		switch {
		case code == 0:
			found["nothing"]++
		case strings.Contains(out, "give --restart"):
			found["marked"]++
			// `keytrail up` does not take it for a log, nor make a new one beside it.
			if out, code := cliRun(t, "up", "--dir", dir, "--listen", "127.0.0.1:0", "--clickhouse", "clickhouse://127.0.0.1:1/keytrail"); code != exitFailed || !strings.Contains(out, "is not finished") {
				t.Errorf("up on a restore that was killed: exit %d\n%s", code, out)
			}
			mustRun(t, "log", "restore", "--restart", "--dir", dir, file)
		case strings.Contains(out, "a log is restored into an empty server only"):
			found["whole without its marker"]++
			continue
		default:
			t.Fatalf("after the kill: exit %d\n%s", code, out)
		}
		if log, all := readDir(t, dir); len(all) != n || log.Restored[0].Size != n {
			t.Fatalf("%d events in the end, of %+v", len(all), log)
		}
	}
	t.Log(found)
}

// TestRestoredLogMeetsItsRoles backs a running deployment up, goes on, loses the log,
// restores the backup, and starts the roles with what they kept of the old log.
func TestRestoredLogMeetsItsRoles(t *testing.T) {
	c := startCluster(t, 1)
	work := t.TempDir()
	c.control.must(t, "keyspace", "apply", "-f", regime)
	created := c.control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	v := c.verifiers[0]
	ask := map[string]any{"key": created["key"], "keyspace": "scribe-sight", "scope": "read", "min_position": created["__position"]}
	v.wantReason(t, "ok", ask)
	t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
	eventually(t, func() string {
		if out, _, _ := c.control.cli(t, "audit", "uses", "--keyspace", "scribe-sight", "--all"); !strings.Contains(out, "verifier-1") {
			return "the use is not in the copy:\n" + out
		}
		return ""
	})

	file := filepath.Join(work, "log.backup")
	said := mustRun(t, "log", "backup", "--nats", c.nats, file)
	old := strings.Fields(said[strings.Index(said, "\nlog"):])[1]
	c.control.data(t, 200, "DELETE", "/v1/keys/"+created["id"].(string), nil)
	for _, p := range []*proc{c.auditor, v, c.control, c.log} {
		p.stop(t)
	}

	// Its disk is lost.
	addr := strings.TrimPrefix(c.nats, "nats://")
	c.log = spawn(t, c.env, "log", "--dir", filepath.Join(work, "log"), "--listen", addr)
	said = mustRun(t, "log", "restore", "--nats", c.nats, file)
	id := strings.TrimSuffix(strings.Fields(said)[2], ",")
	if id == old || !strings.Contains(said, "from log "+old) {
		t.Fatalf("log %s was restored, and restore says\n%s", old, said)
	}
	mustRun(t, "init", "--nats", c.nats, "--root-key-file", rootFile(t, c.root))
	c.control = c.role(t, "control", "--name", "control-1")
	kept := v.cmd.Args[len(v.cmd.Args)-1]
	v = c.role(t, "verifier", "--name", "verifier-1", "--dir", kept)
	if text := v.stderr.String(); !strings.Contains(text, "it is of log "+old+", this log is "+id) {
		t.Errorf("the verifier does not say that it passes over the snapshot of the old log:\n%s", text)
	}
	status, answer := v.do(t, "POST", "/v1/verify", nil, ask)
	if status != 422 || !strings.Contains(fmt.Sprint(answer), "foreign_position") {
		t.Errorf("a position of the old log: %d %v", status, answer)
	}
	delete(ask, "min_position")
	v.wantReason(t, "ok", ask) // it was revoked after the backup was made

	// The copy of the old log is refused, and a new one has the old uses.
	refused, err := trySpawn(t, c.env, "auditor", "--nats", c.nats, "--listen", "127.0.0.1:0", "--name", "auditor-1", "--clickhouse", c.dsn)
	if err == nil {
		refused.kill()
		t.Error("the auditor takes the copy of the old log for the restored log's")
	} else if !strings.Contains(err.Error(), old) || !strings.Contains(err.Error(), id) {
		t.Errorf("the auditor says %v", err)
	}
	base, query, _ := strings.Cut(c.dsn, "?")
	fresh := base[:strings.LastIndex(base, "/")] + "/keytrail_restored"
	if query != "" {
		fresh += "?" + query
	}
	c.auditor = c.role(t, "auditor", "--name", "auditor-1", "--clickhouse", fresh)
	t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
	t.Setenv("KEYTRAIL_VERIFY_URL", v.url)
	eventually(t, func() string {
		out, errs, _ := c.control.cli(t, "audit", "uses", "--keyspace", "scribe-sight", "--all")
		if strings.Count(out, "verifier-1") < 2 {
			return "the uses before and after are not in the new copy:\n" + out + errs
		}
		return ""
	})
	patient{t, c.control.url, c.root}.eventuallySays([]string{"--deep", "--nats", c.nats, "--clickhouse", fresh}, "are the same in the log and in its copy")
}

func rootFile(t testing.TB, root string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.key")
	if err := os.WriteFile(path, []byte(root+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRestoreOnACluster restores a backup on three log nodes, takes one node's disk
// away, and restarts the nodes one by one, as the runbook says. The log is the same
// all the while.
func TestRestoreOnACluster(t *testing.T) {
	work := t.TempDir()
	file := filepath.Join(work, "log.backup")
	bigBackup(t, file, 3000)
	env := passwords()
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	var listen, routes []string
	for range 3 {
		listen, routes = append(listen, freeAddr(t)), append(routes, freeAddr(t))
	}
	nodes := make([]*proc, 3)
	start := func(i int) {
		t.Helper()
		args := []string{"log", "--name", fmt.Sprint("log-", i+1), "--dir", filepath.Join(work, fmt.Sprint("log-", i+1)), "--listen", listen[i],
			"--cluster-listen", routes[i], "--route", strings.Join(routes, ",")}
		p, err := trySpawn(t, env, args...)
		if err != nil {
			t.Error(err)
			return
		}
		nodes[i] = p
	}
	var all sync.WaitGroup
	for i := range nodes {
		all.Go(func() { start(i) }) // each is ready when the cluster is
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	url := "nats://" + strings.Join(listen, ",nats://")
	said := mustRun(t, "log", "restore", "--nats", url, "--replicas", "3", file)
	root := said[strings.Index(said, "root "):strings.Index(said, "\nKT_READ")]
	same := func(when string) {
		t.Helper()
		eventually(t, func() string {
			if out, _ := cliRun(t, "log", "verify", "--nats", url); !strings.Contains(out, "1 to 3000, 3000 messages  "+root) || !strings.HasSuffix(out, "ok\n") {
				return when + ":\n" + out
			}
			return ""
		})
	}
	same("restored")

	nodes[1].stop(t)
	if err := os.RemoveAll(filepath.Join(work, "log-2")); err != nil {
		t.Fatal(err)
	}
	same("a node is gone")
	start(1)
	same("it is back with an empty disk")
	for i := range nodes { // any two have all of it
		nodes[i].stop(t)
		same(fmt.Sprint("without log-", i+1))
		start(i)
		same(fmt.Sprint("log-", i+1, " is back"))
	}
}
