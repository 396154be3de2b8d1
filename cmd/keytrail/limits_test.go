package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events/keyspace"
)

// exactLimits are verifiers that share one key with a limit, and what they answered.
type exactLimits struct {
	t     testing.TB
	c     *edges
	limit keyspace.Limit
	body  []byte
	began time.Time

	mu   sync.Mutex
	uses []limitedUse // guarded by mu
}

// limitedUse is one answer.
type limitedUse struct {
	admission
	reason, mode string
	remaining    float64
}

// startExact starts n verifiers, and control twice, and makes a keyspace with exact limits
// and a key in it. It returns when a token has been leased.
func startExact(t testing.TB, n int, limit keyspace.Limit) *exactLimits {
	c, _ := startEdges(t, n)
	// What a node cannot ask, it refuses: a slow machine must not make it stale as well.
	c.control.data(t, 200, "PUT", "/v1/keyspaces/shop", map[string]any{"key_types": []any{map[string]any{"name": "secret", "prefix": "sk_"}},
		"limits": "exact", "staleness": map[string]any{"max_millis": 60_000}})
	x := &exactLimits{t: t, c: c, limit: limit}
	warm := x.key("warm", keyspace.Limit{PerMinute: 60_000, Burst: 1000})
	eventually(t, func() string { return x.allowed(c.edges[0], warm) })
	x.body = x.key("limited", limit)
	for _, e := range c.edges {
		eventually(t, func() string { return x.allowed(e, warm) })
	}
	x.began = time.Now()
	return x
}

// key creates a key with a limit, and returns the question about it.
func (x *exactLimits) key(name string, limit keyspace.Limit) []byte {
	created := x.c.control.data(x.t, 201, "POST", "/v1/keyspaces/shop/keys", map[string]any{"tenant": "acme", "name": name,
		"limit": map[string]any{"per_minute": limit.PerMinute, "burst": limit.Burst}})
	b, _ := json.Marshal(map[string]any{"key": created["key"], "keyspace": "shop"})
	return b
}

func (x *exactLimits) allowed(e *edge, body []byte) string {
	if a, ok := x.ask(e, body); !ok || a.Reason != "ok" || a.Limit.Mode != "exact" {
		return fmt.Sprintf("%s answers %+v", e.name, a)
	}
	return ""
}

type limitedAnswer struct {
	Reason string `json:"reason"`
	Limit  struct {
		Mode      string  `json:"mode"`
		Remaining float64 `json:"remaining"`
	} `json:"limit"`
	Detail string `json:"detail"`
}

// ask asks the verifier once; ok is false when it does not answer.
func (x *exactLimits) ask(e *edge, body []byte) (a limitedAnswer, ok bool) {
	resp, err := edgeClient.Post(e.base.Load().(string)+"/v1/verify", "application/json", bytes.NewReader(body))
	if err != nil {
		return a, false
	}
	defer resp.Body.Close()
	return a, resp.StatusCode == http.StatusOK && json.NewDecoder(resp.Body).Decode(&a) == nil
}

// load asks all verifiers for a while, so many times the rate in all, skewed over them.
func (x *exactLimits) load(times float64, length time.Duration, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	weights, sum := make([]float64, len(x.c.edges)), 0.0
	for i := range weights {
		weights[i] = 0.2 + r.Float64()
		sum += weights[i]
	}
	end := time.Now().Add(length)
	var wg sync.WaitGroup
	for i, e := range x.c.edges {
		pause := time.Duration(float64(time.Minute) / (times * float64(x.limit.PerMinute) * weights[i] / sum))
		first := time.Now().Add(time.Duration(r.Int64N(int64(pause))))
		wg.Go(func() {
			for next := first; next.Before(end); next = next.Add(pause) {
				time.Sleep(time.Until(next)) // the pace of the load
				sent := time.Since(x.began)
				a, ok := x.ask(e, x.body)
				if !ok {
					continue // it is cut off, or the machine is busy
				}
				x.mu.Lock()
				x.uses = append(x.uses, limitedUse{admission{sent, time.Since(x.began)}, a.Reason, a.Limit.Mode, a.Limit.Remaining})
				x.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// between returns what was sent from one instant on until another.
func (x *exactLimits) between(from, to time.Duration) (allowed, refused int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, u := range x.uses {
		switch {
		case u.sent < from || u.sent >= to:
		case u.reason == "ok":
			allowed++
		default:
			refused++
		}
	}
	return allowed, refused
}

// most returns the span in which most was admitted.
func (x *exactLimits) most() span {
	x.mu.Lock()
	defer x.mu.Unlock()
	var list []admission
	for _, u := range x.uses {
		if u.reason == "ok" {
			list = append(list, u.admission)
		}
	}
	return mostAdmitted(list, float64(x.limit.PerMinute)/60, x.limit.Burst)
}

// hurt kills the control that leases the tokens, while another one runs, and cuts two
// verifiers off from the log for a while.
func (x *exactLimits) hurt(length time.Duration) {
	var wg sync.WaitGroup
	wg.Go(func() { x.c.control.kill() })
	for _, e := range x.c.edges[:2] {
		wg.Go(func() {
			e.way.cut.Store(true)
			time.Sleep(length) // the cut lasts
			e.way.cut.Store(false)
		})
	}
	wg.Wait()
}

// TestExactLimitsOfProcesses: whatever happens to the allocator and to the way of verifiers
// to it, all of them together admit no more than the limit, and they go on when another
// control has taken over.
func TestExactLimitsOfProcesses(t *testing.T) {
	n, length := 5, 8*time.Second
	if testing.Short() {
		n, length = 3, 6*time.Second
	}
	x := startExact(t, n, keyspace.Limit{PerMinute: 6000, Burst: 50})
	standby := x.c.role(t, "control", "--name", "control-2")
	first := x.c.control
	var hurt sync.WaitGroup
	hurt.Go(func() {
		time.Sleep(time.Second) // after some load
		x.hurt(3 * time.Second)
	})
	x.load(10, length, 1)
	hurt.Wait()
	x.c.control = standby
	if m := x.most(); float64(m.Admitted) > m.Limit {
		t.Errorf("%d admitted within %s, and the limit is %.1f", m.Admitted, microseconds(m.Micros), m.Limit)
	}
	eventually(t, func() string {
		x.load(1, 500*time.Millisecond, 2)
		if allowed, _ := x.between(time.Since(x.began)-500*time.Millisecond, time.Hour); allowed == 0 {
			return "no allocator has taken over from " + first.url
		}
		return ""
	})
	if m := x.most(); float64(m.Admitted) > m.Limit {
		t.Errorf("%d admitted within %s, and the limit is %.1f", m.Admitted, microseconds(m.Micros), m.Limit)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if i := slices.IndexFunc(x.uses, func(u limitedUse) bool {
		return u.mode != "exact" && u.reason != stale || u.remaining > float64(x.limit.Burst)
	}); i >= 0 {
		t.Errorf("an answer says %+v", x.uses[i])
	}
	_, _, metrics := standby.raw(t, "GET", "/metrics", nil, nil)
	if !strings.Contains(string(metrics), "keytrail_limit_allocator 1") {
		t.Error("the metrics of the second control do not say that it leases the tokens")
	}
}

// TestExactLimitsGoOnAfterARestart: a process that is stopped in order and started again goes
// on with the buckets where they were.
func TestExactLimitsGoOnAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	p := up(t, dir)
	p.data(t, 200, "PUT", "/v1/keyspaces/shop", map[string]any{"key_types": []any{map[string]any{"name": "secret", "prefix": "sk_"}}, "limits": "exact"})
	created := p.data(t, 201, "POST", "/v1/keyspaces/shop/keys", map[string]any{"tenant": "acme", "name": "slow", "limit": map[string]any{"per_minute": 1, "burst": 100}})
	spend := func(cost int) map[string]any {
		_, a := p.do(t, "POST", "/v1/verify", nil, map[string]any{"key": created["key"], "keyspace": "shop", "cost": cost})
		return a
	}
	eventually(t, func() string {
		if a := spend(30); a["allowed"] != true {
			return fmt.Sprint(a)
		}
		return ""
	})
	eventually(t, func() string { // what the node does not use goes back
		if _, _, metrics := p.raw(t, "GET", "/metrics", nil, nil); !strings.Contains(string(metrics), "\nkeytrail_limit_leased_tokens 0\n") {
			return "the node still holds tokens"
		}
		return ""
	})
	p.stop(t)
	p = up(t, dir)
	eventually(t, func() string { // 70 are left, and one comes back in a minute
		if a := spend(69); a["allowed"] != true {
			return fmt.Sprint(a)
		}
		return ""
	})
	if a := spend(3); a["allowed"] != false || a["detail"] != nil {
		t.Errorf("more than was left: %v", a)
	}
	p.stop(t)
}

// BenchmarkExactLimits: 16 verifiers and one key. First steadily below the limit, then at
// ten times its rate, then the same while the allocator is killed and two verifiers are
// cut off. It fails when more is admitted than the limit allows.
func BenchmarkExactLimits(b *testing.B) {
	x := startExact(b, 16, keyspace.Limit{PerMinute: 12_000, Burst: 200})
	standby := x.c.role(b, "control", "--name", "control-2")
	now := func() time.Duration { return time.Since(x.began) }
	perSecond := float64(x.limit.PerMinute) / 60
	for b.Loop() {
		began := now()
		x.load(0.9, 8*time.Second, 1)
		allowed, refused := x.between(began, now())
		b.ReportMetric(100*float64(refused)/float64(allowed+refused), "%-false-refusals")
		x.load(10, 2*time.Second, 2) // the burst is spent
		began = now()
		x.load(10, 8*time.Second, 3)
		took := now() - began
		allowed, _ = x.between(began, began+took)
		b.ReportMetric(100*float64(allowed)/(perSecond*took.Seconds()), "%-of-rate-at-10x")
		killed := now()
		var hurt sync.WaitGroup
		hurt.Go(func() { x.hurt(4 * time.Second) })
		x.load(10, 10*time.Second, 4)
		hurt.Wait()
		x.c.control = standby
		back := now()
		x.mu.Lock()
		for _, u := range x.uses {
			if u.sent > killed+2*time.Second && u.reason == "ok" && u.sent < back {
				back = u.sent
			}
		}
		x.mu.Unlock()
		b.ReportMetric((back - killed).Seconds(), "s-until-another-allocator")
		began = now()
		x.load(10, 6*time.Second, 5)
		took = now() - began
		allowed, _ = x.between(began, began+took)
		b.ReportMetric(100*float64(allowed)/(perSecond*took.Seconds()), "%-of-rate-afterwards")
	}
	m := x.most()
	b.ReportMetric(float64(m.Admitted)-m.Limit, "tokens-beyond-the-limit")
	b.ReportMetric(0, "ns/op")
	if float64(m.Admitted) > m.Limit {
		b.Errorf("%d admitted within %s, and the limit is %.1f", m.Admitted, microseconds(m.Micros), m.Limit)
	}
}
