package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fetchCluster is a log and a control with two keys, the second of which is revoked.
type fetchCluster struct {
	*cluster
	dir, rootFile string
	live, revoked map[string]any
}

func newFetchCluster(t *testing.T) *fetchCluster {
	dir := t.TempDir()
	addr := freeAddr(t)
	c := &fetchCluster{cluster: &cluster{nats: "nats://" + addr}, dir: dir, rootFile: filepath.Join(dir, "root.key")}
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats)
	c.log = spawn(t, c.env, "log", "--dir", filepath.Join(dir, "log"), "--listen", addr)
	c.initialise(t, c.rootFile)
	c.control = c.role(t, "control", "--name", "control-1")
	c.control.must(t, "keyspace", "apply", "-f", regime)
	key := func(name string) map[string]any {
		return c.control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": name, "scopes": []string{"read"}})
	}
	c.live, c.revoked = key("live"), key("revoked")
	c.control.data(t, 200, "DELETE", "/v1/keys/"+c.revoked["id"].(string), nil)
	return c
}

// new is a node without a snapshot, which asks the sources for one.
func (c *fetchCluster) new(t *testing.T, role, name string, from ...string) *proc {
	return c.role(t, role, "--name", name, "--dir", filepath.Join(c.dir, name), "--key-file", c.rootFile, "--snapshot-from", strings.Join(from, ","))
}

// asks verifies both keys.
func (c *fetchCluster) asks(t *testing.T, p *proc) {
	t.Helper()
	for want, key := range map[string]map[string]any{"ok": c.live, "key_revoked": c.revoked} {
		p.wantReason(t, want, map[string]any{"key": key["key"], "keyspace": "scribe-sight", "scope": "read"})
	}
}

// says waits until a node's log has the text.
func (p *proc) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, func() string {
		if strings.Contains(p.stderr.String(), text) {
			return ""
		}
		return fmt.Sprintf("the node does not say %q:\n%s", text, p.stderr.String())
	})
}

// without checks that nothing in a node's directory is half of a snapshot, or says that
// one is to be proven.
func (c *fetchCluster) without(t *testing.T, name, pattern string) {
	t.Helper()
	if left, _ := filepath.Glob(filepath.Join(c.dir, name, pattern)); len(left) > 0 {
		t.Errorf("%s has %v", name, left)
	}
}

// A new node of each role starts from what another one sends, and folds no event that it
// holds. It compares every row with the log, and then sends what it has to the next.
func TestNewNodesStartFromAnothersSnapshot(t *testing.T) {
	c := newFetchCluster(t)
	last := c.control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "last", "scopes": []string{"read"}})
	// Both views of control have it, and so do the snapshots that control sends.
	c.control.wantReason(t, "ok", map[string]any{"key": last["key"], "keyspace": "scribe-sight", "scope": "read", "min_position": last["__position"]})
	first := c.new(t, "verifier", "verifier-1", "http://"+freeAddr(t), c.control.url) // the first source does not run
	first.says(t, "says what the log says")                                           // before that it sends nothing on
	second := c.role(t, "control", "--name", "control-2", "--dir", filepath.Join(c.dir, "control-2"), "--key-file", c.rootFile, "--snapshot-from", first.url+","+c.control.url)
	for _, p := range []*proc{first, second} {
		c.asks(t, p)
		p.says(t, "says what the log says")
		eventually(t, func() string { // control has two views to prove, one after the other
			_, _, raw := p.raw(t, "GET", "/metrics", nil, nil)
			if !bytes.Contains(raw, []byte("keytrail_view_events_total 0\n")) {
				t.Fatalf("events were folded:\n%s", raw)
			}
			if !bytes.Contains(raw, []byte("keytrail_snapshot_unproven 0\n")) {
				return fmt.Sprintf("rows are not proven:\n%s", raw)
			}
			return ""
		})
	}
	if said := first.stderr.String(); !strings.Contains(said, `"no snapshot from this source"`) || strings.Contains(said, "view restored") {
		t.Errorf("the verifier says:\n%s", said)
	}
	if said := second.stderr.String(); !strings.Contains(said, "no such view here") || strings.Count(said, `"snapshot fetched"`) != 2 {
		t.Errorf("control says:\n%s", said)
	}
	if got := second.data(t, 200, "GET", "/v1/keys/"+c.revoked["id"].(string), nil); got["status"] != "revoked" {
		t.Errorf("control shows %v", got)
	}
	c.without(t, "verifier-1", "unproven")
	c.without(t, "control-2", "unproven")
	third := c.new(t, "verifier", "verifier-2", first.url) // which did not fold it either
	c.asks(t, third)
	third.stop(t)
	third = c.new(t, "verifier", "verifier-2", "http://"+freeAddr(t))
	if said := third.stderr.String(); !strings.Contains(said, "view restored from a snapshot") || strings.Contains(said, "no snapshot from") {
		t.Errorf("a node with a snapshot asks for another:\n%s", said)
	}

	// Who may not have it.
	reader := c.control.data(t, 201, "POST", "/v1/keyspaces/keytrail/keys", map[string]any{"tenant": "root", "name": "reader", "scopes": []string{"keys:read"}, "resources": []any{map[string]any{"kind": "keyspace", "id": "scribe-sight"}}})
	auditor := c.control.data(t, 201, "POST", "/v1/keyspaces/keytrail/keys", map[string]any{"tenant": "root", "name": "auditor", "scopes": []string{"audit:read"}})
	for who, key := range map[string]string{"nobody": "", "a restricted key": reader["key"].(string), "a key without the scope": auditor["key"].(string)} {
		if status, _, body := c.control.raw(t, "GET", "/v1/snapshots/keys", map[string]string{"Authorization": "Bearer " + key}, nil); status != 401 && status != 403 {
			t.Errorf("%s gets %d: %.200s", who, status, body)
		}
	}
}

// withSum ends a snapshot with the sum of what comes before.
func withSum(b []byte) []byte {
	body := b[:len(b)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

// What a source sends that is not the log's is refused before it is used, and the node
// reads the log. A source that sends nothing is left after seconds.
func TestNewNodesRefuseWhatIsNotTheLogs(t *testing.T) {
	c := newFetchCluster(t)
	_, _, good := c.control.raw(t, "GET", "/v1/snapshots/keys", nil, nil)
	at := bytes.Index(good, []byte("\n")) + 1 + 1 + 16 + 1 // magic, version, log id, position
	bad := map[string]func(w http.ResponseWriter, r *http.Request){
		"damaged": func(w http.ResponseWriter, _ *http.Request) {
			b := bytes.Clone(good)
			b[len(b)/2] ^= 1
			w.Write(b)
		},
		"cut short": func(w http.ResponseWriter, _ *http.Request) { w.Write(good[:len(good)-100]) },
		"of another history: it ends with": func(w http.ResponseWriter, _ *http.Request) {
			b := bytes.Clone(good)
			b[at] ^= 1
			w.Write(withSum(b))
		},
		"of another history: with the events after it": func(w http.ResponseWriter, _ *http.Request) {
			b := bytes.Clone(good)
			b[at+32+2+8] ^= 1 // in the first hash of the compact range
			w.Write(withSum(b))
		},
		"it sent 50 bytes in 10s": func(w http.ResponseWriter, r *http.Request) {
			w.Write(good[:50])
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	}
	var sources []string
	for _, serve := range bad {
		s := httptest.NewServer(http.HandlerFunc(serve))
		defer s.Close()
		sources = append(sources, s.URL)
	}
	began := time.Now()
	p := c.new(t, "verifier", "verifier-1", sources...)
	t.Logf("ready after %v", time.Since(began))
	c.asks(t, p)
	said := p.stderr.String()
	for want := range bad {
		if !strings.Contains(said, want) {
			t.Errorf("no source is refused as %q", want)
		}
	}
	if !strings.Contains(said, "no source has a snapshot that can be used: the log is read from its first event") || t.Failed() {
		t.Errorf("the node says:\n%s", said)
	}
	for _, pattern := range []string{"unproven", "*.snap", ".*.tmp"} {
		c.without(t, "verifier-1", pattern)
	}
}

// A source sends the right head with a wrong row: a revoked key that is active. Nothing
// but folding the log shows it. The node that believed it says whose snapshot was wrong,
// denies, and ends; when it starts again it reads the log.
func TestALyingSourceIsNamed(t *testing.T) {
	c := newFetchCluster(t)
	_, _, good := c.control.raw(t, "GET", "/v1/snapshots/keys", nil, nil)
	lie := bytes.Replace(good, []byte("\x07revoked"), []byte("\x06active"), 1)
	if bytes.Equal(lie, good) {
		t.Fatal("no key is revoked in the snapshot")
	}
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(withSum(lie)) }))
	defer liar.Close()
	p, err := trySpawn(t, c.env, "verifier", "--nats", c.nats, "--listen", "127.0.0.1:0", "--name", "verifier-1", "--dir", filepath.Join(c.dir, "verifier-1"), "--key-file", c.rootFile, "--snapshot-from", liar.URL)
	if err == nil { // it may have been ready before it ended
		p.exitCode(t, patience)
	}
	said := p.stderr.String()
	if want := "came from " + liar.URL + " does not say what the log says: key " + c.revoked["id"].(string) + " is active in it, and revoked in the log"; !strings.Contains(said, want) || p.err == nil {
		t.Errorf("%v: the node does not say %q:\n%s", p.err, want, said)
	}
	p = c.new(t, "verifier", "verifier-1", liar.URL)
	c.asks(t, p)
	if said := p.stderr.String(); !strings.Contains(said, "the snapshots of a view are removed") || !strings.Contains(said, "a source is not asked") || strings.Contains(said, `"snapshot fetched"`) {
		t.Errorf("the next start says:\n%s", said)
	}
	c.without(t, "verifier-1", "unproven")
	p.stop(t)
	p = c.new(t, "verifier", "verifier-1", liar.URL)
	if said := p.stderr.String(); !strings.Contains(said, "view restored from a snapshot") || strings.Contains(said, "are removed") {
		t.Errorf("the start after that says:\n%s", said)
	}
	c.asks(t, p)
}
