package projections

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
)

// written returns the world's log as it was restored from a copy of its first events
// and written on.
func written(t *testing.T, log []events.Recorded, parted, n int) []events.Recorded {
	w := newWorld(t)
	w.log = append([]events.Recorded(nil), log[:parted]...)
	for i := range w.log {
		r := &w.log[i]
		w.chains[r.Aggregate] = events.Chain{Rev: r.Rev, Seq: r.Seq, Head: r.Hash}
	}
	for len(w.log) < n {
		w.role("ks", "acme", events.RoleID(fmt.Sprint("other", len(w.log)%50)), "read")
	}
	return w.log
}

// naive is the fingerprint of a log at seq by its definition.
func naive(log []events.Recorded, seq int) events.Fingerprint {
	var event, root events.Hash
	if seq > 0 {
		event = log[seq-1].Hash
	}
	if mark := seq / 4096 * 4096; mark > 0 {
		root = roots(log[:mark])[mark]
	}
	return events.NewFingerprint(event, root)
}

// A view tells the positions of its own history from those of one that parted from
// it, however it came to where it stands. What both have in common is of both.
func TestPositionsOfAnotherHistory(t *testing.T) {
	const n = MarkEvery + 700
	w := longWorld(t, n)
	parted := []int{3, 900, MarkEvery - 1, MarkEvery, n - 300}
	prints := map[int][]events.Fingerprint{}
	for _, at := range append(parted, n) {
		log := written(t, w.log, at, n)
		for seq := range n + 1 {
			prints[at] = append(prints[at], events.NewFingerprint(eventAt(log, seq), events.Hash{}))
		}
		mark := naive(log, MarkEvery)
		for seq := MarkEvery; seq <= n; seq++ {
			copy(prints[at][seq][4:], mark[4:])
		}
	}
	for _, seq := range []int{0, 1, MarkEvery - 1, MarkEvery, MarkEvery + 1, n} {
		if prints[n][seq] != naive(w.log, seq) {
			t.Fatal("the prints of the test are wrong")
		}
	}
	eachView(t, func(t *testing.T, empty func() headed, again func(headed) headed) {
		rapid.Check(t, func(t *rapid.T) {
			v, at := empty(), 0
			for at < n {
				to := min(n, at+rapid.SampledFrom([]int{1, 50, 128, 129, 2000}).Draw(t, "events"))
				if at > 0 && rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
					v = again(v)
					at--
				}
				if err := v.Apply(w.log[at:to]); err != nil {
					t.Fatal(err)
				}
				at = to
				seq := rapid.IntRange(0, n).Draw(t, "seq")
				got, ok := v.Fingerprint(events.Seq(seq))
				if ok != (seq <= at) || ok && got != prints[n][seq] {
					t.Fatalf("at %d: the print of %d is %x, %t; want %x", at, seq, got, ok, prints[n][seq])
				}
				if !foldOf(v).holds(events.Position{Seq: events.Seq(at), History: prints[n][at]}) {
					t.Fatalf("at %d it does not hold its own position", at)
				}
				other := rapid.SampledFrom(parted).Draw(t, "parted")
				if held := foldOf(v).holds(events.Position{Seq: events.Seq(seq), History: prints[other][seq]}); held != (seq <= at && seq <= other) {
					t.Fatalf("at %d, %d of a history that parted at %d: %t", at, seq, other, held)
				}
			}
		})
	})
}

func eventAt(log []events.Recorded, seq int) (h events.Hash) {
	if seq > 0 {
		h = log[seq-1].Hash
	}
	return h
}

// Beyond the prints that are kept, the root at the last mark is compared.
func TestPositionsOlderThanThePrints(t *testing.T) {
	w := longWorld(t, 50)
	v := NewKeys()
	if err := v.Apply(w.log); err != nil {
		t.Fatal(err)
	}
	f := &v.fold
	for f.past.at < 2*keptPrints+MarkEvery+7 { // events that changed nothing that is kept
		h := events.Hash{byte(f.past.at), byte(f.past.at >> 8), byte(f.past.at >> 16)}
		f.past.at++
		f.past.tree.Append([32]byte(h))
		f.marks.take(&f.past.tree)
		f.prints.take(h)
	}
	f.past.hash = events.Hash{1}
	f.tell()
	for _, v := range []*Keys{v, reload(t, v, LoadKeys)} {
		at := v.past.at
		oldest := at
		for ; ; oldest-- {
			if _, ok := v.Fingerprint(oldest); !ok {
				break
			}
		}
		if kept := at - oldest; kept < keptPrints || kept > 2*keptPrints {
			t.Errorf("%d prints are kept", kept)
		}
		root, _ := v.marks.root(oldest)
		p := events.Position{Seq: oldest, History: events.NewFingerprint(events.Hash{9}, root)}
		if !v.Holds(p) {
			t.Error("an old position of this history is refused")
		}
		if p.History[7] ^= 1; v.Holds(p) {
			t.Error("an old position with another root is held")
		}
		p = events.Position{Seq: at - keptPrints + 1, History: events.NewFingerprint(events.Hash{9}, root)}
		if v.Holds(p) {
			t.Error("another event is held where the prints are kept")
		}
	}
}

// A floor that was raised on the restored copy, and lies before the event that a
// snapshot ends with, is refused by the view that the snapshot is of: it knows its
// past as it did before the restart.
func TestRestoredViewsRefuseAFloorBehindThem(t *testing.T) {
	const n, parted = 60, 40
	w := longWorld(t, n)
	other := roots(written(t, w.log, parted, n))
	mine := roots(w.log)
	eachView(t, func(t *testing.T, empty func() headed, again func(headed) headed) {
		for size := 1; size < n; size++ {
			v := empty()
			for i := range w.log {
				if err := v.Apply(w.log[i : i+1]); err != nil {
					t.Fatal(err)
				}
			}
			v = again(v)
			err := v.Expect(events.Head{Size: events.Seq(size), Root: other[size]})
			if size <= parted {
				if err != nil {
					t.Fatalf("a floor at %d, before the histories parted: %v", size, err)
				}
				continue
			}
			wantForeign(t, v, err, events.Seq(size), mine[size], other[size])
			if err := v.Apply(w.log[n-1:]); err == nil || v.At() != 0 {
				t.Fatalf("at %d, %v", v.At(), err)
			}
		}
	})
}
