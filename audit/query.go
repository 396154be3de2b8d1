package audit

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/keytrail/keytrail/events"
)

// query is one SELECT under construction. Values travel as server-side
// parameters, never in the text.
type query struct {
	table string
	conds []string
	args  []any
}

// ask begins every query, so that none is without its scope (A7).
func ask(table string, scope Scope) *query {
	q := &query{table: table}
	if !scope.some {
		q.and("0")
	}
	if !scope.builtin {
		q.and("keyspace != {builtin:String}", "builtin", string(events.Builtin))
	}
	if len(scope.keyspaces) > 0 {
		q.and("keyspace IN {scope_keyspaces:Array(String)}", "scope_keyspaces", texts(scope.keyspaces))
	}
	if len(scope.tenants) > 0 {
		q.and("tenant IN {scope_tenants:Array(String)}", "scope_tenants", texts(scope.tenants))
	}
	return q
}

// and adds a condition and its parameters: name, value, name, value.
func (q *query) and(cond string, params ...any) *query {
	q.conds = append(q.conds, cond)
	for i := 0; i < len(params); i += 2 {
		q.args = append(q.args, named(params[i].(string), params[i+1]))
	}
	return q
}

func (q *query) selects(columns, tail string) string {
	where := "1"
	if len(q.conds) > 0 {
		where = strings.Join(q.conds, " AND ")
	}
	return "SELECT " + columns + " FROM " + q.table + " WHERE " + where + tail
}

func texts[S ~string](in []S) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = string(s)
	}
	return out
}

// filtered adds the conditions of the filter.
func (q *query) filtered(f *Filter) *query {
	if f.Keyspace != "" {
		q.and("keyspace = {keyspace:String}", "keyspace", string(f.Keyspace))
	}
	if f.Tenant != "" {
		q.and("tenant = {tenant:String}", "tenant", string(f.Tenant))
	}
	if !f.Key.IsZero() {
		if q.table == "events" {
			q.and("kind = 'key' AND aggregate_id = {key:String}", "key", f.Key.String())
		} else {
			q.and("key_id = {key:String}", "key", f.Key.String())
		}
	}
	if f.Actor != "" {
		q.and("actor_id = {actor:String}", "actor", f.Actor)
	}
	if f.Type != "" {
		q.and("type = {type:String}", "type", string(f.Type))
	}
	if f.RequestID != "" {
		q.and("request_id = {request_id:String}", "request_id", f.RequestID)
	}
	switch {
	case f.IP.IsValid() && q.table == suppressed:
		q.fromBlocks(f.IP)
	case f.IP.IsValid():
		q.from(f.IP)
	case f.IPUnknown && q.table == suppressed:
		q.and("(NOT block_known OR block_bits = 0)")
	case f.IPUnknown:
		q.and("NOT ip_known")
	}
	switch f.Outcome {
	case "allowed":
		q.and("reason = 'ok'")
	case "denied":
		q.and("reason != 'ok'")
	}
	if f.Reason != events.ReasonNone {
		q.and("reason = {reason:String}", "reason", f.Reason.String())
	}
	if f.Scope != "" {
		q.and("scope = {scope:String}", "scope", f.Scope)
	}
	if f.Endpoint != "" {
		q.and("endpoint = {endpoint:String}", "endpoint", f.Endpoint)
	}
	if f.Node != "" {
		q.and("node = {node:String}", "node", string(f.Node))
	}
	if f.kind != KindUsage {
		if f.From != 0 {
			q.and("time >= fromUnixTimestamp64Milli({from:Int64})", "from", int64(f.From))
		}
		if f.To != 0 {
			q.and("time < fromUnixTimestamp64Milli({to:Int64})", "to", int64(f.To))
		}
	}
	return q
}

// from adds the condition that the address is known and lies in the network. The
// tables hold IPv4 inside IPv6: a network of IPv6 around that range does not
// contain it.
func (q *query) from(p netip.Prefix) {
	from, to := ipRange(p)
	if from == to {
		q.and("ip = toIPv6({ip:String})", "ip", from.String())
	} else {
		q.and("ip >= toIPv6({ip_from:String}) AND ip <= toIPv6({ip_to:String})", "ip_from", from.String(), "ip_to", to.String())
	}
	if mapped.Overlaps(p) {
		q.and("NOT (ip >= toIPv6('::ffff:0.0.0.0') AND ip <= toIPv6('::ffff:255.255.255.255'))")
	}
	if p.Contains(netip.IPv6Unspecified()) {
		q.and("ip_known")
	}
}

// mapped is where the tables hold IPv4.
var mapped = netip.MustParsePrefix("::ffff:0:0/96")

// ipRange returns the first and last address of a network as the tables hold them.
func ipRange(p netip.Prefix) (from, to netip.Addr) {
	first, bits := p.Masked().Addr().As16(), p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	last := first
	for i := bits; i < 128; i++ {
		last[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom16(first), netip.AddrFrom16(last)
}

// Page says which part of an answer is wanted.
type Page struct {
	Limit int     // rows, at least 1
	After *Cursor // nil for the first page
}

const eventColumns = "seq, toUnixTimestamp64Milli(stored), toUnixTimestamp64Milli(time), id, type, keyspace, tenant, kind, aggregate_id, rev, " +
	"prev, hash, source, command, actor_kind, actor_id, ip, ip_known, user_agent, request_id, reason, data"

// trailBound is how far the trail was when a walk or an export began. The two logs
// are copied apart, so what one of them still lacked may be older than what was
// shown; it stays out.
type trailBound struct{ lifecycle, reads events.Seq }

func (s *Store) trailBound(ctx context.Context) (b trailBound, err error) {
	if b.lifecycle, _, err = s.trailOffset(ctx, events.Lifecycle); err != nil {
		return b, err
	}
	b.reads, _, err = s.trailOffset(ctx, events.Reads)
	return b, err
}

// within adds the condition that the rows were in the trail at the bound.
func (q *query) within(b trailBound) *query {
	return q.and("seq <= if(stream = 'lifecycle', {bound:UInt64}, {bound_reads:UInt64})", "bound", uint64(b.lifecycle), "bound_reads", uint64(b.reads))
}

// trailOrder is the order of the trail: by the time at which the log stored the
// event, within an instant by log, within a log by sequence.
const trailOrder = "stored, stream, seq"

// eventsPage returns the statement of one page of the trail, newest first.
func eventsPage(scope Scope, f *Filter, p Page, bound trailBound) (string, []any) {
	q := ask("events", scope).filtered(f).within(bound)
	if c := p.After; c != nil {
		q.and("stored <= fromUnixTimestamp64Milli({after_stored:Int64}) AND "+
			"("+trailOrder+") < (fromUnixTimestamp64Milli({after_stored:Int64}), {after_stream:String}, {after_seq:UInt64})",
			"after_stored", int64(c.time), "after_stream", string(trailStreams[c.n]), "after_seq", uint64(c.seq))
	}
	return q.selects(eventColumns, fmt.Sprintf(" ORDER BY stored DESC, stream DESC, seq DESC LIMIT %d", p.Limit+1)), q.args
}

// trailStreams numbers the logs of the trail, for cursors.
var trailStreams = []events.Stream{events.Lifecycle, events.Reads}

// Events returns one page of the trail, newest first, and where the next begins
// (nil on the last). Errors: ErrUnavailable.
func (s *Store) Events(ctx context.Context, scope Scope, f *Filter, p Page) ([]events.Recorded, *Cursor, error) {
	bound, err := s.trailBound(ctx)
	if err != nil {
		return nil, nil, err
	}
	if p.After != nil {
		bound = trailBound{p.After.bound, p.After.boundReads}
	}
	sql, args := eventsPage(scope, f, p, bound)
	var out []events.Recorded
	err = s.each(ctx, sql, args, func(rows driver.Rows) error {
		r, err := scanEvent(rows)
		out = append(out, r)
		return err
	})
	if err != nil || len(out) <= p.Limit {
		return out, nil, err
	}
	out = out[:p.Limit]
	r := &out[p.Limit-1]
	return out, &Cursor{bound: bound.lifecycle, boundReads: bound.reads, time: r.Stored,
		seq: r.Seq, n: uint64(slices.Index(trailStreams, r.Aggregate.Stream()))}, nil
}

// UseRow is one use as the ledger holds it.
type UseRow struct {
	events.Use
	ID     events.UseID
	Seq    events.Seq  // of its message in the use stream; Use.Seq is where it was decided
	Stored events.Time // of its message
}

const useColumns = "seq, toUnixTimestamp64Milli(stored), node, epoch, n, toUnixTimestamp64Milli(time), keyspace, tenant, key_id, reason, scope, " +
	"resource_kind, resource_id, ip, ip_known, cost, position, endpoint, request_id"

// usesPage returns the statement of one page of the ledger, newest decision
// first. Uses arrive late from a node that buffered, so the pages of one walk are
// held to what was complete at its first (bound).
func usesPage(scope Scope, f *Filter, p Page, bound events.Seq) (string, []any) {
	q := ask("uses", scope).filtered(f).and("seq <= {bound:UInt64}", "bound", uint64(bound))
	if c := p.After; c != nil {
		q.and("time <= fromUnixTimestamp64Milli({after_time:Int64}) AND "+
			"(time, seq, n) < (fromUnixTimestamp64Milli({after_time:Int64}), {after_seq:UInt64}, {after_n:UInt64})",
			"after_time", int64(c.time), "after_seq", uint64(c.seq), "after_n", c.n)
	}
	return q.selects(useColumns, fmt.Sprintf(" ORDER BY time DESC, seq DESC, n DESC LIMIT %d", p.Limit+1)), q.args
}

// Uses returns one page of the ledger, newest first, and where the next begins
// (nil on the last). Errors: ErrUnavailable.
func (s *Store) Uses(ctx context.Context, scope Scope, f *Filter, p Page) ([]UseRow, *Cursor, error) {
	bound, _, err := s.offset(ctx, "use_batches")
	if err != nil {
		return nil, nil, err
	}
	if p.After != nil {
		bound = p.After.bound
	}
	sql, args := usesPage(scope, f, p, bound)
	var out []UseRow
	err = s.each(ctx, sql, args, func(rows driver.Rows) error {
		u, err := scanUse(rows)
		out = append(out, u)
		return err
	})
	if err != nil || len(out) <= p.Limit {
		return out, nil, err
	}
	out = out[:p.Limit]
	u := &out[p.Limit-1]
	return out, &Cursor{bound: bound, time: u.Time, seq: u.Seq, n: u.ID.N}, nil
}

// names returns the present names of the keys that are actors of the rows, of those
// that the scope lets its reader know of.
func (s *Store) names(ctx context.Context, scope Scope, rows []events.Recorded) (map[string]string, error) {
	var ids []string
	for i := range rows {
		if a := rows[i].Actor; a.Kind == events.ActorKey && !slices.Contains(ids, a.ID) {
			ids = append(ids, a.ID)
		}
	}
	out := map[string]string{}
	if len(ids) == 0 {
		return out, nil
	}
	q := ask("events", scope).and("keyspace = {operators:String} AND kind = 'key' AND aggregate_id IN {ids:Array(String)}", "operators", string(events.Builtin), "ids", ids).
		and("type IN ('key.created', 'key.imported', 'key.renamed')")
	sql := q.selects("aggregate_id, argMax(if(type = 'key.renamed', JSONExtractString(data, 'after', 'name'), JSONExtractString(data, 'name')), seq)", " GROUP BY aggregate_id")
	err := s.each(ctx, sql, q.args, func(rows driver.Rows) error {
		var id, name string
		err := rows.Scan(&id, &name)
		out[id] = name
		return err
	})
	return out, err
}

// LastUsed returns when each key was last allowed, for those that ever were; a
// second may pass before a use shows. The caller answers for who may ask: control
// calls it with keys that it is about to show. Errors: ErrUnavailable.
func (s *Store) LastUsed(ctx context.Context, ids []events.KeyID) (map[events.KeyID]events.Time, error) {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return s.lastUsed(ctx, everything, names)
}

func (s *Store) lastUsed(ctx context.Context, scope Scope, ids []string) (map[events.KeyID]events.Time, error) {
	out := make(map[events.KeyID]events.Time, len(ids))
	if len(ids) == 0 {
		return out, nil
	}
	q := ask("use_key", scope).and("key_id IN {keys:Array(String)}", "keys", ids)
	sql := q.selects("key_id, toUnixTimestamp64Milli(max(last).1) AS used", " GROUP BY key_id HAVING used > 0")
	err := s.each(ctx, sql, q.args, func(rows driver.Rows) error {
		var name string
		var used int64
		if err := rows.Scan(&name, &used); err != nil {
			return err
		}
		id, err := events.ParseKeyID(name)
		out[id] = events.Time(used)
		return err
	})
	return out, err
}

// Watermark says how far the copy is: everything up to these sequences is in it.
type Watermark struct {
	EventsSeq events.Seq  `json:"events_seq"` // of the lifecycle log
	ReadsSeq  events.Seq  `json:"reads_seq"`  // of the log of who read the record
	UsesSeq   events.Seq  `json:"uses_seq"`
	StoredAt  events.Time `json:"stored_at,omitzero"` // when the log stored the latest of them
}

// Watermark reads how far the copy is. Errors: ErrUnavailable.
func (s *Store) Watermark(ctx context.Context) (Watermark, error) {
	e, eventStored, err := s.trailOffset(ctx, events.Lifecycle)
	if err != nil {
		return Watermark{}, err
	}
	r, readStored, err := s.trailOffset(ctx, events.Reads)
	if err != nil {
		return Watermark{}, err
	}
	u, useStored, err := s.offset(ctx, "use_batches")
	return Watermark{e, r, u, max(eventStored, readStored, useStored)}, err
}
