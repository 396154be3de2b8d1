package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrStored is wrapped by errors that say that a HashFile does not hold the tree:
// it was damaged, or belongs to another log. Remove it; it is rebuilt from the log.
var ErrStored = errors.New("the stored hashes are not those of the tree")

// File is what a HashFile needs of its file; an *os.File has it. A HashFile is the
// only one that uses it.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
}

// HashFile keeps the hashes of a tree in a file: those that Range.AppendStored
// returns, one after the other, 32 bytes each and about two for each leaf, without
// anything else. From it proofs are made and tiles are served.
//
// The file can be rebuilt from the log at any time, and no root is believed because
// it is in the file: OpenHashFile takes a head that the caller knows to be right,
// checks the file against it, and cuts off the rest.
//
// One goroutine may append while others read.
type HashFile struct {
	f File

	mu sync.RWMutex
	r  Range // of what is written; guarded by mu

	buf    []byte // owned by Append
	hashes []Hash // owned by Append
}

// OpenHashFile opens a file that holds at least the tree of size leaves with this
// root: the last head that the caller knows to be right, as that of a checkpoint that
// it verified. The rest of the file is cut off, because a crash may have left
// anything there; the caller appends the leaves from index size on again. With size
// 0 and EmptyRoot the file starts empty.
//
// If the file does not hold that tree, the error wraps ErrStored and the file is
// unchanged. Only the right edge is read, at most 56 hashes. Verify finds a hash
// that is damaged elsewhere; so does the check of a proof that contains it.
//
// Close closes f; if OpenHashFile fails, f is not closed.
func OpenHashFile(f File, size uint64, root Hash) (*HashFile, error) {
	if size >= MaxSize {
		return nil, fmt.Errorf("size %d: want less than %d", size, MaxSize)
	}
	h := &HashFile{f: f}
	h.r.size = size // what may be read
	r, err := ReadRange(h, size)
	if err != nil {
		return nil, err
	}
	if r.Root() != root {
		return nil, fmt.Errorf("the root of size %d is %s in the file, want %s: %w", size, r.Root(), root, ErrStored)
	}
	h.r = r
	// crash here: the next open cuts again.
	if err := f.Truncate(storedBytes(size)); err != nil {
		return nil, err
	}
	return h, nil
}

// storedBytes is the length of the file of a tree.
func storedBytes(size uint64) int64 { return tlog.StoredHashCount(int64(size)) * tlog.HashSize }

// Append adds leaves, with one write. They are durable once Sync has returned
// after it. On an error none of them is added; Append may be called again.
func (h *HashFile) Append(leaves ...Hash) error {
	r := h.Range()
	at := storedBytes(r.size)
	h.hashes = h.hashes[:0]
	for _, l := range leaves {
		h.hashes = r.AppendStored(h.hashes, l)
	}
	h.buf = h.buf[:0]
	for i := range h.hashes {
		h.buf = append(h.buf, h.hashes[i][:]...)
	}
	if _, err := h.f.WriteAt(h.buf, at); err != nil {
		return err // what was written lies beyond the size, and is written over
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.r = r
	return nil
}

// Sync makes durable what was appended. If it fails, hashes may be lost on disk that
// reads still show: close the file, remove it and rebuild it.
func (h *HashFile) Sync() error { return h.f.Sync() }

// Close closes the file. It does not sync.
func (h *HashFile) Close() error { return h.f.Close() }

// Range returns the compact range of all that was appended: its size and its root.
func (h *HashFile) Range() Range {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.r
}

func (h *HashFile) size() uint64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.r.size
}

// ReadHashes implements HashReader.
func (h *HashFile) ReadHashes(indexes []int64) ([]Hash, error) {
	if len(indexes) == 0 {
		return nil, nil
	}
	low, high := slices.Min(indexes), slices.Max(indexes)
	if low < 0 || high >= tlog.StoredHashCount(int64(h.size())) {
		return nil, fmt.Errorf("stored hash %d: %w", high, ErrNotInTree)
	}
	out := make([]Hash, len(indexes))
	if n := high - low + 1; n <= 2*TileWidth { // as a tile of level 0: one read
		buf := make([]byte, n*tlog.HashSize)
		if err := h.read(buf, low); err != nil {
			return nil, err
		}
		for i, x := range indexes {
			copy(out[i][:], buf[(x-low)*tlog.HashSize:])
		}
		return out, nil
	}
	for i, x := range indexes {
		if err := h.read(out[i][:], x); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// read fills b with the stored hashes from index on.
func (h *HashFile) read(b []byte, index int64) error {
	n, err := h.f.ReadAt(b, index*tlog.HashSize)
	if n == len(b) { // then an io.EOF says nothing
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("stored hash %d: the file ends before it: %w", index, ErrStored)
	}
	return fmt.Errorf("stored hash %d: %w", index, err)
}

// verifyStep is the number of leaves after which Verify looks at its context.
const verifyStep = 1 << 12

// Verify computes every hash of the file again from the hashes of the leaves, up to
// the size that the file has now, and compares. The error of a difference wraps
// ErrStored and names the first leaf whose hashes differ.
func (h *HashFile) Verify(ctx context.Context) error {
	end := h.Range()
	var r Range
	var buf []byte
	var hashes []Hash
	for r.size < end.size {
		if err := ctx.Err(); err != nil {
			return err
		}
		from, to := r.size, min(end.size, r.size+verifyStep)
		first := tlog.StoredHashCount(int64(from))
		buf = slices.Grow(buf[:0], int(storedBytes(to)-storedBytes(from)))[:storedBytes(to)-storedBytes(from)]
		if err := h.read(buf, first); err != nil {
			return err
		}
		for rest := buf; r.size < to; {
			leaf := Hash(rest[:tlog.HashSize])
			hashes = r.AppendStored(hashes[:0], leaf)
			for _, want := range hashes {
				if Hash(rest[:tlog.HashSize]) != want {
					return fmt.Errorf("the hashes that leaf %d completes: %w", r.size-1, ErrStored)
				}
				rest = rest[tlog.HashSize:]
			}
		}
	}
	if r != end {
		return fmt.Errorf("the root of size %d is %s in the file, want %s: %w", r.size, r.Root(), end.Root(), ErrStored)
	}
	return nil
}
