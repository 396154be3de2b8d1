package engine

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/keytrail/keytrail/internal/files"
)

// EnvLibrary names the variable with the path of a libchdb.so to use instead of
// the pinned one.
const EnvLibrary = "KEYTRAIL_CHDB_LIB"

// npmFiles holds a package.json and a package-lock.json per platform: the lock's
// hash is what npm checks the download against. One folder each, because npm
// leaves a package out of a common lock where it is not for the platform, and
// then finds the lock out of step. A plain dependency each, because npm ignores
// a wrong hash of an optional one.
//
//go:embed npm
var npmFiles embed.FS

// platform is one published build of the library.
type platform struct {
	npm    string // folder below npm/, and the package is @chdb/lib-<npm>
	sha256 string // of libchdb.so, hex
	size   int64  // of libchdb.so, bytes
}

// release is the version pinned in the lock files; it names the cache's folder,
// so that another Keytrail with another pin finds its own beside it.
const release = "26.7.3-stable.1"

// platforms lists what the lock files are there for. The builds for other
// systems (linux-arm64-gnu, darwin-*) are added with a lock each where they can
// be fetched and tried.
var platforms = map[string]platform{
	"linux/amd64": {
		npm:    "linux-x64-gnu",
		sha256: "36ad4e999882821ef13cf2d0f52c93f48e6ee1b4498b35a201c23ce4b8d15bf5",
		size:   566330096,
	},
}

// errNotFetched: the cache has no library, or not the pinned one.
var errNotFetched = errors.New("the local engine has not been fetched")

// Locate returns the path of the library without fetching it: the file named by
// KEYTRAIL_CHDB_LIB, else the user's cache. ErrUnavailable if it is in neither,
// ErrNoEngine if this build cannot run one.
func Locate(cfg Config) (string, error) {
	if unsupported != "" {
		return "", fmt.Errorf("%w: %s", ErrNoEngine, unsupported)
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return "", err
	}
	lib, err := locate(cfg)
	if errors.Is(err, errNotFetched) {
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return lib, err
}

// Ensure returns the path of the library, fetching it with npm into the cache if
// it is not there yet: once per user, some ten seconds, told on cfg.Progress.
// Any number of processes may do so at once; one fetches, the others wait.
//
// Errors: ErrIntegrity if what came is not the pinned library, ErrUnavailable if
// npm is missing or failed (with its last lines), ErrNoEngine; others are of the
// system, or ctx's.
func Ensure(ctx context.Context, cfg Config) (string, error) {
	if unsupported != "" {
		return "", fmt.Errorf("%w: %s", ErrNoEngine, unsupported)
	}
	cfg, err := cfg.withDefaults()
	if err != nil {
		return "", err
	}
	return ensure(ctx, cfg)
}

func ensure(ctx context.Context, cfg Config) (string, error) {
	lib, err := locate(cfg)
	if errors.Is(err, errNotFetched) {
		return fetch(ctx, cfg)
	}
	return lib, err
}

func locate(cfg Config) (string, error) {
	if lib := os.Getenv(EnvLibrary); lib != "" {
		lib, err := filepath.Abs(lib)
		if err != nil {
			return "", fmt.Errorf("%s: %w", EnvLibrary, err)
		}
		// Named on purpose, so nothing else is tried in its place.
		if _, err := os.Stat(lib); err != nil {
			return "", fmt.Errorf("%s names no library: %w", EnvLibrary, err)
		}
		return lib, nil
	}
	p, ok := platforms[runtime.GOOS+"/"+runtime.GOARCH]
	if !ok {
		return "", fmt.Errorf("%w: no build is pinned for %s/%s", errNotFetched, runtime.GOOS, runtime.GOARCH)
	}
	lib := filepath.Join(cacheFolder(cfg, p), "libchdb.so")
	// The library becomes part of a process of ours: nobody else may have put it there.
	err := files.CheckDir(filepath.Dir(filepath.Dir(lib)))
	if errors.Is(err, fs.ErrNotExist) {
		return "", errNotFetched
	}
	if err != nil {
		return "", fmt.Errorf("the engine's cache: %w", err)
	}
	if !markedGood(lib, p) {
		return "", errNotFetched
	}
	return lib, nil
}

func cacheFolder(cfg Config, p platform) string {
	return filepath.Join(cfg.Cache, "chdb", release+"-"+p.npm)
}

// mark is what stands beside a library that was hashed and found good: its hash,
// size and time of change. Later starts compare these in place of 566 MB.
func mark(lib string, p platform) (string, error) {
	info, err := os.Stat(lib)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s %d %s\n", p.sha256, info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano)), nil
}

func markFile(lib string) string { return filepath.Join(filepath.Dir(lib), "verified") }

// markedGood reports whether the library is there, unchanged since it was hashed.
func markedGood(lib string, p platform) bool {
	want, err := mark(lib, p)
	if err != nil {
		return false
	}
	have, err := os.ReadFile(markFile(lib))
	return err == nil && string(have) == want
}

// findLauncher decides what to run: the library, else a clickhouse on PATH.
func findLauncher(ctx context.Context, cfg Config) (launcher, error) {
	lib, err := ensure(ctx, cfg)
	if err == nil {
		return launcher{lib: lib}, nil
	}
	// A library named on purpose, a foreign one, a full disk: the user must know.
	if !errors.Is(err, ErrUnavailable) {
		return launcher{}, err
	}
	binary, lookErr := exec.LookPath("clickhouse")
	if errors.Is(lookErr, exec.ErrNotFound) {
		return launcher{}, fmt.Errorf("%w; %s", err, waysOut)
	}
	if lookErr != nil {
		return launcher{}, errors.Join(err, lookErr)
	}
	out, runErr := exec.CommandContext(ctx, binary, "local", "--query", "SELECT version()").Output()
	if runErr != nil {
		return launcher{}, errors.Join(err, fmt.Errorf("ask %s for its version: %w", binary, runErr))
	}
	if err := checkVersion(strings.TrimSpace(string(out))); err != nil {
		return launcher{}, fmt.Errorf("%s: %w; %s", binary, err, waysOut)
	}
	return launcher{binary: binary}, nil
}

// copyLock writes the platform's package.json and lock into a folder.
func (p platform) copyLock(folder string) error {
	sub, err := fs.Sub(npmFiles, "npm/"+p.npm)
	if err != nil {
		return err
	}
	return os.CopyFS(folder, sub)
}
