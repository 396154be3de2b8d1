package projections

import (
	"context"
	"errors"
	"fmt"
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

// The name holds the position with leading zeros: the order of names is the
// order of positions.
const (
	snapName = "keys-%020d.snap"
	snapGlob = "keys-*.snap"
	tempGlob = ".keys-*.tmp"
)

// SaveFile writes a snapshot into dir (made if need be) and removes all but the
// newest KeepSnapshots. On return the file is durable; a crash at any point
// leaves the files that were there, and at most a temporary one that the next
// call removes. One process at a time may save into a directory.
func (v *Keys) SaveFile(dir string, log events.LogID) (events.Seq, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("save snapshot: %w", err)
	}
	stale, _ := filepath.Glob(filepath.Join(dir, tempGlob)) // the pattern is well-formed
	seq, err := v.writeFile(dir, log)
	if err != nil {
		return 0, fmt.Errorf("save snapshot: %w", err)
	}
	// crash here: the new snapshot is durable; old ones stay until the next call.
	old := snapshotFiles(dir)
	for _, path := range append(stale, old[min(len(old), KeepSnapshots):]...) {
		if err := os.Remove(path); err != nil {
			return seq, fmt.Errorf("remove old snapshot: %w", err)
		}
	}
	return seq, nil
}

func (v *Keys) writeFile(dir string, log events.LogID) (seq events.Seq, err error) {
	f, err := os.CreateTemp(dir, tempGlob)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if seq, err = v.snapshot(f, log); err != nil {
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
	if err = os.Rename(f.Name(), filepath.Join(dir, fmt.Sprintf(snapName, seq))); err != nil {
		return 0, err
	}
	return seq, syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// snapshotFiles returns the snapshots in dir, the newest first.
func snapshotFiles(dir string) []string {
	paths, _ := filepath.Glob(filepath.Join(dir, snapGlob)) // the pattern is well-formed
	slices.Sort(paths)
	slices.Reverse(paths)
	return paths
}

// LoadFile returns the view of the newest snapshot in dir that can be read, or
// an empty view when there is none. Snapshots that cannot be read are passed
// over and named in refused: nothing is lost by it but time, the log has it all.
// last is where the log ends: a sound snapshot of the same log that is newer
// means that the log has lost events, which is a *events.CorruptError.
func LoadFile(dir string, log events.LogID, last events.Seq) (v *Keys, refused []error, err error) {
	for _, path := range snapshotFiles(dir) {
		v, err := loadFile(path, log)
		if err != nil {
			refused = append(refused, err)
			continue
		}
		if v.At() > last {
			return nil, refused, &events.CorruptError{Seq: last + 1, Reason: fmt.Sprintf("the log ends at event %d, but snapshot %s was made of it at event %d: "+
				"the log has lost events; restore it from its archive mirror or a backup, do not continue on this copy", last, path, v.At())}
		}
		return v, refused, nil
	}
	return NewKeys(), refused, nil
}

func loadFile(path string, log events.LogID) (*Keys, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	v, err := LoadKeys(f, log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return v, nil
}

// Saver keeps snapshots of a view.
type Saver struct {
	View   *Keys
	Dir    string
	Log    events.LogID
	Every  time.Duration    // between snapshots; default 5 minutes. Longer means a longer tail to fold at the next start
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default slog.Default()

	saved    atomic.Uint64 // position of the last snapshot
	savedAt  atomic.Int64  // when, in Unix milliseconds
	failures atomic.Uint64
}

// Run saves a snapshot every so often when the view has moved on, and a last one
// when ctx ends. A snapshot that cannot be saved is logged and counted: the view
// and the log lose nothing by it. It returns ctx's error.
func (s *Saver) Run(ctx context.Context) error {
	every := s.Every
	if every <= 0 {
		every = 5 * time.Minute
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.save(ctx)
		case <-ctx.Done():
			s.save(ctx)
			return ctx.Err()
		}
	}
}

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
	seq, err := s.View.SaveFile(s.Dir, s.Log)
	if err != nil {
		s.failures.Add(1)
		log.LogAttrs(ctx, slog.LevelError, "snapshot not saved", slog.Any("err", err))
		return
	}
	s.saved.Store(uint64(seq))
	s.savedAt.Store(s.now().UnixMilli())
	log.LogAttrs(ctx, slog.LevelInfo, "snapshot saved", slog.Uint64("seq", uint64(seq)), slog.Int("keys", s.View.Len()))
}
