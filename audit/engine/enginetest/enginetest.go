// Package enginetest gives tests a ClickHouse: one server per test process and a
// database per test.
//
// The server is the one named by the environment variable
// KEYTRAIL_TEST_CLICKHOUSE (a DSN); or, with KEYTRAIL_TEST_CONTAINERS=1, one in a
// container; else a local engine. The last two are started by the first test that
// asks and stopped by Main. A test gets a database of its own, so that tests need
// no order and no cleaning; the database of a failed test is kept, to be looked
// at, but for one in a container.
//
//	func TestMain(m *testing.M) { enginetest.Main(m) }
//
//	func TestTrail(t *testing.T) {
//		dsn := enginetest.Database(t)
//		…
//	}
package enginetest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/testcontainers/testcontainers-go"

	"github.com/keytrail/keytrail/audit/engine"
)

// EnvServer names the variable with the DSN of the server to test on. Its user
// must be allowed to create and drop databases.
const EnvServer = "KEYTRAIL_TEST_CLICKHOUSE"

// shared is the server of this test process.
var shared struct {
	start sync.Once
	err   error

	mu   sync.Mutex
	dsn  string                   // guarded by mu; of eng or box
	dir  string                   // guarded by mu; of eng
	eng  *engine.Engine           // guarded by mu; nil if none was started
	box  testcontainers.Container // guarded by mu; nil if none was started
	kept []string                 // guarded by mu; databases of failed tests
}

// Main is the body of TestMain of every package that uses this one: an engine's
// process starts as another run of the test binary. It does not return.
func Main(m *testing.M) {
	engine.ChildMain()
	code := m.Run()
	if err := stop(); err != nil {
		fmt.Fprintln(os.Stderr, "enginetest:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// DSN returns the server's address with user and password, starting the engine
// or the container if there is no server yet. It fails the test if that does not work: a test
// that needs ClickHouse is not skipped.
func DSN(t testing.TB) string {
	t.Helper()
	if dsn := os.Getenv(EnvServer); dsn != "" {
		return dsn
	}
	shared.start.Do(func() {
		if os.Getenv(EnvContainers) == "1" {
			shared.err = startContainer()
		} else {
			shared.err = startEngine()
		}
	})
	if shared.err != nil {
		t.Fatalf("start the tests' ClickHouse: %v", shared.err)
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	return shared.dsn
}

// Database makes a new, empty database on the server and returns the DSN to it.
// It is dropped when the test ends, unless the test failed.
func Database(t testing.TB) string {
	t.Helper()
	server := DSN(t)
	u, err := url.Parse(server)
	if err != nil {
		// Not err: it quotes the DSN.
		t.Fatalf("%s is not a URL with one host: %s", EnvServer, engine.Redact(server))
	}
	name := "test_" + strings.ToLower(rand.Text()[:12])
	u.Path = "/" + name
	if err := execute(server, "CREATE DATABASE "+name); err != nil {
		t.Fatalf("make database %s: %v", name, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("database %s is kept", name)
			keep(name)
			return
		}
		if err := execute(server, "DROP DATABASE "+name+" SYNC"); err != nil {
			t.Errorf("drop database %s: %v", name, err)
		}
	})
	return u.String()
}

// Start starts an engine that belongs to the test alone, for tests that kill it
// or need a configuration of their own; EnvServer plays no part. An empty cfg.Dir
// becomes a temporary one. The engine is closed when the test ends.
func Start(t testing.TB, cfg engine.Config) *engine.Engine {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.Progress == nil {
		cfg.Progress = os.Stderr
	}
	e, err := engine.Start(t.Context(), cfg)
	if err != nil {
		t.Fatalf("start a ClickHouse engine: %v", err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close the ClickHouse engine: %v", err)
		}
	})
	return e
}

func startEngine() error {
	dir, err := os.MkdirTemp("", "keytrail-enginetest-")
	if err != nil {
		return err
	}
	e, err := engine.Start(context.Background(), engine.Config{Dir: dir, Progress: os.Stderr})
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.dir, shared.eng, shared.dsn = dir, e, e.DSN()
	return nil
}

func keep(database string) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.kept = append(shared.kept, database)
}

// stop ends the shared server: the container, or the engine with its directory,
// unless a failed test left a database in it.
func stop() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.box != nil {
		return testcontainers.TerminateContainer(shared.box, testcontainers.StopTimeout(0))
	}
	if shared.eng == nil {
		return nil
	}
	// A pool that a test left open would hold up a gentle end; this loses nothing.
	if err := errors.Join(shared.eng.Kill(), shared.eng.Close()); err != nil {
		return err
	}
	if len(shared.kept) > 0 {
		fmt.Fprintf(os.Stderr, "enginetest: databases of failed tests: %s, in the engine directory %s\n",
			strings.Join(shared.kept, ", "), shared.dir)
		return nil
	}
	return os.RemoveAll(shared.dir)
}

func execute(dsn, sql string) error {
	options, err := clickhouse.ParseDSN(dsn)
	if err != nil {
		return fmt.Errorf("parse %s", engine.Redact(dsn))
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		return err
	}
	return errors.Join(conn.Exec(context.Background(), sql), conn.Close())
}
