package snapshots

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

// A source is left when it has not begun to send within stall, or sends less than
// leastSent bytes in that time. Sources that say that they are busy are asked again after
// busyPause, busyRounds times.
const (
	stall      = 10 * time.Second
	leastSent  = 4 << 20
	busyPause  = 2 * time.Second
	busyRounds = 5
)

// Fetch returns the view of the first source that has a snapshot of it whose head lies in
// the log (S1), stored in the directory; ok is false when there is none, and the log says
// why for each. load is projections.LoadKeys or LoadDirectory. The error is ctx's, or
// says that a snapshot that is not used cannot be removed: the next start would use it.
func Fetch[V View](ctx context.Context, s *Store, load func(io.Reader, events.LogID) (V, error)) (v V, ok bool, err error) {
	left := slices.DeleteFunc(slices.Clone(s.cfg.Sources), func(src Source) bool { return s.refuses(src, v.Name()) })
	for round := 0; len(left) > 0; round++ {
		var busy []Source
		for _, src := range left {
			began := time.Now()
			v, err := fetchFrom(ctx, s, src, load)
			if err == nil {
				s.cfg.Logger.InfoContext(ctx, "snapshot fetched", "view", v.Name(), "seq", uint64(v.Resume()), "keys", v.Len(), "from", src.URL, "took", time.Since(began).Round(time.Millisecond))
				return v, true, nil
			}
			if err := s.drop(v.Name()); err != nil || ctx.Err() != nil {
				return v, false, cmp.Or(ctx.Err(), err)
			}
			if p, isProblem := errors.AsType[*api.Problem](err); isProblem && p.Code == codeBusy && round < busyRounds {
				busy = append(busy, src)
				continue
			}
			s.cfg.Logger.WarnContext(ctx, "no snapshot from this source", "view", v.Name(), "from", src.URL, "err", err)
		}
		if left = busy; len(left) > 0 {
			select {
			case <-time.After(busyPause):
			case <-ctx.Done():
				return v, false, ctx.Err()
			}
		}
	}
	if len(s.cfg.Sources) > 0 {
		s.cfg.Logger.WarnContext(ctx, "no source has a snapshot that can be used: the log is read from its first event", "view", v.Name())
	}
	return v, false, nil
}

// refuses reports whether an earlier snapshot of the source was wrong.
func (s *Store) refuses(src Source, view string) bool {
	i := slices.IndexFunc(s.refused, func(f fetched) bool { return f.from == src.URL })
	if i >= 0 {
		s.cfg.Logger.Warn("a source is not asked: its snapshot did not say what the log says; when you know why, remove the file "+refusedFile,
			"view", view, "from", src.URL, "seq", uint64(s.refused[i].seq), "dir", s.cfg.Dir)
	}
	return i >= 0
}

func fetchFrom[V View](ctx context.Context, s *Store, src Source, load func(io.Reader, events.LogID) (V, error)) (v V, err error) {
	name := v.Name()
	transfer, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var in arriving
	defer in.watch(cancel)()
	body, err := src.Get(transfer, "/v1/snapshots/"+name)
	if err == nil {
		defer body.Close()
		in.r = body
		v, err = projections.Receive(ctx, s.cfg.Dir, &in,
			func(r io.Reader) (V, error) { return load(r, s.cfg.Log.ID()) },
			func(v V, sum events.Hash) error {
				in.ended.Store(true)
				if err := s.inLog(ctx, v); err != nil {
					return err
				}
				past, _ := v.Past()
				return s.add(fetched{view: name, seq: v.Resume(), root: events.Hash(past.Root()), sum: sum, from: src.URL})
			})
	}
	if err == nil {
		return v, nil
	}
	if cause := context.Cause(transfer); cause != nil && ctx.Err() == nil {
		err = cause
	}
	return v, err
}

// add notes, durably, that a snapshot is about to be used whose rows are not proven (S4).
func (s *Store) add(f fetched) error {
	s.unproven = append(slices.DeleteFunc(slices.Clone(s.unproven), func(g fetched) bool { return g.view == f.view }), f)
	return s.keep()
}

// arriving counts what comes of a transfer.
type arriving struct {
	r     io.Reader
	n     atomic.Int64
	ended atomic.Bool
}

func (a *arriving) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	a.n.Add(int64(n))
	if err != nil {
		a.ended.Store(true)
	}
	return n, err
}

// watch ends the transfer when too little of it comes. It watches until stop is called.
func (a *arriving) watch(cancel context.CancelCauseFunc) (stop func()) {
	tick := time.NewTicker(stall)
	done := make(chan struct{})
	go func() { // joined by stop
		defer tick.Stop()
		for before := int64(0); ; {
			select {
			case <-tick.C:
			case done <- struct{}{}:
				return
			}
			now := a.n.Load()
			if now-before < leastSent && !a.ended.Load() {
				cancel(fmt.Errorf("it sent %d bytes in %v: want %d", now-before, stall, leastSent))
			}
			before = now
		}
	}()
	return func() { <-done }
}
