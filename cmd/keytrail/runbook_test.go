package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/goccy/go-yaml"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events/eventlog/dial"
)

// deployDocs are the documents whose commands an operator copies.
var deployDocs = []string{"../../deploy/README.md", "../../deploy/runbook.md"}

// TestRunbookCommands runs every command line of the documents on a deployment of
// separate roles, as compose would in its container, and checks that what the
// others name (services, volumes, files) is there.
func TestRunbookCommands(t *testing.T) {
	c := startCluster(t, 1)
	c.control.must(t, "keyspace", "apply", "-f", regime)
	created := c.control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	work := t.TempDir()
	t.Setenv("KEYTRAIL_VERIFY_URL", c.verifiers[0].url)
	t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
	t.Setenv("KEYTRAIL_CLICKHOUSE", c.dsn)
	var compose struct {
		Services map[string]any `yaml:"services"`
	}
	b, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, &compose); err != nil {
		t.Fatal(err)
	}
	rootKey := filepath.Join(work, "root.key") // what the containers have in /data
	if err := os.WriteFile(rootKey, []byte(c.root), 0o600); err != nil {
		t.Fatal(err)
	}
	stand := strings.NewReplacer("http://verifier-1:7070", c.verifiers[0].url, "http://verifier-2:7070", c.verifiers[0].url,
		"/regimes/", "../../deploy/regimes/", "/data/", work+"/", "key_…", created["id"].(string), " --replicas 3", "", "--replicas 3 ", "", "'", "")
	const cli, initRole, restore = "docker-compose run --rm cli ", "docker-compose run --rm init init ", "docker-compose run --rm init log restore "
	backups := t.TempDir() // the volume of that name
	volume := func(args string) []string {
		f := strings.Fields(args)
		for i := range f {
			if strings.HasPrefix(f[i], "/backups") {
				f[i] = backups + f[i][len("/backups"):]
			}
			if made, _ := filepath.Glob(filepath.Join(backups, "*.backup")); strings.Contains(f[i], "…") && len(made) == 1 {
				f[i] = made[0] // its name has the log's id and the time
			}
		}
		return f
	}
	ran := 0
	for _, path := range deployDocs {
		for _, cmd := range docCommands(t, path) {
			for part := range strings.SplitSeq(strings.TrimSpace(cmd.text), " && ") {
				part, _, _ = strings.Cut(part, "   #")
				switch args, isCLI := strings.CutPrefix(part, cli); {
				case isCLI:
					ran++
					list := volume(stand.Replace(args))
					if slices.Contains(list, "--reason") { // a reason of several words
						list = append(list[:slices.Index(list, "--reason")+1], "root key leaked")
					}
					if slices.Contains(list, "--deep") {
						list = append(list, "--nats", c.nats)
					}
					eventually(t, func() string { // the copy may be a moment behind
						out, errs, code := cliAt(t, c.control.url, c.root, list...)
						if code != 0 {
							return fmt.Sprintf("%s: %s: exit %d\n%s%s", path, part, code, out, errs)
						}
						return ""
					})
				case strings.HasPrefix(part, restore):
					ran++
					addr := freeAddr(t) // servers with empty disks
					spawn(t, c.env, "log", "--dir", t.TempDir(), "--listen", addr)
					mustRun(t, append([]string{"log", "restore", "--nats", "nats://" + addr}, volume(stand.Replace(strings.TrimPrefix(part, restore)+" "))...)...)
				case strings.HasPrefix(part, initRole):
					ran++
					var out, errw bytes.Buffer
					list := append([]string{"init", "--nats", c.nats}, strings.Fields(stand.Replace(strings.TrimPrefix(part, initRole)))...)
					if code := run(t.Context(), list, nil, &out, &errw); code != 0 {
						t.Errorf("%s: %s: exit %d\n%s%s", path, part, code, out.String(), errw.String())
					}
				default:
					for _, service := range composeServices(part) {
						if compose.Services[service] == nil {
							t.Errorf("%s: %s: compose has no service %q", path, part, service)
						}
					}
				}
			}
		}
	}
	if ran < 9 {
		t.Errorf("only %d command lines were found", ran)
	}
	// The second root key, which a command above made, opens the endpoint that it should.
	second, err := os.ReadFile(filepath.Join(work, "root-2.key"))
	if err != nil || strings.TrimSpace(string(second)) == c.root {
		t.Fatalf("the new root key: %v", err)
	}
	patient{t, c.control.url, strings.TrimSpace(string(second))}.eventuallySays(nil, "ok operator key accepted")
}

// TestRolesByHand starts the roles with the very command lines of deploy/README.md.
func TestRolesByHand(t *testing.T) {
	eng := enginetest.Start(t, engine.Config{Dir: filepath.Join(t.TempDir(), "clickhouse")})
	work := t.TempDir()
	addr := freeAddr(t)
	env := append(passwords(), "KEYTRAIL_NATS=nats://"+addr)
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	stand := strings.NewReplacer("/var/lib/", work+"/", "127.0.0.1:4222", addr, "root.key", filepath.Join(work, "root.key"), "checkpoint.key", filepath.Join(work, "checkpoint.key"),
		"nodes.conf", filepath.Join(work, "nodes.conf"), "verifier-1.password", filepath.Join(work, "verifier-1.password"),
		"clickhouse://keytrail:…@clickhouse:9000/keytrail", eng.DSN())
	roles := map[string]*proc{}
	for _, c := range docCommands(t, "../../deploy/README.md") {
		line, _, _ := strings.Cut(strings.TrimSpace(c.text), "   #")
		f := strings.Fields(stand.Replace(line))
		if dsn, ok := strings.CutPrefix(stand.Replace(line), "export KEYTRAIL_CLICKHOUSE="); ok {
			env = append(env, "KEYTRAIL_CLICKHOUSE="+dsn)
			t.Setenv("KEYTRAIL_CLICKHOUSE", dsn)
		}
		if file, ok := strings.CutPrefix(stand.Replace(line), "export KEYTRAIL_NODE_PASSWORD_FILE="); ok {
			env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "KEYTRAIL_NODE_PASSWORD=") })
			env = append(env, "KEYTRAIL_NODE_PASSWORD_FILE="+strings.TrimSpace(file))
			os.Unsetenv("KEYTRAIL_NODE_PASSWORD") // until the test's own end, which t.Setenv minds
		}
		if len(f) < 2 || f[0] != "keytrail" || !slices.Contains([]string{"log", "init", "control", "verifier", "auditor"}, f[1]) {
			continue
		}
		if f[1] == "log" && f[2] == "credential" { // … NODE --out FILE >> nodes.conf
			var out, errw bytes.Buffer
			if code := run(t.Context(), f[1:len(f)-2], nil, &out, &errw); code != 0 {
				t.Fatalf("%s: %s%s", line, out.String(), errw.String())
			}
			if err := os.WriteFile(f[len(f)-1], out.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if f[1] == "init" || slices.Contains(f, "key") {
			var out, errw bytes.Buffer
			if code := run(t.Context(), f[1:], nil, &out, &errw); code != 0 {
				t.Fatalf("%s: %s%s", line, out.String(), errw.String())
			}
			if f[1] == "init" {
				roles["init"] = nil
			}
			continue
		}
		if f[1] != "log" {
			f = append(f, "--listen", "127.0.0.1:0") // this machine may have others
		}
		roles[f[1]] = spawn(t, env, f[1:]...)
	}
	if len(roles) != 5 {
		t.Fatalf("only %d of the roles were found", len(roles))
	}
	root, err := os.ReadFile(filepath.Join(work, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("KEYTRAIL_VERIFY_URL", roles["verifier"].url)
	t.Setenv("KEYTRAIL_AUDIT_URL", roles["auditor"].url)
	patient{t, roles["control"].url, strings.TrimSpace(string(root))}.eventuallySays([]string{"--deep", "--nats", "nats://" + addr},
		"healthy", "role control", "role verifier", "role auditor", "are the same in the log and in its copy")
	for _, name := range []string{"auditor", "verifier", "control", "log"} {
		roles[name].stop(t)
	}
}

// composeServices returns the services that a docker-compose command names.
func composeServices(cmd string) (list []string) {
	m := regexp.MustCompile(`docker-compose (?:stop|up -d|logs --tail \d+|restart|exec|run --rm|ps -a -q)((?: [a-z][a-z0-9-]*)*)`).FindStringSubmatch(cmd)
	if m == nil {
		return nil
	}
	list = strings.Fields(m[1])
	if strings.Contains(m[0], " exec ") || strings.Contains(m[0], " run ") {
		list = list[:1]
	}
	return list
}

// TestRunbookRepairs damages a deployment and mends it as the runbook says.
func TestRunbookRepairs(t *testing.T) {
	c := startCluster(t, 1)
	c.control.must(t, "keyspace", "apply", "-f", regime)
	create := func(name string, more map[string]any) map[string]any {
		body := map[string]any{"tenant": "acme", "name": name}
		for k, v := range more {
			body[k] = v
		}
		return c.control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", body)
	}
	key := create("ci", nil)
	c.verifiers[0].wantReason(t, "ok", map[string]any{"key": key["key"], "keyspace": "scribe-sight", "min_position": key["__position"]})
	t.Setenv("KEYTRAIL_VERIFY_URL", c.verifiers[0].url)

	roles := t // they outlive the parts of this test
	t.Run("rebuild the copy", func(t *testing.T) {
		o, err := clickhouse.ParseDSN(c.dsn)
		if err != nil {
			t.Fatal(err)
		}
		database := o.Auth.Database
		o.Auth.Database = "default"
		conn, err := clickhouse.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		deep := []string{"--deep", "--nats", c.nats, "--clickhouse", c.dsn}
		t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
		patient{t, c.control.url, c.root}.eventuallySays(deep, "healthy", "are the same in the log and in its copy")
		if err := conn.Exec(t.Context(), "ALTER TABLE "+database+".events DELETE WHERE seq = 2 SETTINGS mutations_sync = 2"); err != nil {
			t.Fatal(err)
		}
		patient{t, c.control.url, c.root}.eventuallySays(deep, "FAIL copy events: seq 2: the row is missing", "(runbook: Rebuild the copy)")
		c.auditor.stop(t)
		c.control.stop(t)
		if err := conn.Exec(t.Context(), "RENAME DATABASE "+database+" TO "+database+"_old"); err != nil {
			t.Fatal(err)
		}
		c.control = c.role(roles, "control", "--name", "control-1", "--clickhouse", c.dsn)
		c.auditor = c.role(roles, "auditor", "--name", "auditor-1", "--clickhouse", c.dsn)
		t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
		patient{t, c.control.url, c.root}.eventuallySays(deep, "healthy", "are the same in the log and in its copy")
	})

	t.Run("rebuild the timers", func(t *testing.T) {
		var soon map[string]any
		for life := 4 * time.Second; soon == nil; life *= 2 { // until it is made in time
			status, v := c.control.do(t, "POST", "/v1/keyspaces/scribe-sight/keys", nil, map[string]any{"tenant": "acme", "name": fmt.Sprint("short ", life), "expires_at": time.Now().Add(life).UTC().Format(time.RFC3339Nano)})
			if soon, _ = v["data"].(map[string]any); soon == nil && life > patience {
				t.Fatalf("create: %d %v", status, v)
			}
		}
		c.control.stop(t)
		nc, err := dial.Connect(c.nats, dial.Login{User: "admin", Password: "pw-of-admin", Name: "nats"})
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		if err := js.DeleteStream(t.Context(), "KT_TIMER"); err != nil {
			t.Fatal(err)
		}
		var out, errw bytes.Buffer
		if code := run(t.Context(), []string{"init", "--nats", c.nats, "--root-key-file", filepath.Join(t.TempDir(), "root.key")}, nil, &out, &errw); code != 0 {
			t.Fatalf("init: %s%s", out.String(), errw.String())
		}
		c.control = c.role(roles, "control", "--name", "control-1")
		eventually(t, func() string {
			if out, errs, _ := c.control.cli(t, "key", "history", soon["id"].(string)); !strings.Contains(out, "key.expired") {
				return "the key's expiry is not recorded:\n" + out + errs
			}
			return ""
		})
	})
}
