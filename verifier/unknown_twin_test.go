package verifier

import (
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// askedFrom is what a naive twin counts of uses of unknown keys.
type askedFrom struct {
	block  netip.Prefix
	reason events.Reason
	second events.Time
}

// TestUnknownCountsAreExact: for each reason and second, what is recorded one by one and
// what is counted add up to what was asked; by block too, but for what the node says
// that it did not tell apart.
func TestUnknownCountsAreExact(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		budget := rapid.SampledFrom([]int{1, 7, 100}).Draw(rt, "budget")
		blocks, spaces := rapid.SampledFrom([]int{1, 2, 200}).Draw(rt, "blocks"), rapid.SampledFrom([]int{1, 3, 40}).Draw(rt, "keyspaces")
		var flood []events.Use
		now := events.At(time.UnixMilli(1_767_693_600_000))
		for range rapid.IntRange(1, 400).Draw(rt, "uses") {
			now += events.Time(rapid.SampledFrom([]int{0, 0, 1, 30, 700}).Draw(rt, "step"))
			u := unknownUse(0)
			u.Time, u.Reason = now, rapid.SampledFrom([]events.Reason{events.ReasonKeyUnknown, events.ReasonKeyMissing}).Draw(rt, "reason")
			if rapid.IntRange(0, 9).Draw(rt, "late") == 0 { // another goroutine was faster
				u.Time -= events.Time(rapid.IntRange(0, 2500).Draw(rt, "by"))
			}
			u.Keyspace = events.KeyspaceID(fmt.Sprint("k", rapid.IntRange(1, spaces).Draw(rt, "keyspace")))
			switch b := rapid.IntRange(0, blocks).Draw(rt, "block"); {
			case b == 0:
				u.IP = netip.Addr{}
			case b%2 == 0:
				u.IP = netip.AddrFrom4([4]byte{10, 0, byte(b), byte(len(flood))})
			default:
				u.IP = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(b), byte(len(flood))})
			}
			flood = append(flood, u)
		}
		var e *epochRecord
		synctest.Test(t, func(t *testing.T) {
			log := logtest.New(t)
			l := testLedger(log, func(c *LedgerConfig) { c.UnknownPerSecond, c.MaxUses, c.BatchUses = budget, 1<<16, 64 })
			stop := run(t, l)
			synctest.Wait()
			for i := range flood {
				l.Append(&flood[i])
				if i%50 == 0 {
					time.Sleep(400 * time.Millisecond)
				}
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			e = readLedger(t, log, testNode)[0]
		})
		want, byReason, told := map[askedFrom]uint64{}, map[askedFrom]uint64{}, map[string]bool{}
		for _, u := range flood {
			want[askedFrom{events.BlockOf(u.IP), u.Reason, u.Time / 1000}]++
			byReason[askedFrom{reason: u.Reason, second: u.Time / 1000}]++
			told[fmt.Sprint(events.BlockOf(u.IP), u.Keyspace, u.Reason)] = true
		}
		got, gotByReason := map[askedFrom]uint64{}, map[askedFrom]uint64{}
		for _, u := range e.uses {
			got[askedFrom{events.BlockOf(u.IP), u.Reason, u.Time / 1000}]++
			gotByReason[askedFrom{reason: u.Reason, second: u.Time / 1000}]++
		}
		rest := false
		for _, c := range e.tallies {
			if c.Time/1000 != c.Until/1000 {
				rt.Fatalf("a tally of more than one second: %+v", c)
			}
			got[askedFrom{c.Block, c.Reason, c.Time / 1000}] += c.Count
			gotByReason[askedFrom{reason: c.Reason, second: c.Time / 1000}] += c.Count
			rest = rest || c.Block == events.AnyBlock()
		}
		if e.end != uint64(len(flood)) || !maps.Equal(gotByReason, byReason) {
			rt.Fatalf("%d numbers of %d: %v, want %v", e.end, len(flood), gotByReason, byReason)
		}
		if rest && len(told) <= maxBlockTallies {
			rt.Fatalf("%d kinds of uses, and some are not told apart", len(told))
		}
		for k, n := range got {
			if k.block != events.AnyBlock() && (n > want[k] || n < want[k] && !rest) {
				rt.Fatalf("%v: %d, want %d", k, n, want[k])
			}
		}
	})
}

// TestUnknownFloodWhileSecondsTurn: nothing is lost or counted twice where seconds end,
// tallies are taken and the epoch closes while many goroutines count; and no scrape
// meanwhile shows fewer than the one before.
func TestUnknownFloodWhileSecondsTurn(t *testing.T) {
	log := logtest.New(t)
	l := testLedger(log, func(c *LedgerConfig) { c.MaxUses, c.BatchUses = 1<<16, 256 })
	stop := run(t, l)
	waitFor(t, func() bool { return l.Ready() == nil })
	var clock, counted atomic.Int64
	clock.Store(1_767_693_600_000)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				u := unknownUse(0)
				u.Time = events.Time(clock.Add(int64(i % 2)))
				u.IP = netip.AddrFrom4([4]byte{10, byte(g), byte(i % 16), 1})
				if _, err := l.Append(&u); errors.Is(err, ErrLedgerClosed) {
					return
				} else if err == nil || errors.Is(err, ErrSuppressed) {
					counted.Add(1)
				} else {
					t.Error(err)
				}
			}
		})
	}
	told := func() (sum uint64) {
		for _, n := range l.decided() {
			sum += n
		}
		return sum
	}
	for last := uint64(0); counted.Load() < 50_000; { // a scrape
		n := told()
		if n < last {
			t.Fatalf("%d decisions after %d", n, last)
		}
		last = n
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if n := told(); n != uint64(counted.Load()) {
		t.Errorf("%d decisions are counted, %d were made", n, counted.Load())
	}
	e := readLedger(t, log, testNode)[0]
	if !e.closed || len(e.gaps) != 0 || e.end != uint64(counted.Load()) {
		t.Fatalf("closed %v, gaps %v, %d numbers of %d", e.closed, e.gaps, e.end, counted.Load())
	}
}

// TestSealedSecondsTakeNothing: who found a counter before it was sealed, and adds to it
// after, is told to count elsewhere.
func TestSealedSecondsTakeNothing(t *testing.T) {
	var n unknowns
	n.init(&LedgerConfig{BatchUses: 8, MaxUses: 64, UnknownPerSecond: 1})
	n.setOpen(true)
	u := unknownUse(0)
	late, _ := n.at(u.Time)
	k := tallied{blockID(u.IP), u.Keyspace, u.Reason}
	for range 2 {
		if !late.count(n.seed, k, u.Time) {
			t.Fatal("an open second refuses")
		}
	}
	n.setOpen(false)
	other := tallied{0, "other", u.Reason}
	if late.count(n.seed, k, u.Time) || late.count(n.seed, other, u.Time) {
		t.Error("a sealed second counts")
	}
	if wake, open := n.count(&u); wake || open {
		t.Error("a closed ledger counts")
	}
	if c := n.drain(time.Now()); len(c) != 1 || c[0].Count != 2 || n.pending() != 0 {
		t.Errorf("%+v, %d are left", c, n.pending())
	}
}

// TestUnknownTalliesWhileTheStreamIsAway: what is held is bounded however long that
// lasts; the counts stay exact and say from when to when they were made.
func TestUnknownTalliesWhileTheStreamIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t)
		l := testLedger(log, func(c *LedgerConfig) { c.UnknownPerSecond = 4 })
		stop := run(t, l)
		synctest.Wait()
		log.SetDown(true)
		known := testUse(1) // what waits to be stored keeps tallies from being taken
		l.Append(&known)
		const seconds, blocks = 400, 64
		first := unknownUse(0).Time
		for s := range seconds {
			for b := range blocks + 1 {
				u := unknownUse(0)
				u.Time = first + events.Time(1000*s)
				u.Keyspace = events.KeyspaceID(fmt.Sprintf("a-keyspace-with-a-name-that-is-nearly-as-long-as-it-may-be%d", s*(blocks+1)+b)) // for the bound of a message
				u.IP = netip.AddrFrom16([16]byte{0x20, 1, 0xd, byte(s), byte(s >> 8), byte(b)})
				l.Append(&u)
				l.Append(&u)
			}
			time.Sleep(time.Second)
		}
		if n := len(l.unknown.sealed); n < maxSealed || n > maxSealed+2*100 {
			t.Errorf("%d tallies are held, want about %d", n, maxSealed)
		}
		log.SetDown(false)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		e := readLedger(t, log, testNode)[0]
		last, long := events.Time(0), 0
		for _, c := range e.tallies {
			last = max(last, c.Until)
			if c.Until-c.Time >= 1000 {
				long++
			}
		}
		if e.end != 1+seconds*(blocks+1)*2 || len(e.gaps) != 0 || !e.closed {
			t.Errorf("%d numbers, %d gaps", e.end, len(e.gaps))
		}
		if last != first+1000*(seconds-1) || long == 0 {
			t.Errorf("the tallies end at %v, want %v; %d are of more than a second", last, first+1000*(seconds-1), long)
		}
	})
}

func TestBlockIDIsTheBlock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ip netip.Addr
		switch rapid.IntRange(0, 3).Draw(t, "family") {
		case 1:
			ip = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "ip4")))
		case 2:
			ip = netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "ip6")))
		case 3:
			ip = netip.AddrFrom16(netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "mapped"))).As16())
		}
		if got, want := blockFor(blockID(ip)), events.BlockOf(ip); got != want {
			t.Fatalf("%v: %v, want %v", ip, got, want)
		}
	})
	if blockFor(anyBlock) != events.AnyBlock() {
		t.Error(blockFor(anyBlock))
	}
}

// TestNobodyKnowsWhichBlocksMeet: blocks whose counters begin at one place in one process
// are spread in another. Else a client could choose 64 blocks that make each look-up walk
// past all the others.
func TestNobodyKnowsWhichBlocksMeet(t *testing.T) {
	const slots = uint64(len(unknownSecond{}.slots))
	one, another := maphash.MakeSeed(), maphash.MakeSeed()
	place := func(block uint64, seed maphash.Seed) uint64 {
		k := tallied{1<<62 | block, "scribe", events.ReasonKeyUnknown}
		return k.hash(seed) % slots
	}
	meet, places := 0, map[uint64]bool{}
	for block := uint64(0); meet < maxTallies; block++ {
		if place(block, one) == place(0, one) {
			meet++
			places[place(block, another)] = true
		}
	}
	if len(places) < maxTallies/2 { // 57 on average
		t.Errorf("%d blocks that meet in one process have %d places in another", meet, len(places))
	}

	// What blocks share they share for a second: else the few uses of one block could hide
	// the many of another. It would take the budget of both, and be the only one named.
	var n unknowns
	n.init(&LedgerConfig{BatchUses: 8, MaxUses: 64, UnknownPerSecond: 1})
	n.setOpen(true)
	before, _ := n.at(1_767_693_600_000)
	after, _ := n.at(1_767_693_601_000)
	shared := 0
	for block := uint64(1<<62 + 1); block < 1<<62+100_000; block++ {
		if before.block(block) == before.block(1<<62) && after.block(block) == after.block(1<<62) {
			shared++
		}
	}
	if shared > 20 { // of 98 in the first second, 0.1 on average
		t.Errorf("%d blocks share with another for two seconds", shared)
	}
}
