package main

import (
	"regexp"
	"strings"
	"testing"
)

// TestIfRev: a script names the rev that it has seen, and whoever comes too late is
// told so and writes nothing. --add and --remove name the rev that they read.
func TestIfRev(t *testing.T) {
	endpoint := controlEndpoint(t)
	const regime = `
name: shop
key_types: [{name: secret, prefix: "sk_"}]
scopes: [{name: read}, {name: write}]
plans: [{name: team, per_minute: 300, burst: 600}]
`
	file := writeFile(t, "shop.yaml", regime)
	wider := writeFile(t, "wider.yaml", regime+"resources: [project]\n")
	id := ""
	const late = `nothing was written: read it again, decide again, and name the rev`
	for _, tt := range []struct {
		args string
		code int
		want string // a line of what is printed, as a regular expression
	}{
		{"keyspace apply -f " + file + " --if-rev 1", exitFailed, `If-Match.*there is no such resource.*\(412 precondition_failed`},
		{"keyspace apply -f " + file + " --if-rev 0", 0, "^rev +1$"},
		{"keyspace apply -f " + file + " --if-rev 0", exitFailed, late},
		{"keyspace apply -f " + wider + " --dry-run --if-rev 2", exitFailed, `stands at rev 1`},
		{"keyspace apply -f " + wider + " --dry-run --if-rev 1", 0, "changes resources"},
		{"keyspace apply -f " + wider + " --if-rev 1", 0, "^rev +2$"},
		{"key create --keyspace shop --tenant t --name a --allow 203.0.113.0/24", 0, "^rev +1$"},
		{"key allowlist KEY --add 198.51.100.7,2001:db8::/32", 0, "^allowlist +198.51.100.7/32, 203.0.113.0/24, 2001:db8::/32$"},
		{"key allowlist KEY --add 198.51.100.7/32 --remove 203.0.113.0/24", 0, "^allowlist +198.51.100.7/32, 2001:db8::/32$"},
		{"key allowlist KEY --add 10.0.0.0/8 --if-rev 2", exitFailed, `stands at rev 3`},
		{"key allowlist KEY --remove 10.0.0.0/8", exitFailed, `--remove "10.0.0.0/8": the key has 198.51.100.7/32,2001:db8::/32`},
		{"key allowlist KEY --remove 198.51.100.7,2001:db8::/32", exitUsage, "--any"},
		{"key allowlist KEY --add 10.0.0.7/8", exitFailed, `allowlist\[2\]: the address has bits outside its network`},
		{"key allowlist KEY --add 10.0.0.0/8 --any", exitUsage, "none of the others can be"},
		{"key allowlist KEY --allow 10.0.0.0/8 --if-rev 2", exitFailed, late},
		{"key allowlist KEY --allow 10.0.0.0/8 --if-rev 3", 0, "^rev +4$"},
		{"key disable KEY --if-rev 3", exitFailed, late},
		{"key disable KEY --if-rev 0", exitUsage, "want the rev that the last answer showed"},
		{"key disable KEY --if-rev 4", 0, "^status +disabled$"},
		{"role define dev --keyspace shop --tenant t --scope read --if-rev 0", 0, "^rev +1$"},
		{"role define dev --keyspace shop --tenant t --scope write --if-rev 0", exitFailed, late},
		{"role delete dev --keyspace shop --tenant t --if-rev 2", exitFailed, late},
		{"role delete dev --keyspace shop --tenant t --if-rev 1", 0, "role dev deleted"},
		{"tenant limit t --keyspace shop --plan team --if-rev 1", exitFailed, `stands at rev 0`},
		{"tenant limit t --keyspace shop --plan team --if-rev 0", 0, "^rev +1$"},
	} {
		out, errs, code := cliAt(t, endpoint, "kt_x", strings.Fields(strings.ReplaceAll(tt.args, "KEY", id))...)
		if !regexp.MustCompile(`(?m)`+tt.want).MatchString(out+errs) || code != tt.code {
			t.Errorf("%s: exit %d; want %d and %s\n%s%s", tt.args, code, tt.code, tt.want, out, errs)
		}
		if m := regexp.MustCompile(`key_[0-9A-Z]{26}`).FindString(out); id == "" {
			id = m
		}
	}
}
