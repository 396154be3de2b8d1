package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

var goBlock = regexp.MustCompile("(?ms)^```go\n(.*?)^```$")

// TestEmbedPage builds the program of deploy/embed.md as it stands, and runs it on a log
// with control: it admits the keys that the keyspace admits, learns of a revocation, and
// stops with its ledger closed.
func TestEmbedPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../deploy/embed.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := goBlock.FindAllSubmatch(page, -1)
	if len(blocks) != 1 {
		t.Fatalf("the page has %d programs, want 1", len(blocks))
	}
	work := t.TempDir()
	// As the page says: keytrail log credential reports-1 --out reports-1.password >> nodes.conf
	var entry, told bytes.Buffer
	if code := run(t.Context(), []string{"log", "credential", "reports-1", "--out", filepath.Join(work, "reports-1.password")}, nil, &entry, &told); code != 0 {
		t.Fatalf("exit %d\n%s", code, told.String())
	}
	nodes := filepath.Join(work, "nodes.conf")
	if err := os.WriteFile(nodes, entry.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	listen := freeAddr(t)
	c := &cluster{nats: "nats://" + listen}
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats, "KEYTRAIL_LOG_NODES="+nodes)
	c.log = spawn(t, c.env, "log", "--dir", filepath.Join(work, "log"), "--listen", listen)
	c.initialise(t, filepath.Join(work, "root.key"))
	c.control = c.role(t, "control", "--name", "control-1")
	c.control.must(t, "keyspace", "apply", "-f", regime)
	key := c.control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci", "scopes": []string{"read"}})

	source, bin := filepath.Join(work, "main.go"), filepath.Join(work, "reports")
	if err := os.WriteFile(source, blocks[0][1], 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", bin, source)
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	addr := freeAddr(t)
	var said lockedBuffer
	program := exec.Command(bin)
	program.Dir, program.Stderr = work, &said
	program.Env = append(os.Environ(), "KEYTRAIL_NATS="+c.nats, "KEYTRAIL_NATS_CA=", "REPORTS_LISTEN="+addr)
	program.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- program.Wait() }() // ends with the process
	t.Cleanup(func() { program.Process.Kill() })

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // its answers are not Keytrail's
	get := func(path string, secret any) (string, error) {
		req, err := http.NewRequest("GET", "http://"+addr+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if secret != nil {
			req.Header.Set("Authorization", fmt.Sprint("Bearer ", secret))
		}
		resp, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return fmt.Sprint(resp.StatusCode, " ", string(b)), err
	}
	awaits := func(path string, secret any, want string) {
		t.Helper()
		eventually(t, func() string {
			select {
			case err := <-exited:
				t.Fatalf("the program ended: %v\n%s", err, said.String())
			default:
			}
			if got, err := get(path, secret); err != nil || !strings.Contains(got, want) {
				return fmt.Sprintf("%q, %v; want %s\n%s", got, err, want, said.String())
			}
			return ""
		})
	}
	awaits("/projects/proj_1", key["key"], "200 project proj_1 of acme\n")
	awaits("/projects/proj_1", nil, "401 ")
	awaits("/projects/%20", key["key"], "403 ")
	c.control.data(t, 200, "DELETE", "/v1/keys/"+key["id"].(string), nil)
	awaits("/projects/proj_1", key["key"], "401 ")

	if err := program.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("it stopped with %v\n%s", err, said.String())
		}
	case <-time.After(patience):
		t.Fatalf("it goes on after SIGTERM\n%s", said.String())
	}
	if strings.Contains(said.String(), key["key"].(string)) {
		t.Error("its log holds a secret")
	}
	if list := c.control.must(t, "nodes"); !regexp.MustCompile(`(?m)^reports-1 +ended `).MatchString(list) {
		t.Errorf("its lease is not given back:\n%s", list)
	}
}
