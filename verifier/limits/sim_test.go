package limits

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// oneKey is a directory of one key.
type oneKey struct {
	id    events.KeyID
	limit keyspace.Limit
}

func (d *oneKey) Key(id events.KeyID) (events.Key, bool) {
	return events.Key{ID: id, Keyspace: "shop", Limit: &d.limit}, id == d.id
}
func (d *oneKey) Created(id events.KeyID) (events.Seq, bool) { return 1, id == d.id }
func (d *oneKey) Rules(events.KeyspaceID) *keyspace.Compiled { return new(keyspace.Compiled) }
func (d *oneKey) Tenant(events.KeyspaceID, events.TenantID) events.Tenant {
	return events.Tenant{}
}
func (d *oneKey) Began(events.KeyspaceID, events.TenantID) (events.Seq, bool) { return 0, false }

// mutant is a rule that is broken on purpose: the simulation must find each.
type mutant string

const (
	sound         mutant = ""
	refillsPast   mutant = "refill goes on while tokens are leased"
	shortLife     mutant = "the allocator counts a lease for half its life"
	hoarder       mutant = "a node asks for the whole burst"
	startsFull    mutant = "a successor starts with full buckets"
	startsAtOnce  mutant = "a successor does not wait"
	forgetsToTell mutant = "a node gives back what it goes on to hold"
	longLife      mutant = "a node counts a lease from its answer"
	creditsLate   mutant = "tokens come back after the end of their lease"
	resumesAtOnce mutant = "a resumed account refills while leases of the one before last"
	forgetsLeased mutant = "an account leaves out what is leased"
)

// deployment is some nodes, one key, and an allocator after the other, on a simulated
// clock: that of the allocators. The nodes' clocks run up to 0.1 % faster or slower.
type deployment struct {
	*rand.Rand
	mutant  mutant
	numbers Numbers
	dir     oneKey
	now     time.Duration
	nodes   []*simNode
	serving []*simAllocator
	mail    []letter
	trouble bool // messages are lost and late, nodes are paused, cut off and killed

	admitted []int64 // in each millisecond
	exact    []int64 // what one bucket would have admitted
	twin     bucket
	perMS    int64
}

type simAllocator struct {
	*allocator
	from, until time.Duration // when it answers
}

type simNode struct {
	*Client
	name            events.NodeID
	drift           float64
	started         time.Duration
	pausedTo, cutTo time.Duration
	waiting         []wait
}

type wait struct {
	told  <-chan struct{}
	until time.Duration
}

func (n *simNode) clock(now time.Duration) time.Duration {
	return time.Duration(float64(now-n.started) * n.drift)
}

// letter is a message under way.
type letter struct {
	at   time.Duration
	node *simNode
	to   *Client // nil = to the allocators
	body []byte
}

func newDeployment(seed uint64, nodes int, n Numbers, m mutant) *deployment {
	d := &deployment{Rand: rand.New(rand.NewPCG(seed, 8)), mutant: m, numbers: n, perMS: n.PerMinute}
	d.dir = oneKey{events.KeyID{15: 1}, keyspace.Limit{PerMinute: n.PerMinute, Burst: n.Burst}}
	for i := range nodes {
		d.nodes = append(d.nodes, d.start(events.NodeID(fmt.Sprint("node-", i))))
	}
	first := newAllocator(&d.dir, 0, 0) // nothing was ever leased before it
	first.floor = 1
	d.serve1(first, 0)
	return d
}

func (d *deployment) start(name events.NodeID) *simNode {
	id := events.InstanceID{0: 1}
	for i := range 8 {
		id[8+i] = byte(d.Uint32())
	}
	return &simNode{Client: NewClient(id), name: name, drift: 1 + (d.Float64()-0.5)*0.002, started: d.now}
}

// appoint makes a new allocator. The one before it may have begun a proof just now.
func (d *deployment) appoint() {
	for _, a := range d.serving {
		a.until = min(a.until, d.now+Authority)
	}
	wait, after := takeover, events.Seq(1)
	switch d.mutant {
	case startsAtOnce:
		wait = 0
	case startsFull:
		after = 0
	}
	a := newAllocator(&d.dir, d.now+wait, after)
	a.floor = 1
	d.serve1(a, d.now+wait)
}

// handOver stops the allocator in order, and resumes its account a while later.
func (d *deployment) handOver() {
	last := d.serving[len(d.serving)-1]
	if d.now < last.from {
		d.appoint()
		return
	}
	last.until = min(last.until, d.now)
	account := last.account(events.InstanceID{1}, d.now)
	data, err := json.Marshal(account)
	if err == nil {
		account, err = decodeHandover(data)
	}
	if err != nil {
		panic(err)
	}
	if d.mutant == forgetsLeased {
		for i := range account.Buckets {
			account.Buckets[i].Owed = max(account.Buckets[i].Owed-last.buckets[account.Buckets[i].ID].leased*perToken, 0)
		}
	}
	from := d.now + time.Duration(d.IntN(1000))*time.Millisecond
	a := resume(&d.dir, account, from)
	a.floor = 1
	if d.mutant == resumesAtOnce {
		for _, b := range a.buckets {
			b.at = millis(from)
		}
	}
	d.serve1(a, from)
}

func (d *deployment) serve1(a *allocator, from time.Duration) {
	if d.mutant == shortLife {
		a.life = Life / 2
	}
	d.serving = append(d.serving, &simAllocator{a, from, 1 << 62})
}

// delay is how long a message takes, and whether it is lost.
func (d *deployment) delay() (time.Duration, bool) {
	took := time.Duration(100+d.IntN(900)) * time.Microsecond
	if d.trouble {
		switch d.IntN(50) {
		case 0:
			return 0, true
		case 1:
			took += time.Duration(d.IntN(1500)) * time.Millisecond
		}
	}
	return took, false
}

func (d *deployment) send(n *simNode, to *Client, body []byte) {
	if d.now < n.cutTo {
		return
	}
	if took, lost := d.delay(); !lost {
		d.mail = append(d.mail, letter{d.now + took, n, to, body})
	}
}

// step lets a millisecond pass in which each node is asked for so many tokens.
func (d *deployment) step(t *testing.T, demand []int) {
	d.now += time.Millisecond
	if d.trouble {
		d.disturb()
	}
	due := d.mail
	d.mail = nil
	slices.SortStableFunc(due, func(a, b letter) int { return int(a.at - b.at) })
	for _, l := range due {
		switch {
		case l.at > d.now:
			d.mail = append(d.mail, l)
		case l.to != nil:
			if l.to == l.node.Client && d.now >= l.node.cutTo {
				if l.node.pausedTo > d.now { // it waits in the socket
					l.at = l.node.pausedTo
					d.mail = append(d.mail, l)
					continue
				}
				a, err := decodeAnswer(l.body)
				if err != nil {
					t.Fatal(err)
				}
				n := l.node
				if d.mutant == longLife && n.flight != nil {
					n.flight.sent = n.clock(d.now)
				}
				n.heard(&a, n.clock(d.now))
			}
		default:
			d.serve(t, l)
		}
	}
	total := int64(0)
	var admitted int64
	for i, n := range d.nodes {
		total += int64(demand[i])
		if d.now < n.pausedTo {
			continue
		}
		admitted += d.requests(n, demand[i])
		d.talk(n)
	}
	if d.now/time.Millisecond%100 == 0 {
		for _, a := range d.serving {
			if d.now >= a.from {
				a.expire(d.now)
				a.sweep(d.now)
			}
		}
	}
	d.admitted = append(d.admitted, admitted)
	d.twin.owed = d.numbers.refill(d.twin.owed, 1)
	could := min(total, (d.numbers.full()-d.twin.owed)/perToken)
	d.twin.owed += could * perToken
	d.exact = append(d.exact, could)
}

func (d *deployment) serve(t *testing.T, l letter) {
	q, err := decodeAsk(l.body)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range d.serving {
		if d.now < a.from || d.now >= a.until {
			continue
		}
		if d.mutant == refillsPast {
			for _, b := range a.buckets {
				leased := b.leased * perToken
				b.owed = d.numbers.refill(b.owed+leased, millis(d.now)-b.at) - leased
				b.at = millis(d.now)
			}
		}
		if d.mutant == creditsLate { // as if a message that is late were on time
			for _, b := range a.buckets {
				b.holders = slices.DeleteFunc(b.holders, func(h *holding) bool {
					if d.now <= h.ends {
						return false
					}
					b.leased -= h.tokens
					delete(h.holdings, h.id)
					return true
				})
			}
		}
		if r, ok, unproved := a.serve(l.node.name, &q, d.now); ok && !unproved {
			for i := range r.Buckets {
				r.Buckets[i].Owed = max(r.Buckets[i].Owed, 0) // of a mutant
			}
			d.send(l.node, l.node.Client, encode(&r))
		}
	}
}

// requests makes so many requests of a token at the node, and returns how many were
// admitted: of these, and of those that waited.
func (d *deployment) requests(n *simNode, demand int) (admitted int64) {
	now := n.clock(d.now)
	limit := &Limit{d.dir.id0(), d.numbers}
	take := func(until time.Duration) {
		switch s, _, o := n.Take(limit, nil, now, 1, false); o {
		case Allowed:
			admitted++
		case Asking:
			n.waiting = append(n.waiting, wait{s.Told, until})
		}
	}
	waiting := n.waiting
	n.waiting = nil
	for _, w := range waiting {
		select {
		case <-w.told:
			take(w.until)
		default:
			if d.now < w.until {
				n.waiting = append(n.waiting, w)
			}
		}
	}
	for range demand {
		take(d.now + 2*AnswerWait)
	}
	return admitted
}

func (d *oneKey) id0() ID { return ID{Key: d.id} }

// talk is what the node's loop does.
func (d *deployment) talk(n *simNode) {
	now := n.clock(d.now)
	if f := n.flight; f != nil && now-f.sent > AnswerWait {
		n.lost()
	}
	if q := n.ask(now); q != nil {
		if d.mutant == hoarder {
			for i := range q.Buckets {
				b := &q.Buckets[i]
				b.Want, b.Held, b.Back = d.numbers.Burst, b.Held+b.Back, 0
				n.flight.leases[i].tokens = b.Held
			}
		}
		if d.mutant == forgetsToTell {
			for i := range q.Buckets {
				b := &q.Buckets[i]
				b.Back += b.Held / 2
				b.Held -= b.Held / 2
			}
		}
		d.send(n, nil, encode(q))
	}
}

// disturb kills, pauses and cuts off.
func (d *deployment) disturb() {
	switch d.IntN(2000) {
	case 0:
		i := d.IntN(len(d.nodes))
		d.nodes[i] = d.start(d.nodes[i].name)
	case 1:
		d.nodes[d.IntN(len(d.nodes))].pausedTo = d.now + time.Duration(d.IntN(3000))*time.Millisecond
	case 2:
		d.nodes[d.IntN(len(d.nodes))].cutTo = d.now + time.Duration(d.IntN(3000))*time.Millisecond
	case 3:
		if d.IntN(4) == 0 {
			switch d.IntN(3) {
			case 0: // it goes on until its authority ends
				d.appoint()
			case 1: // it is killed
				d.serving[len(d.serving)-1].until = d.now
				d.appoint()
			case 2:
				d.handOver()
			}
		}
	}
}

// excess returns by how many tokens the worst window goes beyond burst + rate × t.
func (d *deployment) excess() float64 {
	worst, sum, least := int64(-1<<62), int64(0), int64(0)
	for _, a := range d.admitted {
		sum += a * perToken
		worst = max(worst, sum-least)
		sum -= d.perMS // what comes back until the next millisecond
		least = min(least, sum)
	}
	return float64(worst-d.numbers.full()) / perToken
}

// from returns the part of what one exact bucket would have admitted from a step on.
func (d *deployment) from(step int) float64 {
	var got, exact int64
	for i := step; i < len(d.admitted); i++ {
		got, exact = got+d.admitted[i], exact+d.exact[i]
	}
	return float64(got) / float64(max(exact, 1))
}

var sizes = []Numbers{{60_000, 400}, {60_000, 1000}, {6000, 10}, {6000, 100}, {600, 50}, {600_000, 2000}, {60, 20}}
