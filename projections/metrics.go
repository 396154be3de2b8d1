package projections

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
)

// Collectors returns the view's metrics. now is the wall clock; head tells the
// last sequence of the log that the process has heard of, without I/O, and may
// be nil: then the lag in events is not reported.
func (v *Keys) Collectors(now func() time.Time, head func() events.Seq) []prometheus.Collector {
	out := []prometheus.Collector{
		gauge("keytrail_view_keys", "Keys in the verifier's view, the ended ones included.",
			func() float64 { return float64(v.Len()) }),
		gauge("keytrail_view_position", "Sequence of the last event applied to the verifier's view.",
			func() float64 { return float64(v.At()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "keytrail_view_events_total", Help: "Events folded into the verifier's view since the start. Its rate at a start is the replay's speed."},
			func() float64 { return float64(v.applied.Load()) }),
		gauge("keytrail_view_lag_seconds", "Time since the log's clock at the last heartbeat that was fully applied; -1 before the first. Above a second the node cannot reach the log or cannot keep up; above the keyspace's max_staleness it stops trusting itself.",
			func() float64 {
				if v.FreshAt() == 0 {
					return -1
				}
				return now().Sub(v.FreshAt().Std()).Seconds()
			}),
	}
	if head != nil {
		out = append(out, gauge("keytrail_view_lag_events", "Events in the log that the verifier's view has not applied. It should return to 0 within a second of any write.",
			func() float64 { return max(0, float64(head())-float64(v.At())) }))
	}
	return out
}

// Collectors returns the directory's metrics.
func (d *Directory) Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		gauge("keytrail_directory_keys", "Keys in control's directory, the ended ones included.",
			func() float64 { return float64(d.Len()) }),
		gauge("keytrail_directory_position", "Sequence of the last event applied to control's directory.",
			func() float64 { return float64(d.At()) }),
	}
}

// Collectors returns the saver's metrics, each with the label view.
func (s *Saver) Collectors() []prometheus.Collector {
	view := prometheus.Labels{"view": s.View.Name()}
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "keytrail_snapshot_age_seconds", ConstLabels: view,
			Help: "Time since this process saved its last snapshot of the view; -1 before the first. Far above the interval while the position moves, saving fails."},
			func() float64 {
				if at := s.savedAt.Load(); at != nil {
					return s.now().Sub(*at).Seconds()
				}
				return -1
			}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "keytrail_snapshot_position", ConstLabels: view,
			Help: "Position of the last snapshot of the view that this process saved."},
			func() float64 { return float64(s.saved.Load()) }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "keytrail_snapshot_failures_total", ConstLabels: view,
			Help: "Snapshots that could not be saved. Each one makes the next start slower, nothing else."},
			func() float64 { return float64(s.failures.Load()) }),
	}
}

func gauge(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
}
