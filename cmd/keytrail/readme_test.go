package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// docCommands returns the commands of the sh blocks of a document, in order.
func docCommands(t *testing.T, path string) (list []docCommand) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range shellBlock.FindAllSubmatch(b, -1) {
		var c docCommand
		for line := range strings.Lines(string(block[1])) {
			c.text += line
			code := strings.TrimSpace(line)
			if i := strings.LastIndex(line, "   #"); i >= 0 {
				code, c.says = strings.TrimSpace(line[:i]), strings.TrimSpace(line[i+4:])
			} else if i := strings.LastIndex(line, "  # "); i >= 0 {
				code, c.says = strings.TrimSpace(line[:i]), strings.TrimSpace(line[i+4:])
			}
			if code == "" || strings.HasSuffix(code, `\`) || strings.HasSuffix(code, "|") {
				continue // it goes on
			}
			list = append(list, c)
			c = docCommand{}
		}
	}
	return list
}

// docCommand is one command of a document; says is its comment.
type docCommand struct{ text, says string }

// TestReadme runs the commands of the README as they stand, in one shell, as a
// newcomer would. What a comment says about the outcome must be true: "denied:
// reason" with exit code 3, "409: …" in the answer; every other command succeeds.
func TestReadme(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "awk"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("the README needs ", tool)
		}
	}
	work := t.TempDir()
	p := up(t, filepath.Join(work, "keytrail-data"))
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(repo, "deploy"), filepath.Join(work, "deploy")); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(work, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, "keytrail"), fmt.Appendf(nil, "#!/bin/sh\n%s=1 exec %s \"$@\"\n", asMain, exe), 0o700); err != nil {
		t.Fatal(err)
	}
	const local = "http://127.0.0.1:7070"
	skip := map[string]string{ // and why
		"go run ./cmd/keytrail up": "it runs already",
		"go test ./...":            "it is this",
		"go build -o bin/keytrail": "it is this binary",
	}
	var script strings.Builder
	var ran []docCommand
commands:
	for _, c := range docCommands(t, "../../README.md") {
		for start := range skip {
			if strings.HasPrefix(c.text, start) {
				delete(skip, start)
				continue commands
			}
		}
		text := strings.ReplaceAll(c.text, local, p.url)
		fmt.Fprintf(&script, "%s\nrc=$?; printf '\\n@@ %d %%s\\n' $rc\n", text, len(ran))
		ran = append(ran, c)
	}
	if len(skip) > 0 || len(ran) < 35 {
		t.Fatalf("%d commands; not found: %v", len(ran), skip)
	}
	cmd := exec.Command("bash", "-c", script.String())
	cmd.Dir = work
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "KEYTRAIL_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "PATH="+bin+":"+os.Getenv("PATH"), "KEYTRAIL_URL="+p.url)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	parts := regexp.MustCompile(`(?m)^@@ \d+ (\d+)\n`)
	ends := parts.FindAllStringSubmatchIndex(out.String(), -1)
	if len(ends) != len(ran) {
		t.Fatalf("%d commands of %d ended:\n%s", len(ends), len(ran), out.String())
	}
	start := 0
	for i, c := range ran {
		text, rc := out.String()[start:ends[i][0]], out.String()[ends[i][2]:ends[i][3]]
		start = ends[i][1]
		wantRC, want := "0", ""
		if reason, ok := strings.CutPrefix(c.says, "denied: "); ok {
			wantRC, want = "3", "denied: "+reason
		} else if c.says == "allowed" {
			want = "allowed\n"
		} else if status := regexp.MustCompile(`^(\d{3})\b`).FindString(c.says); status != "" {
			want = status
		}
		if rc != wantRC || !strings.Contains(text, want) {
			t.Errorf("exit %s, want %s and %q:\n%s\n%s", rc, wantRC, want, c.text, text)
		}
		if strings.Contains(c.text, "curl") && !strings.HasSuffix(strings.TrimSuffix(text, "\n"), "\n") {
			t.Errorf("its output does not end in a newline:\n%s", c.text)
		}
	}
	// What the tour asks the record for is there, not only accepted.
	again := func(args string, want ...string) {
		t.Helper()
		eventually(t, func() string {
			for _, w := range want {
				if text := p.must(t, strings.Fields(args)...); !strings.Contains(text, w) {
					return fmt.Sprintf("%s does not show %q:\n%s", args, w, text)
				}
			}
			return ""
		})
	}
	again("audit events --tenant acme", "key.created", "key.imported", "key.revoked")
	again("audit uses --tenant acme --outcome denied", "scope_missing", "address_not_allowed", "resource_not_allowed")
	again("key list --keyspace scribe-sight --all", "Nightly build", "Dashboard", "Upload widget")
	p.stop(t)
}
