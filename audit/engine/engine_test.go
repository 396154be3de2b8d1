//go:build !noengine && linux && amd64

package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/audit/engine/enginetest"
)

func TestMain(m *testing.M) {
	engine.ChildMain()
	if dir := os.Getenv(envParent); dir != "" {
		beParent(dir)
	}
	if config := os.Getenv(envStranger); config != "" {
		beStranger(config)
		return
	}
	enginetest.Main(m)
}

// journal is a log that can be read while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// start starts an engine that belongs to the test, and checks when the test ends
// that no line of its log, debug included, held the password (invariant 2).
func start(t *testing.T, cfg engine.Config) (*engine.Engine, *journal) {
	t.Helper()
	log := new(journal)
	cfg.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	e := enginetest.Start(t, cfg)
	t.Cleanup(func() {
		log := log.String()
		if strings.Contains(log, password(t, e)) {
			t.Errorf("the log holds the password:\n%s", log)
		}
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	return e, log
}

func password(t testing.TB, e *engine.Engine) string {
	t.Helper()
	u, err := url.Parse(e.DSN())
	if err != nil {
		t.Fatal("DSN is not a URL")
	}
	password, _ := u.User.Password()
	if len(password) < 20 {
		t.Fatal("the password is too short to be random")
	}
	return password
}

// options returns the client options for the engine, to be changed by the test.
func options(t testing.TB, e *engine.Engine) *clickhouse.Options {
	t.Helper()
	o, err := clickhouse.ParseDSN(e.DSN())
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// open opens a client, closed with the test, before the engine.
func open(t testing.TB, o *clickhouse.Options) driver.Conn {
	t.Helper()
	conn, err := clickhouse.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return conn
}

// value returns the one value that a query yields.
func value[T any](t testing.TB, conn driver.Conn, sql string) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func execute(t testing.TB, conn driver.Conn, sql string) {
	t.Helper()
	if err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// code returns ClickHouse's error code, 0 for no error.
func code(t testing.TB, err error) int32 {
	t.Helper()
	var exception *clickhouse.Exception
	if err != nil && !errors.As(err, &exception) {
		t.Fatalf("not an error of ClickHouse's: %v", err)
	}
	if err == nil {
		return 0
	}
	return exception.Code
}

func TestStart(t *testing.T) {
	const limit = 400 << 20
	e, _ := start(t, engine.Config{MemoryLimit: limit, MarkCache: 8 << 20})

	native := open(t, options(t, e))
	overHTTP, err := clickhouse.ParseDSN(strings.NewReplacer("clickhouse://", "http://", options(t, e).Addr[0], e.HTTPAddr()).Replace(e.DSN()))
	if err != nil {
		t.Fatal(err)
	}
	for name, conn := range map[string]driver.Conn{"native": native, "HTTP": open(t, overHTTP)} {
		if got := value[string](t, conn, "SELECT currentDatabase()"); got != "keytrail" {
			t.Errorf("%s: the database is %q, want keytrail", name, got)
		}
	}
	if err := engine.CheckVersion(value[string](t, native, "SELECT version()")); err != nil {
		t.Error(err)
	}
	if got := value[string](t, native, "SELECT timezone()"); got != "UTC" {
		t.Errorf("the time zone is %s, want UTC", got)
	}
	for _, setting := range []struct{ sql, want string }{
		{"SELECT value FROM system.server_settings WHERE name = 'max_server_memory_usage'", fmt.Sprint(limit)},
		{"SELECT value FROM system.server_settings WHERE name = 'mark_cache_size'", fmt.Sprint(8 << 20)},
		{"SELECT value FROM system.server_settings WHERE name = 'text_index_postings_cache_size'", fmt.Sprint(8 << 20)},
		{"SELECT value FROM system.settings WHERE name = 'async_insert'", "0"},
	} {
		if got := value[string](t, native, setting.sql); got != setting.want {
			t.Errorf("%s: %s, want %s", setting.sql, got, setting.want)
		}
	}

	// Over the cap the query fails and the engine stays.
	pid := e.PID()
	err = native.Exec(t.Context(), "SELECT uniqExact(number) FROM numbers(100000000) SETTINGS max_memory_usage = 0, max_threads = 2")
	if got := code(t, err); got != 241 || !strings.Contains(err.Error(), "(total)") {
		t.Errorf("a query over the engine's memory limit: %v, want code 241 (total)", err)
	}
	if got := value[uint8](t, native, "SELECT toUInt8(1)"); got != 1 || e.PID() != pid {
		t.Errorf("after it: answer %d, pid %d, want 1 and %d", got, e.PID(), pid)
	}
}

func TestPrintsWithoutPassword(t *testing.T) {
	t.Setenv("KEYTRAIL_ROOT_KEY", "a secret of the parent")
	e, log := start(t, engine.Config{})
	logger := slog.New(slog.NewJSONHandler(log, nil))
	logger.Info("engine", "engine", e)
	shown := log.String() + fmt.Sprintf("%v %+v %#v %s", e, e, e, e)
	for _, file := range []string{"cmdline", "environ"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", e.PID(), file))
		if err != nil {
			t.Fatal(err)
		}
		shown += string(b)
	}
	if strings.Contains(shown, password(t, e)) || strings.Contains(shown, "a secret of the parent") {
		t.Errorf("a secret shows in %s", shown)
	}
	if want := "clickhouse://keytrail:xxxxx@127.0.0.1:"; !strings.Contains(shown, want) {
		t.Errorf("%s does not show %s", shown, want)
	}
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	first, _ := start(t, engine.Config{Dir: dir})
	conn := open(t, options(t, first))
	execute(t, conn, "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n")
	execute(t, conn, "INSERT INTO kept SELECT number FROM numbers(1000)")

	_, err := engine.Start(t.Context(), engine.Config{Dir: dir})
	if !errors.Is(err, engine.ErrDirInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second engine in one directory: %v, want ErrDirInUse that names %s", err, dir)
	}
	if got := value[uint64](t, conn, "SELECT count() FROM kept"); got != 1000 {
		t.Errorf("the first engine has %d rows after it, want 1000", got)
	}

	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("close took %v", time.Since(began))
	if first.PID() != 0 {
		t.Error("the engine lives after Close")
	}
	if err := first.WaitReady(t.Context()); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("WaitReady after Close: %v, want ErrClosed", err)
	}

	for _, name := range []string{"password", "users.xml"} {
		info, err := os.Stat(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", name, info.Mode())
		}
	}

	second, _ := start(t, engine.Config{Dir: dir})
	if password(t, first) != password(t, second) {
		t.Error("the second start made another password")
	}
	if got := value[uint64](t, open(t, options(t, second)), "SELECT count() FROM kept"); got != 1000 {
		t.Errorf("the second start has %d rows, want 1000", got)
	}
}

func TestConfigReportsAllFaults(t *testing.T) {
	_, err := engine.Start(t.Context(), engine.Config{MemoryLimit: engine.MinMemoryLimit - 1, MarkCache: -1})
	for _, want := range []string{"Dir", "MemoryLimit", "MarkCache"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not name %s", err, want)
		}
	}
}

func TestStartIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if _, err := engine.Start(ctx, engine.Config{Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with a cancelled context: %v", err)
	}
	start(t, engine.Config{Dir: dir}) // nothing was left behind that holds it
}
