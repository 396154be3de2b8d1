package events

import (
	"fmt"
	"strings"

	"github.com/keytrail/keytrail/events/input"
)

// What the subjects of the two logs of events start with.
const (
	LifePrefix = "kt.life." // the lifecycle log
	ReadPrefix = "kt.read." // the read log
)

// Stream is one of the two logs of events. They are apart because they fill up
// apart: reading, which anybody with a key for it may do without end, must not
// take the room that revocations need.
type Stream string

// The streams. Their names stand in the audit copy.
const (
	Lifecycle Stream = "lifecycle" // what happened to keys, roles, keyspaces and tenants
	Reads     Stream = "reads"     // who read and exported what
)

// Accepts reports whether events of the aggregate belong to the stream; the error
// names the stream that they belong to.
func (s Stream) Accepts(a Aggregate) error {
	if of := a.Stream(); of != s {
		return fmt.Errorf("aggregate %s belongs to the log of %s, not to that of %s", a, of, s)
	}
	return nil
}

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

// Stream returns which log holds the history: Reads for a reader, else Lifecycle.
func (a Aggregate) Stream() Stream {
	if a.Kind == KindReader {
		return Reads
	}
	return Lifecycle
}

// Subject returns "kt.life.<keyspace>.<tenant>.<kind>.<id>", for a reader
// "kt.read.<id>".
func (a Aggregate) Subject() string {
	if a.Kind == KindReader {
		return ReadPrefix + a.ID
	}
	return LifePrefix + string(a.Keyspace) + "." + string(a.Tenant) + "." + string(a.Kind) + "." + a.ID
}

// String returns "<keyspace>/<tenant>/<kind>/<id>", which is also the
// CloudEvents subject attribute.
func (a Aggregate) String() string {
	return string(a.Keyspace) + "/" + string(a.Tenant) + "/" + string(a.Kind) + "/" + a.ID
}

// ParseSubject is the inverse of Subject; it refuses what Subject would not print.
func ParseSubject(s string) (Aggregate, error) {
	var a Aggregate
	if reader, ok := strings.CutPrefix(s, ReadPrefix); ok {
		a = ReaderAggregate(Actor{ID: reader})
	} else {
		rest, ok := strings.CutPrefix(s, LifePrefix)
		parts := strings.Split(rest, ".")
		if !ok || len(parts) != 4 {
			return Aggregate{}, fmt.Errorf("subject %s: want %s<keyspace>.<tenant>.<kind>.<id> or %s<reader>", input.Echo(s), LifePrefix, ReadPrefix)
		}
		a = Aggregate{AggregateKind(parts[2]), KeyspaceID(parts[0]), TenantID(parts[1]), parts[3]}
	}
	err := a.Validate()
	if err == nil && a.Subject() != s {
		err = fmt.Errorf("the history of a reader has the subject %s<reader>", ReadPrefix)
	}
	if err != nil {
		return Aggregate{}, fmt.Errorf("subject %s: %w", input.Echo(s), err)
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
			return fmt.Errorf("keyspace aggregate: id must equal the keyspace and the tenant must be %s", input.Quote(NoTenant))
		}
		return nil
	case KindTenant:
		if a.ID != string(a.Tenant) {
			return fmt.Errorf("tenant aggregate: id must equal the tenant")
		}
		return a.Tenant.Validate()
	case KindReader:
		if !nameWord.Match(a.ID) || a.Keyspace != Builtin || a.Tenant != NoTenant {
			return fmt.Errorf("reader aggregate: want an actor id in keyspace %s, tenant %s", input.Quote(Builtin), input.Quote(NoTenant))
		}
		return nil
	}
	return fmt.Errorf("aggregate kind %s: want key, role, keyspace, tenant or reader", input.Echo(a.Kind))
}
