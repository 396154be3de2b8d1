package audit

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
)

// writerMetrics is what an operator watches of the copy. The label source is
// events or uses.
type writerMetrics struct {
	position, end, lagMessages *prometheus.GaugeVec
	messages, rows, restarts   *prometheus.CounterVec
	batch, seconds             *prometheus.HistogramVec
	trimmed                    prometheus.Counter
	lagSeconds                 []prometheus.Collector // one a source, computed when asked
	sources                    map[string]*sourceState
}

// sourceState is how far the copy of one source is.
type sourceState struct {
	mu       sync.Mutex
	last     events.Seq // guarded by mu: in ClickHouse
	end      events.Seq // guarded by mu: of the source, as last seen
	complete time.Time  // guarded by mu: when the copy was last seen to be complete
}

func newWriterMetrics() *writerMetrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "keytrail", Subsystem: "audit", Name: name, Help: help}
	}
	label := []string{"source"}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts(opts(name, help)), label)
	}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts(opts(name, help)), label)
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "keytrail", Subsystem: "audit", Name: name, Help: help, Buckets: buckets}, label)
	}
	m := &writerMetrics{
		position:    gauge("position", "Last sequence of the source that is in ClickHouse."),
		end:         gauge("log_end", "Last sequence of the source as last seen."),
		lagMessages: gauge("lag_messages", "Messages of the source that are not in ClickHouse. Growing means that the copy is too slow or stopped."),
		messages:    counter("messages_total", "Messages of the source written."),
		rows:        counter("rows_total", "Rows written, rollups not counted."),
		restarts:    counter("restarts_total", "Epochs that ended in an error. Growing while ClickHouse is up means that it refuses the inserts; see the log."),
		batch:       histogram("batch_rows", "Rows of one insert. Always small under load means that the linger is too short.", prometheus.ExponentialBuckets(1, 4, 10)),
		seconds:     histogram("insert_seconds", "Duration of one batch's inserts.", prometheus.ExponentialBuckets(0.001, 2, 14)),
		trimmed:     prometheus.NewCounter(prometheus.CounterOpts(opts("trimmed_messages_total", "Messages of uses that the stream dropped before they were copied: lost. Must be 0; raise the stream's retention."))),
		sources:     map[string]*sourceState{},
	}
	for _, source := range []string{sourceEvents, sourceUses} {
		st := &sourceState{complete: time.Now()}
		m.sources[source] = st
		o := prometheus.GaugeOpts(opts("lag_seconds", "Seconds since the copy was last seen to be complete. Above a few the answers of the audit door are old."))
		o.ConstLabels = prometheus.Labels{"source": source}
		m.lagSeconds = append(m.lagSeconds, prometheus.NewGaugeFunc(o, st.lag))
	}
	return m
}

func (m *writerMetrics) collectors() []prometheus.Collector {
	return append([]prometheus.Collector{m.position, m.end, m.lagMessages, m.messages, m.rows, m.restarts, m.batch, m.seconds, m.trimmed}, m.lagSeconds...)
}

func (s *sourceState) lag() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.complete).Seconds()
}

// move notes how far the copy is, how far the source is, or both; 0 leaves one as it is.
func (m *writerMetrics) move(source string, last, end events.Seq) {
	s := m.sources[source]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.end = max(s.last, last), max(s.end, end)
	if s.last >= s.end && end != 0 { // a fresh look at the source
		s.complete = time.Now()
	}
	m.position.WithLabelValues(source).Set(float64(s.last))
	m.end.WithLabelValues(source).Set(float64(s.end))
	m.lagMessages.WithLabelValues(source).Set(float64(max(s.end, s.last) - s.last))
}

// inserted counts one batch.
func (m *writerMetrics) inserted(source string, last events.Seq, messages, rows int, took time.Duration) {
	m.messages.WithLabelValues(source).Add(float64(messages))
	m.rows.WithLabelValues(source).Add(float64(rows))
	m.batch.WithLabelValues(source).Observe(float64(rows))
	m.seconds.WithLabelValues(source).Observe(took.Seconds())
	m.move(source, last, 0)
}
