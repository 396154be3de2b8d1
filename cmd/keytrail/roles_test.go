package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/audit/engine/enginetest"
)

// passwords of the log's users, as an operator would set them. The nodes verifier-1
// and verifier-2 may connect, with one password here.
func passwords() []string {
	nodes, err := filepath.Abs("../../deploy/nats/nodes.conf")
	if err != nil {
		panic(err)
	}
	env := []string{"KEYTRAIL_LOG_NODES=" + nodes}
	for _, user := range []string{"ADMIN", "CTRL", "SYS", "ROUTE"} {
		env = append(env, "KEYTRAIL_"+user+"_PASSWORD=pw-of-"+strings.ToLower(user))
	}
	for _, name := range []string{"NODE", "VERIFIER_1", "VERIFIER_2"} {
		env = append(env, "KEYTRAIL_"+name+"_PASSWORD=pw-of-node")
	}
	return env
}

// cluster is a deployment of separate processes.
type cluster struct {
	log, control, auditor *proc
	verifiers             []*proc
	engine                *engine.Engine
	root                  string
	nats, dsn             string
	env                   []string
}

// startCluster starts every role. The passwords are in the environment to the test's
// end, for the commands that the test itself is.
func startCluster(t *testing.T, verifiers int) *cluster {
	t.Helper()
	dir := t.TempDir()
	c := &cluster{}
	eng := enginetest.Start(t, engine.Config{Dir: filepath.Join(dir, "clickhouse")})
	c.engine, c.dsn = eng, eng.DSN()
	addr := freeAddr(t)
	c.nats = "nats://" + addr
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats)
	for _, kv := range c.env {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	c.log = spawn(t, c.env, "log", "--dir", filepath.Join(dir, "log"), "--listen", addr)
	for range 2 { // running it again changes nothing
		c.initialise(t, filepath.Join(dir, "root.key"))
	}
	c.control = c.role(t, "control", "--name", "control-1", "--clickhouse", c.dsn)
	for i := range verifiers {
		name := fmt.Sprintf("verifier-%d", i+1)
		c.verifiers = append(c.verifiers, c.role(t, "verifier", "--name", name, "--dir", filepath.Join(dir, name)))
	}
	c.auditor = c.role(t, "auditor", "--name", "auditor-1", "--clickhouse", c.dsn)
	return c
}

// initialise prepares the cluster's log, as one who has its passwords, and keeps the
// root key that is in the file then.
func (c *cluster) initialise(t *testing.T, rootFile string) {
	t.Helper()
	command(t, c.env, "init", "--nats", c.nats, "--root-key-file", rootFile)
	b, err := os.ReadFile(rootFile)
	if err != nil {
		t.Fatal(err)
	}
	c.root = strings.TrimSpace(string(b))
}

// role runs one role of the deployment.
func (c *cluster) role(t testing.TB, name string, more ...string) *proc {
	t.Helper()
	p := spawn(t, c.env, append([]string{name, "--nats", c.nats, "--listen", "127.0.0.1:0"}, more...)...)
	p.root = c.root
	return p
}

// stale is the reason of a verifier that cannot prove for a moment that its view is
// recent enough. Such a use is on the record too.
const stale = "verifier_stale"

// TestRoles runs the roles as processes: what control writes, every verifier
// applies, and the auditor has all of it.
func TestRoles(t *testing.T) {
	c := startCluster(t, 2)
	c.control.must(t, "keyspace", "apply", "-f", regime)
	created := c.control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	ask := map[string]any{"key": created["key"], "keyspace": "scribe-sight", "scope": "read", "min_position": created["__position"]}
	for _, v := range c.verifiers {
		v.wantReason(t, "ok", ask) // min_position reads one's own write across processes
	}
	revoked := c.control.data(t, 200, "DELETE", "/v1/keys/"+created["id"].(string), nil)
	ask["min_position"] = revoked["__position"]
	for _, v := range c.verifiers {
		v.wantReason(t, "key_revoked", ask)
	}
	eventually(t, func() string {
		out := c.auditor.must(t, "audit", "events", "--key", created["id"].(string))
		if !strings.Contains(out, "key.created") || !strings.Contains(out, "key.revoked") {
			return "the trail is not complete:\n" + out
		}
		return ""
	})
	eventually(t, func() string {
		out := c.auditor.must(t, "audit", "uses", "--key", created["id"].(string))
		for _, v := range []string{"verifier-1/", "verifier-2/"} {
			uses := 0
			for line := range strings.Lines(out) {
				if strings.Contains(line, v) && !strings.Contains(line, stale) {
					uses++
				}
			}
			if uses != 2 {
				return "the ledger does not have both uses of " + v + ":\n" + out
			}
		}
		return ""
	})
	eventually(t, func() string {
		if got := c.control.data(t, 200, "GET", "/v1/keys/"+created["id"].(string), nil); got["last_used_at"] == nil {
			return fmt.Sprint("control does not show when the key was last used: ", got)
		}
		return ""
	})

	// A damaged position is refused, not compared.
	position := created["__position"].(string)
	foreign := map[string]any{"key": created["key"], "min_position": position[:20] + flip(position[20]) + position[21:]}
	if status, v := c.verifiers[0].do(t, "POST", "/v1/verify", nil, foreign); status/100 != 4 || !strings.Contains(fmt.Sprint(v), "min_position") {
		t.Errorf("a damaged position: %d %v", status, v)
	}

	// A verifier restarts from its snapshot and the tail.
	c.verifiers[0].stop(t)
	args := c.verifiers[0].cmd.Args
	again := c.role(t, "verifier", "--name", "verifier-1", "--dir", args[len(args)-1])
	again.wantReason(t, "key_revoked", ask)
	if !strings.Contains(again.stderr.String(), "restored from a snapshot") {
		t.Errorf("the restarted verifier did not use its snapshot:\n%s", again.stderr.String())
	}

	// The doctor reads the whole log and compares the copy with it.
	eventually(t, func() string {
		t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
		out, errs, code := c.control.cli(t, "doctor", "--deep", "--nats", c.nats, "--clickhouse", c.dsn)
		if code != 0 || !strings.Contains(out, "every chain whole") || !strings.Contains(out, "every server syncs") {
			return fmt.Sprintf("doctor: exit %d\n%s%s", code, out, errs)
		}
		return ""
	})
	for _, p := range []*proc{again, c.verifiers[1], c.auditor, c.control, c.log} {
		p.stop(t)
	}
	for _, p := range []*proc{again, c.verifiers[0], c.verifiers[1], c.auditor, c.control, c.log} {
		for _, s := range []string{created["key"].(string), c.root, "pw-of-"} {
			if strings.Contains(p.stderr.String(), s) {
				t.Errorf("%v: a secret is in its log", p.cmd.Args[1])
			}
		}
	}
}
