package verifier

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

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
				// From the last use on the record, or the start, on, though the clock was set back.
				since := testUse(16).Time
				if g.First == 1 {
					since = events.Time(g.Epoch / 1000)
				}
				if g.Since != since || g.Until != max(since, events.At(time.Now())) {
					t.Errorf("gap %+v: since %s, until %s", g, g.Since, g.Until)
				}
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

// What is remembered of uses that could not be encoded is bounded, and of none of
// them anybody is told that it is durable.
func TestLedgerSpoiledIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		stop := run(t, l)
		synctest.Wait()
		bad := testUse(1)
		bad.Tenant = "" // no batch can hold it
		const spoiled = 10 * keepSpoiled
		for range spoiled {
			id, err := l.Append(&bad)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Sync(t.Context(), id.N); !errors.Is(err, ErrNotDurable) {
				t.Fatalf("use %d: %v", id.N, err)
			}
		}
		if n := len(l.spoiled); n != keepSpoiled || cap(l.spoiled) > 4*keepSpoiled {
			t.Errorf("%d spans are remembered, in room for %d", n, cap(l.spoiled))
		}
		for n := range uint64(spoiled) {
			if err := l.Sync(t.Context(), n+1); !errors.Is(err, ErrNotDurable) {
				t.Errorf("use %d is said to be durable: %v", n+1, err)
			}
		}
		good := testUse(2)
		id, err := l.Append(&good)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Sync(t.Context(), id.N); err != nil {
			t.Error(err)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	})
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
				kept    map[uint64]events.Use
				counted uint64 // suppressed
				killed  bool
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
				var counted atomic.Uint64
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
									if i%2 == 0 {
										u = unknownUse(i)
									}
									id, err := l.Append(&u)
									switch {
									case errors.Is(err, ErrSuppressed) && u.Key.IsZero() && id == (events.UseID{}):
										counted.Add(1)
									case err != nil && !errors.Is(err, ErrLedgerFull):
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
				lives = append(lives, life{kept, counted.Load(), err != nil})
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
				told := uint64(0)
				for _, n := range e.counts {
					told += n
				}
				if told > life.counted || !life.killed && told != life.counted {
					t.Fatalf("round %d: %d suppressed uses on the record, %d were counted", round, told, life.counted)
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
