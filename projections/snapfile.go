package projections

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/keytrail/keytrail/events"
)

// KeepSnapshots is how many snapshots stay in a directory.
const KeepSnapshots = 3

// View is a view that keeps snapshots: Keys and Directory.
type View interface {
	// At returns the position.
	At() events.Seq
	// Resume returns where the fold stands, proven or not.
	Resume() events.Seq
	// Len returns the number of keys.
	Len() int
	// Snapshot writes the view as of its position to w and returns the position.
	Snapshot(w io.Writer, log events.LogID) (events.Seq, error)
	// Export writes what Snapshot does for another process (P10).
	Export(w io.Writer, log events.LogID) (events.Seq, error)
	// Name tells the views of one process apart, in file names and metrics.
	Name() string
}

// Name implements View.
func (v *Keys) Name() string { return keysName }

// Name implements View.
func (d *Directory) Name() string { return directoryName }

const (
	keysName      = "keys"
	directoryName = "directory"
)

// Save writes a snapshot of v into dir (made if need be) and removes all but the
// newest KeepSnapshots of this view. On return the file is durable; a crash at any
// point leaves the files that were there, and at most a temporary one that the
// next call removes. One process at a time may save into a directory.
func Save(dir string, v View, log events.LogID) (events.Seq, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("save snapshot: %w", err)
	}
	seq, err := writeFile(dir, v.Name(), func(w io.Writer) (events.Seq, error) { return v.Snapshot(w, log) })
	if err != nil {
		return seq, fmt.Errorf("save snapshot: %w", err)
	}
	return seq, nil
}

// writeFile makes what write writes a snapshot of the view in dir, at the position that
// write returns, and removes what Save says.
func writeFile(dir, view string, write func(io.Writer) (events.Seq, error)) (seq events.Seq, err error) {
	temp := "." + view + "-*.tmp"
	stale, _ := filepath.Glob(filepath.Join(dir, temp)) // the pattern is well-formed
	f, err := os.CreateTemp(dir, temp)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if seq, err = write(f); err != nil {
		return 0, err
	}
	if err = f.Sync(); err != nil {
		return 0, err
	}
	if err = f.Close(); err != nil {
		return 0, err
	}
	// crash here: a temporary file that nobody reads. Not before Sync: the name
	// must never stand for a file without its bytes.
	if err = os.Rename(f.Name(), filepath.Join(dir, fmt.Sprintf("%s-%020d.snap", view, seq))); err != nil {
		return 0, err
	}
	if err = syncDir(dir); err != nil {
		return 0, err
	}
	// crash here: the new snapshot is durable; old ones stay until the next call.
	old := snapshotFiles(dir, view)
	for _, path := range append(stale, old[min(len(old), KeepSnapshots):]...) {
		if err := os.Remove(path); err != nil {
			return seq, fmt.Errorf("remove old snapshot: %w", err)
		}
	}
	return seq, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// snapshotFiles returns the view's snapshots in dir, the newest first: the name
// holds the position with leading zeros.
func snapshotFiles(dir, view string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, view+"-*.snap")) // the pattern is well-formed
	slices.Sort(paths)
	slices.Reverse(paths)
	return paths
}

// RestoreKeys returns the view of the newest snapshot in dir that can be read, or
// an empty view when there is none. Snapshots that cannot be read are passed
// over and named in refused: nothing is lost by it but time, the log has it all.
// last is where the log ends: a sound snapshot of the same log that is newer
// means that the log has lost events, which is a *events.CorruptError. Whether the
// log still holds the event that the snapshot ends with is for Follow to show (P8).
func RestoreKeys(dir string, log events.LogID, last events.Seq) (v *Keys, refused []error, err error) {
	return restore(dir, keysName, log, last, NewKeys, LoadKeys)
}

// RestoreDirectory is RestoreKeys for control's view.
func RestoreDirectory(dir string, log events.LogID, last events.Seq) (d *Directory, refused []error, err error) {
	return restore(dir, directoryName, log, last, NewDirectory, LoadDirectory)
}

func restore[V View](dir, view string, log events.LogID, last events.Seq, empty func() V, load func(io.Reader, events.LogID) (V, error)) (v V, refused []error, err error) {
	for _, path := range snapshotFiles(dir, view) {
		v, err := loadFile(path, log, load)
		if err != nil {
			refused = append(refused, err)
			continue
		}
		if at := v.Resume(); at > last {
			return v, refused, &events.CorruptError{Seq: last + 1, Reason: fmt.Sprintf("the log ends at event %d, but snapshot %s was made of it at event %d: "+
				"the log has lost events; restore it from its archive mirror or a backup, do not continue on this copy", last, path, at)}
		}
		return v, refused, nil
	}
	return empty(), refused, nil
}

func loadFile[V View](path string, log events.LogID, load func(io.Reader, events.LogID) (V, error)) (v V, err error) {
	f, err := os.Open(path)
	if err != nil {
		return v, err
	}
	defer f.Close() // read only
	if v, err = load(f, log); err != nil {
		return v, fmt.Errorf("%s: %w; delete it, the view is folded from the log, or connect to the log that it belongs to", path, err)
	}
	return v, nil
}

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

// Run saves a snapshot every so often when the view has moved on, and a last one
// when ctx ends. A snapshot that cannot be saved is logged and counted: the view
// and the log lose nothing by it. It returns ctx's error.
func (s *Saver) Run(ctx context.Context) error {
	every, tail := s.Every, s.Tail
	if every <= 0 {
		every = 5 * time.Minute
	}
	if tail == 0 {
		tail = 500_000
	}
	tick := time.NewTicker(min(every, saverLooks))
	defer tick.Stop()
	last, from := s.now(), uint64(s.View.Resume())
	for {
		select {
		case <-tick.C:
			if s.now().Sub(last) >= every || uint64(s.View.At()) >= from+tail {
				s.save(ctx)
				last, from = s.now(), uint64(s.View.At())
			}
		case <-ctx.Done():
			s.save(ctx)
			return ctx.Err()
		}
	}
}

// saverLooks is how often a saver looks how far its view has come.
const saverLooks = 10 * time.Second

func (s *Saver) now() time.Time {
	if s.Now == nil {
		return time.Now()
	}
	return s.Now()
}

func (s *Saver) save(ctx context.Context) {
	if at := s.View.At(); at == 0 || at == events.Seq(s.saved.Load()) {
		return
	}
	log := s.Logger
	if log == nil {
		log = slog.Default()
	}
	seq, err := Save(s.Dir, s.View, s.Log)
	if err != nil {
		s.failures.Add(1)
		log.LogAttrs(ctx, slog.LevelError, "snapshot not saved", slog.String("view", s.View.Name()), slog.Any("err", err))
		return
	}
	s.saved.Store(uint64(seq))
	now := s.now()
	s.savedAt.Store(&now)
	log.LogAttrs(ctx, slog.LevelInfo, "snapshot saved", slog.String("view", s.View.Name()), slog.Uint64("seq", uint64(seq)), slog.Int("keys", s.View.Len()))
}
