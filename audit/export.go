package audit

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/events"
)

// Format is how an export is written.
type Format string

// The formats. CSV is RFC 4180 with a header, comma and LF; JSONL is one JSON
// object a line. Both are UTF-8 and have the same columns (columns.go).
const (
	CSV   Format = "csv"
	JSONL Format = "jsonl"
)

// Export is one copy of the record in the making: everything that the scope and
// the filter admit, up to where the copy was complete when it began.
type Export struct {
	store  *Store
	kind   Kind
	format Format
	scope  Scope
	filter *Filter
	log    events.LogID
	bound  events.Seq   // of the ledger
	trail  trailBound   // of the trail
	Total  uint64       // rows to expect; fewer only if rows are dropped meanwhile
	Gaps   *events.Gaps // what the ledger lacks in the time asked for; nil when nothing, or for the trail
	Notes  []string     // sentences for people
}

// Manifest says what an export held, for the reader to check.
type Manifest struct {
	Rows        uint64
	First, Last events.Seq // lowest and highest sequence, of the trail in the lifecycle log; 0 without rows
	Digest      string     // SHA-256 of the bytes, 64 hexadecimal digits
}

// NewExport fixes the bound and counts the rows. Errors: ErrUnavailable.
func (s *Store) NewExport(ctx context.Context, scope Scope, f *Filter, format Format, log events.LogID) (*Export, error) {
	e := &Export{store: s, kind: f.kind, format: format, scope: scope, filter: f, log: log}
	var err error
	if f.kind == KindEvents {
		e.trail, err = s.trailBound(ctx)
		e.bound = e.trail.lifecycle
	} else {
		e.bound, _, err = s.offset(ctx, "use_batches")
	}
	if err != nil {
		return nil, err
	}
	q := e.query()
	err = s.each(ctx, q.selects("count()", ""), q.args, func(rows driver.Rows) error { return rows.Scan(&e.Total) })
	if err == nil && e.Total == 0 {
		e.Notes, err = s.Notes(ctx, scope, f)
	}
	if err == nil && f.kind == KindUses {
		var note string
		if note, err = s.countedNote(ctx, scope, f); err != nil {
			return nil, err
		}
		if note != "" {
			e.Notes = append(e.Notes, note)
		}
		var g events.Gaps
		if g, err = s.Gaps(ctx, f); g.Count > 0 {
			e.Gaps = &g
		}
	}
	return e, err
}

func (e *Export) query() *query {
	q := ask(string(e.kind), e.scope).filtered(e.filter)
	if e.kind == KindEvents {
		return q.within(e.trail)
	}
	return q.and("seq <= {bound:UInt64}", "bound", uint64(e.bound))
}

// statement reads in an order that is the same each time. The trail is sorted in
// its order, on disk if it is big. The ledger comes in its table's own order, tenant by
// tenant, key by key, by time: that needs no memory however big it is.
func (e *Export) statement() (string, []any) {
	q := e.query()
	if e.kind == KindEvents {
		return q.selects(eventColumns, " ORDER BY "+trailOrder), q.args
	}
	return q.selects(useColumns, " ORDER BY keyspace, tenant, key_id, time, seq, n"), q.args
}

// WriteTo streams the rows to w, row by row: nothing is gathered but a buffer.
// An error means that what was written is not the whole.
func (e *Export) WriteTo(ctx context.Context, w io.Writer) (Manifest, error) {
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{
		"max_execution_time": 0, "max_bytes_before_external_sort": 256 << 20, "optimize_read_in_order": 1,
	}))
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(w, sum), 64<<10)
	write, err := e.encoder(out)
	if err != nil {
		return Manifest{}, err
	}
	var m Manifest
	sql, args := e.statement()
	err = e.store.each(ctx, sql, args, func(rows driver.Rows) error {
		seq, err := write(rows)
		m.Rows++
		if seq != 0 {
			m.First, m.Last = min(cmp.Or(m.First, seq), seq), max(m.Last, seq)
		}
		return err
	})
	if err != nil {
		return m, err
	}
	if err := out.Flush(); err != nil {
		return m, fmt.Errorf("write the export: %w", err)
	}
	m.Digest = hex.EncodeToString(sum.Sum(nil))
	return m, nil
}

// encoder returns what writes one row and tells its sequence, 0 for one of the read
// log, whose sequences are others.
func (e *Export) encoder(out io.Writer) (func(driver.Rows) (events.Seq, error), error) {
	if e.kind == KindEvents {
		write, err := rowsAs(e.format, eventColumnsOut, out)
		return func(rows driver.Rows) (events.Seq, error) {
			r, err := scanEvent(rows)
			if err != nil {
				return 0, err
			}
			seq := r.Seq
			if r.Aggregate.Stream() != events.Lifecycle {
				seq = 0
			}
			return seq, write(&r)
		}, err
	}
	write, err := rowsAs(e.format, useColumnsOut, out)
	return func(rows driver.Rows) (events.Seq, error) {
		u, err := scanUse(rows)
		if err != nil {
			return 0, err
		}
		return u.Seq, write(&u)
	}, err
}

func rowsAs[R any](f Format, columns []column[R], out io.Writer) (func(*R) error, error) {
	if f == CSV {
		return csvRows(columns, out)
	}
	return jsonRows(columns, out)
}
