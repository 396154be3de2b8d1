package audit

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/events"
)

// Block counts the uses of unknown keys that came from one block of addresses, in
// one keyspace and with one reason.
type Block struct {
	Block       netip.Prefix      // a /24 or /48; zero = the address is not known; events.AnyBlock() = not told apart by the node
	Keyspace    events.KeyspaceID // that the requests named, "" for none
	Reason      events.Reason
	Count       uint64      // all of them
	Recorded    uint64      // those that are in the ledger one by one
	First, Last events.Time // of them
}

// suppressed are the uses of unknown keys that were only counted. A count stands
// at the time of its first use.
const suppressed = "(SELECT seq, node, keyspace, '' AS tenant, '' AS key_id, time, until, reason, n, block, block_bits, block_known FROM use_suppressed)"

// unrecorded begins a question about them.
func unrecorded(scope Scope, f *Filter) *query { return ask(suppressed, scope).filtered(f) }

// isMapped says of the column ip that it holds an address of IPv4.
const isMapped = "(ip >= toIPv6('::ffff:0.0.0.0') AND ip <= toIPv6('::ffff:255.255.255.255'))"

// ipBits is the length of the prefix of a use's block.
var ipBits = fmt.Sprintf("toUInt8(if(NOT ip_known, 0, if(%s, %d, %d)))", isMapped, 96+events.BlockBits4, events.BlockBits6)

// blocksPage returns the statement of one page of blocks, the largest count first.
// The pages of one walk are held to what was complete at its first (bound), so that
// a place in the order is where the next page begins.
//
// Of uses it reads those of unknown keys alone. They have no tenant either, and the table
// is sorted by tenant before key: by the key alone all of it would be read.
func blocksPage(scope Scope, f *Filter, p Page, bound events.Seq) (string, []any) {
	one := ask("uses", scope).filtered(f).and("tenant = '' AND key_id = ''").and("seq <= {bound:UInt64}", "bound", uint64(bound))
	many := unrecorded(scope, f).and("seq <= {bound:UInt64}", "bound", uint64(bound))
	skip := uint64(0)
	if p.After != nil {
		skip = p.After.n
	}
	sql := "SELECT block, block_bits, block_known, keyspace, reason, sum(n) AS count, sum(kept) AS recorded, min(first), max(last) FROM (" +
		one.selects("if(ip_known, tupleElement(IPv6CIDRToRange(ip, "+ipBits+"), 1), toIPv6('::')) AS block, "+ipBits+" AS block_bits, ip_known AS block_known, "+
			"keyspace, reason, toUInt64(1) AS n, toUInt64(1) AS kept, "+msOfTime+" AS first, "+msOfTime+" AS last", "") + " UNION ALL " +
		many.selects("block, block_bits, block_known, keyspace, reason, n, toUInt64(0) AS kept, "+msOfTime+" AS first, toUnixTimestamp64Milli(until) AS last", "") +
		") GROUP BY block, block_bits, block_known, keyspace, reason" +
		fmt.Sprintf(" ORDER BY count DESC, block, block_bits, block_known, keyspace, reason LIMIT %d OFFSET %d", p.Limit+1, skip)
	return sql, merged(one.args, many.args)
}

// blocksMemory is how many bytes of groups a question about blocks holds in memory; the
// others go to ClickHouse's disk. Whoever owns a /32 of IPv6 can make a node name
// millions of blocks a day, and must not hide behind their number.
const blocksMemory = 64 << 20

// merged returns the parameters of two parts of one statement, each once.
func merged(a, b []any) []any {
	seen := map[string]bool{}
	var out []any
	for _, v := range append(append([]any{}, a...), b...) {
		if name := v.(driver.NamedValue).Name; !seen[name] {
			seen[name] = true
			out = append(out, v)
		}
	}
	return out
}

// Blocks returns one page of where uses of unknown keys came from, the most first,
// and where the next begins (nil on the last). Errors: ErrUnavailable.
func (s *Store) Blocks(ctx context.Context, scope Scope, f *Filter, p Page) ([]Block, *Cursor, error) {
	bound, _, err := s.offset(ctx, "use_batches")
	if err != nil {
		return nil, nil, err
	}
	skip := uint64(0)
	if p.After != nil {
		bound, skip = p.After.bound, p.After.n
	}
	sql, args := blocksPage(scope, f, p, bound)
	ctx = clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{
		"max_bytes_before_external_group_by": blocksMemory, "max_bytes_before_external_sort": blocksMemory,
	}))
	var out []Block
	err = s.each(ctx, sql, args, func(rows driver.Rows) error {
		var b Block
		var ip netip.Addr
		var bits uint8
		var known bool
		var keyspace, reason string
		var first, last int64
		if err := rows.Scan(&ip, &bits, &known, &keyspace, &reason, &b.Count, &b.Recorded, &first, &last); err != nil {
			return err
		}
		b.Block = blockOf(ip, bits, known)
		b.Keyspace, b.First, b.Last = events.KeyspaceID(keyspace), events.Time(first), events.Time(last)
		var err error
		b.Reason, err = events.ParseReason(reason)
		out = append(out, b)
		return err
	})
	if err != nil || len(out) <= p.Limit {
		return out, nil, err
	}
	return out[:p.Limit], &Cursor{bound: bound, n: skip + uint64(p.Limit)}, nil
}

// blockOf returns the block that the columns hold.
func blockOf(ip netip.Addr, bits uint8, known bool) netip.Prefix {
	switch {
	case !known:
		return netip.Prefix{}
	case ip.Is4In6() && bits >= 96:
		return netip.PrefixFrom(ip.Unmap(), int(bits)-96)
	}
	return netip.PrefixFrom(ip, int(bits))
}

// fromBlocks adds the condition that uses counted by block may have come from the
// network: their block and the network overlap, or the blocks were not told apart.
func (q *query) fromBlocks(p netip.Prefix) {
	from, to := ipRange(p)
	first := events.BlockOf(from) // the block that the network lies in or begins with
	cond := "block_known AND (block_bits = 0 OR block >= toIPv6({block_from:String}) AND block <= toIPv6({block_to:String})"
	if mapped.Overlaps(p) {
		cond += " AND NOT (block >= toIPv6('::ffff:0.0.0.0') AND block <= toIPv6('::ffff:255.255.255.255'))"
	}
	q.and(cond+")", "block_from", netip.AddrFrom16(first.Addr().As16()).String(), "block_to", to.String())
}

// countedNote says how many uses match the filter and have no row of their own; ""
// for none.
func (s *Store) countedNote(ctx context.Context, scope Scope, f *Filter) (string, error) {
	if !f.Key.IsZero() || f.Tenant != "" || f.Scope != "" || f.Endpoint != "" || f.RequestID != "" || f.Outcome == "allowed" {
		return "", nil // what is only counted has none of these
	}
	q := unrecorded(scope, f)
	n := uint64(0)
	err := s.each(ctx, q.selects("toUInt64(sum(n))", ""), q.args, func(rows driver.Rows) error { return rows.Scan(&n) })
	if err != nil || n == 0 {
		return "", err
	}
	if f.IP.IsValid() {
		return fmt.Sprintf("up to %d more uses of unknown keys match and were only counted, by block of addresses: keytrail audit blocks (GET /v1/audit/blocks) shows them", n), nil
	}
	return fmt.Sprintf("%d more uses of unknown keys match and were only counted: keytrail audit blocks (GET /v1/audit/blocks) shows where they came from", n), nil
}
