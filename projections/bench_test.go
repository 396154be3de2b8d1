package projections

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// The benchmarks run on one world of a million keys, made once: 1,000 tenants,
// three key types' worth of grants, one key in four restricted to projects of its
// tenant, one in ten with an allowlist of its tenant, one in five on a plan, all
// others unlimited. What the keys hold of their own is id, digest and expiry.
const million = 1_000_000

// tenants is how many tenants the keys belong to.
var tenants = 1000

var big struct {
	once    sync.Once
	view    *Keys
	digests []events.Digest
}

func bigView(b *testing.B) *Keys {
	big.once.Do(func() {
		big.digests = make([]events.Digest, million)
		big.view = NewKeys()
		if err := big.view.Apply(bigLog(0, 1)); err != nil {
			b.Fatal(err)
		}
		const chunk = 10_000
		for i := 0; i < million; i += chunk {
			if err := big.view.Apply(bigLog(i, chunk)); err != nil {
				b.Fatal(err)
			}
		}
	})
	return big.view
}

func digestOf(i int) (d events.Digest) {
	return sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
}

// bigLog returns the creations of keys i.. as events 2+i.., or for 0, 1 the
// keyspace's definition as event 1. The hashes are made up: what the log holds
// is not the fold's to check, only that each event names the one before.
func bigLog(i, n int) []events.Recorded {
	if n == 1 {
		return []events.Recorded{{Seq: 1, Hash: events.Hash{1}, Event: events.Event{
			Aggregate: events.KeyspaceAggregate("ks"), Rev: 1, Data: &events.KeyspaceDefined{Definition: definition()}}}}
	}
	log := make([]events.Recorded, n)
	for j := range log {
		k := i + j
		tenant := k % tenants
		digest := digestOf(k)
		if k < len(big.digests) {
			big.digests[k] = digest
		}
		d := &events.KeyCreated{Digest: digest, Hint: "sk_live_abcd", Name: fmt.Sprint("key ", k), KeyType: "secret", Environment: "live", ExpiresAt: 1_900_000_000_000 + events.Time(k)}
		d.Scopes = [][]string{{"read"}, {"write"}, {"read", "write"}}[k%3]
		if k%4 == 0 {
			d.Resources = []events.Resource{{Kind: "project", ID: fmt.Sprintf("proj_%d_%d", tenant, k%7)}}
		}
		if k%10 == 0 {
			d.Allowlist = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(tenant >> 8), byte(tenant), 0}), 24)}
		}
		if k%5 == 0 {
			d.Limit = &keyspace.Limit{Plan: "gold"}
		}
		id := keyID(k)
		log[j] = events.Recorded{Seq: events.Seq(k + 2), Hash: events.Hash(digest), Event: events.Event{
			Aggregate: events.KeyAggregate("ks", events.TenantID(fmt.Sprint("tenant_", tenant)), id), Rev: 1, Data: d}}
	}
	return log
}

func keyID(k int) (id events.KeyID) {
	binary.BigEndian.PutUint64(id[1:], uint64(1_700_000_000_000+k))
	binary.BigEndian.PutUint64(id[8:], uint64(k)*0x9e3779b97f4a7c15)
	return id
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// foldBig folds the million keys into a new view.
func foldBig(b *testing.B, v events.Follower) {
	b.Helper()
	if err := v.Apply(bigLog(0, 1)); err != nil {
		b.Fatal(err)
	}
	for i := 0; i < million; i += 10_000 {
		if err := v.Apply(bigLog(i, 10_000)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory says what a key costs with everything that is made for it: among a
// thousand tenants; each the only key of its tenant, so that nobody shares a
// restriction or an allowlist; and among a thousand tenants, each with a role of its
// own. The events of the directory are decoded ones, as from the log.
func BenchmarkMemory(b *testing.B) {
	for _, c := range []struct {
		view    string
		tenants int
		own     bool
	}{{keysName, 1000, false}, {keysName, million, false}, {keysName, 1000, true}, {directoryName, 1000, false}, {directoryName, million, false}} {
		b.Run(fmt.Sprintf("%s/tenants-%d/own-roles-%v", c.view, c.tenants, c.own), func(b *testing.B) {
			defer func(was int) { tenants = was }(tenants)
			tenants = c.tenants
			for b.Loop() {
				before := heap()
				var v events.Follower = NewKeys()
				if c.view == directoryName {
					v = decoded{NewDirectory()}
				}
				if c.own {
					foldOwnRoles(b, v.(*Keys), million)
				} else {
					foldBig(b, v)
				}
				b.ReportMetric(float64(heap()-before)/million, "B/key")
				runtime.KeepAlive(v)
			}
		})
	}
}

// BenchmarkMemoryTenMillion is BenchmarkMemory with ten million keys of ten thousand
// tenants. It needs some 4 GB.
func BenchmarkMemoryTenMillion(b *testing.B) {
	defer func(was int) { tenants = was }(tenants)
	tenants = 10_000
	for b.Loop() {
		before := heap()
		v := NewKeys()
		if err := v.Apply(bigLog(0, 1)); err != nil {
			b.Fatal(err)
		}
		for i := 0; i < 10*million; i += 10_000 {
			if err := v.Apply(bigLog(i, 10_000)); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(heap()-before)/million/10, "B/key")
		runtime.KeepAlive(v)
	}
}

// ownRoles returns the definitions of n roles and n keys that each hold one of them, as
// the events after the first.
func ownRoles(i, n int) []events.Recorded {
	log := make([]events.Recorded, 0, 2*n)
	for k := i; k < i+n; k++ {
		tenant := events.TenantID(fmt.Sprint("tenant_", k%1000))
		id := events.RoleID(fmt.Sprint("role_", k))
		digest := digestOf(k)
		log = append(log,
			events.Recorded{Seq: events.Seq(2*k + 2), Hash: events.Hash(digest), Event: events.Event{
				Aggregate: events.RoleAggregate("ks", tenant, id), Rev: 1, Data: &events.RoleDefined{Scopes: [][]string{{"read"}, {"write"}}[k%2]}}},
			events.Recorded{Seq: events.Seq(2*k + 3), Hash: events.Hash(digest), Event: events.Event{
				Aggregate: events.KeyAggregate("ks", tenant, keyID(k)), Rev: 1, Data: &events.KeyCreated{
					Digest: digest, KeyType: "secret", Environment: "live", Roles: []events.RoleID{id}, ExpiresAt: 1_900_000_000_000}}})
	}
	return log
}

func foldOwnRoles(b *testing.B, v *Keys, n int) {
	b.Helper()
	if err := v.Apply(bigLog(0, 1)); err != nil {
		b.Fatal(err)
	}
	for i := 0; i < n; i += 10_000 {
		if err := v.Apply(ownRoles(i, 10_000)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRedefine applies a new definition of a keyspace with a million keys that each
// hold a role of their own, beside one with ten thousand: it costs the same.
func BenchmarkRedefine(b *testing.B) {
	for _, n := range []int{10_000, million} {
		b.Run(fmt.Sprint("keys-", n), func(b *testing.B) {
			v := NewKeys()
			foldOwnRoles(b, v, n)
			rev, prev := uint64(1), events.Hash{1}
			var took []time.Duration
			b.ResetTimer()
			for range b.N {
				def := definition()
				def.Scopes[1].Implies = [][]string{{"read"}, nil}[rev%2]
				rev++
				r := events.Recorded{Seq: v.At() + 1, Hash: events.Hash{byte(rev), 2}, Event: events.Event{
					Aggregate: events.KeyspaceAggregate("ks"), Rev: rev, Prev: prev, Data: &events.KeyspaceDefined{Definition: def}}}
				prev = r.Hash
				began := time.Now()
				if err := v.Apply([]events.Recorded{r}); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
				if k := lookup(v, digestOf(1)); k.HasScope("read") != (def.Scopes[1].Implies != nil) {
					b.Fatal("the key holds what it held before")
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-µs")
		})
	}
}

// decoded hands on what each event is after its way through the log.
type decoded struct{ events.Follower }

func (d decoded) Apply(batch []events.Recorded) error {
	for i := range batch {
		e := &batch[i].Event
		was := *e
		e.ID, e.Time, e.Source = events.EventID{1}, 1_800_000_000_000, "/keytrail/control/bench"
		e.Actor = events.Actor{Kind: events.ActorKey, ID: keyID(0).String()}
		m, err := events.Encode(e)
		if err != nil {
			return err
		}
		if *e, err = events.Decode(&m); err != nil {
			return fmt.Errorf("%+v: %w", was, err)
		}
	}
	return d.Follower.Apply(batch)
}

// BenchmarkLookup compares with a bare Go map of the same digests to records of
// the same size.
func BenchmarkLookup(b *testing.B) {
	v := bigView(b)
	order := rand.New(rand.NewPCG(1, 2)).Perm(million)
	b.Run("view", func(b *testing.B) {
		b.ReportAllocs()
		var k Key
		for i := 0; b.Loop(); i++ {
			slot, ok := v.Find(big.digests[order[i%million]])
			if !ok {
				b.Fatal("missing")
			}
			v.Read(slot, &k)
		}
	})
	m := make(map[events.Digest]*[64]byte, million)
	for _, d := range big.digests {
		m[d] = &[64]byte{1}
	}
	b.Run("map", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if k := m[big.digests[order[i%million]]]; k[0] == 0 {
				b.Fatal("missing")
			}
		}
	})
	b.Run("sha256", func(b *testing.B) {
		secret := []byte("sk_live_0123456789abcdefghijklmnopqrstuv")
		for b.Loop() {
			sha256.Sum256(secret)
		}
	})
}

func BenchmarkHasScope(b *testing.B) {
	k := lookup(bigView(b), digestOf(1))
	b.ReportAllocs()
	for b.Loop() {
		if !k.HasScope("write") {
			b.Fatal("it holds write")
		}
	}
}

func BenchmarkAllowsAddr10000(b *testing.B) {
	var list []netip.Prefix
	for i := range 10_000 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	a := newAllowlist(list)
	addr := netip.MustParseAddr("10.20.30.40")
	b.ReportAllocs()
	for b.Loop() {
		if !a.contains(addr) {
			b.Fatal("it is listed")
		}
	}
}

// BenchmarkFold folds creations of new keys, decoded already.
func BenchmarkFold(b *testing.B) {
	const n = 200_000
	log := append(bigLog(0, 1), bigLog(0, n)...)
	for _, c := range []struct {
		name string
		new  func() events.Follower
	}{{"keys", func() events.Follower { return NewKeys() }}, {"directory", func() events.Follower { return NewDirectory() }}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				v := c.new()
				for i := 0; i < len(log); i += 1000 {
					if err := v.Apply(log[i:min(i+1000, len(log))]); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkApplyOne changes one key of a million while a reader looks keys up.
func BenchmarkApplyOne(b *testing.B) {
	v := bigView(b)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				lookup(v, big.digests[i%million])
			}
		}
	})
	r := rand.New(rand.NewPCG(1, 2))
	b.ReportAllocs()
	for b.Loop() {
		k, _ := v.whole(keyID(r.IntN(million)))
		e := logtest.Event(events.KeyAggregate("ks", k.tenant.ID, k.id), &events.KeyExpiryChanged{After: 1_950_000_000_000})
		e.Rev = uint64(k.rev) + 1
		copy(e.Prev[:], k.head[:])
		if err := v.Apply([]events.Recorded{{Event: e, Seq: v.At() + 1, Hash: e.Prev}}); err != nil {
			b.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
}

func BenchmarkSnapshot(b *testing.B) {
	benchSnapshot(b, bigView(b), func() { bigView(b).picture().close() }, LoadKeys)
}

func BenchmarkDirectorySnapshot(b *testing.B) {
	d := NewDirectory()
	foldBig(b, d)
	benchSnapshot(b, d, func() { d.picture() }, LoadDirectory)
}

func benchSnapshot[V View](b *testing.B, v V, stop func(), load func(io.Reader, events.LogID) (V, error)) {
	buf := snapshot(b, v)
	b.Run("stop", func(b *testing.B) { // for how long the fold stands still
		for b.Loop() {
			stop()
		}
	})
	b.Run("save", func(b *testing.B) {
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			if _, err := v.Snapshot(io.Discard, testLog); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("load", func(b *testing.B) {
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			if _, err := load(bytes.NewReader(buf), testLog); err != nil {
				b.Fatal(err)
			}
		}
	})
}
