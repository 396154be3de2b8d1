package limits

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// manyKeys is a directory of keys with one limit, and of chains of rotation.
type manyKeys struct {
	limit keyspace.Limit
	none  bool // there is no limit
	keys  uint64
	chain bool // each key was rotated from the one before
	looks int
}

func numbered(n uint64) (id events.KeyID) {
	binary.BigEndian.PutUint64(id[8:], n)
	return id
}

func (d *manyKeys) Key(id events.KeyID) (k events.Key, ok bool) {
	d.looks++
	n := binary.BigEndian.Uint64(id[8:])
	k = events.Key{ID: id, Keyspace: "shop"}
	if !d.none {
		k.Limit = &d.limit
	}
	if d.chain && n > 1 {
		k.RotatedFrom = numbered(n - 1)
	}
	if d.chain && n < d.keys {
		k.RotatedTo = numbered(n + 1)
	}
	return k, n >= 1 && n <= d.keys
}

func (d *manyKeys) Created(id events.KeyID) (events.Seq, bool) {
	_, ok := d.Key(id)
	return 1, ok
}
func (d *manyKeys) Rules(events.KeyspaceID) *keyspace.Compiled { return new(keyspace.Compiled) }
func (d *manyKeys) Tenant(events.KeyspaceID, events.TenantID) events.Tenant {
	return events.Tenant{}
}
func (d *manyKeys) Began(events.KeyspaceID, events.TenantID) (events.Seq, bool) { return 0, false }

// asker asks an allocator, as one run of a node.
type asker struct {
	t *testing.T
	*allocator
	node   events.NodeID
	run    events.InstanceID
	number uint64
}

func newAsker(t *testing.T, d Directory) *asker {
	a := newAllocator(d, 0, 0)
	a.floor = 1
	return &asker{t: t, allocator: a, node: "n1", run: events.InstanceID{1}}
}

func (a *asker) ask(now time.Duration, buckets ...askBucket) []answerBucket {
	a.t.Helper()
	a.number++
	r, ok, _ := a.serve(a.node, &ask{Instance: a.run, Number: a.number, Buckets: buckets}, now)
	if !ok {
		a.t.Fatal("no answer")
	}
	return r.Buckets
}

// spend takes tokens and says in the next ask that they are spent.
func (a *asker) spend(now time.Duration, id ID, n int64) (got int64) {
	got = a.ask(now, askBucket{ID: id, Want: n})[0].Tokens
	a.ask(now, askBucket{ID: id, Of: a.number})
	return got
}

// TestAHostileNodeIsBounded: whatever one node asks for, the allocator keeps so many of its
// holdings and runs, nothing of keys that do not exist, and forgets all of it.
func TestAHostileNodeIsBounded(t *testing.T) {
	d := &manyKeys{limit: keyspace.Limit{PerMinute: 60_000, Burst: 10}, keys: 2 * maxHoldings}
	a := newAsker(t, d)
	other := *a
	other.node = "n2"
	for i := range uint64(50) {
		a.ask(0, askBucket{ID: ID{Key: numbered(d.keys + 1 + i)}, Want: math.MaxInt32}, askBucket{ID: ID{Keyspace: "shop", Tenant: "none"}, Want: 1})
	}
	if len(a.buckets) != 0 {
		t.Errorf("%d buckets of keys that do not exist", len(a.buckets))
	}
	refused := 0
	for n := uint64(1); n <= d.keys; n += maxBuckets {
		var list []askBucket
		for i := range uint64(maxBuckets) {
			list = append(list, askBucket{ID: ID{Key: numbered(n + i)}, Want: maxNumber, Need: 1, Demand: maxNumber})
		}
		a.run[1] = byte(n / (d.keys / 8)) // and from several runs
		for _, b := range a.ask(0, list...) {
			if b.Tokens == 0 {
				refused++
			}
		}
	}
	if held := a.held("n1"); held != maxHoldings || refused != maxHoldings {
		t.Errorf("%d holdings of one node, %d refused", held, refused)
	}
	if got := other.ask(0, askBucket{ID: ID{Key: numbered(d.keys)}, Want: 1})[0].Tokens; got != 1 {
		t.Errorf("another node gets %d tokens", got)
	}
	for i := range 2 * maxSessions {
		a.serve("n1", &ask{Instance: events.InstanceID{2, byte(i)}, Number: 1}, 0)
	}
	if runs := len(a.sessions["n1"]); runs != maxSessions {
		t.Errorf("%d runs of one node", runs)
	}
	a.expire(time.Minute)
	a.sweep(2 * time.Minute)
	if len(a.buckets) != 0 || len(a.sessions) != 0 {
		t.Errorf("%d buckets and %d nodes are kept", len(a.buckets), len(a.sessions))
	}
}

// TestABucketWithoutALimitIsFreed, and its debt is kept until it is paid: a limit that is
// taken away and comes back is no fresh burst.
func TestABucketWithoutALimitIsFreed(t *testing.T) {
	d := &manyKeys{limit: keyspace.Limit{PerMinute: 60, Burst: 10}, keys: 1}
	a, id := newAsker(t, d), ID{Key: numbered(1)}
	if got := a.spend(0, id, 10); got != 10 {
		t.Fatal(got)
	}
	d.none = true
	a.ask(time.Second, askBucket{ID: id})
	a.expire(4 * time.Second)
	a.sweep(4 * time.Second)
	if held := a.held("n1"); held != 0 {
		t.Errorf("%d holdings after their end", held)
	}
	d.none = false
	if got := a.ask(5*time.Second, askBucket{ID: id, Want: 10})[0].Tokens; got != 5 {
		t.Errorf("%d tokens after 5 s at one a second", got)
	}
	d.none = true
	a.expire(time.Hour)
	a.sweep(2 * time.Hour)
	if len(a.buckets) != 0 {
		t.Error("the bucket of a key without a limit stays for ever")
	}
}

// TestAChangeOfRate: since nobody knows when the rate changed, the time since the last look
// counts at the lower one.
func TestAChangeOfRate(t *testing.T) {
	for _, c := range []struct{ before, after, want int64 }{{60, 600, 2}, {600, 60, 2}} {
		d := &manyKeys{limit: keyspace.Limit{PerMinute: c.before, Burst: 100}, keys: 1}
		a, id := newAsker(t, d), ID{Key: numbered(1)}
		a.spend(0, id, 100)
		d.limit.PerMinute = c.after
		if got := a.ask(2*time.Second, askBucket{ID: id, Want: 100})[0].Tokens; got != c.want {
			t.Errorf("%d to %d a minute: %d tokens after 2 s, want %d", c.before, c.after, got, c.want)
		}
	}
}

// TestLongChainsOfRotation: a key that was rotated for years is looked up once, and not at
// each ask.
func TestLongChainsOfRotation(t *testing.T) {
	d := &manyKeys{limit: keyspace.Limit{PerMinute: 60, Burst: 10}, keys: 2000, chain: true}
	a := newAsker(t, d)
	last, before := ID{Key: numbered(d.keys)}, ID{Key: numbered(d.keys - 1)}
	if got := a.ask(0, askBucket{ID: last, Want: 4})[0].Tokens; got != 4 {
		t.Fatal(got)
	}
	if got := a.ask(0, askBucket{ID: before, Want: 10, Need: 1})[0].Tokens; got < 1 || got > 6 {
		t.Errorf("the key before has %d tokens of the 6 that are left", got)
	}
	d.looks = 0
	for range 10 {
		a.ask(0, askBucket{ID: last, Of: a.number}, askBucket{ID: before, Of: a.number})
	}
	a.expire(0)
	a.sweep(0)
	if d.looks > 30 || len(a.buckets) != 1 {
		t.Errorf("%d look-ups, %d buckets", d.looks, len(a.buckets))
	}
}

// TestTheLargestAskFits, and says what a node can say at most.
func TestTheLargestAskFits(t *testing.T) {
	q := ask{Instance: events.InstanceID{1}, Number: math.MaxUint64}
	name := strings.Repeat("t", 128)
	for ; events.TenantID(name).Validate() != nil; name = name[1:] {
	}
	space := strings.Repeat("k", 128)
	for ; events.KeyspaceID(space).Validate() != nil; space = space[1:] {
	}
	for range maxBuckets {
		q.Buckets = append(q.Buckets, askBucket{ID: ID{Keyspace: events.KeyspaceID(space), Tenant: events.TenantID(name)},
			Of: math.MaxUint64, Held: maxNumber, Back: maxNumber, Want: maxNumber, Need: maxNumber, Demand: maxNumber})
	}
	data := encode(&q)
	if _, err := decodeAsk(data); err != nil {
		t.Errorf("%d bytes: %v", len(data), err)
	}
	a := answer{Instance: q.Instance, Number: q.Number}
	for range maxBuckets {
		a.Buckets = append(a.Buckets, answerBucket{Numbers: Numbers{keyspace.MaxPerMinute, keyspace.MaxPerMinute}, Tokens: maxNumber, Owed: maxNumber, Spare: maxNumber, Wait: maxNumber})
	}
	if _, err := decodeAnswer(encode(&a)); err != nil {
		t.Errorf("%d bytes: %v", len(encode(&a)), err)
	}
}

// TestAnAskIsAlwaysRead: whatever requests cost, and however many there are, the allocator
// can read what the node says.
func TestAnAskIsAlwaysRead(t *testing.T) {
	c := NewClient(events.InstanceID{1})
	l := &Limit{ID{Key: numbered(1)}, Numbers{1, keyspace.MaxPerMinute}}
	for range 200_000 {
		c.Take(l, nil, time.Millisecond, keyspace.MaxPerMinute, false)
		c.Take(l, nil, time.Millisecond, math.MaxUint32, false)
	}
	q := c.ask(time.Millisecond)
	if _, err := decodeAsk(encode(q)); err != nil || q.Buckets[0].Want > keyspace.MaxPerMinute {
		t.Errorf("%+v: %v", q, err)
	}
}

// TestInboxIsFair: a node that floods delays another one by one ask, and keeps little.
func TestInboxIsFair(t *testing.T) {
	b := newInbox()
	for i := range 10_000 {
		b.put("flood", fmt.Append(nil, i))
	}
	b.put("flood", make([]byte, maxMessage+1))
	b.put("calm", []byte("hello"))
	var got []string
	for node, ask, ok := b.next(); ok; node, ask, ok = b.next() {
		got = append(got, string(node)+" "+string(ask))
	}
	if want := "flood 9996, calm hello, flood 9997, flood 9998, flood 9999"; strings.Join(got, ", ") != want {
		t.Errorf("%s; want %s", strings.Join(got, ", "), want)
	}
	if len(b.asks) != 0 || len(b.turns) != 0 {
		t.Errorf("%d nodes are kept", len(b.asks))
	}
	synctest.Test(t, func(t *testing.T) {
		b, got := newInbox(), make(chan events.NodeID, 1)
		ctx, stop := context.WithCancel(t.Context())
		go b.run(ctx, func(node events.NodeID, _ []byte) { got <- node })
		synctest.Wait()
		b.put("calm", nil)
		if node := <-got; node != "calm" {
			t.Error(node)
		}
		stop()
		synctest.Wait()
	})
}

// TestWhoWaitsIsWokenForItsOwnBucket: an answer wakes the requests of its buckets alone, and
// that none came wakes all.
func TestWhoWaitsIsWokenForItsOwnBucket(t *testing.T) {
	c := NewClient(events.InstanceID{1})
	now := time.Second
	take := func(n uint64) <-chan struct{} {
		s, _, o := c.Take(&Limit{ID{Key: numbered(n)}, Numbers{60, 10}}, nil, now, 1, false)
		if o != Asking {
			t.Fatal(o)
		}
		return s.Told
	}
	woken := func(told <-chan struct{}) bool {
		select {
		case <-told:
			return true
		default:
			return false
		}
	}
	one := take(1)
	q := c.ask(now)
	two := take(2)
	if a := (answer{Instance: q.Instance, Number: q.Number, Buckets: []answerBucket{{Numbers: Numbers{60, 10}, Tokens: 1}}}); !c.heard(&a, now) {
		t.Fatal("not heard")
	}
	if !woken(one) || woken(two) {
		t.Error("an answer about one bucket wakes who waits for another, or not who waits for it")
	}
	now += pace
	c.ask(now)
	three := take(3) // not asked about yet
	if c.lost(); !woken(two) || !woken(three) {
		t.Error("no answer came, and who waits is not told")
	}
}

// TestKeysThatAreUsedOnce: of a million keys that are each used once, the node and the
// allocator keep those of the last seconds.
func TestKeysThatAreUsedOnce(t *testing.T) {
	keys := uint64(1_000_000)
	if testing.Short() {
		keys = 40_000
	}
	d := &manyKeys{limit: keyspace.Limit{PerMinute: 60, Burst: 10}, keys: keys}
	a := newAllocator(d, 0, 0)
	a.floor = 1
	c := NewClient(events.InstanceID{1})
	const perMS = 10
	var most uint64
	for n := uint64(0); n < keys; n += perMS {
		now := time.Duration(n/perMS+1) * time.Millisecond
		var told [perMS]<-chan struct{}
		take := func(i uint64) Outcome {
			s, _, o := c.Take(&Limit{ID{Key: numbered(n + i + 1)}, Numbers{60, 10}}, nil, now, 1, false)
			told[i] = s.Told
			return o
		}
		for i := range uint64(perMS) {
			if o := take(i); o != Asking {
				t.Fatal(o)
			}
		}
		q := c.ask(now)
		r, _, _ := a.serve("n1", q, now)
		if !c.heard(&r, now) {
			t.Fatal("not heard")
		}
		for i := range uint64(perMS) {
			if o := take(i); o != Allowed {
				t.Fatalf("key %d: %d", n+i+1, o)
			}
		}
		if now%time.Second == 0 {
			a.expire(now)
			a.sweep(now)
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
		}
	}
	leases := 0
	for i := range c.shards {
		leases += len(c.shards[i].leases)
	}
	t.Logf("%d buckets and %d holdings at the allocator, %d leases at the node, %d active; heap at most %d KiB", len(a.buckets), a.held("n1"), leases, len(c.active), most>>10)
	perSecond := perMS * 1000
	if len(a.buckets) > 3*perSecond || a.held("n1") > 3*perSecond || leases > 13*perSecond || len(c.active) > 3*perSecond {
		t.Error("too much is kept of keys that are not used any more")
	}
}

// TestWhatIsForgottenWhileAway: while no allocator answers a node forgets a bucket once it is
// full again, and not before.
func TestWhatIsForgottenWhileAway(t *testing.T) {
	c := NewClient(events.InstanceID{1})
	now := time.Second
	c.ask(now)
	c.away.Store(true)
	l := func(n uint64, perMinute int64) *Limit { return &Limit{ID{Key: numbered(n)}, Numbers{perMinute, 2}} }
	for range 2 {
		for n, perMinute := range map[uint64]int64{1: 60, 2: 1} {
			if _, _, o := c.Take(l(n, perMinute), nil, now, 1, true); o != Allowed {
				t.Fatal(o)
			}
		}
	}
	now += forget + time.Second
	c.forget(now)
	kept := 0
	for i := range c.shards {
		kept += len(c.shards[i].leases)
	}
	if _, _, o := c.Take(l(2, 1), nil, now, 1, true); kept != 1 || o != Refused {
		t.Errorf("%d buckets are kept, and a bucket that is empty allows: %v", kept, o == Allowed)
	}
}
