package projections

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/parts"
)

// Saver keeps snapshots of a view.
type Saver struct {
	View   View
	Dir    string
	Log    events.LogID
	Every  time.Duration    // between snapshots; default 5 minutes. Longer means a longer tail to fold at the next start
	Tail   uint64           // events after which the next snapshot does not wait for Every; default 500,000
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default()

	saved    atomic.Uint64             // position of the last snapshot
	savedAt  atomic.Pointer[time.Time] // when, with the steady clock; nil = never
	failures atomic.Uint64
}

// Run saves a snapshot every so often, and a last one when ctx ends. It writes none of a
// view that has not moved on since it was saved or restored, if that file is still there.
// A snapshot that cannot be saved is logged and counted: the view and the log lose
// nothing by it. So is one that is not done in nine tenths of the time that the stop
// leaves (parts.StopBy); the older snapshots stay. Run returns ctx's error.
func (s *Saver) Run(ctx context.Context) error {
	every, tail := s.Every, s.Tail
	if every <= 0 {
		every = 5 * time.Minute
	}
	if tail == 0 {
		tail = 500_000
	}
	saving, cancel := untilStopped(ctx)
	defer cancel()
	tick := time.NewTicker(min(every, saverLooks))
	defer tick.Stop()
	last, from := s.now(), uint64(s.View.Resume())
	for {
		select {
		case <-tick.C:
			if s.now().Sub(last) >= every || uint64(s.View.At()) >= from+tail {
				s.save(saving)
				last, from = s.now(), uint64(s.View.At())
			}
		case <-ctx.Done():
			if saving.Err() == nil { // else the stop has interrupted one already
				s.save(saving)
			}
			return ctx.Err()
		}
	}
}

// saverLooks is how often a saver looks how far its view has come.
const saverLooks = 10 * time.Second

// untilStopped returns a context that ends, after ctx has ended, when nine tenths of the
// time that the stop leaves are over. The last tenth is for what cannot be interrupted.
func untilStopped(ctx context.Context) (context.Context, context.CancelFunc) {
	saving, cancel := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() { // ends with saving
		left := time.NewTimer(time.Until(parts.StopBy(ctx, parts.DefaultGrace)) * 9 / 10)
		defer left.Stop()
		select {
		case <-left.C:
			cancel()
		case <-saving.Done():
		}
	})
	return saving, cancel
}

func (s *Saver) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

// save saves a snapshot unless there is one. It returns when ctx ends, also if the file
// system hangs: then nobody waits for what it still does, and the file gets no name.
func (s *Saver) save(ctx context.Context) {
	if s.View.At() == 0 || isSaved(s.Dir, s.View) {
		return
	}
	var seq events.Seq
	var err error
	done := make(chan struct{})
	go func() { // joined below, or left behind
		defer close(done)
		seq, err = Save(ctx, s.Dir, s.View, s.Log)
	}()
	select {
	case <-done:
		s.tell(ctx, seq, err)
	case <-ctx.Done():
		s.tell(ctx, 0, ctx.Err())
	}
}

// tell logs and counts what became of a snapshot.
func (s *Saver) tell(ctx context.Context, seq events.Seq, err error) {
	log := s.Logger
	if log == nil {
		log = slog.Default()
	}
	view := slog.String("view", s.View.Name())
	switch {
	case err == nil:
		s.saved.Store(uint64(seq))
		now := s.now()
		s.savedAt.Store(&now)
		log.LogAttrs(ctx, slog.LevelInfo, "snapshot saved", view, slog.Uint64("seq", uint64(seq)), slog.Int("keys", s.View.Len()))
	case ctx.Err() != nil:
		s.failures.Add(1)
		log.LogAttrs(ctx, slog.LevelWarn, "snapshot abandoned: there was no time for it before the stop; the next start begins with an older one, and folds more of the log", view)
	default:
		s.failures.Add(1)
		log.LogAttrs(ctx, slog.LevelError, "snapshot not saved", view, slog.Any("err", err))
	}
}
