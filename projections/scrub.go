package projections

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// ScrubLog is what a scrub reads. eventlog's log implements it.
type ScrubLog interface {
	// Leaves hands the subject and the SHA-256 of the document of each event from
	// first to last to take, in order, at most rate a second. An event that is gone
	// or cannot be read is a *events.CorruptError.
	Leaves(ctx context.Context, first, last events.Seq, rate int, take func(seq events.Seq, subject string, document events.Hash) error) error
	// Check reads the whole log and returns a *events.CorruptError for the first
	// event that does not continue its history.
	Check(ctx context.Context, progress func(done, total events.Seq)) error
}

// Scrubber reads the whole log again in the background, though the views start
// from snapshots, and compares it with what they were folded from: the tree over
// what it reads must have the roots that the tree of the view had. So an event
// that was applied once and cannot be read any more, or is another one now, is
// found and named wherever it stands.
type Scrubber struct {
	Log  ScrubLog
	View *Keys
	// Rate is the most events read in a second. Default 10,000: ten million events
	// in 17 minutes.
	Rate int
	// Every is the time from the end of one round to the begin of the next. Default
	// 24 hours.
	Every time.Duration
	// Begin is how far an earlier process came with its round, the zero Range for
	// none. It counts only if the view knows its root.
	Begin tree.Range
	// Keep, if not nil, is called with how far the round has come, every 65,536
	// events, and with the zero Range at its end. A failure is logged.
	Keep   func(tree.Range) error
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default()

	position, total atomic.Uint64
	complete        atomic.Int64 // when the last round ended, in Unix milliseconds
	found           atomic.Uint64
}

// keepEvery is how many marks lie between two calls of Keep.
const keepEvery = 16

// Run scrubs until ctx ends, and returns its error, or a *events.CorruptError when
// the log does not hold any more what the view was folded from.
func (s *Scrubber) Run(ctx context.Context) error {
	if s.Rate <= 0 {
		s.Rate = 10_000
	}
	if s.Every <= 0 {
		s.Every = 24 * time.Hour
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	if err := s.View.Wait(ctx, 1); err != nil {
		return err
	}
	at := s.Begin
	if root, ok := s.View.Mark(at.Size()); !ok || root != at.Root() {
		at = tree.Range{}
	}
	for {
		if err := s.round(ctx, at); err != nil {
			if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
				s.found.Add(1)
			}
			return err
		}
		at = tree.Range{}
		timer := time.NewTimer(s.Every)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

// round reads what the view has applied when it begins, after at.
func (s *Scrubber) round(ctx context.Context, at tree.Range) error {
	target := s.View.Tree()
	s.total.Store(target.Size())
	s.position.Store(at.Size())
	s.Logger.InfoContext(ctx, "the log is read again and compared with what was applied", "after", at.Size(), "to", target.Size(), "rate", s.Rate)
	err := s.Log.Leaves(ctx, events.Seq(at.Size()+1), events.Seq(target.Size()), s.Rate, func(_ events.Seq, subject string, document events.Hash) error {
		at.Append(tree.LeafHash(subject, document))
		size := at.Size()
		s.position.Store(size)
		want, marked := s.View.Mark(size)
		if !marked {
			return nil
		}
		if at.Root() != want {
			return s.altered(ctx, size-MarkEvery+1, size)
		}
		if size/MarkEvery%keepEvery == 0 {
			s.Logger.InfoContext(ctx, "the log is being read again", "done", size, "of", target.Size())
			s.keep(ctx, at)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if at != target {
		return s.altered(ctx, target.Size()/MarkEvery*MarkEvery+1, target.Size())
	}
	s.complete.Store(s.Now().UnixMilli())
	s.Logger.InfoContext(ctx, "the log holds what was applied", "events", target.Size())
	s.keep(ctx, tree.Range{})
	return nil
}

func (s *Scrubber) keep(ctx context.Context, at tree.Range) {
	if s.Keep == nil {
		return
	}
	if err := s.Keep(at); err != nil {
		s.Logger.WarnContext(ctx, "a restart will read the log from its begin again: how far it was read is not saved", "err", err)
	}
}

// altered says that one of the events is another one than the view has applied, and
// which, if the histories tell.
func (s *Scrubber) altered(ctx context.Context, first, last uint64) error {
	reason := fmt.Sprintf("one of the events %d to %d of the log is not the one that was applied here: its store was altered", first, last)
	seq := events.Seq(first)
	if corrupt := (*events.CorruptError)(nil); errors.As(s.Log.Check(ctx, nil), &corrupt) {
		seq = corrupt.Seq
		reason += "; " + corrupt.Reason
	} else {
		reason += ". Restore the log from its archive mirror or a backup, do not continue on this copy"
	}
	return &events.CorruptError{Seq: seq, Reason: reason}
}

// Collectors returns the scrubber's metrics.
func (s *Scrubber) Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		gauge("keytrail_scrub_position", "Sequence of the last event that the background check has read again.",
			func() float64 { return float64(s.position.Load()) }),
		gauge("keytrail_scrub_total", "Sequence of the last event of the running or last round of the background check.",
			func() float64 { return float64(s.total.Load()) }),
		gauge("keytrail_scrub_complete_timestamp_seconds", "When the last whole round of the background check ended, in Unix seconds; 0 before the first of this process.",
			func() float64 { return float64(s.complete.Load()) / 1000 }),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "keytrail_scrub_errors_total", Help: "Events that the background check found gone or altered. The process stops at the first."},
			func() float64 { return float64(s.found.Load()) }),
	}
}
