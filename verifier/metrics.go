package verifier

import (
	"math"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
)

// metrics counts in atomics; the collectors read them when they are scraped.
type metrics struct {
	decisions     [events.ReasonHTTPSRequired + 1]atomic.Uint64
	verify, batch prometheus.Observer
	gateway       map[string]prometheus.Observer // by Ask.Door
	collectors    []prometheus.Collector
}

func (m *metrics) init(n *Node) {
	add := func(c prometheus.Collector) { m.collectors = append(m.collectors, c) }
	for _, r := range events.Reasons() {
		add(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "keytrail_verifier_decisions_total", Help: "Decisions by reason.",
			ConstLabels: prometheus.Labels{"reason": r.String()},
		}, func() float64 { return float64(m.decisions[r].Load()) }))
	}
	latency := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "keytrail_verifier_request_seconds", Help: "Time from the request's headers to its answer, by door. Answers come from memory: above a millisecond the node is short of CPU.",
		Buckets: []float64{20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 20e-3, 100e-3, 1, 5},
	}, []string{"door"})
	add(latency)
	m.verify, m.batch = latency.WithLabelValues("verify"), latency.WithLabelValues("batch")
	m.gateway = map[string]prometheus.Observer{"authorize": latency.WithLabelValues("authorize"), "envoy": latency.WithLabelValues("envoy")}

	l := n.cfg.Ledger
	gauge := func(name, help string, f func() float64) {
		add(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
	}
	counter := func(name, help string, c *atomic.Uint64) {
		add(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(c.Load()) }))
	}
	gauge("keytrail_verifier_staleness_seconds", "How old the view may be; +Inf before it has caught up. Above the keyspace's bound decisions are refused.", func() float64 {
		s := n.Staleness(n.cfg.Now())
		if s == never {
			return math.Inf(1)
		}
		return s.Seconds()
	})
	gauge("keytrail_verifier_ledger_buffered", "Uses given a number and not yet on the record. When it grows the use stream does not keep up; when it is full uses are lost to a gap.",
		func() float64 { return float64(l.Buffered()) })
	counter("keytrail_verifier_ledger_published_total", "Uses stored in the use stream.", &l.published)
	counter("keytrail_verifier_ledger_retries_total", "Publishes that had to be tried again.", &l.retries)
	counter("keytrail_verifier_ledger_gaps_total", "Gap records written. Each one is a loss of evidence: find out why.", &l.gaps)
	counter("keytrail_verifier_ledger_lost_total", "Uses that were counted and lost.", &l.lost)
}

// Collectors returns the node's and its ledger's metrics, for one registry.
func (n *Node) Collectors() []prometheus.Collector { return n.metrics.collectors }
