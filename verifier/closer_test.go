package verifier

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

const testLife = 10 * time.Second

// renew renews the lease of one run, as the node does each second. It reports
// whether it did: a process that is fenced renews nothing more.
func renew(t *testing.T, log *logtest.MemLog, w *process, id events.InstanceID) {
	t.Helper()
	_, err := log.Renew(t.Context(), events.NodeLease{Node: testNode, Instance: id, State: events.LeaseLive, LifeMS: testLife.Milliseconds(),
		Applied: events.Head{Log: log.ID()}, Epoch: w.epochNow(), Decisions: w.nextNumber() - 1})
	if err != nil && !errors.Is(err, events.ErrUnavailable) && !errors.Is(err, events.ErrUnknownOutcome) {
		t.Fatal(err)
	}
}

func leaseLog(t *testing.T) *logtest.MemLog {
	log := logtest.New(t)
	if err := log.Raise(t.Context(), events.Head{Log: log.ID()}); err != nil {
		t.Fatal(err)
	}
	return log
}

func testCloser(log *logtest.MemLog) *Closer {
	return NewCloser(CloserConfig{Sink: log, Leases: log, Log: log.ID(), Grace: time.Minute, Logger: slog.New(slog.DiscardHandler)})
}

// passes lets the closer look for d, every ten seconds.
func passes(t *testing.T, c *Closer, d time.Duration) {
	t.Helper()
	for range d / (10 * time.Second) {
		if err := c.pass(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
	}
}

// cutOff is a stream that one process can be kept from.
type cutOff struct {
	events.UseSink
	off atomic.Bool
}

func (s *cutOff) Publish(ctx context.Context, node events.NodeID, id string, expect events.Seq, data []byte) (events.Seq, error) {
	if s.off.Load() {
		return 0, events.ErrUnavailable
	}
	return s.UseSink.Publish(ctx, node, id, expect, data)
}

// A process is cut off with decisions in memory, and its name is never used
// again: what its lease said is lost by count, the rest is unknown, and when it
// returns it is fenced.
func TestCloserEndsTheEpochOfANodeThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := leaseLog(t)
		sink := &cutOff{UseSink: log}
		w := startTwin(t, log, func(c *LedgerConfig) { c.Sink = sink })
		synctest.Wait()
		id := events.NewInstanceID(time.Now())
		w.decide(8)
		time.Sleep(time.Second)
		sink.off.Store(true)
		w.decide(12)
		time.Sleep(time.Second)
		renew(t, log, w, id)
		w.decide(3) // after the last renewal
		c := testCloser(log)
		passes(t, c, 80*time.Second) // the first pass, the life, the grace
		if e := readLedger(t, log, testNode)[0]; len(e.gaps) != 0 {
			t.Fatalf("closed too early: %+v", e.gaps)
		}
		passes(t, c, 10*time.Minute)
		e := readLedger(t, log, testNode)[0]
		if len(e.gaps) != 2 || e.gaps[0].First != 9 || e.gaps[0].Count != 12 || e.gaps[1].First != 21 || e.gaps[1].Count != 0 || e.gaps[1].Note == "" {
			t.Fatalf("gaps %+v", e.gaps)
		}
		if n, err := log.LastUse(t.Context()); n != 4 || err != nil {
			t.Errorf("%d messages, want 4: %v", n, err)
		}
		sink.off.Store(false)
		time.Sleep(10 * time.Second)
		w.wantFenced(t)
		wantTwins(t, log, []*process{w})
	})
}

func TestCloserLeavesALiveNodeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := leaseLog(t)
		w := startTwin(t, log, nil)
		synctest.Wait()
		id := events.NewInstanceID(time.Now())
		c := testCloser(log)
		w.decide(8)
		for range 100 { // it decides nothing, and renews its lease
			renew(t, log, w, id)
			passes(t, c, 10*time.Second)
		}
		w.decide(3)
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		passes(t, c, 10*time.Minute) // and a closed epoch needs no gap
		if e := readLedger(t, log, testNode)[0]; !e.closed || len(e.gaps) != 0 {
			t.Errorf("%+v", e)
		}
	})
}

// A node that is cut off for ten minutes lives: what it decided is recorded when it
// is back, and nobody fences it.
func TestCloserWaitsForANodeThatIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := leaseLog(t)
		sink := &cutOff{UseSink: log}
		w := startTwin(t, log, func(c *LedgerConfig) { c.Sink = sink })
		synctest.Wait()
		id := events.NewInstanceID(time.Now())
		renew(t, log, w, id)
		sink.off.Store(true)
		w.decide(12)
		c := NewCloser(CloserConfig{Sink: log, Leases: log, Log: log.ID(), Logger: slog.New(slog.DiscardHandler)})
		passes(t, c, 10*time.Minute)
		sink.off.Store(false)
		renew(t, log, w, id)
		time.Sleep(10 * time.Second)
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		if e := readLedger(t, log, testNode)[0]; !e.closed || len(e.gaps) != 0 {
			t.Errorf("%+v", e)
		}
		wantTwins(t, log, []*process{w})
	})
}

// unrecorded is a log of leases that may store nothing.
type unrecorded struct {
	events.Leases
	on bool
}

func (u *unrecorded) Nodes(ctx context.Context, atLeast events.Seq) (events.NodeLeases, error) {
	n, err := u.Leases.Nodes(ctx, atLeast)
	n.Unrecorded = u.on
	return n, err
}

// While the log of leases stores nothing a node's record stands still, and the node
// lives on leases that leave none. What it decided is recorded once there is room
// again, and nobody fences it.
func TestCloserWaitsWhileLeasesAreUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := leaseLog(t)
		sink, list := &cutOff{UseSink: log}, &unrecorded{Leases: log}
		w := startTwin(t, log, func(c *LedgerConfig) { c.Sink = sink })
		synctest.Wait()
		id := events.NewInstanceID(time.Now())
		renew(t, log, w, id)
		c := NewCloser(CloserConfig{Sink: log, Leases: list, Log: log.ID(), Grace: time.Minute, Logger: slog.New(slog.DiscardHandler)})
		passes(t, c, 20*time.Second)
		sink.off.Store(true) // the disk is full
		list.on = true
		w.decide(12)
		passes(t, c, 40*time.Minute)
		list.on = false
		passes(t, c, time.Minute) // there is room again, and the node has not tried yet
		sink.off.Store(false)
		renew(t, log, w, id)
		time.Sleep(10 * time.Second)
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		if e := readLedger(t, log, testNode)[0]; !e.closed || len(e.gaps) != 0 {
			t.Errorf("%+v", e)
		}
		wantTwins(t, log, []*process{w})
	})
}

// slow is a list of leases that is long on its way to the servers.
type slow struct {
	events.Leases
	there time.Duration
}

func (s *slow) Nodes(ctx context.Context, atLeast events.Seq) (events.NodeLeases, error) {
	time.Sleep(s.there)
	return s.Leases.Nodes(ctx, atLeast)
}

// A record that was stored while a list was on its way has its whole life from then.
func TestCloserCountsFromWhenTheListCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := leaseLog(t)
		w := startTwin(t, log, nil)
		synctest.Wait()
		list := &slow{log, 8 * time.Second}
		c := NewCloser(CloserConfig{Sink: log, Leases: list, Log: log.ID(), Logger: slog.New(slog.DiscardHandler)})
		go func() {
			time.Sleep(7 * time.Second)
			renew(t, log, w, events.NewInstanceID(time.Now()))
		}()
		asked := time.Now()
		if err := c.pass(t.Context(), asked); err != nil {
			t.Fatal(err)
		}
		list.there = 0
		time.Sleep(8 * time.Second) // the lease is 9 s old
		if err := c.pass(t.Context(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if a := c.nodes[testNode]; a.tail.seq != 0 {
			t.Errorf("the node's end was looked at 9 s after it renewed a lease of 10 s: %+v", a.tail)
		}
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	})
}

// runs lists one run of a node, another one each time.
type runs struct{ log events.LogID }

func (r runs) Nodes(context.Context, events.Seq) (n events.NodeLeases, err error) {
	n.Leases = []events.StoredLease{{NodeLease: events.NodeLease{Node: testNode, Instance: events.NewInstanceID(time.Now()), State: events.LeaseLive,
		LifeMS: testLife.Milliseconds(), Applied: events.Head{Log: r.log}}, Seq: 1}}
	return n, nil
}

// A node whose every record is of another run, as a hostile one may write them, takes no
// more of the closer's memory than the list is long.
func TestCloserForgetsRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := leaseLog(t)
		c := NewCloser(CloserConfig{Sink: log, Leases: runs{log.ID()}, Log: log.ID(), Logger: slog.New(slog.DiscardHandler)})
		passes(t, c, 20*time.Minute)
		if n := len(c.nodes[testNode].records); n != 1 {
			t.Errorf("it remembers %d runs, and the list has one", n)
		}
	})
}

// The name is used again while the closer writes: either the closer's gap or the
// new process's stands, never both, and the new process is not fenced by a gap for
// the old one.
func TestCloserMeetsARestart(t *testing.T) {
	for _, at := range []logtest.Point{logtest.BeforeEffect, logtest.AfterEffect} {
		synctest.Test(t, func(t *testing.T) {
			log := leaseLog(t)
			first := startTwin(t, log, func(c *LedgerConfig) { c.Drain = time.Nanosecond })
			synctest.Wait()
			first.decide(8)
			time.Sleep(time.Second)
			renew(t, log, first, events.NewInstanceID(time.Now()))
			log.SetDown(true)
			first.decide(3)
			_ = first.stop()
			log.SetDown(false)
			c := testCloser(log)
			passes(t, c, 80*time.Second)
			paused := log.PauseNext(logtest.OpPublish, at)
			passed := make(chan error, 1)
			go func() { passed <- c.pass(t.Context(), time.Now()) }()
			<-paused.Entered()
			second := startTwin(t, log, nil)
			synctest.Wait()
			second.decide(3)
			paused.Resume()
			if err := <-passed; (at == logtest.BeforeEffect) != errors.Is(err, events.ErrFenced) {
				t.Errorf("the closer's pass: %v", err)
			}
			passes(t, c, time.Minute)
			renew(t, log, second, events.NewInstanceID(time.Now()))
			if err := second.Ready(); err != nil {
				t.Fatal(err)
			}
			if err := second.stop(); err != nil {
				t.Fatal(err)
			}
			wantTwins(t, log, []*process{first, second})
		})
	}
}

// Two closers, and processes that start, are suspended, stop and return at any
// moment: each number is accounted for once.
func TestClosersUnderFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 40 {
		synctest.Test(t, func(t *testing.T) {
			log := leaseLog(t)
			closers := []*Closer{testCloser(log), testCloser(log)}
			type instance struct {
				*process
				id events.InstanceID
			}
			var twins []*process
			var running []instance
			for range 120 {
				switch n := rnd.IntN(12); {
				case n == 0:
					log.FailNext([]logtest.Op{logtest.OpPublish, logtest.OpTail}[rnd.IntN(2)], logtest.Fault(rnd.IntN(4)))
				case n == 1 && len(running) < 3 || len(running) == 0:
					w := startTwin(t, log, func(c *LedgerConfig) { c.Drain = time.Duration(rnd.IntN(2)*10_000+1) * time.Millisecond })
					synctest.Wait()
					twins, running = append(twins, w), append(running, instance{w, events.NewInstanceID(time.Now())})
				case n == 2:
					i := rnd.IntN(len(running))
					log.SetDown(rnd.IntN(2) == 0)
					_ = running[i].stop()
					log.SetDown(false)
					running = append(running[:i:i], running[i+1:]...)
				case n <= 4:
					for _, w := range running {
						w.decide(rnd.IntN(12))
					}
				case n <= 6:
					renew(t, log, running[rnd.IntN(len(running))].process, running[rnd.IntN(len(running))].id)
				default:
					time.Sleep(time.Duration(rnd.IntN(60_000)) * time.Millisecond)
					synctest.Wait()
					_ = closers[rnd.IntN(2)].pass(t.Context(), time.Now())
				}
			}
			for range 60 {
				time.Sleep(10 * time.Second)
				synctest.Wait()
				for _, c := range closers {
					_ = c.pass(t.Context(), time.Now())
				}
			}
			for _, w := range running {
				w.decide(1)
			}
			time.Sleep(time.Minute)
			for _, w := range running {
				_ = w.stop()
			}
			wantTwins(t, log, twins)
		})
	}
}
