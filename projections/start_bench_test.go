package projections

import (
	"errors"
	"runtime/debug"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// BenchmarkStart is what control does between its start and its answer, JetStream
// left out: both views are read from their snapshots on disk, a million keys at
// event ten million, and a tail of ten thousand events is folded by both.
func BenchmarkStart(b *testing.B) {
	const behind, tail = 10_000_000, 10_000
	snapshots := b.TempDir()
	keys, dir := NewKeys(), NewDirectory()
	foldBig(b, fanout{keys, dir})
	for keys.past.tree.Size() < behind { // events that changed nothing that is kept
		keys.past.tree.Append(tree.Hash{1})
		keys.marks.take(&keys.past.tree)
	}
	keys.past = history{at: behind, hash: events.Hash{1}, tree: keys.past.tree}
	dir.past, dir.marks = keys.past, keys.marks
	for _, v := range []View{keys, dir} {
		if _, err := Save(b.Context(), snapshots, v, testLog); err != nil {
			b.Fatal(err)
		}
	}
	log := append([]events.Recorded{{Seq: behind, Hash: events.Hash{1}}}, bigLog(million, tail)...)
	for i := range log[1:] {
		log[1+i].Seq = events.Seq(behind + 1 + i)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // as the process does while it restores
	var computed time.Duration
	for b.Loop() {
		b.StopTimer()
		keys, dir = nil, nil
		heap() // what was before is gone
		before := cpu(b)
		b.StartTimer()
		var wg sync.WaitGroup
		var kerr, derr error
		wg.Go(func() { keys, _, kerr = RestoreKeys(snapshots, testLog, behind) })
		wg.Go(func() { dir, _, derr = RestoreDirectory(snapshots, testLog, behind) })
		wg.Wait()
		if err := errors.Join(kerr, derr); err != nil {
			b.Fatal(err)
		}
		for i := 0; i < len(log); i += 256 {
			if err := (fanout{keys, dir}).Apply(log[i:min(i+256, len(log))]); err != nil {
				b.Fatal(err)
			}
		}
		if keys.At() != behind+tail || dir.Len() != million+tail {
			b.Fatalf("at %d with %d keys", keys.At(), dir.Len())
		}
		computed += cpu(b) - before
	}
	b.ReportMetric(computed.Seconds()/float64(b.N), "cpu-s/op")
}

// cpu returns the time that the process has computed: on a busy machine it says more
// than the time that passed.
func cpu(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
