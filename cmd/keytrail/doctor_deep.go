package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keytrail/keytrail/audit"
	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/internal/files"
)

// deepConfig is where the whole log and its copy are.
type deepConfig struct {
	nats natsFlags
	dsn  string // "" compares no copy; with dir: the local engine's
	dir  string // of a stopped `keytrail up`
}

const wayToLog = "start the log, name it with --nats or KEYTRAIL_NATS, and give the password of the user ctrl in KEYTRAIL_CTRL_PASSWORD"

// running checks the log of a running deployment, and its copy.
func (d *doctor) running(ctx context.Context, cfg deepConfig) {
	logger := d.logger()
	nc, err := cfg.nats.connect("keytrail doctor", logger)
	if err != nil {
		d.fail("log", err, wayToLog)
		return
	}
	defer nc.Close()
	log, err := eventlog.Open(ctx, nc, eventlog.Options{})
	if err != nil {
		d.fail("log", err, openAdvice(err))
		return
	}
	last, ok := d.log(ctx, log)
	if !ok {
		return
	}
	d.streams(ctx, log)
	d.servers(ctx, cfg.nats, logger)
	if cfg.dsn != "" {
		d.copy(ctx, log, last, cfg.dsn, logger, true)
	}
}

// stopped checks the log in the data directory of a `keytrail up` that is
// stopped, and its copy.
func (d *doctor) stopped(ctx context.Context, cfg deepConfig) {
	const mend = "name the data directory of `keytrail up` with --dir"
	if _, err := os.Stat(filepath.Join(cfg.dir, logMarker)); err != nil {
		d.fail("data directory", fmt.Errorf("there is no log in %s", cfg.dir), mend)
		return
	}
	dir, err := ops.OpenDir(cfg.dir)
	if err != nil {
		d.fail("data directory", err, "stop `keytrail up` with Ctrl-C, then run this again")
		return
	}
	defer dir.Close()
	marker, err := files.ReadOwn(dir.Sub(logMarker))
	if err != nil {
		d.fail("data directory", err, mend)
		return
	}
	id, err := events.ParseLogID(marker)
	if err != nil {
		d.fail("data directory", fmt.Errorf("%s: %w", dir.Sub(logMarker), err), "restore this file from a backup")
		return
	}
	logger := d.logger()
	srv, err := startOwnServer(dir, logger)
	if err != nil {
		d.fail("log", err, "")
		return
	}
	defer srv.Stop()
	nc, err := srv.Connect()
	if err != nil {
		d.fail("log", err, "")
		return
	}
	defer nc.Close()
	log, err := eventlog.Open(ctx, nc, eventlog.Options{AtLeast: events.Position{Log: id}, Logger: logger})
	if err != nil {
		d.fail("log", err, openAdvice(err))
		return
	}
	last, ok := d.log(ctx, log)
	if !ok {
		return
	}
	d.streams(ctx, log)
	dsn := cfg.dsn
	if dsn == "" {
		eng, err := engine.Start(ctx, engine.Config{Dir: dir.Sub("clickhouse"), Progress: d.app.err, Logger: logger})
		if err != nil {
			d.fail("copy", err, "")
			return
		}
		defer eng.Close()
		dsn = eng.DSN()
	}
	d.copy(ctx, log, last, dsn, logger, false)
}

// openAdvice says what helps when the log cannot be opened. A log that is broken
// says so itself.
func openAdvice(err error) string {
	if corrupt := (*events.CorruptError)(nil); errors.As(err, &corrupt) {
		return ""
	}
	return "if this is a new NATS server, run `keytrail init` once; otherwise see the servers' own logs"
}

// log reads the whole log, and returns its last event.
func (d *doctor) log(ctx context.Context, log *eventlog.Log) (last events.Seq, ok bool) {
	if err := log.Check(ctx, func(_, n events.Seq) { last = n }); err != nil {
		advice := ""
		if corrupt := (*events.CorruptError)(nil); !errors.As(err, &corrupt) { // which says it itself
			advice = wayToLog
		}
		d.fail("log", err, advice)
		return 0, false
	}
	d.ok("log", fmt.Sprintf("%d events, no gap, every chain whole", last))
	var reads events.Seq
	if err := log.Reads().Check(ctx, func(_, n events.Seq) { reads = n }); err != nil {
		d.fail("log of reads", err, "")
	} else {
		d.ok("log of reads", fmt.Sprintf("%d events, no gap, every chain whole", reads))
	}
	return last, true
}

// servers asks the log's servers whether they fsync before they acknowledge, if
// the password of the user who may ask is here.
func (d *doctor) servers(ctx context.Context, nf natsFlags, logger *slog.Logger) {
	nf.user = "sys"
	if pw, err := password(nf.user); err != nil || pw == "" {
		d.note("fsync", "not asked: KEYTRAIL_SYS_PASSWORD is not set here")
		return
	}
	nc, err := nf.connect("keytrail doctor", logger)
	if err != nil {
		d.fail("fsync", err, "correct KEYTRAIL_SYS_PASSWORD")
		return
	}
	defer nc.Close()
	if err := server.CheckServers(ctx, nc, 1); err != nil {
		d.fail("fsync", err, "set sync_interval: always on every server of the log, as deploy/nats/nats.conf does, and restart it")
		return
	}
	d.ok("fsync", "every server syncs before it acknowledges")
}

// copy compares the copy with the log. That of a running auditor may take a
// little to have all of it.
func (d *doctor) copy(ctx context.Context, log *eventlog.Log, last events.Seq, dsn string, logger *slog.Logger, running bool) {
	store, err := audit.Attach(ctx, audit.StoreConfig{DSN: dsn, Logger: logger})
	if err != nil {
		advice := "correct the DSN"
		switch {
		case errors.Is(err, audit.ErrNotMigrated):
			advice = "" // the error says it
		case errors.Is(err, audit.ErrUnavailable):
			if advice = "remove the reason in ClickHouse"; strings.Contains(err.Error(), "cannot be reached") {
				advice = "start ClickHouse, or correct the DSN"
			}
		}
		d.fail("copy", err, advice)
		return
	}
	defer store.Close()
	if err := copied(ctx, store, log, last, running); err != nil && running {
		d.fail("copy", err, "start the auditor; if it runs, is this its database? The comparison below covers what is there")
	} else if err != nil {
		d.note("copy", err.Error()+"; the next start copies the rest")
	}
	switch n, newest, err := store.Quarantine(ctx, 3); {
	case err != nil:
		d.fail("copy", err, "")
		return
	case n > 0:
		for _, m := range newest {
			d.note("copy", fmt.Sprintf("set aside, one of %d: %s", n, m))
		}
	}
	found, err := audit.Reconcile(ctx, store, log, log.Reads(), log)
	if err != nil {
		d.fail("copy", err, "")
		return
	}
	for _, m := range found.Mismatches {
		d.fail("copy", errors.New(m.String()), "the log wins: rebuild the copy in a fresh database (runbook: Rebuild the copy)")
	}
	if len(found.Mismatches) == 0 {
		d.ok("copy", found.String())
	}
}

// copied reports whether the copy holds the log's events up to last and the uses
// that are there now. It waits a little for it when the auditor is running.
func copied(ctx context.Context, store *audit.Store, log *eventlog.Log, last events.Seq, running bool) error {
	lastUse, err := log.LastUse(ctx)
	if err != nil {
		return err
	}
	lastRead, err := log.Reads().Last(ctx)
	if err != nil {
		return err
	}
	for tries := 0; ; tries++ {
		mark, err := store.Watermark(ctx)
		if err != nil || mark.EventsSeq >= last && mark.ReadsSeq >= lastRead && mark.UsesSeq >= lastUse {
			return err
		}
		behind := fmt.Sprintf("%s has events up to %d of %d, readings up to %d of %d and messages of uses up to %d of %d", store, mark.EventsSeq, last, mark.ReadsSeq, lastRead, mark.UsesSeq, lastUse)
		if !running {
			return errors.New(behind)
		}
		if tries == 50 {
			return errors.New(behind + ", and does not catch up")
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
