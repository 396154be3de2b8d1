package audit

import (
	"testing"
	"time"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// fixture is a log with two keyspaces of two tenants each, two keys a tenant,
// three hundred uses across the turn of a month, and its copy.
type fixture struct {
	store *Store
	log   *logtest.MemLog
	clock *clock
	keys  []events.KeyRef
	uses  []UseRow
	node  events.NodeID
	n     uint64
}

func newFixture(t testing.TB) *fixture {
	f := &fixture{store: openStore(t, enginetest.Database(t)), log: logtest.New(t), clock: &clock{start}, node: "n1", n: 1}
	f.log.SetClock(f.clock.now)
	startWriter(t, WriterConfig{Store: f.store, Log: f.log, Uses: f.log, Linger: 5 * time.Millisecond})
	for _, ks := range []events.KeyspaceID{"scribe", "other"} {
		logtest.Append(t, f.log, events.KeyspaceAggregate(ks), &events.KeyspaceDefined{Definition: events.BuiltinDefinition()})
		for _, tenant := range []events.TenantID{"acme", "globex"} {
			for range 2 {
				ref := logtest.NewKeyRef(ks, tenant)
				f.keys = append(f.keys, ref)
				logtest.Append(t, f.log, ref.Aggregate(), logtest.Created(ref.Key.String()), &events.KeyDisabled{}, &events.KeyEnabled{})
			}
		}
	}
	publish(t, f.log, events.UseBatch{Node: f.node, Epoch: 7, Kind: events.BatchOpen})
	for i := range 10 {
		f.publish(t, 30)
		f.clock.at = f.clock.at.Add(17 * time.Second)
		before, after := events.Label{Name: "test"}, events.Label{Name: `=1+1, "again" \ 'x'`}
		if i >= len(f.keys) {
			before = after
		}
		logtest.Append(t, f.log, f.keys[i%len(f.keys)].Aggregate(), &events.KeyRenamed{Before: before, After: after})
	}
	waitCopied(t, f.store, f.log)
	return f
}

// publish adds one message of n uses.
func (f *fixture) publish(t testing.TB, n int) {
	t.Helper()
	reasons := events.Reasons()
	ips := []string{"203.0.113.7", "203.0.113.200", "198.51.100.1", "2001:db8::1", ""}
	b := events.UseBatch{Node: f.node, Epoch: 7, Kind: events.BatchUses, First: f.n}
	for i := range n {
		k := f.keys[i%len(f.keys)]
		u := use(f.clock.at.Add(-time.Duration(i%11)*time.Second), k.Keyspace, k.Tenant, k.Key, reasons[(int(f.n)+i)%len(reasons)], ips[i%len(ips)])
		u.Scope = []string{"read", "write", ""}[i%3]
		u.Cost = uint32(1 + i%4)
		switch i % 10 {
		case 8: // an unknown key at a known keyspace
			u.Tenant, u.Key, u.Reason = "", events.KeyID{}, events.ReasonKeyUnknown
		case 9:
			u.Keyspace, u.Tenant, u.Key, u.Reason, u.Resource = "", "", events.KeyID{}, events.ReasonKeyMalformed, events.Resource{}
		}
		b.Uses = append(b.Uses, u)
	}
	at := f.clock.at
	seq := publish(t, f.log, b)
	for i, u := range b.Uses {
		f.uses = append(f.uses, UseRow{Use: u, ID: events.UseID{Node: f.node, Epoch: 7, N: f.n + uint64(i)}, Seq: seq, Stored: at})
	}
	f.n += uint64(n)
}

// principals are readers with every sort of restriction.
func principals() map[string]*events.Principal {
	actor := events.Actor{Kind: events.ActorKey, ID: keyID(999).String()}
	scopes := []string{events.ScopeAuditExport, events.ScopeAuditRead}
	return map[string]*events.Principal{
		"root":              {Actor: actor, Scopes: scopes},
		"keyspace":          {Actor: actor, Scopes: scopes, Keyspaces: []events.KeyspaceID{"scribe"}},
		"tenant":            {Actor: actor, Scopes: scopes, Tenants: []events.TenantID{"acme"}},
		"keyspace + tenant": {Actor: actor, Scopes: scopes, Keyspaces: []events.KeyspaceID{"scribe"}, Tenants: []events.TenantID{"acme"}},
		"two tenants":       {Actor: actor, Scopes: scopes, Tenants: []events.TenantID{"acme", "globex"}},
		"nobody's":          {Actor: actor, Scopes: scopes, Keyspaces: []events.KeyspaceID{"none"}},
	}
}
