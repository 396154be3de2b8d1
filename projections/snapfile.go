package projections

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

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

	file() *snapshotFile
	setFile(*snapshotFile)
}

// snapshotFile is a whole snapshot file of a view, as it was when this process last
// wrote or read it.
type snapshotFile struct {
	seq  events.Seq
	info fs.FileInfo
}

// file returns the snapshot file that the view was last saved to or restored from; nil
// if there is none.
func (f *fold) file() *snapshotFile { return f.kept.Load() }

func (f *fold) setFile(file *snapshotFile) { f.kept.Store(file) }

// isSaved reports whether dir has the snapshot of v at v's position: the file that v was
// last saved to or restored from, as it was then. A view has one history, and so does
// that file. A file that was removed, cut short or exchanged is not that one.
func isSaved(dir string, v View) bool {
	f := v.file()
	if f == nil || f.seq != v.At() {
		return false
	}
	is, err := os.Stat(snapshotPath(dir, v.Name(), f.seq))
	return err == nil && os.SameFile(is, f.info) && is.Size() == f.info.Size() && is.ModTime().Equal(f.info.ModTime())
}

func snapshotPath(dir, view string, seq events.Seq) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%020d.snap", view, seq))
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
// next call removes. If ctx ends before the file is whole, the files stay as they were and
// the error is ctx's. One process at a time may save into a directory.
func Save(ctx context.Context, dir string, v View, log events.LogID) (events.Seq, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("save snapshot: %w", err)
	}
	f, err := writeFile(ctx, dir, v.Name(), func(w io.Writer) (events.Seq, error) { return v.Snapshot(w, log) })
	if err != nil {
		return f.seq, fmt.Errorf("save snapshot: %w", err)
	}
	v.setFile(&f)
	return f.seq, nil
}

// bounded is a writer that fails once its context has ended.
type bounded struct {
	io.Writer
	ctx context.Context
}

func (b bounded) Write(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.Writer.Write(p)
}

// writeFile makes what write writes a snapshot of the view in dir, at the position that
// write returns, and removes what Save says. After the end of ctx it renames nothing.
func writeFile(ctx context.Context, dir, view string, write func(io.Writer) (events.Seq, error)) (file snapshotFile, err error) {
	temp := "." + view + "-*.tmp"
	stale, _ := filepath.Glob(filepath.Join(dir, temp)) // the pattern is well-formed
	f, err := os.CreateTemp(dir, temp)
	if err != nil {
		return file, err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if file.seq, err = write(bounded{f, ctx}); err != nil {
		return file, err
	}
	if err = f.Sync(); err != nil {
		return file, err
	}
	if file.info, err = f.Stat(); err != nil {
		return file, err
	}
	if err = f.Close(); err != nil {
		return file, err
	}
	if err = ctx.Err(); err != nil {
		return file, err
	}
	// crash here: a temporary file that nobody reads. Not before Sync: the name
	// must never stand for a file without its bytes.
	if err = os.Rename(f.Name(), snapshotPath(dir, view, file.seq)); err != nil {
		return file, err
	}
	if err = syncDir(dir); err != nil {
		return file, err
	}
	// crash here: the new snapshot is durable; old ones stay until the next call.
	old := snapshotFiles(dir, view)
	for _, path := range append(stale, old[min(len(old), KeepSnapshots):]...) {
		if err := os.Remove(path); err != nil {
			return file, fmt.Errorf("remove old snapshot: %w", err)
		}
	}
	return file, nil
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
	info, err := f.Stat()
	if err != nil {
		return v, err
	}
	if v, err = load(f, log); err != nil {
		return v, fmt.Errorf("%s: %w; delete it, the view is folded from the log, or connect to the log that it belongs to", path, err)
	}
	v.setFile(&snapshotFile{v.Resume(), info})
	return v, nil
}
