package audit

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
)

// WriterMetrics is what an operator watches of the copy. The label source is
// events, reads or uses. They exist before ClickHouse has answered, so that a copy which
// never starts is seen too: register Collectors and run Watch from the start.
type WriterMetrics struct {
	position, end, lagMessages *prometheus.GaugeVec
	messages, rows, restarts   *prometheus.CounterVec
	batch, seconds             *prometheus.HistogramVec
	trimmed, quarantined       prometheus.Counter
	clock                      *prometheus.GaugeVec      // by node
	nodes                      map[events.NodeID]float64 // owned by the reader of uses: what the message before said, by node
	lagSeconds                 []prometheus.Collector    // one a source, computed when asked
	sources                    map[string]*sourceState
}

// sourceState is how far the copy of one source is.
type sourceState struct {
	mu       sync.Mutex
	last     events.Seq // guarded by mu: in ClickHouse
	known    bool       // guarded by mu: ClickHouse has said so
	end      events.Seq // guarded by mu: of the source, as last seen
	complete time.Time  // guarded by mu: when the copy was last seen to be complete
}

// NewWriterMetrics makes the metrics of one Writer. The lag counts from here.
func NewWriterMetrics() *WriterMetrics {
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
	m := &WriterMetrics{
		position:    gauge("position", "Last sequence of the source that is in ClickHouse."),
		end:         gauge("log_end", "Last sequence of the source as last seen."),
		lagMessages: gauge("lag_messages", "Messages of the source that are not in ClickHouse. Growing means that the copy is too slow or stopped."),
		messages:    counter("messages_total", "Messages of the source written."),
		rows:        counter("rows_total", "Rows written, rollups not counted."),
		restarts:    counter("restarts_total", "Epochs that ended in an error. Growing while ClickHouse is up means that it refuses the inserts; see the log."),
		batch:       histogram("batch_rows", "Rows of one insert. Always small under load means that the linger is too short.", prometheus.ExponentialBuckets(1, 4, 10)),
		seconds:     histogram("insert_seconds", "Duration of one batch's inserts.", prometheus.ExponentialBuckets(0.001, 2, 14)),
		trimmed:     prometheus.NewCounter(prometheus.CounterOpts(opts("trimmed_messages_total", "Messages of uses that the stream dropped before they were copied: lost. Must be 0; raise the stream's retention."))),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts(opts("quarantined_messages_total", "Messages of the use stream that are no batch of their node and were set aside. "+
			"Must be 0: a node is of a newer release than the auditor, or somebody else has a verifier's password. keytrail doctor --deep lists them."))),
		clock: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("node_clock_offset_seconds", "How far the newest uses of a node are dated after the log stored them; before is negative. Of its last two messages, the one nearer to 0. "+
			"Far from 0 the node's clock is off, or its uses reach the log late.")), []string{"node"}),
		nodes:   map[events.NodeID]float64{},
		sources: map[string]*sourceState{},
	}
	for _, source := range []string{sourceEvents, sourceReads, sourceUses} {
		st := &sourceState{complete: time.Now()}
		m.sources[source] = st
		o := prometheus.GaugeOpts(opts("lag_seconds", "Seconds since the copy was last seen to be complete. Above a few the answers of the audit endpoint are old."))
		o.ConstLabels = prometheus.Labels{"source": source}
		m.lagSeconds = append(m.lagSeconds, prometheus.NewGaugeFunc(o, st.lag))
		for _, v := range []*prometheus.GaugeVec{m.position, m.end, m.lagMessages} {
			v.WithLabelValues(source)
		}
		for _, v := range []*prometheus.CounterVec{m.messages, m.rows, m.restarts} {
			v.WithLabelValues(source)
		}
	}
	return m
}

// Collectors returns the metrics, to be registered.
func (m *WriterMetrics) Collectors() []prometheus.Collector {
	return append([]prometheus.Collector{m.position, m.end, m.lagMessages, m.messages, m.rows, m.restarts, m.batch, m.seconds, m.trimmed, m.quarantined, m.clock}, m.lagSeconds...)
}

func (s *sourceState) lag() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.complete).Seconds()
}

// watchEvery is how often Watch looks where the sources end.
const watchEvery = time.Second

// Watch asks where the sources end, now and every second, until ctx ends: the lag
// grows while nothing is copied.
func (m *WriterMetrics) Watch(ctx context.Context, log, reads events.Log, uses events.UseSource) error {
	for {
		// An error is the writer's to tell: it reads the same source.
		if end, err := log.Last(ctx); err == nil {
			m.ends(sourceEvents, end)
		}
		if end, err := reads.Last(ctx); err == nil {
			m.ends(sourceReads, end)
		}
		if end, err := uses.LastUse(ctx); err == nil {
			m.ends(sourceUses, end)
		}
		if err := pause(ctx, watchEvery); err != nil {
			return err
		}
	}
}

// copied notes how far the copy is.
func (m *WriterMetrics) copied(source string, last events.Seq) {
	s := m.sources[source]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.known = max(s.last, last), true
	m.set(source, s)
}

// ends notes where the source was just seen to end.
func (m *WriterMetrics) ends(source string, end events.Seq) {
	s := m.sources[source]
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end = max(s.end, end)
	if s.known && s.last >= s.end {
		s.complete = time.Now()
	}
	m.set(source, s)
}

// set shows s, whose mu is held.
func (m *WriterMetrics) set(source string, s *sourceState) {
	m.position.WithLabelValues(source).Set(float64(s.last))
	m.end.WithLabelValues(source).Set(float64(s.end))
	m.lagMessages.WithLabelValues(source).Set(float64(max(s.end, s.last) - s.last))
}

// maxNodes bounds the label node: who may write uses may write them for any node.
const maxNodes = 1000

// heard compares the newest use of a message with when the log stored it. One
// message may be late, after an outage; two in a row are not by chance.
func (m *WriterMetrics) heard(node events.NodeID, stored events.Time, uses []events.Use) {
	before, known := m.nodes[node]
	if len(uses) == 0 || !known && len(m.nodes) >= maxNodes {
		return
	}
	offset := float64(uses[len(uses)-1].Time-stored) / 1000
	m.nodes[node] = offset
	if !known {
		return
	}
	if math.Abs(before) < math.Abs(offset) {
		offset = before
	}
	m.clock.WithLabelValues(string(node)).Set(offset)
}

// inserted counts one batch.
func (m *WriterMetrics) inserted(source string, last events.Seq, messages, rows int, took time.Duration) {
	m.messages.WithLabelValues(source).Add(float64(messages))
	m.rows.WithLabelValues(source).Add(float64(rows))
	m.batch.WithLabelValues(source).Observe(float64(rows))
	m.seconds.WithLabelValues(source).Observe(took.Seconds())
	m.copied(source, last)
}
