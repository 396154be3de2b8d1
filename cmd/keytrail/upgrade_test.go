package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// buildNext builds Keytrail as the release that comes next (events/next.go).
func buildNext(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "keytrail-next")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-tags", "keytrail_next", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("build the next release: %v\n%s", err, out)
	}
	return bin
}

// part is one process of a deployment that is upgraded.
type part struct {
	args []string
	proc *proc
	url  atomic.Value // of the process that runs now
}

// upgraded is a deployment in which one process after another is replaced.
type upgraded struct {
	*cluster
	next                string // the binary of the next release
	controls, verifiers []*part
	auditor             *part

	mu   sync.Mutex
	keys []*loadKey // guarded by mu

	answers, denied, changes atomic.Int64
}

// run starts the part with the binary.
func (u *upgraded) run(t *testing.T, p *part, bin string) {
	t.Helper()
	proc, err := trySpawnOf(t, bin, u.env, p.args...)
	if err != nil {
		t.Fatal(err)
	}
	proc.root = u.root
	p.proc = proc
	p.url.Store(proc.url)
}

// replace stops the part in order and starts it with the binary.
func (u *upgraded) replace(t *testing.T, p *part, bin string) {
	t.Helper()
	p.proc.stop(t)
	u.run(t, p, bin)
}

// call calls an endpoint of a part; status 0 means that there was no answer.
func (u *upgraded) call(ctx context.Context, p *part, method, path string, body any) (status int, data []byte) {
	var in io.Reader
	if body != nil {
		b, _ := json.Marshal(body)
		in = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, p.url.Load().(string)+path, in)
	if err != nil {
		return 0, nil
	}
	req.Header.Set("Authorization", "Bearer "+u.root)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	if data, err = io.ReadAll(resp.Body); err != nil {
		return 0, nil
	}
	return resp.StatusCode, data
}

// away reports whether the status says that a part is being replaced, or cannot prove
// anything for a moment.
func away(status int) bool { return status == 0 || status == http.StatusServiceUnavailable }

// patient is call, again and again while the part is away.
func (u *upgraded) patient(ctx context.Context, p *part, method, path string, body any) (status int, data []byte) {
	for deadline := time.Now().Add(patience); ; rest(ctx, 20*time.Millisecond) {
		if status, data = u.call(ctx, p, method, path, body); !away(status) || time.Now().After(deadline) {
			return status, data
		}
	}
}

// loadKey is a key of the load, and what was acknowledged of it.
type loadKey struct {
	id, secret string

	mu       sync.Mutex
	position string
	name     string
	unsure   bool // a change of it had no answer: either may hold
	revoking bool
	revoked  bool
}

// change makes keys, renames them and revokes every other, by one control, until ctx
// ends. It notes what is acknowledged.
func (u *upgraded) change(ctx context.Context, t *testing.T, p *part, writer int) {
	var answer struct {
		Data     struct{ ID, Key string }
		Position string
	}
	step := func(want int, method, path string, body any) bool {
		status, b := u.call(ctx, p, method, path, body)
		answer.Position = ""
		switch {
		case status == want:
			if err := json.Unmarshal(b, &answer); err != nil {
				t.Error(err)
			}
			u.changes.Add(1)
			return true
		case !away(status):
			t.Errorf("%s %s: %d %s", method, path, status, b)
		}
		return false
	}
	for i := 0; ctx.Err() == nil; i++ {
		rest(ctx, 10*time.Millisecond)
		k := &loadKey{name: fmt.Sprintf("%d-%d", writer, i)}
		if !step(http.StatusCreated, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": k.name}) {
			continue
		}
		k.id, k.secret, k.position = answer.Data.ID, answer.Data.Key, answer.Position
		u.mu.Lock()
		u.keys = append(u.keys, k)
		u.mu.Unlock()
		name := k.name + " again"
		renamed := step(http.StatusOK, "PATCH", "/v1/keys/"+k.id, map[string]any{"name": name})
		k.mu.Lock()
		if k.unsure = !renamed; renamed {
			k.name, k.position = name, answer.Position
		}
		k.revoking = i%2 == 0
		k.mu.Unlock()
		if i%2 == 0 && step(http.StatusOK, "DELETE", "/v1/keys/"+k.id, nil) {
			k.mu.Lock()
			k.revoked, k.position = true, answer.Position
			k.mu.Unlock()
		}
	}
}

// ask asks one verifier about the newest keys until ctx ends: no answer may be other
// than what was acknowledged before it was asked for.
func (u *upgraded) ask(ctx context.Context, t *testing.T, p *part) {
	for i := 0; ctx.Err() == nil; i++ {
		rest(ctx, 5*time.Millisecond)
		u.mu.Lock()
		n := len(u.keys)
		if n == 0 {
			u.mu.Unlock()
			continue
		}
		k := u.keys[n-1-i%min(n, 8)]
		u.mu.Unlock()
		k.mu.Lock()
		revoked, position := k.revoked, k.position
		k.mu.Unlock()
		status, b := u.call(ctx, p, "POST", "/v1/verify", map[string]any{"key": k.secret, "keyspace": "scribe-sight", "scope": "read", "min_position": position})
		if away(status) {
			continue // it is being replaced
		}
		var a struct{ Reason string }
		if err := json.Unmarshal(b, &a); err != nil || status != http.StatusOK {
			t.Errorf("verify: %d %s", status, b)
			return
		}
		u.answers.Add(1)
		k.mu.Lock()
		revoking := k.revoking
		k.mu.Unlock()
		switch {
		case a.Reason == "verifier_stale":
			u.denied.Add(1)
		case a.Reason == "key_revoked" && (revoked || revoking), a.Reason == "ok" && !revoked:
		default:
			t.Errorf("a wrong answer about %s, revoked before it was asked %v: %s", k.id, revoked, b)
			return
		}
	}
}

// rest leaves the processor to the processes: the load does not have to be great.
func rest(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// TestRollingUpgrade upgrades a deployment under load, in the order of
// deploy/README.md: the log, the auditor, the verifiers, the controls, with a step
// back in between. No answer is wrong, no acknowledged change is lost, and nothing
// that only the next release reads is written before every process has it. From then
// on an older process does not start.
func TestRollingUpgrade(t *testing.T) {
	next := buildNext(t)
	c := startCluster(t, 0)
	c.control.must(t, "keyspace", "apply", "-f", regime)
	c.control.stop(t)
	c.auditor.stop(t)
	u := &upgraded{cluster: c, next: next}
	dir, old := t.TempDir(), os.Args[0]
	newPart := func(role, name string, more ...string) *part {
		p := &part{args: append([]string{role, "--nats", c.nats, "--listen", "127.0.0.1:0", "--name", name, "--dir", filepath.Join(dir, name)}, more...)}
		u.run(t, p, old)
		return p
	}
	for _, n := range []string{"1", "2"} {
		u.controls = append(u.controls, newPart("control", "control-"+n))
		u.verifiers = append(u.verifiers, newPart("verifier", "verifier-"+n))
	}
	u.auditor = newPart("auditor", "auditor-1", "--clickhouse", c.dsn)

	ctx, stop := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer stop()
	for i, p := range u.controls {
		load.Go(func() { u.change(ctx, t, p, i) })
	}
	for _, p := range u.verifiers {
		load.Go(func() { u.ask(ctx, t, p) })
	}
	goesOn := func() { // each step is under load: changes are acknowledged before the next
		t.Helper()
		before := u.changes.Load()
		eventually(t, func() string {
			if now := u.changes.Load(); now < before+12 {
				return fmt.Sprintf("%d changes are acknowledged since the step", now-before)
			}
			return ""
		})
	}

	goesOn()
	logArgs := c.log.cmd.Args[1:]
	c.log.stop(t)
	log, err := trySpawnOf(t, next, c.env, logArgs...)
	if err != nil {
		t.Fatal(err)
	}
	c.log = log
	goesOn()
	u.replace(t, u.auditor, next)
	for _, p := range u.verifiers {
		u.replace(t, p, next)
		goesOn()
	}
	u.replace(t, u.verifiers[1], old) // the way back is open
	goesOn()
	u.replace(t, u.verifiers[1], next)
	u.replace(t, u.controls[0], next)
	goesOn()

	// One control is old: the other writes what the old one reads, and nothing that it does not.
	probe := u.key(t)
	eventually(t, func() string {
		status, b := u.call(ctx, u.controls[0], "PATCH", "/v1/keys/"+probe, map[string]any{"name": "next: of control-1"})
		if away(status) && strings.Contains(string(b), "needs release 2.1 in every process") {
			return ""
		}
		if !away(status) {
			t.Fatalf("with an old control: %d %s", status, b)
		}
		return fmt.Sprintf("with an old control: %d %s", status, b)
	})
	eventually(t, func() string { // a node on a slow machine may have lapsed for a moment
		nodes := u.releases(ctx, t)
		if nodes["control-2"] == "1.0" && nodes["control-1"] == "2.1" && nodes["verifier-2"] == "2.1" && nodes["auditor-1"] == "2.1" {
			return ""
		}
		return fmt.Sprintf("/v1/nodes: %v", nodes)
	})
	lastOld := u.last(t) // the old control gives its lease back before its process ends
	u.controls[1].proc.stop(t)
	u.run(t, u.controls[1], next)
	goesOn()
	eventually(t, func() string {
		for i, p := range u.controls {
			status, b := u.call(ctx, p, "PATCH", "/v1/keys/"+probe, map[string]any{"name": fmt.Sprint("next: ", i)})
			if status != http.StatusOK {
				return fmt.Sprintf("with every process upgraded: %d %s", status, b)
			}
		}
		return ""
	})
	goesOn()

	// Now an older process does not start, and says which release is needed; the others go on.
	u.verifiers[0].proc.stop(t)
	back, err := trySpawnOf(t, old, u.env, u.verifiers[0].args...)
	if err == nil {
		t.Error("an older verifier starts on a log that it cannot read")
	}
	if said := back.stderr.String(); !strings.Contains(said, "a newer release wrote it. Upgrade this process to release 2.1, or newer") {
		t.Errorf("an older verifier says:\n%s", said)
	}
	u.run(t, u.verifiers[0], next)
	goesOn()
	stop()
	load.Wait()

	u.wantAcknowledged(t)
	u.wantWritten(t, lastOld)
	env := append(os.Environ(), "KEYTRAIL_URL="+u.controls[0].url.Load().(string), "KEYTRAIL_ROOT_KEY="+u.root, "KEYTRAIL_CLICKHOUSE="+c.dsn, "KEYTRAIL_AUDIT_URL="+u.auditor.url.Load().(string))
	eventually(t, func() string {
		cmd := exec.CommandContext(t.Context(), next, "doctor", "--deep", "--nats", c.nats)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "are the same") {
			return fmt.Sprintf("doctor: %v\n%s", err, out)
		}
		return ""
	})
	t.Logf("%d changes acknowledged, %d answers, of them %d denied as stale", u.changes.Load(), u.answers.Load(), u.denied.Load())
}

// key makes a key that the load leaves alone.
func (u *upgraded) key(t *testing.T) string {
	t.Helper()
	status, b := u.patient(t.Context(), u.controls[0], "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "probe"})
	var v struct{ Data struct{ ID string } }
	if err := json.Unmarshal(b, &v); err != nil || status != http.StatusCreated {
		t.Fatalf("create: %d %s", status, b)
	}
	return v.Data.ID
}

// releases returns the releases of the live nodes, as /v1/nodes shows them.
func (u *upgraded) releases(ctx context.Context, t *testing.T) map[string]string {
	t.Helper()
	status, b := u.patient(ctx, u.controls[0], "GET", "/v1/nodes", nil)
	var v struct {
		Data []struct{ Node, State, Release string }
	}
	if err := json.Unmarshal(b, &v); err != nil || status != http.StatusOK {
		t.Fatalf("nodes: %d %s", status, b)
	}
	out := map[string]string{}
	for _, n := range v.Data {
		if n.State == "live" {
			out[n.Node] = n.Release
		}
	}
	return out
}

// stream returns the lifecycle stream as the administrator reads it.
func (u *upgraded) stream(t *testing.T) jetstream.Stream {
	t.Helper()
	nc, err := dial.Connect(u.nats, dial.Login{User: "admin", Password: "pw-of-admin", Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), streams.Life)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (u *upgraded) last(t *testing.T) uint64 {
	t.Helper()
	return u.stream(t).CachedInfo().State.LastSeq
}

// wantWritten reads the log: the new version begins after lastOld, the last event that
// stood there when the last old process was told to stop. Every rename has a version,
// and a control that has written the new one does not go back: its part of the load is
// one change after the other, so one old rename may have been on its way beside the
// probe.
func (u *upgraded) wantWritten(t *testing.T, lastOld uint64) {
	t.Helper()
	s := u.stream(t)
	var old, newer, first uint64
	next, late := map[string]uint64{}, map[string]int{} // by control, its first event of the new version, and old ones after that
	writer := regexp.MustCompile(`"name":"(?:next: )?(\d+)(?:-\d+ again)?"\}`)
	for seq := uint64(1); seq <= s.CachedInfo().State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case bytes.Contains(m.Data, []byte(`"minrelease"`)):
			if newer++; first == 0 {
				first = seq
			}
			if w := writer.FindSubmatch(m.Data); w != nil && next[string(w[1])] == 0 {
				next[string(w[1])] = seq
			}
		case bytes.Contains(m.Data, []byte(`"type":"keytrail.key.renamed.v1"`)):
			old++
			if w := writer.FindSubmatch(m.Data); w == nil {
				t.Errorf("event %d is no rename of the load: %s", seq, m.Data)
			} else if began := next[string(w[1])]; began > 0 {
				if late[string(w[1])]++; late[string(w[1])] > 1 {
					t.Errorf("event %d is of the old version, and control %s wrote the new one at %d", seq, w[1], began)
				}
			}
		}
	}
	if len(next) != len(u.controls) {
		t.Errorf("the new version begins at %v for each control, want %d of them", next, len(u.controls))
	}
	if old == 0 || newer < 2 || first <= lastOld {
		t.Errorf("%d old renames, %d new ones from event %d on; the last old process was told to stop at event %d", old, newer, first, lastOld)
	}
}

// wantAcknowledged insists on every change that was acknowledged.
func (u *upgraded) wantAcknowledged(t *testing.T) {
	t.Helper()
	for _, k := range u.keys {
		status, b := u.patient(t.Context(), u.controls[1], "GET", "/v1/keys/"+k.id, nil)
		var v struct{ Data struct{ Name, Status string } }
		if err := json.Unmarshal(b, &v); err != nil || status != http.StatusOK {
			t.Fatalf("key %s: %d %s", k.id, status, b)
		}
		if !k.unsure && v.Data.Name != k.name || k.revoked && v.Data.Status != "revoked" || !k.revoking && v.Data.Status != "active" {
			t.Errorf("key %s is %+v: want name %q, revoked %v", k.id, v.Data, k.name, k.revoked)
		}
	}
}
