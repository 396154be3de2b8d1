package audit

import (
	"context"
	"fmt"

	"github.com/ClickHouse/ch-go"

	"github.com/keytrail/keytrail/events"
)

// rollupRows bounds one step: the server groups its rows in memory.
const rollupRows = 1_000_000

// rollups are the tables fed from uses, and how. Each row carries the highest seq
// that it counts; each use lands in one row of each table (A9).
var rollups = []struct{ table, columns, query string }{
	{"use_hour", "keyspace, tenant, hour, reason, month, n, cost, max_seq",
		"keyspace, tenant, fromUnixTimestamp64Second(intDiv(toUnixTimestamp64Milli(time), 3600000) * 3600, 'UTC'), reason, toYYYYMM(stored), " +
			"count(), sum(cost), max(seq) FROM uses WHERE %s GROUP BY 1, 2, 3, 4, 5"},
	{"use_day_key", "keyspace, tenant, key_id, day, reason, month, n, cost, max_seq",
		"keyspace, tenant, key_id, toDate32(time), reason, toYYYYMM(stored), count(), sum(cost), max(seq) FROM uses WHERE %s GROUP BY 1, 2, 3, 4, 5, 6"},
	{"use_key", "key_id, keyspace, tenant, n, denied, first_used, last, last_denied, max_seq",
		"key_id, keyspace, tenant, count(), countIf(reason != 'ok'), minOrNullIf(time, reason = 'ok'), maxIf((time, ip), reason = 'ok'), " +
			"maxIf(time, reason != 'ok'), max(seq) FROM uses WHERE %s GROUP BY 1, 2, 3"},
}

// roller moves the rollups after the raw rows, on the server: INSERT SELECT of a
// range of whole messages of one month, as one block (A2). It is owned by the
// inserting goroutine of one epoch.
type roller struct {
	s       *session
	to      events.Seq   // everything up to here is in uses and use_batches
	offsets []events.Seq // of each rollup, as rollups
}

// newRoller reads the rollups' offsets out of their tables (A1).
func (s *session) newRoller(ctx context.Context, to events.Seq) (*roller, error) {
	r := &roller{s: s, to: to, offsets: make([]events.Seq, len(rollups))}
	for i, t := range rollups {
		var n uint64
		if err := s.store.conn.QueryRow(ctx, "SELECT max(max_seq) FROM "+t.table).Scan(&n); err != nil {
			return nil, s.store.fault(ctx, "read how far rollup "+t.table+" is", err)
		}
		r.offsets[i] = events.Seq(n)
	}
	return r, nil
}

// useRange is a range of messages of one month.
type useRange struct {
	from, to         events.Seq  // from excluded
	earliest, latest events.Time // that a message was stored; prunes parts
}

// run brings every rollup up to r.to.
func (r *roller) run(ctx context.Context) error {
	for {
		from := r.to
		for _, o := range r.offsets {
			from = min(from, o)
		}
		if from == r.to {
			return nil
		}
		next, rows, err := r.next(ctx, from)
		if err != nil {
			return err
		}
		for i, t := range rollups {
			if r.offsets[i] >= next.to {
				continue
			}
			if rows > 0 {
				where := fmt.Sprintf("seq > %d AND seq <= %d AND stored >= fromUnixTimestamp64Milli(%d) AND stored <= fromUnixTimestamp64Milli(%d)",
					max(next.from, r.offsets[i]), next.to, next.earliest, next.latest)
				err := r.s.do(ctx, "roll up into "+t.table, ch.Query{Body: "INSERT INTO " + t.table + " (" + t.columns + ") SELECT " + fmt.Sprintf(t.query, where)})
				if err != nil {
					return err
				}
			}
			r.offsets[i] = next.to
		}
	}
}

// next returns the range that follows from: at most rollupRows uses (or one
// message), of one month. Messages without uses move the range and no rows.
func (r *roller) next(ctx context.Context, from events.Seq) (next useRange, rows uint64, err error) {
	store := r.s.store
	got, err := store.conn.Query(ctx, "SELECT seq, toUnixTimestamp64Milli(stored), if(kind = 'uses', count, 0) FROM use_batches "+
		"WHERE seq > {from:UInt64} AND seq <= {to:UInt64} ORDER BY seq LIMIT 10000",
		named("from", uint64(from)), named("to", uint64(r.to)))
	if err != nil {
		return next, 0, store.fault(ctx, "read what is to be rolled up", err)
	}
	defer got.Close()
	next.from = from
	for got.Next() {
		var seq, count uint64
		var stored int64
		if err := got.Scan(&seq, &stored, &count); err != nil {
			return next, 0, store.fault(ctx, "read what is to be rolled up", err)
		}
		if next.to != 0 && (month(events.Time(stored)) != month(next.latest) || rows+count > rollupRows) {
			return next, rows, nil
		}
		at := events.Time(stored)
		if next.to == 0 {
			next.earliest = at
		}
		next.earliest, next.latest = min(next.earliest, at), max(next.latest, at)
		next.to, rows = events.Seq(seq), rows+count
	}
	if err := got.Err(); err != nil {
		return next, 0, store.fault(ctx, "read what is to be rolled up", err)
	}
	if next.to == 0 {
		return next, 0, stop("table use_batches of %s has no rows between %d and %d, which the copy has passed: rows were deleted; "+
			"drop the database and let it be filled again", store, from, r.to)
	}
	return next, rows, nil
}
