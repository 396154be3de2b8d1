package main

import (
	"context"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/internal/files"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/projections/snapshots"
)

// scrub adds the background check of the log, once no view follows from a snapshot that
// is not proven: what would differ might be the view. How far it is stays in dir, if there
// is one, so that a process that is often restarted comes to the end of the log.
func (n *node) scrub(dir string, fetched *snapshots.Store) {
	s := &projections.Scrubber{Log: n.log, View: n.keys, Logger: n.logger}
	if dir != "" {
		file := filepath.Join(dir, scrubFile)
		var err error
		if s.Begin, err = readScrub(file, n.log.ID()); err != nil {
			n.logger.Warn("the background check begins at the first event", "err", err)
		}
		s.Keep = func(r tree.Range) error { return files.Write(file, formatScrub(n.log.ID(), &r)) }
	}
	n.server.Registry.MustRegister(s.Collectors()...)
	n.group.Go("scrub", func(ctx context.Context) error {
		if fetched != nil {
			if err := fetched.Wait(ctx); err != nil {
				return err
			}
		}
		return s.Run(ctx)
	})
}

// scrubFile holds how far the log was read again: a line for the form, the log's id,
// and the compact range of the tree up to there in base64. Nothing is believed of it
// that the view does not confirm.
const (
	scrubFile = "scrub"
	scrubForm = "keytrail scrub 1"
)

func formatScrub(id events.LogID, r *tree.Range) []byte {
	b, _ := r.MarshalBinary() // never fails
	return fmt.Appendf(nil, "%s\n%s\n%s\n", scrubForm, id, base64.StdEncoding.EncodeToString(b))
}

// readScrub returns the zero Range for a file that is not there or of another log.
func readScrub(file string, id events.LogID) (r tree.Range, err error) {
	text, err := files.ReadOwn(file)
	if err != nil || text == "" {
		return r, err
	}
	return parseScrub(text, id)
}

func parseScrub(text string, id events.LogID) (r tree.Range, err error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 3 || lines[0] != scrubForm {
		return r, fmt.Errorf("%s: want the lines %q, a log's id and a compact range; delete it", scrubFile, scrubForm)
	}
	if lines[1] != id.String() {
		return r, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err == nil {
		err = r.UnmarshalBinary(b)
	}
	if err != nil {
		return tree.Range{}, fmt.Errorf("%s: %w; delete it", scrubFile, err)
	}
	return r, nil
}
