package verifier

import (
	"math"
	"runtime"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/projections"
)

// Limit is where the token bucket stands after a decision that allows less: the
// key's own or that of its whole tenant. The zero Limit means that there is none.
type Limit struct {
	Limit      int64  // tokens that a full bucket holds: the burst
	Remaining  int64  // whole tokens left
	Reset      int64  // seconds until the bucket is full again, rounded up
	RetryAfter int64  // seconds until the request that the limit refused would be allowed, rounded up; 0 = it refused none, or always will
	Scope      string // whose bucket it is: ScopeKey or ScopeTenant

	// Of a keyspace whose limits are exact: LimitsExact, or LimitsLocal where it was
	// decided by this node alone. The numbers are then those of all nodes together, as far
	// as the node knows. "" = the keyspace's limits are each node's own.
	Mode    keyspace.LimitsMode
	Away    bool            // the allocator does not answer, and nothing is allowed without it
	crowded bool            // Away: it was not waited for, because too many requests do
	told    <-chan struct{} // it is asked, and the decision waits for this
	until   time.Duration   // Node.passed at which the lease of the tokens taken is over; 0 = none was used
}

// Whose bucket a Limit speaks of.
const (
	ScopeKey    = "key"
	ScopeTenant = "tenant" // of all keys of the tenant together
)

// Never reports whether the limit refused a request that costs more than a full
// bucket holds: waiting does not help.
func (l Limit) Never(cost uint32) bool { return int64(cost) > l.Limit }

// meter is a bucket, how it was last seen, and the limit that holds for it.
type meter struct {
	bucket           *Bucket // nil = no limit
	seen             int64   // At
	perMinute, burst int64
}

// meters are the limits of one request.
type meters struct {
	key, tenant meter
	exact       exactMeters
	exactly     bool // exact has them
}

// find finds the buckets. They are looked at here, before the checks, so that
// their memory arrives while the checks run.
func (m *meters) find(b *Buckets, g *keyspace.Compiled, key *projections.Key) {
	if m.exactly = m.exact.find(g, key); m.exactly {
		return
	}
	var ok bool
	if m.key.perMinute, m.key.burst, ok = key.Limit(g); ok {
		m.key.bucket = b.keys.at(key.Slot)
		m.key.seen = m.key.bucket.At.Load()
	}
	if m.tenant.perMinute, m.tenant.burst, ok = key.Whole.Limit(g); ok {
		m.tenant.bucket = b.tenants.at(key.TenantSlot)
		m.tenant.seen = m.tenant.bucket.At.Load()
	}
}

// take takes cost tokens from both buckets if both hold that many, and says
// where the tighter one stands; with cost 0 it only says that.
func (m *meters) take(now events.Time, cost int64) (l Limit, ok bool) {
	switch k, t := &m.key, &m.tenant; {
	case m.exactly:
		return m.exact.take(cost)
	case k.bucket != nil && t.bucket != nil:
		return takeBoth(k, t, now, cost)
	case k.bucket != nil:
		l, ok = take(k.bucket, k.seen, now, k.perMinute, k.burst, cost)
		l.Scope = ScopeKey
	case t.bucket != nil:
		l, ok = take(t.bucket, t.seen, now, t.perMinute, t.burst, cost)
		l.Scope = ScopeTenant
	default:
		ok = true
	}
	return l, ok
}

// takeBoth locks both buckets while it decides, so that no token of the one is
// lost when the other refuses. It locks the key's before the tenant's: the fixed
// order prevents deadlock.
func takeBoth(k, t *meter, now events.Time, cost int64) (Limit, bool) {
	atK := lock(k.bucket, k.seen)
	atT := lock(t.bucket, t.seen)
	wasK := refill(k.bucket.Owed.Load(), atK, int64(now), k.perMinute, k.burst)
	wasT := refill(t.bucket.Owed.Load(), atT, int64(now), t.perMinute, t.burst)
	owedK, owedT := wasK, wasT
	limitK, okK := spend(&owedK, k.perMinute, k.burst, cost)
	limitT, okT := spend(&owedT, t.perMinute, t.burst, cost)
	if !okK || !okT {
		owedK, owedT = wasK, wasT
	}
	unlock(t.bucket, owedT, atT, now)
	unlock(k.bucket, owedK, atK, now)
	limitK.Scope, limitT.Scope = ScopeKey, ScopeTenant
	ok, waitK, waitT := okK && okT, limitK.wait(okK), limitT.wait(okT)
	if waitT > waitK || waitT == waitK && limitT.Remaining < limitK.Remaining {
		return limitT, ok
	}
	return limitK, ok
}

// wait returns for how long the limit holds the request back.
func (l *Limit) wait(ok bool) int64 {
	if !ok && l.RetryAfter == 0 {
		return math.MaxInt64
	}
	return l.RetryAfter
}

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
func take(b *Bucket, seen int64, now events.Time, perMinute, burst, cost int64) (l Limit, ok bool) {
	at := lock(b, seen)
	owed := refill(b.Owed.Load(), at, int64(now), perMinute, burst)
	l, ok = spend(&owed, perMinute, burst, cost)
	unlock(b, owed, at, now)
	return l, ok
}

// lock takes the bucket, for some nanoseconds: no time is negative, so a
// negative At says that somebody has it. A mutex would double its size.
func lock(b *Bucket, at int64) int64 {
	for at < 0 || !b.At.CompareAndSwap(at, -1) {
		runtime.Gosched()
		at = b.At.Load()
	}
	return at
}

func unlock(b *Bucket, owed, at int64, now events.Time) {
	if int64(now) > at || at-int64(now) > clockSlack {
		at = int64(now)
	}
	b.Owed.Store(owed)
	b.At.Store(at)
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
