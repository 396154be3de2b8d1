package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	schema "github.com/keytrail/keytrail/schemas/clickhouse"
)

func TestOpenRefuses(t *testing.T) {
	dsn := enginetest.Database(t)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(*url.URL)) string {
		c := *u
		f(&c)
		return c.String()
	}
	for name, c := range map[string]struct {
		dsn, want   string
		unavailable bool
	}{
		"no DSN":         {"", "cannot be read", false},
		"not a DSN":      {"clickhouse://user:hunter2@[host:9000/db", "cannot be read", false},
		"HTTP":           {"http://user:hunter2@127.0.0.1:8123/db", "HTTP protocol", false},
		"two hosts":      {"clickhouse://user:hunter2@a:9000,b:9000/db", "2 hosts", false},
		"no database":    {"clickhouse://user:hunter2@a:9000", "names no database", false},
		"bad database":   {"clickhouse://user:hunter2@a:9000/a-b", "names no database", false},
		"nobody there":   {"clickhouse://user:hunter2@127.0.0.1:1/db", "cannot be reached", true},
		"wrong password": {change(func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), "hunter2") }), "refuses the user or the password", false},
	} {
		_, err := Open(t.Context(), StoreConfig{DSN: c.dsn})
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrUnavailable) != c.unavailable || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}

	s := openStore(t, dsn)
	if err := s.conn.Exec(t.Context(), "INSERT INTO "+migrationsTable+" (version_id, is_applied) VALUES (99999, 1)"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), StoreConfig{DSN: dsn}); err == nil || !strings.Contains(err.Error(), "newer Keytrail") {
		t.Errorf("a newer database: %v", err)
	}
}

// TestAttachChangesNothing: who does not write the copy makes no database and no
// table in it, and is told who does.
func TestAttachChangesNothing(t *testing.T) {
	dsn := enginetest.Database(t)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	steps := migrationSteps(t)
	newest := steps[len(steps)-1]
	tables := func() (n uint64) {
		conn, err := clickhouse.Open(must(clickhouse.ParseDSN(dsn)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.QueryRow(t.Context(), "SELECT count() FROM system.tables WHERE database = currentDatabase()").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := Attach(t.Context(), StoreConfig{DSN: dsn}); !errors.Is(err, ErrNotMigrated) || !strings.Contains(err.Error(), fmt.Sprintf("is at step 0 of %d: start the auditor", newest)) {
		t.Errorf("an empty database: %v", err)
	}
	if n := tables(); n != 0 {
		t.Errorf("%d tables were made", n)
	}
	absent := *u
	absent.Path += "_absent"
	for range 2 { // the second finds what the first would have made
		if _, err := Attach(t.Context(), StoreConfig{DSN: absent.String()}); !errors.Is(err, ErrNotMigrated) || !strings.Contains(err.Error(), "has no database") {
			t.Errorf("no database: %v", err)
		}
	}
	wrong := *u
	wrong.User = url.UserPassword(u.User.Username(), "hunter2")
	if _, err := Attach(t.Context(), StoreConfig{DSN: wrong.String()}); err == nil || !strings.Contains(err.Error(), "refuses the user or the password") {
		t.Errorf("a wrong password: %v", err)
	}

	s := openStore(t, dsn)
	before := tables()
	attached, err := Attach(t.Context(), StoreConfig{DSN: dsn})
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	if _, err := attached.Watermark(t.Context()); err != nil || tables() != before {
		t.Errorf("attached to the auditor's tables: %v, %d tables of %d", err, tables(), before)
	}
	reader := *u
	q := reader.Query()
	q.Set("readonly", "2") // no statement that writes
	reader.RawQuery = q.Encode()
	read, err := Attach(t.Context(), StoreConfig{DSN: reader.String()})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if _, err := read.LastUsed(t.Context(), []events.KeyID{keyID(1)}); err != nil {
		t.Errorf("what control asks, as a user that may only read: %v", err)
	}
	if err := s.conn.Exec(t.Context(), "ALTER TABLE "+migrationsTable+" DELETE WHERE version_id = "+strconv.Itoa(newest)+" SETTINGS mutations_sync = 2"); err != nil {
		t.Fatal(err)
	}
	if _, err := Attach(t.Context(), StoreConfig{DSN: dsn}); !errors.Is(err, ErrNotMigrated) || !strings.Contains(err.Error(), fmt.Sprintf("is at step %d of %d", steps[len(steps)-2], newest)) {
		t.Errorf("a database of an older release: %v", err)
	}
}

// migrationSteps are the numbers of the embedded migrations, in order.
func migrationSteps(t *testing.T) (steps []int) {
	t.Helper()
	files, err := schema.Migrations.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		n, _, _ := strings.Cut(f.Name(), "_")
		steps = append(steps, must(strconv.Atoi(n)))
	}
	return steps
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestOpenAtOnce opens a database that does not exist from many sides.
func TestOpenAtOnce(t *testing.T) {
	server := openStore(t, enginetest.Database(t))
	u, err := url.Parse(enginetest.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	name := server.database + "_new"
	u.Path = "/" + name
	t.Cleanup(func() {
		if err := server.conn.Exec(context.Background(), "DROP DATABASE IF EXISTS "+name); err != nil {
			t.Error(err)
		}
	})
	g, ctx := errgroup.WithContext(t.Context())
	for range 4 {
		g.Go(func() error {
			s, err := Open(ctx, StoreConfig{DSN: u.String()})
			if err != nil {
				return err
			}
			defer s.Close()
			_, err = s.Watermark(ctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	var steps string
	want := strings.ReplaceAll(fmt.Sprint(append([]int{0}, migrationSteps(t)...)), " ", ",")
	if err := server.conn.QueryRow(t.Context(), "SELECT toString(arraySort(groupArray(version_id))) FROM "+name+"."+migrationsTable).Scan(&steps); err != nil || steps != want {
		t.Errorf("steps taken: %s, %v", steps, err)
	}
}

func TestStorePrintsNoPassword(t *testing.T) {
	s := downStore(t)
	var b bytes.Buffer
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "store", s)
	for _, text := range []string{fmt.Sprint(s), fmt.Sprintf("%#v", s), fmt.Sprintf("%+v", s), b.String()} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, "127.0.0.1:1/db") {
			t.Error(text)
		}
	}
}

// TestOneWriter starts a second writer beside the first: it waits, and takes over
// where the first ends.
func TestOneWriter(t *testing.T) {
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	cfg := WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: time.Millisecond}
	stopFirst := startWriter(t, cfg)
	ref := logtest.NewKeyRef("scribe", "acme")
	logtest.Append(t, log, ref.Aggregate(), logtest.Created("s"))
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	waitCopied(t, s, log)
	startWriter(t, cfg)
	for i := range 20 {
		publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: uint64(1 + i), Uses: []events.Use{use(start, "scribe", "acme", ref.Key, events.ReasonOK, "")}})
		if i == 10 {
			if err := stopFirst(); err != nil {
				t.Fatal(err)
			}
		}
	}
	waitCopied(t, s, log)
	mustReconcile(t, s, log)
}

func mustReconcile(t testing.TB, s *Store, log *logtest.MemLog) *Report {
	t.Helper()
	r, err := Reconcile(t.Context(), s, log, log.Reads(), log)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range r.Mismatches {
		t.Error(m)
	}
	return r
}

// TestOffsetsAreCheap: how far a table is comes out of the parts' metadata, however
// many rows there are.
func TestOffsetsAreCheap(t *testing.T) {
	f := newFixture(t)
	for _, table := range []string{"events", "uses", "use_batches", "use_suppressed"} {
		plan := ""
		err := f.store.each(t.Context(), "EXPLAIN SELECT max(seq) FROM "+table, nil, func(rows driver.Rows) error {
			var line string
			err := rows.Scan(&line)
			plan += line + "\n"
			return err
		})
		if err != nil || table != "use_suppressed" && !strings.Contains(plan, "minmax_count") {
			t.Errorf("%s: %v\n%s", table, err, plan)
		}
	}
}
