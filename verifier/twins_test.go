package verifier

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// process is one of several processes that have one node's name.
type process struct {
	*Ledger
	stop func() error

	mu   sync.Mutex
	kept map[uint64]events.Use
}

func startTwin(t testing.TB, log *logtest.MemLog, change func(*LedgerConfig)) *process {
	w := &process{Ledger: testLedger(log, change), kept: map[uint64]events.Use{}}
	w.stop = run(t, w.Ledger)
	return w
}

// decide appends n uses, unlike those of any other process, and returns how many
// were taken.
func (w *process) decide(n int) (taken int) {
	for range n {
		u := testUse(rand.IntN(1 << 40))
		id, err := w.Append(&u)
		if err == nil {
			w.mu.Lock()
			w.kept[id.N] = u
			w.mu.Unlock()
			taken++
		}
	}
	return taken
}

// wantFenced requires that w has stopped because of another process.
func (w *process) wantFenced(t *testing.T) {
	t.Helper()
	ready := w.Ready()
	if !errors.Is(ready, ErrLedgerClosed) || !errors.Is(ready, events.ErrFenced) || !strings.Contains(ready.Error(), "node "+string(testNode)+" since 2") {
		t.Errorf("a fenced process is ready: %v", ready)
	}
	if _, err := w.Append(new(events.Use)); !errors.Is(err, ErrLedgerClosed) {
		t.Errorf("a fenced process decides: %v", err)
	}
	if err := w.stop(); !errors.Is(err, events.ErrFenced) {
		t.Errorf("a fenced process ends with: %v", err)
	}
}

// wantTwins requires that the record accounts for each number of each process once:
// as it was decided, or behind the first number of a gap of unknown length.
func wantTwins(t *testing.T, src events.UseSource, twins []*process) {
	t.Helper()
	got := map[int64]*epochRecord{}
	for _, e := range readLedger(t, src, testNode) {
		got[e.epoch] = e
	}
	for i, w := range twins {
		if len(w.kept) == 0 {
			continue
		}
		e := got[w.epoch]
		if e == nil {
			t.Fatalf("process %d decided and has no epoch on the record", i)
		}
		for n, u := range e.uses {
			if w.kept[n] != u {
				t.Fatalf("process %d: use %d is %+v on the record, was %+v", i, n, u, w.kept[n])
			}
		}
		lost := func(n uint64) bool {
			return slices.ContainsFunc(e.gaps, func(g events.UseBatch) bool { return g.First <= n && (g.Count == 0 || n < g.First+g.Count) })
		}
		for n := range w.kept {
			if _, ok := e.uses[n]; ok == lost(n) {
				t.Fatalf("process %d: use %d is on the record or in a gap, not both: %+v", i, n, e.gaps)
			}
		}
		if w.durable > e.end {
			t.Fatalf("process %d: uses up to %d were said to be durable, the record ends at %d", i, w.durable, e.end)
		}
	}
}

// A second process takes the name while the first one's append is on its way, on
// either side of its effect.
func TestTwinFencesTheFirst(t *testing.T) {
	for name, c := range map[string]struct {
		at     logtest.Point
		stored uint64
	}{"before the append": {logtest.BeforeEffect, 8}, "after the append": {logtest.AfterEffect, 16}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := logtest.New(t)
				first := startTwin(t, log, nil)
				synctest.Wait()
				first.decide(8)
				time.Sleep(time.Second)
				synctest.Wait()
				paused := log.PauseNext(logtest.OpPublish, c.at)
				first.decide(12)
				<-paused.Entered()
				second := startTwin(t, log, nil)
				synctest.Wait()
				if err := second.Ready(); err != nil {
					t.Fatal(err)
				}
				second.decide(8)
				synctest.Wait()
				paused.Resume()
				time.Sleep(time.Second)
				first.wantFenced(t)
				second.decide(3)
				if err := second.stop(); err != nil {
					t.Fatal(err)
				}
				wantTwins(t, log, []*process{first, second})
				all := readLedger(t, log, testNode)
				if len(all) != 2 || all[0].end != c.stored || len(all[0].gaps) != 1 || all[0].gaps[0].First != c.stored+1 || !all[1].closed || all[1].end != 11 {
					t.Errorf("%+v %+v", all[0], all[1])
				}
			})
		})
	}
}

// At each step of a start the first process stores a batch, or does not: the
// second one's gap begins after what is stored, and nobody writes after it.
func TestTwinStartsBetween(t *testing.T) {
	for _, op := range []logtest.Op{logtest.OpTail, logtest.OpPublish} {
		for step := range 2 { // the gap and the open record
			for _, at := range []logtest.Point{logtest.BeforeEffect, logtest.AfterEffect} {
				for _, appends := range []bool{false, true} {
					if op == logtest.OpTail && step > 0 {
						continue
					}
					t.Run(fmt.Sprint("op ", op, " step ", step, " point ", at, " appends ", appends), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							log := logtest.New(t)
							first := startTwin(t, log, nil)
							synctest.Wait()
							first.decide(8)
							time.Sleep(time.Second)
							synctest.Wait()
							var paused *logtest.Pause
							for range step + 1 {
								if paused != nil {
									paused.Resume()
								}
								paused = log.PauseNext(op, at)
							}
							second := startTwin(t, log, nil)
							<-paused.Entered()
							if appends {
								first.decide(8)
								time.Sleep(time.Second)
								synctest.Wait()
							}
							paused.Resume()
							time.Sleep(time.Second)
							synctest.Wait()
							if err := second.Ready(); err != nil {
								t.Fatal(err)
							}
							second.decide(8)
							first.decide(8)
							time.Sleep(time.Second)
							first.wantFenced(t)
							if err := second.stop(); err != nil {
								t.Fatal(err)
							}
							wantTwins(t, log, []*process{first, second})
						})
					})
				}
			}
		}
	}
}

func TestTwinIsRefusedWhileTheFirstIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		first := startTwin(t, log, nil)
		synctest.Wait()
		first.decide(8)
		alive := func(context.Context, events.NodeID) (bool, string, error) { return true, "10.0.0.7:8080", nil }
		second := startTwin(t, log, func(c *LedgerConfig) { c.Alive = alive })
		synctest.Wait()
		if err := second.stop(); !errors.Is(err, events.ErrFenced) || !strings.Contains(err.Error(), "10.0.0.7:8080") {
			t.Errorf("a second process: %v", err)
		}
		first.decide(8)
		if err := first.stop(); err != nil {
			t.Errorf("the first process: %v", err)
		}
		// Nobody knows: the start goes on.
		third := startTwin(t, log, func(c *LedgerConfig) {
			c.Alive = func(context.Context, events.NodeID) (bool, string, error) { return false, "", errors.New("no answer") }
		})
		synctest.Wait()
		third.decide(3)
		if err := third.stop(); err != nil {
			t.Error(err)
		}
		wantTwins(t, log, []*process{first, third})
		if all := readLedger(t, log, testNode); len(all) != 2 || !all[0].closed || all[0].end != 16 || !all[1].closed {
			t.Errorf("%+v", all)
		}
	})
}

// Retention takes the node's messages while it decides nothing: it goes on.
func TestLedgerOutlivesRetention(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		w := startTwin(t, log, nil)
		synctest.Wait()
		w.decide(8)
		synctest.Wait()
		log.TrimUses(2)
		w.decide(8)
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		if n, err := log.LastUse(t.Context()); n != 4 || err != nil { // open, uses, uses, close
			t.Errorf("%d messages, %v", n, err)
		}
	})
}

// What is no batch of this node stops no start.
func TestLedgerStartsAfterJunk(t *testing.T) {
	batch := func(change func(*events.UseBatch)) []byte {
		b := events.UseBatch{Log: events.LogID{9}, Node: testNode, Epoch: 1 << 60, Kind: events.BatchOpen}
		change(&b)
		data, err := events.EncodeUses(&b)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, junk := range map[string]func(events.LogID) []byte{
		"bytes":        func(events.LogID) []byte { return []byte("junk") },
		"another log":  func(events.LogID) []byte { return batch(func(*events.UseBatch) {}) },
		"another node": func(id events.LogID) []byte { return batch(func(b *events.UseBatch) { b.Log, b.Node = id, "n9" }) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log := logtest.New(t)
				if _, err := log.Publish(t.Context(), testNode, "x", 0, junk(log.ID())); err != nil {
					t.Fatal(err)
				}
				w := startTwin(t, log, func(c *LedgerConfig) { c.Now = func() time.Time { return time.UnixMicro(5) } })
				synctest.Wait()
				w.decide(3)
				if err := w.stop(); err != nil {
					t.Fatal(err)
				}
				if n, err := log.LastUse(t.Context()); n != 4 || err != nil { // junk, open, uses, close
					t.Errorf("%d messages, %v", n, err)
				}
				if w.epoch < 9e14 {
					t.Errorf("epoch %d lies before the messages that are stored", w.epoch)
				}
			})
		})
	}
}

var twinRounds = flag.Int("twin-rounds", 60, "how many rounds TestTwinsUnderFaults tries")

// Processes with one name start, decide, lose answers and stop at any moment, as
// they like.
func TestTwinsUnderFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	cell := logtest.NewCell(t, "ledger: processes with one name", seed)
	for range *twinRounds {
		synctest.Test(t, func(t *testing.T) {
			log := logtest.New(t)
			var twins, running []*process
			for range 60 {
				switch n := rnd.IntN(10); {
				case n == 0:
					log.FailNext(logtest.OpPublish, logtest.Fault(rnd.IntN(4)))
				case n == 1:
					log.SetDown(rnd.IntN(2) == 0)
				case n == 2:
					time.Sleep(time.Duration(rnd.IntN(20_000)) * time.Millisecond)
				case n == 3 && len(running) < 4 || len(running) == 0:
					w := startTwin(t, log, func(c *LedgerConfig) { c.Drain = time.Duration(rnd.IntN(2)*10_000+1) * time.Millisecond })
					twins, running = append(twins, w), append(running, w)
				case n == 4:
					i := rnd.IntN(len(running))
					w := running[i]
					running = append(running[:i:i], running[i+1:]...)
					_ = w.stop()
				default:
					var wg sync.WaitGroup
					for _, w := range running {
						n := rnd.IntN(12)
						wg.Go(func() { w.decide(n) })
					}
					wg.Wait()
				}
			}
			log.SetDown(false)
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			for _, w := range running {
				w.decide(1)
			}
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			ready := 0
			for _, w := range running {
				if w.Ready() == nil {
					ready++
				}
			}
			if ready > 1 {
				cell.Wrong("%d processes with one name answer", ready)
			}
			for _, w := range running {
				_ = w.stop()
			}
			last := startTwin(t, log, nil)
			time.Sleep(5 * time.Minute)
			if err := last.stop(); err != nil {
				t.Fatal(err)
			}
			wantTwins(t, log, twins)
			cell.Tried(1)
		})
	}
}

// On a real server, with two connections: while one process decides without a
// pause, the next one takes its name, again and again.
func TestTwinsOnJetStream(t *testing.T) {
	nodes, err := server.NodeConf(testNode, "pw")
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.Start(server.Config{Dir: t.TempDir(), MaxStore: 256 << 20, Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	admin, err := s.ConnectAdmin()
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	if _, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: 256 << 20}); err != nil {
		t.Fatal(err)
	}
	open := func(connect func() (*nats.Conn, error), o eventlog.Options) *eventlog.Log {
		nc, err := connect()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		log, err := eventlog.Open(t.Context(), nc, o)
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	edge := func() (*nats.Conn, error) { return s.ConnectNode(testNode, "pw") }
	logs := []*eventlog.Log{open(edge, eventlog.Options{Edge: true}), open(edge, eventlog.Options{Edge: true})}
	// A process that writes without a pause may win every race: the other is refused.
	start := func(i int) *process {
		log := logs[i%2]
		for {
			w := startTwin(t, nil, func(c *LedgerConfig) {
				c.Sink, c.Log, c.FlushEvery, c.Drain = log, log.ID(), 5*time.Millisecond, 2*time.Minute
			})
			waitFor(t, func() bool { ready := w.Ready(); return ready == nil || errors.Is(ready, events.ErrFenced) })
			if w.Ready() == nil {
				return w
			}
		}
	}
	var all []*process
	first := start(0)
	for i := range 20 {
		var deciding sync.WaitGroup
		deciding.Go(func() {
			for first.Ready() == nil {
				first.decide(5)
				time.Sleep(100 * time.Microsecond)
			}
		})
		second := start(i + 1)
		deciding.Wait()
		first.wantFenced(t)
		all, first = append(all, first), second
	}
	first.decide(5)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	wantTwins(t, open(s.Connect, eventlog.Options{}), append(all, first))
}
