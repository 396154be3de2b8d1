package projections

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/oklog/ulid/v2"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// world writes legal histories of a few keyspaces, tenants, roles and keys.
type world struct {
	t      testing.TB
	log    []events.Recorded
	chains map[events.Aggregate]events.Chain
	now    events.Time
	refs   []events.KeyRef
	nextID uint64
}

func newWorld(t testing.TB) *world {
	return &world{t: t, chains: map[events.Aggregate]events.Chain{}, now: 1_800_000_000_000}
}

// add appends one event to the history of a.
func (w *world) add(a events.Aggregate, d events.Data) *events.Recorded {
	w.t.Helper()
	w.now++
	e := logtest.Event(a, d)
	e.Time = w.now
	c := w.chains[a]
	write := logtest.Stamp(&c, e)
	c.Seq = events.Seq(len(w.log) + 1)
	w.chains[a] = c
	w.log = append(w.log, events.Recorded{Event: write.Event, Seq: c.Seq, Stored: w.now, Hash: c.Head})
	return &w.log[len(w.log)-1]
}

func (w *world) define(ks events.KeyspaceID, def keyspace.Definition) {
	w.t.Helper()
	w.add(events.KeyspaceAggregate(ks), &events.KeyspaceDefined{Definition: def})
}

func (w *world) role(ks events.KeyspaceID, tenant events.TenantID, role events.RoleID, scopes ...string) {
	w.t.Helper()
	w.add(events.RoleAggregate(ks, tenant, role), &events.RoleDefined{Scopes: scopes})
}

// tenantLimit sets the limit of a tenant as a whole.
func (w *world) tenantLimit(ks events.KeyspaceID, tenant events.TenantID, limit *keyspace.Limit) {
	w.t.Helper()
	a := events.TenantAggregate(ks, tenant)
	d := &events.TenantLimitUpdated{After: limit}
	if h := w.history(a); len(h) > 0 {
		d.Before = h[len(h)-1].Data.(*events.TenantLimitUpdated).After
	}
	w.add(a, d)
}

// create starts a key's life; change may set what it likes.
func (w *world) create(ks events.KeyspaceID, tenant events.TenantID, secret string, change func(*events.KeyCreated)) events.KeyRef {
	w.t.Helper()
	return w.start(ks, tenant, secret, change, func(d *events.KeyCreated) events.Data { return d })
}

// take starts the life here of a key of another issuer.
func (w *world) take(ks events.KeyspaceID, tenant events.TenantID, secret string, change func(*events.KeyCreated)) events.KeyRef {
	w.t.Helper()
	return w.start(ks, tenant, secret, change, func(d *events.KeyCreated) events.Data { return &events.KeyImported{KeyCreated: *d} })
}

func (w *world) start(ks events.KeyspaceID, tenant events.TenantID, secret string, change func(*events.KeyCreated), data func(*events.KeyCreated) events.Data) events.KeyRef {
	w.t.Helper()
	w.nextID++
	id := events.KeyID(ulid.MustNew(uint64(w.now), nil))
	id[14], id[15] = byte(w.nextID>>8), byte(w.nextID)
	d := logtest.Created(secret)
	if change != nil {
		change(d)
	}
	ref := events.KeyRef{Keyspace: ks, Tenant: tenant, Key: id}
	w.add(ref.Aggregate(), data(d))
	w.refs = append(w.refs, ref)
	return ref
}

// history is what Log.Load would return.
func (w *world) history(a events.Aggregate) (h []events.Recorded) {
	for _, r := range w.log {
		if r.Aggregate == a {
			h = append(h, r)
		}
	}
	return h
}

func (w *world) key(ref events.KeyRef) events.Key {
	w.t.Helper()
	k, err := events.FoldKey(w.history(ref.Aggregate()))
	if err != nil {
		w.t.Fatal(err)
	}
	return k
}

var (
	someSpaces    = []events.KeyspaceID{"alpha", "beta"}
	someTenants   = []events.TenantID{"t1", "t2", "t3"}
	someRoles     = []events.RoleID{"admin", "reader"}
	someScopes    = []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"}
	somePlans     = []string{"free", "gold"}
	someResources = []events.Resource{{Kind: "division", ID: "d1"}, {Kind: "project", ID: "p1"}, {Kind: "project", ID: "p2"}}
	somePrefixes  = []netip.Prefix{
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("192.0.2.1/32"),
		netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/25"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("::/0"),
	}
	someAddrs = []netip.Addr{{}, netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("::ffff:10.1.2.3"), netip.MustParseAddr("192.0.2.1"),
		netip.MustParseAddr("203.0.113.200"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::1%eth0")}
)

// lookup reads the key with the digest; nil for none.
func lookup(v *Keys, d events.Digest) *Key {
	slot, ok := v.Find(d)
	if !ok {
		return nil
	}
	k := new(Key)
	v.Read(slot, k)
	return k
}

// byID is Keys.ByID; nil for none.
func byID(v *Keys, id events.KeyID) *Key {
	if k := new(Key); v.ByID(id, k) {
		return k
	}
	return nil
}

// some draws a subset of list, in its order.
func some[T comparable](rt *rapid.T, label string, list []T) (out []T) {
	bits := rapid.Uint16().Draw(rt, label)
	for i, x := range list {
		if bits>>i&1 == 1 {
			out = append(out, x)
		}
	}
	return out
}

func drawDefinition(rt *rapid.T) keyspace.Definition {
	d := keyspace.Definition{
		KeyTypes:  []keyspace.KeyType{{Name: "secret", Prefix: "sk_"}},
		Resources: []string{"division", "project"},
	}
	catalogue := some(rt, "catalogue", someScopes)
	for _, s := range catalogue {
		d.Scopes = append(d.Scopes, keyspace.ScopeDef{Name: s, Implies: some(rt, "implies", catalogue[:rapid.IntRange(0, min(2, len(catalogue))).Draw(rt, "n")])})
	}
	if rapid.Bool().Draw(rt, "publishable") {
		d.KeyTypes = append(d.KeyTypes, keyspace.KeyType{Name: "publishable", Prefix: "pk_", Ceiling: some(rt, "ceiling", catalogue)})
	}
	for _, p := range some(rt, "plans", somePlans) {
		d.Plans = append(d.Plans, keyspace.Plan{Name: p, PerMinute: rapid.Int64Range(1, 9).Draw(rt, "per minute"), Burst: 1})
	}
	switch rapid.IntRange(0, 2).Draw(rt, "default limit") {
	case 1:
		d.Limit = &keyspace.Limit{PerMinute: rapid.Int64Range(10, 19).Draw(rt, "per minute"), Burst: 2}
	case 2:
		if len(d.Plans) > 0 {
			d.Limit = &keyspace.Limit{Plan: d.Plans[0].Name}
		}
	}
	d.TenantLimit = rapid.SampledFrom([]*keyspace.Limit{nil, nil, {PerMinute: 200, Burst: 3}, d.Limit}).Draw(rt, "tenant limit")
	for i := range d.Scopes {
		d.Scopes[i].Level = rapid.SampledFrom([]string{"", keyspace.LevelTenant, "division", "project"}).Draw(rt, "level")
	}
	if rapid.Bool().Draw(rt, "checksum") {
		d.KeyTypes[0].Checksum = keyspace.CRC32
	}
	if rapid.Bool().Draw(rt, "order") {
		d.Checks = rapid.Permutation(keyspace.DefaultChecks()).Draw(rt, "checks")
	}
	d.HTTPSOnly = rapid.Bool().Draw(rt, "https only")
	if rapid.Bool().Draw(rt, "errors") {
		d.Errors.Envelope = jsontext.Value(`{"code":"{code}","n":[1,null]}`)
		d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"rate_limited", "invalid"}, Status: rapid.IntRange(400, 599).Draw(rt, "status"), Code: "slow"},
			{Reasons: []string{"key_unknown"}, Message: "who?"}}
	}
	if err := d.Validate().OrNil(); err != nil {
		rt.Fatal(err)
	}
	return d
}

func drawLimit(rt *rapid.T) *keyspace.Limit {
	switch rapid.IntRange(0, 3).Draw(rt, "limit") {
	case 1:
		return &keyspace.Limit{PerMinute: rapid.Int64Range(100, 103).Draw(rt, "per minute"), Burst: 5}
	case 2, 3:
		return &keyspace.Limit{Plan: rapid.SampledFrom(somePlans).Draw(rt, "plan")}
	}
	return nil
}

// step appends one random event that the histories admit.
func (w *world) step(rt *rapid.T) {
	ks := rapid.SampledFrom(someSpaces).Draw(rt, "keyspace")
	tenant := rapid.SampledFrom(someTenants).Draw(rt, "tenant")
	switch rapid.IntRange(0, 12).Draw(rt, "what") {
	case 0:
		w.define(ks, drawDefinition(rt))
	case 1:
		w.role(ks, tenant, rapid.SampledFrom(someRoles).Draw(rt, "role"), some(rt, "scopes", someScopes)...)
	case 2, 3:
		a := events.RoleAggregate(ks, tenant, rapid.SampledFrom(someRoles).Draw(rt, "role"))
		if h := w.history(a); len(h) > 0 && h[len(h)-1].Type() == events.TypeRoleDefined {
			w.add(a, &events.RoleDeleted{})
		}
	case 4, 5:
		secret := fmt.Sprint("secret ", rapid.IntRange(0, 20).Draw(rt, "secret")) // some twice
		issue := w.create
		if rapid.IntRange(0, 4).Draw(rt, "imported") == 0 {
			issue = w.take
		}
		issue(ks, tenant, secret, func(d *events.KeyCreated) {
			d.Name = rapid.SampledFrom([]string{"Build", "deploy", "Build 2"}).Draw(rt, "name")
			d.KeyType = rapid.SampledFrom([]string{"secret", "publishable"}).Draw(rt, "type")
			d.Environment = rapid.SampledFrom([]string{"", "live"}).Draw(rt, "environment")
			d.Scopes, d.Roles = some(rt, "scopes", someScopes), some(rt, "roles", someRoles)
			d.Resources, d.Limit = some(rt, "resources", someResources), drawLimit(rt)
			d.Allowlist = slices.SortedFunc(slices.Values(some(rt, "allowlist", somePrefixes)), events.ComparePrefixes)
		})
	case 6:
		w.tenantLimit(ks, tenant, drawLimit(rt))
	default:
		if len(w.refs) > 0 {
			w.change(rt, rapid.SampledFrom(w.refs).Draw(rt, "key"))
		}
	}
}

func (w *world) change(rt *rapid.T, ref events.KeyRef) {
	k := w.key(ref)
	at := w.now + events.Time(rapid.IntRange(-5, 50).Draw(rt, "expiry"))
	if k.ExpiresAt != 0 {
		at = min(at, k.ExpiresAt)
	}
	data := []events.Data{
		&events.KeyScopesAssigned{Before: k.Grant, After: events.Grant{Scopes: some(rt, "scopes", someScopes), Roles: some(rt, "roles", someRoles)}},
		&events.KeyResourcesAssigned{Before: k.Resources, After: some(rt, "resources", someResources)},
		&events.KeyAllowlistUpdated{Before: k.Allowlist, After: slices.SortedFunc(slices.Values(some(rt, "allowlist", somePrefixes)), events.ComparePrefixes)},
		&events.KeyLimitUpdated{Before: k.Limit, After: drawLimit(rt)},
		&events.KeyExpiryChanged{Before: k.ExpiresAt, After: at},
		&events.KeyRenamed{Before: k.Label, After: events.Label{Name: "renamed"}},
		&events.KeyDisabled{}, &events.KeyEnabled{},
		&events.KeyRotated{Successor: ref.Key, Before: k.ExpiresAt, After: at},
		&events.KeyRevoked{Code: events.RevokeCompromise},
		&events.KeyExpired{ExpiredAt: w.now},
	}
	data = slices.DeleteFunc(data, func(d events.Data) bool { return k.May(d) != nil })
	if len(data) > 0 {
		w.add(ref.Aggregate(), rapid.SampledFrom(data).Draw(rt, "change"))
	}
}
