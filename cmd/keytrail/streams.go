package main

import (
	"context"
	"errors"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events/eventlog"
)

// streamMetrics shows how full the log's streams are, as the log was last told.
type streamMetrics struct {
	log                                        *eventlog.Log
	bytes, limit, used, consumers, ofConsumers *prometheus.Desc
}

func newStreamMetrics(log *eventlog.Log) *streamMetrics {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, []string{"stream"}, nil)
	}
	return &streamMetrics{log: log,
		bytes:       desc("keytrail_log_stream_bytes", "Bytes that the stream uses."),
		limit:       desc("keytrail_log_stream_limit_bytes", "Bytes that the stream may use (max_bytes)."),
		used:        desc("keytrail_log_stream_used_percent", "How much of its limit the stream uses; not of KT_USE and KT_CHECKPOINT, which forget the oldest. At 90 KT_LIFE takes only what takes power away."),
		consumers:   desc("keytrail_log_stream_consumers", "Consumers of the stream."),
		ofConsumers: desc("keytrail_log_stream_consumers_percent", "How many of the consumers that the server admits the stream has."),
	}
}

// Describe implements prometheus.Collector.
func (m *streamMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.bytes, m.limit, m.used, m.consumers, m.ofConsumers} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *streamMetrics) Collect(out chan<- prometheus.Metric) {
	for _, f := range m.log.Fills() {
		gauge := func(d *prometheus.Desc, v float64) {
			out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, f.Stream)
		}
		gauge(m.bytes, float64(f.Bytes))
		gauge(m.limit, float64(f.Limit))
		if f.Keeps {
			gauge(m.used, float64(f.Percent()))
		}
		gauge(m.consumers, float64(f.Consumers))
		gauge(m.ofConsumers, float64(f.Consumers*100/f.MaxConsumers))
	}
}

// limitMetrics counts how often nodes met limits of the log's servers.
func limitMetrics() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "keytrail_log_node_limited_total",
		Help: "Operations of a node that a log server held back or refused, by the limit they met. Anything but 0 is a node that asks for too much."}, []string{"node", "limit"})
}

// streams tells how full the log's streams are.
func (d *doctor) streams(ctx context.Context, log *eventlog.Log) {
	if err := log.LookAtStreams(ctx); err != nil {
		d.fail("streams", err, wayToLog)
		return
	}
	var used []string
	warned := false
	for _, f := range log.Fills() {
		used = append(used, f.String())
		if warning := f.Warning(); warning != "" {
			warned = true
			d.fail("streams", errors.New(warning), "")
		}
	}
	if !warned {
		d.ok("streams", strings.Join(used, ", "))
	}
}
