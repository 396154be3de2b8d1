package projections

import (
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// A keyspace that is defined 100,000 times, each time with another scope and another type
// of key, its roles and keys likewise, holds no more after it than after the first hundred:
// nothing that is not in use any more stays.
func TestNothingStaysOfWhatChanged(t *testing.T) {
	rounds := 100_000
	if testing.Short() {
		rounds = 3000
	}
	v := NewKeys()
	chains := map[events.Aggregate]events.Chain{}
	seq := events.Seq(0)
	put := func(a events.Aggregate, d events.Data) {
		t.Helper()
		c := chains[a]
		write := logtest.Stamp(&c, logtest.Event(a, d))
		seq++
		chains[a] = c
		if err := v.Apply([]events.Recorded{{Event: write.Event, Seq: seq, Hash: c.Head}}); err != nil {
			t.Fatal(err)
		}
	}
	ref := events.KeyRef{Keyspace: "ks", Tenant: "acme", Key: events.KeyID{1}}
	round := func(i int) {
		scope := fmt.Sprint("s", i)
		def := definition()
		def.KeyTypes = append(def.KeyTypes, keyspace.KeyType{Name: "t" + scope, Prefix: "t_", Ceiling: []string{scope}})
		def.Scopes = append(def.Scopes, keyspace.ScopeDef{Name: scope, Implies: []string{"write"}})
		put(events.KeyspaceAggregate("ks"), &events.KeyspaceDefined{Definition: def})
		put(events.RoleAggregate("ks", "acme", "dev"), &events.RoleDefined{Scopes: []string{"read", scope}})
		switch i % 4 {
		case 0:
			put(ref.Aggregate(), &events.KeyScopesAssigned{After: events.Grant{Scopes: []string{scope}, Roles: [][]events.RoleID{{"dev"}, {"dev", "ops"}, {"dev", "ops", "qa"}}[i%3]}})
		case 1:
			put(ref.Aggregate(), &events.KeyResourcesAssigned{After: []events.Resource{{Kind: "project", ID: scope}}})
		case 2:
			put(ref.Aggregate(), &events.KeyAllowlistUpdated{After: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)}})
		case 3:
			put(ref.Aggregate(), &events.KeyLimitUpdated{After: &keyspace.Limit{PerMinute: int64(i + 1), Burst: 1}})
		}
		if k := byID(v, ref.Key); i%100 == 0 && (!k.HasScope(scope) || !k.HasScope("read") || k.HasScope(fmt.Sprint("s", i-1))) {
			t.Fatalf("after round %d the key may %v", i, k.Scopes())
		}
	}
	// size is all that could grow, but for what the history remembers.
	size := func() string {
		var words int
		for _, x := range []*index{&v.terms.index, &v.scopeSets.index, &v.roleSets.index, &v.resources.index, &v.allows.index, &v.limits.index, &v.tenantsBy, &v.rolesBy} {
			for i := range x.shards {
				if s := x.shards[i].Load(); s != nil {
					words = max(words, len(*s))
				}
			}
		}
		s := v.space("ks")
		return fmt.Sprint("values ", v.terms.values.n, v.scopeSets.values.n, v.roleSets.values.n, v.resources.values.n, v.allows.values.n, v.limits.values.n,
			", tenants ", v.tenants.n, ", roles ", v.roles.n, ", kinds ", v.kinds.n, ", names ", len(s.scopes.names)+len(s.scopes.free), len(s.types.names)+len(s.types.free),
			", longest shard of an index ", words)
	}
	put(events.KeyspaceAggregate("ks"), &events.KeyspaceDefined{Definition: definition()})
	put(ref.Aggregate(), logtest.Created("1"))
	for i := range 100 {
		round(i)
	}
	was := size()
	for i := range rounds {
		round(100 + i)
	}
	if is := size(); is != was {
		t.Errorf("after %d more rounds there are\n%s\nand were\n%s", rounds, is, was)
	}
	checkPools(t, v)
}

// A view that cannot number one key, tenant or role more stops with an error.
func TestAViewCanBeFull(t *testing.T) {
	for name, n := range map[string]func(v *Keys) *uint32{
		"keys": func(v *Keys) *uint32 { return &v.records.n }, "tenants": func(v *Keys) *uint32 { return &v.tenants.n },
		"roles": func(v *Keys) *uint32 { return &v.roles.n }, "scopes": func(v *Keys) *uint32 { return &v.scopeSets.values.n },
	} {
		w, v := newWorld(t), NewKeys()
		w.define("ks", definition())
		apply(t, v, w)
		*n(v) = math.MaxUint32 - 1<<16 + 1
		w.create("ks", "acme", "1", nil)
		if err := v.Apply(w.log); err == nil || !strings.Contains(err.Error(), "past what a view can hold") || v.At() != 1 {
			t.Errorf("%s: %v, and the view is at %d", name, err, v.At())
		}
	}
}

// Digests and ids come from outside, and many of them may agree in all but some bits of
// one word. They do not collide more than others.
func TestChosenDigestsSpread(t *testing.T) {
	const cells = 4096
	longest := func(hash func(i uint64) uint64) int {
		var places, tags [cells]int
		most := 0
		for i := range uint64(cells) {
			h := hash(i)
			place, tag := h<<shardBits>>(64-12), h%cells
			places[place]++
			tags[tag]++
			most = max(most, places[place], tags[tag])
		}
		return most
	}
	for _, shift := range []int{0, 20, 52} {
		for word := range 4 {
			for name, hash := range map[string]func(i uint64) uint64{
				"digest": func(i uint64) uint64 {
					d := [3]uint64{1, 2, 3}
					d[word%3] += i << shift
					return hashDigest(&d)
				},
				"whole digest": func(i uint64) uint64 {
					d := events.Digest{1, 2, 3}
					for b := range 8 {
						d[8*word+b] += byte(i << shift >> (8 * b))
					}
					return hashWhole(&d)
				},
				"id": func(i uint64) uint64 {
					id := [2]uint64{1, 2}
					id[word%2] += i << shift
					return hashID(&id)
				},
			} {
				if n := longest(hash); n > 16 { // of what is uniform, one in 10^10 draws
					t.Errorf("%s: %d of %d that differ in word %d from bit %d on collide", name, n, cells, word, shift)
				}
			}
		}
	}
}

// The bytes of a snapshot do not depend on the seed of the process.
func TestSeedLeavesSnapshotsAlone(t *testing.T) {
	defer func(seed [4]uint64) { hashSeed = seed }(hashSeed)
	w := newWorld(t)
	w.define("ks", definition())
	for i := range 200 {
		w.create("ks", events.TenantID(fmt.Sprint("t", i%3)), fmt.Sprint(i%190), nil)
	}
	var first []byte
	for range 2 {
		v := NewKeys()
		apply(t, v, w)
		switch got := export(t, v); {
		case first == nil:
			first = got
		case string(got) != string(first):
			t.Error("another seed gives other bytes")
		}
		hashSeed[0]++
		hashSeed[2]++
	}
}
