package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// TestCommandLineMistakes: what is typed wrongly is refused with exit code 2 and
// reaches no door.
func TestCommandLineMistakes(t *testing.T) {
	door := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s came through", r.Method, r.URL)
	}))
	defer door.Close()
	create := []string{"key", "create", "--keyspace", "k", "--tenant", "t", "--name", "n"}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"bogus"}, "unknown command"},
		{[]string{"key", "bogus"}, "unknown command"},
		{[]string{"key", "create"}, "keyspace"},
		{[]string{"key", "get"}, "want KEY"},
		{[]string{"verify", "a", "b"}, "SECRET"},
		{[]string{"key", "list", "--keyspace", "k", "--no-such-flag"}, "no-such-flag"},
		{[]string{"key", "update", "K", "--expires-in", "1h", "--never-expires"}, "never-expires"},
		// A shell variable that is not set lifts no restriction.
		{append(create, "--allow", ""), "--allow is empty"},
		{append(create, "--resource", ""), "--resource is empty"},
		{append(create, "--expires-in", ""), "--expires-in is empty"},
		{[]string{"key", "allowlist", "K", "--allow", ""}, "--allow is empty"},
		{[]string{"key", "rotate", "K", "--expires-at", ""}, "--expires-at is empty"},
		{[]string{"verify", "--scope", "", "secret"}, "--scope is empty"},
		{[]string{"audit", "export", "--tenant", ""}, "--tenant is empty"},
	} {
		_, errs, code := cliAt(t, door.URL, "kt_x", tt.args...)
		if code != exitUsage || !strings.Contains(errs, tt.want) {
			t.Errorf("%q: exit %d, %s", tt.args, code, errs)
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
	var logged bytes.Buffer
	logger := slog.New(slog.NewJSONHandler(&logged, nil))
	n := &node{logger: logger, group: &ops.Group{Logger: logger}}
	lastUsed := n.lastUsedFrom("clickhouse://keytrail:hunter2@127.0.0.1:1/no-such.name")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := n.group.Run(ctx); err != nil {
		t.Errorf("control ends: %v", err)
	}
	if _, err := lastUsed(t.Context(), nil); !errors.Is(err, events.ErrUnavailable) {
		t.Errorf("last used: %v", err)
	}
	if text := logged.String(); !strings.Contains(text, "without their last use") || strings.Contains(text, "hunter2") {
		t.Errorf("logged %s", text)
	}
}

func TestDoorsLogThroughTheRolesLogger(t *testing.T) {
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
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if v := r.Header.Values("Authorization"); len(v) > 0 {
			t.Error("the verifier saw the operator key")
		}
		w.Write([]byte(`{"allowed":true,"reason":"ok","status":200}`))
	}))
	defer door.Close()
	if out, errs, code := cliAt(t, door.URL, "kt_x", "verify", "secret"); code != 0 || !strings.HasPrefix(out, "allowed") {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
}
