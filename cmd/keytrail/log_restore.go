package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/backup"
	"github.com/keytrail/keytrail/events/eventlog/raw"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/internal/files"
)

func (a *app) logRestoreCmd() *cobra.Command {
	var to logSource
	var init server.InitConfig
	var restart bool
	c := &cobra.Command{Use: "restore FILE", Short: "Restore a backup into an empty server, as a new log", Args: exactly("FILE"),
		Long: `Restore a backup into a NATS server or cluster that holds no log, or into the new
data directory of a 'keytrail up'. The messages are the same, byte for byte and
under the same sequences, so that the Merkle root is the same. The log's id is new:
snapshots, positions, checkpoints and copies of the old log are refused everywhere,
and nothing can confuse the two. The stored time of each message is that of the
restore; the time of each event is in its document, and stays.

The backup is checked before anything is written, and the log is read back and
checked at the end. Until then it is marked, and no role uses it. If a restore is
broken off, run it again with --restart.

  KEYTRAIL_ADMIN_PASSWORD=… keytrail log restore --nats nats://log-1:4222 --replicas 3 FILE
  keytrail log restore --dir keytrail-data FILE`,
		RunE: func(c *cobra.Command, args []string) error {
			logger, err := a.logger(slog.LevelWarn)
			if err != nil {
				return err
			}
			if err := to.isEmpty(); err != nil {
				return err
			}
			cfg, report, err := a.readBackup(args[0])
			if err != nil {
				return fmt.Errorf("%s is not restored: %w", args[0], err)
			}
			nc, own, err := to.connect(c.Context(), "keytrail log restore", logger)
			if err != nil {
				return err
			}
			defer own.close()
			defer nc.Close()
			cfg.InitConfig = init
			if own.srv != nil && init.MaxStore == 0 {
				budget, err := own.srv.Budget()
				if err != nil {
					return err
				}
				cfg.MaxStore = min(budget, max(server.DefaultMaxStore, cfg.Need()))
			}
			if restart {
				if err := server.Abandon(c.Context(), nc); err != nil {
					return err
				}
			}
			id, err := a.restore(c.Context(), nc, args[0], cfg, report)
			if err != nil {
				return err
			}
			if own.dir != nil {
				// crash here: the log is whole without a marker, and `keytrail up` finds it.
				if err := files.Write(own.dir.Sub(logMarker), []byte(id.String()+"\n")); err != nil {
					return err
				}
			}
			return a.restored(cfg, report, id)
		}}
	to.register(c, "admin")
	c.Flags().IntVar(&init.Replicas, "replicas", 1, "copies of each stream: 1, or 3 on a cluster")
	c.Flags().Int64Var(&init.MaxStore, "max-store", 0, "bytes for all streams together, at most what each server has (default 16 GiB)")
	c.Flags().BoolVar(&restart, "restart", false, "remove what a restore left that was broken off, and begin again")
	return c
}

// readBackup checks the whole backup, and returns what it is of.
func (a *app) readBackup(path string) (cfg server.RestoreConfig, report backup.Report, err error) {
	f, err := os.Open(path)
	if err != nil {
		return cfg, report, err
	}
	defer f.Close()
	cfg.Bytes = map[string]int64{}
	report, err = backup.VerifyEach(f, backup.Evidence{}, func(m *backup.Message) error {
		const overhead = 300 // headers and the record's own
		cfg.Bytes[m.Stream] += int64(len(m.Subject)+len(m.Data)) + overhead
		return nil
	})
	if err != nil {
		return cfg, report, err
	}
	if _, err = f.Seek(0, 0); err != nil {
		return cfg, report, err
	}
	r, err := backup.NewReader(f)
	if err != nil {
		return cfg, report, err
	}
	life, reads, uses := report.Of(backup.Life), report.Of(backup.Read), report.Of(backup.Use)
	cfg.From = events.Ancestor{Log: report.Log, Size: events.Seq(life.Last), Reads: events.Seq(reads.Last), Uses: events.Seq(uses.Last)}
	cfg.Older, cfg.UseFirst = r.Header().Restored, uses.First
	return cfg, report, nil
}

// restore writes the backup into new streams, reads them back, and makes them a log.
func (a *app) restore(ctx context.Context, nc *nats.Conn, path string, cfg server.RestoreConfig, report backup.Report) (events.LogID, error) {
	r, err := server.BeginRestore(ctx, nc, cfg)
	if errors.Is(err, server.ErrInterrupted) {
		return events.LogID{}, fmt.Errorf("%w: give --restart to remove it and to begin again", err)
	}
	if err != nil {
		return events.LogID{}, err
	}
	if err := a.putAll(ctx, r, path, report); err != nil {
		return r.ID(), fmt.Errorf("%w. What was written is marked, and no role uses it: run the restore again with --restart", err)
	}
	if err := a.readBack(ctx, nc, r.ID(), report); err != nil {
		return r.ID(), fmt.Errorf("the restored log was read back, and is not the backup: %w. It is marked, and no role uses it: run the restore again with --restart", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return r.ID(), r.Finish(ctx)
}

func (a *app) putAll(ctx context.Context, r *server.Restore, path string, report backup.Report) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	m := a.meter("restore", messages(&report))
	defer m.end()
	b, err := backup.NewReader(f)
	if err != nil {
		return err
	}
	for {
		msg, err := b.Next()
		if errors.Is(err, io.EOF) {
			break // whether it is the file that was checked is seen when the log is read back
		}
		if err != nil {
			return err
		}
		id := ""
		if msg.Stream != backup.Use {
			e, err := events.Decode(&events.Message{Subject: msg.Subject, Data: msg.Data})
			if err != nil {
				return err
			}
			id = e.ID.String()
		}
		if err := r.Put(ctx, msg.Stream, msg.Seq, msg.Subject, id, bytes.Clone(msg.Data)); err != nil {
			return err
		}
		m.add()
	}
	return r.Flush(ctx)
}

// readBack checks the restored streams as `keytrail log verify` does, and against
// the backup.
func (a *app) readBack(ctx context.Context, nc *nats.Conn, id events.LogID, report backup.Report) error {
	log := raw.Log{ID: id}
	want := backup.Manifest{Log: id}
	for _, s := range report.Streams {
		log.Streams, want.Streams = append(log.Streams, s.Extent), append(want.Streams, s.Extent)
	}
	_, err := a.verifyLog(ctx, nc, &log, backup.Evidence{Manifest: &want})
	return err
}

func messages(r *backup.Report) (n uint64) {
	for i := range r.Streams {
		n += r.Streams[i].Messages()
	}
	return n
}

// restored says what there is now, and what to do next.
func (a *app) restored(cfg server.RestoreConfig, r backup.Report, id events.LogID) error {
	life, reads, uses := r.Of(backup.Life), r.Of(backup.Read), r.Of(backup.Use)
	if a.json {
		return a.printJSON(map[string]any{"data": map[string]any{"log": id, "restored_from": cfg.From, "streams": r.Streams}})
	}
	_, err := fmt.Fprintf(a.out, `restored: log %s, from log %s
KT_LIFE  %d events, root %s
KT_READ  %d events
KT_USE   %d messages
next:
  1. Whatever log %s took after event %d is not in this log. Keys that were revoked
     since are alive: revoke them again.
  2. Start the roles with --log-id %s, if you start them with an id.
  3. Verifiers and control pass over snapshots of the old log, and read this one.
  4. The auditor refuses the old log's copy: give it a new database. Keep the old one:
     it alone holds what the old log took since, and uses older than KT_USE.
(runbook: Restore the log from a backup)
`, id, r.Log, life.Messages(), life.Root, reads.Messages(), uses.Messages(), r.Log, life.Last, id)
	return err
}
