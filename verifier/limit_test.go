package verifier

import (
	"math/big"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// twin is a token bucket as a textbook has it, in exact fractions.
type twin struct {
	tokens *big.Rat
	at     int64
}

func (w *twin) take(now, perMinute, burst, cost int64) (Limit, bool) {
	full := big.NewRat(burst, 1)
	rate := big.NewRat(perMinute, 60_000) // tokens in a millisecond
	if w.tokens == nil {
		w.tokens = new(big.Rat).Set(full)
	} else {
		w.tokens.Add(w.tokens, new(big.Rat).Mul(rate, big.NewRat(now-w.at, 1)))
	}
	w.at = now
	if w.tokens.Cmp(full) > 0 {
		w.tokens.Set(full)
	}
	var l Limit
	price := big.NewRat(cost, 1)
	ok := w.tokens.Cmp(price) >= 0
	if ok {
		w.tokens.Sub(w.tokens, price)
	} else if cost <= burst {
		l.RetryAfter = ceilSeconds(new(big.Rat).Quo(new(big.Rat).Sub(price, w.tokens), rate))
	}
	l.Limit = burst
	l.Remaining = new(big.Int).Quo(w.tokens.Num(), w.tokens.Denom()).Int64()
	l.Reset = ceilSeconds(new(big.Rat).Quo(new(big.Rat).Sub(full, w.tokens), rate))
	return l, ok
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

func takeNow(b *projections.Bucket, now events.Time, perMinute, burst, cost int64) (Limit, bool) {
	return take(b, b.At.Load(), now, perMinute, burst, cost)
}

func TestLimitEqualsItsTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		small := rapid.Int64Range(1, 100)
		any := rapid.Int64Range(1, events.MaxPerMinute)
		number := rapid.OneOf(small, any, rapid.Just(int64(events.MaxPerMinute)))
		perMinute, burst := number.Draw(t, "per minute"), number.Draw(t, "burst")
		step := rapid.OneOf(rapid.Int64Range(0, 3), rapid.Int64Range(0, 120_000), rapid.Int64Range(0, 1<<40))
		cost := rapid.OneOf(rapid.Int64Range(1, 5), rapid.Int64Range(1, 1<<32-1))
		now := int64(1_790_000_000_000)
		var b projections.Bucket
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
	for _, c := range []struct {
		name             string
		perMinute, burst int64
		steps            []struct {
			after events.Time // since start
			cost  int64
			ok    bool
			want  Limit
		}
	}{
		{"60 a minute, burst 2", 60, 2, []struct {
			after events.Time
			cost  int64
			ok    bool
			want  Limit
		}{
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
		{"the clock was set back an hour: it refills from there", 60, 2, []struct {
			after events.Time
			cost  int64
			ok    bool
			want  Limit
		}{
			{3_600_000, 2, true, at(2, 0, 2, 0)},
			{0, 1, false, at(2, 0, 2, 1)},
			{1000, 1, true, at(2, 0, 2, 0)},
		}},
		{"a billion at one a minute is a quota", 1, 1_000_000_000, []struct {
			after events.Time
			cost  int64
			ok    bool
			want  Limit
		}{
			{0, 999_999_999, true, at(1_000_000_000, 1, 59_999_999_940, 0)},
			{0, 2, false, at(1_000_000_000, 1, 59_999_999_940, 60)},
			{60_000, 2, true, at(1_000_000_000, 0, 60_000_000_000, 0)},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b projections.Bucket
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
	var b projections.Bucket
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
	var b projections.Bucket
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
