package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// eachFlag calls f with every flag of every command, and the command's name.
func eachFlag(f func(command string, flag *pflag.Flag)) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.Flags().VisitAll(func(flag *pflag.Flag) { f(c.CommandPath(), flag) })
		c.PersistentFlags().VisitAll(func(flag *pflag.Flag) { f(c.CommandPath(), flag) })
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(new(app).root())
}

// One variable may be set for all commands of a machine or an image, so it must
// mean the same to each.
func TestVariablesHaveOneMeaning(t *testing.T) {
	meanings := map[string]string{}
	variable := regexp.MustCompile(`\((KEYTRAIL_[A-Z_]+)`)
	eachFlag(func(command string, flag *pflag.Flag) {
		m := variable.FindStringSubmatch(flag.Usage)
		if m == nil {
			return
		}
		meaning := "--" + flag.Name + ": " + flag.Usage
		if first, ok := meanings[m[1]]; ok && first != meaning {
			t.Errorf("%s: %s means %q, elsewhere %q", command, m[1], meaning, first)
		}
		meanings[m[1]] = meaning
	})
	if len(meanings) < 12 {
		t.Errorf("only %d variables were found: %v", len(meanings), meanings)
	}
}

// All roles, `keytrail up` and compose can run on one machine as they come. Control
// is up's write side on its own, so these two share a port.
func TestDefaultPortsDoNotCollide(t *testing.T) {
	taken := map[string]string{}
	take := func(who, port string) {
		if other, ok := taken[port]; ok {
			t.Errorf("port %s is the default of %s and of %s", port, other, who)
		}
		taken[port] = who
	}
	eachFlag(func(command string, flag *pflag.Flag) {
		if flag.Name != "listen" || command == "keytrail control" {
			return
		}
		host, port, err := net.SplitHostPort(flag.DefValue)
		if err != nil || host != "127.0.0.1" {
			t.Errorf("%s listens on %q by default (%v), want 127.0.0.1 and a port", command, flag.DefValue, err)
		}
		take(command, port)
	})
	b, err := os.ReadFile("../../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`127\.0\.0\.1:\$\{([A-Z0-9_]+):-(\d+)\}`).FindAllStringSubmatch(string(b), -1) {
		take("compose's "+m[1], m[2])
	}
	if len(taken) != 4+5 {
		t.Errorf("%d default ports, want those of 4 commands and of 5 services: %v", len(taken), taken)
	}
}

// The image sets KEYTRAIL_LISTEN for the HTTP endpoints; the log has none.
func TestLogHasAnAddressOfItsOwn(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	setenv(t, "KEYTRAIL_ROOT_KEY", "unused")
	p := spawn(t, []string{
		"KEYTRAIL_LISTEN=" + taken.Addr().String(), "KEYTRAIL_DIR=" + filepath.Join(t.TempDir(), "of-up"),
		"KEYTRAIL_LOG_LISTEN=127.0.0.1:0", "KEYTRAIL_LOG_DIR=" + filepath.Join(t.TempDir(), "streams"), "KEYTRAIL_LOG_NAME=log-1",
		"KEYTRAIL_ADMIN_PASSWORD=pw-of-admin", "KEYTRAIL_CTRL_PASSWORD=pw-of-ctrl",
	}, "log")
	if out := p.stdout.String(); !strings.Contains(out, "log: nats://127.0.0.1:") || strings.Contains(out, taken.Addr().String()) {
		t.Errorf("the log listens at: %s", out)
	}
	var out, errs bytes.Buffer
	t.Setenv("KEYTRAIL_LISTEN", "127.0.0.1:1")
	if code := run(t.Context(), []string{"log", "--help"}, nil, &out, &errs); code != 0 || strings.Contains(out.String(), "127.0.0.1:1\"") {
		t.Errorf("exit %d: log --help takes the address of the endpoints:\n%s%s", code, out.String(), errs.String())
	}
	p.stop(t)
}
