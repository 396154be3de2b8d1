package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
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
	if err := server.conn.QueryRow(t.Context(), "SELECT toString(arraySort(groupArray(version_id))) FROM "+name+"."+migrationsTable).Scan(&steps); err != nil || steps != "[0,1,2,3]" {
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
	cfg := WriterConfig{Store: s, Log: log, Uses: log, Linger: time.Millisecond}
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
	r, err := Reconcile(t.Context(), s, log, log)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range r.Mismatches {
		t.Error(m)
	}
	return r
}
