package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

func TestMain(m *testing.M) {
	crashChildMain()
	enginetest.Main(m)
}

// clock is a log's clock that tests set: it spans months, so that partitions are cut.
type clock struct{ at atomic.Int64 }

func clockAt(at events.Time) *clock {
	c := new(clock)
	c.set(at)
	return c
}

func (c *clock) set(at events.Time) { c.at.Store(int64(at)) }

func (c *clock) get() events.Time { return events.Time(c.at.Load()) }

func (c *clock) now() time.Time { return c.get().Std() }

var start = events.At(time.Date(2026, 1, 31, 23, 59, 0, 0, time.UTC))

func openStore(t testing.TB, dsn string) *Store {
	t.Helper()
	s, err := Open(t.Context(), StoreConfig{DSN: dsn})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// startWriter runs a writer until the test ends or the returned function is called.
func startWriter(t testing.TB, cfg WriterConfig) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	w := NewWriter(cfg)
	go func() { done <- w.Run(ctx) }()
	stopped := false
	stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("writer: %v", err)
		}
	})
	return stop
}

// counted reports whether a counter of what the writer read shows n: exactly, unless
// an epoch began anew, which reads again what was not stored.
func counted(m *WriterMetrics, c prometheus.Counter, n float64) bool {
	got := testutil.ToFloat64(c)
	return got == n || got > n && testutil.ToFloat64(m.restarts.WithLabelValues(sourceUses)) > 0
}

// waitCopied returns when the copy, rollups included, holds everything of log.
func waitCopied(t testing.TB, s *Store, log *logtest.MemLog) {
	t.Helper()
	last, err := log.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lastRead, err := log.Reads().Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lastUse, err := log.LastUse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		var ev, rd, us, raw, r1, r2, r3 uint64
		err := s.conn.QueryRow(t.Context(), `SELECT (SELECT max(seq) FROM events WHERE stream = 'lifecycle'), (SELECT max(seq) FROM events WHERE stream = 'reads'), (SELECT max(seq) FROM use_batches), (SELECT count() FROM uses),
			(SELECT sum(n) FROM use_hour), (SELECT sum(n) FROM use_day_key), (SELECT sum(n) FROM use_key)`).Scan(&ev, &rd, &us, &raw, &r1, &r2, &r3)
		if err != nil {
			return err
		}
		if ev < uint64(last) || rd < uint64(lastRead) || us < uint64(lastUse) || r1 != raw || r2 != raw || r3 != raw {
			return fmt.Errorf("events %d of %d, reads %d of %d, use messages %d of %d, uses %d, rolled up %d, %d, %d", ev, last, rd, lastRead, us, lastUse, raw, r1, r2, r3)
		}
		return nil
	})
}

// patience bounds every wait for something that must come. How long it takes is the
// machine's affair.
const patience = 2 * time.Minute

// eventually polls f until it returns nil. It may be called when the test has ended.
func eventually(t testing.TB, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	err := f()
	for err != nil && time.Now().Before(deadline) {
		if perr := pause(context.Background(), 10*time.Millisecond); perr != nil {
			t.Fatal(errors.Join(perr, err))
		}
		err = f()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// keyID is the i-th key of the tests.
func keyID(i int) events.KeyID { return events.KeyID(ulid.ULID{1, byte(i >> 8), byte(i)}) }

func publish(t testing.TB, log *logtest.MemLog, b events.UseBatch) events.Seq {
	t.Helper()
	b.Log = log.ID()
	data, err := events.EncodeUses(&b)
	if err != nil {
		t.Fatal(err)
	}
	return publishData(t, log, b.Node, data)
}

// publishData stores data as the node's next message.
func publishData(t testing.TB, log *logtest.MemLog, node events.NodeID, data []byte) events.Seq {
	t.Helper()
	tail, _, err := log.Tail(t.Context(), node)
	if err != nil {
		t.Fatal(err)
	}
	seq, err := log.Publish(t.Context(), node, rand.Text(), tail.Seq, data)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func use(at events.Time, ks events.KeyspaceID, tenant events.TenantID, key events.KeyID, reason events.Reason, ip string) events.Use {
	u := events.Use{Time: at, Keyspace: ks, Tenant: tenant, Key: key, Reason: reason, Cost: 1, Seq: 1, Scope: "read",
		Resource: events.Resource{Kind: "project", ID: "proj_1"}}
	if ip != "" {
		u.IP = addr(ip)
	}
	return u
}
