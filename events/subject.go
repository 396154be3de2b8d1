package events

import (
	"fmt"
	"strings"
)

// LifePrefix starts every subject of the lifecycle stream.
const LifePrefix = "kt.life."

// AggregateKind is what a subject is about.
type AggregateKind string

// The kinds of aggregate.
const (
	KindKey      AggregateKind = "key"
	KindRole     AggregateKind = "role"
	KindKeyspace AggregateKind = "keyspace"
	KindTenant   AggregateKind = "tenant"
	KindReader   AggregateKind = "reader" // one who reads the record; its id is an actor id
)

// Aggregate names one history: all events of one key, role, keyspace, tenant or
// reader.
// It maps one to one onto a subject, so that optimistic concurrency is one
// expectation (E2).
type Aggregate struct {
	Kind     AggregateKind
	Keyspace KeyspaceID
	Tenant   TenantID // NoTenant for keyspaces and readers
	ID       string   // key id, role id, keyspace id, tenant id or reader's actor id
}

// KeyAggregate names the history of a key.
func KeyAggregate(ks KeyspaceID, tenant TenantID, id KeyID) Aggregate {
	return Aggregate{KindKey, ks, tenant, id.String()}
}

// RoleAggregate names the history of a role.
func RoleAggregate(ks KeyspaceID, tenant TenantID, role RoleID) Aggregate {
	return Aggregate{KindRole, ks, tenant, string(role)}
}

// KeyspaceAggregate names the history of a keyspace.
func KeyspaceAggregate(ks KeyspaceID) Aggregate {
	return Aggregate{KindKeyspace, ks, NoTenant, string(ks)}
}

// TenantAggregate names the history of what holds for a tenant as a whole.
func TenantAggregate(ks KeyspaceID, tenant TenantID) Aggregate {
	return Aggregate{KindTenant, ks, tenant, string(tenant)}
}

// ReaderAggregate names the history of what one actor read of the record.
func ReaderAggregate(a Actor) Aggregate {
	return Aggregate{KindReader, Builtin, NoTenant, a.ID}
}

// Subject returns "kt.life.<keyspace>.<tenant>.<kind>.<id>".
func (a Aggregate) Subject() string {
	return LifePrefix + string(a.Keyspace) + "." + string(a.Tenant) + "." + string(a.Kind) + "." + a.ID
}

// String returns "<keyspace>/<tenant>/<kind>/<id>", which is also the
// CloudEvents subject attribute.
func (a Aggregate) String() string {
	return string(a.Keyspace) + "/" + string(a.Tenant) + "/" + string(a.Kind) + "/" + a.ID
}

// ParseSubject is the inverse of Subject; it refuses what Subject would not print.
func ParseSubject(s string) (Aggregate, error) {
	rest, ok := strings.CutPrefix(s, LifePrefix)
	parts := strings.Split(rest, ".")
	if !ok || len(parts) != 4 {
		return Aggregate{}, fmt.Errorf("subject %q: want %s<keyspace>.<tenant>.<kind>.<id>", clip(s), LifePrefix)
	}
	a := Aggregate{AggregateKind(parts[2]), KeyspaceID(parts[0]), TenantID(parts[1]), parts[3]}
	if err := a.Validate(); err != nil {
		return Aggregate{}, fmt.Errorf("subject %q: %w", clip(s), err)
	}
	return a, nil
}

// Validate reports whether the aggregate can exist.
func (a Aggregate) Validate() error {
	if err := a.Keyspace.Validate(); err != nil {
		return err
	}
	switch a.Kind {
	case KindKey:
		if _, err := ParseKeyID(a.ID); err != nil {
			return err
		}
		return a.Tenant.Validate()
	case KindRole:
		if err := RoleID(a.ID).Validate(); err != nil {
			return err
		}
		return a.Tenant.Validate()
	case KindKeyspace:
		if a.ID != string(a.Keyspace) || a.Tenant != NoTenant {
			return fmt.Errorf("keyspace aggregate: id must equal the keyspace and the tenant must be %q", NoTenant)
		}
		return nil
	case KindTenant:
		if a.ID != string(a.Tenant) {
			return fmt.Errorf("tenant aggregate: id must equal the tenant")
		}
		return a.Tenant.Validate()
	case KindReader:
		if !nameWord.match(a.ID) || a.Keyspace != Builtin || a.Tenant != NoTenant {
			return fmt.Errorf("reader aggregate: want an actor id in keyspace %q, tenant %q", Builtin, NoTenant)
		}
		return nil
	}
	return fmt.Errorf("aggregate kind %q: want key, role, keyspace, tenant or reader", clip(string(a.Kind)))
}
