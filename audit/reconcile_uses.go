package audit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math"
	"net/netip"
	"slices"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/events"
)

// batchRow is a row of use_batches.
type batchRow struct {
	seq, stored  uint64
	node         string
	epoch        int64
	kind         string
	first, count uint64
	note         string
	since, until uint64
}

func (r *Report) checkUses(ctx context.Context, s *Store, log events.Lineage, uses events.UseSource, to events.Seq) error {
	last, err := events.LastUseAtLeast(ctx, uses, to)
	if err != nil {
		return err
	}
	if last < to {
		r.add("use_batches", last+1, "the copy has messages up to %d, the use stream ends at %d", to, last)
		to = last
	}
	r.UsesFrom = 1
	for after := events.Seq(0); after < to && !r.full(); {
		msgs, err := uses.ReadUses(ctx, after, checkMessages)
		var trimmed *events.TrimmedError
		if errors.As(err, &trimmed) && trimmed.First > after+1 {
			after = trimmed.First - 1 // past retention: the copy alone has them
			r.UsesFrom = trimmed.First
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
			if want := after + 1 + events.Seq(i); msgs[i].Seq != want {
				r.add("use_batches", want, "the use stream has no such message, but message %d: messages were deleted from it", msgs[i].Seq)
				return nil
			}
		}
		if err := r.compareUses(ctx, s, &log, msgs); err != nil {
			return err
		}
		after = msgs[len(msgs)-1].Seq
		r.UsesTo = after
	}
	return nil
}

// tallyRow is a row of use_suppressed.
type tallyRow struct {
	seq, stored uint64
	node        string
	epoch       int64
	time, until int64
	block       netip.Prefix
	keyspace    string
	reason      string
	n           uint64
}

// compareUses compares some messages with the tables of the ledger. A message that
// could be read and is set aside all the same leaves a hole in its epoch, which
// checkEpochs finds, unless its numbers are on the record already.
func (r *Report) compareUses(ctx context.Context, s *Store, log *events.Lineage, msgs []events.UseMessage) error {
	aside, err := s.setAside(ctx, msgs[0].Seq, msgs[len(msgs)-1].Seq)
	if err != nil {
		return err
	}
	var wantUses []UseRow
	var wantBatches []batchRow
	var wantTallies []tallyRow
	names := map[events.BatchKind]string{events.BatchUses: "uses", events.BatchOpen: "open", events.BatchClose: "close", events.BatchGap: "gap",
		events.BatchSuppressed: "suppressed"}
	for _, m := range msgs {
		b, err := events.DecodeUses(m.Data)
		if err != nil || b.Node != m.Node || !log.Holds(b.Log, m.Seq) || aside[m.Seq] {
			digest := sha256.Sum256(m.Data)
			wantBatches = append(wantBatches, batchRow{seq: uint64(m.Seq), stored: uint64(m.Stored), node: string(m.Node), kind: "quarantined",
				note: hex.EncodeToString(digest[:]), since: uint64(m.Stored), until: uint64(m.Stored)})
			continue
		}
		wantBatches = append(wantBatches, batchRow{uint64(m.Seq), uint64(m.Stored), string(b.Node), b.Epoch, names[b.Kind], b.First, b.Len(), b.Note, uint64(b.Since), uint64(b.Until)})
		for i, u := range b.Uses {
			u.IP = u.IP.Unmap()
			wantUses = append(wantUses, UseRow{Use: u, ID: events.UseID{Node: b.Node, Epoch: b.Epoch, N: b.First + uint64(i)}, Seq: m.Seq, Stored: m.Stored})
		}
		for _, t := range b.Tallies {
			wantTallies = append(wantTallies, tallyRow{uint64(m.Seq), uint64(m.Stored), string(b.Node), b.Epoch, int64(t.Time), int64(t.Until), t.Block, string(t.Keyspace), t.Reason.String(), t.Count})
		}
	}
	slices.SortFunc(wantTallies, compareTallies)
	r.Uses += uint64(len(wantUses))
	first, last := &msgs[0], &msgs[len(msgs)-1]
	earliest, latest := first.Stored, first.Stored // prunes parts
	for i := range msgs {
		earliest, latest = min(earliest, msgs[i].Stored), max(latest, msgs[i].Stored)
	}
	in := func(table string) *query {
		return ask(table, everything).and("seq >= {from:UInt64} AND seq <= {to:UInt64}", "from", uint64(first.Seq), "to", uint64(last.Seq)).
			and("stored >= fromUnixTimestamp64Milli({stored_from:Int64}) AND stored <= fromUnixTimestamp64Milli({stored_to:Int64})",
				"stored_from", int64(earliest), "stored_to", int64(latest))
	}
	q := in("uses")
	uses := matcher[UseRow]{report: r, table: "uses", want: wantUses, seq: func(u *UseRow) events.Seq { return u.Seq }}
	err = s.each(ctx, q.selects(useColumns, " ORDER BY seq, n"), q.args, func(rows driver.Rows) error {
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
	err = s.each(ctx, q.selects("seq, toUnixTimestamp64Milli(stored), node, epoch, toString(kind), first, count, if(kind = 'quarantined', digest, note), toUnixTimestamp64Milli(since), toUnixTimestamp64Milli(until)", " AND kind NOT IN ('trimmed', 'unended') ORDER BY seq"), q.args,
		func(rows driver.Rows) error {
			var b batchRow
			var stored int64
			var since, until int64
			err := rows.Scan(&b.seq, &stored, &b.node, &b.epoch, &b.kind, &b.first, &b.count, &b.note, &since, &until)
			b.stored, b.since, b.until = uint64(stored), uint64(since), uint64(until)
			batches.next(b, err)
			return nil
		})
	if err != nil {
		return err
	}
	batches.end()
	q = in("use_suppressed")
	tallies := matcher[tallyRow]{report: r, table: "use_suppressed", want: wantTallies, seq: func(t *tallyRow) events.Seq { return events.Seq(t.seq) }}
	err = s.each(ctx, q.selects("seq, toUnixTimestamp64Milli(stored), node, epoch, toUnixTimestamp64Milli(time), toUnixTimestamp64Milli(until), block, block_bits, block_known, keyspace, reason, n",
		" ORDER BY seq, keyspace, reason, block_known, block, block_bits, time, until, n"), q.args,
		func(rows driver.Rows) error {
			var t tallyRow
			var stored int64
			var ip netip.Addr
			var bits uint8
			var known bool
			err := rows.Scan(&t.seq, &stored, &t.node, &t.epoch, &t.time, &t.until, &ip, &bits, &known, &t.keyspace, &t.reason, &t.n)
			t.stored, t.block = uint64(stored), blockOf(ip, bits, known)
			tallies.next(t, err)
			return nil
		})
	if err != nil {
		return err
	}
	tallies.end()
	return nil
}

// compareTallies is the order of the rows that are read.
func compareTallies(a, b tallyRow) int {
	place := func(p netip.Prefix) [18]byte {
		if !p.IsValid() {
			return [18]byte{}
		}
		ip := p.Addr().As16()
		return [18]byte(append(append([]byte{1}, ip[:]...), mappedBits(p)))
	}
	pa, pb := place(a.block), place(b.block)
	return cmp.Or(cmp.Compare(a.seq, b.seq), cmp.Compare(a.keyspace, b.keyspace), cmp.Compare(a.reason, b.reason), bytes.Compare(pa[:], pb[:]),
		cmp.Compare(a.time, b.time), cmp.Compare(a.until, b.until), cmp.Compare(a.n, b.n))
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
