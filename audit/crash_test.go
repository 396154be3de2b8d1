package audit

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	mrand "math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
)

// The crash test: the writer runs in a process of its own on a log that is a pure
// function of the seed; the writer, the engine or both are killed at random. At
// the end everything must be there exactly once. The truth comes from the
// generator in crash_log_test.go and the tables are read with SQL of this file: nothing
// here shares code with the writer.
//
// KEYTRAIL_CRASH_SEED replays a seed, KEYTRAIL_CRASH_ROUNDS sets the rounds.
const (
	crashRounds   = 40
	crashMessages = 4000
	crashEvents   = 2000
	crashEnvDSN   = "KEYTRAIL_TEST_CRASH_DSN"
	crashEnvSeed  = "KEYTRAIL_CRASH_SEED"
	crashEnvFast  = "KEYTRAIL_TEST_CRASH_FAST" // set for the writer that finishes
)

// crashChildMain is the writer's process.
func crashChildMain() {
	dsn := os.Getenv(crashEnvDSN)
	if dsn == "" {
		return
	}
	err := func() error {
		seed, err := strconv.ParseUint(os.Getenv(crashEnvSeed), 10, 64)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancel(context.Background())
		go func() { // no orphan: the pipe ends with the parent
			io.Copy(io.Discard, os.Stdin)
			cancel()
		}()
		logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
		var store *Store
		for store == nil {
			if store, err = Open(ctx, StoreConfig{DSN: dsn, Logger: logger}); err != nil {
				if err := pause(ctx, 20*time.Millisecond); err != nil {
					return nil
				}
			}
		}
		cfg := WriterConfig{Store: store, Log: newPureLog(seed, events.Lifecycle), Reads: newPureLog(seed, events.Reads), Uses: pureUses{seed: seed, pace: true}, Linger: 5 * time.Millisecond, MaxRows: 500, Logger: logger}
		if os.Getenv(crashEnvFast) != "" {
			cfg.Log, cfg.Reads, cfg.Uses, cfg.MaxRows = newFastLog(seed, events.Lifecycle), newFastLog(seed, events.Reads), pureUses{seed: seed}, 0
		}
		w := NewWriter(cfg)
		w.rollupEvery = 40 * time.Millisecond
		return w.Run(ctx)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, "crash child:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is one writer process.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended, and all that it said was read
	err  error         // how it ended; readable after done
}

func spawnWriter(t *testing.T, dsn string, seed uint64, env ...string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(exe), done: make(chan struct{})}
	c.cmd.Env = append(append(os.Environ(), crashEnvDSN+"="+dsn, crashEnvSeed+"="+strconv.FormatUint(seed, 10)), env...)
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.cmd.Stderr = testLog{t}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	t.Cleanup(func() {
		in.Close()
		c.cmd.Process.Kill()
		<-c.done // what it says is told to the test
	})
	return c
}

func (c *child) kill(t *testing.T) {
	t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		<-c.done
		t.Fatalf("the writer ended by itself: %v, %v", err, c.err)
	}
	<-c.done
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "ERROR") || strings.Contains(string(b), "crash child") {
		l.t.Error(string(b))
	}
	return len(b), nil
}

func TestCrash(t *testing.T) {
	rounds := crashRounds
	if s := os.Getenv("KEYTRAIL_CRASH_ROUNDS"); s != "" {
		rounds, _ = strconv.Atoi(s)
	}
	var raw [8]byte
	rand.Read(raw[:])
	seed := binary.BigEndian.Uint64(raw[:]) >> 1
	if s := os.Getenv(crashEnvSeed); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("crash test: %d rounds, replay with %s=%d\n", rounds, crashEnvSeed, seed)
	r := mrand.New(mrand.NewPCG(seed, 0))

	e := enginetest.Start(t, engine.Config{})
	o, err := clickhouse.ParseDSN(e.DSN())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := clickhouse.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	look := func() (p crashProgress) {
		p.err = conn.QueryRow(t.Context(), "SELECT (SELECT count() FROM events), (SELECT max(seq) FROM use_batches), (SELECT count() FROM uses), "+
			"(SELECT least((SELECT sum(n) FROM use_hour), (SELECT sum(n) FROM use_day_key), (SELECT sum(n) FROM use_key)))").Scan(&p.events, &p.messages, &p.uses, &p.rolled)
		return p
	}
	kills := map[string]int{}
	writer := spawnWriter(t, e.DSN(), seed)
	mark := time.Now()
	lap := func(what string) {
		t.Logf("%s: %v", what, time.Since(mark).Round(10*time.Millisecond))
		mark = time.Now()
	}
	for range rounds {
		// Most crashes hit a writer at work, some one that is starting.
		if seen := look(); r.IntN(4) > 0 {
			until := time.Now().Add(3 * time.Second)
			for now := seen; now.messages == seen.messages && now.messages < crashMessages && time.Now().Before(until); now = look() {
				time.Sleep(5 * time.Millisecond) // a real process on the other side: poll
			}
		}
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond) // the instant of the crash: the point of the test
		switch r.IntN(4) {
		case 0:
			kills["writer"]++
			writer.kill(t)
			writer = spawnWriter(t, e.DSN(), seed)
		case 1:
			kills["engine"]++
			if err := e.Kill(); err != nil {
				t.Fatal(err)
			}
		case 2:
			kills["both"]++
			if err := e.Kill(); err != nil {
				t.Fatal(err)
			}
			writer.kill(t)
			writer = spawnWriter(t, e.DSN(), seed)
		case 3: // a second writer comes while the first still runs
			kills["takeover"]++
			next := spawnWriter(t, e.DSN(), seed)
			time.Sleep(time.Duration(100+r.IntN(500)) * time.Millisecond) // long enough to do harm without the lease
			writer.kill(t)
			writer = next
		}
		revive(t, e)
	}
	lap("rounds")
	t.Logf("kills: %v; after the last: %+v of %d events, %d messages", kills, look(), crashEvents, crashMessages)
	writer.kill(t)
	writer = spawnWriter(t, e.DSN(), seed, crashEnvFast+"=1")
	deadline := time.Now().Add(2 * patience)
	for p := look(); p.err != nil || p.events != 2*crashEvents || p.messages != crashMessages || p.rolled < p.uses; p = look() {
		if time.Now().After(deadline) {
			t.Fatalf("not complete: %+v", p)
		}
		time.Sleep(20 * time.Millisecond) // a real process on the other side: poll
	}
	lap("finish")
	writer.kill(t)
	checkTruth(t, conn, seed)
	lap("check")

	// The product's own checker agrees.
	s := openStore(t, e.DSN())
	report, err := Reconcile(t.Context(), s, newFastLog(seed, events.Lifecycle), newFastLog(seed, events.Reads), pureUses{seed: seed})
	if err != nil || len(report.Mismatches) > 0 {
		t.Errorf("reconcile: %v, %v", err, report.Mismatches)
	}
}

// revive starts the engine again if it was killed. Run is started anew each time:
// its pauses would grow with every crash.
func revive(t *testing.T, e *engine.Engine) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- e.Run(ctx) }()
	err := e.WaitReady(t.Context())
	stop()
	if err := errors.Join(err, <-ran); err != nil {
		t.Fatal(err)
	}
}

// crashProgress is how far the copy is.
type crashProgress struct {
	events, messages, uses, rolled uint64
	err                            error
}

// keyTruth is what use_key must say of one key.
type keyTruth struct {
	n, denied               uint64
	first, last, lastDenied int64
	ip                      string
}

// checkTruth compares every row and every cell with the generator.
func checkTruth(t *testing.T, conn driver.Conn, seed uint64) {
	t.Helper()
	var wantRaw, wantBatches, wantTallies []string
	hours, days, keys := map[string]uint64{}, map[string]uint64{}, map[string]*keyTruth{}
	for seq := events.Seq(1); seq <= crashMessages; seq++ {
		b, stored := pureUses{seed: seed}.batch(seq)
		n := uint64(len(b.Uses)) + b.Count
		for _, c := range b.Tallies {
			n += c.Count
			wantTallies = append(wantTallies, line(seq, int64(stored), b.Node, b.Epoch, int64(c.Time), int64(c.Until), "::ffff:"+c.Block.Addr().String(), 96+c.Block.Bits(), c.Keyspace, c.Reason, c.Count))
		}
		wantBatches = append(wantBatches, line(seq, int64(stored), b.Node, b.Epoch, []string{"", "uses", "open", "close", "gap", "suppressed"}[b.Kind], b.First, n, b.Note))
		for i, u := range b.Uses {
			ip := "::"
			if u.IP.Is4() {
				ip = "::ffff:" + u.IP.String()
			} else if u.IP.IsValid() {
				ip = u.IP.String()
			}
			wantRaw = append(wantRaw, line(seq, int64(stored), b.Node, b.Epoch, b.First+uint64(i), int64(u.Time), u.Keyspace, u.Tenant, u.Key,
				u.Reason, u.Scope, u.Resource.Kind, u.Resource.ID, ip, u.Cost, u.Seq))
			ms := int64(u.Time)
			hours[fmt.Sprint(u.Keyspace, "|", u.Tenant, "|", ms-ms%3600_000, "|", u.Reason, "|n")]++
			hours[fmt.Sprint(u.Keyspace, "|", u.Tenant, "|", ms-ms%3600_000, "|", u.Reason, "|cost")] += uint64(u.Cost)
			days[fmt.Sprint(u.Keyspace, "|", u.Tenant, "|", u.Key, "|", ms-ms%86400_000, "|", u.Reason, "|n")]++
			days[fmt.Sprint(u.Keyspace, "|", u.Tenant, "|", u.Key, "|", ms-ms%86400_000, "|", u.Reason, "|cost")] += uint64(u.Cost)
			name := fmt.Sprint(u.Key, "|", u.Keyspace, "|", u.Tenant)
			k := keys[name]
			if k == nil {
				k = &keyTruth{first: math.MaxInt64, ip: "::"}
				keys[name] = k
			}
			k.n++
			if u.Reason != events.ReasonOK {
				k.denied++
				k.lastDenied = max(k.lastDenied, ms)
				continue
			}
			k.first = min(k.first, ms)
			if ms > k.last || ms == k.last && lessIP(k.ip, ip) {
				k.last, k.ip = ms, ip
			}
		}
	}
	compare(t, conn, "uses", wantRaw, `SELECT arrayStringConcat([toString(seq), toString(toUnixTimestamp64Milli(stored)), node, toString(epoch), toString(n),
		toString(toUnixTimestamp64Milli(time)), keyspace, tenant, key_id, reason, scope, resource_kind, resource_id, toString(ip), toString(cost), toString(position)], char(1)) FROM uses ORDER BY seq, n`)
	compare(t, conn, "use_batches", wantBatches, `SELECT arrayStringConcat([toString(seq), toString(toUnixTimestamp64Milli(stored)), node, toString(epoch), toString(kind),
		toString(first), toString(count), note], char(1)) FROM use_batches ORDER BY seq`)
	compare(t, conn, "use_suppressed", wantTallies, `SELECT arrayStringConcat([toString(seq), toString(toUnixTimestamp64Milli(stored)), node, toString(epoch),
		toString(toUnixTimestamp64Milli(time)), toString(toUnixTimestamp64Milli(until)), toString(block), toString(block_bits), keyspace, reason, toString(n)], char(1)) FROM use_suppressed ORDER BY seq, time`)
	var wantEvents []string
	for _, stream := range []events.Stream{events.Lifecycle, events.Reads} {
		for _, r := range newPureLog(seed, stream).records {
			wantEvents = append(wantEvents, line(stream, r.Seq, strings.ToUpper(r.Hash.String())))
		}
	}
	compare(t, conn, "events", wantEvents, `SELECT arrayStringConcat([stream, toString(seq), hex(hash)], char(1)) FROM events ORDER BY stream, seq`)
	compareCells(t, conn, "use_hour", hours, `SELECT concat(keyspace, '|', tenant, '|', toString(toUnixTimestamp64Second(hour) * 1000), '|', reason), sum(n), sum(cost) FROM use_hour GROUP BY 1`)
	compareCells(t, conn, "use_day_key", days, `SELECT concat(keyspace, '|', tenant, '|', key_id, '|', toString(toInt64(day) * 86400000), '|', reason), sum(n), sum(cost) FROM use_day_key GROUP BY 1`)

	rows, err := conn.Query(t.Context(), `SELECT concat(key_id, '|', keyspace, '|', tenant), sum(n), sum(denied), coalesce(toUnixTimestamp64Milli(min(first_used)), 9223372036854775807),
		toUnixTimestamp64Milli(max(last).1), toUnixTimestamp64Milli(max(last_denied)), toString(max(last).2) FROM use_key GROUP BY 1`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	found := 0
	for rows.Next() {
		var name string
		var k keyTruth
		if err := rows.Scan(&name, &k.n, &k.denied, &k.first, &k.last, &k.lastDenied, &k.ip); err != nil {
			t.Fatal(err)
		}
		if want := keys[name]; want == nil || k != *want {
			t.Errorf("use_key %s: %+v, want %+v", name, k, want)
		}
		found++
	}
	if rows.Err() != nil || found != len(keys) {
		t.Errorf("use_key: %d keys of %d, %v", found, len(keys), rows.Err())
	}
	t.Logf("exact: %d uses, %d cells per hour, %d per key and day, %d keys", len(wantRaw), len(hours)/2, len(days)/2, len(keys))
}

// line prints a row as the queries below do.
func line(cells ...any) string {
	out := make([]string, len(cells))
	for i, c := range cells {
		out[i] = fmt.Sprint(c)
	}
	return strings.Join(out, "\x01")
}

func lessIP(a, b string) bool { return netip.MustParseAddr(a).Compare(netip.MustParseAddr(b)) < 0 }

// each hands every row of the query to f and returns how many there were.
func each(t *testing.T, conn driver.Conn, table, sql string, f func(rows driver.Rows, n int) error) (n int) {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for ; rows.Next(); n++ {
		if err := f(rows, n); err != nil {
			t.Fatalf("%s: row %d: %v", table, n, err)
		}
	}
	if rows.Err() != nil {
		t.Fatalf("%s: %v", table, rows.Err())
	}
	return n
}

// compare reads one line a row and stops at the first that differs.
func compare(t *testing.T, conn driver.Conn, table string, want []string, sql string) {
	t.Helper()
	n := each(t, conn, table, sql, func(rows driver.Rows, n int) error {
		var got string
		if err := rows.Scan(&got); err != nil {
			return err
		}
		if n >= len(want) || got != want[n] {
			return fmt.Errorf("it is %q, want %q", got, want[min(n, len(want)-1)])
		}
		return nil
	})
	if n != len(want) {
		t.Fatalf("%s: %d rows, want %d", table, n, len(want))
	}
}

func compareCells(t *testing.T, conn driver.Conn, table string, want map[string]uint64, sql string) {
	t.Helper()
	n := each(t, conn, table, sql, func(rows driver.Rows, _ int) error {
		var cell string
		var count, cost uint64
		if err := rows.Scan(&cell, &count, &cost); err != nil {
			return err
		}
		if count != want[cell+"|n"] || cost != want[cell+"|cost"] {
			t.Errorf("%s %s: %d (cost %d), want %d (cost %d)", table, cell, count, cost, want[cell+"|n"], want[cell+"|cost"])
		}
		return nil
	})
	if 2*n != len(want) {
		t.Errorf("%s: %d cells, want %d", table, n, len(want)/2)
	}
}
