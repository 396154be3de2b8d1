package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/events/input"
)

// growCmd raises the limit of a stream.
func (a *app) growCmd() *cobra.Command {
	nf := natsFlags{user: "admin"}
	var dir string
	c := &cobra.Command{Use: "grow STREAM SIZE", Short: "Raise the limit of one of the log's streams", Args: exactly("STREAM", "SIZE"),
		Long: `Raise the limit of one of the log's streams: ` + strings.Join(streams.Names(), ", ") + `.
SIZE is a number of bytes, or one with KiB, MiB, GiB or TiB, as 64GiB. A limit is
never lowered. Nothing is lost and nothing stops: a full stream takes events again
at once.

On a NATS server or cluster, with its admin user:
  KEYTRAIL_ADMIN_PASSWORD=… keytrail log grow --nats nats://log-1:4222 KT_LIFE 64GiB
Each server's own quota (--max-store, max_file_store) must have room for it.

On the data directory of a ` + "`keytrail up`" + ` that is stopped:
  keytrail log grow --dir keytrail-data KT_LIFE 64GiB
There is no hurry to stop it: at 90 % KT_LIFE still takes what takes power away
(disable, revoke, expire, narrow).`,
		Example: "  keytrail log grow --dir keytrail-data KT_LIFE 64GiB",
		RunE: func(c *cobra.Command, args []string) error {
			size, err := parseSize(args[1])
			if err != nil {
				return usageError{err}
			}
			logger, err := a.logger(slog.LevelWarn)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
			defer cancel()
			if dir != "" {
				return a.growOwn(ctx, dir, args[0], size, logger)
			}
			nc, err := nf.connect("keytrail log grow", logger)
			if err != nil {
				return err
			}
			defer nc.Close()
			return a.grow(ctx, nc, args[0], size, 0)
		}}
	nf.register(c)
	c.Flags().StringVar(&dir, "dir", "", "data directory of a keytrail up that is stopped, instead of --nats")
	return c
}

// growOwn grows a stream in the data directory of `keytrail up`.
func (a *app) growOwn(ctx context.Context, path, stream string, size int64, logger *slog.Logger) error {
	if _, err := os.Stat(filepath.Join(path, logMarker)); err != nil {
		return fmt.Errorf("--dir: there is no log in %s: name the data directory of `keytrail up`", path)
	}
	dir, err := ops.OpenDir(path)
	if err != nil {
		return fmt.Errorf("%w; stop `keytrail up` with Ctrl-C, then run this again", err)
	}
	defer dir.Close()
	srv, err := startOwnServer(dir, logger)
	if err != nil {
		return err
	}
	defer srv.Stop()
	if err := srv.WaitReady(ctx); err != nil {
		return err
	}
	free, err := srv.Free()
	if err != nil {
		return err
	}
	nc, err := srv.ConnectAdmin()
	if err != nil {
		return err
	}
	defer nc.Close()
	return a.grow(ctx, nc, stream, size, free)
}

func (a *app) grow(ctx context.Context, nc *nats.Conn, stream string, size, free int64) error {
	old, err := server.Grow(ctx, nc, stream, size, free)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.out, "%s: %d bytes, before %d\n", stream, size, old)
	return err
}

// parseSize reads a number of bytes.
func parseSize(s string) (int64, error) {
	digits, unit := s, int64(1)
	for i, suffix := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			digits, unit = rest, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || n == 0 || int64(n) > (1<<62)/unit {
		return 0, fmt.Errorf("SIZE %s: want a number of bytes, or one with KiB, MiB, GiB or TiB, as 64GiB", input.Echo(s))
	}
	return int64(n) * unit, nil
}
