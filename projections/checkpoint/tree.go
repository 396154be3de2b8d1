package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/internal/files"
)

// The files in the directory.
const (
	hashesFile = "tree.hashes"
	markFile   = "tree.head"
)

// Log is what the tree is filled from. eventlog's log implements it.
type Log interface {
	ID() events.LogID
	// Leaves hands the subject and the SHA-256 of the document of each event from
	// first to last to take, in order, at most rate a second. An event that is gone
	// or cannot be read is a *events.CorruptError.
	Leaves(ctx context.Context, first, last events.Seq, rate int, take func(seq events.Seq, subject string, document events.Hash) error) error
}

// View is what has applied the log, and knows its root. projections.Keys implements
// it.
type View interface {
	// At is the position of the view: 0 until it has proved its history.
	At() events.Seq
	// Tree is the compact range of all that the view has applied.
	Tree() tree.Range
}

// forkError says that there are two histories. It is never mended by waiting.
type forkError struct{ reason string }

func (e *forkError) Error() string { return "fork: " + e.reason }

// Tree is the tree over the log, in a file. One goroutine grows it while others read.
type Tree struct {
	dir    string
	log    Log
	view   View
	logger *slog.Logger
	file   *os.File // locked

	hashes  atomic.Pointer[tree.HashFile]
	damaged atomic.Bool // a check of the file has found so

	mark   events.Head // the last one that the file tree.head names
	proven bool        // the hashes were those of the view at some size

	leaves []tree.Hash // owned by fill
}

// openTree opens the tree in the directory, or begins an empty one: what cannot be
// shown to be the tree of the mark is cut off.
func openTree(dir string, log Log, view View, logger *slog.Logger) (*Tree, error) {
	file, err := files.Lock(filepath.Join(dir, hashesFile))
	if errors.Is(err, files.ErrLocked) {
		return nil, fmt.Errorf("%w: give each control a --dir of its own", err)
	}
	if err != nil {
		return nil, err
	}
	t := &Tree{dir: dir, log: log, view: view, logger: logger, file: file}
	text, err := files.ReadOwn(filepath.Join(dir, markFile))
	if err == nil && text != "" {
		t.mark, err = parseMark(text)
	}
	if err != nil {
		logger.Warn("the tree is read from the log again", "err", err)
	}
	if t.mark.Log != log.ID() {
		t.mark = events.Head{Log: log.ID(), Root: events.Hash(tree.EmptyRoot())}
	}
	if err := t.reopen(); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return t, nil
}

// reopen takes the file for the tree of the mark, and cuts off the rest.
func (t *Tree) reopen() error {
	t.proven = false
	h, err := tree.OpenHashFile(t.file, uint64(t.mark.Size), tree.Hash(t.mark.Root))
	if errors.Is(err, tree.ErrStored) {
		t.logger.Warn("the tree is read from the log again", "err", err)
		return t.empty()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", t.file.Name(), err)
	}
	t.hashes.Store(h)
	return nil
}

// empty begins the file anew. The mark stays: what is read must have its root.
func (t *Tree) empty() error {
	h, err := tree.OpenHashFile(t.file, 0, tree.EmptyRoot())
	if err != nil {
		return fmt.Errorf("%s: %w", t.file.Name(), err)
	}
	t.proven = false
	t.hashes.Store(h)
	return nil
}

// reading returns how many leaves the tree has, and how many the view.
func (t *Tree) reading() (have, want uint64) {
	r, v := t.hashes.Load().Range(), t.view.Tree()
	return r.Size(), v.Size()
}

// flushEvery is how many leaves are written at once.
const flushEvery = 1024

// progressEvery is how many leaves lie between two lines in the log.
const progressEvery = 1 << 20

// grow brings the tree up to the view, and compares. Ready is false if it has to be
// called again. The error is a *forkError, or may pass.
func (t *Tree) grow(ctx context.Context) (ready bool, err error) {
	if t.damaged.Swap(false) {
		return false, t.empty()
	}
	want := t.view.Tree()
	have := t.hashes.Load().Range()
	if max(have.Size(), uint64(t.mark.Size)) > want.Size() {
		return false, errBehind
	}
	if have.Size() < want.Size() {
		if err := t.fill(ctx, have.Size(), want.Size()); err != nil {
			return false, err
		}
	}
	switch got := t.hashes.Load().Range(); {
	case got == want: // C1
		return true, t.keep(want)
	case t.proven || have.Size() == 0:
		return false, &forkError{fmt.Sprintf("the log shows other events now than this control has applied: the root of its first %d events is %s, want %s. "+
			"Its store was altered: restore the log from its archive mirror or a backup", want.Size(), got.Root(), want.Root())}
	}
	t.logger.WarnContext(ctx, "the tree in the directory is not that of the log: it is read from the log again", "size", have.Size())
	return false, t.empty()
}

// fill reads the leaves [have, want) from the log.
func (t *Tree) fill(ctx context.Context, have, want uint64) error {
	h := t.hashes.Load()
	t.leaves = t.leaves[:0]
	flush := func() error {
		err := h.Append(t.leaves...)
		t.leaves = t.leaves[:0]
		return err
	}
	if want-have > progressEvery {
		t.logger.InfoContext(ctx, "the tree is being read from the log", "done", have, "of", want)
	}
	err := t.log.Leaves(ctx, events.Seq(have+1), events.Seq(want), math.MaxInt, func(seq events.Seq, subject string, document events.Hash) error {
		t.leaves = append(t.leaves, tree.LeafHash(subject, document))
		if seq%progressEvery == 0 {
			t.logger.InfoContext(ctx, "the tree is being read from the log", "done", uint64(seq), "of", want)
		}
		if len(t.leaves) < flushEvery {
			return nil
		}
		return flush()
	})
	return errors.Join(err, flush())
}

// keep makes the tree durable, and then its mark (C4). It refuses a tree that does
// not extend the mark.
func (t *Tree) keep(r tree.Range) error {
	h := t.hashes.Load()
	if !t.proven {
		root, err := rootAt(h, uint64(t.mark.Size))
		if err != nil {
			return err
		}
		if root != tree.Hash(t.mark.Root) {
			return &forkError{fmt.Sprintf("this is not the log whose first %d events had the root %s: it was restored from an older copy and written on, or altered. "+
				"Find out which history is right; if this one is, remove %s", t.mark.Size, tree.Hash(t.mark.Root), filepath.Join(t.dir, markFile))}
		}
		t.proven = true
	}
	if t.mark.Size == events.Seq(r.Size()) {
		return nil
	}
	if err := h.Sync(); err != nil {
		// What reads still show may be lost: go back to what is known to be stored.
		return errors.Join(fmt.Errorf("%s: %w", t.file.Name(), err), t.reopen())
	}
	// crash here: the next open cuts off what lies beyond the mark.
	mark := events.Head{Log: t.log.ID(), Size: events.Seq(r.Size()), Root: events.Hash(r.Root())}
	if err := files.Write(filepath.Join(t.dir, markFile), formatMark(&mark)); err != nil {
		return err
	}
	t.mark = mark
	return nil
}

// rootAt returns the root that the tree had at the size.
func rootAt(h *tree.HashFile, size uint64) (tree.Hash, error) {
	r, err := tree.ReadRange(h, size)
	if err != nil {
		return tree.Hash{}, err
	}
	return r.Root(), nil
}

func (t *Tree) close() error { return t.hashes.Load().Close() }

// formatMark returns the content of the mark's file: a head as JSON, and the
// SHA-256 of that line, so that a damaged mark is not taken for a fork.
func formatMark(h *events.Head) []byte {
	line, _ := events.EncodeHead(h) // fails without a log only
	return fmt.Appendf(nil, "%s\n%x\n", line, sha256.Sum256(line))
}

func parseMark(text string) (h events.Head, err error) {
	line, sum, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if want := sha256.Sum256([]byte(line)); sum != hex.EncodeToString(want[:]) {
		return h, fmt.Errorf("%s: want a head and its checksum: it is damaged", markFile)
	}
	if h, err = events.DecodeHead([]byte(line)); err != nil {
		return h, fmt.Errorf("%s: %w", markFile, err)
	}
	return h, nil
}
