package verifier

import (
	"runtime"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/projections"
)

// Limit is where a key's token bucket stands after a decision. The zero Limit
// means that the key has none.
type Limit struct {
	Limit      int64 // tokens that a full bucket holds: the burst
	Remaining  int64 // whole tokens left
	Reset      int64 // seconds until the bucket is full again, rounded up
	RetryAfter int64 // seconds until the request refused would be allowed, rounded up; 0 = it was allowed, or never will be
}

// Never reports whether the limit refused a request that costs more than a full
// bucket holds: waiting does not help.
func (l Limit) Never(cost uint32) bool { return int64(cost) > l.Limit }

// A token is worth perToken parts, and a key with n tokens a minute regains n
// parts each millisecond. So every limit is exact in integers, with nothing to
// round, and a change of the limit keeps the tokens that were taken.
//
// Time has a grain of one millisecond, as everywhere in Keytrail: a decision can
// be made again from the record. A key therefore never gets more than one burst
// in a millisecond.
const perToken = 60_000

// clockSlack is how far the clock may go back between two decisions on one key,
// in milliseconds, and count as standing still. Past it the clock was set.
const clockSlack = 1000

// take takes cost tokens from b if it holds that many, and says where it
// stands. A bucket that was never used is full; it is the node's own, so n
// nodes behind one balancer admit n times the limit. seen is b.At as the caller
// last saw it.
func take(b *projections.Bucket, seen int64, now events.Time, perMinute, burst, cost int64) (l Limit, ok bool) {
	at := lock(b, seen)
	owed := refill(b.Owed.Load(), at, int64(now), perMinute, burst)
	l, ok = spend(&owed, perMinute, burst, cost)
	if int64(now) > at || at-int64(now) > clockSlack {
		at = int64(now)
	}
	b.Owed.Store(owed)
	b.At.Store(at) // unlocks
	return l, ok
}

// lock takes the bucket, for some nanoseconds: no time is negative, so a
// negative At says that somebody has it. A mutex would double its size.
func lock(b *projections.Bucket, at int64) int64 {
	for at < 0 || !b.At.CompareAndSwap(at, -1) {
		runtime.Gosched()
		at = b.At.Load()
	}
	return at
}

// refill returns what is owed at now, of what was owed at an earlier instant.
func refill(owed, at, now, perMinute, burst int64) int64 {
	owed = min(owed, burst*perToken)
	elapsed := now - at
	switch {
	case elapsed <= 0:
		return owed
	case elapsed > owed/perMinute:
		return 0
	}
	return owed - elapsed*perMinute
}

// spend adds cost tokens to what is owed if the bucket can bear it.
func spend(owed *int64, perMinute, burst, cost int64) (l Limit, ok bool) {
	full := burst * perToken
	after := *owed + cost*perToken
	if ok = after <= full; ok {
		*owed = after
	} else if cost <= burst {
		l.RetryAfter = seconds(after-full, perMinute)
	}
	l.Limit = burst
	l.Remaining = (full - *owed) / perToken
	l.Reset = seconds(*owed, perMinute)
	return l, ok
}

// seconds returns how long it takes to regain so many parts, rounded up.
func seconds(parts, perMinute int64) int64 {
	ms := (parts + perMinute - 1) / perMinute
	return (ms + 999) / 1000
}
