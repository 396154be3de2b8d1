package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/events"
)

const (
	defaultLinger  = 100 * time.Millisecond
	defaultMaxRows = 100_000
	rollupEvery    = 500 * time.Millisecond

	// A failed epoch is followed by the next after retryMin, then twice as long
	// each time, up to retryMax; one that inserted something begins anew.
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// WriterConfig says what is copied where.
type WriterConfig struct {
	Store *Store
	Log   events.Log       // the trail: what happened to keys
	Reads events.Log       // the trail: who read the record
	Uses  events.UseSource // the ledger
	// History is what the head of the copy is compared with. Default: nothing.
	History History
	// Linger is how long a batch waits for more, at most. Default 100 ms. Longer
	// makes fewer and bigger inserts and older answers; above 250 ms a use may
	// take more than half a second to be queryable.
	Linger time.Duration
	// MaxRows ends a batch of uses early. A whole message is never cut, so it may
	// be passed by the rows of one. Default 100,000.
	MaxRows int
	// Metrics are those of this writer. Default: its own, which nobody sees.
	Metrics *WriterMetrics
	// Logger receives restarts (warn) and what stops the writer (error). Default: nobody is told.
	Logger *slog.Logger
}

// Writer copies the log into the store, exactly (A1 to A5).
//
// The offset lives in the sink. An epoch of a source is: take the lease, wait at
// the fence, read each table's offset out of the table, then read the source from
// there and insert. Anything that goes wrong ends the epoch, and the next one
// finds out what was stored by looking. There is no other recovery path, and
// nothing to acknowledge: the log keeps its messages by age.
//
// Rejected: insert deduplication tokens (a server killed between its note of the
// token and the rename of the part swallows the retry), and materialized views
// (not atomic with their source).
type Writer struct {
	cfg         WriterConfig
	rollupEvery time.Duration // shortened by tests
	metrics     *WriterMetrics
	asides      asides // owned by who reads the use stream, one goroutine at a time
}

// NewWriter makes a writer; Run does the work.
func NewWriter(cfg WriterConfig) *Writer {
	if cfg.Linger <= 0 {
		cfg.Linger = defaultLinger
	}
	if cfg.MaxRows <= 0 {
		cfg.MaxRows = defaultMaxRows
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewWriterMetrics()
	}
	return &Writer{cfg: cfg, rollupEvery: rollupEvery, metrics: cfg.Metrics}
}

// Run copies until ctx ends (nil), or until something is wrong that no retry
// mends: a *StopError or an *events.CorruptError, each a sentence that says what
// to do. While ClickHouse or the log is away it waits.
func (w *Writer) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return w.forever(gctx, sourceEvents, w.trail(events.Lifecycle, w.cfg.Log)) })
	g.Go(func() error { return w.forever(gctx, sourceReads, w.trail(events.Reads, w.cfg.Reads)) })
	g.Go(func() error { return w.forever(gctx, sourceUses, w.copyUses) })
	err := g.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// The sources. Each has its own lease, offsets and epochs: one that waits does not
// hold up the others.
const (
	sourceEvents = "events"
	sourceReads  = "reads"
	sourceUses   = "uses"
)

// forever runs one epoch of a source after the other.
func (w *Writer) forever(ctx context.Context, source string, copy func(context.Context, *session) error) error {
	wait := retryMin
	for {
		worked, err := w.epoch(ctx, source, copy)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var stopped *StopError
		var corrupt *events.CorruptError
		if errors.As(err, &stopped) || errors.As(err, &corrupt) {
			w.cfg.Logger.ErrorContext(ctx, "the audit copy stops", "source", source, "err", err)
			return err
		}
		if worked {
			wait = retryMin
		}
		w.metrics.restarts.WithLabelValues(source).Inc()
		w.cfg.Logger.WarnContext(ctx, "the audit copy starts over", "source", source, "err", err, "wait", wait)
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, retryMax)
	}
}

// epoch is steps 1 and 2 of the writer: alone, and after whoever was before. It
// reports whether anything was inserted.
func (w *Writer) epoch(ctx context.Context, source string, copy func(context.Context, *session) error) (worked bool, err error) {
	store := w.cfg.Store
	err = store.withLease(ctx, source, func(ctx context.Context) error {
		if err := store.fence(ctx, source); err != nil {
			return err
		}
		if err := store.bind(ctx, w.cfg.Log.ID()); err != nil {
			return err
		}
		client, err := store.dial(ctx, time.Minute)
		if err != nil {
			return err
		}
		s := &session{store: store, client: client, prefix: store.queryPrefix(source) + strconv.FormatInt(time.Now().UnixMicro(), 10) + ":"}
		defer func() {
			worked = s.n > 0
			s.close()
		}()
		return copy(ctx, s)
	})
	return worked, err
}

// session is one epoch's connection for inserts. One goroutine uses it at a time.
type session struct {
	store  *Store
	client *ch.Client
	prefix string // of its query ids, for the fence: keytrail:<database>.<source>:<epoch>:
	n      int    // stored so far
}

func (s *session) close() {
	if !s.client.IsClosed() {
		s.client.Close() // an epoch that ends has nothing to lose on it
	}
}

// oneBlock makes the server store an insert as it comes: at once, in one block,
// in one partition, without looking for repeats (A2). With these an insert that
// would touch two partitions is refused instead of stored in two steps.
var oneBlock = []ch.Setting{
	{Key: "async_insert", Value: "0", Important: true},
	{Key: "insert_deduplicate", Value: "0", Important: true},
	{Key: "max_partitions_per_insert_block", Value: "1", Important: true},
	{Key: "throw_on_max_partitions_per_insert_block", Value: "1", Important: true},
	{Key: "max_insert_threads", Value: "1", Important: true},
	{Key: "max_block_size", Value: "10000000", Important: true},
	{Key: "min_insert_block_size_rows", Value: "10000000", Important: true},
	{Key: "min_insert_block_size_bytes", Value: "1073741824", Important: true},
}

// insertGrace is how long an insert in flight may still take when the writer stops.
const insertGrace = time.Second

// insert stores the rows of one block. On return they are stored. Any error is an
// unknown outcome and ends the epoch (A3).
func (s *session) insert(ctx context.Context, table string, rows proto.Input) error {
	return s.do(ctx, "insert into "+table, ch.Query{Body: rows.Into(table), Input: rows})
}

func (s *session) do(ctx context.Context, doing string, q ch.Query) error {
	q.QueryID = s.prefix + strconv.Itoa(s.n)
	q.Settings = oneBlock
	// When ctx ends while ch-go waits for the columns of the table, it sends no rows and
	// goes on waiting for an answer, and the server waits for rows.
	done := make(chan struct{})
	defer close(done)
	defer context.AfterFunc(ctx, func() {
		t := time.NewTimer(insertGrace)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
			s.client.Close()
		}
	})()
	err := s.client.Do(ctx, q)
	if err == nil {
		s.n++
	}
	return s.store.fault(ctx, doing, err)
}

// offset returns the highest seq in a table of raw rows of uses, and when the log
// stored it; 0 for an empty table. The highest seq costs nothing (it is in the
// partition key), and only the part that has it is read.
func (s *Store) offset(ctx context.Context, table string) (events.Seq, events.Time, error) {
	return s.highest(ctx, table, "1")
}

// trailOffset is offset for the rows of one log in the trail.
func (s *Store) trailOffset(ctx context.Context, stream events.Stream) (events.Seq, events.Time, error) {
	return s.highest(ctx, "events", "stream = {stream:String}", named("stream", string(stream)))
}

func (s *Store) highest(ctx context.Context, table, cond string, args ...any) (seq events.Seq, stored events.Time, err error) {
	var n uint64
	var ms int64
	err = s.conn.QueryRow(ctx, fmt.Sprintf("SELECT max(seq), toUnixTimestamp64Milli(any(stored)) FROM %s WHERE %s AND seq = (SELECT max(seq) FROM %[1]s WHERE %[2]s)", table, cond), args...).Scan(&n, &ms)
	return events.Seq(n), events.Time(ms), s.fault(ctx, "read how far table "+table+" is", err)
}

// month is the partition of a row: the month of the log's time, as toYYYYMM.
func month(t events.Time) uint32 {
	y, m, _ := t.Std().Date()
	return uint32(y)*100 + uint32(m)
}

func named(name string, value any) any { return clickhouse.Named(name, value) }
