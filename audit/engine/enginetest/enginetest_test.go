//go:build !noengine && linux && amd64

package enginetest

import (
	"context"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
)

func TestMain(m *testing.M) { Main(m) }

// outcome is a test whose end and result the real test decides.
type outcome struct {
	testing.TB
	failed  bool
	cleanup []func()
}

func (o *outcome) Failed() bool        { return o.failed }
func (o *outcome) Cleanup(f func())    { o.cleanup = append(o.cleanup, f) }
func (o *outcome) Logf(string, ...any) {}

func (o *outcome) end() {
	for _, f := range o.cleanup {
		f()
	}
}

// exists asks whether the DSN's database is there; unknown ones answer code 81.
func exists(t *testing.T, dsn string) bool {
	t.Helper()
	options, err := clickhouse.ParseDSN(dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := options.Auth.Database
	options.Auth.Database = ""
	conn, err := clickhouse.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var n uint64
	if err := conn.QueryRow(context.Background(), "SELECT count() FROM system.databases WHERE name = ?", name).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n == 1
}

func TestDatabase(t *testing.T) {
	passed, failed := &outcome{TB: t}, &outcome{TB: t, failed: true}
	dropped, kept := Database(passed), Database(failed)
	if dropped == kept {
		t.Fatal("two tests got one database")
	}
	if !exists(t, dropped) || !exists(t, kept) {
		t.Error("a database was not made")
	}
	if err := execute(kept, "CREATE TABLE only_here (n UInt8) ENGINE = Memory"); err != nil {
		t.Error(err)
	}
	if err := execute(dropped, "SELECT * FROM only_here"); err == nil {
		t.Error("one test sees the table of another")
	}
	passed.end()
	failed.end()
	if exists(t, dropped) {
		t.Error("the database of a passed test is still there")
	}
	if !exists(t, kept) {
		t.Error("the database of a failed test is gone")
	}

	// This test did not fail: leave nothing.
	if err := execute(DSN(t), "DROP DATABASE "+shared.kept[0]+" SYNC"); err != nil {
		t.Error(err)
	}
	shared.kept = nil
}
