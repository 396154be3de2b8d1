package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"

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
	Events     uint64     // compared, from the first
	Uses       uint64     // compared
	UsesFrom   events.Seq // first message of the use stream that was still there
	UsesTo     events.Seq // last message compared
	Epochs     int        // of nodes, their numbers followed from 1 to the end
	Mismatches []Mismatch // the first 100, in the order found
}

// String is one line for people.
func (r *Report) String() string {
	return fmt.Sprintf("%d events and %d uses (messages %d to %d) of %d node epochs are the same in the log and in its copy, rollups included",
		r.Events, r.Uses, r.UsesFrom, r.UsesTo, r.Epochs)
}

func (r *Report) add(table string, seq events.Seq, format string, args ...any) {
	if len(r.Mismatches) < maxMismatches {
		r.Mismatches = append(r.Mismatches, Mismatch{table, seq, fmt.Sprintf(format, args...)})
	}
}

func (r *Report) full() bool { return len(r.Mismatches) >= maxMismatches }

// Reconcile compares the copy with the log, up to where the copy was when it
// began, so the writer may go on meanwhile. It uses none of the writer's code:
// each event is rebuilt from its row and must hash to what the log holds; each
// use must be the one in its message; each cell of a rollup must be what the raw
// rows add up to; each node's epoch must account for every number. Differences
// are in the report; an error means that the comparison could not be made.
func Reconcile(ctx context.Context, s *Store, log events.Log, uses events.UseSource) (*Report, error) {
	if err := s.CheckLog(ctx, log.ID()); err != nil {
		return nil, err
	}
	mark, err := s.Watermark(ctx)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := r.checkEvents(ctx, s, log, mark.EventsSeq); err != nil {
		return nil, fmt.Errorf("compare the trail: %w", err)
	}
	if err := r.checkUses(ctx, s, uses, mark.UsesSeq); err != nil {
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
	ctx    context.Context
	store  *Store
	report *Report
	to     events.Seq
	stored events.Time // of the last event seen, as the trail should have it
	batch  []events.Recorded
}

var errChecked = errors.New("everything is compared")

// Apply implements events.Follower.
func (c *eventChecker) Apply(batch []events.Recorded) error {
	for i := range batch {
		r := batch[i]
		c.stored = max(c.stored, r.Stored)
		r.Stored = c.stored
		c.batch = append(c.batch, r)
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

func (r *Report) checkEvents(ctx context.Context, s *Store, log events.Log, to events.Seq) error {
	if to == 0 {
		return nil
	}
	last, err := log.Last(ctx)
	if err != nil {
		return err
	}
	if last < to {
		r.add("events", last+1, "the copy has events up to %d, the log ends at %d", to, last)
		to = last
	}
	c := &eventChecker{ctx: ctx, store: s, report: r, to: to}
	if err := log.Follow(ctx, 0, c); !errors.Is(err, errChecked) {
		return err
	}
	return nil
}

func (c *eventChecker) compare() error {
	first, last := &c.batch[0], &c.batch[len(c.batch)-1]
	i := 0 // c.batch[:i] are accounted for
	q := ask("events", Scope{some: true}).and("seq >= {from:UInt64} AND seq <= {to:UInt64}", "from", uint64(first.Seq), "to", uint64(last.Seq))
	err := c.store.each(c.ctx, q.selects(eventColumns, " ORDER BY seq"), q.args, func(rows driver.Rows) error {
		row, err := scanEvent(rows)
		for i < len(c.batch) && c.batch[i].Seq < row.Seq {
			c.report.add("events", c.batch[i].Seq, "the row is missing")
			i++
		}
		switch {
		case i == len(c.batch) || c.batch[i].Seq != row.Seq:
			c.report.add("events", row.Seq, "the row stands there more than once")
			return nil
		case err != nil:
			c.report.add("events", row.Seq, "the row is not what was written: %v", err)
		case row.Hash != c.batch[i].Hash:
			c.report.add("events", row.Seq, "the row's hash is not the log's")
		case row.Stored != c.batch[i].Stored:
			c.report.add("events", row.Seq, "the row says stored at %s, the log %s", row.Stored, c.batch[i].Stored)
		case !rebuilds(&row):
			c.report.add("events", row.Seq, "the row was altered: it does not hash to what the log holds")
		}
		i++
		return nil
	})
	for ; err == nil && i < len(c.batch); i++ {
		c.report.add("events", c.batch[i].Seq, "the row is missing")
	}
	c.report.Events += uint64(len(c.batch))
	c.batch = c.batch[:0]
	return err
}

// rebuilds reports whether the row is the event that its hash names. The tables
// hold IPv4 as IPv6 and "none" as ::, so the forms that are held alike are tried.
func rebuilds(row *events.Recorded) bool {
	e := row.Event
	forms := []netip.Addr{row.IP, netip.IPv6Unspecified()}
	if row.IP.IsValid() {
		forms[1] = netip.AddrFrom16(row.IP.As16())
	}
	for _, e.IP = range forms {
		if m, err := events.Encode(&e); err == nil && m.Hash() == row.Hash {
			return true
		}
	}
	return false
}

// batchRow is a row of use_batches.
type batchRow struct {
	seq, stored  uint64
	node         string
	epoch        int64
	kind         string
	first, count uint64
	note         string
}

func (r *Report) checkUses(ctx context.Context, s *Store, uses events.UseSource, to events.Seq) error {
	last, err := uses.LastUse(ctx)
	if err != nil {
		return err
	}
	if last < to {
		r.add("use_batches", last+1, "the copy has messages up to %d, the use stream ends at %d", to, last)
		to = last
	}
	r.UsesFrom = 1
	var stored events.Time // of the last message seen, as the copy should have it
	for after := events.Seq(0); after < to && !r.full(); {
		msgs, err := uses.ReadUses(ctx, after, checkMessages)
		var trimmed *events.TrimmedError
		if errors.As(err, &trimmed) && trimmed.First > after+1 {
			after = trimmed.First - 1 // past retention: the copy alone has them
			r.UsesFrom = trimmed.First
			if stored, err = s.storedUpTo(ctx, after); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for len(msgs) > 0 && msgs[len(msgs)-1].Seq > to {
			msgs = msgs[:len(msgs)-1]
		}
		if len(msgs) == 0 {
			break
		}
		for i := range msgs {
			stored = max(stored, msgs[i].Stored)
			msgs[i].Stored = stored
		}
		if err := r.compareUses(ctx, s, msgs); err != nil {
			return err
		}
		after = msgs[len(msgs)-1].Seq
		r.UsesTo = after
	}
	return nil
}

// storedUpTo returns the latest time that the copy gives a message up to seq.
func (s *Store) storedUpTo(ctx context.Context, seq events.Seq) (events.Time, error) {
	var ms int64
	err := s.conn.QueryRow(ctx, "SELECT toUnixTimestamp64Milli(max(stored)) FROM use_batches WHERE seq <= {seq:UInt64}", named("seq", uint64(seq))).Scan(&ms)
	return events.Time(ms), s.fault(ctx, "read when a message was stored", err)
}

// compareUses compares some messages with both tables.
func (r *Report) compareUses(ctx context.Context, s *Store, msgs []events.UseMessage) error {
	var wantUses []UseRow
	var wantBatches []batchRow
	names := map[events.BatchKind]string{events.BatchUses: "uses", events.BatchOpen: "open", events.BatchClose: "close", events.BatchGap: "gap"}
	for _, m := range msgs {
		b, err := events.DecodeUses(m.Data)
		if err != nil {
			return fmt.Errorf("message %d of the use stream: %w", m.Seq, err)
		}
		wantBatches = append(wantBatches, batchRow{uint64(m.Seq), uint64(m.Stored), string(b.Node), b.Epoch, names[b.Kind], b.First, b.Len(), b.Note})
		for i, u := range b.Uses {
			if u.IP.IsValid() {
				u.IP = unmap(netip.AddrFrom16(u.IP.As16()))
			}
			wantUses = append(wantUses, UseRow{Use: u, ID: events.UseID{Node: b.Node, Epoch: b.Epoch, N: b.First + uint64(i)}, Seq: m.Seq, Stored: m.Stored})
		}
	}
	r.Uses += uint64(len(wantUses))
	first, last := &msgs[0], &msgs[len(msgs)-1]
	in := func(table string) *query {
		return ask(table, Scope{some: true}).and("seq >= {from:UInt64} AND seq <= {to:UInt64}", "from", uint64(first.Seq), "to", uint64(last.Seq)).
			and("stored >= fromUnixTimestamp64Milli({stored_from:Int64}) AND stored <= fromUnixTimestamp64Milli({stored_to:Int64})",
				"stored_from", int64(first.Stored), "stored_to", int64(last.Stored))
	}
	q := in("uses")
	uses := matcher[UseRow]{report: r, table: "uses", want: wantUses, seq: func(u *UseRow) events.Seq { return u.Seq }}
	err := s.each(ctx, q.selects(useColumns, " ORDER BY seq, n"), q.args, func(rows driver.Rows) error {
		u, err := scanUse(rows)
		uses.next(u, err)
		return nil
	})
	if err != nil {
		return err
	}
	uses.end()
	q = in("use_batches")
	batches := matcher[batchRow]{report: r, table: "use_batches", want: wantBatches, seq: func(b *batchRow) events.Seq { return events.Seq(b.seq) }}
	err = s.each(ctx, q.selects("seq, toUnixTimestamp64Milli(stored), node, epoch, toString(kind), first, count, note", " AND kind != 'trimmed' ORDER BY seq"), q.args,
		func(rows driver.Rows) error {
			var b batchRow
			var stored int64
			err := rows.Scan(&b.seq, &stored, &b.node, &b.epoch, &b.kind, &b.first, &b.count, &b.note)
			b.stored = uint64(stored)
			batches.next(b, err)
			return nil
		})
	if err != nil {
		return err
	}
	batches.end()
	return nil
}

// matcher compares rows in order with what should be there. Of each message it
// reports the first difference only: what follows it is shifted.
type matcher[R comparable] struct {
	report *Report
	table  string
	want   []R
	seq    func(*R) events.Seq
	bad    events.Seq // the message last reported
}

func (m *matcher[R]) next(row R, err error) {
	seq := m.seq(&row)
	if err != nil {
		m.fault(seq, "a row cannot be read: %v", err)
		return
	}
	m.skip(seq)
	switch {
	case seq == m.bad:
	case len(m.want) == 0 || m.seq(&m.want[0]) != seq:
		m.fault(seq, "a row that the log does not have: %+v", row)
	case row != m.want[0]:
		m.fault(seq, "the log has %+v, the copy %+v", m.want[0], row)
	default:
		m.want = m.want[1:]
	}
}

// skip reports the messages before seq of which rows are still wanted.
func (m *matcher[R]) skip(before events.Seq) {
	for len(m.want) > 0 && m.seq(&m.want[0]) < before {
		if seq := m.seq(&m.want[0]); seq != m.bad {
			m.fault(seq, "a row is missing: %+v", m.want[0])
		}
		m.want = m.want[1:]
	}
}

func (m *matcher[R]) end() { m.skip(math.MaxUint64) }

func (m *matcher[R]) fault(seq events.Seq, format string, args ...any) {
	m.bad = seq
	m.report.add(m.table, seq, format, args...)
}
