package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/backup"
	"github.com/keytrail/keytrail/events/eventlog/raw"
	"github.com/keytrail/keytrail/internal/files"
)

func (a *app) logBackupCmd() *cobra.Command {
	var from logSource
	c := &cobra.Command{Use: "backup FILE", Short: "Write the whole log into one file", Args: exactly("FILE"),
		Long: `Write the whole log into one file: the lifecycle events, who read the record, and
the uses that the log still holds, with the digests that 'keytrail log verify' and
'keytrail log restore' check. If FILE is a directory, the file in it is named after
the log and the time.

The file is written as FILE.part, read back and checked, and gets its name when it
is whole. It holds no secret of a key, and everything else: keep it as you keep the
log. Take it while the roles run, with the ctrl user:
  KEYTRAIL_CTRL_PASSWORD=… keytrail log backup --nats nats://log-1:4222 /backups

or of the data directory of a 'keytrail up' that is stopped:
  keytrail log backup --dir keytrail-data /backups`,
		RunE: func(c *cobra.Command, args []string) error {
			logger, err := a.logger(slog.LevelWarn)
			if err != nil {
				return err
			}
			if err := from.hasLog(); err != nil {
				return err
			}
			nc, own, err := from.connect(c.Context(), "keytrail log backup", logger)
			if err != nil {
				return err
			}
			defer own.close()
			defer nc.Close()
			return a.backup(c.Context(), nc, args[0])
		}}
	from.register(c, "ctrl")
	return c
}

// backup writes the backup of the log that nc reaches.
func (a *app) backup(ctx context.Context, nc *nats.Conn, path string) error {
	log, err := raw.Describe(ctx, nc)
	if err != nil {
		return err
	}
	made := time.Now()
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, fmt.Sprintf("keytrail-%s-%s.backup", log.ID, made.UTC().Format("20060102T150405Z")))
	}
	out, err := files.Create(path, false)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := a.writeBackup(ctx, nc, &log, events.At(made), out); err != nil {
		return err
	}
	report, err := a.verifyFile(out.Part(), backup.Evidence{})
	if err != nil {
		return fmt.Errorf("the backup was read back, and is not good: %w. It stays as %s, to be looked at", err, out.Part())
	}
	if err := out.Commit(); err != nil {
		return err
	}
	if !a.json {
		fmt.Fprintf(a.out, "backup: %s\n", path)
	}
	return a.printReport(&report, nil, path)
}

func (a *app) writeBackup(ctx context.Context, nc *nats.Conn, log *raw.Log, made events.Time, out io.Writer) error {
	w, err := backup.NewWriter(out, backup.Header{Log: log.ID, Restored: log.Restored, Made: made})
	if err != nil {
		return err
	}
	m := a.meter("backup", total(log.Streams))
	defer m.end()
	for _, e := range log.Streams {
		begun := false
		first, err := raw.Each(ctx, nc, e, func(msg *backup.Message) error {
			if !begun {
				begun = true
				if err := w.Stream(e.Stream, msg.Seq); err != nil {
					return err
				}
			}
			m.add()
			return w.Put(msg)
		})
		if fault, ok := errors.AsType[*backup.Fault](err); ok {
			return fmt.Errorf("the log is damaged: %w. Keep its store directory as it is, and restore an older backup (runbook: Restore the log from a backup)", fault)
		}
		if err == nil && !begun {
			err = w.Stream(e.Stream, first)
		}
		if err != nil {
			return err
		}
	}
	_, err = w.Close()
	return err
}

func total(list []backup.Extent) (n uint64) {
	for i := range list {
		n += list[i].Messages()
	}
	return n
}
