package events

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// mixes are the traffic that the benchmarks measure: 3000 uses, which is what
// 100 ms bring at 30k requests/s.
var mixes = map[string]func(r *rand.Rand) UseBatch{
	// One product: 50k keys of 2k tenants, of which a few bring most requests;
	// clients keep their address; nine in ten ask for a scope, a third for a resource.
	"zipf": func(r *rand.Rand) UseBatch {
		z := rand.NewZipf(r, 1.1, 8, 50_000)
		return mix(r, func() uint64 { return z.Uint64() }, func(key uint64) uint64 { return key }, 0.33)
	},
	// Every key equally often, of 1M keys and 2k tenants.
	"random keys": func(r *rand.Rand) UseBatch {
		return mix(r, func() uint64 { return r.Uint64N(1_000_000) }, func(key uint64) uint64 { return key }, 0.33)
	},
	// The worst: in addition every address and every resource is new.
	"all random": func(r *rand.Rand) UseBatch {
		return mix(r, func() uint64 { return r.Uint64N(1_000_000) }, func(uint64) uint64 { return r.Uint64() }, 1)
	},
}

func mix(r *rand.Rand, key func() uint64, client func(uint64) uint64, resources float64) UseBatch {
	b := UseBatch{Log: LogID{15: 1}, Node: "verifier-7", Epoch: 1767693600_000_000, Kind: BatchUses, First: 9_000_001}
	at, seq := Time(1767693600_000), Seq(40_000_000)
	scopes := []string{"", "read", "read", "read", "write", "projects:read", "projects:write", "upload", "read", "read"}
	for range 3000 {
		at += Time(r.Uint64N(2)) // 0 or 1 ms later
		seq += Seq(r.Uint64N(100) / 99)
		k := key()
		h := rand.New(rand.NewPCG(k, 1)) // what belongs to the key is drawn from the key
		u := Use{Time: at, Seq: seq, Cost: 1, Reason: ReasonOK, Keyspace: "scribe-sight", Scope: scopes[r.IntN(len(scopes))]}
		c := rand.New(rand.NewPCG(client(k), 2))
		u.IP = netip.AddrFrom4([4]byte{byte(c.Uint32()), byte(c.Uint32()), byte(c.Uint32()), byte(c.Uint32())})
		if c.IntN(5) == 0 {
			u.IP = netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, byte(c.Uint32()), byte(c.Uint32()), 15: byte(c.Uint32())})
		}
		switch r.IntN(50) {
		case 0:
			u.Reason = ReasonRateLimited
		case 1:
			u.Reason = ReasonScopeMissing
		case 2:
			u.Reason = ReasonKeyUnknown
		}
		if u.Reason != ReasonKeyUnknown {
			u.Tenant = TenantID(fmt.Sprintf("org_%x", h.Uint64N(2000)*0x9e3779b9))
			for i := range u.Key {
				u.Key[i] = byte(h.Uint32())
			}
			if r.Float64() < resources {
				u.Resource = Resource{"project", fmt.Sprintf("proj_%08x", c.Uint32()&^3|r.Uint32()&3)}
			}
		}
		if !u.Reason.Allowed() { // a request id goes with each denied use
			for i := range u.RequestID {
				u.RequestID[i] = byte(r.Uint32())
			}
		}
		b.Uses = append(b.Uses, u)
	}
	return b
}

func BenchmarkEncodeUses(b *testing.B) {
	for name, make := range mixes {
		b.Run(name, func(b *testing.B) {
			batch := make(rand.New(rand.NewPCG(1, 2)))
			var size int
			b.ReportAllocs()
			for b.Loop() {
				data, err := EncodeUses(&batch)
				if err != nil {
					b.Fatal(err)
				}
				size = len(data)
			}
			b.ReportMetric(float64(size)/float64(len(batch.Uses)), "bytes/use")
			b.ReportMetric(float64(len(batch.Uses)*b.N)/b.Elapsed().Seconds(), "uses/s")
		})
	}
}

func BenchmarkDecodeUses(b *testing.B) {
	for name, make := range mixes {
		b.Run(name, func(b *testing.B) {
			batch := make(rand.New(rand.NewPCG(1, 2)))
			data, err := EncodeUses(&batch)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := DecodeUses(data); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(batch.Uses)*b.N)/b.Elapsed().Seconds(), "uses/s")
		})
	}
}

// TestUseSize holds the goal of the stream: at most 32 bytes a use for traffic
// as products see it.
func TestUseSize(t *testing.T) {
	batch := mixes["zipf"](rand.New(rand.NewPCG(1, 2)))
	data, err := EncodeUses(&batch)
	if err != nil {
		t.Fatal(err)
	}
	if got := float64(len(data)) / float64(len(batch.Uses)); got > 32 {
		t.Errorf("%.1f bytes a use, want at most 32", got)
	}
}
