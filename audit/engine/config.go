package engine

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
)

const (
	// DefaultMemoryLimit is the cap on the engine's memory, in bytes.
	DefaultMemoryLimit = 1_500_000_000
	// DefaultMarkCache is the size of each of the engine's index caches, in bytes.
	DefaultMarkCache = 64 << 20

	// minMemoryLimit is what the engine needs to start and merge small parts.
	minMemoryLimit = 256 << 20
)

// Config says where the engine lives and how much it may take.
// Only Dir is needed; the zero value of every other field is its default.
type Config struct {
	// Dir holds the tables, the password and the generated configuration. It is
	// made with mode 0700 if missing, and belongs to one process at a time.
	Dir string

	// Cache holds the fetched library, shared by all projects of the user.
	// Default: keytrail in the user's cache directory. Needs 600 MB.
	Cache string

	// MemoryLimit caps the whole engine, in bytes. Default DefaultMemoryLimit.
	// A query or a merge that would pass it fails with code 241, the engine
	// stays. The process may show some 0.3 GB more: the mapped library.
	MemoryLimit int64

	// MarkCache is the size of each of the engine's index caches (marks, primary
	// keys, text indexes), in bytes. Default DefaultMarkCache. ClickHouse's own
	// defaults are 1 to 5 GB, more than MemoryLimit. Too small costs reads,
	// nothing else.
	MarkCache int64

	// Progress receives the lines about the one-off fetch: rewritten in place on
	// a terminal, one every few seconds otherwise. Default: nobody is told.
	Progress io.Writer

	// Logger receives restarts (warn) and the engine's own messages (debug).
	// Default: nobody is told.
	Logger *slog.Logger

	// freePort picks a port to listen on; replaced by tests.
	freePort func() (int, error)

	// spareQueries is how many queries the quota of `default` has left after the
	// start; tests set it.
	spareQueries int
}

// Validate reports every fault of the configuration at once.
func (c Config) Validate() error {
	var faults []error
	if c.Dir == "" {
		faults = append(faults, errors.New("no Dir: the engine needs a directory of its own"))
	}
	if c.MemoryLimit != 0 && c.MemoryLimit < minMemoryLimit {
		faults = append(faults, fmt.Errorf("MemoryLimit is %d bytes: the engine needs at least %d", c.MemoryLimit, minMemoryLimit))
	}
	if c.MarkCache < 0 {
		faults = append(faults, fmt.Errorf("MarkCache is %d bytes: it cannot be negative", c.MarkCache))
	}
	return errors.Join(faults...)
}

// withDefaults fills in what was left out and makes the paths absolute, because
// the engine resolves relative ones against places of its own.
func (c Config) withDefaults() (Config, error) {
	if c.Dir != "" {
		dir, err := filepath.Abs(c.Dir)
		if err != nil {
			return c, fmt.Errorf("resolve %s: %w", c.Dir, err)
		}
		c.Dir = dir
	}
	if c.Cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return c, fmt.Errorf("find a cache directory for the local engine (set XDG_CACHE_HOME): %w", err)
		}
		c.Cache = filepath.Join(user, "keytrail")
	}
	cache, err := filepath.Abs(c.Cache)
	if err != nil {
		return c, fmt.Errorf("resolve %s: %w", c.Cache, err)
	}
	c.Cache = cache
	if c.MemoryLimit == 0 {
		c.MemoryLimit = DefaultMemoryLimit
	}
	if c.MarkCache == 0 {
		c.MarkCache = DefaultMarkCache
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.freePort == nil {
		c.freePort = freePort
	}
	return c, nil
}
