package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
)

// roleFlags are what every role that connects to NATS is told.
type roleFlags struct {
	nats                   natsFlags
	log, name, listen, dir string
	trusted                []string
}

func (r *roleFlags) register(c *cobra.Command, user, listen string) {
	r.nats.user = user
	f := c.Flags()
	r.nats.register(c)
	f.StringVar(&r.log, "log-id", os.Getenv("KEYTRAIL_LOG_ID"), "refuse any other log than this (KEYTRAIL_LOG_ID)")
	f.StringVar(&r.name, "name", os.Getenv("KEYTRAIL_NAME"), "this node's name in the ledger (KEYTRAIL_NAME; default: host, role and port)")
	f.StringVar(&r.listen, "listen", env("KEYTRAIL_LISTEN", listen), "address of the doors (KEYTRAIL_LISTEN)")
	f.StringVar(&r.dir, "dir", os.Getenv("KEYTRAIL_DIR"), "directory for snapshots of the view (KEYTRAIL_DIR; default: none, the log is replayed)")
	f.StringSliceVar(&r.trusted, "trusted-proxy", nil, "network of a proxy whose X-Forwarded-For and X-Forwarded-Proto count")
}

// open connects and makes the node of a role.
func (a *app) open(ctx context.Context, role string, r *roleFlags) (*node, error) {
	logger, err := a.logger(slog.LevelInfo)
	if err != nil {
		return nil, err
	}
	trusted, err := prefixes("--trusted-proxy", r.trusted)
	if err != nil {
		return nil, err
	}
	var want events.LogID
	if r.log != "" {
		if want, err = events.ParseLogID(r.log); err != nil {
			return nil, usageError{fmt.Errorf("--log-id: %w", err)}
		}
	}
	nc, err := r.nats.connect("keytrail "+role, logger)
	if err != nil {
		return nil, err
	}
	log, err := eventlog.Open(ctx, nc, eventlog.Options{Edge: r.nats.user == "edge", AtLeast: events.Position{Log: want}, Logger: logger})
	if err != nil {
		return nil, err
	}
	return a.newNode(ctx, nc, log, nodeConfig{Name: r.name, Role: role, Listen: r.listen, Dir: r.dir, Trusted: trusted}, logger)
}

// serve runs the node and says when it answers.
func (a *app) serve(ctx context.Context, role string, n *node) error {
	return n.run(ctx, func() error {
		_, err := fmt.Fprintf(a.out, "%s %s: %s\nready\n", role, n.id, n.server.URL())
		return err
	})
}

func (a *app) controlCmd() *cobra.Command {
	var r roleFlags
	var dsn string
	c := &cobra.Command{Use: "control", Short: "Run the write side: commands, expirer, heartbeat", Args: none,
		Long: `Run the write side against a NATS server or cluster that 'keytrail init' has
prepared. Any number of them may run; they share nothing but the log.`,
		RunE: func(c *cobra.Command, _ []string) error {
			n, err := a.open(c.Context(), "control", &r)
			if err != nil {
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
	c.Flags().StringVar(&dsn, "clickhouse", os.Getenv("KEYTRAIL_CLICKHOUSE"), "DSN of the auditor's ClickHouse, to show when keys were last used (KEYTRAIL_CLICKHOUSE; optional)")
	hush(c.Flags(), "clickhouse", "")
	return c
}

func (a *app) verifierCmd() *cobra.Command {
	var r roleFlags
	c := &cobra.Command{Use: "verifier", Short: "Run a verifier node beside your APIs", Args: none,
		Long: `Run a verifier node: it answers /v1/verify and /v1/authorize from memory and
writes every decision to the ledger. Any number of them may run. Give them the
EDGE user: it can read the log and the uses and append uses, and nothing else.`,
		RunE: func(c *cobra.Command, _ []string) error {
			n, err := a.open(c.Context(), "verifier", &r)
			if err != nil {
				return err
			}
			return a.serve(c.Context(), "verifier", n)
		}}
	r.register(c, "edge", "127.0.0.1:7071")
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
			n.auditor(dsn, true)
			return a.serve(c.Context(), "auditor", n)
		}}
	r.register(c, "ctrl", "127.0.0.1:7072")
	c.Flags().StringVar(&dsn, "clickhouse", os.Getenv("KEYTRAIL_CLICKHOUSE"), "DSN of the ClickHouse server (KEYTRAIL_CLICKHOUSE)")
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
			id, err := eventlog.Init(ctx, nc, eventlog.InitConfig{Replicas: replicas, MaxStore: maxStore})
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
				return nil, usageError{fmt.Errorf("%s %q: want an address or a CIDR", flag, s)}
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
