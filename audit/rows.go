package audit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
)

// each runs a query and hands on row by row.
func (s *Store) each(ctx context.Context, sql string, args []any, f func(driver.Rows) error) error {
	const doing = "ask the audit copy"
	rows, err := s.conn.Query(ctx, sql, args...)
	if err != nil {
		return s.fault(ctx, doing, err)
	}
	for rows.Next() {
		if err := f(rows); err != nil {
			return errors.Join(fmt.Errorf("read a row of the audit copy: %w", err), rows.Close())
		}
	}
	return s.fault(ctx, doing, errors.Join(rows.Err(), rows.Close()))
}

// scanEvent reads a row of eventColumns, and of more behind them, back into the
// event that it was.
func scanEvent(rows driver.Rows, more ...any) (r events.Recorded, err error) {
	var seq, rev uint64
	var stored, at int64
	var known bool
	var id, typ, keyspace, tenant, kind, aggregate, prev, hash, source, command, actorKind, actorID, agent, request, reason, data string
	err = rows.Scan(append([]any{&seq, &stored, &at, &id, &typ, &keyspace, &tenant, &kind, &aggregate, &rev, &prev, &hash, &source, &command,
		&actorKind, &actorID, &r.IP, &known, &agent, &request, &reason, &data}, more...)...)
	if err != nil {
		return r, err
	}
	if len(prev) != len(r.Prev) || len(hash) != len(r.Hash) {
		return r, fmt.Errorf("event %d: hash of %d bytes", seq, len(hash))
	}
	r.Seq, r.Stored, r.Hash = events.Seq(seq), events.Time(stored), events.Hash([]byte(hash))
	r.Aggregate = events.Aggregate{Kind: events.AggregateKind(kind), Keyspace: events.KeyspaceID(keyspace), Tenant: events.TenantID(tenant), ID: aggregate}
	r.Time, r.Rev, r.Prev, r.Source, r.Command = events.Time(at), rev, events.Hash([]byte(prev)), source, command
	r.Actor = events.Actor{Kind: events.ActorKind(actorKind), ID: actorID}
	r.UserAgent, r.RequestID, r.Reason = agent, request, reason
	if r.IP, err = unmap(r.IP, known); err != nil {
		return r, err
	}
	if r.ID, err = events.ParseEventID(id); err != nil {
		return r, err
	}
	if r.Data = events.NewData(events.Type(typ)); r.Data == nil {
		return r, &events.NewerError{What: "event type " + strconv.Quote(typ)}
	}
	return r, json.Unmarshal([]byte(data), r.Data, json.RejectUnknownMembers(true))
}

func scanUse(rows driver.Rows) (u UseRow, err error) {
	var seq, position uint64
	var stored, at int64
	var known bool
	var node, keyspace, tenant, key, reason, request string
	err = rows.Scan(&seq, &stored, &node, &u.ID.Epoch, &u.ID.N, &at, &keyspace, &tenant, &key, &reason, &u.Scope,
		&u.Resource.Kind, &u.Resource.ID, &u.IP, &known, &u.Cost, &position, &u.Endpoint, &request)
	if err != nil {
		return u, err
	}
	u.Seq, u.Stored, u.ID.Node = events.Seq(seq), events.Time(stored), events.NodeID(node)
	u.Time, u.Keyspace, u.Tenant, u.Use.Seq = events.Time(at), events.KeyspaceID(keyspace), events.TenantID(tenant), events.Seq(position)
	if u.IP, err = unmap(u.IP, known); err != nil {
		return u, err
	}
	if key != "" {
		if u.Key, err = events.ParseKeyID(key); err != nil {
			return u, err
		}
	}
	if request != "" {
		if u.RequestID, err = events.ParseRequestID(request); err != nil {
			return u, err
		}
	}
	u.Reason, err = events.ParseReason(reason)
	return u, err
}

// unmap returns the address that the columns ip and ip_known hold.
func unmap(a netip.Addr, known bool) (netip.Addr, error) {
	if known {
		return a.Unmap(), nil
	}
	if !a.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("address %s is said not to be known", a)
	}
	return netip.Addr{}, nil
}
