package engine

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/keytrail/keytrail/internal/files"
)

// fetch brings the library into the cache (invariant 4): npm installs it into a
// folder beside, it is hashed there, and then renamed into place. Only one
// process does so at a time; one that waited finds it done.
//
// crash anywhere: the lock ends with the process, the folder beside is removed by
// the next fetch, the cache has no library or a whole one.
func fetch(ctx context.Context, cfg Config) (lib string, err error) {
	p, ok := platforms[runtime.GOOS+"/"+runtime.GOARCH]
	if !ok {
		return "", fmt.Errorf("%w: no build of it is pinned for %s/%s", ErrUnavailable, runtime.GOOS, runtime.GOARCH)
	}
	folder := cacheFolder(cfg, p)
	parent := filepath.Dir(folder)
	if err := files.MakeDir(parent); err != nil {
		return "", fmt.Errorf("the engine's cache: %w", err)
	}
	tell := newProgress(cfg.Progress)
	defer tell.end()
	unlock, err := lockCache(ctx, filepath.Join(parent, "lock"), tell)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if lib, err := locate(cfg); err == nil {
		return lib, nil
	}

	abandoned, err := filepath.Glob(filepath.Join(parent, "fetch-*"))
	if err != nil {
		return "", err
	}
	for _, path := range abandoned {
		if err := os.RemoveAll(path); err != nil {
			return "", fmt.Errorf("remove an abandoned fetch: %w", err)
		}
	}
	beside, err := os.MkdirTemp(parent, "fetch-")
	if err != nil {
		return "", fmt.Errorf("make a folder to fetch into: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(beside)) }()
	if err := p.copyLock(beside); err != nil {
		return "", fmt.Errorf("write the engine's lock file: %w", err)
	}
	if err := npmInstall(ctx, beside, p, tell); err != nil {
		return "", err
	}
	fetched := filepath.Join(beside, "node_modules", "@chdb", "lib-"+p.npm)
	tell.line("checking the local ClickHouse engine", true)
	if err := verify(filepath.Join(fetched, "libchdb.so"), p); err != nil {
		return "", err
	}
	// What stands there without a valid mark is not what was verified. An engine
	// that still runs from it keeps its mapping.
	if err := os.RemoveAll(folder); err != nil {
		return "", fmt.Errorf("clear the engine's cache: %w", err)
	}
	if err := os.Rename(fetched, folder); err != nil {
		return "", fmt.Errorf("put the engine into the cache: %w", err)
	}
	tell.line("the local ClickHouse engine is in "+folder, true)
	return filepath.Join(folder, "libchdb.so"), nil
}

// verify hashes the library, makes it durable and leaves the mark beside it.
func verify(lib string, p platform) error {
	f, err := os.Open(lib)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrIntegrity, err)
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	if err != nil {
		return fmt.Errorf("hash the fetched engine: %w", err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); size != p.size || got != p.sha256 {
		return fmt.Errorf("%w: libchdb.so has %d bytes and sha256 %s, expected %d and %s; nothing was kept", ErrIntegrity, size, got, p.size, p.sha256)
	}
	// Before the mark and the rename, which would outlive a power cut without it.
	if err := f.Sync(); err != nil {
		return fmt.Errorf("store the fetched engine: %w", err)
	}
	text, err := mark(lib, p)
	if err != nil {
		return fmt.Errorf("mark the fetched engine: %w", err)
	}
	if err := os.WriteFile(markFile(lib), []byte(text), 0o600); err != nil {
		return fmt.Errorf("mark the fetched engine: %w", err)
	}
	return nil
}

// npmInstall runs npm in the folder and tells how far it is.
func npmInstall(ctx context.Context, folder string, p platform, tell *progress) error {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return fmt.Errorf("%w: npm, which fetches it, is not on PATH", ErrUnavailable)
	}
	var out bytes.Buffer
	// --prefix: a parent npm would otherwise pass its own. --prefer-offline: the
	// lock pins the content, so what npm has cached is as good as fresh.
	cmd := exec.CommandContext(ctx, npm, "ci", "--prefix="+folder, "--ignore-scripts", "--prefer-offline",
		"--no-audit", "--no-fund", "--no-update-notifier", "--no-progress", "--loglevel=error")
	cmd.Dir = folder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Second

	done := make(chan struct{})
	told := make(chan struct{})
	go func() { // joined below
		defer close(told)
		tell.watch(folder, p.size, done)
	}()
	err = cmd.Run()
	close(done)
	<-told
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("fetch the local ClickHouse engine: %w", context.Cause(ctx))
	}
	return npmError(err, out.String())
}

// npmFailures are the failures a user can do something about, by what npm prints.
var npmFailures = []struct {
	codes    []string
	sentence string
	kind     error
}{
	{[]string{"EINTEGRITY"},
		"what npm downloaded is not the pinned engine (its hash differs), so it was thrown away; a registry mirror or a proxy may have changed it", ErrIntegrity},
	{[]string{"ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "ERR_SOCKET_TIMEOUT", "ENOTCACHED"},
		"npm cannot reach its registry: the machine is offline, or npm needs a proxy or a mirror", ErrUnavailable},
	{[]string{"E404", "ETARGET"},
		"npm's registry does not have the pinned engine; a mirror may not carry it", ErrUnavailable},
	{[]string{"E401", "E403", "ENEEDAUTH"},
		"npm's registry refused access; check npm's login", ErrUnavailable},
	{[]string{"ENOSPC", "EDQUOT"},
		"the disk is full: the local engine needs 600 MB in the cache, and npm as much again while it works", ErrUnavailable},
}

// npmError makes a sentence of npm's failure, with its last lines.
func npmError(err error, output string) error {
	lines := lastLines(output, 6)
	for _, f := range npmFailures {
		for _, code := range f.codes {
			if strings.Contains(output, "code "+code) {
				return fmt.Errorf("%w: %s; npm said: %s", f.kind, f.sentence, lines)
			}
		}
	}
	return fmt.Errorf("%w: npm failed (%w); npm said: %s", ErrUnavailable, err, lines)
}

// lastLines returns the last lines of a program's output that say anything, as
// one line.
func lastLines(output string, n int) string {
	var lines []string
	for line := range strings.Lines(output) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return "nothing"
	}
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}

// lockCache waits until this process may write to the cache.
func lockCache(ctx context.Context, path string, tell *progress) (unlock func() error, err error) {
	for {
		f, err := files.Lock(path)
		if err == nil {
			return f.Close, nil
		}
		if errors.Is(err, files.ErrLocked) {
			tell.line("waiting for another Keytrail that fetches the local ClickHouse engine", false)
			err = pause(ctx, 200*time.Millisecond, nil)
		}
		if err != nil {
			return nil, fmt.Errorf("lock the engine's cache: %w", err)
		}
	}
}
