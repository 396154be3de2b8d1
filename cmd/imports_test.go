// Package cmd_test enforces the one-way arrows of the design.
package cmd_test

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/keytrail/keytrail/"

// arrows says what each package may import beside the standard library, metrics
// and tracing. Names that end in / admit everything below.
var arrows = map[string][]string{
	"events":                  {"github.com/oklog/ulid/v2", "github.com/go-json-experiment/", "google.golang.org/protobuf/encoding/protowire"},
	"events/logtest":          {"events", "github.com/oklog/ulid/v2", "github.com/go-json-experiment/", "pgregory.net/rapid"},
	"events/eventlog":         {"events", "github.com/nats-io/", "github.com/oklog/ulid/v2"},
	"schemas":                 {},
	"schemas/clickhouse":      {},
	"schemas/internal/freeze": {"schemas"},
	"schemas/api":             {"events", "github.com/go-json-experiment/"},
	"projections":             {"events", "github.com/gaissmai/bart", "github.com/go-json-experiment/"},
	"commands":                {"events", "projections", "schemas", "schemas/api", "github.com/go-json-experiment/", "github.com/oklog/ulid/v2", "golang.org/x/sync/errgroup"},
	"verifier":                {"events", "projections", "schemas/api", "github.com/go-json-experiment/"},
	"verifier/extauthz": {"verifier", "events", "schemas/api", "github.com/envoyproxy/go-control-plane/envoy/",
		"google.golang.org/grpc", "google.golang.org/grpc/", "google.golang.org/genproto/googleapis/rpc/status"},
	"audit": {"events", "projections", "schemas", "schemas/api", "schemas/clickhouse", "github.com/ClickHouse/",
		"github.com/pressly/goose/v3", "github.com/pressly/goose/v3/", "github.com/go-json-experiment/", "github.com/oklog/ulid/v2", "golang.org/x/sync/errgroup"},
	"audit/engine": {"github.com/ebitengine/purego", "golang.org/x/sys/unix", "golang.org/x/term"},
	// For tests only: TestNothingShipsTheTestServers.
	"audit/engine/enginetest":   {"audit/engine", "github.com/ClickHouse/", "github.com/testcontainers/testcontainers-go", "github.com/testcontainers/testcontainers-go/"},
	"deploy":                    {}, // tests of what lies there
	"deploy/standin/clickhouse": {"audit/engine"},
	"cmd/internal/ops":          {"schemas", "schemas/api"},
	"cmd/internal/client":       {"events", "schemas/api", "github.com/go-json-experiment/"},
	"cmd/internal/regimes":      {"events", "schemas", "github.com/go-json-experiment/", "github.com/goccy/go-yaml/", "github.com/santhosh-tekuri/jsonschema/v6", "github.com/santhosh-tekuri/jsonschema/v6/"},
}

// everywhere is what any package may import.
var everywhere = []string{"github.com/prometheus/client_golang/", "go.opentelemetry.io/otel"}

func TestImportsRunOneWay(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "../...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		if pkg == "cmd/keytrail" || pkg == "cmd" {
			continue // wiring may reach everything
		}
		seen[pkg] = true
		allowed, ok := arrows[pkg]
		if !ok {
			t.Errorf("package %s is not in the table: say in DESIGN.md what it may import, then here", pkg)
			continue
		}
		for _, imp := range fields[1:] {
			imp = strings.TrimPrefix(imp, module)
			if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") && !isOurs(imp) {
				continue // standard library
			}
			if !matches(imp, allowed) && !matches(imp, everywhere) {
				t.Errorf("%s imports %s, which its row does not allow", pkg, imp)
			}
		}
	}
	for pkg := range arrows {
		if !seen[pkg] {
			t.Errorf("the table has a row for %s, which does not exist", pkg)
		}
	}
}

// TestNothingShipsTheTestServers: the binary carries neither testcontainers nor
// the packages that are for tests.
func TestNothingShipsTheTestServers(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./keytrail").Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), module+"events/eventlog\n") {
		t.Fatal("the list of the binary's packages is not what this test takes it for")
	}
	for imp := range strings.Lines(string(out)) {
		for _, not := range []string{"github.com/testcontainers/", module + "audit/engine/enginetest", module + "events/logtest", "testing\n"} {
			if strings.HasPrefix(imp, not) {
				t.Errorf("the binary contains %s", strings.TrimSpace(imp))
			}
		}
	}
}

func isOurs(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	switch first {
	case "events", "schemas", "projections", "commands", "verifier", "audit", "cmd", "deploy":
		return true
	}
	return false
}

func matches(imp string, list []string) bool {
	for _, a := range list {
		if imp == a || strings.HasSuffix(a, "/") && strings.HasPrefix(imp, a) {
			return true
		}
	}
	return false
}
