package audit

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/keytrail/keytrail/events"
)

// TestReconcileFinds damages the copy in every way and expects each to be named.
func TestReconcileFinds(t *testing.T) {
	f := newFixture(t)
	publish(t, f.log, events.UseBatch{Node: f.node, Epoch: 7, Kind: events.BatchSuppressed, First: f.n, Tallies: []events.Tally{
		{Time: f.clock.get(), Until: f.clock.get().Add(9 * time.Millisecond), Keyspace: "scribe", Reason: events.ReasonKeyUnknown, Block: netip.MustParsePrefix("198.51.100.0/24"), Count: 5},
		{Time: f.clock.get(), Until: f.clock.get(), Reason: events.ReasonKeyMissing, Block: events.AnyBlock(), Count: 6}}})
	publish(t, f.log, events.UseBatch{Node: f.node, Epoch: 7, Kind: events.BatchClose, First: f.n + 11})
	waitCopied(t, f.store, f.log)
	if r := mustReconcile(t, f.store, f.log); r.Uses != uint64(len(f.uses)) || r.Events != uint64(len(f.log.Records())) || r.Reads != uint64(len(f.log.Reads().Records())) {
		t.Fatalf("%+v", r)
	}
	if err := f.stop(); err != nil { // it would find the damage too, whenever it starts over
		t.Fatal(err)
	}
	ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"mutations_sync": 2, "lightweight_deletes_sync": 2}))
	// Each damage stays; what it adds to the report is looked for.
	seen := map[string]bool{}
	for _, c := range []struct{ sql, table, want string }{
		{"ALTER TABLE events UPDATE reason = 'nothing to see' WHERE stream = 'lifecycle' AND seq = 5", "events", "seq 5: the row was altered"},
		{"ALTER TABLE events UPDATE data = '{\"extra\":1}' WHERE stream = 'lifecycle' AND seq = 6", "events", "seq 6: the row is not what was written"},
		{"ALTER TABLE events UPDATE hash = unhex(repeat('ab', 32)) WHERE stream = 'lifecycle' AND seq = 7", "events", "seq 7: the row's hash"},
		{"ALTER TABLE events UPDATE document = concat(document, ' ') WHERE stream = 'lifecycle' AND seq = 11", "events", "seq 11: the row's document"},
		{"ALTER TABLE events UPDATE ip = toIPv6('203.0.113.9'), ip_known = true WHERE stream = 'lifecycle' AND seq = 8", "events", "seq 8: the row was altered"},
		{"ALTER TABLE events UPDATE ip = toIPv6('203.0.113.9') WHERE stream = 'lifecycle' AND seq = 9", "events", "seq 9: the row is not what was written"},
		{"DELETE FROM events WHERE stream = 'lifecycle' AND seq = 9", "events", "seq 9: the row is missing"},
		{"INSERT INTO events SELECT * FROM events WHERE stream = 'lifecycle' AND seq = 10", "events", "seq 10: the row stands there more than once"},
		{"ALTER TABLE events UPDATE user_agent = 'nobody' WHERE stream = 'reads' AND seq = 5", "events", "seq 5: log of reads: the row was altered"},
		{"DELETE FROM events WHERE stream = 'reads' AND seq = 4", "events", "seq 4: log of reads: the row is missing"},
		{"ALTER TABLE uses UPDATE reason = 'ok' WHERE seq = 3 AND n = 32", "uses", "seq 3"},
		{"DELETE FROM uses WHERE seq = 5 AND n = 100", "uses", "seq 5"},
		{"ALTER TABLE use_batches UPDATE note = 'x' WHERE seq = 7", "use_batches", "seq 7"},
		{"ALTER TABLE use_suppressed UPDATE block_bits = 112 WHERE keyspace = 'scribe'", "use_suppressed", "seq 12"},
		{"ALTER TABLE use_suppressed UPDATE n = 4 WHERE keyspace = 'scribe'", "use_suppressed", "seq 12"},
		{"INSERT INTO use_hour (keyspace, tenant, hour, reason, month, n, cost, max_seq) SELECT keyspace, tenant, hour, reason, month, 1, 1, 1 FROM use_hour LIMIT 1", "use_hour", "cell"},
		{"INSERT INTO use_day_key (keyspace, tenant, key_id, day, reason, month, n, cost, max_seq) VALUES ('ks', 't', 'k', '2026-01-31', 'ok', 202601, 1, 1, 1)", "use_day_key", "('ks','t','k'"},
		{"ALTER TABLE use_key UPDATE last_denied = last_denied + 1 WHERE key_id = ''", "use_key", "cell"},
	} {
		if err := f.store.conn.Exec(ctx, c.sql); err != nil {
			t.Fatalf("%s: %v", c.sql, err)
		}
		r, err := Reconcile(t.Context(), f.store, f.log, f.log.Reads(), f.log)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, m := range r.Mismatches {
			if s := m.String(); !seen[s] && m.Table == c.table && strings.Contains(s, c.want) {
				found = true
			}
		}
		if !found {
			t.Errorf("%s: not found in %v", c.sql, r.Mismatches)
		}
		for _, m := range r.Mismatches {
			seen[m.String()] = true
		}
	}
}

func TestEpochs(t *testing.T) {
	for name, c := range map[string]struct {
		rows     []batchRow
		replaced bool
		want     string
	}{
		"whole":           {[]batchRow{{kind: "open"}, {kind: "uses", first: 1, count: 3}, {kind: "gap", first: 4, count: 2}, {kind: "close", first: 6}}, true, ""},
		"running":         {[]batchRow{{kind: "open"}, {kind: "uses", first: 1, count: 3}}, false, ""},
		"running, a hole": {[]batchRow{{kind: "open"}, {kind: "uses", first: 4, count: 3}}, false, ""},
		"lost tail":       {[]batchRow{{kind: "open"}, {kind: "uses", first: 1, count: 3}, {kind: "gap", first: 4}}, true, ""},
		"hole":            {[]batchRow{{kind: "open"}, {kind: "uses", first: 1, count: 3}, {kind: "uses", first: 5, count: 1}, {kind: "close", first: 6}}, false, "numbers 4 to 4"},
		"hole at the end": {[]batchRow{{kind: "open"}, {kind: "uses", first: 1, count: 3}, {kind: "close", first: 6}}, false, "numbers 4 to 5"},
		"twice":           {[]batchRow{{kind: "open"}, {kind: "uses", first: 1, count: 3}, {kind: "uses", first: 3, count: 3}, {kind: "close", first: 6}}, false, "number 3 is accounted for twice"},
		"close too early": {[]batchRow{{kind: "open"}, {kind: "uses", first: 1, count: 3}, {kind: "close", first: 2}}, false, "number 2 is accounted for twice"},
		"no open":         {[]batchRow{{kind: "uses", first: 1, count: 3}, {kind: "close", first: 4}}, false, "began"},
		"no end":          {[]batchRow{{kind: "open"}, {kind: "uses", first: 1, count: 3}}, true, "nothing says how it ended after number 3"},
	} {
		r := new(Report)
		e := &epochCheck{report: r, node: "n", epoch: 1, due: 1}
		// As the query sorts them.
		for i := range c.rows {
			c.rows[i].seq = uint64(i + 1)
			e.next(&c.rows[i])
		}
		e.finish(c.replaced)
		switch {
		case c.want == "" && len(r.Mismatches) > 0, c.want != "" && (len(r.Mismatches) != 1 || !strings.Contains(r.Mismatches[0].Detail, c.want)):
			t.Errorf("%s: %v, want %q", name, r.Mismatches, c.want)
		}
	}
}
