package eventlog

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/events/logtest"
)

func TestLeasesContract(t *testing.T) {
	logtest.TestLeases(t, func(t *testing.T) logtest.LeaseLog { return contractLog(t) })
}

// A verifier renews and releases as control does; it may neither raise the floor
// nor read the list.
func TestLeasesContractFromEdge(t *testing.T) {
	logtest.TestLeases(t, func(t *testing.T) logtest.LeaseLog {
		s := testServer(t, server.Config{})
		initLog(t, s)
		return edgeLeases{
			Log:  openLog(t, conn(t, edge(s)), Options{Edge: true}),
			ctrl: openLog(t, conn(t, s.Connect), Options{}),
		}
	})
}

type edgeLeases struct {
	*Log
	ctrl *Log
}

func (e edgeLeases) Raise(ctx context.Context, h events.Head) error { return e.ctrl.Raise(ctx, h) }
func (e edgeLeases) Appoint(ctx context.Context, was, next events.InstanceID) (events.Floor, error) {
	return e.ctrl.Appoint(ctx, was, next)
}
func (e edgeLeases) RaiseRelease(ctx context.Context, r events.Release) error {
	return e.ctrl.RaiseRelease(ctx, r)
}
func (e edgeLeases) Nodes(ctx context.Context, atLeast events.Seq) (events.NodeLeases, error) {
	return e.ctrl.Nodes(ctx, atLeast)
}

// What a verifier stores, headers and all, neither ends a list early, nor speaks
// for the floor or for another node.
func TestAHostileRecordHidesNothing(t *testing.T) {
	s := testServer(t, server.Config{})
	initLog(t, s)
	control := openLog(t, conn(t, s.Connect), Options{})
	edge := conn(t, edge(s))
	if err := control.Raise(t.Context(), events.Head{Log: control.ID(), Size: 5}); err != nil {
		t.Fatal(err)
	}
	floor, _ := control.Leases.known()
	good := logtest.Lease(control.ID(), "n1")
	forgedHead, _ := events.EncodeHead(&events.Head{Log: control.ID(), Size: 900})
	forgedLease, _ := events.EncodeLease(&good)
	for _, h := range []nats.Header{
		{"Status": {"204"}},
		{"Status": {"404"}, "Description": {"x"}},
		{"Nats-Stream": {leaseStream}, "Nats-Subject": {streams.LeaseFloor}, "Nats-Sequence": {"900"}, "Nats-Time-Stamp": {time.Now().Format(time.RFC3339Nano)}},
		{"Nats-Last-Sequence": {"0"}, "Nats-Sequence": {"x"}, "Nats-Num-Pending": {"0"}},
	} {
		for _, body := range [][]byte{forgedHead, forgedLease} {
			m := nats.NewMsg(fmt.Sprintf("%sn1.%s", streams.LeasePrefix, events.NewInstanceID(time.Now())))
			m.Header, m.Data = h, body
			if r, err := edge.RequestMsg(m, patient); err != nil || len(r.Data) == 0 {
				t.Fatalf("%v, %v", r, err)
			}
		}
	}
	g, err := openLog(t, edge, Options{Edge: true}).Renew(t.Context(), good)
	if err != nil || g.Floor != floor {
		t.Fatalf("%+v, %v", g, err)
	}
	n, err := control.Nodes(t.Context(), floor.Seq)
	if err != nil || n.Floor != floor || len(n.Leases) != 1 || n.Leases[0].Seq != g.Seq || len(n.Unreadable) == 0 || len(n.Unreadable) > 8 {
		t.Errorf("nodes %+v, %v: want floor %+v, one lease at %d and the records that cannot be read", n, err, floor, g.Seq)
	}
}

// A stream of leases that is lost under a living control and made anew starts with a
// lower floor. What control raised before is raised again when it is asked for.
func TestALostFloorIsRaisedAgain(t *testing.T) {
	s := testServer(t, server.Config{})
	initLog(t, s)
	control, other := openLog(t, conn(t, s.Connect), Options{}), openLog(t, conn(t, s.Connect), Options{})
	raise := func(l *Log, size events.Seq) {
		t.Helper()
		if err := l.Raise(t.Context(), events.Head{Log: l.ID(), Size: size}); err != nil {
			t.Fatal(err)
		}
	}
	for size := range events.Seq(10) {
		raise(control, size+1)
	}
	js, err := jetstream.New(conn(t, s.ConnectAdmin))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), leaseStream); err != nil {
		t.Fatal(err)
	}
	initLog(t, s)
	raise(other, 3)
	if _, err := control.Renew(t.Context(), logtest.Lease(control.ID(), "c1")); err != nil {
		t.Fatal(err)
	}
	raise(control, 8)
	if n, err := other.Nodes(t.Context(), 0); err != nil || n.Floor.Size < 8 {
		t.Errorf("event 8 is acknowledged, and the floor is %+v, %v", n.Floor, err)
	}
}

var leaseRounds = flag.Int("lease-rounds", 100, "how many rounds of raises against renewals TestCluster/leases runs")

// leases races raises against renewals while the stream's leader steps down. An
// acknowledged lease stands after no floor that is newer than the one it claims:
// the expectation on the floor's exact subject holds on a cluster too, also across
// a change of the leader.
func (c *cluster) leases(t *testing.T) {
	c.wipe(t)
	rounds := *leaseRounds
	if testing.Short() {
		rounds = 20
	}
	seed := rand.Uint64()
	t.Logf("seed %d, %d rounds", seed, rounds)
	cell := logtest.NewCell(t, "leases while the floor is raised and its leader steps down", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	type claim struct{ floor, at events.Seq }
	var mu sync.Mutex
	floors := map[events.Seq]events.Seq{} // place and size of every floor that was seen
	var claims []claim
	var failed int
	const each = 3
	var raisers, renewers [each]*Log
	var runs [each]events.NodeLease
	for i := range each {
		raisers[i] = openLog(t, c.as("ctrl", "c"), Options{})
		renewers[i] = openLog(t, c.as("n1", nodePassword("n1")), Options{Edge: true})
		runs[i] = logtest.Lease(renewers[i].ID(), "n1")
	}
	if err := raisers[0].Raise(t.Context(), events.Head{Log: raisers[0].ID()}); err != nil {
		t.Fatal(err)
	}
	if _, ok := raisers[0].alone(t.Context()); ok {
		t.Error("one of three servers passes for the only one")
	}
	admin := c.as("admin", "a")
	see := func(f events.Floor) {
		mu.Lock()
		defer mu.Unlock()
		if size, ok := floors[f.Seq]; ok && size != f.Size {
			cell.Wrong("floor %d is %d and %d", f.Seq, size, f.Size)
		}
		floors[f.Seq] = f.Size
	}
	size := events.Seq(0)
	for round := range rounds {
		var wg sync.WaitGroup
		step := round%10 == 5
		for i := range each {
			size++
			target, raiseAt, renewAt := size, random.IntN(3000), random.IntN(3000)
			wg.Go(func() {
				time.Sleep(time.Duration(raiseAt) * time.Microsecond)
				if err := raisers[i].Raise(t.Context(), events.Head{Log: raisers[i].ID(), Size: target}); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
				floor, _ := raisers[i].Leases.known()
				see(floor)
			})
			wg.Go(func() {
				time.Sleep(time.Duration(renewAt) * time.Microsecond)
				g, err := renewers[i].Renew(t.Context(), runs[i])
				if err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
				see(g.Floor)
				mu.Lock()
				defer mu.Unlock()
				claims = append(claims, claim{g.Floor.Seq, g.Seq})
			})
		}
		if step {
			wg.Go(func() {
				time.Sleep(time.Duration(random.IntN(2000)) * time.Microsecond)
				if _, err := admin.Request("$JS.API.STREAM.LEADER.STEPDOWN."+leaseStream, nil, 10*time.Second); err != nil {
					mu.Lock()
					failed++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		cell.Tried(1)
	}
	// A replica may stand before what another raised: the newest floor is asked for.
	n, err := raisers[0].Nodes(t.Context(), slices.Max(slices.Collect(maps.Keys(floors))))
	if err != nil || n.Floor.Size != size {
		t.Errorf("floor %+v, %v: want %d", n.Floor, err, size)
	}
	for _, cl := range claims {
		for at := range floors {
			if cl.floor < at && at < cl.at {
				cell.Wrong("the lease at %d claims floor %d, and floor %d stands between them", cl.at, cl.floor, at)
			}
			if (at < n.Floor.Seq) != (floors[at] < n.Floor.Size) {
				cell.Wrong("floor %d was lowered: %d", at, floors[at])
			}
		}
	}
	t.Logf("%d leases, %d floors, %d of %d step-downs not answered", len(claims), len(floors), failed, rounds/10)
}

// A record without a TTL counts as long as one with it, and no longer.
func TestARecordWithoutATTL(t *testing.T) {
	const stored events.Time = 1_767_693_600_000
	lease := func(life time.Duration) events.StoredLease {
		return events.StoredLease{NodeLease: events.NodeLease{Node: "n1", LifeMS: life.Milliseconds()}, Stored: stored}
	}
	for after, want := range map[time.Duration]struct{ leases, unreadable int }{
		0:                                      {2, 1},
		time.Minute + events.KeepLease:         {2, 1},
		time.Minute + events.KeepLease + 1e6:   {1, 1},
		events.MaxLeaseLife + events.KeepLease: {1, 1},
		events.MaxLeaseLife + events.KeepLease + 1e6: {0, 0},
	} {
		leases, unreadable := current([]events.StoredLease{lease(time.Minute), lease(events.MaxLeaseLife)}, []record{{"n1", stored}}, stored.Add(after))
		if len(leases) != want.leases || len(unreadable) != want.unreadable {
			t.Errorf("%s later: %d leases and %d records that cannot be read, want %+v", after, len(leases), len(unreadable), want)
		}
	}
}
