package server

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// removeUnmade removes what a kill left of streams that were never made: NATS makes a
// stream's directory before the two files that describe the stream, and acknowledges
// it after them. Without one of them it does not recover the stream, and calls itself
// unhealthy at every start. A directory that holds messages is left as it is.
func removeUnmade(dir string) error {
	dirs, err := filepath.Glob(filepath.Join(dir, "jetstream", "*", "streams", "*"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		made := true
		for _, name := range []string{"meta.inf", "meta.sum"} {
			if _, err := os.Stat(filepath.Join(d, name)); errors.Is(err, fs.ErrNotExist) {
				made = false
			}
		}
		if made {
			continue
		}
		blocks, err := filepath.Glob(filepath.Join(d, "msgs", "*.blk"))
		if err != nil {
			return err
		}
		empty := true
		for _, b := range blocks {
			if fi, err := os.Stat(b); err != nil || fi.Size() > 0 {
				empty = false
			}
		}
		if empty {
			if err := os.RemoveAll(d); err != nil {
				return err
			}
		}
	}
	return nil
}
