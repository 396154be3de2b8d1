package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

// anyone lets every request in with all power.
type anyone struct{}

func (anyone) FindSecret(text string) (start, end int, ok bool) { return 0, 0, false }

func (anyone) Knows(*http.Request) bool { return true }

func (anyone) Authenticate(*http.Request, string, string) (*api.Caller, error) {
	def := events.BuiltinDefinition()
	return api.NewCaller(events.Principal{Actor: events.Actor{Kind: events.ActorSystem, ID: "test"}, Scopes: def.Expand([]string{events.ScopeAdmin}), IP: netip.MustParseAddr("192.0.2.1")}, nil, nil), nil
}

// confirms returns what proves the floor of a log that has one.
func confirms(log *logtest.MemLog) func(context.Context) (events.Floor, error) {
	return func(ctx context.Context) (events.Floor, error) {
		if err := log.Raise(ctx, events.Head{Log: log.ID()}); err != nil {
			return events.Floor{}, err
		}
		list, err := log.Nodes(ctx, 0) // this control has no lease of its own
		return list.Floor, err
	}
}

// controlEndpoint is the control endpoint over a log in memory.
func controlEndpoint(t *testing.T) string { return controlOn(t, logtest.New(t)) }

// controlOn is controlEndpoint over a log of the caller's.
func controlOn(t *testing.T, log *logtest.MemLog) string {
	dir, mux := projections.NewDirectory(), http.NewServeMux()
	commands.New(commands.Config{Log: log, Leases: log, Confirm: confirms(log), Dir: dir, Node: "one", Logger: slog.New(slog.DiscardHandler)}).Routes(mux, anyone{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- projections.Follow(ctx, log, dir) }()
	endpoint := httptest.NewServer(api.Handler(mux))
	t.Cleanup(func() {
		endpoint.Close()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("the directory stopped: %v", err)
		}
		logtest.CheckLog(t, log)
	})
	return endpoint.URL
}

// TestRegimeCommands walks through what the command line has for key regimes.
func TestRegimeCommands(t *testing.T) {
	endpoint := controlEndpoint(t)
	const regime = `
name: laser
https_only: true
key_types:
  - {name: key, length: 43, alphabet: base64url}
  - {name: tagged, prefix: "ld_{environment}_", environments: [live, test], checksum: crc32, defaults: []}
scopes:
  - {name: "member:read", description: see members}
  - {name: "deployment:manage", level: division}
resources: [division]
grants: {required: true, by: roles}
expiry: {choices: [never, 30d, 90d], default: 30d}
plans: [{name: team, per_minute: 300, burst: 600}]
tenant_limit: {per_minute: 60, burst: 60}
`
	file := writeFile(t, "laser.yaml", regime)
	narrow := writeFile(t, "narrow.yaml", strings.Replace(regime, "choices: [never, 30d, 90d], default: 30d", "max: 30d", 1))
	wide := strings.Replace(regime, "description: see members}", "description: see members, implies: [\"deployment:manage\"]}", 1)
	wider := writeFile(t, "wider.yaml", strings.Replace(wide, "choices: [never, 30d, 90d], default: 30d", "max: 30d", 1))
	plain := writeFile(t, "plain.yaml", strings.Replace(regime, "https_only: true", "https_only: false", 1))
	for _, tt := range []struct {
		args string
		code int
		want string // of each line a line of what is printed, as a regular expression
	}{
		{"keyspace apply -f " + file + " --dry-run", 0, "changes https_only\nchanges scopes\nall 0 live keys fit; nothing was written"},
		{"keyspace get laser", exitFailed, `there is no keyspace "laser"`},
		{"keyspace apply -f " + file, 0, "https only +yes\n" +
			`key type +key: - \+ 43 characters; defaults -; environments -` + "\n" +
			`key type +tagged: ld_\{environment\}_ \+ 32 characters \+ crc32 checksum; defaults -; environments live,test` + "\n" +
			`secret pattern +key: none: without a prefix, secrets of this type cannot be found in text` + "\n" +
			`secret pattern +tagged: \\bld_\(\?:live\|test\)_\[0-9A-Za-z\]\{32\}\[0-9A-Za-z\]\{6\}\\b` + "\n" +
			"scope +member:read  see members\ngrants +by roles, at least one\nexpiry +by default 30d, one of never, 30d, 90d\n" +
			"plan +team: 300 a minute, burst 600\nlimit of a tenant +60 a minute, burst 60\nchecks +state, address, scope, resource, limit"},
		{"key create --keyspace laser --tenant t --name a", exitFailed, "roles: a key of keyspace \"laser\" holds at least one role: want roles, or permissions"},
		{"key create --keyspace laser --tenant t --name a --permission member:read --expires-in 31d", exitFailed, "expires_in: keys of this keyspace live for one of never, 30d, 90d"},
		{"key create --keyspace laser --tenant t --name a --permission member:read --expires-in never", 0, "roles +key_[0-9a-z]{26}\nexpires +-"},
		{"key create --keyspace laser --tenant t --name b --permission deployment:manage --permission-level division --resource division/d1", 0, "roles +key_[0-9a-z]{26}\nexpires +20"},
		{"key create --keyspace laser --tenant t --name c --permission-level division", exitUsage, "--permission-level"},
		{"key create --keyspace laser --tenant t --name c --permission=", exitUsage, "--permission is empty"},
		{"role list --keyspace laser --tenant t", 0, "key_[0-9a-z]{26} +tenant +member:read\nkey_[0-9a-z]{26} +division +deployment:manage"},
		{"tenant get t --keyspace laser", 0, "limit +none of its own\nall its keys +60 a minute, burst 60"},
		{"tenant limit t --keyspace laser --plan team", 0, "limit +plan team\nall its keys +300 a minute, burst 600, plan team"},
		{"tenant limit t --keyspace laser --per-minute 7", 0, "limit +7 a minute, burst 7\nall its keys +7 a minute, burst 7"},
		{"tenant limit t --keyspace laser --plan gold", exitFailed, `limit.plan: plan "gold"`},
		{"tenant limit t --keyspace laser --default --reason paid", 0, "limit +none of its own"},
		{"tenant limit t --keyspace laser", exitUsage, "want either --plan or --per-minute or --default"},
		{"tenant limit t --keyspace laser --default --plan team", exitUsage, "want either"},
		{"tenant get t", exitUsage, "keyspace"},
		{"keyspace apply -f " + narrow + " --dry-run", exitFailed, "changes expiry.max\nKEY +TENANT +NAME +FIELD +WHY\nkey_[0-9A-Z]{26} +t +a +expires_at +the key never expires\n1 of 2 live keys do not fit"},
		{"keyspace apply -f " + narrow, exitFailed, `1 of 2 live keys do not fit.*\(409 violations`},
		{"keyspace apply -f " + narrow + " --dry-run --accept-violations", exitUsage, "dry-run"},
		{"keyspace apply -f " + narrow + " --accept-violations", 0, "expiry +at most 30d"},
		{"keyspace apply -f " + narrow + " --dry-run", 0, "changes nothing\nall 2 live keys fit"},
		{"keyspace apply -f " + wider + " --dry-run", exitFailed, "changes scopes\\[member:read\\].implies\nKEY +TENANT +NAME +FIELD +GAINS\nkey_[0-9A-Z]{26} +t +a +roles\\[0\\] +the key could use scope \"deployment:manage\"\n1 of 2 live keys gain power"},
		{"keyspace apply -f " + wider, exitFailed, `1 of 2 live keys gain power.*\(409 widening`},
		{"keyspace apply -f " + wider + " --dry-run --accept-widening", exitUsage, "dry-run"},
		{"keyspace apply -f " + plain + " --dry-run", exitFailed, "every key +- +- +https_only +every key could be used over plain HTTP\n2 of 2 live keys gain power"},
		{"keyspace apply -f " + wider + " --accept-widening", 0, "scope +member:read"},
		{"keyspace apply -f " + narrow + " --accept-violations", 0, "scope +member:read"},
		{"role define ops --keyspace laser --tenant t --scope member:read", 0, "level +tenant"},
		{"key create --keyspace laser --tenant t --name held --role ops --expires-in 1d", 0, "roles +ops"},
		{"role delete ops --keyspace laser --tenant t", 0, "role ops deleted"},
		{"role define ops --keyspace laser --tenant t --scope member:read", exitFailed, `live keys hold it still \(1\): "held" \(key_[0-9A-Z]{26}\).*\(409 holders`},
		{"role define ops --keyspace laser --tenant t --scope member:read --accept-holders", 0, "level +tenant"},
		{"--json keyspace apply -f " + file + " --dry-run", 0, "\"changes\": \\[\n\"violations\": \\[\\]"},
	} {
		out, errs, code := cliAt(t, endpoint, "kt_x", strings.Fields(tt.args)...)
		if code != tt.code {
			t.Errorf("%s: exit %d\n%s%s", tt.args, code, out, errs)
		}
		for line := range strings.SplitSeq(tt.want, "\n") {
			if !regexp.MustCompile(line).MatchString(out + errs) {
				t.Errorf("%s: no %q in\n%s%s", tt.args, line, out, errs)
			}
		}
	}
}
