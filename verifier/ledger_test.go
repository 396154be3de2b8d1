package verifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// epochRecord is what the use stream says about one epoch.
type epochRecord struct {
	epoch  int64
	uses   map[uint64]events.Use
	gaps   []events.UseBatch
	closed bool
	end    uint64 // last number accounted for
}

// readLedger reads the node's whole record and fails the test unless each epoch
// is open, then every number from 1 on exactly once, in order, then a close, or a
// gap of unknown length, or (last epoch only) nothing yet. It shares no code with
// the ledger.
func readLedger(t testing.TB, src events.UseSource, node events.NodeID) []*epochRecord {
	t.Helper()
	ctx := t.Context()
	last, err := src.LastUse(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var all []*epochRecord
	ids := map[string]bool{}
	ended := true
	for after := events.Seq(0); after < last; {
		ms, err := src.ReadUses(ctx, after, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms {
			after = m.Seq
			if m.Node != node {
				continue
			}
			b, err := events.DecodeUses(m.Data)
			if err != nil {
				t.Fatalf("message %d: %v", m.Seq, err)
			}
			if id := b.MessageID(); ids[id] {
				t.Fatalf("message %d: %s is stored twice", m.Seq, id)
			} else {
				ids[id] = true
			}
			if b.Kind == events.BatchOpen {
				if !ended {
					t.Fatalf("message %d: epoch %d opens while %d has no end", m.Seq, b.Epoch, all[len(all)-1].epoch)
				}
				if n := len(all); n > 0 && all[n-1].epoch >= b.Epoch {
					t.Fatalf("message %d: epoch %d does not follow %d", m.Seq, b.Epoch, all[n-1].epoch)
				}
				all, ended = append(all, &epochRecord{epoch: b.Epoch, uses: map[uint64]events.Use{}}), false
				continue
			}
			if ended {
				t.Fatalf("message %d: kind %d after the end of the epoch", m.Seq, b.Kind)
			}
			e := all[len(all)-1]
			if b.Epoch != e.epoch || b.First != e.end+1 {
				t.Fatalf("message %d: kind %d, epoch %d, first %d: want epoch %d, first %d", m.Seq, b.Kind, b.Epoch, b.First, e.epoch, e.end+1)
			}
			switch b.Kind {
			case events.BatchUses:
				for i, u := range b.Uses {
					e.uses[b.First+uint64(i)] = u
				}
				e.end += uint64(len(b.Uses))
			case events.BatchGap:
				e.gaps = append(e.gaps, b)
				e.end += b.Count
				ended = b.Count == 0
			case events.BatchClose:
				e.closed, ended = true, true
			}
		}
	}
	return all
}

const testNode events.NodeID = "node-1"

func testLedger(l *logtest.MemLog, change func(*LedgerConfig)) *Ledger {
	cfg := LedgerConfig{Sink: l, Node: testNode, Log: l.ID(), BatchUses: 8, MaxUses: 64, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	return NewLedger(cfg)
}

// run starts l and returns what stops it and gives Run's error.
func run(t testing.TB, l *Ledger) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-ended })
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

func testUse(i int) events.Use {
	return events.Use{Time: 1_790_000_000_000 + events.Time(i), Reason: events.ReasonKeyUnknown, Keyspace: "acme",
		Scope: fmt.Sprint("scope", i%3), Cost: 1, Seq: events.Seq(i)}
}

// mustAppend appends uses numbered from..to in their Seq and returns which were lost.
func mustAppend(t *testing.T, l *Ledger, n int) (kept map[uint64]events.Use, lost int) {
	t.Helper()
	kept = map[uint64]events.Use{}
	for i := range n {
		u := testUse(i + 1)
		id, err := l.Append(&u)
		switch {
		case err == nil:
			kept[id.N] = u
		case errors.Is(err, ErrLedgerFull) && id.N > 0:
			lost++
		default:
			t.Fatalf("append: %v %v", id, err)
		}
	}
	return kept, lost
}

func wantUses(t *testing.T, e *epochRecord, want map[uint64]events.Use) {
	t.Helper()
	if len(e.uses) != len(want) {
		t.Fatalf("epoch %d: %d uses on the record, want %d", e.epoch, len(e.uses), len(want))
	}
	for n, u := range want {
		if e.uses[n] != u {
			t.Fatalf("epoch %d, use %d: %+v, want %+v", e.epoch, n, e.uses[n], u)
		}
	}
}

func TestLedgerOrderly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		if _, err := l.Append(new(events.Use)); !errors.Is(err, ErrLedgerClosed) {
			t.Fatalf("append before Run: %v", err)
		}
		stop := run(t, l)
		synctest.Wait()
		if got := readLedger(t, log, testNode); len(got) != 1 || got[0].end != 0 {
			t.Fatal("the open record must be on the stream before the first decision")
		}
		want, lost := mustAppend(t, l, 20)
		synctest.Wait()
		if e := readLedger(t, log, testNode)[0]; e.end != 16 {
			t.Fatalf("two full batches go out at once: %d uses on the record", e.end)
		}
		time.Sleep(99 * time.Millisecond)
		synctest.Wait()
		if e := readLedger(t, log, testNode)[0]; e.end != 16 {
			t.Fatalf("the rest waits for company: %d uses on the record", e.end)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if e := readLedger(t, log, testNode)[0]; e.end != 20 || l.Buffered() != 0 {
			t.Fatalf("the rest goes out after 100 ms: %d uses on the record", e.end)
		}
		u := testUse(99)
		id, _ := l.Append(&u)
		want[id.N] = u
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(&u); !errors.Is(err, ErrLedgerClosed) {
			t.Fatalf("append after the stop: %v", err)
		}
		e := readLedger(t, log, testNode)[0]
		if !e.closed || lost > 0 || len(e.gaps) > 0 {
			t.Fatalf("%+v", e)
		}
		wantUses(t, e, want)
	})
}

func TestLedgerFullBufferIsAGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		stop := run(t, l)
		synctest.Wait()
		log.SetDown(true)
		want, lost := mustAppend(t, l, 100)
		if lost != 100-64 || l.Buffered() != 100 {
			t.Fatalf("%d lost, %d buffered: want 36 and 100", lost, l.Buffered())
		}
		time.Sleep(time.Minute)
		log.SetDown(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		more, lost := mustAppend(t, l, 3)
		if lost != 0 {
			t.Fatal("the buffer is empty again, nothing may be lost")
		}
		for n, u := range more {
			want[n] = u
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		e := readLedger(t, log, testNode)[0]
		if len(e.gaps) != 1 || e.gaps[0].First != 65 || e.gaps[0].Count != 36 || e.gaps[0].Note == "" || !e.closed || e.end != 103 {
			t.Fatalf("gaps %+v, closed %v, end %d", e.gaps, e.closed, e.end)
		}
		wantUses(t, e, want)
	})
}

// A full ledger takes uses again when more than half of it is free, so that a slow stream
// makes a few long gaps and not one beside every batch.
func TestLedgerMakesFewGaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		stop := run(t, l)
		synctest.Wait()
		var pauses []*logtest.Pause
		for range 6 {
			pauses = append(pauses, log.PauseNext(logtest.OpPublish, logtest.BeforeEffect))
		}
		mustAppend(t, l, 65)
		for i, p := range pauses { // 8 batches held, then 7 .. 3
			<-p.Entered()
			if _, lost := mustAppend(t, l, 1); (lost == 1) != (i < 5) {
				t.Fatalf("%d batches stored: %d lost", i, lost)
			}
			p.Resume()
			synctest.Wait()
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if e := readLedger(t, log, testNode)[0]; len(e.gaps) != 1 || e.gaps[0].Count != 6 || e.end != 71 {
			t.Fatalf("gaps %+v, end %d", e.gaps, e.end)
		}
	})
}

func TestLedgerCrashLeavesAGapOfUnknownLength(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		crash := func(appends int) {
			l := testLedger(log, func(c *LedgerConfig) { c.Drain = time.Nanosecond })
			stop := run(t, l)
			synctest.Wait()
			mustAppend(t, l, appends)
			synctest.Wait() // full batches are out
			log.SetDown(true)
			if err := stop(); err == nil || !strings.Contains(err.Error(), "not stored") {
				t.Fatalf("a stop that could not store everything: %v", err)
			}
			log.SetDown(false)
		}
		crash(19)
		crash(0) // opened, decided nothing
		// A crash between the gap record and the open record.
		log.FailNext(logtest.OpTail, logtest.Unavailable)
		for range 2 {
			paused := log.PauseNext(logtest.OpPublish, logtest.AfterEffect)
			l := testLedger(log, func(c *LedgerConfig) { c.Drain = time.Nanosecond })
			stop := run(t, l)
			<-paused.Entered()
			stop()
			if l.Ready() == nil {
				t.Fatal("the epoch is not open yet")
			}
		}
		l := testLedger(log, func(c *LedgerConfig) { c.Now = func() time.Time { return time.UnixMicro(5) } }) // a clock that was set back
		stop := run(t, l)
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		got := readLedger(t, log, testNode)
		var ends []string
		for _, e := range got {
			s := fmt.Sprintf("end %d closed %v", e.end, e.closed)
			for _, g := range e.gaps {
				s += fmt.Sprintf(" gap %d+%d", g.First, g.Count)
			}
			ends = append(ends, s)
		}
		want := []string{"end 16 closed false gap 17+0", "end 0 closed false gap 1+0", "end 0 closed false gap 1+0", "end 0 closed true"}
		if !slices.Equal(ends, want) {
			t.Fatalf("epochs:\n%s\nwant:\n%s", strings.Join(ends, "\n"), strings.Join(want, "\n"))
		}
	})
}

// An outcome that stays unknown for longer than the stream remembers ids must
// not store the batch a second time.
func TestLedgerSettlesAfterTheDedupWindow(t *testing.T) {
	for _, fault := range []logtest.Fault{logtest.UnknownStored, logtest.UnknownNotStored, logtest.Full} {
		synctest.Test(t, func(t *testing.T) {
			log := logtest.New(t)
			l := testLedger(log, nil)
			stop := run(t, l)
			synctest.Wait()
			log.FailNext(logtest.OpPublish, fault)
			want, _ := mustAppend(t, l, 8)
			synctest.Wait()
			log.SetDown(true)
			time.Sleep(10 * time.Minute)
			log.SetDown(false)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			e := readLedger(t, log, testNode)[0]
			wantUses(t, e, want)
		})
	}
}

func TestLedgerSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		stop := run(t, l)
		synctest.Wait()
		began := time.Now()
		for i := range 20 {
			u := testUse(i)
			id, err := l.Append(&u)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Sync(t.Context(), id.N); err != nil {
				t.Fatal(err)
			}
			if e := readLedger(t, log, testNode)[0]; e.end < id.N {
				t.Fatalf("use %d is said to be durable and is not on the stream", id.N)
			}
		}
		if d := time.Since(began); d > 0 {
			t.Fatalf("a use that is waited for must not wait for company: %s", d)
		}
		log.SetDown(true)
		u := testUse(21)
		id, _ := l.Append(&u)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.Sync(ctx, id.N); !errors.Is(err, ErrNotDurable) {
			t.Fatalf("sync with the stream down: %v", err)
		}
		log.SetDown(false)
		if err := l.Sync(t.Context(), id.N); err != nil {
			t.Fatal(err)
		}
		// A use that no batch can hold becomes a gap, and its waiter hears of it.
		bad := events.Use{Reason: events.ReasonOK}
		id, _ = l.Append(&bad)
		if err := l.Sync(t.Context(), id.N); !errors.Is(err, ErrNotDurable) {
			t.Fatalf("sync of a use that cannot be encoded: %v", err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := l.Sync(t.Context(), id.N+1); !errors.Is(err, ErrNotDurable) {
			t.Fatalf("sync after the end: %v", err)
		}
		if e := readLedger(t, log, testNode)[0]; len(e.gaps) != 1 || e.gaps[0].First != id.N || e.gaps[0].Count != 1 || !e.closed {
			t.Fatalf("%+v", e)
		}
	})
}

func TestLedgerRefusesARecordItCannotRead(t *testing.T) {
	log := logtest.New(t)
	if _, err := log.Publish(t.Context(), testNode, "x", []byte("from the future")); err != nil {
		t.Fatal(err)
	}
	err := testLedger(log, nil).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "start this node with the release that wrote it") {
		t.Fatalf("%v", err)
	}
}

// Under both halves of every fault, outages, restarts and kills, with writers
// that never stop, each number of each epoch is on the record exactly once.
func TestLedgerUnderFaults(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for round := range 40 {
		synctest.Test(t, func(t *testing.T) {
			log := logtest.New(t)
			type life struct {
				kept   map[uint64]events.Use
				killed bool
			}
			var lives []life
			for range 1 + rnd.IntN(4) {
				kill := rnd.IntN(2) == 0
				l := testLedger(log, func(c *LedgerConfig) {
					if c.Drain = time.Hour; kill {
						c.Drain = time.Nanosecond
					}
				})
				stop := run(t, l)
				time.Sleep(5 * time.Minute) // past whatever was left of the faults
				synctest.Wait()
				kept := map[uint64]events.Use{}
				for range rnd.IntN(60) {
					switch rnd.IntN(6) {
					case 0:
						log.FailNext(logtest.OpPublish, logtest.Fault(rnd.IntN(4)))
					case 1:
						log.SetDown(rnd.IntN(2) == 0)
					case 2:
						time.Sleep(time.Duration(rnd.IntN(200_000)) * time.Millisecond)
					default:
						var wg sync.WaitGroup
						var mu sync.Mutex
						for g := range 3 {
							n := rnd.IntN(10)
							wg.Go(func() {
								for i := range n {
									u := testUse(1000*g + i)
									id, err := l.Append(&u)
									if err != nil && !errors.Is(err, ErrLedgerFull) {
										t.Errorf("append: %v", err)
									}
									mu.Lock()
									if err == nil {
										kept[id.N] = u
									}
									mu.Unlock()
								}
							})
						}
						wg.Wait()
					}
				}
				log.SetDown(kill)
				err := stop()
				if !kill && err != nil {
					t.Fatal(err)
				}
				log.SetDown(false)
				lives = append(lives, life{kept, err != nil})
			}
			l := testLedger(log, nil)
			stop := run(t, l)
			time.Sleep(5 * time.Minute) // past whatever was left of the faults
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			got := readLedger(t, log, testNode)
			if len(got) != len(lives)+1 {
				t.Fatalf("round %d: %d epochs on the record, want %d", round, len(got), len(lives)+1)
			}
			for i, life := range lives {
				e := got[i]
				if life.killed == e.closed {
					t.Fatalf("round %d: epoch closed %v, killed %v", round, e.closed, life.killed)
				}
				for n, u := range e.uses {
					if life.kept[n] != u {
						t.Fatalf("round %d: use %d is %+v on the record, was %+v", round, n, u, life.kept[n])
					}
				}
				for n := range life.kept {
					if _, ok := e.uses[n]; !ok && !(life.killed && n > e.end) {
						t.Fatalf("round %d: use %d was taken, is not on the record and not in the unknown end", round, n)
					}
				}
			}
		})
	}
}

func TestLedgerAppendAllocatesNothing(t *testing.T) {
	log := logtest.New(t)
	l := testLedger(log, func(c *LedgerConfig) { c.BatchUses, c.MaxUses = 1024, 1<<20 })
	stop := run(t, l)
	waitFor(t, func() bool { return l.Ready() == nil })
	u := testUse(1)
	for range 20_000 { // warm up
		l.Append(&u)
	}
	waitFor(t, func() bool { return l.Buffered() == 0 })
	if n := testing.AllocsPerRun(500, func() { l.Append(&u) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

// waitFor polls a condition that another goroutine brings about.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still waiting after 10 s")
		}
	}
}
