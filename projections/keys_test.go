package projections

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

func definition() keyspace.Definition {
	return keyspace.Definition{
		KeyTypes: []keyspace.KeyType{{Name: "secret", Prefix: "sk_"}, {Name: "publishable", Prefix: "pk_", Ceiling: []string{"read"}}},
		Scopes:   []keyspace.ScopeDef{{Name: "read"}, {Name: "write", Implies: []string{"read"}}},
		Plans:    []keyspace.Plan{{Name: "gold", PerMinute: 60, Burst: 10}},
	}
}

func apply(t testing.TB, f events.Follower, w *world) {
	t.Helper()
	if err := f.Apply(w.log); err != nil {
		t.Fatal(err)
	}
}

func TestRolesAndCeilingFollowTheirDefinition(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	w.role("ks", "acme", "dev", "read")
	granted := func(keyType string) func(*events.KeyCreated) {
		return func(d *events.KeyCreated) { d.KeyType, d.Roles = keyType, []events.RoleID{"dev"} }
	}
	secret := w.create("ks", "acme", "1", granted("secret"))
	public := w.create("ks", "acme", "2", granted("publishable"))
	other := w.create("ks", "other", "3", granted("secret"))
	check := func(ref events.KeyRef, want ...string) {
		t.Helper()
		apply(t, v, w)
		if got := byID(v, ref.Key).Scopes(); !slices.Equal(got, want) {
			t.Errorf("holds %q, want %q", got, want)
		}
	}
	check(secret, "read")
	check(other) // the role is another tenant's
	w.role("ks", "acme", "dev", "write")
	check(secret, "read", "write")
	check(public, "read") // a role never lifts a key above its type's ceiling
	w.add(events.RoleAggregate("ks", "acme", "dev"), &events.RoleDeleted{})
	check(secret)
	w.role("ks", "acme", "dev", "read")
	check(secret, "read")
	def := definition()
	def.Scopes = def.Scopes[1:]
	def.Scopes[0].Implies = nil
	def.KeyTypes[1].Ceiling = nil
	w.define("ks", def)
	check(secret) // a scope that left the catalogue left the keys
}

func TestAPlanTakenAwayFreesNobody(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	ref := w.create("ks", "acme", "1", func(d *events.KeyCreated) { d.Limit = &keyspace.Limit{Plan: "gold"} })
	free := w.create("ks", "acme", "2", nil)
	check := func(ref events.KeyRef, want string) {
		t.Helper()
		apply(t, v, w)
		k := byID(v, ref.Key)
		perMinute, burst, ok := k.Limit(&k.Rules.Compiled)
		if got := fmt.Sprint(perMinute, burst, ok); got != want {
			t.Errorf("limit %s, want %s", got, want)
		}
	}
	check(ref, "60 10 true")
	check(free, "0 0 false")
	def := definition()
	def.Plans = nil
	w.define("ks", def)
	check(ref, "60 10 true")
	def.Title = "again"
	w.define("ks", def)
	check(ref, "60 10 true")
	def.Limit = &keyspace.Limit{PerMinute: 5, Burst: 1}
	def.Plans = []keyspace.Plan{{Name: "gold", PerMinute: 61, Burst: 11}}
	w.define("ks", def)
	check(ref, "61 11 true")
	check(free, "5 1 true")
}

func TestASecretStaysWithItsFirstKey(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	first := w.create("ks", "acme", "same", nil)
	w.add(first.Aggregate(), &events.KeyRevoked{Code: events.RevokeCompromise})
	second := w.create("ks", "mallory", "same", nil)
	w.add(second.Aggregate(), &events.KeyRenamed{After: events.Label{Name: "mine"}})
	apply(t, v, w)
	for _, v := range []*Keys{v, reload(t, v, LoadKeys)} {
		k := lookup(v, events.NewSecret("same").Digest())
		if k.ID != first.Key || k.Status() != events.StatusRevoked {
			t.Errorf("the secret answers as %s, %s; want the revoked %s", k.ID, k.Status(), first.Key)
		}
		if byID(v, second.Key) == nil || v.Len() != 2 {
			t.Error("the second key is not known by its id")
		}
	}
}

// A key and a tenant have one slot, whatever becomes of them, of their limits and of
// their keyspace: the slot is where a verifier keeps their buckets, and each change
// would fill those again.
func TestSlotsStay(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	ref := w.create("ks", "acme", "1", nil) // before its keyspace
	w.create("ks", "other", "2", nil)
	w.create("ks-2", "acme", "3", nil)
	apply(t, v, w)
	key, tenant := byID(v, ref.Key).Slot, byID(v, ref.Key).TenantSlot
	for _, other := range w.refs[1:] {
		if byID(v, other.Key).TenantSlot == tenant {
			t.Error("two tenants share a slot")
		}
		if byID(v, other.Key).Slot == key {
			t.Error("two keys share a slot")
		}
	}
	for _, change := range []func(){
		func() { w.define("ks", definition()) },
		func() { w.tenantLimit("ks", "acme", &keyspace.Limit{Plan: "gold"}) },
		func() { w.add(ref.Aggregate(), &events.KeyLimitUpdated{After: &keyspace.Limit{Plan: "gold"}}) },
		func() {
			w.add(ref.Aggregate(), &events.KeyScopesAssigned{After: events.Grant{Scopes: []string{"read"}}})
		},
		func() { w.add(ref.Aggregate(), &events.KeyDisabled{}) },
		func() { w.tenantLimit("ks", "acme", nil) },
		func() { w.add(ref.Aggregate(), &events.KeyRevoked{Code: events.RevokeCompromise}) },
		func() { w.define("ks", definition()) },
	} {
		change()
		apply(t, v, w)
		if k := byID(v, ref.Key); k.Slot != key || k.TenantSlot != tenant {
			t.Errorf("other slots after event %d", v.At())
		}
	}
	next := w.create("ks", "acme", "4", func(d *events.KeyCreated) { d.Environment = "test" })
	apply(t, v, w)
	if k := byID(v, next.Key); k.TenantSlot != tenant || k.Slot == key {
		t.Error("a new key of the tenant has its own slot and the tenant's")
	}
}

func TestLongAllowlist(t *testing.T) {
	var list []netip.Prefix
	for i := range 5000 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 4}), 30),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 13: byte(i >> 8), 14: byte(i)}), 120))
	}
	slices.SortFunc(list, events.ComparePrefixes)
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	ref := w.create("ks", "acme", "1", func(d *events.KeyCreated) { d.Allowlist = list })
	apply(t, v, w)
	k := byID(v, ref.Key)
	for i := range 6000 {
		for _, a := range []netip.Addr{
			netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), byte(i)}),
			netip.AddrFrom16([16]byte{0x20, 1, 13: byte(i >> 8), 14: byte(i), 15: 9}),
		} {
			if got, want := k.AllowsAddr(a), i < 5000 && (a.Is6() || i%256/4 == 1); got != want {
				t.Fatalf("%s: got %v", a, got)
			}
		}
	}
	if k.AllowsAddr(netip.Addr{}) {
		t.Error("an unknown address passes an allowlist")
	}
}

// TestRefusals applies what no log should hold. Each stops the view with an
// error, at the event before, for good.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(w *world, ref events.KeyRef)
		want  string
	}{
		"hole": {func(w *world, ref events.KeyRef) { w.log[len(w.log)-1].Seq++ }, "missing"},
		"rev":  {func(w *world, ref events.KeyRef) { w.log[len(w.log)-1].Rev++ }, "is broken"},
		"prev": {func(w *world, ref events.KeyRef) { w.log[len(w.log)-1].Prev[0] ^= 1 }, "is altered"},
		"created twice": {func(w *world, ref events.KeyRef) {
			w.log[len(w.log)-1].Data = &events.KeyCreated{}
		}, "not possible for a key that is active"},
		"life": {func(w *world, ref events.KeyRef) {
			w.log[len(w.log)-1].Data = &events.KeyEnabled{}
		}, "not possible for a key that is active"},
		"no life": {func(w *world, ref events.KeyRef) {
			r := &w.log[len(w.log)-1]
			r.Rev, r.Prev = 1, events.Hash{}
			r.Aggregate.ID = events.KeyID{9}.String()
		}, "does not exist"},
		"rotated twice": {func(w *world, ref events.KeyRef) {
			w.log[len(w.log)-2].Data = &events.KeyRotated{Successor: ref.Key, After: 2_000_000_000_000}
			w.log[len(w.log)-1].Data = w.log[len(w.log)-2].Data
		}, "key.rotated: not possible"},
		"role deleted twice": {func(w *world, ref events.KeyRef) {
			a := events.RoleAggregate("ks", "acme", "dev")
			for i, d := range []events.Data{&events.RoleDefined{}, &events.RoleDeleted{}, &events.RoleDeleted{}} {
				r := &w.log[len(w.log)-3+i]
				r.Aggregate, r.Rev, r.Data = a, uint64(i+1), d
				if r.Prev = (events.Hash{}); i > 0 {
					r.Prev = w.log[len(w.log)-4+i].Hash
				}
			}
		}, "the role does not exist"},
		"reader": {func(w *world, ref events.KeyRef) {
			r := &w.log[len(w.log)-1]
			r.Aggregate = events.ReaderAggregate(events.Actor{ID: "someone"})
		}, "belongs to the log of reads"},
		"keyspace": {func(w *world, ref events.KeyRef) {
			r := &w.log[len(w.log)-1]
			r.Aggregate = events.KeyspaceAggregate("ks")
		}, "is broken"},
		"moved": {func(w *world, ref events.KeyRef) { w.log[len(w.log)-1].Aggregate.Tenant = "other" }, `already lives as "ks/acme"`},
		"kind":  {func(w *world, ref events.KeyRef) { w.log[len(w.log)-1].Aggregate.Kind = "planet" }, "upgrade"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.define("ks", definition())
			ref := w.create("ks", "acme", "1", nil)
			w.add(ref.Aggregate(), &events.KeyRenamed{After: events.Label{Name: "x"}})
			w.add(ref.Aggregate(), &events.KeyRenamed{After: events.Label{Name: "y"}})
			w.add(ref.Aggregate(), &events.KeyRenamed{After: events.Label{Name: "z"}})
			c.spoil(w, ref)
			last := len(w.log) - 1
			keys, dir, restored := NewKeys(), NewDirectory(), NewKeys()
			if err := restored.Apply(w.log[:last]); err != nil {
				t.Fatal(err)
			}
			restored = reload(t, restored, LoadKeys) // it must refuse what the view that was saved refuses
			for _, v := range []interface {
				events.Follower
				At() events.Seq
			}{keys, dir, restored} {
				err := v.Apply(w.log)
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%T: got error %v, want one that says %q", v, err, c.want)
				}
				if v.At() != events.Seq(last) {
					t.Errorf("%T stands at %d, want %d", v, v.At(), last)
				}
				if again := v.Apply(w.log); !errors.Is(again, err) {
					t.Errorf("%T goes on with %v", v, again)
				}
			}
			if lookup(keys, events.NewSecret("1").Digest()) == nil {
				t.Error("the view no longer answers")
			}
		})
	}
}

func TestReadsDoNotAllocate(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	def := definition()
	for i := range 20 {
		def.Scopes = append(def.Scopes, keyspace.ScopeDef{Name: fmt.Sprint("s", i)})
	}
	w.define("ks", def)
	ref := w.create("ks", "acme", "1", func(d *events.KeyCreated) {
		d.Scopes, d.Limit = []string{"s1", "write"}, &keyspace.Limit{Plan: "gold"}
		d.Allowlist, d.Resources = somePrefixes[:2], someResources
	})
	w.tenantLimit("ks", "acme", &keyspace.Limit{Plan: "gold"})
	apply(t, v, w)
	digest, addr := events.NewSecret("1").Digest(), netip.MustParseAddr("10.0.0.1")
	if n := testing.AllocsPerRun(100, func() {
		var k, same Key
		slot, found := v.Find(digest)
		v.Read(slot, &k)
		found = found && v.ByID(ref.Key, &same)
		g := &k.Rules.Compiled
		_, _, limited := k.Limit(g)
		_, _, whole := k.Whole.Limit(g)
		if !found || k != same || !whole || g.ScopeLevel("read") != "" || v.Keyspace("ks") != k.Space || !k.HasScope("read") || k.HasScope("s2") || !k.AllowsAddr(addr) ||
			len(k.Scopes()) != 3 || !k.AllowsResource(someResources[2]) || !limited || k.StatusAt(1) != events.StatusActive || v.At() != 3 || v.Version() != 2 {
			t.Fatal("wrong answer")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestSharing says that what is equal is stored once, over tenants, and goes
// with its last user.
func TestSharing(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	restrict := func(d *events.KeyCreated) {
		d.Scopes, d.Resources, d.Allowlist = []string{"read"}, slices.Clone(someResources), slices.Clone(somePrefixes[:2])
		d.Limit = &keyspace.Limit{Plan: "gold"}
	}
	a, b := w.create("ks", "acme", "1", restrict), w.create("ks", "other", "2", restrict)
	apply(t, v, w)
	if byID(v, a.Key).terms != byID(v, b.Key).terms {
		t.Error("keys with the same terms do not share them")
	}
	for _, ref := range []events.KeyRef{a, b} {
		w.add(ref.Aggregate(), &events.KeyScopesAssigned{})
		w.add(ref.Aggregate(), &events.KeyResourcesAssigned{})
		w.add(ref.Aggregate(), &events.KeyAllowlistUpdated{})
		w.add(ref.Aggregate(), &events.KeyLimitUpdated{})
	}
	apply(t, v, w)
	if v.terms.len() != 1 || v.scopeSets.len()+v.resources.len()+v.allows.len()+v.limits.len() != 0 {
		t.Error("what nobody uses any more stays")
	}
	checkPools(t, v)
}

func TestFreshIsNotBelievedBeforeItsEvents(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	apply(t, v, w)
	for _, c := range []struct {
		at   events.Time
		last events.Seq
		want events.Time
	}{{5, 2, 0}, {6, 1, 6}, {4, 1, 6}, {7, 2, 6}} {
		if v.Fresh(c.at, c.last); v.FreshAt() != c.want {
			t.Errorf("fresh at %d after a heartbeat of %d at event %d, want %d", v.FreshAt(), c.at, c.last, c.want)
		}
	}
}

func TestMetrics(t *testing.T) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	w.create("ks", "acme", "1", nil)
	apply(t, v, w)
	v.Fresh(10_000, 2)
	now := func() time.Time { return events.Time(12_500).Std() }
	s := &Saver{View: v, Dir: t.TempDir(), Log: testLog, Now: now, Logger: slog.New(slog.DiscardHandler)}
	s.save(t.Context())
	d := NewDirectory()
	apply(t, d, w)
	reg := prometheus.NewPedanticRegistry()
	for _, c := range slices.Concat(v.Collectors(now, func() events.Seq { return 5 }), d.Collectors(), s.Collectors()) {
		reg.MustRegister(c)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
	}
	equal(t, "metrics", got, map[string]float64{
		"keytrail_view_keys": 1, "keytrail_view_position": 2, "keytrail_view_events_total": 2, "keytrail_view_lag_seconds": 2.5,
		"keytrail_view_lag_events": 3, "keytrail_directory_keys": 1, "keytrail_directory_position": 2,
		"keytrail_snapshot_age_seconds": 0, "keytrail_snapshot_position": 2, "keytrail_snapshot_failures_total": 0,
	})
}

// A key reaches just the resources that are listed, however many there are.
func TestAllowsResource(t *testing.T) {
	for n := range 2*fewResources + 2 {
		var list []events.Resource
		for i := range n {
			list = append(list, events.Resource{Kind: []string{"division", "project"}[i%2], ID: fmt.Sprint("r", i)})
		}
		slices.SortFunc(list, events.CompareResources)
		k := &Key{terms: &terms{}}
		if n > 0 {
			k.terms.resources = &resources{list: list}
		}
		for i := range 2*fewResources + 3 {
			for at, kind := range []string{"division", "project"} {
				want := n == 0 || i < n && i%2 == at
				if got := k.AllowsResource(events.Resource{Kind: kind, ID: fmt.Sprint("r", i)}); got != want {
					t.Errorf("of %d resources a key reaches %s r%d: %v", n, kind, i, got)
				}
			}
		}
	}
}
