package main

import (
	"encoding/csv"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

const regime = "../../deploy/regimes/scribe-sight.yaml"

// TestTour is the main job on the real parts: a key lives its whole life, and
// every step of it is in the trail and every use in the ledger.
func TestTour(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	p := up(t, dir)
	if out := p.stdout.String(); !strings.Contains(out, "root key: in "+filepath.Join(dir, "root.key")) || strings.Contains(out, p.root) {
		t.Fatalf("the first start must say where the root key is, and not show it to a pipe:\n%s", out)
	}

	// 1. The regime.
	out := p.must(t, "keyspace", "apply", "-f", regime)
	for _, want := range []string{"scribe-sight", "sk_live_", "pk_live_", "read", "write", "project"} {
		if !strings.Contains(out, want) {
			t.Errorf("keyspace apply does not show %q:\n%s", want, out)
		}
	}
	p.must(t, "keyspace", "get", "scribe-sight")
	p.must(t, "keyspace", "list")

	// 2. A key: the secret once, then never again.
	var created struct {
		Data     keyView `json:"data"`
		Position string  `json:"position"`
	}
	unjson(t, p.must(t, "--json", "key", "create", "--keyspace", "scribe-sight", "--tenant", "acme", "--name", "CI/CD Pipeline",
		"--scope", "read", "--scope", "write", "--resource", "project/proj_1", "--allow", "203.0.113.0/24", "--expires-in", "30d"), &created)
	key, secret := created.Data, created.Data.Key
	if !strings.HasPrefix(secret, "sk_live_") || !strings.HasPrefix(secret, key.Hint) || key.Status != "active" || created.Position == "" {
		t.Fatalf("created %+v", created)
	}
	for _, args := range [][]string{{"key", "get", key.ID}, {"key", "list", "--keyspace", "scribe-sight", "--tenant", "acme"}, {"key", "history", key.ID}} {
		for _, format := range []string{"--json", "--json=false"} {
			out := p.must(t, append([]string{format}, args...)...)
			if strings.Contains(out, secret) || !strings.Contains(out, key.ID) {
				t.Fatalf("%v: %s", args, out)
			}
		}
	}

	// 3. Verify: allowed, and denied for each reason.
	ask := func(change ...string) map[string]any {
		b := map[string]any{"key": secret, "keyspace": "scribe-sight", "scope": "read", "ip": "203.0.113.7",
			"resource": map[string]any{"kind": "project", "id": "proj_1"}}
		for i := 0; i < len(change); i += 2 {
			b[change[i]] = change[i+1]
		}
		return b
	}
	d := p.wantReason(t, "ok", ask("min_position", created.Position))
	if d["key_id"] != key.ID || d["tenant"] != "acme" || d["use_id"] == "" {
		t.Fatalf("decision %v", d)
	}
	p.must(t, "keyspace", "apply", "-f", writeFile(t, "other.yaml", "name: other\nkey_types:\n  - name: secret\n    prefix: ot_\nscopes:\n  - name: read\nresources: [project]\n"))
	p.wantReason(t, "key_missing", ask("key", ""))
	p.wantReason(t, "key_malformed", ask("key", "sk_live_short"))
	p.wantReason(t, "key_unknown", ask("key", secret[:len(secret)-1]+flip(secret[len(secret)-1])))
	if r := p.verify(t, ask("keyspace", "other"))["reason"]; r != "key_unknown" && r != "key_malformed" {
		t.Fatalf("in another keyspace: %v", r)
	}
	p.wantReason(t, "address_not_allowed", ask("ip", "198.51.100.1"))
	other := ask()
	other["resource"] = map[string]any{"kind": "project", "id": "proj_2"}
	p.wantReason(t, "resource_not_allowed", other)

	// 4. Changes, each at once and each an event.
	p.must(t, "key", "scopes", key.ID, "--scope", "read")
	p.wantReason(t, "scope_missing", ask("scope", "write"))
	p.must(t, "key", "allowlist", key.ID, "--allow", "198.51.100.0/24")
	p.wantReason(t, "address_not_allowed", ask())
	p.wantReason(t, "ok", ask("ip", "198.51.100.1"))
	p.must(t, "key", "allowlist", key.ID, "--any")
	p.wantReason(t, "ok", ask())
	p.must(t, "key", "resources", key.ID, "--resource", "project/proj_2")
	p.wantReason(t, "resource_not_allowed", ask())
	p.must(t, "key", "resources", key.ID, "--whole-tenant")
	p.must(t, "key", "disable", key.ID, "--reason", "pipeline paused")
	p.wantReason(t, "key_disabled", ask())
	p.must(t, "key", "enable", key.ID)
	p.wantReason(t, "ok", ask())
	p.must(t, "key", "update", key.ID, "--name", "ci", "--expires-in", "90d")
	p.must(t, "key", "limit", key.ID, "--per-minute", "1", "--burst", "2")
	p.wantReason(t, "ok", ask())
	p.wantReason(t, "ok", ask())
	p.wantReason(t, "rate_limited", ask())
	p.must(t, "key", "limit", key.ID, "--default")
	p.wantReason(t, "ok", ask())

	// Rotation: an overlap in which both work, a lineage that is kept.
	var rotated struct{ Data keyView }
	unjson(t, p.must(t, "--json", "key", "rotate", key.ID, "--overlap", "24h"), &rotated)
	successor := rotated.Data
	if successor.RotatedFrom != key.ID || successor.Key == "" || successor.Key == secret {
		t.Fatalf("rotated into %+v", successor)
	}
	p.wantReason(t, "ok", ask())
	p.wantReason(t, "ok", ask("key", successor.Key))
	old := p.data(t, 200, "GET", "/v1/keys/"+key.ID, nil)
	if old["rotated_to"] != successor.ID {
		t.Fatalf("the old key does not name its successor: %v", old)
	}
	p.must(t, "key", "revoke", key.ID, "--code", "superseded", "--reason", "rotated")
	p.wantReason(t, "key_revoked", ask())
	if _, errs, code := p.cli(t, "key", "revoke", key.ID); code != exitFailed || !strings.Contains(errs, "revoked") {
		t.Fatalf("a second revocation: exit %d, %s", code, errs)
	}

	// 5. Expiry by the clock, and key.expired exactly once.
	var at time.Time
	var short, shortAsk map[string]any
	for life := 1500 * time.Millisecond; ; life *= 2 { // until it is asked for in its life
		at = time.Now().Add(life).UTC().Truncate(time.Millisecond)
		short = p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": fmt.Sprint("short ", life), "expires_at": at.Format(time.RFC3339Nano)})
		shortAsk = map[string]any{"key": short["key"], "keyspace": "scribe-sight", "min_position": short["__position"]}
		v := p.verify(t, shortAsk)
		if time.Now().Before(at) && v["reason"] != stale {
			if v["reason"] != "ok" {
				t.Fatalf("before its expiry: %v", v)
			}
			break
		}
	}
	delete(shortAsk, "min_position")
	eventually(t, func() string {
		if v := p.verify(t, shortAsk); v["reason"] != "key_expired" {
			return fmt.Sprint("still not expired: ", v)
		}
		return ""
	})
	eventually(t, func() string {
		out := p.must(t, "key", "history", short["id"].(string))
		if n := strings.Count(out, "key.expired"); n != 1 {
			return fmt.Sprintf("key.expired stands %d times:\n%s", n, out)
		}
		return ""
	})

	// 6. The record.
	eventually(t, func() string {
		out := p.must(t, "audit", "events", "--key", key.ID)
		for _, typ := range []string{"key.created", "key.scopes_assigned", "key.allowlist_updated", "key.resources_assigned",
			"key.disabled", "key.enabled", "key.renamed", "key.expiry_changed", "key.limit_updated", "key.rotated", "key.revoked"} {
			if !strings.Contains(out, typ) {
				return "the trail has no " + typ + ":\n" + out
			}
		}
		return ""
	})
	eventually(t, func() string {
		out := p.must(t, "audit", "uses", "--keyspace", "scribe-sight", "--all")
		for _, reason := range []string{"ok", "key_missing", "key_malformed", "key_unknown", "key_revoked", "key_expired", "key_disabled",
			"address_not_allowed", "scope_missing", "resource_not_allowed", "rate_limited"} {
			if !strings.Contains(out, " "+reason+" ") {
				return "the ledger has no " + reason + ":\n" + out
			}
		}
		return ""
	})
	uses := 0
	for _, u := range rows[struct{ Time, Reason string }](t, p.must(t, "--json", "audit", "uses", "--key", short["id"].(string), "--all")) {
		uses++
		when, err := time.Parse(time.RFC3339Nano, u.Time)
		if err != nil {
			t.Fatal(err)
		}
		if expired := !when.Before(at); u.Reason != stale && expired != (u.Reason == "key_expired") {
			t.Errorf("a use at %s of a key that expires at %s: %s", u.Time, at, u.Reason)
		}
	}
	if uses == 0 {
		t.Error("no uses of the short-lived key")
	}
	eventually(t, func() string { // the hours are summed up after the uses
		if usage := p.must(t, "audit", "usage", "--tenant", "acme", "--per", "hour"); !strings.Contains(usage, "scope_missing") {
			return "usage:\n" + usage
		}
		return ""
	})
	p.must(t, "audit", "usage", "--tenant", "acme", "--per", "day")
	eventually(t, func() string {
		if got := p.data(t, 200, "GET", "/v1/keys/"+key.ID, nil); got["last_used_at"] == nil {
			return fmt.Sprint("last_used_at is missing: ", got)
		}
		return ""
	})
	for _, c := range []struct{ kind, format string }{{"events", "jsonl"}, {"events", "csv"}, {"uses", "jsonl"}, {"uses", "csv"}} {
		file := filepath.Join(t.TempDir(), c.kind+"."+c.format)
		_, errs, code := p.cli(t, "audit", "export", "--kind", c.kind, "--format", c.format, "--tenant", "acme", "-o", file)
		if code != 0 || !strings.Contains(errs, "SHA-256") {
			t.Fatalf("export %v: exit %d, %s", c, code, errs)
		}
		b, err := os.ReadFile(file)
		if err != nil || len(b) == 0 {
			t.Fatalf("export %v: %v, %d bytes", c, err, len(b))
		}
		if c.format == "csv" {
			rows, err := csv.NewReader(strings.NewReader(string(b))).ReadAll()
			if err != nil || len(rows) < 2 {
				t.Fatalf("export %v: %v, %d rows", c, err, len(rows))
			}
		}
	}
	eventually(t, func() string {
		out := p.must(t, "audit", "events", "--keyspace", "keytrail", "--all")
		for _, typ := range []string{"audit.queried", "audit.exported"} {
			if !strings.Contains(out, typ) {
				return "reading is not on the record: no " + typ
			}
		}
		json := p.must(t, "--json", "audit", "events", "--keyspace", "keytrail", "--type", "audit.queried", "--all")
		for _, kind := range []string{"history", "events", "uses", "usage"} {
			if !strings.Contains(json, `"kind":"`+kind+`"`) {
				return "reading is not on the record: no " + kind + "\n" + json
			}
		}
		return ""
	})
	asOf := p.must(t, "--json", "key", "get", key.ID, "--as-of", key.CreatedAt)
	var then struct{ Data keyView }
	unjson(t, asOf, &then)
	if then.Data.Status != "active" || strings.Join(then.Data.Scopes, ",") != "read,write" {
		t.Errorf("as of its creation: %+v", then.Data)
	}
	patient{t, p.url, p.root}.eventuallySays(nil, "healthy") // the copy may be behind on a busy machine

	// The whole record and the metrics, which the files below hold compressed.
	_, _, metrics := p.raw(t, "GET", "/metrics", nil, nil)
	record := p.must(t, "audit", "export", "--kind", "events") + p.must(t, "audit", "export", "--kind", "uses")
	for _, s := range []string{secret, successor.Key, short["key"].(string), p.root} {
		if strings.Contains(record, s) || strings.Contains(string(metrics), s) {
			t.Errorf("a secret (%s…) is on the record or in the metrics", s[:12])
		}
	}
	if !strings.Contains(record, key.ID) || !strings.Contains(string(metrics), "keytrail_build_info") {
		t.Error("the record or the metrics are empty")
	}

	// A second start reuses the data and says nothing of the root key.
	p.stop(t)
	again := up(t, dir)
	if strings.Contains(again.stdout.String(), "root key") {
		t.Error("the second start speaks of the root key again")
	}
	again.wantReason(t, "key_revoked", ask())
	again.wantReason(t, "ok", ask("key", successor.Key))
	again.stop(t)

	// No secret anywhere it should not be.
	checkNoSecrets(t, dir, []*proc{p, again}, secret, successor.Key, short["key"].(string), p.root)
}

// checkNoSecrets greps everything the processes wrote for the secrets.
func checkNoSecrets(t *testing.T, dir string, ps []*proc, secrets ...string) {
	t.Helper()
	for _, p := range ps {
		for _, s := range secrets {
			if strings.Contains(p.stderr.String(), s) {
				t.Errorf("a secret (%s…) is in the process's log", s[:12])
			}
		}
	}
	files := 0
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() || !e.Type().IsRegular() || e.Name() == "root.key" {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		for _, s := range secrets {
			if strings.Contains(string(b), s) {
				t.Errorf("a secret (%s…) is in %s", s[:12], e.Name())
			}
		}
		return nil
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files read: %v", files, err)
	}
}

// TestKillLosesNothing kills the whole process at arbitrary points: whatever was
// acknowledged is there afterwards.
func TestKillLosesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	acked := map[string]string{} // key id -> secret
	for round := range 3 {
		p := up(t, dir)
		p.must(t, "keyspace", "apply", "-f", regime)
		done, enough := make(chan struct{}), make(chan struct{})
		go func() { // ends with the process that it kills
			defer close(done)
			<-enough
			<-time.After(time.Duration(50*round) * time.Millisecond)
			p.kill()
		}()
		made := 0
		for i := 0; ; i++ {
			id, secret, err := tryCreate(p, fmt.Sprintf("k-%d-%d", round, i))
			if err != nil && unproved.MatchString(err.Error()) && i < 1000 {
				continue
			}
			if err != nil {
				if made < 10 {
					t.Fatalf("round %d, key %d: %v", round, i, err)
				}
				break
			}
			acked[id] = secret
			if made++; made == 10 {
				close(enough)
			}
		}
		<-done
	}
	p := up(t, dir)
	for id, secret := range acked {
		v := p.wantReason(t, "ok", map[string]any{"key": secret, "keyspace": "scribe-sight", "scope": "read"})
		if v["key_id"] != id {
			t.Fatalf("secret of %s is that of %v", id, v["key_id"])
		}
	}
	p.stop(t)
	t.Logf("%d keys acknowledged over 3 kills, all there", len(acked))
}

func tryCreate(p *proc, name string) (id, secret string, err error) {
	req, err := http.NewRequest("POST", p.url+"/v1/keyspaces/scribe-sight/keys", strings.NewReader(`{"tenant":"acme","name":"`+name+`"}`))
	if err != nil {
		return "", "", err
	}
	req.Header.Set("Authorization", "Bearer "+p.root)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	var v struct {
		Data   struct{ ID, Key string }
		Detail string
	}
	if err := json.UnmarshalRead(resp.Body, &v, json.MatchCaseInsensitiveNames(true)); err != nil {
		return "", "", err
	}
	if resp.StatusCode != 201 {
		return "", "", fmt.Errorf("HTTP %d: %s", resp.StatusCode, v.Detail)
	}
	return v.Data.ID, v.Data.Key, nil
}

// rows reads what a list prints with --json.
func rows[T any](t testing.TB, out string) []T {
	t.Helper()
	var page struct {
		Data       []T     `json:"data"`
		NextCursor *string `json:"next_cursor"`
	}
	unjson(t, out, &page)
	return page.Data
}

func unjson(t testing.TB, s string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), v, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Fatalf("%v in %s", err, s)
	}
}

func writeFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// flip returns another character of the alphabet.
func flip(c byte) string {
	if c == 'a' {
		return "b"
	}
	return "a"
}
