package verifier

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// churn folds lifecycle events into the million keys' view, so many a second, until stop
// is called: keys of its own are disabled and enabled in turn.
type churn struct {
	view *projections.Keys
	keys [1000]churned
	next int
}

type churned struct {
	ref  events.Aggregate
	rev  uint64
	last events.Hash
}

func (c *churn) event(seq events.Seq) events.Recorded {
	k := &c.keys[c.next%len(c.keys)]
	c.next++
	k.rev++
	r := events.Recorded{Seq: seq, Event: events.Event{Rev: k.rev, Aggregate: k.ref, Prev: k.last}}
	switch {
	case k.rev == 1:
		r.Data = &events.KeyCreated{Digest: events.NewSecret(fmt.Sprint("churned", seq)).Digest(), KeyType: "secret", Environment: "live", Scopes: []string{"write"}}
	case k.rev%2 == 0:
		r.Data = &events.KeyDisabled{}
	default:
		r.Data = &events.KeyEnabled{}
	}
	binary.BigEndian.PutUint64(r.Hash[:], uint64(seq))
	k.last = r.Hash
	return r
}

var millionChurn = sync.OnceValue(func() *churn {
	c := &churn{view: million().view}
	for i := range c.keys {
		var id events.KeyID
		binary.BigEndian.PutUint64(id[:], uint64(1<<40+i))
		c.keys[i].ref = events.KeyAggregate(scribe, "churned", id)
	}
	return c
})

// start returns what stops the churn and says how many events a second it was.
func (c *churn) start(b *testing.B, perSecond int) (stop func() float64) {
	if perSecond == 0 {
		return func() float64 { return 0 }
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	began, folded := time.Now(), 0
	go func() {
		defer close(ended)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			var batch []events.Recorded
			for at := c.view.At(); folded < int(time.Since(began).Seconds()*float64(perSecond)); folded++ {
				at++
				batch = append(batch, c.event(at))
			}
			if err := c.view.Apply(batch); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	return func() float64 {
		cancel()
		<-ended
		return float64(folded) / time.Since(began).Seconds()
	}
}

// BenchmarkDecide asks about random keys of a million with as many goroutines as -cpu says,
// also while lifecycle events are folded into the view. The yardstick, bare, is the hash of
// the secret and one look-up in a Go map, by as many goroutines. The two take turns, in
// short rounds that all goroutines begin together; a round is as long as its slowest
// goroutine takes. So one run compares the two at the same load of the machine:
//
//	go test -run '^$' -bench Decide -cpu 1,2,4,8,16 ./verifier
//
// decide/bare compares the median rounds, decide/bare-decile the first deciles, which are
// what processors of its own would show. ledger-ns is the ledger's part, by the decile.
// Run encodes the uses beside it, on the same processors.
func BenchmarkDecide(b *testing.B) {
	w := million()
	for _, perSecond := range []int{0, 1000, 10_000} {
		b.Run(fmt.Sprintf("churn=%d", perSecond), func(b *testing.B) {
			l := NewLedger(w.ledger.cfg)
			node := NewNode(NodeConfig{View: w.view, Ledger: l, Leases: nowhere{}, Log: w.node.cfg.Log})
			leased(b, node)
			stop := run(b, l)
			waitFor(b, func() bool { return l.Ready() == nil })
			u := testUse(1)
			contenders := []func(i int) bool{
				func(i int) bool { return w.bare[sha256.Sum256([]byte(w.secrets[i%benchKeys]))] != nil },
				func(i int) bool {
					req := w.request(i)
					d := node.Decide(context.Background(), &req)
					return d.Allowed()
				},
				func(i int) bool { _, err := l.Append(&u); return err == nil || errors.Is(err, ErrLedgerFull) },
			}
			const each = 256
			askers := runtime.GOMAXPROCS(0)
			times := make([][]float64, len(contenders))
			churned := millionChurn().start(b, perSecond)
			b.ResetTimer()
			for i, asked := 0, 0; asked < b.N || len(times[0]) < 19; i++ {
				for n, ask := range contenders {
					times[n] = append(times[n], round(b, askers, each, (3*i+n)*askers*each, ask))
				}
				asked += askers * each
			}
			b.StopTimer()
			b.ReportMetric(churned(), "events/s")
			l.decided()
			b.ReportMetric(float64(l.lost.Load())/float64(l.nextNumber()), "lost/op")
			if err := stop(); err != nil {
				b.Fatal(err)
			}
			for n := range times {
				slices.Sort(times[n])
			}
			median := func(n int) float64 { return times[n][len(times[n])/2] }
			decile := func(n int) float64 { return times[n][len(times[n])/10] }
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(decile(0), "bare-ns")
			b.ReportMetric(decile(2), "ledger-ns")
			b.ReportMetric(median(1)/median(0), "decide/bare")
			b.ReportMetric(decile(1)/decile(0), "decide/bare-decile")
			b.ReportMetric(1e3/median(1), "Mdecisions/s")
		})
	}
}

// round lets askers ask each times at once, and returns how long that took for one ask, in
// nanoseconds of the wall.
func round(b *testing.B, askers, each, from int, ask func(int) bool) float64 {
	var ready, done sync.WaitGroup
	begin := make(chan struct{})
	ready.Add(askers)
	for a := range askers {
		done.Go(func() {
			ready.Done()
			<-begin
			for i := range each {
				if !ask(from + a*each + i) {
					b.Error("refused")
					return
				}
			}
		})
	}
	ready.Wait()
	began := time.Now()
	close(begin)
	done.Wait()
	return float64(time.Since(began).Nanoseconds()) / float64(askers*each)
}
