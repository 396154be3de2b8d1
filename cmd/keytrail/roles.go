package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/verifier"
	"github.com/keytrail/keytrail/verifier/embed"
)

// What a variable of several commands means is said once, so that it means one
// thing.
const (
	listenUsage     = "address of the HTTP endpoints (KEYTRAIL_LISTEN)"
	clickhouseUsage = "DSN of the ClickHouse server that holds the copy of the record, as clickhouse://user:password@host:9000/keytrail (KEYTRAIL_CLICKHOUSE)"
)

// roleFlags are what every role that connects to NATS is told.
type roleFlags struct {
	nats                   natsFlags
	log, name, listen, dir string
	trusted                []string
	ceiling                staleCeiling
	takeOver               bool
	from                   snapshotFrom
}

// staleCeiling is a flag: how old a lease a node answers on.
type staleCeiling struct{ time.Duration }

func (s *staleCeiling) register(f *pflag.FlagSet) {
	s.Duration = verifier.DefaultStaleCeiling
	if v := os.Getenv("KEYTRAIL_STALE_CEILING"); v != "" {
		s.Duration, _ = time.ParseDuration(v) // check refuses what cannot be read
	}
	f.DurationVar(&s.Duration, "stale-ceiling", s.Duration, "how long a node that cannot renew its lease goes on answering where a keyspace says on_stale: allow, 1s to 1h (KEYTRAIL_STALE_CEILING)")
}

func (s *staleCeiling) check() error {
	if s.Duration < time.Second || s.Duration > verifier.MaxStaleCeiling {
		return usageError{errors.New("--stale-ceiling (KEYTRAIL_STALE_CEILING): want a duration of 1s to 1h, as 5m")}
	}
	return nil
}

func (r *roleFlags) register(c *cobra.Command, user, listen string) {
	r.nats.user = user
	f := c.Flags()
	r.nats.register(c)
	f.StringVar(&r.log, "log-id", os.Getenv("KEYTRAIL_LOG_ID"), "refuse any other log than this (KEYTRAIL_LOG_ID)")
	f.StringVar(&r.name, "name", os.Getenv("KEYTRAIL_NAME"), "this node's name in the ledger; a verifier is the log's user of that name, with the password in KEYTRAIL_NODE_PASSWORD, or in the file that KEYTRAIL_NODE_PASSWORD_FILE names (KEYTRAIL_NAME; default: host, role and port)")
	f.StringVar(&r.listen, "listen", env("KEYTRAIL_LISTEN", listen), listenUsage)
	f.StringVar(&r.dir, "dir", os.Getenv("KEYTRAIL_SNAPSHOT_DIR"), "directory for snapshots of the view (KEYTRAIL_SNAPSHOT_DIR; default: none, the log is replayed)")
	f.StringSliceVar(&r.trusted, "trusted-proxy", nil, "network of a proxy that names the client: its X-Forwarded-For, X-Forwarded-Proto and Forwarded count")
	f.BoolVar(&r.takeOver, "take-over", false, "start although another process holds this node's name: it is fenced and ends")
	r.ceiling.register(f)
	r.from.register(f)
}

// open connects and makes the node of a role.
func (a *app) open(ctx context.Context, role string, r *roleFlags) (*node, error) {
	logger, err := a.logger(slog.LevelInfo)
	if err != nil {
		return nil, err
	}
	trusted, err := prefixes("--trusted-proxy", r.trusted)
	if err == nil {
		err = r.ceiling.check()
	}
	if err != nil {
		return nil, err
	}
	var want events.LogID
	if r.log != "" {
		if want, err = events.ParseLogID(r.log); err != nil {
			return nil, usageError{fmt.Errorf("--log-id: %w", err)}
		}
	}
	cfg := nodeConfig{Role: role, Listen: r.listen, Config: embed.Config{
		Name: events.NodeID(r.name), LogID: want, Dir: r.dir, StaleCeiling: r.ceiling.Duration, TakeOver: r.takeOver, TrustedProxies: trusted,
	}}
	if cfg.Sources, err = r.from.sources(a, r.dir); err != nil {
		return nil, err
	}
	cfg.Name = nodeID(&cfg)
	if err := cfg.Name.Validate(); err != nil {
		return nil, usageError{fmt.Errorf("--name: %w", err)}
	}
	if r.nats.node {
		login, err := r.nats.login("keytrail "+role, logger)
		if err != nil {
			return nil, err
		}
		cfg.URL, cfg.Password, cfg.CAFile, cfg.CertFile, cfg.KeyFile = r.nats.url, login.Password, login.CAFile, login.CertFile, login.KeyFile
		return a.newNode(ctx, nil, cfg, logger)
	}
	nc, err := r.nats.connect("keytrail "+role, logger)
	if err != nil {
		return nil, err
	}
	if cfg.Log, err = eventlog.Open(ctx, nc, eventlog.Options{AtLeast: events.Position{Log: want}, Logger: logger}); err != nil {
		return nil, err
	}
	return a.newNode(ctx, nc, cfg, logger)
}

// serve runs the node and says when it answers.
func (a *app) serve(ctx context.Context, role string, n *node) error {
	ctx, stopping := context.WithCancel(ctx)
	ops.OutliveReaders()
	defer ops.LimitStop(ctx, a.err)()
	defer stopping()
	return n.run(ctx, func() error {
		_, err := fmt.Fprintf(a.out, "%s %s: %s\nready\n", role, n.id, n.server.URL())
		return err
	})
}

func (a *app) controlCmd() *cobra.Command {
	var r roleFlags
	var checkpoint checkpointFlags
	var dsn, release string
	c := &cobra.Command{Use: "control", Short: "Run the write side: commands, expirer, heartbeat", Args: none,
		Long: `Run the write side against a NATS server or cluster that 'keytrail init' has
prepared. Any number of them may run; they share nothing but the log. With
--clickhouse, which is optional, it shows when keys were last used. With --dir it
keeps the tree of the log there and serves signed checkpoints and tiles; with
--checkpoint-key it signs them.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if release != "" {
				if err := events.Release(release).Validate(); err != nil {
					return usageError{fmt.Errorf("--write-release (KEYTRAIL_WRITE_RELEASE): %w", err)}
				}
			}
			n, err := a.open(c.Context(), "control", &r)
			if err != nil {
				return err
			}
			n.writeRelease = events.Release(release)
			if err := n.checkpoints(r.dir, &checkpoint); err != nil {
				return err
			}
			if dsn != "" {
				n.control(n.lastUsedFrom(dsn))
			} else {
				n.control(nil)
			}
			return a.serve(c.Context(), "control", n)
		}}
	r.register(c, "ctrl", "127.0.0.1:7070")
	checkpoint.register(c)
	c.Flags().StringVar(&release, "write-release", os.Getenv("KEYTRAIL_WRITE_RELEASE"), "write no event that a process of this release cannot read, as 1.0, so that the way back to it stays open (KEYTRAIL_WRITE_RELEASE)")
	c.Flags().StringVar(&dsn, "clickhouse", os.Getenv("KEYTRAIL_CLICKHOUSE"), clickhouseUsage)
	hush(c.Flags(), "clickhouse", "")
	return c
}

func (a *app) verifierCmd() *cobra.Command {
	var r roleFlags
	c := &cobra.Command{Use: "verifier", Short: "Run a verifier node beside your APIs", Args: none,
		Long: `Run a verifier node: it answers /v1/verify and /v1/authorize from memory and
writes every decision to the ledger. Any number of them may run, each with a name
and a credential of its own: 'keytrail log credential' makes one. It lets a node
read the log and append to its own record, and nothing else.

With --dir it starts from its last snapshot. A new node has none: with --snapshot-from
it fetches that of another verifier or of control, compares it with the log before it
uses it, and compares every key in the background.`,
		RunE: func(c *cobra.Command, _ []string) error {
			n, err := a.open(c.Context(), "verifier", &r)
			if err != nil {
				return err
			}
			return a.serve(c.Context(), "verifier", n)
		}}
	r.nats.node = true
	r.register(c, "", "127.0.0.1:7071")
	return c
}

func (a *app) auditorCmd() *cobra.Command {
	var r roleFlags
	var dsn string
	c := &cobra.Command{Use: "auditor", Short: "Run the record: the copy in ClickHouse and its questions", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			if dsn == "" {
				return usageError{fmt.Errorf("--clickhouse or KEYTRAIL_CLICKHOUSE: want the DSN of a ClickHouse server, as clickhouse://user:password@host:9000/keytrail")}
			}
			n, err := a.open(c.Context(), "auditor", &r)
			if err != nil {
				return err
			}
			n.auditor(fixedDSN(dsn), true)
			return a.serve(c.Context(), "auditor", n)
		}}
	r.register(c, "ctrl", "127.0.0.1:7072")
	c.Flags().StringVar(&dsn, "clickhouse", os.Getenv("KEYTRAIL_CLICKHOUSE"), clickhouseUsage)
	hush(c.Flags(), "clickhouse", "")
	return c
}

func (a *app) initCmd() *cobra.Command {
	nf := natsFlags{user: "admin"}
	var keyFile string
	var replicas int
	var maxStore int64
	c := &cobra.Command{Use: "init", Short: "Prepare a NATS server or cluster: streams, built-in keyspace, root key", Args: none,
		Long: `Create the streams, the built-in keyspace and the root key on a NATS server or
cluster, with its admin user. Nothing else ever creates a stream. Running it again
changes nothing: it checks, and says what differs.

The root key is read from --root-key-file, or made and written there (mode 0600).`,
		RunE: func(c *cobra.Command, _ []string) error {
			logger, err := a.logger(slog.LevelInfo)
			if err != nil {
				return err
			}
			nc, err := nf.connect("keytrail init", logger)
			if err != nil {
				return err
			}
			defer nc.Close()
			ctx, cancel := context.WithTimeout(c.Context(), time.Minute)
			defer cancel()
			id, err := server.Init(ctx, nc, server.InitConfig{Replicas: replicas, MaxStore: maxStore})
			if err != nil {
				return err
			}
			log, err := eventlog.Open(ctx, nc, eventlog.Options{AtLeast: events.Position{Log: id}, Replicas: replicas, Logger: logger})
			if err != nil {
				return err
			}
			secret, made, err := rootKey(keyFile)
			if err != nil {
				return err
			}
			key, err := commands.Bootstrap(ctx, log, secret, events.At(time.Now()))
			if err != nil {
				return err
			}
			fmt.Fprintf(a.out, "log: %s\nroot key: %s\n", id, key)
			if made {
				fmt.Fprintf(a.out, "  its secret is in %s, and nowhere else\n", keyFile)
			}
			return nil
		}}
	nf.register(c)
	c.Flags().StringVar(&keyFile, "root-key-file", env("KEYTRAIL_ROOT_KEY_FILE", "root.key"), "file that holds the root key (KEYTRAIL_ROOT_KEY_FILE)")
	c.Flags().IntVar(&replicas, "replicas", 1, "copies of each stream: 1, or 3 on a cluster")
	c.Flags().Int64Var(&maxStore, "max-store", 0, "bytes for all streams together, at most what each server has (default 16 GiB)")
	return c
}

// prefixes reads networks; a bare address is a network of one.
func prefixes(flag string, list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			a, aerr := netip.ParseAddr(s)
			if aerr != nil {
				return nil, usageError{fmt.Errorf("%s %s: want an address or a CIDR", flag, input.Echo(s))}
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p != p.Masked() || p.Addr().Is4In6() {
			return nil, usageError{fmt.Errorf("%s %s: want a network without host bits, and IPv4 as such: %s trusts all of it", flag, input.Echo(s), p.Masked())}
		}
		out = append(out, p)
	}
	return out, nil
}
