package verifier

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// naiveLedger is what a ledger must promise, with one lock around all of it and no stream.
type naiveLedger struct {
	mu      sync.Mutex
	open    bool
	kept    map[uint64]events.Use
	lost    map[uint64]events.Use
	spoiled map[uint64]bool
	counted map[reasonOf]uint64
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
		n.counted[reasonOf{u.Keyspace, u.Reason}]++
	case errors.Is(err, ErrLedgerFull) && !u.Key.IsZero():
		n.lost[id.N] = u
	default:
		return err.Error()
	}
	n.last = max(n.last, id.N)
	return ""
}

// judge compares the record with the ledger that n stands for, and returns the first difference. The epoch ended
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
	naive := &naiveLedger{kept: map[uint64]events.Use{}, lost: map[uint64]events.Use{}, spoiled: map[uint64]bool{}, counted: map[reasonOf]uint64{}}
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
