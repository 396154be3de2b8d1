package audit

import (
	"cmp"
	"slices"
	"testing"
	"time"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// fixture is a log with two keyspaces of two tenants each and a tenant of the
// built-in one, two keys a tenant, three hundred uses across the turn of a month,
// and its copy.
type fixture struct {
	store *Store
	log   *logtest.MemLog
	clock *clock
	keys  []events.KeyRef
	uses  []UseRow
	node  events.NodeID
	n     uint64
	stop  func() error // of the writer, for tests that damage the copy
}

func newFixture(t testing.TB) *fixture {
	f := &fixture{store: openStore(t, enginetest.Database(t)), log: logtest.New(t), clock: clockAt(start), node: "n1", n: 1}
	f.log.SetClock(f.clock.now)
	f.log.Reads().SetClock(f.clock.now)
	f.stop = startWriter(t, WriterConfig{Store: f.store, Log: f.log, Reads: f.log.Reads(), Uses: f.log, Linger: 5 * time.Millisecond})
	for _, ks := range []events.KeyspaceID{"scribe", "other", events.Builtin} {
		logtest.Append(t, f.log, events.KeyspaceAggregate(ks), &events.KeyspaceDefined{Definition: events.BuiltinDefinition()})
		tenants := []events.TenantID{"acme", "globex"}
		if ks == events.Builtin {
			tenants = []events.TenantID{events.RootTenant}
		}
		for _, tenant := range tenants {
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
		f.clock.set(f.clock.get().Add(17 * time.Second))
		before, after := events.Label{Name: "test"}, events.Label{Name: `=1+1, "again" \ 'x'`}
		if i >= len(f.keys) {
			before = after
		}
		logtest.Append(t, f.log, f.keys[i%len(f.keys)].Aggregate(), &events.KeyRenamed{Before: before, After: after})
		logtest.Append(t, f.log.Reads(), events.ReaderAggregate(events.Actor{ID: "someone"}), &events.AuditQueried{Kind: "uses"})
	}
	waitCopied(t, f.store, f.log)
	return f
}

// trail is what both logs hold, in the trail's order.
func (f *fixture) trail() []events.Recorded {
	return slices.SortedFunc(slices.Values(append(f.log.Records(), f.log.Reads().Records()...)), func(a, b events.Recorded) int {
		return cmp.Or(cmp.Compare(a.Stored, b.Stored), cmp.Compare(a.Aggregate.Stream(), b.Aggregate.Stream()), cmp.Compare(a.Seq, b.Seq))
	})
}

// publish adds one message of n uses.
func (f *fixture) publish(t testing.TB, n int) {
	t.Helper()
	reasons := events.Reasons()
	ips := []string{"203.0.113.7", "203.0.113.200", "198.51.100.1", "2001:db8::1", ""}
	b := events.UseBatch{Node: f.node, Epoch: 7, Kind: events.BatchUses, First: f.n}
	for i := range n {
		k := f.keys[i%len(f.keys)]
		u := use(f.clock.get().Add(-time.Duration(i%11)*time.Second), k.Keyspace, k.Tenant, k.Key, reasons[(int(f.n)+i)%len(reasons)], ips[i%len(ips)])
		u.Scope = []string{"read", "write", ""}[i%3]
		u.Cost = uint32(1 + i%4)
		switch i % 10 {
		case 8: // an unknown key at a known keyspace
			u.Tenant, u.Key, u.Reason = "", events.KeyID{}, events.ReasonKeyUnknown
		case 9:
			u.Keyspace, u.Tenant, u.Key, u.Reason, u.Resource = "", "", events.KeyID{}, events.ReasonKeyMalformed, events.Resource{}
		}
		if !u.Reason.Allowed() {
			u.RequestID = events.RequestID{1, byte(i)}
		}
		u.Endpoint = []string{"", "", "", "GET /v1/keys/{id}", "PUT /v1/keys/{id}/scopes"}[i%5]
		b.Uses = append(b.Uses, u)
	}
	at := f.clock.get()
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
		"operators":         {Actor: actor, Scopes: scopes, Tenants: []events.TenantID{events.RootTenant}},
		"built-in":          {Actor: actor, Scopes: scopes, Keyspaces: []events.KeyspaceID{events.Builtin}, Tenants: []events.TenantID{events.RootTenant}},
		"nobody's":          {Actor: actor, Scopes: scopes, Keyspaces: []events.KeyspaceID{"none"}},
	}
}
