package tree_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events/tree"
)

func TestTilePath(t *testing.T) {
	for want, tile := range map[string]tree.Tile{
		"tile/0/000":                      {Level: 0, Index: 0, Width: 256},
		"tile/0/000.p/1":                  {Level: 0, Index: 0, Width: 1},
		"tile/1/999.p/255":                {Level: 1, Index: 999, Width: 255},
		"tile/63/x001/000":                {Level: 63, Index: 1000, Width: 256},
		"tile/3/x001/x234/067":            {Level: 3, Index: 1234067, Width: 256}, // the example of C2SP tlog-tiles
		"tile/entries/x001/x234/067.p/7":  {Level: tree.EntriesLevel, Index: 1234067, Width: 7},
		"tile/0/x281/x474/x976/x710/655":  {Level: 0, Index: 1<<48 - 1, Width: 256},
		"tile/entries/x001/x000/x000/000": {Level: tree.EntriesLevel, Index: 1e9, Width: 256},
	} {
		if got := tile.Path(); got != want {
			t.Errorf("%+v: %s, want %s", tile, got, want)
		}
		if got, err := tree.ParseTile(want); err != nil || got != tile {
			t.Errorf("%s: %+v, %v", want, got, err)
		}
	}
	for _, path := range []string{
		"", "tile", "tile/", "tile/0", "tile/0/", "/tile/0/000", "tile/0/000/", "tile/0/0", "tile/0/00", "tile/0/0000", "tile/0/1000",
		"tile/0/x000/001", "tile/0/x001", "tile/0/001/002", "tile/0/x001/x002", "tile/0/X001/002", "tile/0/xx01/002", "tile/0/-01", "tile/0/+01",
		"tile/00/000", "tile/01/000", "tile/+1/000", "tile/-1/000", "tile/64/000", "tile/data/000", "tile/Entries/000", "tile/8/0/000",
		"tile/0/000.p", "tile/0/000.p/", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/-1", "tile/0/000.p/1/", "tile/0/000.p/1.p/1", "tile/0/000.P/1",
		"tile/0/x281/x474/x976/x710/656", "tile/0/x999/x999/x999/x999/x999/x999/999", "tile/0/" + strings.Repeat("x001/", 100) + "000",
		"tile/0/000 ", "tile/0/000\n", "tile/0/٠٠٠",
	} {
		if tile, err := tree.ParseTile(path); err == nil {
			t.Errorf("%q is read as %+v", path, tile)
		}
	}
}

func FuzzParseTile(f *testing.F) {
	f.Add("tile/0/000")
	f.Add("tile/entries/x001/x234/067.p/12")
	f.Fuzz(func(t *testing.T, path string) {
		tile, err := tree.ParseTile(path)
		if err != nil {
			return
		}
		if tile.Path() != path { // T2
			t.Fatalf("%q becomes %q", path, tile.Path())
		}
		tile.In(math.MaxUint64)
		tile.In(tree.MaxSize - 1)
	})
}

// TestTilesOfSeventyThousand: the example of C2SP tlog-tiles.
func TestTilesOfSeventyThousand(t *testing.T) {
	var full [2]int
	var partial []string
	for _, tile := range tree.TilesOf(0, 70000) {
		if err := tile.In(70000); err != nil {
			t.Fatal(err)
		}
		if tile.Width == tree.TileWidth {
			full[tile.Level]++
		} else {
			partial = append(partial, tile.Path())
		}
	}
	if full != [2]int{273, 1} || !slices.Equal(partial, []string{"tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"}) {
		t.Fatalf("%v full tiles, and %v", full, partial)
	}
}

func TestTileIn(t *testing.T) {
	for _, c := range []struct {
		path string
		size uint64 // the smallest that has it
	}{
		{"tile/0/000.p/1", 1}, {"tile/0/000", 256}, {"tile/1/000.p/1", 256}, {"tile/0/273.p/112", 70000}, {"tile/1/001.p/17", 69888},
		{"tile/2/000.p/1", 65536}, {"tile/entries/000.p/5", 5}, {"tile/6/000.p/1", 1 << 48}, {"tile/0/x281/x474/x976/x710/655.p/255", tree.MaxSize - 1},
	} {
		tile, err := tree.ParseTile(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := tile.In(c.size); err != nil {
			t.Error(err)
		}
		if err := tile.In(c.size - 1); !errors.Is(err, tree.ErrNotInTree) {
			t.Errorf("%s in size %d: %v", c.path, c.size-1, err)
		}
	}
	for _, tile := range []tree.Tile{{}, {Width: 257}, {Level: -2, Width: 1}, {Level: 64, Width: 1}, {Index: math.MaxUint64, Width: 1}, {Level: 7, Width: 1}, {Level: 63, Width: 1}} {
		for _, size := range []uint64{tree.MaxSize - 1, math.MaxUint64} {
			if tile.In(size) == nil {
				t.Errorf("%+v is in a tree of size %d", tile, size)
			}
		}
	}
}

// publish returns all tiles and bundles of the tree of the given size, as files.
func publish(t testing.TB, g *grown, size uint64) fstest.MapFS {
	t.Helper()
	out := fstest.MapFS{}
	for _, tile := range tree.TilesOf(0, size) {
		b, err := tree.ReadTile(g.stored, size, tile)
		if err != nil {
			t.Fatal(err)
		}
		out[tile.Path()] = &fstest.MapFile{Data: b}
		if tile.Level > 0 {
			continue
		}
		tile.Level = tree.EntriesLevel
		var bundle []byte
		for i := range tile.Width {
			if bundle, err = tree.AppendToBundle(bundle, g.entries[tile.Index*tree.TileWidth+uint64(i)]); err != nil {
				t.Fatal(err)
			}
		}
		out[tile.Path()] = &fstest.MapFile{Data: bundle}
	}
	return out
}

func fetch(fsys fs.FS) func(string) ([]byte, error) {
	return func(path string) ([]byte, error) { return fs.ReadFile(fsys, path) }
}

// TestTilesHoldTheTree: each hash in a tile is the root of its leaves, and all that
// the tree can prove is proven from published tiles alone.
func TestTilesHoldTheTree(t *testing.T) {
	const n = 600
	g := grow(t, "tiles", n)
	for _, size := range []int{1, 2, 255, 256, 257, 512, n} {
		files := publish(t, g, uint64(size))
		for path, f := range files {
			tile, err := tree.ParseTile(path)
			if err != nil {
				t.Fatal(err)
			}
			if tile.Level == tree.EntriesLevel {
				entries, err := tree.ParseBundle(f.Data, tile.Width)
				if err != nil {
					t.Fatal(err)
				}
				for i, e := range entries {
					if tree.EntryHash(e) != g.leaves[int(tile.Index)*256+i] {
						t.Fatalf("%s: entry %d is not that of its leaf", path, i)
					}
				}
				continue
			}
			span := 1 << (8 * tile.Level)
			for i := range tile.Width {
				first := (int(tile.Index)*256 + i) * span
				if want := naiveRoot(g.leaves[first : first+span]); !bytes.Equal(want[:], f.Data[32*i:32*i+32]) {
					t.Fatalf("size %d, %s: hash %d is not the root of its leaves", size, path, i)
				}
			}
		}
		head := g.head(size)
		r := tree.TileReader(head, fetch(files))
		for i := 0; i < size; i += 1 + size/20 {
			p, err := tree.ProveInclusion(r, uint64(size), uint64(i))
			if err != nil || !slices.Equal(p, naivePath(i, g.leaves[:size])) {
				t.Fatalf("inclusion of %d in %d: %v", i, size, err)
			}
			p, err = tree.ProveConsistency(r, uint64(i), uint64(size))
			if err != nil {
				t.Fatal(err)
			}
			if err := tree.CheckConsistency(p, g.head(i), head); err != nil {
				t.Fatal(err)
			}
		}
		if rng, err := tree.ReadRange(r, uint64(size)); err != nil || rng.Root() != head.Root {
			t.Fatalf("size %d: %v", size, err)
		}
	}
}

// TestTileReaderTrustsNothing: with one bit of one tile changed, no proof that
// reads it is made, and no other is wrong.
func TestTileReaderTrustsNothing(t *testing.T) {
	const size = 600
	g := grow(t, "liar", size)
	files := publish(t, g, size)
	head := g.head(size)
	rapid.Check(t, func(t *rapid.T) {
		paths := make([]string, 0, len(files))
		for _, tile := range tree.TilesOf(0, size) {
			paths = append(paths, tile.Path())
		}
		path := rapid.SampledFrom(paths).Draw(t, "tile")
		at := rapid.IntRange(0, len(files[path].Data)*8-1).Draw(t, "bit")
		index := rapid.Uint64Range(0, size-1).Draw(t, "index")
		read := false
		lie := func(p string) ([]byte, error) {
			b := bytes.Clone(files[p].Data)
			if p == path {
				read = true
				b[at/8] ^= 1 << (at % 8)
			}
			return b, nil
		}
		p, err := tree.ProveInclusion(tree.TileReader(head, lie), size, index)
		if read != (err != nil) {
			t.Fatalf("the changed tile was read: %v; the error: %v", read, err)
		}
		if err == nil && !slices.Equal(p, naivePath(int(index), g.leaves)) {
			t.Fatal("a wrong proof")
		}
	})
	for name, b := range map[string][]byte{"short": files["tile/0/000"].Data[:8191], "long": make([]byte, 8193), "none": nil} {
		changed := fstest.MapFS{}
		for k, v := range files {
			changed[k] = v
		}
		changed["tile/0/000"] = &fstest.MapFile{Data: b}
		if _, err := tree.ProveInclusion(tree.TileReader(head, fetch(changed)), size, 3); err == nil {
			t.Errorf("a tile that is %s is accepted", name)
		}
	}
	if _, err := tree.ProveInclusion(tree.TileReader(head, fetch(fstest.MapFS{})), size, 3); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := tree.ProveInclusion(tree.TileReader(head, fetch(files)), size+1, 0); !errors.Is(err, tree.ErrNotInTree) {
		t.Error("a leaf beyond the head:", err)
	}
	for _, size := range []uint64{0, tree.MaxSize} {
		if _, err := tree.TileReader(tree.Head{Size: size}, fetch(files)).ReadHashes([]int64{0}); !errors.Is(err, tree.ErrNotInTree) {
			t.Error(err)
		}
	}
}

func TestReadTileRefuses(t *testing.T) {
	g := grow(t, "refuse", 300)
	for name, tile := range map[string]tree.Tile{
		"a bundle":                {Level: tree.EntriesLevel, Width: 5},
		"beyond the tree":         {Level: 0, Index: 1, Width: 45},
		"full where it is not":    {Level: 0, Index: 1, Width: 256},
		"of a level without tile": {Level: 2, Width: 1},
		"width 0":                 {},
		"an index that overflows": {Index: math.MaxUint64/256 + 1, Width: 1},
	} {
		if _, err := tree.ReadTile(g.stored, 300, tile); err == nil {
			t.Errorf("%s is read", name)
		}
	}
	if _, err := tree.ReadTile(g.stored, 300, tree.Tile{Index: 1, Width: 44}); err != nil {
		t.Error(err)
	}
	if tree.TilesOf(5, 4) != nil || tree.TilesOf(0, tree.MaxSize) != nil {
		t.Error("tiles of no tree")
	}
}

func TestBundle(t *testing.T) {
	var b []byte
	entries := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte{7}, 65535)}
	for _, e := range entries {
		var err error
		if b, err = tree.AppendToBundle(b, e); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := tree.ParseBundle(b, 3); err != nil || !slices.EqualFunc(got, entries, bytes.Equal) {
		t.Fatal(err)
	}
	if _, err := tree.AppendToBundle(nil, make([]byte, 65536)); err == nil {
		t.Error("an entry too long is accepted")
	}
	for _, c := range []struct {
		b     []byte
		width int
	}{{b, 2}, {b, 4}, {b[:len(b)-1], 3}, {append(bytes.Clone(b), 0), 3}, {b[:1], 1}, {nil, 1}, {nil, 0}, {nil, -1}, {make([]byte, 2*257), 257}} {
		if _, err := tree.ParseBundle(c.b, c.width); err == nil {
			t.Errorf("a bundle of %d bytes is read as %d entries", len(c.b), c.width)
		}
	}
}

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte("\x00\x01a\x00\x00"), 2)
	f.Fuzz(func(t *testing.T, b []byte, width int) {
		entries, err := tree.ParseBundle(b, width)
		if err != nil {
			return
		}
		var again []byte
		for _, e := range entries {
			if again, err = tree.AppendToBundle(again, e); err != nil {
				t.Fatal(err)
			}
		}
		if len(entries) != width || !bytes.Equal(again, b) { // T2
			t.Fatalf("%x becomes %x", b, again)
		}
	})
}

func ExampleTile_Path() {
	fmt.Println(tree.Tile{Level: 0, Index: 1234067, Width: tree.TileWidth}.Path())
	fmt.Println(tree.Tile{Level: tree.EntriesLevel, Index: 3, Width: 20}.Path())
	// Output:
	// tile/0/x001/x234/067
	// tile/entries/003.p/20
}
