package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "rewrite the answers in testdata/regimes")

const (
	scripts   = "testdata/regimes"
	regimeDir = "../../deploy/regimes"
)

// TestRegimes runs the scripts that hold the shipped regimes to their documents,
// against one running keytrail. Each script applies its regime and has tenants of
// its own. Its first part says what is exchanged in which order; the sections
// below hold request and answer:
//
//	GET /v1/authorize/scribe-sight?scope=read
//	Authorization: Bearer sk_live_{secret}
//
//	HTTP/1.1 401 Unauthorized
//	WWW-Authenticate: Bearer realm="scribe-sight"
//	!X-Keytrail-Key-Id
//
//	{"code": "key_revoked", "request_id": "<id>"}
//
// The status line, every header that is named (!Name must be absent) and the
// whole body must be as written, but for the white space of JSON. <id>, <time>,
// <number>, <any> and <base62*28> stand for what is different every time, and
// <days*30> for the time in 30 days; <id:key> keeps it, and {key} is what was
// kept, {key:4} its first four characters. Where a name is kept twice in one
// answer, both must be the same. A section that begins with "$ keytrail" holds a
// command and what it prints.
//
// Run with -update, the answers are rewritten; read the difference.
//
// In the end no secret of any regime is on the record, in the metrics, in the
// log or in a file.
func TestRegimes(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	p := up(t, data, "--trusted-proxy", "127.0.0.0/8")
	var mu sync.Mutex
	var secrets []string
	t.Cleanup(func() { // when all scripts have run
		if len(secrets) == 0 {
			t.Error("the scripts kept no secret")
			return
		}
		_, _, metrics := p.raw(t, "GET", "/metrics", nil, nil)
		record := p.must(t, "audit", "export", "--kind", "events") + p.must(t, "audit", "export", "--kind", "uses") + string(metrics)
		for _, s := range secrets {
			if strings.Contains(record, s) {
				t.Errorf("a secret (%s…) is on the record or in the metrics", s[:4])
			}
		}
		p.stop(t)
		checkNoSecrets(t, data, []*proc{p}, secrets...)
	})
	bin := t.TempDir()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "keytrail")); err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(regimeDir)
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 scripts,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			for name, value := range map[string]string{
				asMain: "1", "KEYTRAIL_URL": p.url, "KEYTRAIL_ROOT_KEY": p.root, "REGIMES": dir,
				"PATH": bin + string(os.PathListSeparator) + e.Getenv("PATH"),
			} {
				e.Setenv(name, value)
			}
			talk := &talk{url: p.url, vars: map[string]string{"root": p.root, "regimes": dir}, bin: filepath.Join(bin, "keytrail"), env: e}
			e.Values[talkKey{}] = talk
			e.Defer(func() {
				mu.Lock()
				defer mu.Unlock()
				for name, value := range talk.vars {
					if strings.HasSuffix(name, "secret") || name == "random" {
						secrets = append(secrets, value)
					}
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exchange": exchange},
	})
}

// TestRegimeTables: deploy/regimes/README.md counts its statements rightly, and
// what it names as showing one exists and runs.
func TestRegimeTables(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(regimeDir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(b), "\n## Lathe Studio\n")
	type totals struct{ statements, shown int }
	stated := map[string]totals{} // by document
	files := map[string]string{}  // document -> regime
	for _, m := range regexp.MustCompile(`(?m)^\| (.+) \| \[([a-z-]+)\.yaml\]\(.*\) \| (\d+) \| (\d+) \| (\d+) \|$`).FindAllStringSubmatch(head, -1) {
		n, _ := strconv.Atoi(m[3])
		shown, _ := strconv.Atoi(m[4])
		if others, _ := strconv.Atoi(m[5]); n != shown+others {
			t.Errorf("%s: %d statements are not %d + %d", m[1], n, shown, others)
		}
		stated[m[1]], files[m[1]] = totals{n, shown}, m[2]
	}
	if yamls, err := filepath.Glob(filepath.Join(regimeDir, "*.yaml")); err != nil || len(yamls) != len(files) {
		t.Errorf("%d regimes, %d documents: %v", len(yamls), len(files), err)
	}
	checkCredentialTable(t, head)
	row := regexp.MustCompile(`(?m)^\| (\d+) \| (.+) \| (.+) \| (.+) \|$`)
	quoted := regexp.MustCompile("`([^`]+)`")
	for section := range strings.SplitSeq("Lathe Studio\n"+rest, "\n## ") {
		document, text, _ := strings.Cut(section, "\n")
		want, ok := stated[document]
		if !ok {
			t.Errorf("%s has no totals", document)
			continue
		}
		runs := exchanged(t, files[document])
		var got totals
		for i, m := range row.FindAllStringSubmatch(text, -1) {
			if m[1] != strconv.Itoa(i+1) {
				t.Errorf("%s: statement %s stands in place %d", document, m[1], i+1)
			}
			got.statements++
			switch m[3] {
			case "shown":
				got.shown++
			case "gateway", "dashboard", "product", "customer":
				continue
			default:
				t.Errorf("%s %s: whose is %q", document, m[1], m[3])
			}
			by, _, _ := strings.Cut(m[4], ": ")
			names := quoted.FindAllStringSubmatch(by, -1)
			if len(names) == 0 {
				t.Errorf("%s %s: nothing shows it", document, m[1])
			}
			for _, n := range names {
				if !runs[n[1]] && !goTest(t, n[1]) {
					t.Errorf("%s %s: there is no %s", document, m[1], n[1])
				}
			}
		}
		if got != want {
			t.Errorf("%s: counted %+v, stated %+v", document, got, want)
		}
	}
}

// checkCredentialTable holds the table of what counts as missing, malformed and
// unknown to the sections that it names.
func checkCredentialTable(t *testing.T, text string) {
	t.Helper()
	const script = scripts + "/workspace.txtar"
	a, err := txtar.ParseFile(script)
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| .+ \\| (\\d+) \\| ([a-z_]+) \\| `([a-z-]+)` \\|$").FindAllStringSubmatch(text, -1)
	if len(rows) == 0 {
		t.Error("no table of credentials")
	}
	for _, m := range rows {
		i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == m[3] })
		if i < 0 {
			t.Errorf("%s has no %s", script, m[3])
			continue
		}
		answer := string(a.Files[i].Data)
		said := m[2] == "ok" && !strings.Contains(answer, `"code": `) || strings.Contains(answer, `"code": "`+m[2]+`"`)
		if !said || !strings.Contains(answer, "HTTP/1.1 "+m[1]+" ") {
			t.Errorf("%s does not show %s %s", m[3], m[1], m[2])
		}
	}
}

// exchanged returns the sections that the scripts of a regime exchange. Each
// section of theirs must be.
func exchanged(t *testing.T, regime string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	paths, err := filepath.Glob(filepath.Join(scripts, regime+"*.txtar"))
	if err != nil || len(paths) == 0 {
		t.Errorf("%s has no script: %v", regime, err)
	}
	for _, path := range paths {
		a, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(a.Comment)) {
			if words := strings.Fields(line); len(words) > 1 && words[0] == "exchange" {
				for _, name := range words[1:] {
					out[name] = true
				}
			}
		}
		for _, f := range a.Files {
			if !out[f.Name] {
				t.Errorf("%s: nothing exchanges %s", path, f.Name)
			}
		}
	}
	return out
}

// goTest reports whether the repository has a Go test of this name.
func goTest(t *testing.T, name string) bool {
	t.Helper()
	if !strings.HasPrefix(name, "Test") {
		return false
	}
	found := false
	err := filepath.WalkDir("../..", func(path string, e os.DirEntry, err error) error {
		if err != nil || found || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		found = bytes.Contains(b, []byte("\nfunc "+name+"("))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
