package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/internal/files"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/projections/snapshots"
)

// controls reports whether the role has the write side, and so the directory.
func (c nodeConfig) controls() bool { return c.Role == "control" || c.Role == "up" }

// restoreViews loads the newest good snapshot of each view of the role, or fetches one
// from another node, or begins with an empty view. A snapshot that is ahead of the log
// means that the log has lost events, and is refused. dir is nil where the role does not
// control, fetched where no snapshots are kept.
func restoreViews(ctx context.Context, log *eventlog.Log, cfg nodeConfig, logger *slog.Logger) (keys *projections.Keys, dir *projections.Directory, fetched *snapshots.Store, err error) {
	if cfg.Dir == "" {
		if cfg.controls() {
			dir = projections.NewDirectory()
		}
		return projections.NewKeys(), dir, nil, nil
	}
	if err := files.MakeDataDir(cfg.Dir); err != nil {
		return nil, nil, nil, fmt.Errorf("directory of snapshots: %w", err)
	}
	if fetched, err = snapshots.Open(snapshots.Config{Dir: cfg.Dir, Log: log, Sources: cfg.Sources, Logger: logger}); err != nil {
		return nil, nil, nil, err
	}
	if keys, dir, err = restoreOwn(ctx, log, cfg, logger); err != nil {
		return nil, nil, nil, err
	}
	if keys, err = orFetched(ctx, fetched, keys, projections.LoadKeys); err == nil && dir != nil {
		dir, err = orFetched(ctx, fetched, dir, projections.LoadDirectory)
	}
	return keys, dir, fetched, err
}

// orFetched returns the view, or that of another node if it would begin with the first
// event.
func orFetched[V snapshots.View](ctx context.Context, s *snapshots.Store, v V, load func(io.Reader, events.LogID) (V, error)) (V, error) {
	if v.Resume() == 0 {
		other, ok, err := snapshots.Fetch(ctx, s, load)
		if err != nil {
			return v, err
		}
		if ok {
			v = other
		}
	}
	return v, s.Watch(v)
}

// restoreOwn loads the snapshots that this node has made.
func restoreOwn(ctx context.Context, log *eventlog.Log, cfg nodeConfig, logger *slog.Logger) (keys *projections.Keys, dir *projections.Directory, err error) {
	last, err := log.Last(ctx)
	if err != nil {
		return nil, nil, err
	}
	for {
		keys, dir, err = viewsAt(log.ID(), last, cfg, logger)
		ahead, ok := errors.AsType[*events.CorruptError](err)
		if !ok {
			return keys, dir, err
		}
		// A snapshot ahead of the log: events are lost, or the leader's answer was behind.
		if last, err = log.LastAtLeast(ctx, ahead.Seq); err != nil {
			return nil, nil, err
		}
		if last < ahead.Seq {
			return nil, nil, ahead
		}
	}
}

func viewsAt(log events.LogID, last events.Seq, cfg nodeConfig, logger *slog.Logger) (keys *projections.Keys, dir *projections.Directory, err error) {
	// What a restore allocates stays, so collecting meanwhile frees nothing: it took a
	// sixth of the start's computing.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	var g errgroup.Group
	g.Go(func() (err error) {
		keys, err = restored(projections.RestoreKeys)(cfg.Dir, log, last, logger)
		return err
	})
	if cfg.controls() {
		g.Go(func() (err error) {
			dir, err = restored(projections.RestoreDirectory)(cfg.Dir, log, last, logger)
			return err
		})
	}
	err = g.Wait()
	return keys, dir, err
}

// restored is restore with what it did in the process's log.
func restored[V projections.View](restore func(string, events.LogID, events.Seq) (V, []error, error)) func(string, events.LogID, events.Seq, *slog.Logger) (V, error) {
	return func(dir string, id events.LogID, last events.Seq, logger *slog.Logger) (V, error) {
		began := time.Now()
		v, refused, err := restore(dir, id, last)
		for _, r := range refused {
			logger.Warn("snapshot passed over", "err", r)
		}
		if err == nil && v.Resume() > 0 {
			logger.Info("view restored from a snapshot", "view", v.Name(), "seq", uint64(v.Resume()), "keys", v.Len(), "took", time.Since(began).Round(time.Millisecond))
		}
		return v, err
	}
}

// scrub adds the background check of the log, once no view follows from a snapshot that
// is not proven: what would differ might be the view. How far it is stays in dir, if there
// is one, so that a process that is often restarted comes to the end of the log.
func (n *node) scrub(dir string, fetched *snapshots.Store) {
	s := &projections.Scrubber{Log: n.log, View: n.keys, Logger: n.logger}
	if dir != "" {
		file := filepath.Join(dir, scrubFile)
		var err error
		if s.Begin, err = readScrub(file, n.log.ID()); err != nil {
			n.logger.Warn("the background check begins at the first event", "err", err)
		}
		s.Keep = func(r tree.Range) error { return files.Write(file, formatScrub(n.log.ID(), &r)) }
	}
	n.server.Registry.MustRegister(s.Collectors()...)
	n.group.Go("scrub", func(ctx context.Context) error {
		if fetched != nil {
			if err := fetched.Wait(ctx); err != nil {
				return err
			}
		}
		return s.Run(ctx)
	})
}

// scrubFile holds how far the log was read again: a line for the form, the log's id,
// and the compact range of the tree up to there in base64. Nothing is believed of it
// that the view does not confirm.
const (
	scrubFile = "scrub"
	scrubForm = "keytrail scrub 1"
)

func formatScrub(id events.LogID, r *tree.Range) []byte {
	b, _ := r.MarshalBinary() // never fails
	return fmt.Appendf(nil, "%s\n%s\n%s\n", scrubForm, id, base64.StdEncoding.EncodeToString(b))
}

// readScrub returns the zero Range for a file that is not there or of another log.
func readScrub(file string, id events.LogID) (r tree.Range, err error) {
	text, err := files.ReadOwn(file)
	if err != nil || text == "" {
		return r, err
	}
	return parseScrub(text, id)
}

func parseScrub(text string, id events.LogID) (r tree.Range, err error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 3 || lines[0] != scrubForm {
		return r, fmt.Errorf("%s: want the lines %q, a log's id and a compact range; delete it", scrubFile, scrubForm)
	}
	if lines[1] != id.String() {
		return r, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err == nil {
		err = r.UnmarshalBinary(b)
	}
	if err != nil {
		return tree.Range{}, fmt.Errorf("%s: %w; delete it", scrubFile, err)
	}
	return r, nil
}
