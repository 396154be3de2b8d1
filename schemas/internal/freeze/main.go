// Command freeze keeps schemas/frozen.sum: the SHA-256 of every published file.
// It appends files that are new and refuses to go on when a file that is already
// there has changed or vanished, because someone out there reads by it.
//
// Run it as go generate ./schemas. Before the first release, a shape may still
// be corrected with go run ./internal/freeze -force in the folder schemas.
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

const sumFile = "frozen.sum"

// published are the files whose shape is a promise. Two are not in the list yet:
// openapi/ describes endpoints that still grow within version 1, and clickhouse/
// holds the migrations of tables that no release has created. Both are to be
// added at the first release.
var published = []string{"events/*.json", "keyspace.v1.json", "proto/*.proto", "tree/*.json"}

func main() {
	force := flag.Bool("force", false, "accept changed and vanished files")
	flag.Parse()
	if err := run(".", *force); err != nil {
		fmt.Fprintln(os.Stderr, "freeze:", err)
		os.Exit(1)
	}
}

func run(dir string, force bool) error {
	fsys := os.DirFS(dir)
	old, err := fs.ReadFile(fsys, sumFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next, err := update(fsys, old, force)
	if err != nil || bytes.Equal(next, old) {
		return err
	}
	return os.WriteFile(dir+"/"+sumFile, next, 0o644)
}

// update returns the sums of the published files in fsys, sorted by name. Unless
// forced, it fails when old lists one that differs or is gone.
func update(fsys fs.FS, old []byte, force bool) ([]byte, error) {
	now := map[string]string{}
	for _, pattern := range published {
		names, err := fs.Glob(fsys, pattern)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			b, err := fs.ReadFile(fsys, name)
			if err != nil {
				return nil, err
			}
			now[name] = fmt.Sprintf("%x", sha256.Sum256(b))
		}
	}
	if len(now) == 0 {
		return nil, fmt.Errorf("no published files here: run it in the folder schemas")
	}
	if !force {
		var wrong []string
		for line := range strings.Lines(string(old)) {
			sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
			if !ok {
				return nil, fmt.Errorf("%s: %q: want a digest, two spaces, a name", sumFile, line)
			}
			if now[name] != sum {
				wrong = append(wrong, name)
			}
		}
		if len(wrong) > 0 {
			return nil, fmt.Errorf("published files changed or vanished: %s; restore them and put the new shape into a file of the next version", strings.Join(wrong, ", "))
		}
	}
	var out bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(now)) {
		fmt.Fprintf(&out, "%s  %s\n", now[name], name)
	}
	return out.Bytes(), nil
}
