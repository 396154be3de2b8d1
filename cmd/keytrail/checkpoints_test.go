package main

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events/tree"
)

// auditorOfTheLog is a program of another party: it has the public keys, and speaks
// HTTP only.
type auditorOfTheLog struct {
	t *testing.T
	p *proc
	v *tree.Verifier
}

func (a *auditorOfTheLog) get(path string) ([]byte, error) {
	status, _, raw := a.p.proved(a.t, http.MethodGet, "/v1/log/"+path, nil, nil)
	// After a start a tree may be behind its checkpoints for a while.
	for again := patiently(a.t); status == http.StatusServiceUnavailable && strings.HasPrefix(path, "tile/"); status, _, raw = a.p.proved(a.t, http.MethodGet, "/v1/log/"+path, nil, nil) {
		again(string(raw))
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("%s: %d %s", path, status, raw)
	}
	return raw, nil
}

// checkpoint waits for one that is at least as large.
func (a *auditorOfTheLog) checkpoint(size uint64) (cp tree.Checkpoint) {
	a.t.Helper()
	eventually(a.t, func() string {
		text, err := a.get("checkpoint")
		if err == nil {
			cp, err = a.v.Open(text)
		}
		if err != nil || cp.Size < size {
			return fmt.Sprintf("%+v, %v; want a size of %d", cp, err, size)
		}
		return ""
	})
	return cp
}

// entries fetches the entries of a checkpoint, and proves each of them.
func (a *auditorOfTheLog) entries(cp tree.Checkpoint) (subjects []string) {
	a.t.Helper()
	reader := tree.TileReader(cp.Head, a.get)
	for first := uint64(0); first < cp.Size; first += tree.TileWidth {
		tile := tree.Tile{Level: tree.EntriesLevel, Index: first / tree.TileWidth, Width: int(min(tree.TileWidth, cp.Size-first))}
		raw, err := a.get(tile.Path())
		if err != nil {
			a.t.Fatal(err)
		}
		bundle, err := tree.ParseBundle(raw, tile.Width)
		if err != nil {
			a.t.Fatal(err)
		}
		for i, entry := range bundle {
			index := first + uint64(i)
			proof, err := tree.ProveInclusion(reader, cp.Size, index)
			if err != nil {
				a.t.Fatal(err)
			}
			if err := tree.CheckInclusion(proof, cp.Head, index, tree.EntryHash(entry)); err != nil {
				a.t.Fatalf("event %d: %v", index+1, err)
			}
			subject, _, err := tree.ParseEntry(entry)
			if err != nil {
				a.t.Fatal(err)
			}
			subjects = append(subjects, subject)
		}
	}
	return subjects
}

// extends proves that newer contains older.
func (a *auditorOfTheLog) extends(older, newer tree.Checkpoint) {
	a.t.Helper()
	proof, err := tree.ProveConsistency(tree.TileReader(newer.Head, a.get), older.Size, newer.Size)
	if err == nil {
		err = tree.CheckConsistency(proof, older.Head, newer.Head)
	}
	if err != nil {
		a.t.Fatalf("%d to %d: %v", older.Size, newer.Size, err)
	}
}

// TestTheLogProvesItself verifies all that is said of the log from what is served over
// HTTP: the signatures, every event of a story, and that no checkpoint takes back an
// earlier one, a kill -9 between them or not.
func TestTheLogProvesItself(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	p := up(t, dir)
	keys := p.data(t, 200, http.MethodGet, "/v1/log/keys", nil)
	var vkeys []string
	for _, k := range keys["keys"].([]any) {
		vkeys = append(vkeys, k.(string))
	}
	v, err := tree.NewVerifier(vkeys...)
	if err != nil {
		t.Fatal(err)
	}
	a := &auditorOfTheLog{t, p, v}
	start := a.checkpoint(2)
	p.must(t, "keyspace", "apply", "-f", regime)
	key := p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	p.must(t, "key", "revoke", key["id"].(string), "--code", "superseded")
	first := a.checkpoint(5)
	fillTile(t, p)
	second := a.checkpoint(305)
	a.extends(start, first)
	a.extends(first, second)
	subjects := a.entries(second)
	if n := len(slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return !strings.HasSuffix(s, "."+key["id"].(string)) })); n != 2 {
		t.Errorf("%d of %v are about the key that was made and revoked, want 2", n, subjects)
	}
	eventually(t, func() string { // the copy knows the same events under the same numbers
		listed := 0
		for _, e := range rows[eventView](t, p.must(t, "--json", "audit", "events", "--all")) {
			if strings.HasPrefix(e.Type, "audit.") {
				continue
			}
			listed++
			if want := subjects[e.Seq-1]; e.KeyID != "" && !strings.HasSuffix(want, "."+e.KeyID) {
				t.Errorf("event %d is of %s, its leaf of %s", e.Seq, e.KeyID, want)
			}
		}
		if listed != len(subjects) {
			return fmt.Sprintf("%d of %d events are in the copy", listed, len(subjects))
		}
		return ""
	})

	// Nothing beyond the checkpoint, nothing that is no tile.
	last := second.Size / tree.TileWidth
	for _, path := range []string{
		tree.Tile{Level: 0, Index: last, Width: int(second.Size%tree.TileWidth) + 1}.Path(), tree.Tile{Level: tree.EntriesLevel, Index: last + 1, Width: 1}.Path(),
		tree.Tile{Level: 2, Width: 1}.Path(), "tile/0/0", "tile/-1/000", "tile/entries/000.p/256", "tile/", "tile/entries",
	} {
		if _, err := a.get(path); err == nil || !strings.Contains(err.Error(), ": 404 ") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, h, _ := p.proved(t, http.MethodGet, "/v1/log/tile/0/000", nil, nil); !strings.Contains(h.Get("Cache-Control"), "immutable") {
		t.Errorf("a full tile is kept by nobody: %v", h)
	}

	// Who may read what.
	asked := 0
	ask := func(path string, body map[string]any) int {
		asked++
		body["tenant"], body["name"] = "operators", fmt.Sprint("reader ", asked)
		made := p.data(t, 201, "POST", "/v1/keyspaces/keytrail/keys", body)
		status, _, _ := p.proved(t, http.MethodGet, "/v1/log/"+path, map[string]string{"Authorization": "Bearer " + made["key"].(string)}, nil)
		return status
	}
	scopes := func(s string) map[string]any { return map[string]any{"scopes": []string{s}} }
	restricted := func() map[string]any {
		return map[string]any{"scopes": []string{"audit:read"}, "resources": []any{map[string]any{"kind": "tenant", "id": "acme"}}}
	}
	for _, c := range []struct {
		path string
		body map[string]any
		want int
	}{
		{"checkpoint", scopes("keys:write"), 403}, {"tile/0/000", scopes("keys:write"), 403}, {"keys", scopes("keys:write"), 403},
		{"checkpoint", scopes("audit:read"), 200}, {"tile/entries/000", scopes("audit:read"), 200},
		{"checkpoint", restricted(), 200}, {"tile/0/000", restricted(), 200}, {"tile/entries/000", restricted(), 403}, {"tile/entries/000.p/1", restricted(), 403},
	} {
		if got := ask(c.path, c.body); got != c.want {
			t.Errorf("%s with %v: %d, want %d", c.path, c.body, got, c.want)
		}
	}

	if out := p.must(t, "log", "checkpoint"); !strings.HasPrefix(out, v.Origin()+"\n") {
		t.Errorf("log checkpoint:\n%s", out)
	}
	doctor := patient{t, p.url, p.root}
	doctor.eventuallySays(nil, "healthy", vkeys[0], vkeys[1])
	p.kill()
	p = up(t, dir)
	a.p = p
	third := a.checkpoint(second.Size + 1)
	a.extends(second, third)
	if info, err := os.Stat(filepath.Join(dir, checkpointKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	p.stop(t)

	// With other keys nothing is signed, until that is asked for.
	if err := os.Remove(filepath.Join(dir, checkpointKeyFile)); err != nil {
		t.Fatal(err)
	}
	p = up(t, dir)
	p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "later"})
	eventually(t, func() string {
		if out, _, code := p.cli(t, "doctor"); code != 1 || !strings.Contains(out, "not signed by the keys of this control") {
			return fmt.Sprintf("exit %d\n%s", code, out)
		}
		return ""
	})
	p.stop(t)
	p = up(t, dir, "--replace-checkpoint-key")
	a.p = p
	eventually(t, func() string {
		text, err := a.get("checkpoint")
		if err != nil {
			return err.Error()
		}
		if _, err := a.v.Open(text); err == nil {
			return "the old keys sign"
		}
		return ""
	})
	patient{t, p.url, p.root}.eventuallySays(nil, "healthy", "ok checkpoint key")
	if out, _, _ := p.cli(t, "doctor"); strings.Contains(out, vkeys[0]) {
		t.Errorf("the old keys are told:\n%s", out)
	}
	p.stop(t)
}

func TestLogKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "checkpoint.key")
	call := func(args ...string) (string, int) {
		var out, errs bytes.Buffer
		code := run(t.Context(), append([]string{"log", "key"}, args...), nil, &out, &errs)
		return out.String() + errs.String(), code
	}
	if out, code := call(file); code != 0 || !strings.Contains(out, "mode 0600") {
		t.Fatal(code, out)
	}
	made, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const id = "01JH2Q8X5T6V7W8Y9Z0ABCDEFG"
	out, code := call(file, "--log-id", id)
	v, err := tree.NewVerifier(strings.Fields(out)...)
	if code != 0 || err != nil || v.Origin() != tree.Origin(id) {
		t.Fatal(code, err, out)
	}
	if again, err := os.ReadFile(file); err != nil || string(again) != string(made) {
		t.Error("a key file that was there is another one now")
	}
	if strings.Contains(out, "PRIVATE") {
		t.Error(out)
	}
	for _, args := range [][]string{{}, {file, "--log-id", "x"}} {
		if out, code := call(args...); code != exitUsage {
			t.Errorf("%v: exit %d %s", args, code, out)
		}
	}
	if err := os.WriteFile(file, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := call(file); code == 0 || strings.Contains(out, "no key") {
		t.Errorf("exit %d %s", code, out)
	}
}

// TestControlsOfOneLog: controls with one key file sign one history, one without a key
// serves it, and one with another key signs nothing.
func TestControlsOfOneLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	addr := freeAddr(t)
	c := &cluster{nats: "nats://" + addr}
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats)
	c.log = spawn(t, c.env, "log", "--dir", filepath.Join(dir, "log"), "--listen", addr)
	file := func(name string) string { return filepath.Join(dir, name) }
	c.initialise(t, file("root.key"))
	command(t, nil, "log", "key", file("one.key"))
	command(t, nil, "log", "key", file("two.key"))
	signs := []*proc{
		c.role(t, "control", "--name", "a", "--dir", file("a"), "--checkpoint-key", file("one.key")),
		c.role(t, "control", "--name", "b", "--dir", file("b"), "--checkpoint-key", file("one.key")),
	}
	var vkeys []string
	keys := signs[0].data(t, 200, http.MethodGet, "/v1/log/keys", nil)
	for _, k := range keys["keys"].([]any) {
		vkeys = append(vkeys, k.(string))
	}
	v, err := tree.NewVerifier(vkeys...)
	if err != nil {
		t.Fatal(err)
	}
	before := (&auditorOfTheLog{t, signs[0], v}).checkpoint(2)
	serves := c.role(t, "control", "--name", "c", "--dir", file("c"))
	other := c.role(t, "control", "--name", "d", "--dir", file("d"), "--checkpoint-key", file("two.key"))
	signs[0].must(t, "keyspace", "apply", "-f", regime)
	for _, p := range append(signs, serves, other) {
		a := &auditorOfTheLog{t, p, v}
		cp := a.checkpoint(3)
		a.extends(before, cp)
		a.entries(cp)
	}
	status, _, raw := other.proved(t, http.MethodGet, "/v1/log/keys", nil, nil)
	if status != 200 || strings.Contains(string(raw), vkeys[0]) {
		t.Errorf("%d %s", status, raw)
	}
	other.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	eventually(t, func() string {
		if out, _, code := other.cli(t, "doctor"); code != 1 || !strings.Contains(out, "not signed by the keys of this control") {
			return fmt.Sprintf("doctor of the control with other keys: exit %d\n%s", code, out)
		}
		return ""
	})
	for _, args := range [][]string{{"--checkpoint-key", file("one.key")}, {"--dir", file("e"), "--checkpoint-key", file("none.key")}} {
		p, err := trySpawn(t, c.env, append([]string{"control", "--nats", c.nats, "--listen", "127.0.0.1:0"}, args...)...)
		if err == nil {
			t.Errorf("control %v starts", args)
			p.kill()
		}
	}
	for _, p := range append(signs, serves, other, c.log) {
		p.stop(t)
	}
}

// TestARestoredStoreIsNotSigned puts an older copy of the whole store, checkpoints and
// all, in the log's place and writes on it, and removes the snapshots that would have
// noticed. Control, which has signed more of the log, signs nothing of it; keys are
// managed meanwhile.
func TestARestoredStoreIsNotSigned(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name ...string) string { return filepath.Join(append([]string{dir}, name...)...) }
	addr := freeAddr(t)
	c := &cluster{nats: "nats://" + addr}
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats)
	startLog := func() { c.log = spawn(t, c.env, "log", "--dir", file("log"), "--listen", addr) }
	startLog()
	c.initialise(t, file("root.key"))
	command(t, nil, "log", "key", file("checkpoint.key"))
	startControl := func() *proc {
		return c.role(t, "control", "--name", "control-1", "--dir", file("control"), "--checkpoint-key", file("checkpoint.key"))
	}
	signedUpTo := func(p *proc, size uint64) string {
		var text []byte
		eventually(t, func() string {
			_, _, text = p.raw(t, http.MethodGet, "/v1/log/checkpoint", nil, nil)
			if head, err := tree.ReadHead(text); err != nil || head.Size < size {
				return fmt.Sprintf("%v: %s", err, text)
			}
			return ""
		})
		return string(text)
	}
	create := func(p *proc, names ...string) {
		for _, name := range names {
			p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": name})
		}
	}
	p := startControl()
	p.must(t, "keyspace", "apply", "-f", regime)
	signedUpTo(p, 3)
	p.stop(t)
	c.log.stop(t)
	if err := os.CopyFS(file("older"), os.DirFS(file("log"))); err != nil {
		t.Fatal(err)
	}
	startLog()
	p = startControl()
	create(p, "a", "b")
	signedUpTo(p, 5)
	p.stop(t)
	c.log.stop(t)

	snaps, err := filepath.Glob(file("control", "*.snap"))
	if err != nil || len(snaps) == 0 {
		t.Fatal("no snapshot:", err)
	}
	for _, s := range append(snaps, file("log")) {
		if err := os.RemoveAll(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(file("older"), file("log")); err != nil {
		t.Fatal(err)
	}
	startLog()
	p = startControl()
	create(p, "c", "d", "e")
	eventually(t, func() string {
		out, _, code := p.cli(t, "doctor")
		if code != 1 || !strings.Contains(out, "checkpoints: fork: ") {
			return fmt.Sprintf("exit %d\n%s", code, out)
		}
		return ""
	})
	if status, _, text := p.raw(t, http.MethodGet, "/v1/log/checkpoint", nil, nil); status == http.StatusOK {
		t.Errorf("of a forked log: %s", text)
	}
	create(p, "f")
	p.stop(t)
	c.log.stop(t)
}
