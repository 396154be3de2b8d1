package tree_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events/tree"
)

func openFile(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() }) // closed twice by most
	return f
}

func newHashFile(t testing.TB) (*tree.HashFile, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hashes")
	h, err := tree.OpenHashFile(openFile(t, path), 0, tree.EmptyRoot())
	if err != nil {
		t.Fatal(err)
	}
	return h, path
}

func TestHashFile(t *testing.T) {
	const n = 300
	g := grow(t, "file", n)
	h, path := newHashFile(t)
	for i := 0; i < n; {
		batch := g.leaves[i:min(n, i+i%7)]
		if err := h.Append(batch...); err != nil {
			t.Fatal(err)
		}
		if i += len(batch); len(batch) == 0 {
			if err := h.Append(g.leaves[i]); err != nil {
				t.Fatal(err)
			}
			i++
		}
		if r := h.Range(); r.Size() != uint64(i) || r.Root() != naiveRoot(g.leaves[:i]) {
			t.Fatalf("after %d leaves: size %d", i, r.Size())
		}
	}
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	all := make([]int64, len(g.stored))
	for i := range all {
		all[i] = int64(i)
	}
	slices.Reverse(all)
	for _, indexes := range [][]int64{all, all[:100], {}, {0, 595, 0}, {7}} {
		got, err := h.ReadHashes(indexes)
		want, _ := g.stored.ReadHashes(indexes)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("%v: %v", indexes, err)
		}
	}
	for _, indexes := range [][]int64{{-1}, {int64(len(g.stored))}, {0, int64(len(g.stored))}} {
		if _, err := h.ReadHashes(indexes); !errors.Is(err, tree.ErrNotInTree) {
			t.Fatalf("%v: %v", indexes, err)
		}
	}
	if err := h.Verify(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := tree.OpenHashFile(openFile(t, path), n, g.head(n).Root)
	if err != nil || again.Range() != g.r {
		t.Fatal(err)
	}
}

// TestHashFileCrashes: the file is cut anywhere, or is longer by anything; opened
// with the last head that is known to be durable, it goes on to the same tree.
func TestHashFileCrashes(t *testing.T) {
	const n = 40
	g := grow(t, "crash", n)
	var stored []byte
	for _, h := range g.stored {
		stored = append(stored, h[:]...)
	}
	path := filepath.Join(t.TempDir(), "hashes")
	rapid.Check(t, func(t *rapid.T) {

		known := rapid.IntRange(0, n).Draw(t, "known size")
		length := rapid.IntRange(0, len(stored)).Draw(t, "length")
		junk := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "junk behind")
		file := slices.Concat(stored[:length], junk)
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		h, err := tree.OpenHashFile(f, uint64(known), naiveRoot(g.leaves[:known]))
		if !bytes.HasPrefix(file, stored[:32*tlog.StoredHashCount(int64(known))]) {
			// The known tree is cut, or has junk in it. Junk inside is left to Verify.
			if err == nil {
				err = h.Verify(context.Background())
			} else if b, _ := os.ReadFile(path); !bytes.Equal(b, file) {
				t.Fatal("refused, and changed all the same")
			}
			if !errors.Is(err, tree.ErrStored) {
				t.Fatalf("a damaged tree: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Append(g.leaves[known:]...); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, stored) {
			t.Fatalf("another file: %v", err)
		}
	})
}

func TestOpenHashFileRefuses(t *testing.T) {
	g, other := grow(t, "mine", 20), grow(t, "theirs", 20)
	h, path := newHashFile(t)
	if err := h.Append(g.leaves...); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		size uint64
		root tree.Hash
	}{
		"another log":        {20, other.head(20).Root},
		"another size":       {19, g.head(20).Root},
		"more than it holds": {21, g.head(20).Root},
		"far more":           {tree.MaxSize - 1, tree.Hash{}},
		"size 0 with a root": {0, g.head(20).Root},
	} {
		if _, err := tree.OpenHashFile(openFile(t, path), c.size, c.root); !errors.Is(err, tree.ErrStored) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := tree.OpenHashFile(openFile(t, path), tree.MaxSize, tree.Hash{}); err == nil {
		t.Error("a size too large is accepted")
	}
	if h, err := tree.OpenHashFile(openFile(t, path), 20, g.head(20).Root); err != nil || h.Range() != g.r {
		t.Errorf("after all refusals: %v", err)
	}
	f := openFile(t, path)
	f.Close()
	if _, err := tree.OpenHashFile(f, 20, g.head(20).Root); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

// TestVerifyFindsEachFlippedByte: a byte changed anywhere is found, at Open or by
// Verify, and the first leaf that shows it is named.
func TestVerifyFindsEachFlippedByte(t *testing.T) {
	const n = 21
	g := grow(t, "flip", n)
	h, path := newHashFile(t)
	if err := h.Append(g.leaves...); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var named int
	for i := range good {
		good[i] ^= 1 << (i % 8)
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		good[i] ^= 1 << (i % 8)
		f, err := os.OpenFile(path, os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		h, err := tree.OpenHashFile(f, n, g.head(n).Root)
		if err == nil {
			if err = h.Verify(context.Background()); err != nil && strings.Contains(err.Error(), "completes") {
				named++
			}
		}
		if !errors.Is(err, tree.ErrStored) {
			t.Fatalf("byte %d: %v", i, err)
		}
		f.Close()
	}
	if named == 0 {
		t.Fatal("Verify found nothing")
	}
}

// TestVerifyKnowsTheRoot: hashes that fit each other, but are another log's, are
// found too.
func TestVerifyKnowsTheRoot(t *testing.T) {
	h, path := newHashFile(t)
	if err := h.Append(grow(t, "mine", 9).leaves...); err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, x := range grow(t, "theirs", 9).stored {
		b = append(b, x[:]...)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.Verify(context.Background()); !errors.Is(err, tree.ErrStored) {
		t.Fatal(err)
	}
}

func TestVerifyStops(t *testing.T) {
	h, path := newHashFile(t)
	if err := h.Append(grow(t, "stops", 9).leaves...); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := h.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 40); err != nil { // under its hands
		t.Fatal(err)
	}
	if err := h.Verify(context.Background()); !errors.Is(err, tree.ErrStored) {
		t.Fatal(err)
	}
	for _, x := range []int64{1, 9} { // cut in two, and gone
		if _, err := h.ReadHashes([]int64{x}); !errors.Is(err, tree.ErrStored) {
			t.Fatal(x, err)
		}
	}
}

// fullDisk fails writes: before anything is written, or after half.
type fullDisk struct {
	*os.File
	fail, half bool
}

func (f *fullDisk) WriteAt(b []byte, off int64) (int, error) {
	switch {
	case !f.fail:
		return f.File.WriteAt(b, off)
	case f.half:
		n, _ := f.File.WriteAt(b[:len(b)/2+1], off)
		return n, errors.New("no space left on device")
	default:
		return 0, errors.New("no space left on device")
	}
}

// TestAppendFails: a failed write adds nothing, whether or not some of it is in the
// file; the next one adds everything.
func TestAppendFails(t *testing.T) {
	g := grow(t, "fails", 20)
	for _, half := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "hashes")
		f := &fullDisk{File: openFile(t, path), half: half}
		h, err := tree.OpenHashFile(f, 0, tree.EmptyRoot())
		if err != nil {
			t.Fatal(err)
		}
		if err := h.Append(g.leaves[:5]...); err != nil {
			t.Fatal(err)
		}
		before := h.Range()
		f.fail = true
		if err := h.Append(g.leaves[5:12]...); err == nil {
			t.Fatal("a failed write is none")
		}
		if h.Range() != before || h.Verify(context.Background()) != nil {
			t.Fatal("half a batch counts")
		}
		f.fail = false
		if err := h.Append(g.leaves[5:]...); err != nil {
			t.Fatal(err)
		}
		if h.Range() != g.r || h.Verify(context.Background()) != nil {
			t.Fatal("another tree after a failed write")
		}
	}
}

// badDisk fails what it is told to fail.
type badDisk struct {
	*os.File
	read, truncate error
}

func (f badDisk) ReadAt(b []byte, off int64) (int, error) {
	if f.read != nil {
		return 0, f.read
	}
	return f.File.ReadAt(b, off)
}

func (f badDisk) Truncate(size int64) error {
	if f.truncate != nil {
		return f.truncate
	}
	return f.File.Truncate(size)
}

// TestOpenTellsFaultsFromDamage: a disk that fails says nothing of the tree.
func TestOpenTellsFaultsFromDamage(t *testing.T) {
	g := grow(t, "faults", 20)
	h, path := newHashFile(t)
	if err := h.Append(g.leaves...); err != nil {
		t.Fatal(err)
	}
	fault := errors.New("input/output error")
	for _, f := range []badDisk{{read: fault}, {truncate: fault}} {
		f.File = openFile(t, path)
		if _, err := tree.OpenHashFile(f, 20, g.head(20).Root); !errors.Is(err, fault) || errors.Is(err, tree.ErrStored) {
			t.Error(err)
		}
	}
}

// TestHashFileWhileItGrows: readers see a whole tree while the writer appends.
func TestHashFileWhileItGrows(t *testing.T) {
	g := grow(t, "grows", 400)
	h, _ := newHashFile(t)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for size := uint64(0); size < 400; {
				r := h.Range()
				if size = r.Size(); size == 0 {
					continue
				}
				p, err := tree.ProveInclusion(h, size, size/2)
				if err == nil {
					err = tree.CheckInclusion(p, tree.Head{Origin: origin, Size: size, Root: r.Root()}, size/2, g.leaves[size/2])
				}
				if err != nil {
					t.Errorf("size %d: %v", size, err)
					return
				}
			}
		})
	}
	for i := 0; i < 400; i += 4 {
		if err := h.Append(g.leaves[i : i+4]...); err != nil {
			t.Error(err)
			break
		}
	}
	wg.Wait()
}

func BenchmarkHashFileAppend(b *testing.B) {
	h, _ := newHashFile(b)
	leaves := make([]tree.Hash, 256)
	b.ReportAllocs()
	for b.Loop() {
		if err := h.Append(leaves...); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(leaves)), "ns/leaf")
}

func BenchmarkHashFileTile(b *testing.B) {
	h, _ := newHashFile(b)
	if err := h.Append(make([]tree.Hash, 1<<17)...); err != nil {
		b.Fatal(err)
	}
	for _, tile := range []tree.Tile{{Level: 0, Index: 300, Width: 256}, {Level: 1, Index: 1, Width: 256}} {
		b.Run(tile.Path(), func(b *testing.B) {
			for b.Loop() {
				if _, err := tree.ReadTile(h, 1<<17, tile); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkHashFileVerify(b *testing.B) {
	h, _ := newHashFile(b)
	if err := h.Append(make([]tree.Hash, 1<<17)...); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := h.Verify(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*(1<<17)), "ns/leaf")
}
