package projections

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// MaxSnapshot is the most bytes that Receive takes: some 100 million keys.
const MaxSnapshot = 16 << 30

// Receive reads a snapshot of another process that r yields, and stores it in dir (made
// if need be) as Save does, so that the next restore finds it. load is LoadKeys or
// LoadDirectory, for a log. Before anything is stored, accept decides about the view; it
// is told the SHA-256 of all that came. On an error of r, of load or of accept the
// directory is as before; on another one the file may be there. On return without
// an error it is durable. If ctx ends before the file is whole, the error is ctx's.
//
// That a snapshot can be read shows that it came over whole, and nothing of what it
// says: package snapshots compares it with the log.
func Receive[V View](ctx context.Context, dir string, r io.Reader, load func(io.Reader) (V, error), accept func(v V, sum events.Hash) error) (v V, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return v, fmt.Errorf("receive snapshot: %w", err)
	}
	f, err := writeFile(ctx, dir, v.Name(), func(w io.Writer) (events.Seq, error) {
		sum := sha256.New()
		in := &io.LimitedReader{R: r, N: MaxSnapshot}
		got, err := load(io.TeeReader(in, io.MultiWriter(w, sum)))
		switch {
		case in.N == 0:
			return 0, fmt.Errorf("it is longer than %d bytes", int64(MaxSnapshot))
		case err != nil:
			return 0, err
		}
		v = got
		return v.Resume(), accept(v, events.Hash(sum.Sum(nil)))
	})
	if err != nil {
		return v, fmt.Errorf("receive snapshot: %w", err)
	}
	v.setFile(&f)
	return v, nil
}

// Past returns what the view remembers of the log that it was folded from: the compact
// range of the tree over all events up to its position, and the hash of the last one.
func (v *Keys) Past() (tree.Range, events.Hash) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.past.tree, v.past.hash
}

// Past returns what Keys.Past does.
func (d *Directory) Past() (tree.Range, events.Hash) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.past.tree, d.past.hash
}

// Refuse makes the view say nothing any more, as one of another history does (P8): At is
// 0, and Apply and Expect return err.
func (v *Keys) Refuse(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.refuse(err)
}

// Refuse does what Keys.Refuse does.
func (d *Directory) Refuse(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse(err)
}

// Difference names the first key, by its id, that has the same number of events in both
// views and is not the same in them, or that only one of them has; "" for none. The
// views are of one type, and may be at different positions: mine has more events.
func Difference(mine, log View) string {
	switch log := log.(type) {
	case *Keys:
		return mine.(*Keys).difference(log)
	case *Directory:
		return mine.(*Directory).difference(log)
	}
	return ""
}

func (v *Keys) difference(log *Keys) string {
	ids := make([]events.KeyID, log.Len())
	for i := range ids {
		ids[i] = log.records.at(uint32(i)).keyID()
	}
	slices.SortFunc(ids, func(a, b events.KeyID) int { return bytes.Compare(a[:], b[:]) })
	for _, id := range ids {
		mine, ok := v.whole(id)
		theirs, _ := log.whole(id)
		switch {
		case !ok:
			return fmt.Sprintf("key %s is missing", id)
		case mine.rev == theirs.rev && mine.status() != theirs.status():
			return fmt.Sprintf("key %s is %s in it, and %s in the log", id, mine.status(), theirs.status())
		case mine.rev == theirs.rev && !bytes.Equal(mine.encoded(), theirs.encoded()):
			return fmt.Sprintf("key %s is another than in the log", id)
		}
	}
	return ""
}

// whole returns the key with the id.
func (v *Keys) whole(id events.KeyID) (w whole, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	slot, ok := v.byID(&id)
	if ok {
		w = v.at(slot)
	}
	return w, ok
}

func (d *Directory) difference(log *Directory) string {
	for _, p := range log.picture().keys {
		theirs := p.card.key()
		mine, ok := d.Key(theirs.ID)
		switch {
		case !ok:
			return fmt.Sprintf("key %s is missing", theirs.ID)
		case mine.Rev == theirs.Rev && mine.Status != theirs.Status:
			return fmt.Sprintf("key %s is %s in it, and %s in the log", theirs.ID, mine.Status, theirs.Status)
		case mine.Rev == theirs.Rev && !bytes.Equal(encodedKey(&mine), encodedKey(&theirs)):
			return fmt.Sprintf("key %s is another than in the log", theirs.ID)
		}
	}
	return ""
}

// encoded returns the key as a snapshot of it alone would have it.
func (w *whole) encoded() []byte {
	var b bytes.Buffer
	e := newKeysEncoder(&b)
	e.key(w)
	e.out.Flush() // into memory
	return b.Bytes()
}

func encodedKey(k *events.Key) []byte {
	var b bytes.Buffer
	e := &directoryEncoder{encoder: newEncoder(&b), terms: map[string]uint64{}}
	e.key(0, k)
	e.out.Flush() // into memory
	return b.Bytes()
}
