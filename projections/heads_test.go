package projections

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// headed is what Keys and Directory have in common here.
type headed interface {
	View
	events.Follower
	Head() (events.Seq, events.Hash)
	Expect(events.Head) error
	Fingerprint(events.Seq) (events.Fingerprint, bool)
}

// roots returns the root of the tree over each beginning of the log.
func roots(log []events.Recorded) []events.Hash {
	var t tree.Range
	all := []events.Hash{events.Hash(t.Root())}
	for i := range log {
		t.Append(tree.LeafHash(log[i].Aggregate.Subject(), log[i].Hash))
		all = append(all, events.Hash(t.Root()))
	}
	return all
}

// longWorld is a log of n events.
func longWorld(t *testing.T, n int) *world {
	w := newWorld(t)
	w.define("ks", definition())
	for len(w.log) < n {
		w.role("ks", "acme", events.RoleID(fmt.Sprint("r", len(w.log)%50)), "read")
	}
	return w
}

func eachView(t *testing.T, f func(t *testing.T, empty func() headed, again func(headed) headed)) {
	t.Run("keys", func(t *testing.T) {
		f(t, func() headed { return NewKeys() }, func(v headed) headed { return reload(t, v.(*Keys), LoadKeys) })
	})
	t.Run("directory", func(t *testing.T) {
		f(t, func() headed { return NewDirectory() }, func(v headed) headed { return reload(t, v.(*Directory), LoadDirectory) })
	})
}

// wantForeign checks that the view has refused a head at the size, and says nothing
// any more.
func wantForeign(t rapid.TB, v headed, err error, size events.Seq, roots ...events.Hash) {
	t.Helper()
	corrupt := (*events.CorruptError)(nil)
	if !errors.As(err, &corrupt) || corrupt.Seq != size {
		t.Fatalf("%v, want a CorruptError at %d", err, size)
	}
	for _, r := range roots {
		if !strings.Contains(err.Error(), r.String()[:16]) {
			t.Errorf("%v: does not name %.16s", err, r)
		}
	}
	if at, root := v.Head(); v.At() != 0 || at != 0 || !root.IsZero() {
		t.Errorf("a view of another history says that it stands at %d", v.At())
	}
	if again := v.Expect(events.Head{Size: 1}); again == nil {
		t.Error("a view of another history expects something")
	}
}

// A view knows its root wherever it stands, in whatever batches it got there, and
// across snapshots. It takes every head of its own log, and refuses each other of
// which it knows the root: at once, or when it gets there, before it says so.
func TestHeads(t *testing.T) {
	w := longWorld(t, 600)
	want := roots(w.log)
	eachView(t, func(t *testing.T, empty func() headed, again func(headed) headed) {
		rapid.Check(t, func(t *rapid.T) {
			v := empty()
			at := 0
			expect := func(size int, other bool) bool { // reports whether the view is at its end
				h := events.Head{Size: events.Seq(size), Root: want[size]}
				if other {
					h.Root[5] ^= 1
				}
				err := v.Expect(h)
				if !other || size > at {
					if err != nil {
						t.Fatalf("at %d, a head of %d: %v", at, size, err)
					}
					return false
				}
				if err == nil { // its root is not known
					if _, known := foldOf(v).rootAt(h.Size); known {
						t.Fatalf("at %d, another head of %d is taken", at, size)
					}
					return false
				}
				wantForeign(t, v, err, h.Size, want[size], h.Root)
				return true
			}
			other := 0 // the first head of another history that the view must meet
			for range 12 {
				switch rapid.IntRange(0, 5).Draw(t, "what") {
				case 0:
					if expect(rapid.IntRange(0, at).Draw(t, "behind"), rapid.Bool().Draw(t, "other")) {
						return
					}
				case 1:
					size := rapid.IntRange(at, len(w.log)).Draw(t, "ahead")
					is := rapid.IntRange(0, 3).Draw(t, "other") == 0
					if expect(size, is) {
						return
					}
					if is && size > at && (other == 0 || size < other) {
						other = size
					}
				case 2:
					if at > 0 && other == 0 {
						v = again(v)
						if v.At() != 0 {
							t.Fatal("not proven, and at", v.At())
						}
						if rapid.Bool().Draw(t, "at once") && expect(at, true) {
							return
						}
						if err := v.Apply(w.log[at-1 : at]); err != nil {
							t.Fatal(err)
						}
					}
				default:
					to := min(len(w.log), at+rapid.SampledFrom([]int{1, 2, 100, 129, 300}).Draw(t, "events"))
					if to == at {
						continue
					}
					err := v.Apply(w.log[at:to])
					if other > 0 && other <= to {
						wantForeign(t, v, err, events.Seq(other), want[other])
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					at = to
				}
				if size, root := v.Head(); size != events.Seq(at) || size != v.At() || at > 0 && root != want[at] {
					t.Fatalf("at %d with root %s, want %d with %s", size, root, at, want[at])
				}
			}
		})
	})
}

func foldOf(v headed) *fold {
	if k, ok := v.(*Keys); ok {
		return &k.fold
	}
	return &v.(*Directory).fold
}

// Of what came live the root after each event is known, of what was read in bulk
// that at the end of each batch and those that were asked for before; so also after
// the ring has turned.
func TestRecentHeads(t *testing.T) {
	const live, n = 200, recentHeads + 500
	w := longWorld(t, n)
	want := roots(w.log)
	eachView(t, func(t *testing.T, empty func() headed, again func(headed) headed) {
		v := empty()
		if err := errors.Join(v.Expect(events.Head{Size: 77, Root: want[77]}), v.Apply(w.log[:n-live]), v.Apply(w.log[n-live:n-live+100]), v.Apply(w.log[n-live+100:])); err != nil {
			t.Fatal(err)
		}
		f := foldOf(v)
		for size := range n + 1 {
			root, ok := f.rootAt(events.Seq(size))
			if ok != (size >= n-live || size == 77 || size == 0 || size == MarkEvery) || ok && root != want[size] {
				t.Errorf("root at %d of %d: %s, %t", size, n, root, ok)
			}
		}
		v = empty()
		for i := range w.log {
			if err := v.Apply(w.log[i : i+1]); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 { // restarts
			f = foldOf(v)
			for size := range n + 1 {
				if root, ok := f.rootAt(events.Seq(size)); ok != (size > n-recentHeads || size == 0) || ok && root != want[size] {
					t.Errorf("root at %d of %d: %s, %t", size, n, root, ok)
				}
			}
			v = again(v)
			if err := v.Apply(w.log[n-1:]); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// More heads than a view waits for: the last of them says as much.
func TestManyDueHeads(t *testing.T) {
	w := longWorld(t, 100)
	want := roots(w.log)
	eachView(t, func(t *testing.T, empty func() headed, _ func(headed) headed) {
		v := empty()
		for size := 1; size <= 100; size++ {
			h := events.Head{Size: events.Seq(size), Root: want[size]}
			if size > 90 {
				h.Root[0] ^= 1
			}
			if err := v.Expect(h); err != nil {
				t.Fatal(err)
			}
		}
		wantForeign(t, v, v.Apply(w.log), 100)
	})
}
