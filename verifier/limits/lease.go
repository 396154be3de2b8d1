package limits

import (
	"math"
	"sync"
	"time"
)

// lease is what the node holds of one bucket.
type lease struct {
	id ID

	mu      sync.Mutex // guards the rest
	numbers Numbers
	tokens  int64         // that may be spent until ends
	ends    time.Duration // of the lease
	of      uint64        // the number of the ask by whose answer it is held
	owed    int64         // parts that the whole bucket owes, as far as is known, at at
	at      time.Duration
	spent   int64         // since the last ask
	asked   int64         // tokens that requests asked for since the last ask
	rate    float64       // of that, a second, smoothed
	used    time.Duration // when a request asked last
	sent    time.Duration // when the node asked last
	waiting int64         // tokens that requests wait for
	need    int64         // the fewest that are of use to one that waits, or was refused; 0 = there is none
	refuse  time.Duration // until then a request is refused without another ask
	again   time.Duration // the allocator said that an ask before then is of no use
	spare   int64         // so many may lie idle here
	told    chan struct{} // closed when it is known what there is for those that wait; nil = nobody waits
	queued  bool          // Client.urgent has it
	active  bool          // Client.active has it
	gone    bool          // it was forgotten
}

// advance brings what is known of the whole bucket to now.
func (l *lease) advance(now time.Duration) {
	if elapsed := millis(now) - millis(l.at); elapsed > 0 {
		l.owed = l.numbers.refill(l.owed, elapsed)
		l.at = now
	}
}

func (l *lease) spend(cost int64) {
	l.spent += cost
	l.owed = min(l.owed+cost*perToken, l.numbers.full())
}

// standing says where the whole bucket stands.
func (l *lease) standing(cost int64, o Outcome) Standing {
	n := l.numbers
	s := Standing{Numbers: n, Remaining: (n.full() - l.owed) / perToken, Reset: n.seconds(l.owed)}
	if o != Allowed && l.tokens < cost {
		s.Remaining = min(s.Remaining, cost-1)
		if cost <= n.Burst {
			s.RetryAfter = max(n.seconds(l.owed+cost*perToken-n.full()), 1)
		}
	}
	return s
}

// due reports whether the lease is worth an ask now. l.mu is held.
func (l *lease) due(now time.Duration) bool {
	since := now - l.sent
	switch want := l.want(now); {
	case l.waiting > 0:
		return now >= l.again
	case now < l.again:
		return l.spent > 0 && since >= l.report()
	case l.need > 0:
		return true
	case want > 0 && l.tokens <= want/2:
		return since >= spacing
	case l.tokens > 0 && l.ends-now < Life/2, l.tokens > want, l.spent > 0:
		return since >= l.report()
	}
	return false
}

// The pace of asks.
const (
	pace      = time.Millisecond       // between two asks: what is due meanwhile goes together
	spacing   = 2 * time.Millisecond   // between two asks about one bucket that nobody waits for
	reportMax = 100 * time.Millisecond // after which the allocator hears what was spent
	horizon   = 100 * time.Millisecond // for which a node holds tokens, at its present rate
	idle      = 250 * time.Millisecond // after which it gives them back
	forget    = 10 * time.Second       // after which it forgets where the bucket stood
)

// report is how long what was spent may stay unsaid: a small bucket refills only once it is
// said.
func (l *lease) report() time.Duration { return min(max(l.part(32), spacing), reportMax) }

// part is in what time such a part of a full bucket comes back, at most a minute.
func (l *lease) part(of int64) time.Duration {
	return time.Duration(min(l.numbers.regain(l.numbers.full()/of), 60_000)) * time.Millisecond
}

// want is how many tokens the node would hold: what it spends within the horizon, and of a
// small bucket less, since what lies here is missing elsewhere; or what may lie idle.
func (l *lease) want(now time.Duration) int64 {
	if now-l.used > idle {
		return 0
	}
	ahead := min(int64(l.rate*min(horizon, l.part(8)).Seconds()), l.numbers.Burst/8)
	return max(ahead, min(int64(math.Ceil(l.rate*Life.Seconds())), l.spare))
}

// ask says what the node holds at now. From here on it holds less only by what it spends,
// and that counts as spent since this ask.
func (l *lease) ask(now time.Duration) (q askBucket, active bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now >= l.ends {
		l.tokens = 0
	}
	if dt := min((now - l.sent).Seconds(), smooth); dt > 0 {
		l.rate += (float64(l.asked)/dt - l.rate) * -math.Expm1(-dt/smooth)
	}
	want := l.want(now)
	q = askBucket{ID: l.id, Of: l.of, Want: min(max(want, l.waiting), l.numbers.Burst), Need: l.need, Demand: int64(min(l.rate, maxNumber))}
	if keep := max(q.Want, l.need); l.tokens > keep {
		q.Back = l.tokens - keep
		l.tokens = keep
	}
	q.Held = l.tokens
	l.sent, l.spent, l.asked, l.waiting, l.need, l.queued = now, 0, 0, 0, 0, false
	active, l.active = l.active, true
	return q, active
}

// smooth is how many seconds of the past the rate of a lease is an average of.
const smooth = 0.2

// refuseFor is how long an answer that there are no tokens holds, beyond the time that the
// allocator said: another ask is on its way meanwhile.
const refuseFor = 50 * time.Millisecond

func (l *lease) heard(a *answerBucket, q *askBucket, f *flight, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a.Numbers == (Numbers{}) { // the allocator does not know the key yet
		l.again, l.refuse = now+sweepEvery, 0
		if l.told != nil && now-l.used < 2*AnswerWait { // who waits goes on
			l.waiting, l.need = l.waiting+q.Want, least(l.need, q.Need)
			return
		}
		l.tell()
		return
	}
	l.tell()
	// What was spent since the ask was spent of what was held then.
	l.numbers = a.Numbers
	l.tokens = max(a.Tokens-l.spent, 0)
	l.ends = f.sent + Life
	if now >= l.ends {
		l.tokens = 0
	}
	l.of = f.number
	l.at = f.sent
	l.owed = min(a.Owed+l.spent*perToken, l.numbers.full())
	l.advance(now)
	l.spare = a.Spare
	l.again, l.refuse = 0, 0
	if wait := time.Duration(a.Wait) * time.Millisecond; wait > 0 {
		l.again = now + wait
		l.refuse = l.again + refuseFor
	}
}

// tell wakes the requests that wait for tokens of the lease. l.mu is held.
func (l *lease) tell() {
	if l.told != nil {
		close(l.told)
		l.told = nil
	}
}
