package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/internal/parts"
)

// TestCommandLineMistakes: what is typed wrongly is refused with exit code 2 and
// reaches no endpoint.
func TestCommandLineMistakes(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s came through", r.Method, r.URL)
	}))
	defer endpoint.Close()
	create := []string{"key", "create", "--keyspace", "k", "--tenant", "t", "--name", "n"}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"bogus"}, "unknown command"},
		{[]string{"key", "bogus"}, "unknown command"},
		{[]string{"key", "create"}, "keyspace"},
		{[]string{"key", "get"}, "want KEY"},
		{[]string{"verify", "sk_live_1"}, "--secret-file"},
		{[]string{"key", "list", "--keyspace", "k", "--no-such-flag"}, "no-such-flag"},
		{[]string{"key", "list", "--keyspace", "k", "--limit", "1e2"}, "--limit: want an integer without fraction or exponent, as 60"},
		{[]string{"key", "limit", "K", "--per-minute", "60.0"}, "--per-minute: want an integer without fraction or exponent, as 60"},
		{[]string{"key", "update", "K", "--expires-in", "1h", "--never-expires"}, "never-expires"},
		// A shell variable that is not set lifts no restriction.
		{append(create, "--allow", ""), "--allow is empty"},
		{append(create, "--resource", ""), "--resource is empty"},
		{append(create, "--expires-in", ""), "--expires-in is empty"},
		{[]string{"key", "allowlist", "K", "--allow", ""}, "--allow is empty"},
		{[]string{"key", "rotate", "K", "--expires-at", ""}, "--expires-at is empty"},
		{[]string{"verify", "--scope", ""}, "--scope is empty"},
		{[]string{"audit", "export", "--tenant", ""}, "--tenant is empty"},
		// A slip in a network does not trust a larger one.
		{[]string{"up", "--trusted-proxy", "10.0.0.7/8"}, "10.0.0.0/8 trusts all of it"},
		{[]string{"up", "--trusted-proxy", "::ffff:10.0.0.0/104"}, "IPv4 as such"},
		{[]string{"up", "--trusted-proxy", "10.0.0.0/33"}, "want an address or a CIDR"},
	} {
		_, errs, code := cliAt(t, endpoint.URL, "kt_x", tt.args...)
		if code != exitUsage || !strings.Contains(errs, tt.want) {
			t.Errorf("%q: exit %d, %s", tt.args, code, errs)
		}
	}
}

// A command whose output could not be written fails, and says so: the secret of a
// key that was created is shown once.
func TestLostOutputFails(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			api.WriteJSON(w, r, http.StatusCreated, map[string]any{"data": map[string]any{"id": "key_1", "secret": "sk_live_x"}})
			return
		}
		api.WriteJSON(w, r, http.StatusOK, map[string]any{"data": []any{map[string]any{"id": "key_1"}}, "next_cursor": nil})
	}))
	defer endpoint.Close()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("this system has no /dev/full:", err)
	}
	defer full.Close()
	t.Setenv("KEYTRAIL_ROOT_KEY", "kt_x")
	for _, args := range [][]string{
		{"key", "create", "--keyspace", "k", "--tenant", "t", "--name", "n"}, {"key", "create", "--keyspace", "k", "--tenant", "t", "--name", "n", "--json"},
		{"key", "list", "--keyspace", "k"}, {"key", "list", "--keyspace", "k", "--json"}, {"key", "list", "--keyspace", "k", "--all", "--json"}, {"--version"}, {"key", "--help"},
	} {
		var errs bytes.Buffer
		code := run(t.Context(), append([]string{"--url", endpoint.URL}, args...), strings.NewReader(""), full, &errs)
		if code != exitFailed || !strings.Contains(errs.String(), "no space left") {
			t.Errorf("%q: exit %d, %s", args, code, &errs)
		}
	}
}

// Help shows no password that came from the environment.
func TestHelpShowsNoPassword(t *testing.T) {
	t.Setenv("KEYTRAIL_CLICKHOUSE", "clickhouse://keytrail:hunter2@ch:9000/keytrail")
	t.Setenv("KEYTRAIL_NATS", "nats://ctrl:hunter2@nats:4222")
	for _, name := range []string{"up", "control", "verifier", "auditor", "init", "log", "doctor", "bench"} {
		out, errs, code := cliAt(t, "http://127.0.0.1:1", "kt_x", name, "--help")
		if code != 0 || strings.Contains(out+errs, "hunter2") {
			t.Errorf("%s --help: exit %d, %s%s", name, code, out, errs)
		}
	}
}

// A store that refuses control costs the last use of keys, and nothing else.
func TestControlOutlivesARefusedStore(t *testing.T) {
	var logged lockedBuffer
	logger := slog.New(slog.NewJSONHandler(&logged, nil))
	n := &node{logger: logger, group: &parts.Group{Logger: logger}}
	lastUsed := n.lastUsedFrom("clickhouse://keytrail:hunter2@127.0.0.1:1/no-such.name")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- n.group.Run(ctx) }() // joined below
	eventually(t, func() string {
		if text := logged.String(); len(ended) == 0 && !strings.Contains(text, "without their last use") {
			return "logged " + text
		}
		return ""
	})
	if len(ended) > 0 {
		t.Error("control ends with the store")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("control ends: %v", err)
	}
	if _, err := lastUsed(t.Context(), nil); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("last used: %v", err)
	}
	if text := logged.String(); !strings.Contains(text, "without their last use") || strings.Contains(text, "hunter2") {
		t.Errorf("logged %s", text)
	}
}

func TestEndpointsLogThroughTheRolesLogger(t *testing.T) {
	defer slog.SetDefault(slog.Default())
	var errw bytes.Buffer
	if _, err := (&app{err: &errw}).logger(slog.LevelWarn); err != nil {
		t.Fatal(err)
	}
	api.Write(httptest.NewRecorder(), httptest.NewRequest("GET", "/v1/keys", nil), errors.New("boom"))
	if line := errw.String(); !strings.HasPrefix(line, "{") || !strings.Contains(line, `"err":"boom"`) {
		t.Errorf("a 500 was logged as %q", line)
	}
}

func TestVerifySendsNoOperatorKey(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := r.Header.Values("Authorization"); len(v) > 0 {
			t.Error("the verifier saw the operator key")
		}
		w.Write([]byte(`{"allowed":true,"reason":"ok","status":200}`))
	}))
	defer endpoint.Close()
	if out, errs, code := cliAt(t, endpoint.URL, "kt_x", "verify"); code != 0 || !strings.HasPrefix(out, "allowed") {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
}
