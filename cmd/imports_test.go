// Package cmd_test enforces the one-way arrows of the design.
package cmd_test

import (
	"slices"
	"strings"
	"testing"
)

const module = "github.com/keytrail/keytrail/"

// arrows says what each package may import beside the standard library, metrics
// and tracing. Names that end in / admit everything below. An entry that its
// package does not import fails the test, so that the table stays true.
var arrows = map[string][]string{
	"events":                  {"events/input", "events/keyspace", "github.com/oklog/ulid/v2", "github.com/go-json-experiment/", "google.golang.org/protobuf/encoding/protowire"},
	"events/keyspace":         {"events/input", "github.com/go-json-experiment/"},
	"events/input":            {"golang.org/x/text/secure/precis"},
	"events/logtest":          {"events", "events/keyspace", "github.com/oklog/ulid/v2", "github.com/go-json-experiment/", "go.uber.org/goleak", "pgregory.net/rapid"},
	"events/eventlog":         {"events", "events/input", "events/eventlog/streams", "internal/flight", "github.com/nats-io/nats.go", "github.com/nats-io/nats.go/jetstream", "github.com/nats-io/nuid"},
	"events/eventlog/dial":    {"events", "github.com/nats-io/nats.go"},
	"events/eventlog/streams": {"events", "github.com/nats-io/nats.go/jetstream"},
	"events/eventlog/proxy":   {"events", "events/eventlog/streams", "golang.org/x/time/rate"},
	"events/eventlog/server":  {"events", "events/input", "events/eventlog/dial", "events/eventlog/proxy", "events/eventlog/streams", "github.com/nats-io/", "github.com/oklog/ulid/v2"},
	"events/backup":           {"events", "events/tree", "github.com/go-json-experiment/"},
	"events/eventlog/raw":     {"events", "events/backup", "events/eventlog/streams", "github.com/nats-io/nats.go", "github.com/nats-io/nats.go/jetstream"},
	"events/tree":             {"golang.org/x/mod/sumdb/tlog", "golang.org/x/mod/sumdb/note", "filippo.io/mldsa"},
	"schemas":                 {},
	"schemas/clickhouse":      {},
	"schemas/internal/freeze": {},
	"internal/api":            {"events", "events/input", "events/keyspace", "github.com/go-json-experiment/"},
	"internal/files":          {},
	"internal/flight":         {},
	"internal/loadtest":       {"golang.org/x/sync/errgroup"}, // for benchmarks only
	"internal/parts":          {},
	"internal/seam":           {},
	"projections":             {"events", "internal/parts", "internal/seam", "events/input", "events/keyspace", "events/tree", "github.com/gaissmai/bart", "github.com/go-json-experiment/"},
	"projections/checkpoint":  {"events", "events/tree", "internal/api", "internal/files"},
	"projections/snapshots":   {"events", "events/tree", "projections", "internal/api", "internal/files", "golang.org/x/sync/errgroup"},
	"commands/receipts":       {"events", "events/tree", "golang.org/x/mod/sumdb/note"},
	"commands":                {"commands/receipts", "events", "events/input", "events/keyspace", "projections", "internal/api", "github.com/go-json-experiment/", "github.com/oklog/ulid/v2", "golang.org/x/sync/errgroup"},
	"verifier":                {"verifier/limits", "internal/seam", "events", "events/input", "events/keyspace", "projections", "internal/api", "internal/flight", "github.com/go-json-experiment/"},
	"verifier/embed":          {"verifier", "events", "events/eventlog", "events/eventlog/dial", "events/input", "projections", "projections/snapshots", "internal/parts"},
	"verifier/limits":         {"events", "events/keyspace", "github.com/go-json-experiment/"},
	"verifier/extauthz": {"verifier", "events/input", "internal/api", "github.com/envoyproxy/go-control-plane/envoy/",
		"google.golang.org/grpc", "google.golang.org/grpc/", "google.golang.org/genproto/googleapis/rpc/status"},
	"audit": {"events", "events/input", "events/keyspace", "events/tree", "internal/api", "schemas/clickhouse", "github.com/ClickHouse/",
		"github.com/pressly/goose/v3", "github.com/go-json-experiment/", "github.com/oklog/ulid/v2", "golang.org/x/sync/errgroup"},
	"audit/engine": {"internal/files", "github.com/ebitengine/purego", "golang.org/x/sys/unix"},
	// For tests only: TestNothingShipsTheTestServers.
	"audit/engine/enginetest":   {"audit/engine", "github.com/ClickHouse/", "github.com/testcontainers/testcontainers-go", "github.com/testcontainers/testcontainers-go/"},
	"deploy":                    {}, // tests of what lies there
	"deploy/standin/clickhouse": {"audit/engine", "internal/files"},
	"cmd/internal/ops":          {"events/input", "schemas", "internal/api", "internal/files", "internal/parts"},
	"cmd/client":                {"events", "events/input", "github.com/go-json-experiment/"},
	"cmd/internal/regimes":      {"events", "events/input", "events/keyspace", "schemas", "github.com/go-json-experiment/", "github.com/goccy/go-yaml/", "github.com/santhosh-tekuri/jsonschema/v6", "github.com/santhosh-tekuri/jsonschema/v6/"},
}

// everywhere is what any package may import.
var everywhere = []string{"github.com/prometheus/client_golang/", "go.opentelemetry.io/otel"}

func TestImportsRunOneWay(t *testing.T) {
	out := goList(t, "-f", `{{.ImportPath}}{{range .Imports}} {{.}}{{end}}`, "../...")
	seen := map[string]bool{}
	used := map[[2]string]bool{} // by row and entry
	for line := range strings.Lines(out) {
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
			entry, ok := match(imp, allowed)
			if !ok && !allowedEverywhere(imp) {
				t.Errorf("%s imports %s, which its row does not allow", pkg, imp)
			}
			used[[2]string{pkg, entry}] = true
		}
	}
	for pkg, row := range arrows {
		if !seen[pkg] {
			t.Errorf("the table has a row for %s, which does not exist", pkg)
			continue
		}
		for _, entry := range row {
			if !used[[2]string{pkg, entry}] {
				t.Errorf("the row of %s allows %s, which it does not import: remove the entry", pkg, entry)
			}
		}
	}
}

// TestNothingShipsTheTestServers: the binary carries neither testcontainers nor
// the packages that are for tests.
func TestNothingShipsTheTestServers(t *testing.T) {
	out := goList(t, "-deps", "./keytrail")
	if !strings.Contains(out, module+"events/eventlog\n") {
		t.Fatal("the list of the binary's packages is not what this test takes it for")
	}
	for imp := range strings.Lines(out) {
		for _, not := range []string{"github.com/testcontainers/", module + "audit/engine/enginetest", module + "events/logtest", "testing\n"} {
			if strings.HasPrefix(imp, not) {
				t.Errorf("the binary contains %s", strings.TrimSpace(imp))
			}
		}
	}
}

// TestClientsLinkNoServer: a program that is a client of the log links no NATS server.
func TestClientsLinkNoServer(t *testing.T) {
	const server = "github.com/nats-io/nats-server/"
	deps := func(pkgs ...string) string { return goList(t, append([]string{"-deps"}, pkgs...)...) }
	if !strings.Contains(deps("../events/eventlog/server"), server) {
		t.Fatal("package server is not what this test takes it for")
	}
	if strings.Contains(deps("../events/eventlog", "../events/eventlog/dial", "../verifier/...", "../projections", "../commands", "../audit"), server) {
		t.Error("a client of the log links nats-server")
	}
}

// embedModules are the modules that a program links when it embeds a verifier: no NATS
// server, no ClickHouse, no gRPC.
var embedModules = []string{
	"filippo.io/mldsa", "github.com/beorn7/perks", "github.com/cespare/xxhash/v2", "github.com/gaissmai/bart",
	"github.com/go-json-experiment/json", "github.com/klauspost/compress", "github.com/munnerz/goautoneg",
	"github.com/nats-io/nats.go", "github.com/nats-io/nkeys", "github.com/nats-io/nuid", "github.com/oklog/ulid/v2",
	"github.com/prometheus/client_golang", "github.com/prometheus/client_model", "github.com/prometheus/common",
	"github.com/prometheus/procfs", "golang.org/x/crypto", "golang.org/x/mod", "golang.org/x/sync", "golang.org/x/sys",
	"golang.org/x/text", "google.golang.org/protobuf",
}

// Who embeds a verifier links these modules and no others, and who asks one by HTTP
// fewer. Envoy's endpoint, which is imported apart, brings gRPC.
func TestWhatAnEmbeddedVerifierLinks(t *testing.T) {
	modules := func(pkg string) []string {
		list := strings.Fields(goList(t, "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", pkg))
		slices.Sort(list)
		return slices.DeleteFunc(slices.Compact(list), func(m string) bool { return m+"/" == module })
	}
	for _, tt := range []struct {
		pkg  string
		want []string
	}{
		{"../verifier/embed", embedModules},
		{"../verifier", slices.DeleteFunc(slices.Clone(embedModules), func(m string) bool {
			return strings.HasPrefix(m, "github.com/nats-io/") || m == "github.com/klauspost/compress" || m == "golang.org/x/crypto" || m == "golang.org/x/sync"
		})},
		{"../cmd/client", []string{"github.com/go-json-experiment/json", "github.com/oklog/ulid/v2", "golang.org/x/text", "google.golang.org/protobuf"}},
	} {
		if got := modules(tt.pkg); !slices.Equal(got, tt.want) {
			t.Errorf("%s links\n\t%s\nwant\n\t%s", tt.pkg, strings.Join(got, "\n\t"), strings.Join(tt.want, "\n\t"))
		}
	}
	if !slices.Contains(modules("../verifier/extauthz"), "google.golang.org/grpc") {
		t.Error("package extauthz is not what this test takes it for")
	}
}

func isOurs(imp string) bool {
	first, _, _ := strings.Cut(imp, "/")
	switch first {
	case "events", "schemas", "projections", "commands", "verifier", "audit", "internal", "cmd", "deploy":
		return true
	}
	return false
}

// match returns the entry of list that admits imp.
func match(imp string, list []string) (entry string, ok bool) {
	for _, a := range list {
		if imp == a || strings.HasSuffix(a, "/") && strings.HasPrefix(imp, a) {
			return a, true
		}
	}
	return "", false
}

func allowedEverywhere(imp string) bool {
	_, ok := match(imp, everywhere)
	return ok
}
