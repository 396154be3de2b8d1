package tree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

const (
	// tileHeight is the number of levels of the tree in a tile.
	tileHeight = 8

	// TileWidth is the number of hashes in a full tile, and of entries in a full
	// bundle.
	TileWidth = 1 << tileHeight

	// EntriesLevel is the Level of a Tile that is a bundle of entries.
	EntriesLevel = -1

	maxTileLevel = 63
)

// Tile names a resource of C2SP tlog-tiles: a tile, which is TileWidth consecutive
// hashes of every eighth level of the tree, or a bundle of the entries of a tile of
// level 0. Rightmost ones are partial.
type Tile struct {
	Level int    // 0 to 63, or EntriesLevel
	Index uint64 // within the level
	Width int    // number of hashes or entries: TileWidth, or less in a partial one
}

func (t Tile) check() error {
	if t.Level < EntriesLevel || t.Level > maxTileLevel || t.Index >= MaxSize/TileWidth || t.Width < 1 || t.Width > TileWidth {
		return fmt.Errorf("tile of level %d, index %d, width %d: want a level up to %d, an index below %d and a width of 1 to %d",
			t.Level, t.Index, t.Width, maxTileLevel, MaxSize/TileWidth, TileWidth)
	}
	return nil
}

// Path returns the path of the tile below the prefix of the log: tile/<L>/<N>,
// or tile/<L>/<N>.p/<W> for a partial one, with tile/entries for bundles. The index
// is written in groups of three digits, as x001/x234/067. ParseTile refuses the
// path of a tile that cannot exist.
func (t Tile) Path() string {
	n := fmt.Sprintf("%03d", t.Index%1000)
	for i := t.Index / 1000; i > 0; i /= 1000 {
		n = fmt.Sprintf("x%03d/%s", i%1000, n)
	}
	level := "entries"
	if t.Level != EntriesLevel {
		level = strconv.Itoa(t.Level)
	}
	if t.Width != TileWidth {
		return fmt.Sprintf("tile/%s/%s.p/%d", level, n, t.Width)
	}
	return "tile/" + level + "/" + n
}

// ParseTile reads what Path prints, and nothing else.
func ParseTile(path string) (Tile, error) {
	bad := fmt.Errorf("tile path: want tile/<level>/<index> or tile/entries/<index>, the index in groups of three digits as x001/x234/067, then .p/<width> if it is partial")
	rest, ok := strings.CutPrefix(path, "tile/")
	level, rest, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 || len(path) > 64 {
		return Tile{}, bad
	}
	t := Tile{Level: EntriesLevel, Width: TileWidth}
	var err error
	if level != "entries" {
		if t.Level, err = strconv.Atoi(level); err != nil || t.Level < 0 {
			return Tile{}, bad
		}
	}
	index, width, partial := strings.Cut(rest, ".p/")
	if partial {
		if t.Width, err = strconv.Atoi(width); err != nil {
			return Tile{}, bad
		}
	}
	for group := range strings.SplitSeq(index, "/") {
		n, err := strconv.ParseUint(strings.TrimPrefix(group, "x"), 10, 64)
		if err != nil || n > 999 || t.Index > math.MaxUint64/1000-1 {
			return Tile{}, bad
		}
		t.Index = t.Index*1000 + n
	}
	if t.check() != nil || t.Path() != path { // leading zeroes, signs, a width of 256
		return Tile{}, bad
	}
	return t, nil
}

// In reports whether the tree of the given size has all that is in the tile. If
// not, the error wraps ErrNotInTree.
func (t Tile) In(size uint64) error {
	if err := t.check(); err != nil {
		return err
	}
	if size >= MaxSize {
		return fmt.Errorf("size %d: %w", size, ErrNotInTree)
	}
	shift := tileHeight * max(t.Level, 0)
	if have := size >> shift; t.Index*TileWidth+uint64(t.Width) > have {
		return fmt.Errorf("%s in the tree of size %d: %w", t.Path(), size, ErrNotInTree)
	}
	return nil
}

// ReadTile returns the hashes of a tile of the tree of the given size, one after
// the other, 32 bytes each. Bundles are not made of hashes: AppendToBundle.
func ReadTile(hashes HashReader, size uint64, t Tile) ([]byte, error) {
	if t.Level == EntriesLevel {
		return nil, fmt.Errorf("%s is a bundle of entries, not a tile", t.Path())
	}
	if err := t.In(size); err != nil {
		return nil, err
	}
	b, err := tlog.ReadTileData(tlog.Tile{H: tileHeight, L: t.Level, N: int64(t.Index), W: t.Width}, hashes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Path(), err)
	}
	return b, nil
}

// TilesOf lists the tiles that the tree of size newer has and the tree of size
// older has not, lower levels first. With older = 0 these are all tiles of a tree.
func TilesOf(older, newer uint64) []Tile {
	if newer >= MaxSize || older > newer {
		return nil
	}
	var out []Tile
	for _, t := range tlog.NewTiles(tileHeight, int64(older), int64(newer)) {
		out = append(out, fromTlog(t))
	}
	return out
}

func fromTlog(t tlog.Tile) Tile { return Tile{Level: t.L, Index: uint64(t.N), Width: t.W} }

// TileReader returns a HashReader that reads the tree of a head from its tiles,
// which fetch returns by their path. Nothing that fetch returns is trusted: every
// hash is checked against the root of the head before it is returned. So a proof
// made with the reader holds for the head, or is not made.
func TileReader(head Head, fetch func(path string) ([]byte, error)) HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]Hash, error) {
		if head.Size == 0 || head.Size >= MaxSize {
			return nil, fmt.Errorf("tiles of a tree of size %d: %w", head.Size, ErrNotInTree)
		}
		for _, x := range indexes {
			if x < 0 || x >= tlog.StoredHashCount(int64(head.Size)) {
				return nil, fmt.Errorf("stored hash %d in the tree of size %d: %w", x, head.Size, ErrNotInTree)
			}
		}
		return tlog.TileHashReader(tlog.Tree{N: int64(head.Size), Hash: head.Root}, fetcher(fetch)).ReadHashes(indexes)
	})
}

// fetcher is a tlog.TileReader of C2SP paths.
type fetcher func(path string) ([]byte, error)

func (fetcher) Height() int { return tileHeight }

func (f fetcher) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, t := range tiles {
		path := fromTlog(t).Path()
		b, err := f(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if len(b) != t.W*tlog.HashSize {
			return nil, fmt.Errorf("%s: %d bytes, want %d", path, len(b), t.W*tlog.HashSize)
		}
		out[i] = b
	}
	return out, nil
}

func (fetcher) SaveTiles([]tlog.Tile, [][]byte) {}

// AppendToBundle appends an entry to a bundle (C2SP tlog-tiles): its length in two
// bytes, big-endian, then the entry. What Entry returns always fits.
func AppendToBundle(bundle, entry []byte) ([]byte, error) {
	if len(entry) > math.MaxUint16 {
		return bundle, fmt.Errorf("bundle: an entry of %d bytes, want %d at most", len(entry), math.MaxUint16)
	}
	bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(entry)))
	return append(bundle, entry...), nil
}

// ParseBundle returns the entries of a bundle of the given width. They share its
// memory.
func ParseBundle(bundle []byte, width int) ([][]byte, error) {
	if width < 1 || width > TileWidth {
		return nil, fmt.Errorf("bundle: a width of %d, want 1 to %d", width, TileWidth)
	}
	out := make([][]byte, 0, width)
	for range width {
		if len(bundle) < 2 || len(bundle)-2 < int(binary.BigEndian.Uint16(bundle)) {
			return nil, fmt.Errorf("bundle: it ends within entry %d of %d", len(out), width)
		}
		end := 2 + int(binary.BigEndian.Uint16(bundle))
		out = append(out, bundle[2:end:end])
		bundle = bundle[end:]
	}
	if len(bundle) > 0 {
		return nil, errors.New("bundle: bytes behind the last entry")
	}
	return out, nil
}
