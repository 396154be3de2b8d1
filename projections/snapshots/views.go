package snapshots

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/files"
	"github.com/keytrail/keytrail/projections"
)

// Views are the views of a process, and where their snapshots are kept. What Savers and
// Store do must run as long as the views are followed.
type Views struct {
	Keys      *projections.Keys
	Directory *projections.Directory // nil where nobody asked for it
	Store     *Store                 // nil where no snapshots are kept
	Savers    []*projections.Saver   // one for each view; none where no snapshots are kept
}

// All returns the views.
func (v *Views) All() []projections.View {
	if v.Directory == nil {
		return []projections.View{v.Keys}
	}
	return []projections.View{v.Keys, v.Directory}
}

// Proven returns nil if the views may be sent on, else why not (S3).
func (v *Views) Proven() error {
	if v.Store == nil {
		return nil
	}
	return v.Store.Proven()
}

// Restore returns the views of a process, each from the newest good snapshot in
// cfg.Dir, or from another node's where that has none (Fetch), or empty. Without a
// directory they are empty. The directory is made if it is not there. The Directory
// comes with them if it is asked for.
//
// A snapshot that is ahead of the log means that the log has lost events: the error is
// an *events.CorruptError. Other errors are ctx's, the log's, and those of a directory
// that cannot be used or is not safe (files.MakeDataDir).
func Restore(ctx context.Context, cfg Config, directory bool) (*Views, error) {
	v := &Views{Keys: projections.NewKeys()}
	if directory {
		v.Directory = projections.NewDirectory()
	}
	if cfg.Dir == "" {
		return v, nil
	}
	if err := files.MakeDataDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("directory of snapshots: %w", err)
	}
	var err error
	if v.Store, err = Open(cfg); err != nil {
		return nil, err
	}
	if err := v.own(ctx, &cfg); err != nil {
		return nil, err
	}
	if v.Keys, err = orFetched(ctx, v.Store, v.Keys, projections.LoadKeys); err == nil && directory {
		v.Directory, err = orFetched(ctx, v.Store, v.Directory, projections.LoadDirectory)
	}
	if err != nil {
		return nil, err
	}
	for _, view := range v.All() {
		v.Savers = append(v.Savers, &projections.Saver{View: view, Dir: cfg.Dir, Log: cfg.Log.ID(), Logger: cfg.Logger})
	}
	return v, nil
}

// orFetched returns the view, or that of another node if it would begin with the first
// event.
func orFetched[V View](ctx context.Context, s *Store, v V, load func(io.Reader, events.LogID) (V, error)) (V, error) {
	if v.Resume() == 0 {
		other, ok, err := Fetch(ctx, s, load)
		if err != nil {
			return v, err
		}
		if ok {
			v = other
		}
	}
	return v, s.Watch(v)
}

// own restores the views from the snapshots that this node has made.
func (v *Views) own(ctx context.Context, cfg *Config) error {
	last, err := cfg.Log.Last(ctx)
	if err != nil {
		return err
	}
	for {
		err := v.at(last, cfg)
		ahead, ok := errors.AsType[*events.CorruptError](err)
		if !ok {
			return err
		}
		// A snapshot ahead of the log: events are lost, or the leader's answer was behind.
		if last, err = cfg.Log.LastAtLeast(ctx, ahead.Seq); err != nil {
			return err
		}
		if last < ahead.Seq {
			return ahead
		}
	}
}

// collecting is held while a restore has changed how the process collects: another one
// beside it would take the change for what was there before, and leave it.
var collecting sync.Mutex

// at restores the views for a log that ends at last.
func (v *Views) at(last events.Seq, cfg *Config) error {
	collecting.Lock()
	defer collecting.Unlock()
	// What a restore allocates stays, so collecting meanwhile frees nothing: it took a
	// sixth of the start's computing.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var g errgroup.Group
	g.Go(func() (err error) {
		v.Keys, err = restored(projections.RestoreKeys, last, cfg)
		return err
	})
	if v.Directory != nil {
		g.Go(func() (err error) {
			v.Directory, err = restored(projections.RestoreDirectory, last, cfg)
			return err
		})
	}
	return g.Wait()
}

// restored calls restore, and logs what it did.
func restored[V projections.View](restore func(string, events.LogID, events.Seq) (V, []error, error), last events.Seq, cfg *Config) (V, error) {
	began := time.Now()
	v, refused, err := restore(cfg.Dir, cfg.Log.ID(), last)
	for _, r := range refused {
		cfg.Logger.Warn("snapshot passed over", "err", r)
	}
	if err == nil && v.Resume() > 0 {
		cfg.Logger.Info("view restored from a snapshot", "view", v.Name(), "seq", uint64(v.Resume()), "keys", v.Len(), "took", time.Since(began).Round(time.Millisecond))
	}
	return v, err
}

// Sender returns what serves the views to new nodes.
func (v *Views) Sender(log events.LogID, logger *slog.Logger) *Sender {
	return &Sender{Log: log, Views: v.All(), Proven: v.Proven, Logger: logger}
}
