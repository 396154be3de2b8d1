package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestNothingGivenIsEmpty tries every flag, argument and environment variable of
// every command in an empty or broken form: a mistake, told before anything is
// asked for or started. None of them counts as left out.
func TestNothingGivenIsEmpty(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s came through", r.Method, r.URL)
	}))
	defer server.Close()
	t.Chdir(t.TempDir())
	tries := 0
	refused := func(want string, args ...string) {
		t.Helper()
		tries++
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var out, errs bytes.Buffer
		code := run(ctx, append(args, "--url", server.URL), strings.NewReader(""), &out, &errs)
		if code != exitUsage || !strings.Contains(errs.String(), want) {
			t.Errorf("%q: exit %d, %s%s; want a mistake that names %s", args, code, out.String(), errs.String(), want)
		}
	}
	empty := map[string][]string{
		"string":         {"", " ", "\t\n"},
		"stringSlice":    {"", " ", ",", "a,,b", "a, ", " ,a"},
		"stringArray":    {"", " "},
		"stringToString": {"", "a", "=,"},
		"int":            {"", "0", "-1", "1.0", "1e2", "ten"},
		"int64":          {"", "0", "-1", "60.0", "1e2", "0x"},
		"uint32":         {"", "0", "-1", "1.5"},
		"uint64":         {"", "-1", "1.0", "1e2", "ten"},
		"duration":       {"", "0", "-1s", "5"},
		"bool":           {"", "yes", " true"},
	}
	mayBeEmpty := map[string]bool{"reason": true, "description": true}
	var walk func(c *cobra.Command, path []string)
	walk = func(c *cobra.Command, path []string) {
		for _, sub := range c.Commands() {
			if sub.Name() != "help" && sub.Name() != "completion" {
				walk(sub, append(path[:len(path):len(path)], sub.Name()))
			}
		}
		if c.HasSubCommands() && c.Name() != "log" { // a role, beside its commands
			return
		}
		// The command as it is meant: its arguments and what it requires.
		line := path
		words := strings.Fields(strings.NewReplacer("[", "", "]", "", ".", "").Replace(c.Use))[1:]
		required := map[string]bool{}
		var flags []*pflag.Flag
		visit := func(f *pflag.Flag) {
			if f.Name == "help" || f.Name == "url" {
				return
			}
			flags = append(flags, f)
			if f.Annotations[cobra.BashCompOneRequiredFlag] != nil {
				required[f.Name] = true
				line = append(line[:len(line):len(line)], "--"+f.Name+"=x")
			}
		}
		c.Flags().VisitAll(visit)
		c.InheritedFlags().VisitAll(visit)
		for i := range words {
			for _, v := range []string{"", " ", "\n"} {
				args := append([]string{}, words...)
				args[i] = v
				refused("", append(line[:len(line):len(line)], args...)...)
			}
		}
		whole := append(line[:len(line):len(line)], words...)
		for _, f := range flags {
			values, ok := empty[f.Value.Type()]
			if !ok {
				t.Errorf("%v: no broken values for a flag of type %s", path, f.Value.Type())
			}
			if f.Name == "log-level" { // of all commands, also of those that log nothing
				values = append(values[:len(values):len(values)], "loud", "warn ", "0")
			}
			for _, v := range values {
				if mayBeEmpty[f.Name] {
					continue
				}
				refused(f.Name, append(whole[:len(whole):len(whole)], "--"+f.Name+"="+v)...)
			}
		}
	}
	walk((&app{}).root(), nil)
	if tries < 500 {
		t.Errorf("only %d tries", tries)
	}
	for _, name := range []string{"KEYTRAIL_URL", "KEYTRAIL_ROOT_KEY", "KEYTRAIL_KEY_FILE", "KEYTRAIL_SECRET", "KEYTRAIL_CLICKHOUSE", "KEYTRAIL_OF_A_LATER_RELEASE"} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, " ")
			refused(name, "key", "get", "K")
		})
	}
	t.Run("KEYTRAIL_LOG_LEVEL", func(t *testing.T) {
		t.Setenv("KEYTRAIL_LOG_LEVEL", "loud")
		refused("log-level", "key", "get", "K")
	})
}
