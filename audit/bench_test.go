package audit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

const (
	benchMessages = 1000
	benchPer      = 1000 // uses a message
	benchKeys     = 20_000
	benchBatch    = 100_000 // rows of an insert, in both
)

// BenchmarkUses measures, in one run, the way of uses from encoded messages to
// ClickHouse, rollups included, beside a bare clickhouse-go loop that inserts the
// same rows by column from ready slices. goal: ratio >= 0.7.
func BenchmarkUses(b *testing.B) {
	log := logtest.NewMemLog()
	at := start
	log.SetClock(func() time.Time { return at.Std() })
	r := rand.New(rand.NewPCG(1, 2))
	id := log.ID()
	var bytes int
	var all []UseRow
	for m := range benchMessages {
		batch := events.UseBatch{Log: id, Node: "node-1", Epoch: 1, Kind: events.BatchUses, First: uint64(1 + m*benchPer)}
		for i := range benchPer {
			k := r.IntN(benchKeys)
			u := events.Use{Time: at.Add(time.Duration(i) * time.Microsecond * 100), Keyspace: "scribe", Tenant: events.TenantID(fmt.Sprint("tenant-", k%100)), Key: keyID(k),
				Reason: events.ReasonOK, Scope: "read", IP: netip.AddrFrom4([4]byte{203, 0, byte(k >> 8), byte(k)}), Cost: 1, Seq: 1000}
			if r.IntN(20) == 0 {
				u.Reason, u.RequestID = events.ReasonScopeMissing, events.NewRequestID()
			}
			batch.Uses = append(batch.Uses, u)
		}
		data := encode(b, batch)
		bytes += len(data)
		seq := publishData(b, log, batch.Node, data)
		for i, u := range batch.Uses {
			all = append(all, UseRow{Use: u, ID: events.UseID{Node: batch.Node, Epoch: 1, N: batch.First + uint64(i)}, Seq: seq, Stored: at})
		}
		at = at.Add(100 * time.Millisecond)
	}
	total := float64(len(all))
	b.ReportAllocs()
	b.ResetTimer()
	var raw, full, bare time.Duration
	for range b.N {
		d1, d2 := benchWriter(b, log)
		raw, full, bare = raw+d1, full+d2, bare+benchBare(b, all)
	}
	n := float64(b.N)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(total*n/raw.Seconds(), "raw-rows/s")
	b.ReportMetric(total*n/full.Seconds(), "rows/s")
	b.ReportMetric(total*n/bare.Seconds(), "bare-rows/s")
	b.ReportMetric(bare.Seconds()/full.Seconds(), "ratio")
	b.ReportMetric(float64(bytes)/total, "B/use-in-stream")
}

// gatedUses says when it is first asked, and answers when it is opened.
type gatedUses struct {
	events.UseSource
	waiting, open chan struct{}
}

func (g gatedUses) ReadUses(ctx context.Context, after events.Seq, max int) ([]events.UseMessage, error) {
	if after == 0 {
		close(g.waiting)
		<-g.open
	}
	return g.UseSource.ReadUses(ctx, after, max)
}

// benchWriter copies everything into a fresh database. It returns when the raw
// rows were there and when the rollups were.
func benchWriter(b *testing.B, log *logtest.MemLog) (raw, full time.Duration) {
	s := openStore(b, enginetest.Database(b))
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	gate := gatedUses{log, make(chan struct{}), make(chan struct{})}
	w := NewWriter(WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: gate, MaxRows: benchBatch})
	go func() { done <- w.Run(ctx) }()
	<-gate.waiting // the writer has started; what counts is the flow
	began := time.Now()
	close(gate.open)
	for full == 0 {
		table, column := "use_batches", "seq"
		if raw > 0 {
			table, column = "use_key", "max_seq" // the last that is rolled up
		}
		var last uint64
		if err := s.conn.QueryRow(ctx, "SELECT max("+column+") FROM "+table).Scan(&last); err != nil {
			b.Fatal(err)
		}
		switch {
		case last < benchMessages:
			time.Sleep(20 * time.Millisecond) // a real server on the other side: poll
		case raw == 0:
			raw = time.Since(began)
		default:
			full = time.Since(began)
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	var n, sum uint64
	if err := s.conn.QueryRow(b.Context(), "SELECT count(), (SELECT sum(n) FROM use_day_key) FROM uses").Scan(&n, &sum); err != nil || n != benchMessages*benchPer || sum != n {
		b.Fatal(n, sum, err)
	}
	return raw, full
}

// benchBare inserts the same rows, column by column, as plainly as clickhouse-go can.
func benchBare(b *testing.B, all []UseRow) time.Duration {
	s := openStore(b, enginetest.Database(b))
	type columns struct {
		seq, n, position                                                   []uint64
		stored, at                                                         []time.Time
		node, keyspace, tenant, key, reason, scope, resourceKind, resource []string
		endpoint, request                                                  []string
		epoch                                                              []int64
		ip                                                                 []netip.Addr
		known                                                              []bool
		cost                                                               []uint32
	}
	var batches []columns
	for rows := all; len(rows) > 0; {
		n := min(benchBatch, len(rows))
		var c columns
		for _, u := range rows[:n] {
			c.seq, c.n, c.position = append(c.seq, uint64(u.Seq)), append(c.n, u.ID.N), append(c.position, uint64(u.Use.Seq))
			c.stored, c.at, c.epoch = append(c.stored, u.Stored.Std()), append(c.at, u.Time.Std()), append(c.epoch, u.ID.Epoch)
			c.node, c.keyspace, c.tenant, c.key = append(c.node, string(u.ID.Node)), append(c.keyspace, string(u.Keyspace)), append(c.tenant, string(u.Tenant)), append(c.key, u.Key.String())
			c.reason, c.scope, c.ip, c.cost = append(c.reason, u.Reason.String()), append(c.scope, u.Scope), append(c.ip, u.IP), append(c.cost, u.Cost)
			c.resourceKind, c.resource = append(c.resourceKind, u.Resource.Kind), append(c.resource, u.Resource.ID)
			c.known = append(c.known, u.IP.IsValid())
			c.endpoint, c.request = append(c.endpoint, u.Endpoint), append(c.request, u.RequestID.String())
		}
		batches = append(batches, c)
		rows = rows[n:]
	}
	ctx := clickhouse.Context(b.Context(), clickhouse.WithSettings(clickhouse.Settings{"async_insert": 0}))
	began := time.Now()
	for _, c := range batches {
		batch, err := s.conn.PrepareBatch(ctx, "INSERT INTO uses (seq, stored, node, epoch, n, time, keyspace, tenant, key_id, reason, scope, resource_kind, resource_id, ip, ip_known, cost, position, endpoint, request_id)")
		if err != nil {
			b.Fatal(err)
		}
		for i, col := range []any{c.seq, c.stored, c.node, c.epoch, c.n, c.at, c.keyspace, c.tenant, c.key, c.reason, c.scope, c.resourceKind, c.resource, c.ip, c.known, c.cost, c.position, c.endpoint, c.request} {
			if err := batch.Column(i).Append(col); err != nil {
				b.Fatal(err)
			}
		}
		if err := batch.Send(); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(began)
}
