package audit

import (
	"context"
	"fmt"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/events"
)

// rollupChecks says what the cells of each rollup must be: by key, what they add
// up to, once from the rollup and once from the raw rows, with expressions other
// than the writer's where there are others.
var rollupChecks = []struct{ table, key, sums, rawKey, rawSums string }{
	{"use_hour",
		"keyspace, tenant, '' AS key_id, toInt64(toUnixTimestamp64Second(hour)) AS cell, toString(reason) AS r, toUInt64(month) AS m", "(sum(n), sum(cost))",
		"keyspace, tenant, '' AS key_id, toInt64(floor(toUnixTimestamp64Milli(time) / 3600000)) * 3600 AS cell, toString(reason) AS r, " + rawMonth, "(sum(1), sum(cost))"},
	{"use_day_key",
		"keyspace, tenant, key_id, toInt64(day) AS cell, toString(reason) AS r, toUInt64(month) AS m", "(sum(n), sum(cost))",
		"keyspace, tenant, key_id, toInt64(floor(toUnixTimestamp64Milli(time) / 86400000)) AS cell, toString(reason) AS r, " + rawMonth, "(sum(1), sum(cost))"},
	{"use_key",
		"keyspace, tenant, key_id, toInt64(0) AS cell, '' AS r, toUInt64(0) AS m", "(sum(n), sum(denied), min(first_used), max(last), max(last_denied))",
		"keyspace, tenant, key_id, toInt64(0) AS cell, '' AS r, toUInt64(0) AS m",
		"(sum(1), sum(toUInt64(not allowed)), minOrNullIf(time, allowed), maxIf((time, ip), allowed), maxIf(time, not allowed))"},
}

const rawMonth = "toUInt64(formatDateTime(stored, '%Y%m')) AS m"

// checkRollups compares each cell with the raw rows. A cell that has grown past
// the offset read first is left for the next time; no other can have changed.
func (r *Report) checkRollups(ctx context.Context, s *Store) error {
	var firstRaw, firstMessage uint64
	var months uint32
	err := s.conn.QueryRow(ctx, "SELECT (SELECT min(seq) FROM uses), (SELECT min(seq) FROM use_batches WHERE kind = 'uses'), (SELECT toUInt32(min(toYYYYMM(stored))) FROM uses)").
		Scan(&firstRaw, &firstMessage, &months)
	if err != nil {
		return s.fault(ctx, "read where the raw rows begin", err)
	}
	for _, c := range rollupChecks {
		since := "1"
		if firstRaw > firstMessage { // old months of raw rows were dropped; rollups outlive them
			if c.table == "use_key" {
				continue
			}
			since = fmt.Sprintf("month >= %d", months)
		}
		var offset uint64
		if err := s.conn.QueryRow(ctx, "SELECT max(max_seq) FROM "+c.table).Scan(&offset); err != nil {
			return s.fault(ctx, "read how far "+c.table+" is", err)
		}
		sql := fmt.Sprintf(`SELECT toString((keyspace, tenant, key_id, cell, r, m)) AS at, toString(maxIf(sums, side = 1)), toString(maxIf(sums, side = 2)), max(upto)
FROM (
  SELECT 1 AS side, %s, tuple%s AS sums, max(max_seq) AS upto FROM %s WHERE %s GROUP BY keyspace, tenant, key_id, cell, r, m
  UNION ALL
  SELECT 2 AS side, %s, tuple%s AS sums, max(seq) AS upto FROM uses WHERE seq <= %d GROUP BY keyspace, tenant, key_id, cell, r, m
) GROUP BY keyspace, tenant, key_id, cell, r, m
HAVING max(upto) <= %[7]d AND (count() != 2 OR uniqExact(sums) != 1) ORDER BY at LIMIT 10`, c.key, c.sums, c.table, since, c.rawKey, c.rawSums, offset)
		err := s.each(ctx, sql, nil, func(rows driver.Rows) error {
			var at, rollup, raw string
			var upto uint64
			if err := rows.Scan(&at, &rollup, &raw, &upto); err != nil {
				return err
			}
			r.add(c.table, 0, "cell %s is %s where the raw rows add up to %s", at, rollup, raw)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// checkEpochs follows the numbers of every node's epoch: uses and gaps must cover
// 1, 2, 3 and so on, each once, up to what the close says. An epoch that has a
// successor must have ended; the hole of one still running may yet be filled.
func (r *Report) checkEpochs(ctx context.Context, s *Store, to events.Seq) error {
	q := ask("use_batches", everything).and("seq <= {to:UInt64}", "to", uint64(to))
	var first uint64
	if err := s.each(ctx, q.selects("min(seq)", ""), q.args, func(rows driver.Rows) error { return rows.Scan(&first) }); err != nil {
		return err
	}
	var e *epochCheck
	err := s.each(ctx, q.selects("seq, node, epoch, toString(kind), first, count", " ORDER BY node, epoch, first, kind, seq"), q.args, func(rows driver.Rows) error {
		var b batchRow
		if err := rows.Scan(&b.seq, &b.node, &b.epoch, &b.kind, &b.first, &b.count); err != nil {
			return err
		}
		if b.kind == "quarantined" {
			return nil
		}
		if b.kind == "trimmed" {
			r.add("use_batches", events.Seq(b.seq), "%d messages from %d on were dropped by the stream before they were copied: their uses are lost", b.count, b.first)
			return nil
		}
		if e == nil || e.node != b.node || e.epoch != b.epoch {
			if e != nil {
				e.finish(e.node == b.node)
			}
			e = &epochCheck{report: r, node: b.node, epoch: b.epoch, due: 1}
			if first > 1 && b.kind != "open" { // old months were dropped: begin where the copy does
				e.opened, e.due = true, b.first
			}
			r.Epochs++
		}
		e.next(&b)
		return nil
	})
	if err == nil && e != nil {
		e.finish(false)
	}
	return err
}

// epochCheck walks the messages of one epoch, sorted by their first number.
type epochCheck struct {
	report        *Report
	node          string
	epoch         int64
	due           uint64 // the number that must come
	hole          string // the first number that did not
	last          events.Seq
	opened, ended bool
}

func (e *epochCheck) next(b *batchRow) {
	seq := events.Seq(b.seq)
	e.last = max(e.last, seq)
	if b.kind == "open" {
		e.opened = true
		return
	}
	if b.first > e.due && e.hole == "" {
		e.hole = fmt.Sprintf("numbers %d to %d are neither uses nor a gap", e.due, b.first-1)
	}
	if b.first < e.due {
		e.fault(seq, fmt.Sprintf("number %d is accounted for twice", b.first))
	}
	e.ended = e.ended || b.kind == "close" || b.kind == "gap" && b.count == 0 || b.kind == "unended"
	e.due = max(e.due, b.first+b.count)
}

// finish judges the epoch; replaced says that its node has a later one.
func (e *epochCheck) finish(replaced bool) {
	if !e.opened {
		e.fault(e.last, "no message says that it began")
	}
	if replaced && !e.ended {
		e.fault(e.last, fmt.Sprintf("its node started anew, and nothing says how it ended after number %d", e.due-1))
	}
	if (replaced || e.ended) && e.hole != "" {
		e.fault(e.last, e.hole)
	}
}

func (e *epochCheck) fault(seq events.Seq, what string) {
	e.report.add("use_batches", seq, "node %s, epoch %d: %s", e.node, e.epoch, what)
}
