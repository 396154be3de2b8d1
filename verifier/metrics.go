package verifier

import (
	"math"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
)

// metrics are the node's. A request counts nothing that others count too: decisions are
// counted by the ledger, where they are stored, and the collectors ask it.
type metrics struct {
	decisions     decisionCount
	verify, batch prometheus.Observer
	gateway       map[string]prometheus.Observer // by Ask.Endpoint
	collectors    []prometheus.Collector
}

// decisionCount tells how many answers there were, by reason: what the ledger counts, but
// for answers that were not recorded as they were given. It implements
// prometheus.Collector.
type decisionCount struct {
	ledger  *Ledger
	desc    *prometheus.Desc
	amended [reasons]atomic.Int64 // answers without a record, and of another reason than their record's

	mu   sync.Mutex
	told [reasons]uint64 // a counter never falls, though an amendment may be seen before its decision; guarded by mu
}

// answered notes an answer; recorded is the reason on its record, ReasonNone if it has none.
func (c *decisionCount) answered(recorded, given events.Reason) {
	if recorded == given {
		return // the ledger counts it
	}
	if recorded != events.ReasonNone {
		c.amended[recorded].Add(-1)
	}
	c.amended[given].Add(1)
}

// Describe implements prometheus.Collector.
func (c *decisionCount) Describe(to chan<- *prometheus.Desc) { to <- c.desc }

// Collect implements prometheus.Collector.
func (c *decisionCount) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	by := c.ledger.decided()
	for _, r := range events.Reasons() {
		if n := int64(by[r]) + c.amended[r].Load(); n > int64(c.told[r]) {
			c.told[r] = uint64(n)
		}
		to <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(c.told[r]), r.String())
	}
}

func (m *metrics) init(n *Node) {
	add := func(c prometheus.Collector) { m.collectors = append(m.collectors, c) }
	m.decisions.ledger = n.cfg.Ledger
	m.decisions.desc = prometheus.NewDesc("keytrail_verifier_decisions_total", "Decisions by reason.", []string{"reason"}, nil)
	add(&m.decisions)
	gateways := []string{"authorize", "protect", "envoy"}
	requests := newLatency("keytrail_verifier_request_seconds",
		"Time from the request's headers to its answer, by endpoint. Answers come from memory: above a millisecond the node is short of CPU.",
		append(gateways, "verify", "batch")...)
	add(requests)
	m.collectors = append(m.collectors, n.faults.collectors()...)
	m.collectors = append(m.collectors, n.limits.Collectors()...)
	m.verify, m.batch = requests.endpoints["verify"], requests.endpoints["batch"]
	m.gateway = make(map[string]prometheus.Observer)
	for _, endpoint := range gateways {
		m.gateway[endpoint] = requests.endpoints[endpoint]
	}

	l := n.cfg.Ledger
	gauge := func(name, help string, f func() float64) {
		add(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f))
	}
	counter := func(name, help string, c *atomic.Uint64) {
		add(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(c.Load()) }))
	}
	gauge("keytrail_verifier_staleness_seconds", "How long ago the lease that the node answers on was asked for, so how old its view may be; +Inf without a lease. Above the keyspace's bound decisions are refused.", func() float64 {
		s := n.Staleness(n.cfg.Now())
		if s == never {
			return math.Inf(1)
		}
		return s.Seconds()
	})
	gauge("keytrail_verifier_lease_life_seconds", "How old a lease this node answers on at the most, whatever the keyspace: how long a receipt waits for it when it does not answer.",
		func() float64 { return n.life().Seconds() })
	for o := range numOutcomes {
		add(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "keytrail_verifier_lease_renewals_total", Help: "Renewals of the node's lease by outcome. Unavailable: the log of leases did not confirm a write; the node answers until its keyspaces' bounds.",
			ConstLabels: prometheus.Labels{"outcome": o.String()},
		}, func() float64 { return float64(n.lease.outcomes[o].Load()) }))
	}
	gauge("keytrail_verifier_clock_offset_seconds", "How far this node's clock is ahead of the log's, at the last heartbeat; behind is negative. Expiry is judged by this node's clock: synchronise clocks that are more than two seconds apart.",
		func() float64 { return n.ClockOffset().Seconds() })
	gauge("keytrail_verifier_ledger_buffered", "Uses given a number and not yet on the record. When it grows the use stream does not keep up; when it is full uses are lost to a gap.",
		func() float64 { return float64(l.Buffered()) })
	counter("keytrail_verifier_ledger_published_total", "Uses stored in the use stream.", &l.published)
	counter("keytrail_verifier_ledger_retries_total", "Publishes that had to be tried again.", &l.retries)
	counter("keytrail_verifier_ledger_gaps_total", "Gap records written. Each one is a loss of evidence: find out why.", &l.gaps)
	add(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "keytrail_verifier_ledger_lost_total", Help: "Uses that were counted and lost."}, func() float64 {
		l.decided()
		return float64(l.lost.Load())
	}))
	for _, r := range events.Reasons() {
		if r.Allowed() {
			continue
		}
		add(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "keytrail_verifier_ledger_suppressed_total", Help: "Uses of keys that are not known, beyond the node's budget: counted on the record by reason, and not recorded one by one. When it grows someone tries keys, or floods the ledger.",
			ConstLabels: prometheus.Labels{"reason": r.String()},
		}, func() float64 { return float64(l.unknown.suppressed(r)) }))
	}
}

// Collectors returns the node's and its ledger's metrics, for one registry.
func (n *Node) Collectors() []prometheus.Collector { return n.metrics.collectors }

func (l *faultLog) collectors() (cs []prometheus.Collector) {
	for f := range faults {
		labels := prometheus.Labels{"fault": f.String()}
		cs = append(cs, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "keytrail_verifier_gateway_faults_total", ConstLabels: labels,
			Help: "Questions that show a gateway's configuration to be wrong. None let a request through; the log names what was asked.",
		}, func() float64 { return float64(l[f].seen.Load()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{
				Name: "keytrail_verifier_gateway_fault_timestamp_seconds", ConstLabels: labels,
				Help: "When such a question was last seen; 0 = never.",
			}, func() float64 { return float64(l[f].last.Load()) / 1000 }))
	}
	return cs
}
