package deploy_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// inArguments finds a secret that a command line would put among the arguments of
// a process, where every user of the machine can read it. A shell's own printf,
// echo, read, export and assignments make no process.
var inArguments = regexp.MustCompile(`(?i)` + strings.Join([]string{
	`(-H|--header)[ =]?["']?[^@"'\s]*(authorization|api-?key)`, // curl -H "Authorization: Bearer …"
	`(-u|--user)[ =]\S+:\S`,                     // curl -u user:password
	`--password[ =]?\S`,                         // clickhouse-client --password …
	`grep\b[^|]*\$\(cat [^)]*key`,               // grep "$(cat root.key)"
	`\bcurl\b[^|]*\$\{?(\w*SECRET|\w*PASSWORD)`, // curl -d "$KEYTRAIL_SECRET"
	`\bcurl\b[^|]*\$\(cat [^)]*key`,
	`\bkeytrail\b[^|#]*\$\{?KEYTRAIL_SECRET`, // keytrail verify "$KEYTRAIL_SECRET"
	`\bkeytrail (verify|bench)\b[^|#]*\$\{?\w*SECRET`,
}, "|"))

// TestNoSecretInArguments reads every text that a reader may copy to a shell.
func TestNoSecretInArguments(t *testing.T) {
	names := []string{"../README.md", "../DESIGN.md", "../docker-compose.yml", "../Makefile"}
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && filepath.Ext(path) != ".go" {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "\\\n", " ") // a command may go on
		for line := range strings.Lines(text) {
			if m := inArguments.FindString(line); m != "" {
				t.Errorf("%s: %q puts a secret into the arguments of a process: pipe it, as printf … | curl -H @-", name, strings.TrimSpace(line))
			}
		}
	}
	if read := len(names); read < 20 {
		t.Fatalf("read %d files only", read)
	}
}

func TestInArgumentsFinds(t *testing.T) {
	for _, line := range []string{
		`curl -s -X DELETE http://h/v1/keys/$KEY -H "Authorization: Bearer $(cat root.key)"`,
		`curl -i http://h -H 'Authorization: Bearer sk_live_…'`,
		`curl --header "X-API-Key: abc" http://h`,
		`curl -d "{\"key\":\"$KEYTRAIL_SECRET\"}" http://h`,
		`curl -u operator:secret http://h`,
		`clickhouse-client -u keytrail --password "$CLICKHOUSE_PASSWORD"`,
		`keytrail verify --keyspace k "$KEYTRAIL_SECRET"`,
		`keytrail bench "$SECRET"`,
		`grep -qF "$(cat root.key)" logs`,
	} {
		if !inArguments.MatchString(line) {
			t.Errorf("not found: %s", line)
		}
	}
	for _, line := range []string{
		`printf 'Authorization: Bearer %s' "$KEYTRAIL_SECRET" | curl -s -H @- http://h`,
		`printf '{"key":"%s"}' "$KEYTRAIL_SECRET" | curl -s http://h -H 'Content-Type: application/json' -d @-`,
		`read -rs KEYTRAIL_SECRET; export KEYTRAIL_SECRET`,
		`KEYTRAIL_SECRET=$secret kt --json verify --keyspace k`,
		`keytrail verify --keyspace k   # the secret is in KEYTRAIL_SECRET`,
	} {
		if inArguments.MatchString(line) {
			t.Errorf("found in: %s", line)
		}
	}
}
