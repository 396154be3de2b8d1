package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
)

// upConfig is what `keytrail up` is told.
type upConfig struct {
	Dir        string // everything it keeps
	Listen     string // host:port of all doors
	ClickHouse string // DSN of a server; "" starts the local engine
	Trusted    []string
}

func (a *app) upCmd() *cobra.Command {
	var cfg upConfig
	c := &cobra.Command{Use: "up", Short: "Run everything in one process on this machine", Args: none,
		Long: `Run everything in one process: the event log (JetStream, every event fsynced
before it is acknowledged), control, a verifier, the auditor and a ClickHouse
engine, all behind one port.

The first start makes the data directory and prints the root key once (it is kept
in <dir>/root.key, mode 0600). A later start goes on with the same data. Ctrl-C
stops in order. A kill loses no change of a key that was acknowledged; uses of its
last moments may be lost, and are then on the record as a gap.

With KEYTRAIL_CLICKHOUSE set to the DSN of a server, that one is used. Otherwise
the local engine is fetched once, by npm, into the user's cache (170 MB).`,
		RunE: func(c *cobra.Command, _ []string) error {
			logger, err := a.logger(slog.LevelWarn)
			if err != nil {
				return err
			}
			return a.up(c.Context(), cfg, logger)
		}}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", env("KEYTRAIL_DIR", "keytrail-data"), "data directory (KEYTRAIL_DIR)")
	f.StringVar(&cfg.Listen, "listen", env("KEYTRAIL_LISTEN", "127.0.0.1:7070"), "address of all doors (KEYTRAIL_LISTEN)")
	f.StringVar(&cfg.ClickHouse, "clickhouse", os.Getenv("KEYTRAIL_CLICKHOUSE"), "DSN of a ClickHouse server, as clickhouse://user:password@host:9000/keytrail (KEYTRAIL_CLICKHOUSE)")
	hush(f, "clickhouse", "")
	f.StringSliceVar(&cfg.Trusted, "trusted-proxy", nil, "network of a proxy whose X-Forwarded-For and X-Forwarded-Proto count")
	return c
}

// up is the main job. What it relies on comes first: directory, log, engine,
// root key, then the node.
func (a *app) up(ctx context.Context, cfg upConfig, logger *slog.Logger) error {
	trusted, err := prefixes("--trusted-proxy", cfg.Trusted)
	if err != nil {
		return err
	}
	dir, err := ops.OpenDir(cfg.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()

	srv, err := eventlog.StartServer(eventlog.ServerConfig{Dir: dir.Sub("log"), Logger: logger})
	if err != nil {
		return err
	}
	defer srv.Stop()
	nc, err := srv.Connect()
	if err != nil {
		return err
	}
	log, err := a.openOwnLog(ctx, dir, srv, nc, logger)
	if err != nil {
		return err
	}
	if err := a.checkLog(ctx, log); err != nil {
		return err
	}

	dsn := cfg.ClickHouse
	var eng *engine.Engine
	if dsn == "" {
		if eng, err = engine.Start(ctx, engine.Config{Dir: dir.Sub("clickhouse"), Progress: a.err, Logger: logger}); err != nil {
			return err
		}
		defer eng.Close()
		dsn = eng.DSN()
	}

	root, first, err := rootKey(dir.Sub("root.key"))
	if err != nil {
		return err
	}
	if _, err := commands.Bootstrap(ctx, log, root, events.At(time.Now())); err != nil {
		return err
	}
	n, err := a.newNode(ctx, nc, log, nodeConfig{Role: "up", Name: "up", Listen: cfg.Listen, Dir: dir.Sub("snapshots"), Trusted: trusted}, logger)
	if err != nil {
		return err
	}
	if eng != nil {
		n.group.Go("clickhouse engine", eng.Run)
	}
	au := n.auditor(dsn, false)
	n.control(au.lastUsed)
	err = n.run(ctx, func() error {
		a.greet(n.server.URL(), cfg, root, first)
		return nil
	})
	if err == nil {
		fmt.Fprintln(a.out, "stopped")
	}
	return err
}

// logMarker names the file that holds the identity of this directory's log. Once
// it is there, a log that is not is never made anew silently.
const logMarker = "log.id"

// openOwnLog initialises the log of a new directory, or opens the one that the
// marker names.
func (a *app) openOwnLog(ctx context.Context, dir *ops.Dir, srv *eventlog.Server, nc *nats.Conn, logger *slog.Logger) (*eventlog.Log, error) {
	marker, err := dir.Read(logMarker)
	if err != nil {
		return nil, err
	}
	var id events.LogID
	if marker == "" {
		admin, err := srv.ConnectAdmin()
		if err != nil {
			return nil, err
		}
		defer admin.Close()
		budget, err := srv.Budget()
		if err != nil {
			return nil, err
		}
		if id, err = eventlog.Init(ctx, admin, eventlog.InitConfig{MaxStore: budget}); err != nil {
			return nil, err
		}
		// crash here: the streams exist without a marker, and Init finds them.
		if err := dir.WriteOnce(logMarker, id.String()); err != nil {
			return nil, err
		}
	} else if id, err = events.ParseLogID(marker); err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Sub(logMarker), err)
	}
	return eventlog.Open(ctx, nc, eventlog.Options{AtLeast: events.Position{Log: id}, Logger: logger})
}

// checkLog reads the whole log once before anything relies on it.
func (a *app) checkLog(ctx context.Context, log *eventlog.Log) error {
	last := time.Now()
	shown := false
	err := log.Check(ctx, func(done, total events.Seq) {
		if now := time.Now(); now.Sub(last) > time.Second {
			last, shown = now, true
			fmt.Fprintf(a.err, "\rchecking the log: %d of %d events", done, total)
		}
	})
	if shown {
		fmt.Fprintln(a.err)
	}
	return err
}

// rootKey reads the root key's secret from a file, or makes it. The file is durable
// before the log names the key: after a crash in between, Bootstrap of the same
// secret goes on where it was.
func rootKey(path string) (secret events.Secret, made bool, err error) {
	s, err := ops.ReadSmall(path)
	if err != nil {
		return secret, false, fmt.Errorf("read the root key: %w", err)
	}
	if s != "" {
		return events.NewSecret(s), false, nil
	}
	def := events.BuiltinDefinition()
	t, _ := def.Type("")
	if secret, err = commands.NewSecret(t, t.Environment(), rand.Reader); err != nil {
		return secret, false, err
	}
	return secret, true, ops.WriteSmall(path, secret.Reveal())
}

func (a *app) greet(base string, cfg upConfig, root events.Secret, first bool) {
	if first {
		fmt.Fprintf(a.out, "root key: %s\n  shown this once; kept in %s/root.key\n", root.Reveal(), cfg.Dir)
	}
	self := "keytrail"
	if exe, err := os.Executable(); err == nil && strings.Contains(exe, "go-build") {
		self = "go run ./cmd/keytrail" // there is no keytrail on the path yet
	}
	try := self + " keyspace apply -f deploy/regimes/scribe-sight.yaml"
	if u, err := url.Parse(base); err == nil && u.Port() != "7070" {
		try = "KEYTRAIL_URL=" + base + " " + try
	}
	if cfg.Dir != "keytrail-data" {
		try = "KEYTRAIL_KEY_FILE=" + cfg.Dir + "/root.key " + try
	}
	fmt.Fprintf(a.out, "keytrail: %s\ntry: %s\nready\n", base, try)
}
