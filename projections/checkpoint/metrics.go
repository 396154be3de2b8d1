package checkpoint

import "github.com/prometheus/client_golang/prometheus"

// Collectors returns the publisher's metrics.
func (p *Publisher) Collectors() []prometheus.Collector {
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	return []prometheus.Collector{
		gauge("keytrail_tree_size", "Events in this control's file of the log's tree.", func() float64 {
			have, _ := p.tree.reading()
			return float64(have)
		}),
		gauge("keytrail_checkpoint_size", "Events in the newest signed checkpoint that is served; 0 before the first.", func() float64 {
			if s := p.served.Load(); s != nil {
				return float64(s.head.Size)
			}
			return 0
		}),
		gauge("keytrail_checkpoint_timestamp_seconds", "When the newest checkpoint was stored or seen here, in Unix seconds; 0 before the first.", func() float64 {
			if s := p.served.Load(); s != nil {
				return float64(s.at.UnixMilli()) / 1000
			}
			return 0
		}),
		gauge("keytrail_checkpoint_fork", "1 if the log and the signed checkpoints are of two histories: nothing is signed any more.", func() float64 {
			if p.forked() {
				return 1
			}
			return 0
		}),
	}
}
