package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/internal/files"
	"github.com/keytrail/keytrail/verifier/embed"
)

// upConfig is what `keytrail up` is told.
type upConfig struct {
	Dir        string // everything it keeps
	Listen     string // host:port of all endpoints
	ClickHouse string // DSN of a server; "" starts the local engine
	Trusted    []string
	ceiling    staleCeiling
	Checkpoint checkpointFlags
}

func (a *app) upCmd() *cobra.Command {
	var cfg upConfig
	c := &cobra.Command{Use: "up", Short: "Run everything in one process on this machine", Args: none,
		Long: `Run everything in one process: the event log (JetStream, every event fsynced
before it is acknowledged), control, a verifier, the auditor and a ClickHouse
engine, all behind one port.

The first start makes the data directory and keeps the root key in <dir>/root.key,
mode 0600; on a terminal it also prints the key, this once. <dir>/checkpoint.key
signs the checkpoints of the log. A later start goes on
with the same data. Ctrl-C stops in order, within 14 seconds; a second Ctrl-C at
once. A kill loses no change of a key that was acknowledged; uses of its last
moments may be lost, and are then on the record as a gap.

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
	f.StringVar(&cfg.Listen, "listen", env("KEYTRAIL_LISTEN", "127.0.0.1:7070"), listenUsage)
	f.StringVar(&cfg.ClickHouse, "clickhouse", os.Getenv("KEYTRAIL_CLICKHOUSE"), clickhouseUsage)
	hush(f, "clickhouse", "")
	f.StringSliceVar(&cfg.Trusted, "trusted-proxy", nil, "network of a proxy that names the client: its X-Forwarded-For, X-Forwarded-Proto and Forwarded count")
	cfg.Checkpoint.registerReplace(c)
	cfg.ceiling.register(f)
	return c
}

// up is the main job. What it relies on comes first: directory, log, root key, then the
// node. The engine starts beside them: until it is there keys are verified and changed,
// and only the record waits.
func (a *app) up(ctx context.Context, cfg upConfig, logger *slog.Logger) error {
	trusted, err := prefixes("--trusted-proxy", cfg.Trusted)
	if err == nil {
		err = cfg.ceiling.check()
	}
	if err != nil {
		return err
	}
	ctx, stopping := context.WithCancel(ctx)
	ops.OutliveReaders()
	defer ops.LimitStop(ctx, a.err)()
	defer stopping()
	dir, err := ops.OpenDir(cfg.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()

	var eng *ownEngine
	if cfg.ClickHouse == "" {
		eng = startEngine(ctx, engine.Config{Dir: dir.Sub("clickhouse"), Progress: a.err, Logger: logger})
		defer eng.close()
	}
	srv, err := startOwnServer(dir, logger)
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

	root, first, err := rootKey(dir.Sub("root.key"))
	if err != nil {
		return err
	}
	if _, err := commands.Bootstrap(ctx, log, root, events.At(time.Now())); err != nil {
		return err
	}
	end, err := log.Last(ctx)
	if err != nil {
		return err
	}
	n, err := a.newNode(ctx, nc, nodeConfig{Role: "up", Listen: cfg.Listen, Config: embed.Config{
		Name: "up", Log: log, Dir: dir.Sub("snapshots"), StaleCeiling: cfg.ceiling.Duration, TrustedProxies: trusted,
		Followers: []events.Follower{&reading{out: a.err, total: end}},
	}}, logger)
	if err != nil {
		return err
	}
	n.server.Warn("log disk", srv.Space)
	dsn := fixedDSN(cfg.ClickHouse)
	if eng != nil {
		n.group.Go("clickhouse engine", eng.run)
		dsn = eng.dsn
	}
	au := n.auditor(dsn, false)
	cfg.Checkpoint.file = dir.Sub(checkpointKeyFile)
	if err := ownCheckpointKey(cfg.Checkpoint.file); err != nil {
		return err
	}
	if err := n.checkpoints(dir.Sub("snapshots"), &cfg.Checkpoint); err != nil {
		return err
	}
	n.control(au.lastUsed)
	err = n.run(ctx, func() error {
		a.greet(n.server.URL(), cfg, root, first)
		return nil
	})
	stopping()
	if err == nil {
		fmt.Fprintln(a.out, "stopped")
	}
	return err
}

// ownEngine is the local engine on its way up.
type ownEngine struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when the rest is set
	engine *engine.Engine
	err    error
}

// startEngine starts the engine in the background, until ctx ends or it is closed.
func startEngine(ctx context.Context, cfg engine.Config) *ownEngine {
	ctx, cancel := context.WithCancel(ctx)
	e := &ownEngine{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		if e.engine, e.err = engine.Start(ctx, cfg); e.err != nil && ctx.Err() != nil {
			e.err = ctx.Err() // what it was broken off at is nobody's fault
		}
	}()
	return e
}

// started waits for the start, until ctx ends.
func (e *ownEngine) started(ctx context.Context) (*engine.Engine, error) {
	select {
	case <-e.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if errors.Is(e.err, context.Canceled) { // the process was asked to stop, and its parts will be
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return e.engine, e.err
}

// run waits for the start, and watches over the engine until ctx ends.
func (e *ownEngine) run(ctx context.Context) error {
	started, err := e.started(ctx)
	if err != nil {
		return err
	}
	return started.Run(ctx)
}

// dsn returns the engine's DSN once it answers. A start that fails is for run to tell.
func (e *ownEngine) dsn(ctx context.Context) (string, error) {
	started, err := e.started(ctx)
	if err != nil {
		<-ctx.Done()
		return "", ctx.Err()
	}
	return started.DSN(), nil
}

// close ends the engine, also one that is still starting.
func (e *ownEngine) close() {
	e.cancel()
	if <-e.done; e.err == nil {
		e.engine.Close()
	}
}

// startOwnServer starts the log's server on a data directory. It has no quota of its
// own: the streams' limits, which Init fits to the disk, are the quota, so that to
// raise one is enough.
func startOwnServer(dir *ops.Dir, logger *slog.Logger) (*server.Server, error) {
	return server.Start(server.Config{Dir: dir.Sub("log"), MaxStore: 1 << 50, Logger: logger})
}

// logMarker names the file that holds the identity of this directory's log. Once
// it is there, a log that is not is never made anew silently.
const logMarker = "log.id"

// openOwnLog initialises the log of a new directory, or opens the one that the
// marker names.
func (a *app) openOwnLog(ctx context.Context, dir *ops.Dir, srv *server.Server, nc *nats.Conn, logger *slog.Logger) (*eventlog.Log, error) {
	marker, err := files.ReadOwn(dir.Sub(logMarker))
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
		if id, err = server.Init(ctx, admin, server.InitConfig{MaxStore: min(budget, server.DefaultMaxStore)}); err != nil {
			return nil, err
		}
		// crash here: the streams exist without a marker, and Init finds them.
		if err := files.Write(dir.Sub(logMarker), []byte(id.String()+"\n")); err != nil {
			return nil, err
		}
	} else if id, err = events.ParseLogID(marker); err != nil {
		return nil, fmt.Errorf("%s: %w", dir.Sub(logMarker), err)
	}
	return eventlog.Open(ctx, nc, eventlog.Options{AtLeast: events.Position{Log: id}, Logger: logger})
}

// reading is a follower that says how far the first pass over a long log is. The
// directory, which follows with it, checks every event of the pass.
type reading struct {
	out   io.Writer
	total events.Seq // where the log ended at the start
	said  time.Time
	shown bool
}

// Apply implements events.Follower.
func (p *reading) Apply(batch []events.Recorded) error {
	if now := time.Now(); p.said.IsZero() {
		p.said = now
	} else if at := batch[len(batch)-1].Seq; at < p.total && now.Sub(p.said) > time.Second {
		p.said, p.shown = now, true
		fmt.Fprintf(p.out, "\rreading the log: %d of %d events", at, p.total)
	}
	return nil
}

// Fresh implements events.Follower.
func (p *reading) Fresh(events.Time, events.Seq) {
	if p.shown {
		p.shown = false
		fmt.Fprintln(p.out)
	}
}

// rootKey reads the root key's secret from a file, or makes it. The file is durable
// before the log names the key: after a crash in between, Bootstrap of the same
// secret goes on where it was.
func rootKey(path string) (secret events.Secret, made bool, err error) {
	s, err := files.ReadOwn(path)
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
	if err := files.Write(path, []byte(secret.Reveal()+"\n")); err != nil {
		return secret, false, fmt.Errorf("keep the root key: %w", err)
	}
	return secret, true, nil
}

// terminal reports whether w is a terminal: what a pipe or a file is given stays
// in logs.
func terminal(w io.Writer) bool {
	switch w := w.(type) {
	case *visible:
		return terminal(w.w)
	case *output:
		return terminal(w.w)
	case *os.File:
		return term.IsTerminal(int(w.Fd()))
	}
	return false
}

func (a *app) greet(base string, cfg upConfig, root events.Secret, first bool) {
	if first {
		file := filepath.Join(cfg.Dir, "root.key")
		if terminal(a.out) {
			fmt.Fprintf(a.out, "root key: %s\n  shown this once; kept in %s, mode 0600\n", root.Reveal(), file)
		} else {
			fmt.Fprintf(a.out, "root key: in %s, mode 0600\n", file)
		}
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
