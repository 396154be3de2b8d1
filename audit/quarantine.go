package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/events"
)

// place is where the record of one node ends.
type place struct {
	epoch int64
	next  uint64 // the epoch's first number that is not accounted for
	ended bool
}

// places follows the numbers of all nodes, so that a number is accounted for once
// whatever stands in the stream.
type places map[events.NodeID]place

// places reads where each node's record ends in the messages up to seq.
func (s *Store) places(ctx context.Context, seq events.Seq) (places, error) {
	out := places{}
	q := ask("use_batches", everything).and("seq <= {to:UInt64} AND kind NOT IN ('trimmed', 'unended', 'quarantined')", "to", uint64(seq))
	err := s.each(ctx, q.selects("node, argMax(epoch, seq), argMax(toString(kind), seq), argMax(first, seq), argMax(count, seq)", " GROUP BY node"), q.args, func(rows driver.Rows) error {
		var node, kind string
		var epoch int64
		var first, count uint64
		if err := rows.Scan(&node, &epoch, &kind, &first, &count); err != nil {
			return err
		}
		out[events.NodeID(node)] = after(epoch, kind, first, count)
		return nil
	})
	return out, err
}

// after returns where the record ends after one message.
func after(epoch int64, kind string, first, count uint64) place {
	return place{epoch: epoch, next: max(first, 1) + count, ended: kind == "close" || kind == "gap" && count == 0}
}

// misfit says why a message of the use stream is not what its place asks for, ""
// if it is. What is missing before it is no reason: retention may have taken it.
func (p places) misfit(m *events.UseMessage, log *events.Lineage) (b events.UseBatch, reason string) {
	b, err := events.DecodeUses(m.Data)
	newer := (*events.NewerError)(nil)
	last, known := p[m.Node]
	switch {
	case errors.As(err, &newer):
		return b, clip("it cannot be read yet: " + newer.Error())
	case err != nil:
		return b, clip("it cannot be read: " + err.Error())
	case b.Node != m.Node:
		return b, fmt.Sprintf("it stands under node %s and says node %s", m.Node, b.Node)
	case !log.Holds(b.Log, m.Seq):
		return b, fmt.Sprintf("it belongs to log %s, not to log %s", b.Log, log.Log)
	case !known || b.Epoch > last.epoch:
		return b, ""
	case b.Epoch < last.epoch:
		return b, fmt.Sprintf("it is of epoch %d, and the node has begun epoch %d", b.Epoch, last.epoch)
	case b.Kind == events.BatchOpen:
		return b, fmt.Sprintf("epoch %d is open already", b.Epoch)
	case last.ended:
		return b, fmt.Sprintf("epoch %d has ended", b.Epoch)
	case b.First < last.next:
		return b, fmt.Sprintf("it begins at number %d, and the numbers before %d are on the record", b.First, last.next)
	}
	return b, ""
}

// take notes a message that fits. It returns the place of the node's epoch before,
// if nothing says how that one ended.
func (p places) take(b *events.UseBatch) (unended place, ok bool) {
	last, known := p[b.Node]
	p[b.Node] = after(b.Epoch, kindNames[b.Kind], b.First, b.Len())
	return last, known && b.Epoch > last.epoch && !last.ended
}

// clip bounds a reason, which may repeat what a message says.
func clip(s string) string {
	const most = 300
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

// asides writes a line for the messages that are set aside: for the first at once,
// then at most one in asideEvery, because whoever has a verifier's password makes as
// many as it likes. All of them are counted, and stand in the copy with their reasons.
// One goroutine at a time may use it.
type asides struct {
	told     time.Time // when the last line was written; zero = never
	unspoken int       // set aside since
}

const asideEvery = time.Minute

func (a *asides) tell(log *slog.Logger, now time.Time, m *events.UseMessage, reason string) {
	if !a.told.IsZero() && now.Sub(a.told) < asideEvery {
		a.unspoken++
		return
	}
	log.Error("a message of the use stream is no batch of its node and is set aside", "seq", m.Seq, "node", m.Node, "reason", reason, "others_since_last_line", a.unspoken)
	a.told, a.unspoken = now, 0
}

// Quarantined is one message of the use stream that the copy has set aside.
type Quarantined struct {
	Seq    events.Seq
	Stored events.Time
	Node   events.NodeID // of its subject
	Reason string
	Digest string // SHA-256 of the message, 64 hexadecimal digits
}

// String names the message, why it is set aside, and its digest.
func (q Quarantined) String() string {
	return fmt.Sprintf("message %d of the use stream (subject %s%s, stored at %s): %s; SHA-256 %s", q.Seq, events.UsePrefix, q.Node, q.Stored, q.Reason, q.Digest)
}

// Quarantine returns how many messages are set aside, and the newest of them, at
// most max. Errors: ErrUnavailable.
func (s *Store) Quarantine(ctx context.Context, max int) (n uint64, newest []Quarantined, err error) {
	q := ask("use_batches", everything).and("kind = 'quarantined'")
	if err := s.each(ctx, q.selects("count()", ""), q.args, func(rows driver.Rows) error { return rows.Scan(&n) }); err != nil || n == 0 {
		return n, nil, err
	}
	err = s.each(ctx, q.selects("seq, toUnixTimestamp64Milli(stored), node, note, digest", fmt.Sprintf(" ORDER BY seq DESC LIMIT %d", max)), q.args, func(rows driver.Rows) error {
		var seq uint64
		var stored int64
		var node string
		var m Quarantined
		err := rows.Scan(&seq, &stored, &node, &m.Reason, &m.Digest)
		m.Seq, m.Stored, m.Node = events.Seq(seq), events.Time(stored), events.NodeID(node)
		newest = append(newest, m)
		return err
	})
	return n, newest, err
}

// setAside returns which of the messages first to last are set aside.
func (s *Store) setAside(ctx context.Context, first, last events.Seq) (map[events.Seq]bool, error) {
	out := map[events.Seq]bool{}
	q := ask("use_batches", everything).and("kind = 'quarantined' AND seq >= {from:UInt64} AND seq <= {to:UInt64}", "from", uint64(first), "to", uint64(last))
	err := s.each(ctx, q.selects("seq", ""), q.args, func(rows driver.Rows) error {
		var seq uint64
		err := rows.Scan(&seq)
		out[events.Seq(seq)] = true
		return err
	})
	return out, err
}
