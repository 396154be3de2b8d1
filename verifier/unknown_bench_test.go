package verifier

import (
	"context"
	"encoding/binary"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
)

// BenchmarkUnknownKey asks a node with a million keys, at full rate, about keys that
// it knows and about secrets that nobody has: from one block of addresses, from 4,096
// of them, and with nothing to look up. All have their decision, number and record or
// count. ratio runs them in turn, in short blocks, on each processor at once, and
// compares their medians: a decision about an unknown key must cost less.
func BenchmarkUnknownKey(b *testing.B) {
	w := million()
	l := NewLedger(w.ledger.cfg)
	node := NewNode(NodeConfig{View: w.view, Ledger: l, Leases: nowhere{}, Log: w.node.cfg.Log})
	leased(b, node)
	stop := run(b, l)
	waitFor(b, func() bool { return l.Ready() == nil })
	wrong := make([]string, len(w.secrets))
	for i, s := range w.secrets {
		other := "a"
		if s[len(s)-1:] == other {
			other = "b"
		}
		wrong[i] = s[:len(s)-1] + other
	}
	id := events.RequestID{15: 1}.String()
	ask := func(i int, secret string, block uint32, want events.Reason) bool {
		req := w.request(i)
		req.Secret, req.RequestID = events.NewSecret(secret), id
		if block != 0 {
			var a [4]byte
			binary.BigEndian.PutUint32(a[:], 10<<24|block<<8|1)
			req.IP = netip.AddrFrom4(a)
		}
		d := node.Decide(context.Background(), &req)
		return d.Reason == want
	}
	contenders := []struct {
		name string
		ask  func(i int) bool
	}{
		{"known", func(i int) bool { return ask(i, w.secrets[i%benchKeys], 0, events.ReasonOK) }},
		{"unknown", func(i int) bool { return ask(i, wrong[i%benchKeys], 0, events.ReasonKeyUnknown) }},
		{"unknown-4096-blocks", func(i int) bool {
			return ask(i, wrong[i%benchKeys], uint32(1+i%4096), events.ReasonKeyUnknown)
		}},
		{"missing", func(i int) bool { return ask(i, "", 0, events.ReasonKeyMissing) }},
	}
	for _, c := range contenders {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var next atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for i := int(next.Add(1)) * 7919; pb.Next(); i++ {
					if !c.ask(i) {
						b.Error("another decision")
						return
					}
				}
			})
		})
	}
	b.Run("ratio", func(b *testing.B) {
		const block = 256
		times := make([][]float64, len(contenders))
		for i := 0; i < b.N || len(times[0]) < 19; i += block {
			for n, c := range contenders {
				began := time.Now()
				parallel(func(p int) {
					for j := range block {
						if !c.ask(5*i + n*block + j + p*7919) { // keys that the others have not just touched
							b.Error("another decision")
						}
					}
				})
				times[n] = append(times[n], float64(time.Since(began).Nanoseconds())/block)
			}
		}
		for n := range times {
			slices.Sort(times[n])
		}
		median := func(n int) float64 { return times[n][len(times[n])/2] }
		b.ReportMetric(median(0), "known-ns")
		for n, c := range contenders[1:] {
			b.ReportMetric(median(n+1)/median(0), c.name+"/known")
		}
	})
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}

// parallel runs f once for each processor that the benchmark may use.
func parallel(f func(p int)) {
	var wg sync.WaitGroup
	for p := 1; p < runtime.GOMAXPROCS(0); p++ {
		wg.Go(func() { f(p) })
	}
	f(0)
	wg.Wait()
}
