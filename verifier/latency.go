package verifier

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// latency is a histogram of seconds, by endpoint, whose writers share no memory most of
// the time: each processor adds to a stripe of its own. It implements
// prometheus.Collector.
type latency struct {
	desc      *prometheus.Desc
	endpoints map[string]*endpointLatency
}

// latencyBounds are the upper bounds of the buckets, in seconds.
var latencyBounds = [...]float64{20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 20e-3, 100e-3, 1, 5}

// endpointLatency is the histogram of one endpoint. It implements prometheus.Observer.
type endpointLatency struct {
	stripes []stripe
	mine    sync.Pool // of *stripe: the pool keeps one for each processor
	next    atomic.Uint32
}

// stripe is a part of a histogram. Two processors may come to share one; it stays exact.
type stripe struct {
	_       [64]byte
	buckets [len(latencyBounds) + 1]atomic.Uint64 // the last: above every bound
	nanos   atomic.Uint64
	_       [64]byte
}

func newLatency(name, help string, endpoints ...string) *latency {
	l := &latency{prometheus.NewDesc(name, help, []string{"endpoint"}, nil), map[string]*endpointLatency{}}
	for _, e := range endpoints {
		h := &endpointLatency{stripes: make([]stripe, runtime.GOMAXPROCS(0))}
		// The pool forgets what it holds now and then. The stripes are not its own.
		h.mine.New = func() any { return &h.stripes[h.next.Add(1)%uint32(len(h.stripes))] }
		l.endpoints[e] = h
	}
	return l
}

// Observe implements prometheus.Observer. It takes seconds.
func (h *endpointLatency) Observe(seconds float64) {
	i := 0
	for i < len(latencyBounds) && seconds > latencyBounds[i] {
		i++
	}
	s := h.mine.Get().(*stripe)
	s.buckets[i].Add(1)
	s.nanos.Add(uint64(max(seconds, 0) * 1e9))
	h.mine.Put(s)
}

// Describe implements prometheus.Collector.
func (l *latency) Describe(to chan<- *prometheus.Desc) { to <- l.desc }

// Collect implements prometheus.Collector.
func (l *latency) Collect(to chan<- prometheus.Metric) {
	for name, h := range l.endpoints {
		var counts [len(latencyBounds) + 1]uint64
		nanos := uint64(0)
		for i := range h.stripes {
			s := &h.stripes[i]
			for b := range counts {
				counts[b] += s.buckets[b].Load()
			}
			nanos += s.nanos.Load()
		}
		below, total := make(map[float64]uint64, len(latencyBounds)), uint64(0)
		for b, n := range counts {
			if total += n; b < len(latencyBounds) {
				below[latencyBounds[b]] = total
			}
		}
		to <- prometheus.MustNewConstHistogram(l.desc, total, float64(nanos)/1e9, below, name)
	}
}
