package receipts

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// maxNodes bounds the nodes with metrics of their own; keytrail_nodes counts all.
const maxNodes = 256

var (
	nodesDesc   = prometheus.NewDesc("keytrail_nodes", "Runs of nodes with a record in the log of leases, by state, as this control has observed them.", []string{"state"}, nil)
	ageDesc     = prometheus.NewDesc("keytrail_node_record_age_seconds", "For how long this control has seen no newer record of the node. A node that lives renews it about every second.", []string{"node"}, nil)
	appliedDesc = prometheus.NewDesc("keytrail_node_applied", "Up to which event the node's view holds the log, as its newest record says.", []string{"node"}, nil)
	lifeDesc    = prometheus.NewDesc("keytrail_node_lease_life_seconds", "For how long the node may answer on its lease: a receipt waits that long for a node that is gone.", []string{"node"}, nil)
	usesDesc    = prometheus.NewDesc("keytrail_node_decisions", "How many decisions the node has numbered in the epoch of its ledger, as its newest record says.", []string{"node"}, nil)
)

// Describe implements prometheus.Collector.
func (o *Observer) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{nodesDesc, ageDesc, appliedDesc, lifeDesc, usesDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. A node that has ended has no metrics of
// its own; of a node with several runs the newest that may answer counts.
func (o *Observer) Collect(ch chan<- prometheus.Metric) {
	s, err := o.newest()
	if err != nil {
		return
	}
	count := map[State]int{}
	shown := map[string]*Run{}
	for i := range s.Runs {
		r := &s.Runs[i]
		count[r.State]++
		was := shown[string(r.Node)]
		if r.State != Live && r.State != Lapsed || was != nil && was.State == Live && (r.State != Live || r.Seq < was.Seq) || was == nil && len(shown) == maxNodes {
			continue
		}
		shown[string(r.Node)] = r
	}
	for _, state := range []State{Live, Ended, Lapsed, Unreadable} {
		ch <- prometheus.MustNewConstMetric(nodesDesc, prometheus.GaugeValue, float64(count[state]), string(state))
	}
	for node, r := range shown {
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, node)
		}
		gauge(ageDesc, time.Since(r.Seen).Seconds())
		gauge(appliedDesc, float64(r.Applied.Size))
		gauge(lifeDesc, r.Life().Seconds())
		gauge(usesDesc, float64(r.Decisions))
	}
}
