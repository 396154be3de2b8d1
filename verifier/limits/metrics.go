package limits

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

type atomicTerm = atomic.Pointer[term]

type serviceCounts struct{ appointed, asks atomic.Uint64 }

// Collectors returns the metrics of the node's side.
func (c *Client) Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		count("keytrail_verifier_limit_asks_total", "Asks of this node for tokens of exact limits.", &c.counts.asks),
		count("keytrail_verifier_limit_asks_lost_total", "Asks for tokens that no allocator has answered. While it grows, keyspaces with limits exact refuse requests whose tokens are not in hand.", &c.counts.lost),
		count("keytrail_verifier_limit_waits_total", "Requests that waited for the answer to an ask for tokens. A bucket that is in use is asked for ahead: this grows with keys that are used now and then.", &c.counts.waits),
		count("keytrail_verifier_limit_turned_away_total", "Requests that were refused because too many waited for tokens already.", &c.counts.turned),
		gauge("keytrail_verifier_limit_allocator_away", "1 while the allocator of exact limits does not answer this node.", func() float64 {
			if c.away.Load() {
				return 1
			}
			return 0
		}),
	}
}

// Waited counts a request that waited for an answer.
func (c *Client) Waited() { c.counts.waits.Add(1) }

// TurnedAway counts a request that was refused because too many wait.
func (c *Client) TurnedAway() { c.counts.turned.Add(1) }

// Collectors returns the metrics of the allocator.
func (s *Service) Collectors() []prometheus.Collector {
	state := func(f func(*term) float64) func() float64 {
		return func() float64 {
			if t := s.term.Load(); t != nil {
				return f(t)
			}
			return 0
		}
	}
	return []prometheus.Collector{
		count("keytrail_limit_appointments_total", "How often this process was appointed to lease the tokens of exact limits.", &s.counts.appointed),
		count("keytrail_limit_asks_total", "Asks for tokens that this process has answered.", &s.counts.asks),
		gauge("keytrail_limit_allocator", "1 while this process may lease the tokens of exact limits.", state(func(t *term) float64 {
			if s.cfg.Steady() >= t.from && s.cfg.Passed() < t.until {
				return 1
			}
			return 0
		})),
		gauge("keytrail_limit_buckets", "Buckets with tokens that are leased or owed.", state(func(t *term) float64 { n, _ := t.leased(); return float64(n) })),
		gauge("keytrail_limit_leased_tokens", "Tokens that nodes hold.", state(func(t *term) float64 { _, n := t.leased(); return float64(n) })),
	}
}

func gauge(name, help string, f func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
}

func count(name, help string, c *atomic.Uint64) prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(c.Load()) })
}
