package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/keytrail/keytrail/cmd/internal/ops"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/internal/files"
)

// natsFlags are the address of the log and the user of a role.
type natsFlags struct {
	url, user, ca, cert, key string
	node                     bool // the user is a verifier node: its rights are those of its name, and its password has one variable
}

func (n *natsFlags) register(c *cobra.Command) {
	f := c.Flags()
	const local = "nats://127.0.0.1:4222"
	f.StringVar(&n.url, "nats", env("KEYTRAIL_NATS", local), "NATS URLs, separated by commas (KEYTRAIL_NATS)")
	hush(f, "nats", local)
	if !n.node {
		f.StringVar(&n.user, "nats-user", n.user, "NATS user; its password is in KEYTRAIL_<USER>_PASSWORD, or in the file that KEYTRAIL_<USER>_PASSWORD_FILE names")
	}
	f.StringVar(&n.ca, "nats-ca", os.Getenv("KEYTRAIL_NATS_CA"), "PEM file of the authority of the server's certificate (KEYTRAIL_NATS_CA)")
	f.StringVar(&n.cert, "nats-cert", os.Getenv("KEYTRAIL_NATS_CERT"), "PEM file of a client certificate (KEYTRAIL_NATS_CERT)")
	f.StringVar(&n.key, "nats-key", os.Getenv("KEYTRAIL_NATS_KEY"), "PEM file of the certificate's key (KEYTRAIL_NATS_KEY)")
}

func (n *natsFlags) connect(name string, logger *slog.Logger) (*nats.Conn, error) {
	login, err := n.login(name, logger)
	if err != nil {
		return nil, err
	}
	return dial.Connect(n.url, login)
}

// login returns the user and the credentials to connect with.
func (n *natsFlags) login(name string, logger *slog.Logger) (login dial.Login, err error) {
	holder := n.user
	if n.node {
		holder = "node"
	}
	pw, err := password(holder)
	if err != nil {
		return login, err
	}
	if n.ca != "" {
		if err := files.CheckTrusted(n.ca); err != nil {
			return login, fmt.Errorf("--nats-ca: %w", err)
		}
	}
	if n.key != "" {
		if err := files.CheckSecret(n.key); err != nil {
			return login, fmt.Errorf("--nats-key: %w", err)
		}
	}
	return dial.Login{User: n.user, Password: dial.Password(pw), Name: name, CAFile: n.ca, CertFile: n.cert, KeyFile: n.key, Logger: logger}, nil
}

// password reads the password of a user of the log: from the environment, or
// from the file that the environment names.
func password(user string) (string, error) {
	name := "KEYTRAIL_" + strings.ToUpper(user) + "_PASSWORD"
	if pw := os.Getenv(name); pw != "" {
		return pw, nil
	}
	file := os.Getenv(name + "_FILE")
	if file == "" {
		return "", nil
	}
	pw, err := files.ReadSecret(file)
	if err != nil {
		return "", fmt.Errorf("%s_FILE: %w", name, err)
	}
	return pw, nil
}

func (a *app) logCmd() *cobra.Command {
	cfg := server.Config{}
	var cluster server.Cluster
	var nodes string
	c := &cobra.Command{Use: "log", Short: "Run an event log node: an embedded NATS server with Keytrail's accounts", Args: none,
		Long: `Run an event log node: a NATS server that fsyncs every event before it
acknowledges it, with the accounts that Keytrail needs. Alone, or three of them as
a cluster with --cluster-listen and --route. 'keytrail init' prepares it once.

Passwords come from KEYTRAIL_ADMIN_PASSWORD, KEYTRAIL_CTRL_PASSWORD,
KEYTRAIL_SYS_PASSWORD and KEYTRAIL_ROUTE_PASSWORD, or from the files that the same
names with _FILE give. The verifier nodes that may connect are in the file that
--nodes names: 'keytrail log credential' makes its entries. The file is read again
when it changes, and the connections of a node that is no longer in it are closed.`,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if cfg.Logger, err = a.logger(slog.LevelInfo); err != nil {
				return err
			}
			if cluster.Listen != "" {
				cfg.Cluster = &cluster
			}
			for user, pw := range map[string]*string{"admin": &cfg.Passwords.Admin, "ctrl": &cfg.Passwords.Ctrl,
				"sys": &cfg.Passwords.Sys, "route": &cfg.Passwords.Route} {
				if *pw, err = password(user); err != nil {
					return err
				}
				if *pw == "" && (user != "route" || cfg.Cluster != nil) && user != "sys" {
					return usageError{fmt.Errorf("KEYTRAIL_%s_PASSWORD is not set: nobody could connect as %s", strings.ToUpper(user), user)}
				}
			}
			return a.runLog(c.Context(), cfg, nodes)
		}}
	c.AddCommand(a.logCredentialCmd(), a.logBackupCmd(), a.logVerifyCmd(), a.logRestoreCmd(), a.growCmd(), a.logKeyCmd(), a.logCheckpointCmd())
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", env("KEYTRAIL_LOG_DIR", "keytrail-log"), "directory of the log's streams (KEYTRAIL_LOG_DIR)")
	f.StringVar(&cfg.Name, "name", os.Getenv("KEYTRAIL_LOG_NAME"), "the server's name, unique in a cluster (KEYTRAIL_LOG_NAME)")
	f.StringVar(&cfg.Listen, "listen", env("KEYTRAIL_LOG_LISTEN", "127.0.0.1:4222"), "address for NATS clients (KEYTRAIL_LOG_LISTEN)")
	f.StringVar(&cfg.Monitor, "monitor", "", "address of NATS's own monitoring endpoint")
	f.StringVar(&nodes, "nodes", os.Getenv("KEYTRAIL_LOG_NODES"), "file with the accounts of the verifier nodes (KEYTRAIL_LOG_NODES; default: none may connect)")
	f.Int64Var(&cfg.MaxStore, "max-store", 0, "most bytes of all streams; keep it below the disk (default 16 GiB)")
	f.Int64Var(&cfg.Limits.Uses, "node-uses", 0, "most batches of uses a second of one node (default 20000)")
	f.Int64Var(&cfg.Limits.Bytes, "node-bytes", 0, "most bytes a second of one node (default 64 MiB)")
	f.StringVar(&cluster.Listen, "cluster-listen", "", "address for the other members")
	f.StringVar(&cluster.Name, "cluster-name", "keytrail", "the cluster's name")
	f.StringSliceVar(&cluster.Routes, "route", nil, "host:port of another member")
	return c
}

func (a *app) runLog(ctx context.Context, cfg server.Config, nodes string) (err error) {
	ops.OutliveReaders()
	defer ops.LimitStop(ctx, a.err)()
	if cfg.Nodes, err = readNodes(nodes); err != nil {
		return err
	}
	dir, err := ops.OpenDir(cfg.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	srv, err := server.Start(cfg)
	if err != nil {
		return err
	}
	defer srv.Stop()
	wait, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := srv.WaitReady(wait); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "log: %s\nready\n", srv.URL())
	followNodes(ctx, srv, nodes, cfg.Nodes, cfg.Logger)
	return nil
}

// nodesEvery is how often the file of the verifier nodes is looked at.
const nodesEvery = time.Second

// followNodes lets in the nodes that the file names, as it changes, until ctx ends. A file that
// cannot be read or used changes nothing.
func followNodes(ctx context.Context, srv *server.Server, file, now string, logger *slog.Logger) {
	tick := time.NewTicker(nodesEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		text, err := readNodes(file)
		if err == nil && text == now {
			continue
		}
		if err == nil {
			err = srv.SetNodes(text)
		}
		if err != nil {
			if err.Error() != said {
				logger.ErrorContext(ctx, "the accounts of the verifier nodes stay as they were", "err", err)
			}
			said = err.Error()
			continue
		}
		now, said = text, ""
		logger.InfoContext(ctx, "the accounts of the verifier nodes were read again", "file", file)
	}
}

// readNodes reads the accounts of the verifier nodes. Whoever may write the file may
// let anybody in.
func readNodes(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	if err := files.CheckTrusted(file); err != nil {
		return "", fmt.Errorf("--nodes: %w", err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("--nodes: %w", err)
	}
	return string(b), nil
}
