package audit

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
)

// Format is how an export is written.
type Format string

// The formats. CSV is RFC 4180 with a header, comma and LF; JSONL is one JSON
// object a line, as the door shows it. Both are UTF-8.
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
	bound  events.Seq
	Total  uint64 // rows to expect; fewer only if rows are dropped meanwhile
}

// Manifest says what an export held, for the reader to check.
type Manifest struct {
	Rows        uint64
	First, Last events.Seq // lowest and highest sequence, 0 without rows
	Digest      string     // SHA-256 of the bytes, 64 hexadecimal digits
}

// NewExport fixes the bound and counts the rows. Errors: ErrUnavailable.
func (s *Store) NewExport(ctx context.Context, scope Scope, f *Filter, format Format, log events.LogID) (*Export, error) {
	e := &Export{store: s, kind: f.kind, format: format, scope: scope, filter: f, log: log}
	table := "use_batches"
	if f.kind == KindEvents {
		table = "events"
	}
	var err error
	if e.bound, _, err = s.offset(ctx, table); err != nil {
		return nil, err
	}
	q := e.query()
	err = s.each(ctx, q.selects("count()", ""), q.args, func(rows driver.Rows) error { return rows.Scan(&e.Total) })
	return e, err
}

func (e *Export) query() *query {
	return ask(string(e.kind), e.scope).filtered(e.filter).and("seq <= {bound:UInt64}", "bound", uint64(e.bound))
}

// statement reads in an order that is the same each time. The trail is sorted by
// seq, on disk if it is big. The ledger comes in its table's own order, tenant by
// tenant, key by key, by time: that needs no memory however big it is.
func (e *Export) statement() (string, []any) {
	q := e.query()
	if e.kind == KindEvents {
		return q.selects(eventColumns, " ORDER BY seq"), q.args
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
		if m.Rows == 0 {
			m.First = seq
		}
		m.Rows, m.First, m.Last = m.Rows+1, min(m.First, seq), max(m.Last, seq)
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

// encoder returns what writes one row and tells its sequence.
func (e *Export) encoder(out *bufio.Writer) (func(driver.Rows) (events.Seq, error), error) {
	line := func(v any) error {
		b, err := json.Marshal(v, json.Deterministic(true))
		if err != nil {
			return err
		}
		out.Write(b) // a bufio.Writer keeps its error
		return out.WriteByte('\n')
	}
	if e.format == JSONL && e.kind == KindEvents {
		return func(rows driver.Rows) (events.Seq, error) {
			r, err := scanEvent(rows)
			if err != nil {
				return 0, err
			}
			return r.Seq, line(api.ViewEvent(&r))
		}, nil
	}
	if e.format == JSONL {
		return func(rows driver.Rows) (events.Seq, error) {
			u, err := scanUse(rows)
			if err != nil {
				return 0, err
			}
			return u.Seq, line(viewUse(&u, e.log))
		}, nil
	}
	cw := csv.NewWriter(out)
	record := func(cells []string) error {
		if err := cw.Write(cells); err != nil {
			return err
		}
		cw.Flush()
		return cw.Error()
	}
	if e.kind == KindEvents {
		return func(rows driver.Rows) (events.Seq, error) {
			r, err := scanEvent(rows)
			if err != nil {
				return 0, err
			}
			cells, err := eventCells(&r)
			if err != nil {
				return 0, err
			}
			return r.Seq, record(cells)
		}, record(eventHeader)
	}
	return func(rows driver.Rows) (events.Seq, error) {
		u, err := scanUse(rows)
		if err != nil {
			return 0, err
		}
		return u.Seq, record(useCells(&u))
	}, record(useHeader)
}
