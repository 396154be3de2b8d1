package audit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

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

// scanEvent reads a row of eventColumns back into the event that it was.
func scanEvent(rows driver.Rows) (r events.Recorded, err error) {
	var seq, rev uint64
	var stored, at int64
	var id, typ, keyspace, tenant, kind, aggregate, prev, hash, source, command, actorKind, actorID, agent, request, reason, data string
	err = rows.Scan(&seq, &stored, &at, &id, &typ, &keyspace, &tenant, &kind, &aggregate, &rev, &prev, &hash, &source, &command,
		&actorKind, &actorID, &r.IP, &agent, &request, &reason, &data)
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
	r.IP, r.UserAgent, r.RequestID, r.Reason = unmap(r.IP), agent, request, reason
	if r.ID, err = events.ParseEventID(id); err != nil {
		return r, err
	}
	empty := events.Catalogue[events.Type(typ)]
	if empty == nil {
		return r, &events.UnknownTypeError{Type: typ}
	}
	r.Data = empty()
	return r, json.Unmarshal([]byte(data), r.Data, json.RejectUnknownMembers(true))
}

func scanUse(rows driver.Rows) (u UseRow, err error) {
	var seq, position uint64
	var stored, at int64
	var node, keyspace, tenant, key, reason string
	err = rows.Scan(&seq, &stored, &node, &u.ID.Epoch, &u.ID.N, &at, &keyspace, &tenant, &key, &reason, &u.Scope,
		&u.Resource.Kind, &u.Resource.ID, &u.IP, &u.Cost, &position)
	if err != nil {
		return u, err
	}
	u.Seq, u.Stored, u.ID.Node = events.Seq(seq), events.Time(stored), events.NodeID(node)
	u.Time, u.Keyspace, u.Tenant, u.Use.Seq = events.Time(at), events.KeyspaceID(keyspace), events.TenantID(tenant), events.Seq(position)
	u.IP = unmap(u.IP)
	if key != "" {
		if u.Key, err = events.ParseKeyID(key); err != nil {
			return u, err
		}
	}
	u.Reason, err = events.ParseReason(reason)
	return u, err
}

// unmap is the inverse of ipv6.
func unmap(a netip.Addr) netip.Addr {
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}
