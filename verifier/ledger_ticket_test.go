package verifier

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"pgregory.net/rapid"

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

// naiveLedger is what a ledger must promise, with one lock around all of it and no stream.
type naiveLedger struct {
	mu      sync.Mutex
	open    bool
	kept    map[uint64]events.Use
	lost    map[uint64]events.Use
	spoiled map[uint64]bool
	counted map[tallied]uint64
	last    uint64
}

// appended judges one answer of Append. Another one may have been given meanwhile.
func (n *naiveLedger) appended(u events.Use, id events.UseID, err error) (fault string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if (err == nil || errors.Is(err, ErrLedgerFull)) != (id.N > 0) {
		return fmt.Sprintf("number %d and error %v", id.N, err)
	}
	if _, ok := n.kept[id.N]; ok {
		return fmt.Sprintf("number %d is given twice", id.N)
	}
	if _, ok := n.lost[id.N]; ok {
		return fmt.Sprintf("number %d is given twice", id.N)
	}
	switch {
	case errors.Is(err, ErrLedgerClosed):
		if n.open {
			return "closed while it is open"
		}
		return ""
	case !n.open:
		return fmt.Sprintf("number %d, error %v while it is closed", id.N, err)
	case err == nil:
		n.kept[id.N] = u
	case errors.Is(err, ErrSuppressed) && u.Key.IsZero():
		n.counted[tallied{u.Keyspace, u.Reason}]++
	case errors.Is(err, ErrLedgerFull) && !u.Key.IsZero():
		n.lost[id.N] = u
	default:
		return err.Error()
	}
	n.last = max(n.last, id.N)
	return ""
}

// judge says what is wrong with the record of the ledger that n stands for. The epoch ended
// by itself when orderly.
func (n *naiveLedger) judge(e *epochRecord, orderly bool) string {
	if e.closed != orderly {
		return fmt.Sprintf("closed %v", e.closed)
	}
	gaps := map[uint64]bool{}
	for _, g := range e.gaps {
		for i := range g.Count {
			gaps[g.First+i] = true
			at := n.lost[g.First+i]
			if at.Time != 0 && (at.Time < g.Since || at.Time > g.Until) {
				return fmt.Sprintf("use %d of %s is in a gap from %s to %s", g.First+i, at.Time, g.Since, g.Until)
			}
		}
	}
	for i, u := range n.kept {
		_, stored := e.uses[i]
		switch {
		case i > e.end && !orderly:
		case stored && e.uses[i] != u:
			return fmt.Sprintf("use %d is %+v, want %+v", i, e.uses[i], u)
		case !stored && !gaps[i], !stored && len(n.spoiled) == 0:
			return fmt.Sprintf("use %d was taken and is not on the record", i)
		}
	}
	for i := range n.lost {
		if !gaps[i] && (orderly || i <= e.end) {
			return fmt.Sprintf("use %d was lost and is in no gap", i)
		}
	}
	for i := range e.uses {
		if _, ok := n.kept[i]; !ok {
			return fmt.Sprintf("use %d is on the record and nobody's", i)
		}
	}
	total := uint64(len(n.kept) + len(n.lost))
	for key, c := range n.counted {
		if total += c; e.counts[key] > c || orderly && e.counts[key] != c {
			return fmt.Sprintf("%d of %v are told, %d were counted", e.counts[key], key, c)
		}
	}
	if orderly && e.end != total {
		return fmt.Sprintf("the record ends at %d, want %d", e.end, total)
	}
	return ""
}

// failure is how a checker inside a bubble ends the check, so that rapid can shrink it.
type failure string

type bubbled struct{ *testing.T }

func (bubbled) Fatal(a ...any)            { panic(failure(fmt.Sprint(a...))) }
func (bubbled) Fatalf(f string, a ...any) { panic(failure(fmt.Sprintf(f, a...))) }

// Whatever happens to the stream and the process, the ledger promises and keeps what a naive
// one with a lock around it does.
func TestLedgerTwin(t *testing.T) {
	actions := []string{"known", "known", "known", "unknown", "denied", "bad", "burst", "pause", "finish", "down", "up", "sleep", "tick", "sync", "fail", "count"}
	ends := []string{"stop", "stop", "kill", "fence"}
	rapid.Check(t, func(rt *rapid.T) {
		plan := rapid.SliceOfN(rapid.SampledFrom(actions), 1, 60).Draw(rt, "plan")
		end := rapid.SampledFrom(ends).Draw(rt, "end")
		batch := rapid.IntRange(1, 6).Draw(rt, "batch")
		fault := ""
		synctest.Test(t, func(t *testing.T) { fault = twinRun(bubbled{t}, plan, end, batch) })
		if fault != "" {
			rt.Fatalf("%s", fault)
		}
	})
}

// twinRun plays one life of a ledger and returns what was wrong with it.
func twinRun(t bubbled, plan []string, end string, batch int) (fault string) {
	log := logtest.New(t.T)
	config := func(c *LedgerConfig) {
		c.BatchUses, c.MaxUses, c.UnknownPerSecond = batch, 16, 4
		if c.Drain = time.Hour; end == "kill" {
			c.Drain = time.Nanosecond
		}
	}
	l := testLedger(log, config)
	naive := &naiveLedger{kept: map[uint64]events.Use{}, lost: map[uint64]events.Use{}, spoiled: map[uint64]bool{}, counted: map[tallied]uint64{}}
	first := testUse(1)
	id, err := l.Append(&first)
	if fault := naive.appended(first, id, err); fault != "" {
		return fault
	}
	stop := run(t.T, l)
	var pauses []paused
	var stopping chan error
	defer func() {
		if f, ok := recover().(failure); ok {
			fault = string(f)
		}
		log.SetDown(false)
		log.ClearFaults()
		for i := range pauses {
			pauses[i].finish()
		}
		if stopping == nil {
			stop()
		} else {
			<-stopping // two that wait for one lock would stop the bubble's time
		}
	}()
	var synced []uint64
	serial := 0
	appendOne := func(u events.Use) {
		waiting := l.Buffered()
		id, err := l.Append(&u)
		if f := naive.appended(u, id, err); f != "" {
			t.Fatalf("%s", f)
		}
		if errors.Is(err, ErrLedgerFull) && waiting < 16/2 {
			t.Fatalf("full with %d decisions waiting", waiting)
		}
	}
	next := func() events.Use { serial++; return testUse(serial) }
	finish := func() {
		if len(pauses) == 0 {
			return
		}
		p := pauses[0]
		pauses = pauses[1:]
		id, err := events.UseID{N: p.finish()}, error(nil)
		if p.s.lost != nil {
			err = ErrLedgerFull
		}
		was := naive.open
		naive.open = true // it began before
		if f := naive.appended(p.u, id, err); f != "" {
			t.Fatalf("paused: %s", f)
		}
		naive.open = was
	}
	synctest.Wait()
	naive.open = true
	for _, what := range plan {
		switch what {
		case "known":
			appendOne(next())
		case "unknown":
			serial++
			appendOne(unknownUse(serial % 3))
		case "denied":
			u := next()
			u.Reason = events.ReasonKeyRevoked
			appendOne(u)
		case "bad":
			u := next()
			u.Tenant = "" // no batch can hold it
			naive.spoiled[0] = true
			appendOne(u)
		case "burst":
			var all sync.WaitGroup
			var mu sync.Mutex
			faults := ""
			for range 3 {
				mine := []events.Use{next(), next(), next(), next()}
				all.Go(func() {
					for _, u := range mine {
						id, err := l.Append(&u)
						if f := naive.appended(u, id, err); f != "" {
							mu.Lock()
							faults = f
							mu.Unlock()
						}
					}
				})
			}
			if all.Wait(); faults != "" {
				t.Fatalf("%s", faults)
			}
		case "pause":
			if p, ok := pause(l, next()); ok {
				pauses = append(pauses, p)
			}
		case "finish":
			finish()
		case "down":
			log.SetDown(true)
		case "up":
			log.SetDown(false)
		case "sleep":
			time.Sleep(5 * time.Second)
		case "tick":
			time.Sleep(30 * time.Millisecond)
		case "fail":
			log.FailNext(logtest.OpPublish, logtest.Fault(serial%4))
		case "sync":
			n := naive.last
			if n == 0 || naive.lost[n] != (events.Use{}) {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			err := l.Sync(ctx, n)
			cancel()
			if err == nil {
				synced = append(synced, n)
			}
		case "count":
			time.Sleep(2 * time.Millisecond) // Run looks again whether a paused writer is done
			synctest.Wait()
			total := uint64(0)
			for _, n := range l.decided() {
				total += n
			}
			if given := l.nextNumber() - 1 + l.unknown.pending(); total > given || len(pauses) == 0 && total != given {
				t.Fatalf("%d decisions are counted, %d were made", total, given)
			}
		}
		synctest.Wait()
	}
	switch end {
	case "fence":
		for len(pauses) > 0 {
			finish()
		}
		log.SetDown(false)
		log.ClearFaults()
		other := run(t.T, testLedger(log, config))
		time.Sleep(time.Minute)
		if l.Ready() == nil { // it had nothing to store meanwhile
			appendOne(next())
			time.Sleep(time.Minute)
		}
		naive.open = false
		appendOne(next())
		if err := stop(); !errors.Is(err, events.ErrFenced) {
			t.Fatalf("fenced: %v", err)
		}
		if err := other(); err != nil {
			t.Fatalf("the other process: %v", err)
		}
	case "kill":
		log.SetDown(true)
		_ = stop()
		naive.open = false
		appendOne(next())
		for len(pauses) > 0 {
			finish()
		}
	default:
		log.SetDown(false)
		log.ClearFaults()
		stopping = make(chan error, 1)
		go func() { stopping <- stop(); close(stopping) }()
		synctest.Wait()
		naive.open = l.Ready() == nil // it may be in the middle of a batch
		appendOne(next())
		for len(pauses) > 0 {
			finish()
		}
		if err := <-stopping; err != nil {
			t.Fatalf("stop: %v", err)
		}
		naive.open = false
		appendOne(next())
	}
	log.SetDown(false)
	got := readLedger(t, log, testNode)
	orderly := got[0].closed
	if end == "stop" && !orderly {
		return "an orderly stop left the epoch open: " + strings.Join(plan, " ")
	}
	for _, n := range synced {
		if _, stored := got[0].uses[n]; !stored {
			return fmt.Sprintf("use %d was said to be durable and is not on the record", n)
		}
	}
	return naive.judge(got[0], orderly)
}
