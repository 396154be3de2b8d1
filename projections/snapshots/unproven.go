package snapshots

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/files"
)

// fetched is one snapshot that came from another node.
type fetched struct {
	view string
	seq  events.Seq
	root events.Hash // of the tree over the events up to seq
	sum  events.Hash // SHA-256 of all its bytes
	from string      // the source
}

// The files of a directory of snapshots that tell of fetched ones: those whose rows are
// not proven yet, and those that were refused. Each is a line for the form, the log's id,
// and a line for each snapshot.
const (
	unprovenFile = "unproven"
	refusedFile  = "refused"
	form         = "keytrail fetched snapshots 1"
)

// read returns none for a file that is not there, or that is of another log: then the
// snapshots beside it are too.
func read(dir, name string, log events.LogID) ([]fetched, error) {
	text, err := files.ReadOwn(filepath.Join(dir, name))
	if err != nil || text == "" {
		return nil, err
	}
	list, id, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, name), err)
	}
	if id != log {
		return nil, nil
	}
	return list, nil
}

func write(dir, name string, log events.LogID, list []fetched) error {
	return files.Write(filepath.Join(dir, name), []byte(format(log, list)))
}

func format(log events.LogID, list []fetched) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", form, log)
	for _, f := range list {
		fmt.Fprintf(&b, "%s %d %s %s %s\n", f.view, f.seq, f.root, f.sum, f.from)
	}
	return b.String()
}

// parse reads exactly what format writes, but for space around it.
func parse(text string) (list []fetched, log events.LogID, err error) {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if lines[0] != form || len(lines) < 2 {
		return nil, log, fmt.Errorf("want the lines %q and a log's id; an older or newer release wrote it, or it is damaged: remove the directory of snapshots, the log is read again", form)
	}
	if log, err = events.ParseLogID(lines[1]); err != nil {
		return nil, log, err
	}
	for i, line := range lines[2:] {
		f, err := parseLine(line)
		if err != nil {
			return nil, log, fmt.Errorf("line %d: %w; it is damaged: remove the directory of snapshots, the log is read again", i+3, err)
		}
		list = append(list, f)
	}
	return list, log, nil
}

func parseLine(line string) (f fetched, err error) {
	words := strings.Split(line, " ")
	if len(words) != 5 || kinds[words[0]] == nil || words[4] == "" {
		return f, fmt.Errorf("want a view, a sequence, a root, a SHA-256 and a source")
	}
	f.view, f.from = words[0], words[4]
	n, err := strconv.ParseUint(words[1], 10, 64)
	if f.seq = events.Seq(n); err != nil || n == 0 || words[1] != strconv.FormatUint(n, 10) {
		return f, fmt.Errorf("want a sequence from 1 on")
	}
	if err := f.root.UnmarshalText([]byte(words[2])); err != nil {
		return f, err
	}
	return f, f.sum.UnmarshalText([]byte(words[3]))
}
