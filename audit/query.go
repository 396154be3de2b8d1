package audit

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

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
	if f.IP.IsValid() {
		if from, to := ipRange(f.IP); from == to {
			q.and("ip = toIPv6({ip:String})", "ip", from.String())
		} else {
			q.and("ip >= toIPv6({ip_from:String}) AND ip <= toIPv6({ip_to:String})", "ip_from", from.String(), "ip_to", to.String())
		}
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
	"prev, hash, source, command, actor_kind, actor_id, ip, user_agent, request_id, reason, data"

// eventsPage returns the statement of one page of the trail, newest first. Its
// order is the log's, so a page needs no other bound than where the last ended.
func eventsPage(scope Scope, f *Filter, p Page) (string, []any) {
	q := ask("events", scope).filtered(f)
	if p.After != nil {
		q.and("seq < {after_seq:UInt64}", "after_seq", uint64(p.After.seq))
	}
	return q.selects(eventColumns, fmt.Sprintf(" ORDER BY seq DESC LIMIT %d", p.Limit+1)), q.args
}

// Events returns one page of the trail, newest first, and where the next begins
// (nil on the last). Errors: ErrUnavailable.
func (s *Store) Events(ctx context.Context, scope Scope, f *Filter, p Page) ([]events.Recorded, *Cursor, error) {
	sql, args := eventsPage(scope, f, p)
	var out []events.Recorded
	err := s.each(ctx, sql, args, func(rows driver.Rows) error {
		r, err := scanEvent(rows)
		out = append(out, r)
		return err
	})
	if err != nil || len(out) <= p.Limit {
		return out, nil, err
	}
	out = out[:p.Limit]
	return out, &Cursor{seq: out[p.Limit-1].Seq}, nil
}

// UseRow is one use as the ledger holds it.
type UseRow struct {
	events.Use
	ID     events.UseID
	Seq    events.Seq  // of its message in the use stream; Use.Seq is where it was decided
	Stored events.Time // of its message
}

const useColumns = "seq, toUnixTimestamp64Milli(stored), node, epoch, n, toUnixTimestamp64Milli(time), keyspace, tenant, key_id, reason, scope, " +
	"resource_kind, resource_id, ip, cost, position"

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

// UsageCell counts the uses of one hour or day with one reason.
type UsageCell struct {
	At     events.Time // start of the hour or day, UTC
	Reason events.Reason
	Count  uint64
}

// usagePage returns the statement of one page of counts, newest cell first. They
// come from the rollups, but for a key's hours, which are counted from the raw
// rows (a rollup per key and hour would have nearly as many cells as uses).
// A cell that has begun before To counts whole, as does the one From lies in.
func usagePage(scope Scope, f *Filter, p Page) (string, []any) {
	const day, hour = "toUnixTimestamp64Milli(toDateTime64(%s, 3, 'UTC'))", "intDiv(toUnixTimestamp64Milli(time), 3600000) * 3600000"
	table, cell, count, width := "use_hour", "toUnixTimestamp64Milli(toDateTime64(hour, 3, 'UTC'))", "sum(n)", int64(time.Hour/time.Millisecond)
	switch {
	case f.PerDay && !f.Key.IsZero():
		table, cell = "use_day_key", fmt.Sprintf(day, "day")
	case f.PerDay:
		cell = fmt.Sprintf(day, "toStartOfDay(hour)")
	case !f.Key.IsZero():
		table, cell, count = "uses", hour, "count()"
	}
	if f.PerDay {
		width = int64(24 * time.Hour / time.Millisecond)
	}
	q := ask(table, scope).filtered(f)
	if f.From != 0 {
		q.and(cell+" >= {from:Int64}", "from", int64(f.From)/width*width)
	}
	if f.To != 0 {
		q.and(cell+" < {to:Int64}", "to", int64(f.To))
	}
	tail := " GROUP BY at, reason"
	if c := p.After; c != nil {
		tail += " HAVING at < {after_at:Int64} OR at = {after_at:Int64} AND reason > {after_reason:String}"
		q.args = append(q.args, named("after_at", int64(c.time)), named("after_reason", events.Reason(c.n).String()))
	}
	return q.selects(cell+" AS at, reason, "+count+" AS count", tail+fmt.Sprintf(" ORDER BY at DESC, reason LIMIT %d", p.Limit+1)), q.args
}

// Usage returns one page of counts, newest first, and where the next begins (nil
// on the last). Errors: ErrUnavailable.
func (s *Store) Usage(ctx context.Context, scope Scope, f *Filter, p Page) ([]UsageCell, *Cursor, error) {
	sql, args := usagePage(scope, f, p)
	var out []UsageCell
	err := s.each(ctx, sql, args, func(rows driver.Rows) error {
		var at int64
		var reason string
		var c UsageCell
		if err := rows.Scan(&at, &reason, &c.Count); err != nil {
			return err
		}
		c.At = events.Time(at)
		var err error
		c.Reason, err = events.ParseReason(reason)
		out = append(out, c)
		return err
	})
	if err != nil || len(out) <= p.Limit {
		return out, nil, err
	}
	out = out[:p.Limit]
	c := &out[p.Limit-1]
	return out, &Cursor{time: c.At, n: uint64(c.Reason)}, nil
}

// LastUsed returns when each key was last allowed, for those that ever were; a
// second may pass before a use shows. The caller answers for who may ask: control
// calls it with keys that it is about to show. Errors: ErrUnavailable.
func (s *Store) LastUsed(ctx context.Context, ids []events.KeyID) (map[events.KeyID]events.Time, error) {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return s.lastUsed(ctx, Scope{some: true}, names)
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
	EventsSeq events.Seq  `json:"events_seq"`
	UsesSeq   events.Seq  `json:"uses_seq"`
	StoredAt  events.Time `json:"stored_at,omitzero"` // when the log stored the latest of them
}

// Watermark reads how far the copy is. Errors: ErrUnavailable.
func (s *Store) Watermark(ctx context.Context) (Watermark, error) {
	e, eventStored, err := s.offset(ctx, "events")
	if err != nil {
		return Watermark{}, err
	}
	u, useStored, err := s.offset(ctx, "use_batches")
	return Watermark{e, u, max(eventStored, useStored)}, err
}
