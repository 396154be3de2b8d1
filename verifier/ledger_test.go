package verifier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// epochRecord is what the use stream says about one epoch.
type epochRecord struct {
	epoch   int64
	uses    map[uint64]events.Use
	gaps    []events.UseBatch
	counts  map[reasonOf]uint64 // suppressed uses, of all blocks
	tallies []events.Tally
	closed  bool
	end     uint64 // last number accounted for
}

type reasonOf struct {
	keyspace events.KeyspaceID
	reason   events.Reason
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
			if id := fmt.Sprint(b.Epoch, "/", b.Kind, "/", b.First); ids[id] {
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
				all, ended = append(all, &epochRecord{epoch: b.Epoch, uses: map[uint64]events.Use{}, counts: map[reasonOf]uint64{}}), false
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
			case events.BatchSuppressed:
				for _, c := range b.Tallies {
					e.counts[reasonOf{c.Keyspace, c.Reason}] += c.Count
					e.tallies = append(e.tallies, c)
					e.end += c.Count
				}
			case events.BatchClose:
				e.closed, ended = true, true
			}
		}
	}
	return all
}

const testNode events.NodeID = "node-1"

func testLedger(l *logtest.MemLog, change func(*LedgerConfig)) *Ledger {
	cfg := LedgerConfig{Node: testNode, BatchUses: 8, MaxUses: 64, Logger: slog.New(slog.DiscardHandler)}
	if l != nil {
		cfg.Sink, cfg.Log = l, l.ID()
	}
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
	return events.Use{Time: 1_790_000_000_000 + events.Time(i), Reason: events.ReasonOK, Keyspace: "acme", Tenant: "t", Key: events.KeyID{15: 7},
		Scope: fmt.Sprint("scope", i%3), Cost: 1, Seq: events.Seq(i)}
}

// unknownUse is a use of a key that is not known, in keyspace acme.
func unknownUse(i int) events.Use {
	return events.Use{Time: 1_790_000_000_000 + events.Time(i), Reason: events.ReasonKeyUnknown, Keyspace: "acme", Cost: 1,
		IP: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}
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
		if lost != 100-72 || l.Buffered() != 100 { // nobody tries unknown keys: their room is free
			t.Fatalf("%d lost, %d buffered: want 28 and 100", lost, l.Buffered())
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
		if len(e.gaps) != 1 || e.gaps[0].First != 73 || e.gaps[0].Count != 28 || e.gaps[0].Note == "" || !e.closed || e.end != 103 ||
			e.gaps[0].Since != testUse(73).Time || e.gaps[0].Until != testUse(100).Time {
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
		for range 7 {
			pauses = append(pauses, log.PauseNext(logtest.OpPublish, logtest.BeforeEffect))
		}
		mustAppend(t, l, 73)
		for i, p := range pauses { // 9 batches held, then 8 .. 3
			<-p.Entered()
			if _, lost := mustAppend(t, l, 1); (lost == 1) != (i < 6) {
				t.Fatalf("%d batches stored: %d lost", i, lost)
			}
			p.Resume()
			synctest.Wait()
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if e := readLedger(t, log, testNode)[0]; len(e.gaps) != 1 || e.gaps[0].Count != 7 || e.end != 80 {
			t.Fatalf("gaps %+v, end %d", e.gaps, e.end)
		}
	})
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

// The next slab is made outside the lock, before the current one is full, also
// while the stream is away and none comes back; and a stored one is cleared
// before it is given back.
func TestLedgerMakesSlabsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		stop := run(t, l)
		synctest.Wait()
		log.SetDown(true)
		mustAppend(t, l, 1) // the first slab is made when it is needed
		for i := range 7 {
			mustAppend(t, l, 7)
			if len(l.free) == 0 {
				t.Fatalf("slab %d is nearly full and no empty one is there", i)
			}
			mustAppend(t, l, 1)
			if len(l.free) != 0 || l.cur.Load().taken() != 1 {
				t.Fatalf("slab %d: the empty one was not taken", i)
			}
		}
		log.SetDown(false)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if len(l.free) != keepSlabs {
			t.Errorf("%d slabs are kept, want %d", len(l.free), keepSlabs)
		}
		for _, s := range l.free {
			for i := range s.slots {
				if s.slots[i].use != (events.Use{}) || s.slots[i].written.Load() != 0 {
					t.Fatal("a kept slab holds a use")
				}
			}
		}
	})
}

func TestLedgerAppendAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no time passes, so that nothing is stored while it counts
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
	})
}

// waitFor polls a condition that another goroutine brings about.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("still waiting after 2 minutes")
		}
	}
}
