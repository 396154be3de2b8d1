package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestNodesRefuseAnotherHistory restores an older copy of the log's store and writes
// on it, as an operator would after a mistake. The copy has the id of the log and is
// longer than the log was, and a key that was revoked is alive in it. A verifier and
// a control node refuse it: when they come back with a snapshot, and when they ran
// all the time. A verifier that knows the copy alone refuses the position of the
// revocation, which is not in it.
func TestNodesRefuseAnotherHistory(t *testing.T) {
	dir := t.TempDir()
	store, older := filepath.Join(dir, "log"), filepath.Join(dir, "older")
	addr := freeAddr(t)
	c := &cluster{nats: "nats://" + addr}
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats)
	start := func() { c.log = spawn(t, c.env, "log", "--dir", store, "--listen", addr) }
	start()
	c.initialise(t, filepath.Join(dir, "root.key"))
	args := map[string][]string{
		"control":  {"--name", "control-1", "--dir", filepath.Join(dir, "control")},
		"verifier": {"--name", "verifier-1", "--dir", filepath.Join(dir, "verifier")},
	}
	roles := map[string]*proc{}
	for role := range args {
		roles[role] = c.role(t, role, args[role]...)
	}
	control := roles["control"]
	control.must(t, "keyspace", "apply", "-f", regime)
	created := control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	for _, p := range roles {
		p.stop(t)
	}
	c.log.stop(t)
	if err := os.CopyFS(older, os.DirFS(store)); err != nil {
		t.Fatal(err)
	}

	// The log goes on: the key is revoked, and both nodes save snapshots of that.
	start()
	for role := range args {
		roles[role] = c.role(t, role, args[role]...)
	}
	revoked := roles["control"].data(t, 200, "DELETE", "/v1/keys/"+created["id"].(string), nil)
	ask := map[string]any{"key": created["key"], "keyspace": "scribe-sight", "scope": "read", "min_position": revoked["__position"]}
	roles["verifier"].wantReason(t, "key_revoked", ask)
	for role, p := range roles {
		p.stop(t)
		if snaps, _ := filepath.Glob(filepath.Join(dir, role, "*.snap")); len(snaps) == 0 {
			t.Fatalf("%s stopped without a snapshot", role)
		}
	}
	running := map[string]*proc{}
	for role := range args { // nodes without a snapshot, which go on running
		running[role] = c.role(t, role, "--name", role+"-2")
	}
	running["verifier"].wantReason(t, "key_revoked", ask)
	c.log.stop(t)
	for _, p := range running {
		p.cmd.Process.Signal(syscall.SIGSTOP) // so that they see nothing of the change
	}

	// The older copy takes the log's place and is written on.
	if err := errors.Join(os.RemoveAll(store), os.Rename(older, store)); err != nil {
		t.Fatal(err)
	}
	start()
	fresh := c.role(t, "control", "--name", "control-3")
	for _, name := range []string{"a", "b", "c"} {
		fresh.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": name})
	}
	for role := range args {
		p, err := trySpawn(t, c.env, append([]string{role, "--nats", c.nats, "--listen", "127.0.0.1:0"}, args[role]...)...)
		if err == nil || !saysOne(role, p.stderr.String(), []sentence{otherEvent, otherFloor, otherRead}) {
			t.Errorf("%s with a snapshot of the other history: %v", role, err)
		}
	}
	for role, p := range running {
		p.cmd.Process.Signal(syscall.SIGCONT)
		p.exitCode(t, patience)
		if !saysOne(role, p.stderr.String(), []sentence{otherEvent, otherFloor, otherRead}) {
			t.Errorf("%s that was running: %v\n%s", role, p.err, p.stderr.String())
		}
	}
	verifier := c.role(t, "verifier", "--name", "verifier-2")
	if status, v := verifier.do(t, "POST", "/v1/verify", nil, ask); status != 422 || !strings.Contains(fmt.Sprint(v), "foreign_position") {
		t.Errorf("the position of a revocation that the log does not hold: %d %v", status, v)
	}
}
