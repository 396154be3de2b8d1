package audit

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// UsageCell counts the uses of one hour or day with one reason.
type UsageCell struct {
	At     events.Time // start of the hour or day, UTC
	Reason events.Reason
	Count  uint64
}

// usageSource is one table that counts come from.
type usageSource struct {
	table, ms, n string      // ms is the instant of a row, in milliseconds
	from, to     events.Time // To is excluded; 0 = no bound
}

const msOfTime = "toUnixTimestamp64Milli(time)"

// usageSources returns where the counts of the time that the filter asks for come
// from: rollups for the cells that lie in it whole, and the uses themselves for the
// edges that From and To cut. A key's hours come from its uses alone: a rollup per
// key and hour would have nearly as many cells as uses.
func usageSources(f *Filter) []usageSource {
	raw := usageSource{"uses", msOfTime, "1", f.From, f.To}
	rollup := usageSource{"use_hour", "toUnixTimestamp64Milli(toDateTime64(hour, 3, 'UTC'))", "n", f.From, f.To}
	switch {
	case !f.Key.IsZero() && !f.PerDay:
		return []usageSource{raw}
	case !f.Key.IsZero():
		rollup.table, rollup.ms = "use_day_key", "toUnixTimestamp64Milli(toDateTime64(day, 3, 'UTC'))"
	}
	out := []usageSource{rollup}
	for _, edge := range usageEdges(f) {
		raw.from, raw.to = edge.from, edge.to
		out = append(out, raw)
	}
	w := rollupWidth(f)
	out[0].from, out[0].to = (f.From+w-1)/w*w, f.To/w*w
	if f.Key.IsZero() {
		out = append(out, usageSource{suppressed, msOfTime, "n", f.From, f.To})
	}
	return out
}

// usageEdge is a part of a cell that From or To cuts.
type usageEdge struct {
	field    string
	from, to events.Time
}

func usageEdges(f *Filter) (out []usageEdge) {
	w := rollupWidth(f)
	first, last := (f.From+w-1)/w*w, f.To/w*w // of the whole cells
	if f.From != 0 && f.To != 0 && first > last {
		return []usageEdge{{"from", f.From, f.To}} // both in one cell
	}
	if f.From != first {
		out = append(out, usageEdge{"from", f.From, first})
	}
	if f.To != last {
		out = append(out, usageEdge{"to", last, f.To})
	}
	return out
}

// rollupWidth is how long a cell of the rollup is, in milliseconds.
func rollupWidth(f *Filter) events.Time {
	if !f.Key.IsZero() {
		return events.Time(24 * time.Hour / time.Millisecond)
	}
	return events.Time(time.Hour / time.Millisecond)
}

// usagePage returns the statement of one page of counts, newest cell first.
func usagePage(scope Scope, f *Filter, p Page) (string, []any) {
	width := time.Hour.Milliseconds()
	if f.PerDay {
		width *= 24
	}
	var parts []string
	var args []any
	for i, src := range usageSources(f) {
		q := ask(src.table, scope).filtered(f)
		if i > 0 {
			q.args = nil // the same as of the first
		}
		bound := func(cond, name string, t events.Time) {
			if t != 0 {
				name = fmt.Sprint(name, i)
				if src.ms == msOfTime { // as an index can use it
					q.and("time"+cond+"fromUnixTimestamp64Milli({"+name+":Int64})", name, int64(t))
				} else {
					q.and(src.ms+cond+"{"+name+":Int64}", name, int64(t))
				}
			}
		}
		bound(" >= ", "from", src.from)
		bound(" < ", "to", src.to)
		parts = append(parts, q.selects(src.ms+" AS ms, reason, toUInt64("+src.n+") AS n", ""))
		args = append(args, q.args...)
	}
	sql := fmt.Sprintf("SELECT intDiv(ms, %d) * %[1]d AS at, reason, sum(n) AS count FROM (%s) GROUP BY at, reason", width, strings.Join(parts, " UNION ALL "))
	if c := p.After; c != nil {
		sql += " HAVING at < {after_at:Int64} OR at = {after_at:Int64} AND reason > {after_reason:String}"
		args = append(args, named("after_at", int64(c.time)), named("after_reason", events.Reason(c.n).String()))
	}
	return sql + fmt.Sprintf(" ORDER BY at DESC, reason LIMIT %d", p.Limit+1), args
}

// edgesAreKept refuses a question that cuts a cell of which the uses are gone: old
// months of uses may have been dropped, and the rollups outlive them.
func (s *Store) edgesAreKept(ctx context.Context, scope Scope, f *Filter) error {
	if !f.Key.IsZero() && !f.PerDay {
		return nil
	}
	edges := usageEdges(f)
	if len(edges) == 0 {
		return nil
	}
	oldest := int64(math.MaxInt64)
	err := s.each(ctx, "SELECT toUnixTimestamp64Milli(minOrNull(stored)) FROM uses", nil, func(rows driver.Rows) error {
		var ms *int64
		err := rows.Scan(&ms)
		if ms != nil {
			oldest = *ms
		}
		return err
	})
	if err != nil {
		return err
	}
	w := rollupWidth(f)
	rollup := usageSources(f)[0]
	var faults input.FieldErrors
	for _, edge := range edges {
		cell := edge.from / w * w
		if int64(cell) >= oldest {
			continue
		}
		counts := func(src usageSource) (n uint64, err error) {
			q := ask(src.table, scope).filtered(f).and(src.ms+" >= {from:Int64} AND "+src.ms+" < {to:Int64}", "from", int64(cell), "to", int64(cell+w))
			err = s.each(ctx, q.selects("toUInt64(sum("+src.n+"))", ""), q.args, func(rows driver.Rows) error { return rows.Scan(&n) })
			return n, err
		}
		rolled, err := counts(rollup)
		if err != nil {
			return err
		}
		kept, err := counts(usageSource{table: "uses", ms: msOfTime, n: "1"})
		if err != nil {
			return err
		}
		if kept < rolled {
			faults.Add(edge.field, "invalid", fmt.Sprintf("want the start of an hour of UTC (of a day, for one key per day): the uses of %s are no longer kept one by one", cell))
		}
	}
	return faults.OrNil()
}

// Usage returns one page of counts, newest first, and where the next begins (nil
// on the last). Errors: ErrUnavailable; input.FieldErrors when an hour that From or
// To cuts is no longer kept use by use.
func (s *Store) Usage(ctx context.Context, scope Scope, f *Filter, p Page) ([]UsageCell, *Cursor, error) {
	if err := s.edgesAreKept(ctx, scope, f); err != nil {
		return nil, nil, err
	}
	sql, args := usagePage(scope, f, p)
	var out []UsageCell
	err := s.each(ctx, sql, args, func(rows driver.Rows) error {
		var at int64
		var reason string
		var c UsageCell
		if err := rows.Scan(&at, &reason, &c.Count); err != nil {
			return err
		}
		c.At = events.Time(at)
		var err error
		c.Reason, err = events.ParseReason(reason)
		out = append(out, c)
		return err
	})
	if err != nil || len(out) <= p.Limit {
		return out, nil, err
	}
	out = out[:p.Limit]
	c := &out[p.Limit-1]
	return out, &Cursor{time: c.At, n: uint64(c.Reason)}, nil
}
