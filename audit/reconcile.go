package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/events"
)

const (
	// maxMismatches ends the search: by then it is clear that the copy is bad.
	maxMismatches = 100
	// checkEvents and checkMessages are how much is compared at a time.
	checkEvents   = 20_000
	checkMessages = 200
)

// Mismatch is one difference between the log and its copy.
type Mismatch struct {
	Table  string
	Seq    events.Seq // the first that is wrong, 0 when it is not one message
	Detail string
}

// String names the table, the sequence and what is wrong.
func (m Mismatch) String() string {
	if m.Seq == 0 {
		return m.Table + ": " + m.Detail
	}
	return fmt.Sprintf("%s: seq %d: %s", m.Table, m.Seq, m.Detail)
}

// Report is what Reconcile found.
type Report struct {
	Events     uint64     // of the lifecycle log compared, from the first
	Reads      uint64     // of the read log, likewise
	Uses       uint64     // compared
	UsesFrom   events.Seq // first message of the use stream that was still there
	UsesTo     events.Seq // last message compared
	Epochs     int        // of nodes, their numbers followed from 1 to the end
	Mismatches []Mismatch // the first 100, in the order found
}

// String is one line for people.
func (r *Report) String() string {
	return fmt.Sprintf("%d events, %d readings of the record and %d uses (messages %d to %d) of %d node epochs are the same in the log and in its copy, rollups included",
		r.Events, r.Reads, r.Uses, r.UsesFrom, r.UsesTo, r.Epochs)
}

func (r *Report) add(table string, seq events.Seq, format string, args ...any) {
	if len(r.Mismatches) < maxMismatches {
		r.Mismatches = append(r.Mismatches, Mismatch{table, seq, fmt.Sprintf(format, args...)})
	}
}

func (r *Report) full() bool { return len(r.Mismatches) >= maxMismatches }

// Reconcile compares the copy with the log, up to where the copy was when it
// began, so the writer may go on meanwhile. It uses none of the writer's code:
// the document of each event must be the log's, and its other columns what the
// document says; each
// use must be the one in its message; each cell of a rollup must be what the raw
// rows add up to; each node's epoch must account for every number. Differences
// are in the report; an error means that the comparison could not be made.
func Reconcile(ctx context.Context, s *Store, log, reads events.Log, uses events.UseSource) (*Report, error) {
	if err := s.CheckLog(ctx, log.ID()); err != nil {
		return nil, err
	}
	mark, err := s.Watermark(ctx)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	life := &eventChecker{ctx: ctx, store: s, report: r, stream: events.Lifecycle, to: mark.EventsSeq, compared: &r.Events}
	read := &eventChecker{ctx: ctx, store: s, report: r, stream: events.Reads, to: mark.ReadsSeq, compared: &r.Reads}
	if err := life.run(ctx, log); err != nil {
		return nil, fmt.Errorf("compare the trail: %w", err)
	}
	if err := read.run(ctx, reads); err != nil {
		return nil, fmt.Errorf("compare the readings in the trail: %w", err)
	}
	if err := r.checkUses(ctx, s, events.LineageOf(log), uses, mark.UsesSeq); err != nil {
		return nil, fmt.Errorf("compare the ledger: %w", err)
	}
	if err := r.checkRollups(ctx, s); err != nil {
		return nil, fmt.Errorf("compare the rollups: %w", err)
	}
	if err := r.checkEpochs(ctx, s, mark.UsesSeq); err != nil {
		return nil, fmt.Errorf("follow the epochs: %w", err)
	}
	return r, nil
}

// eventChecker follows the log and compares what comes with the trail.
type eventChecker struct {
	ctx      context.Context
	store    *Store
	report   *Report
	stream   events.Stream
	to       events.Seq
	batch    []events.Recorded
	compared *uint64
}

// add reports a row of the trail.
func (c *eventChecker) add(seq events.Seq, format string, args ...any) {
	if c.stream != events.Lifecycle {
		format = "log of " + string(c.stream) + ": " + format
	}
	c.report.add("events", seq, format, args...)
}

var errChecked = errors.New("everything is compared")

// Apply implements events.Follower.
func (c *eventChecker) Apply(batch []events.Recorded) error {
	for i := range batch {
		c.batch = append(c.batch, batch[i])
		done := batch[i].Seq == c.to
		if done || len(c.batch) == checkEvents {
			if err := c.compare(); err != nil {
				return err
			}
		}
		if done || c.report.full() {
			return errChecked
		}
	}
	return nil
}

// Fresh implements events.Follower.
func (*eventChecker) Fresh(events.Time, events.Seq) {}

// run compares the log up to c.to.
func (c *eventChecker) run(ctx context.Context, log events.Log) error {
	if c.to == 0 {
		return nil
	}
	last, err := events.LastAtLeast(ctx, log, c.to)
	if err != nil {
		return err
	}
	if last < c.to {
		c.add(last+1, "the copy has events up to %d, the log ends at %d", c.to, last)
		if c.to = last; c.to == 0 {
			return nil
		}
	}
	if err := log.Follow(ctx, 0, c); !errors.Is(err, errChecked) {
		return err
	}
	return nil
}

func (c *eventChecker) compare() error {
	first, last := &c.batch[0], &c.batch[len(c.batch)-1]
	i := 0 // c.batch[:i] are accounted for
	q := ask("events", everything).and("stream = {stream:String} AND seq >= {from:UInt64} AND seq <= {to:UInt64}",
		"stream", string(c.stream), "from", uint64(first.Seq), "to", uint64(last.Seq))
	err := c.store.each(c.ctx, q.selects(eventColumns+", document", " ORDER BY seq"), q.args, func(rows driver.Rows) error {
		var document string
		row, err := scanEvent(rows, &document)
		row.Document = []byte(document)
		for i < len(c.batch) && c.batch[i].Seq < row.Seq {
			c.add(c.batch[i].Seq, "the row is missing")
			i++
		}
		switch {
		case i == len(c.batch) || c.batch[i].Seq != row.Seq:
			c.add(row.Seq, "the row stands there more than once")
			return nil
		case err != nil:
			c.add(row.Seq, "the row is not what was written: %v", err)
		case row.Hash != c.batch[i].Hash:
			c.add(row.Seq, "the row's hash is not the log's")
		case row.Stored != c.batch[i].Stored:
			c.add(row.Seq, "the row says stored at %s, the log %s", row.Stored, c.batch[i].Stored)
		case !bytes.Equal(row.Document, c.batch[i].Document):
			c.add(row.Seq, "the row's document is not the log's")
		case !columnsMatch(&row):
			c.add(row.Seq, "the row was altered: its columns are not what its document says")
		}
		i++
		return nil
	})
	for ; err == nil && i < len(c.batch); i++ {
		c.add(c.batch[i].Seq, "the row is missing")
	}
	*c.compared += uint64(len(c.batch))
	c.batch = c.batch[:0]
	return err
}

// columnsMatch reports whether the row's columns say what its document says. The
// tables hold IPv4 and IPv4 mapped into IPv6 alike.
func columnsMatch(row *events.Recorded) bool {
	m := events.Message{Subject: row.Aggregate.Subject(), Data: row.Document}
	e, err := events.Decode(&m)
	e.IP = e.IP.Unmap()
	return err == nil && m.Hash() == row.Hash && reflect.DeepEqual(e, row.Event)
}
