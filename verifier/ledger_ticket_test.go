package verifier

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// Neighbours in a slab share no cache line, and nobody else's line holds the tickets.
func TestSlabLayout(t *testing.T) {
	if n := unsafe.Sizeof(slot{}); n != 3*64 {
		t.Errorf("a slot is %d bytes, want three lines", n)
	}
	var s slab
	if at, size := unsafe.Offsetof(s.tickets), unsafe.Sizeof(s); at < unsafe.Offsetof(s.counted)+64 || size < at+64 {
		t.Errorf("the tickets are at %d of %d bytes", at, size)
	}
	var l Ledger
	if at, next := unsafe.Offsetof(l.cur), unsafe.Offsetof(l.published); next < at+64 {
		t.Errorf("cur is at %d, the counters from %d on", at, next)
	}
}

// paused is a decision whose goroutine has its ticket and does not run.
type paused struct {
	s *slab
	i uint64
	u events.Use
}

// pause begins to append u; ok is false if that needs a new slab.
func pause(l *Ledger, u events.Use) (p paused, ok bool) {
	s := l.cur.Load()
	if s == nil {
		return p, false
	}
	i, ok := s.ticket()
	return paused{s, i, u}, ok
}

// finish returns the number.
func (p *paused) finish() uint64 { return p.s.put(p.i, &p.u) }

// A writer that is paused between its ticket and its slot delays the record from its
// number on, and makes no hole in it; others go on meanwhile.
func TestPausedWriterDelaysTheRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		stop := run(t, l)
		synctest.Wait()
		end := func() uint64 { return readLedger(t, log, testNode)[0].end }
		want, _ := mustAppend(t, l, 3)
		p, ok := pause(l, testUse(4))
		if !ok {
			t.Fatal("the slab has room")
		}
		more, lost := mustAppend(t, l, 20)
		if lost > 0 {
			t.Fatal("a paused writer must not make others lose their use")
		}
		maps.Copy(want, more)
		time.Sleep(time.Second)
		synctest.Wait()
		if end() != 0 || l.Buffered() != 24 {
			t.Fatalf("the record ends at %d, %d wait: a number is missing, so nothing after it may be stored", end(), l.Buffered())
		}
		if by := l.decided(); by[events.ReasonOK] != 16 { // Run has the first slab, which is not complete
			t.Errorf("%d decisions are counted, want those of the waiting slabs", by[events.ReasonOK])
		}
		want[p.finish()] = p.u
		time.Sleep(time.Second)
		if end() != 24 {
			t.Fatalf("the record ends at %d, want 24", end())
		}
		// A stop waits for the writer too.
		mustAppend(t, l, 1)
		if p, ok = pause(l, testUse(30)); !ok {
			t.Fatal("the slab has room")
		}
		ended := make(chan error, 1)
		go func() { ended <- stop() }()
		synctest.Wait()
		if l.Ready() == nil {
			t.Fatal("a stopping ledger must admit nothing")
		}
		if n := p.finish(); n != 26 {
			t.Fatalf("number %d", n)
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		e := readLedger(t, log, testNode)[0]
		if !e.closed || e.end != 26 || len(e.gaps) > 0 || e.uses[26] != p.u {
			t.Fatalf("closed %v, end %d, gaps %v", e.closed, e.end, e.gaps)
		}
		for n, u := range want {
			if e.uses[n] != u {
				t.Errorf("use %d: %+v, want %+v", n, e.uses[n], u)
			}
		}
		if by := l.decided(); by[events.ReasonOK] != 26 {
			t.Errorf("%d decisions are counted, want 26", by[events.ReasonOK])
		}
	})
}

// A writer that never comes back is given up after Drain: its number and those after it
// are in the gap of the next start.
func TestWriterThatNeverReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		stop := run(t, l)
		synctest.Wait()
		mustAppend(t, l, 9)
		if _, ok := pause(l, testUse(10)); !ok {
			t.Fatal("the slab has room")
		}
		began := time.Now()
		if err := stop(); !errors.Is(err, ErrNotDurable) || time.Since(began) > 11*time.Second {
			t.Fatalf("%v after %s", err, time.Since(began))
		}
		stop = run(t, testLedger(log, nil))
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if e := readLedger(t, log, testNode)[0]; e.end != 8 || len(e.gaps) != 1 || e.gaps[0].First != 9 || e.closed {
			t.Fatalf("end %d, gaps %+v", e.end, e.gaps)
		}
	})
}

// Who knows a slab from before it was emptied gets no ticket of it until it is current
// again, and then one of its new numbers.
func TestStaleSlab(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		stop := run(t, l)
		synctest.Wait()
		want, _ := mustAppend(t, l, 1)
		stale := l.cur.Load()
		time.Sleep(time.Second) // it is stored
		for range 100 {
			if i, ok := stale.ticket(); ok {
				t.Fatalf("ticket %d of an empty slab", i)
			}
		}
		for i := 0; l.cur.Load() != stale; i++ {
			if i == 100 {
				t.Fatal("the slab is not used again")
			}
			more, _ := mustAppend(t, l, 1)
			maps.Copy(want, more)
		}
		i, ok := stale.ticket()
		if !ok {
			t.Fatal("the slab is current")
		}
		u := testUse(77)
		n := stale.put(i, &u)
		if want[n] != (events.Use{}) {
			t.Fatalf("number %d is given twice", n)
		}
		want[n] = u
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if i, ok := stale.ticket(); ok {
			t.Errorf("ticket %d of a closed ledger", i)
		}
		wantUses(t, readLedger(t, log, testNode)[0], want)
	})
}

// A use of an unknown key never becomes the first of a gap, and its room is free again when
// it is stored.
func TestUnknownKeysLoseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, nil)
		stop := run(t, l)
		synctest.Wait()
		log.SetDown(true)
		mustAppend(t, l, 72) // as many as fit
		u := unknownUse(1)
		if id, err := l.Append(&u); !errors.Is(err, ErrSuppressed) || id.N != 0 {
			t.Fatalf("number %d, %v", id.N, err)
		}
		if by := l.decided(); by[events.ReasonOK] != 72 || by[events.ReasonKeyUnknown] != 1 {
			t.Errorf("counted %v", by)
		}
		log.SetDown(false)
		for range 2 { // the room is 8
			time.Sleep(5 * time.Second)
			for i := range 10 {
				u := unknownUse(1)
				if _, err := l.Append(&u); (err == nil) != (i < 8) {
					t.Errorf("use %d: %v", i, err)
				}
			}
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if e := readLedger(t, log, testNode)[0]; len(e.gaps) > 0 || len(e.uses) != 72+16 || e.end != 72+1+20 {
			t.Errorf("gaps %v, %d uses, end %d", e.gaps, len(e.uses), e.end)
		}
	})
}

// With many writers at once, some of them stopped at the worst moment, over opening, full
// buffers and closing, the numbers are 1..n: each is given once, and each that is on the
// record is its writer's.
func TestTicketsUnderContention(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	rounds := 30
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		log := logtest.New(t)
		l := testLedger(log, func(c *LedgerConfig) {
			c.BatchUses, c.MaxUses, c.FlushEvery = 1+rnd.IntN(40), 100+rnd.IntN(400), time.Duration(1+rnd.IntN(2000))*time.Microsecond
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		waitFor(t, func() bool { return l.Ready() == nil })
		type result struct {
			kept    map[uint64]events.Use
			lost    map[uint64]bool
			counted uint64
		}
		const writers = 8
		results := make([]result, writers)
		stopAfter := rnd.IntN(writers * 400)
		var appended sync.WaitGroup
		first := make(chan struct{})
		for w := range writers {
			r := &results[w]
			r.kept, r.lost = map[uint64]events.Use{}, map[uint64]bool{}
			mine := rand.New(rand.NewPCG(seed, uint64(round*writers+w)))
			appended.Go(func() {
				for i := range 400 {
					u := testUse(1000*w + i)
					if mine.IntN(5) == 0 {
						u = unknownUse(mine.IntN(200))
					}
					if w*400+i == stopAfter {
						close(first)
					}
					if !u.Key.IsZero() && mine.IntN(4) == 0 {
						if p, ok := pause(l, u); ok {
							for range mine.IntN(20) {
								runtime.Gosched()
							}
							if n := p.finish(); p.s.lost != nil {
								r.lost[n] = true
							} else {
								r.kept[n] = u
							}
							continue
						}
					}
					id, err := l.Append(&u)
					switch {
					case err == nil:
						r.kept[id.N] = u
					case errors.Is(err, ErrLedgerFull) && !u.Key.IsZero():
						r.lost[id.N] = true
					case errors.Is(err, ErrSuppressed) && u.Key.IsZero():
						r.counted++
					case !errors.Is(err, ErrLedgerClosed):
						t.Errorf("%v", err)
					}
				}
			})
		}
		scrapes, stopScrapes := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(scrapes)
			last := uint64(0)
			for {
				select {
				case <-stopScrapes:
					return
				default:
				}
				if by := l.decided(); by[events.ReasonOK] < last {
					t.Errorf("%d decisions after %d", by[events.ReasonOK], last)
				} else {
					last = by[events.ReasonOK]
				}
				runtime.Gosched()
			}
		}()
		<-first
		cancel()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		numbered := l.nextNumber() - 1
		appended.Wait()
		close(stopScrapes)
		<-scrapes
		e := readLedger(t, log, testNode)[0]
		if !e.closed || e.end != numbered || l.nextNumber()-1 != numbered || l.Buffered() != 0 {
			t.Fatalf("round %d: closed %v at %d, %d numbered, %d after that", round, e.closed, e.end, numbered, l.nextNumber()-1)
		}
		given, counted, gaps := uint64(0), uint64(0), uint64(0)
		seen := map[uint64]bool{}
		for _, r := range results {
			given += uint64(len(r.kept) + len(r.lost))
			counted += r.counted
			for n, u := range r.kept {
				if seen[n] || e.uses[n] != u {
					t.Fatalf("round %d: use %d is %+v, want %+v (given twice: %v)", round, n, e.uses[n], u, seen[n])
				}
				seen[n] = true
			}
			for n := range r.lost {
				if seen[n] || !slices.ContainsFunc(e.gaps, func(g events.UseBatch) bool { return g.First <= n && n < g.First+g.Count }) {
					t.Fatalf("round %d: number %d is lost and in no gap (given twice: %v)", round, n, seen[n])
				}
				seen[n] = true
			}
		}
		for _, g := range e.gaps {
			gaps += g.Count
		}
		by := l.decided()
		total := uint64(0)
		for _, n := range by {
			total += n
		}
		if given+counted != numbered || total != numbered || gaps != l.lost.Load() {
			t.Fatalf("round %d: %d numbers were given and %d uses counted, %d are numbered; by reason %d; %d in gaps, %d lost",
				round, given, counted, numbered, total, gaps, l.lost.Load())
		}
	}
}
