package checkpoint

import (
	"context"
	"fmt"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// BenchmarkGrow is what the tree costs for each event: the leaf, the hashes above it,
// and the file. Not the reading of the log, nor the two syncs of a round.
func BenchmarkGrow(b *testing.B) {
	w := newWorld()
	w.grow(1<<16, "a")
	p := w.open(b, b.TempDir(), nil)
	flat := flatLog{w.events}
	p.tree.log = flat
	b.ResetTimer()
	for have := 0; have < b.N; have += 1 << 14 {
		if err := p.tree.fill(context.Background(), uint64(have), uint64(min(b.N, have+1<<14))); err != nil {
			b.Fatal(err)
		}
	}
}

// flatLog is a log of which reading costs nothing.
type flatLog struct{ events []event }

func (flatLog) ID() (id events.LogID) { return id }

func (l flatLog) Leaves(_ context.Context, first, last events.Seq, _ int, take func(events.Seq, string, events.Hash) error) error {
	for seq := first; seq <= last; seq++ {
		e := &l.events[uint64(seq)%uint64(len(l.events))]
		if err := take(seq, e.subject, e.document); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkRound is one checkpoint of a log that grew by n events: the tree, two
// syncs, the last checkpoint verified, two signatures.
func BenchmarkRound(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprint(n, " events"), func(b *testing.B) {
			w := newWorld()
			p := w.open(b, b.TempDir(), nil)
			for b.Loop() {
				b.StopTimer()
				w.grow(n, "a")
				b.StartTimer()
				if err := p.round(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSign is the two signatures alone.
func BenchmarkSign(b *testing.B) {
	w := newWorld()
	p := w.open(b, b.TempDir(), nil)
	head := tree.Head{Origin: p.origin, Size: 1, Root: tree.Hash{1}}
	for b.Loop() {
		if _, err := p.cfg.Signer.Sign(head, p.cfg.Now()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTile serves tiles and bundles of a tree of a million events.
func BenchmarkTile(b *testing.B) {
	w := newWorld()
	w.grow(1<<20, "a")
	p := w.open(b, b.TempDir(), nil)
	if err := p.round(context.Background()); err != nil {
		b.Fatal(err)
	}
	p.cfg.Log = flatBundle{w.events}
	b.Run("hashes", func(b *testing.B) {
		i := uint64(0)
		for b.Loop() {
			if _, err := tree.ReadTile(p.tree.hashes.Load(), 1<<20, tree.Tile{Index: i % 4096, Width: tree.TileWidth}); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
	b.Run("entries", func(b *testing.B) {
		i := uint64(0)
		for b.Loop() {
			if _, err := p.bundle(context.Background(), tree.Tile{Level: tree.EntriesLevel, Index: i % 4096, Width: tree.TileWidth}); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
}

// flatBundle is flatLog with each event at its place.
type flatBundle struct{ events []event }

func (flatBundle) ID() (id events.LogID) { return id }

func (l flatBundle) Leaves(_ context.Context, first, last events.Seq, _ int, take func(events.Seq, string, events.Hash) error) error {
	for seq := first; seq <= last; seq++ {
		if err := take(seq, l.events[seq-1].subject, l.events[seq-1].document); err != nil {
			return err
		}
	}
	return nil
}
