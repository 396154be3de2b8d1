package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/events/eventlog/server"
)

// logSource is where a whole log is read or restored: a NATS server or cluster, or
// the data directory of a `keytrail up` that is stopped.
type logSource struct {
	nats natsFlags
	dir  string
}

func (s *logSource) register(c *cobra.Command, user string) {
	s.nats.user = user
	s.nats.register(c)
	c.Flags().StringVar(&s.dir, "dir", "", "data directory of a keytrail up that is stopped, instead of --nats")
}

// ownLog is the log of a data directory, served in this process.
type ownLog struct {
	dir *ops.Dir
	srv *server.Server
}

func (o *ownLog) close() {
	if o.srv != nil {
		o.srv.Stop()
	}
	if o.dir != nil {
		o.dir.Close()
	}
}

// connect connects to the log as the source says. The caller closes both results.
func (s *logSource) connect(ctx context.Context, name string, logger *slog.Logger) (*nats.Conn, *ownLog, error) {
	if s.dir == "" {
		nc, err := s.nats.connect(name, logger)
		return nc, new(ownLog), err
	}
	o := new(ownLog)
	nc, err := o.open(ctx, s, logger)
	if err != nil {
		o.close()
		return nil, nil, err
	}
	return nc, o, nil
}

func (o *ownLog) open(ctx context.Context, s *logSource, logger *slog.Logger) (nc *nats.Conn, err error) {
	if o.dir, err = ops.OpenDir(s.dir); err != nil {
		return nil, err
	}
	if o.srv, err = startOwnServer(o.dir, logger); err != nil {
		return nil, err
	}
	wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := o.srv.WaitReady(wait); err != nil {
		return nil, err
	}
	if s.nats.user == "admin" {
		return o.srv.ConnectAdmin()
	}
	return o.srv.Connect()
}

// hasLog refuses a directory without a log, before anything is made in it.
func (s *logSource) hasLog() error {
	if s.dir == "" {
		return nil
	}
	if _, err := os.Stat(filepath.Join(s.dir, logMarker)); err != nil {
		return fmt.Errorf("--dir: there is no log in %s: name the data directory of `keytrail up`", s.dir)
	}
	return nil
}

// isEmpty refuses a directory that another log was used in. A root key may be there:
// it belongs to the log that is restored.
func (s *logSource) isEmpty() error {
	for _, name := range []string{logMarker, "snapshots", "clickhouse"} {
		if _, err := os.Lstat(filepath.Join(s.dir, name)); s.dir != "" && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("--dir: %s holds the %s of another log: want a new directory, at most with the root.key of the log in it", s.dir, name)
		}
	}
	return nil
}

// meter tells how far a long work is: one line that is rewritten on a terminal, else
// a line every ten seconds.
type meter struct {
	w     io.Writer
	what  string // as "backup"
	total uint64 // messages
	done  uint64
	began time.Time
	said  time.Time
	shown bool
}

func (a *app) meter(what string, total uint64) *meter {
	return &meter{w: a.err, what: what, total: total, began: time.Now(), said: time.Now()}
}

func (m *meter) add() {
	m.done++
	if m.done%256 != 0 {
		return
	}
	every, lead, end := 10*time.Second, "", "\n"
	if terminal(m.w) {
		every, lead, end = 500*time.Millisecond, "\r", " "
	}
	if time.Since(m.said) < every {
		return
	}
	m.said, m.shown = time.Now(), end == " "
	fmt.Fprint(m.w, lead, m.line(time.Since(m.began)), end)
}

func (m *meter) line(took time.Duration) string {
	rate := float64(m.done) / took.Seconds()
	left := time.Duration(float64(m.total-min(m.total, m.done)) / rate * float64(time.Second)).Round(time.Second)
	return fmt.Sprintf("%s: %d of %d messages, %.0f/s, %s left", m.what, m.done, m.total, rate, left)
}

// end leaves the cursor on a fresh line.
func (m *meter) end() {
	if m.shown {
		fmt.Fprintln(m.w)
	}
}
