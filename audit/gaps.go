package audit

import (
	"context"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/events"
)

// gapsQuery returns the statement that counts the gaps of the time that the filter
// asks for. A gap whose time is not known belongs to every time. Whose keys the
// lost uses were of is not known, so neither the reader's scope nor any other
// filter but the node narrows it: it holds nothing but counts.
func gapsQuery(f *Filter) (string, []any) {
	q := ask("use_batches", everything).and("kind IN ('gap', 'trimmed', 'unended', 'quarantined')")
	if f.From != 0 {
		q.and("(until = toDateTime64(0, 3, 'UTC') OR until >= fromUnixTimestamp64Milli({from:Int64}))", "from", int64(f.From))
	}
	if f.To != 0 {
		q.and("since < fromUnixTimestamp64Milli({to:Int64})", "to", int64(f.To))
	}
	if f.Node != "" {
		q.and("node IN ('', {node:String})", "node", string(f.Node)) // a trimmed range may hold any node's
	}
	return q.selects("count(), sumIf(count, kind = 'gap'), toUInt8(max(kind != 'gap' OR count = 0))", ""), q.args
}

// Gaps counts what the ledger lacks in the time that the filter asks for. Errors:
// ErrUnavailable.
func (s *Store) Gaps(ctx context.Context, f *Filter) (g events.Gaps, err error) {
	sql, args := gapsQuery(f)
	var unknown uint8
	err = s.each(ctx, sql, args, func(rows driver.Rows) error { return rows.Scan(&g.Count, &g.UsesLost, &unknown) })
	g.Unknown = unknown == 1
	return g, err
}
