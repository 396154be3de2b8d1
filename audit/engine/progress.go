package engine

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// plainEvery is the least time between two lines where they cannot be rewritten.
const plainEvery = 5 * time.Second

// progress tells what a fetch is doing: one line that is rewritten on a terminal,
// else a line every few seconds. Used by one goroutine at a time. A writer that
// fails is not the fetch's concern.
type progress struct {
	w        io.Writer
	terminal bool
	width    int       // of the line that stands on the terminal
	last     time.Time // of the last line written
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&fs.ModeCharDevice != 0
	}
	return p
}

// line tells the state; an important one is told even right after another.
func (p *progress) line(text string, important bool) {
	if p.terminal {
		fmt.Fprint(p.w, "\r", text, strings.Repeat(" ", max(0, p.width-len(text))))
		p.width = len(text)
		return
	}
	if important || time.Since(p.last) >= plainEvery {
		fmt.Fprintln(p.w, text)
		p.last = time.Now()
	}
}

// end leaves the cursor on a fresh line.
func (p *progress) end() {
	if p.width > 0 {
		fmt.Fprintln(p.w)
	}
}

// watch tells each second how long it took and how much of size stands in the
// folder, until done closes.
func (p *progress) watch(folder string, size int64, done <-chan struct{}) {
	const mega = 1_000_000
	p.line("fetching the local ClickHouse engine with npm, once: 170 MB to download, "+fmt.Sprint(size/mega)+" MB on disk", true)
	began := time.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return
		case <-ticker.C:
			p.line(fmt.Sprintf("fetching the local ClickHouse engine: %.0f s, %d of %d MB on disk",
				time.Since(began).Seconds(), folderSize(folder)/mega, size/mega), false)
		}
	}
}

// folderSize adds up the files below a folder. npm moves them while it works, so
// what vanishes between two looks is left out.
func folderSize(folder string) int64 {
	var sum int64
	_ = filepath.WalkDir(folder, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil
		}
		if info, err := entry.Info(); err == nil {
			sum += info.Size()
		}
		return nil
	})
	return sum
}
