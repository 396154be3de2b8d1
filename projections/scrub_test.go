package projections

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// scrubbed is a log that may be altered.
type scrubbed struct {
	log   []events.Recorded
	read  int   // events handed out
	check error // what Check finds
}

func (s *scrubbed) Leaves(ctx context.Context, first, last events.Seq, rate int, take func(events.Seq, string, events.Hash) error) error {
	for seq := first; seq <= last; seq++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r := &s.log[seq-1]
		s.read++
		if err := take(seq, r.Aggregate.Subject(), r.Hash); err != nil {
			return err
		}
	}
	return nil
}

func (s *scrubbed) Check(context.Context, func(done, total events.Seq)) error { return s.check }

// scrubWorld is a log of n events and the view of it.
func scrubWorld(t *testing.T, n int) (*scrubbed, *Keys) {
	w, v := newWorld(t), NewKeys()
	w.define("ks", definition())
	for i := 1; i < n; i++ {
		w.role("ks", "acme", events.RoleID(fmt.Sprint("r", i%50)), "read")
	}
	apply(t, v, w)
	return &scrubbed{log: w.log}, v
}

// An event that is another one now is found and named, wherever it stands; an
// unaltered log is read to its end, again and again.
func TestScrub(t *testing.T) {
	const n = 2*MarkEvery + 100
	log, v := scrubWorld(t, n)
	v = reload(t, v, LoadKeys) // the marks are in the snapshot
	if err := v.Apply(log.log[n-1:]); err != nil {
		t.Fatal(err)
	}
	for at, want := range map[int]string{
		0:             fmt.Sprintf("one of the events 1 to %d of", MarkEvery),
		MarkEvery - 1: fmt.Sprintf("one of the events 1 to %d of", MarkEvery),
		MarkEvery:     fmt.Sprintf("one of the events %d to %d of", MarkEvery+1, 2*MarkEvery),
		n - 1:         fmt.Sprintf("one of the events %d to %d of", 2*MarkEvery+1, n),
	} {
		log.log[at].Hash[7] ^= 1
		log.check = &events.CorruptError{Seq: 17, Reason: "the history is altered"}
		s := &Scrubber{Log: log, View: v, Logger: slog.New(slog.DiscardHandler)}
		err := s.Run(t.Context())
		corrupt := (*events.CorruptError)(nil)
		if !errors.As(err, &corrupt) || corrupt.Seq != 17 || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "the history is altered") || s.found.Load() != 1 {
			t.Errorf("event %d altered: %v, want %q", at+1, err, want)
		}
		log.check = nil
		if err := s.Run(t.Context()); !errors.As(err, &corrupt) || !strings.Contains(err.Error(), "Restore the log") {
			t.Errorf("event %d rewritten with its history: %v", at+1, err)
		}
		log.log[at].Hash[7] ^= 1
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Hour)
		defer cancel()
		log.read = 0
		var said bytes.Buffer
		s := &Scrubber{Log: log, View: v, Logger: slog.New(slog.NewTextHandler(&said, nil))}
		if err := s.Run(ctx); !errors.Is(err, context.DeadlineExceeded) || log.read != 3*n || s.position.Load() != n || s.complete.Load() == 0 || s.found.Load() != 0 {
			t.Errorf("%v after %d events, want three rounds of %d\n%s", err, log.read, n, said.String())
		}
	})
}

// A restart goes on where the last process was, if that can be believed.
func TestScrubGoesOn(t *testing.T) {
	const n = keepEvery*MarkEvery + 10
	log, v := scrubWorld(t, n)
	run := func(begin tree.Range) (kept []tree.Range, read int) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			log.read = 0
			s := &Scrubber{Log: log, View: v, Begin: begin, Logger: slog.New(slog.DiscardHandler), Keep: func(r tree.Range) error {
				kept = append(kept, r)
				return errors.New("only a warning")
			}}
			if err := s.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
		return kept, log.read
	}
	kept, read := run(tree.Range{})
	if len(kept) != 2 || kept[0].Size() != keepEvery*MarkEvery || kept[1] != (tree.Range{}) || read != n {
		t.Fatalf("kept %d times, %d events read", len(kept), read)
	}
	if _, read := run(kept[0]); read != 10 {
		t.Errorf("%d events were read after %d of %d", read, kept[0].Size(), n)
	}
	var other tree.Range
	for range kept[0].Size() {
		other.Append(tree.Hash{1})
	}
	if _, read := run(other); read != n {
		t.Errorf("%d events were read after what is of another log", read)
	}
}
