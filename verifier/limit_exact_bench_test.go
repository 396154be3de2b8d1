package verifier

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/verifier/limits"
)

// BenchmarkExactBesideLocal asks in turn about a key whose limit is the node's own and one
// whose limit is of all nodes together, whose tokens the node asks for meanwhile. It reports
// how long decisions take, and how many of the exact ones were refused.
func BenchmarkExactBesideLocal(b *testing.B) {
	w := newWorld(b, nil)
	l := NewLedger(LedgerConfig{Sink: nowhere{}, Node: testNode, Log: w.log.ID(), Logger: w.node.cfg.Logger})
	stop := run(b, l)
	waitFor(b, func() bool { return l.Ready() == nil })
	cfg := w.node.cfg
	cfg.Ledger, cfg.LimitMail = l, w.log
	n := NewNode(cfg)
	dir := projections.NewDirectory()
	var requests []Request
	for _, mode := range []keyspace.LimitsMode{keyspace.LimitsLocal, keyspace.LimitsExact} {
		d := scribeDefinition()
		d.Limits, d.Staleness.MaxMillis = mode, 60_000
		d.Limit = &keyspace.Limit{PerMinute: keyspace.MaxPerMinute, Burst: keyspace.MaxPerMinute}
		id := events.KeyspaceID("bench-" + string(mode))
		w.define(id, d)
		w.keyIn(id, "acme", secretOf(string(mode)), nil)
		requests = append(requests, Request{Secret: events.NewSecret(secretOf(string(mode))), Keyspace: id})
	}
	if err := dir.Apply(w.log.Records()); err != nil {
		b.Fatal(err)
	}
	s := n.LimitService(limits.ServiceConfig{Dir: dir, Appointments: w.log, Wanted: func() bool { return true }})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 3)
	for _, part := range []func(context.Context) error{n.RunLease, n.RunLimits, s.Run} {
		go func() { ended <- part(ctx) }()
	}
	defer func() {
		cancel()
		for range 3 {
			<-ended
		}
		if err := stop(); err != nil {
			b.Error(err)
		}
	}()
	n.Fresh(events.At(time.Now()), w.view.At())
	waitFor(b, func() bool {
		d := n.Decide(b.Context(), &requests[1])
		return d.Allowed()
	})
	var times [2][]time.Duration
	refused := 0
	b.ResetTimer()
	for i := range b.N {
		began := time.Now()
		d := n.Decide(b.Context(), &requests[i%2])
		times[i%2] = append(times[i%2], time.Since(began))
		if !d.Allowed() {
			refused++
		}
	}
	b.StopTimer()
	at := func(i int, q float64) float64 { return float64(times[i][int(q*float64(len(times[i])))]) }
	if slices.Sort(times[0]); len(times[1]) == 0 {
		return
	}
	slices.Sort(times[1])
	for _, q := range []struct {
		name string
		of   float64
	}{{"p50", 0.5}, {"p99", 0.99}} {
		b.ReportMetric(at(0, q.of), "local-"+q.name+"-ns")
		b.ReportMetric(at(1, q.of), "exact-"+q.name+"-ns")
	}
	b.ReportMetric(at(1, 0.99)-at(0, 0.99), "exact-local-p99-ns")
	b.ReportMetric(100*float64(refused)/float64(b.N), "%-refused")
	b.ReportMetric(0, "ns/op")
}
