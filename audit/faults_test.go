package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/internal/api"
)

// Each class of ClickHouse's codes says what it is, whichever driver brings it, and
// only what is so says that ClickHouse cannot be reached.
func TestFaultsSayWhatTheyAre(t *testing.T) {
	for _, c := range []struct {
		codes  []int
		later  bool
		reason string
	}{
		{[]int{198, 209, 210, 279}, true, "cannot be reached"},
		{[]int{159, 160}, true, "took longer than its time limit"},
		{[]int{202, 203, 473, 700, 745}, true, "has too much to do"},
		{[]int{216}, true, "still runs an earlier query"},
		{[]int{236, 394}, true, "cancelled the query"},
		{[]int{241, 173}, true, "has no memory left"},
		{[]int{252}, true, "too many parts"},
		{[]int{75, 243}, true, "cannot write to its disk"},
		{[]int{225, 242, 999}, true, "read-only now"},
		{[]int{201}, true, "quota is used up"},
		{[]int{158, 307, 396}, false, "limit of the DSN's user"},
		{[]int{192, 193, 194, 195, 516}, false, "refuses the user or the password"},
		{[]int{164, 497}, false, "lacks a right"},
		{[]int{16, 47, 60, 81}, false, "lacks tables or columns"},
	} {
		for _, code := range c.codes {
			for _, answer := range []error{
				&clickhouse.Exception{Code: int32(code), Name: "DB::Exception", Message: "a value of a user"},
				&ch.Exception{Code: proto.Error(code), Name: "DB::Exception", Message: "a value of a user"},
			} {
				err := new(Store).fault(t.Context(), "ask", fmt.Errorf("wrapped: %w", answer))
				var f *Fault
				if !errors.As(err, &f) || !strings.Contains(f.Reason, c.reason) || errors.Is(err, ErrUnavailable) != c.later || !strings.Contains(err.Error(), "ask: ") {
					t.Errorf("code %d of %T: %v (later: %v), want %q (later: %v)", code, answer, err, errors.Is(err, ErrUnavailable), c.reason, c.later)
					continue
				}
				if strings.Contains(f.Reason, "cannot be reached") != (c.reason == "cannot be reached") {
					t.Errorf("code %d: %q", code, f.Reason)
				}
				p := new(Handler).problem(err)
				var problem *api.Problem
				if !errors.As(p, &problem) || problem.Status != http.StatusServiceUnavailable || !strings.Contains(problem.Detail, c.reason) ||
					strings.Contains(problem.Detail, "a value of a user") || (problem.RetryAfter > 0) != c.later {
					t.Errorf("code %d is answered with %+v", code, p)
				}
			}
		}
	}

	// No answer of ClickHouse's at all, our own pool, and a fault of ours.
	for _, c := range []struct {
		err    error
		later  bool
		reason string
	}{
		{io.ErrUnexpectedEOF, true, "cannot be reached"},
		{clickhouse.ErrAcquireConnTimeout, true, "has too much to do"},
		{&clickhouse.Exception{Code: 62, Message: "Syntax error"}, false, ""},
	} {
		err := new(Store).fault(t.Context(), "ask", c.err)
		var f *Fault
		if errors.As(err, &f) != (c.reason != "") || f != nil && !strings.Contains(f.Reason, c.reason) || errors.Is(err, ErrUnavailable) != c.later || !errors.Is(err, c.err) {
			t.Errorf("%v: %v", c.err, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := new(Store).fault(ended, "ask", io.EOF); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("of a caller that left: %v", err)
	}
}

// What ClickHouse itself answers.
func TestFaultsOfARealClickHouse(t *testing.T) {
	dsn := enginetest.Database(t)
	s := openStore(t, dsn)
	ask := func(sql string) error { return s.fault(t.Context(), "ask", s.conn.Exec(t.Context(), sql)) }

	running, stop := context.WithCancel(t.Context())
	defer stop()
	first := make(chan error, 1)
	go func() {
		// It runs until it is killed.
		first <- s.conn.Exec(clickhouse.Context(running, clickhouse.WithQueryID("one-name")), "SELECT sum(sleepEachRow(0.1)) FROM numbers(100000) SETTINGS max_block_size = 1")
	}()
	eventually(t, func() error {
		var n uint64
		if err := s.conn.QueryRow(t.Context(), "SELECT count() FROM system.processes WHERE query_id = 'one-name'").Scan(&n); err != nil || n == 0 {
			return fmt.Errorf("%d queries of the name, %v", n, err)
		}
		return nil
	})
	again := s.fault(t.Context(), "ask", s.conn.Exec(clickhouse.Context(t.Context(), clickhouse.WithQueryID("one-name")), "SELECT 1"))

	killed := make(chan error, 1)
	go func() { killed <- s.fault(t.Context(), "ask", <-first) }()
	if err := s.conn.Exec(t.Context(), "KILL QUERY WHERE query_id = 'one-name' SYNC"); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = "127.0.0.1:1"
	nobody, err := open(t.Context(), StoreConfig{DSN: u.String()}, func(*Store) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer nobody.Close()

	for _, c := range []struct {
		name   string
		err    error
		later  bool
		reason string
	}{
		{"memory", ask("SELECT uniqExact(number) FROM numbers(1000000) SETTINGS max_memory_usage = 1000000"), true, "has no memory left"},
		{"time", ask("SELECT sum(sleepEachRow(0.1)) FROM numbers(100) SETTINGS max_block_size = 1, max_execution_time = 0.2"), true, "took longer than its time limit"},
		{"rows", ask("SELECT count() FROM numbers(1000) WHERE number > 3 SETTINGS max_rows_to_read = 10"), false, "limit of the DSN's user"},
		{"name", again, true, "still runs an earlier query"},
		{"killed", <-killed, true, "cancelled the query"},
		{"read-only", ask("INSERT INTO log_identity SETTINGS readonly = 1 VALUES ('x', now64(3))"), false, "lacks a right"},
		{"table", ask("SELECT * FROM no_such_table"), false, "lacks tables or columns"},
		{"column", ask("SELECT no_such_column FROM uses"), false, "lacks tables or columns"},
		{"database", ask("SELECT * FROM no_such_database.uses"), false, "lacks tables or columns"},
		{"nobody there", nobody.fault(t.Context(), "ask", nobody.conn.Exec(t.Context(), "SELECT 1")), true, "cannot be reached"},
	} {
		var f *Fault
		if !errors.As(c.err, &f) || !strings.Contains(f.Reason, c.reason) || errors.Is(c.err, ErrUnavailable) != c.later {
			t.Errorf("%s: %v, want %q (later: %v)", c.name, c.err, c.reason, c.later)
		}
	}
}
