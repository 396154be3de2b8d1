package verifier

import (
	"math/big"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// twin is a token bucket as a textbook has it, in exact fractions.
type twin struct {
	tokens *big.Rat
	at     int64
}

// advance brings the bucket to now.
func (w *twin) advance(now, perMinute, burst int64) {
	full := big.NewRat(burst, 1)
	if w.tokens == nil {
		w.tokens = new(big.Rat).Set(full)
	} else {
		w.tokens.Add(w.tokens, new(big.Rat).Mul(perMS(perMinute), big.NewRat(now-w.at, 1)))
	}
	w.at = now
	if w.tokens.Cmp(full) > 0 {
		w.tokens.Set(full)
	}
}

// perMS is how many tokens a millisecond brings.
func perMS(perMinute int64) *big.Rat { return big.NewRat(perMinute, 60_000) }

func (w *twin) has(cost int64) bool { return w.tokens.Cmp(big.NewRat(cost, 1)) >= 0 }

func (w *twin) spend(cost int64) { w.tokens.Sub(w.tokens, big.NewRat(cost, 1)) }

// tell says where the bucket stands, after a request of the cost was refused or not.
func (w *twin) tell(perMinute, burst, cost int64, refused bool) (l Limit) {
	if refused && cost <= burst {
		l.RetryAfter = ceilSeconds(new(big.Rat).Quo(new(big.Rat).Sub(big.NewRat(cost, 1), w.tokens), perMS(perMinute)))
	}
	l.Limit = burst
	l.Remaining = new(big.Int).Quo(w.tokens.Num(), w.tokens.Denom()).Int64()
	l.Reset = ceilSeconds(new(big.Rat).Quo(new(big.Rat).Sub(big.NewRat(burst, 1), w.tokens), perMS(perMinute)))
	return l
}

func (w *twin) take(now, perMinute, burst, cost int64) (Limit, bool) {
	w.advance(now, perMinute, burst)
	ok := w.has(cost)
	if ok {
		w.spend(cost)
	}
	return w.tell(perMinute, burst, cost, !ok), ok
}

// ceilSeconds rounds milliseconds up to whole seconds.
func ceilSeconds(ms *big.Rat) int64 {
	s := new(big.Rat).Quo(ms, big.NewRat(1000, 1))
	n := new(big.Int).Add(s.Num(), new(big.Int).Sub(s.Denom(), big.NewInt(1)))
	return n.Quo(n, s.Denom()).Int64()
}

// at is where a bucket stands, whoever it belongs to.
func at(limit, remaining, reset, retryAfter int64) Limit {
	return Limit{Limit: limit, Remaining: remaining, Reset: reset, RetryAfter: retryAfter}
}

func takeNow(b *Bucket, now events.Time, perMinute, burst, cost int64) (Limit, bool) {
	return take(b, b.At.Load(), now, perMinute, burst, cost)
}

func TestLimitEqualsItsTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		small := rapid.Int64Range(1, 100)
		any := rapid.Int64Range(1, keyspace.MaxPerMinute)
		number := rapid.OneOf(small, any, rapid.Just(int64(keyspace.MaxPerMinute)))
		perMinute, burst := number.Draw(t, "per minute"), number.Draw(t, "burst")
		step := rapid.OneOf(rapid.Int64Range(0, 3), rapid.Int64Range(0, 120_000), rapid.Int64Range(0, 1<<40))
		cost := rapid.OneOf(rapid.Int64Range(1, 5), rapid.Int64Range(1, 1<<32-1))
		now := int64(1_790_000_000_000)
		var b Bucket
		var w twin
		for range rapid.IntRange(1, 60).Draw(t, "requests") {
			now += step.Draw(t, "step")
			c := cost.Draw(t, "cost")
			got, ok := takeNow(&b, events.Time(now), perMinute, burst, c)
			want, wantOK := w.take(now, perMinute, burst, c)
			if got != want || ok != wantOK {
				t.Fatalf("%d a minute, burst %d, cost %d: %+v %v, want %+v %v", perMinute, burst, c, got, ok, want, wantOK)
			}
			if wait := got.RetryAfter; wait > 0 {
				// The answer is exact: at that second it is allowed, so nobody waits in vain.
				copied := w
				copied.tokens = new(big.Rat).Set(w.tokens)
				if _, ok := copied.take(now+wait*1000, perMinute, burst, c); !ok {
					t.Fatalf("retry after %d s would be refused again", wait)
				}
			}
		}
	})
}

func TestLimitTable(t *testing.T) {
	const start = events.Time(1_790_000_000_000)
	type step struct {
		after events.Time // since start
		cost  int64
		ok    bool
		want  Limit
	}
	for _, c := range []struct {
		name             string
		perMinute, burst int64
		steps            []step
	}{
		{"60 a minute, burst 2", 60, 2, []step{
			{0, 1, true, at(2, 1, 1, 0)},
			{0, 1, true, at(2, 0, 2, 0)},
			{0, 1, false, at(2, 0, 2, 1)},
			{999, 1, false, at(2, 0, 2, 1)},
			{1000, 1, true, at(2, 0, 2, 0)},
			{999, 1, false, at(2, 0, 2, 1)}, // a clock a little behind brings nothing and takes nothing
			{2000, 1, true, at(2, 0, 2, 0)},
			{60_000, 3, false, at(2, 2, 0, 0)}, // more than the burst: never, and no token is taken
			{60_000, 2, true, at(2, 0, 2, 0)},
		}},
		{"60 a minute, burst 120: a token a second", 60, 120, []step{
			{0, 1, true, at(120, 119, 1, 0)},
			{0, 119, true, at(120, 0, 120, 0)},
			{0, 1, false, at(120, 0, 120, 1)},
			{999, 1, false, at(120, 0, 120, 1)},
			{1000, 1, true, at(120, 0, 120, 0)},
			{31_000, 30, true, at(120, 0, 120, 0)},
			{31_000, 60, false, at(120, 0, 120, 60)},
			{90_999, 60, false, at(120, 59, 61, 1)},
			{91_000, 60, true, at(120, 0, 120, 0)},
			{210_999, 0, true, at(120, 119, 1, 0)}, // a look takes nothing
			{211_000, 0, true, at(120, 120, 0, 0)}, // full again after two minutes
			{211_000, 121, false, at(120, 120, 0, 0)},
			{271_000, 120, true, at(120, 0, 120, 0)}, // and it never holds more
		}},
		{"300 a minute, burst 600: a token in 200 ms", 300, 600, []step{
			{0, 600, true, at(600, 0, 120, 0)},
			{0, 1, false, at(600, 0, 120, 1)},
			{199, 1, false, at(600, 0, 120, 1)},
			{200, 1, true, at(600, 0, 120, 0)},
			{1_200, 5, true, at(600, 0, 120, 0)},
			{61_200, 299, true, at(600, 1, 120, 0)}, // 599 owed are 119.8 s
			{61_200, 11, false, at(600, 1, 120, 2)},
			{63_199, 11, false, at(600, 10, 118, 1)},
			{63_200, 11, true, at(600, 0, 120, 0)},
			{63_200, 600, false, at(600, 0, 120, 120)},
			{183_200, 600, true, at(600, 0, 120, 0)},
		}},
		{"1,200 a minute, burst 2,400: a token in 50 ms", 1200, 2400, []step{
			{0, 2400, true, at(2400, 0, 120, 0)},
			{49, 1, false, at(2400, 0, 120, 1)},
			{50, 1, true, at(2400, 0, 120, 0)},
			{1_050, 21, false, at(2400, 20, 119, 1)},
			{1_050, 20, true, at(2400, 0, 120, 0)},
			{121_049, 1, true, at(2400, 2398, 1, 0)}, // 1.02 owed
			{121_050, 2, true, at(2400, 2397, 1, 0)}, // 3 owed: 0.15 s
		}},
		{"the clock was set back an hour: it refills from there", 60, 2, []step{
			{3_600_000, 2, true, at(2, 0, 2, 0)},
			{0, 1, false, at(2, 0, 2, 1)},
			{1000, 1, true, at(2, 0, 2, 0)},
		}},
		{"a billion at one a minute is a quota", 1, 1_000_000_000, []step{
			{0, 999_999_999, true, at(1_000_000_000, 1, 59_999_999_940, 0)},
			{0, 2, false, at(1_000_000_000, 1, 59_999_999_940, 60)},
			{60_000, 2, true, at(1_000_000_000, 0, 60_000_000_000, 0)},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b Bucket
			for i, s := range c.steps {
				if got, ok := takeNow(&b, start+s.after, c.perMinute, c.burst, s.cost); got != s.want || ok != s.ok {
					t.Fatalf("step %d: %+v %v, want %+v %v", i, got, ok, s.want, s.ok)
				}
			}
		})
	}
}

// A changed limit keeps the tokens that were taken.
func TestLimitChanges(t *testing.T) {
	const now = events.Time(1_790_000_000_000)
	var b Bucket
	takeNow(&b, now, 60, 10, 8)
	if l, ok := takeNow(&b, now, 6000, 100, 90); !ok || l.Remaining != 2 {
		t.Fatalf("raised: %+v %v", l, ok)
	}
	if l, ok := takeNow(&b, now, 60, 5, 1); ok || l.Remaining != 0 || l.RetryAfter != 1 {
		t.Fatalf("lowered below what is owed: empty, and no worse than empty: %+v %v", l, ok)
	}
}

func TestLimitUnderContention(t *testing.T) {
	const now = events.Time(1_790_000_000_000)
	var b Bucket
	var allowed [8]int
	var wg sync.WaitGroup
	for g := range allowed {
		wg.Go(func() {
			for range 2000 {
				if _, ok := takeNow(&b, now, 1, 5000, 1); ok {
					allowed[g]++
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range allowed {
		sum += n
	}
	if sum != 5000 {
		t.Fatalf("%d allowed of a burst of 5000", sum)
	}
}

// In any minute from a full bucket on, a plan admits its burst and its rate,
// whoever takes as soon as a token is there.
func TestLimitAdmitsBurstAndRate(t *testing.T) {
	const start = events.Time(1_790_000_000_000)
	for _, plan := range [][2]int64{{60, 120}, {300, 600}, {1200, 2400}, {7, 2}, {59_999, 3}} {
		var b Bucket
		admitted := int64(0)
		for ms := range events.Time(60_001) {
			for {
				if _, ok := takeNow(&b, start+ms, plan[0], plan[1], 1); !ok {
					break
				}
				admitted++
			}
		}
		if admitted != plan[0]+plan[1] {
			t.Errorf("%d a minute, burst %d: %d admitted", plan[0], plan[1], admitted)
		}
	}
}

// pair are the meters of one request, for a key and its tenant.
func pair(key, tenant *Bucket, k, t keyspace.Limit) *meters {
	return &meters{key: meter{key, key.At.Load(), k.PerMinute, k.Burst}, tenant: meter{tenant, tenant.At.Load(), t.PerMinute, t.Burst}}
}

// Two keys of one tenant, each with its limit beside the tenant's, that change
// now and then. A request takes from both or from none; the answer is that of
// the bucket that holds back longest, then of the one with the fewest tokens.
func TestBothLimitsEqualTheirTwins(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.OneOf(rapid.Int64Range(1, 30), rapid.Int64Range(1, keyspace.MaxPerMinute))
		limit := rapid.Custom(func(t *rapid.T) keyspace.Limit {
			return keyspace.Limit{PerMinute: number.Draw(t, "per minute"), Burst: number.Draw(t, "burst")}
		})
		step := rapid.OneOf(rapid.Int64Range(0, 3), rapid.Int64Range(0, 120_000), rapid.Int64Range(0, 1<<40))
		cost := rapid.OneOf(rapid.Int64Range(0, 5), rapid.Int64Range(1, 1<<32-1))
		now := int64(1_790_000_000_000)
		var buckets [3]Bucket // the tenant's is the last
		var twins [3]twin
		var limits [3]keyspace.Limit
		for i := range limits {
			limits[i] = limit.Draw(t, "limit")
			twins[i].advance(now, limits[i].PerMinute, limits[i].Burst)
		}
		for range rapid.IntRange(1, 60).Draw(t, "requests") {
			if i := rapid.IntRange(0, 30).Draw(t, "change"); i < 3 {
				// By the old numbers up to now. What was taken stays taken: as many are missing as before.
				twins[i].advance(now, limits[i].PerMinute, limits[i].Burst)
				takeNow(&buckets[i], events.Time(now), limits[i].PerMinute, limits[i].Burst, 0)
				owed := new(big.Rat).Sub(big.NewRat(limits[i].Burst, 1), twins[i].tokens)
				limits[i] = limit.Draw(t, "new limit")
				twins[i].tokens.Sub(big.NewRat(limits[i].Burst, 1), owed)
				if twins[i].tokens.Sign() < 0 {
					twins[i].tokens.SetInt64(0)
				}
			}
			now += step.Draw(t, "step")
			c := cost.Draw(t, "cost")
			i := rapid.IntRange(0, 1).Draw(t, "key")
			got, ok := pair(&buckets[i], &buckets[2], limits[i], limits[2]).take(events.Time(now), c)

			key, tenant := &twins[i], &twins[2]
			key.advance(now, limits[i].PerMinute, limits[i].Burst)
			tenant.advance(now, limits[2].PerMinute, limits[2].Burst)
			keyHas, tenantHas := key.has(c), tenant.has(c)
			wantOK := keyHas && tenantHas
			if wantOK {
				key.spend(c)
				tenant.spend(c)
			}
			want := key.tell(limits[i].PerMinute, limits[i].Burst, c, !keyHas)
			want.Scope = ScopeKey
			other := tenant.tell(limits[2].PerMinute, limits[2].Burst, c, !tenantHas)
			other.Scope = ScopeTenant
			wait := func(l Limit, has bool) int64 {
				switch {
				case has:
					return -1
				case l.RetryAfter == 0:
					return 1 << 62
				}
				return l.RetryAfter
			}
			if a, b := wait(want, keyHas), wait(other, tenantHas); b > a || a == b && other.Remaining < want.Remaining {
				want = other
			}
			if got != want || ok != wantOK {
				t.Fatalf("%+v, cost %d: %+v %v, want %+v %v", limits, c, got, ok, want, wantOK)
			}
		}
	})
}

// However many take at once, neither a key's limit nor the tenant's is exceeded,
// and none of a bucket's tokens is lost to a request that the other refused.
func TestBothLimitsUnderContention(t *testing.T) {
	const now = events.Time(1_790_000_000_000)
	for _, c := range []struct {
		name        string
		key, tenant int64 // burst
	}{{"the tenant's is the tighter", 900, 5000}, {"the keys' are", 500, 5000}, {"both", 625, 5000}} {
		t.Run(c.name, func(t *testing.T) {
			const keys = 8
			var buckets [keys]Bucket
			var tenant Bucket
			var allowed [keys]atomic.Int64
			var wg sync.WaitGroup
			k, whole := keyspace.Limit{PerMinute: 1, Burst: c.key}, keyspace.Limit{PerMinute: 1, Burst: c.tenant}
			for g := range 2 * keys { // two takers a key
				wg.Go(func() {
					for range 600 {
						if _, ok := pair(&buckets[g%keys], &tenant, k, whole).take(now, 1); ok {
							allowed[g%keys].Add(1)
						}
						pair(&buckets[g%keys], &tenant, k, whole).take(now, 0)
					}
				})
			}
			wg.Wait()
			sum := int64(0)
			for i := range allowed {
				n := allowed[i].Load()
				sum += n
				if l, _ := takeNow(&buckets[i], now, 1, c.key, 0); l.Remaining != c.key-n {
					t.Errorf("key %d: %d allowed, %d of %d left", i, n, l.Remaining, c.key)
				}
			}
			if want := min(keys*c.key, c.tenant); sum != want {
				t.Errorf("%d allowed, want %d", sum, want)
			}
			if l, _ := takeNow(&tenant, now, 1, c.tenant, 0); l.Remaining != c.tenant-sum {
				t.Errorf("%d allowed, %d of %d left to the tenant", sum, l.Remaining, c.tenant)
			}
		})
	}
}
