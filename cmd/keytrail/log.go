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
	"github.com/keytrail/keytrail/events/eventlog"
)

// natsFlags are how a role reaches the log, and as whom.
type natsFlags struct {
	url, user, ca, cert, key string
}

func (n *natsFlags) register(c *cobra.Command) {
	f := c.Flags()
	const local = "nats://127.0.0.1:4222"
	f.StringVar(&n.url, "nats", env("KEYTRAIL_NATS", local), "NATS URLs, separated by commas (KEYTRAIL_NATS)")
	hush(f, "nats", local)
	f.StringVar(&n.user, "nats-user", n.user, "NATS user; its password is in KEYTRAIL_<USER>_PASSWORD, or in the file that KEYTRAIL_<USER>_PASSWORD_FILE names")
	f.StringVar(&n.ca, "nats-ca", os.Getenv("KEYTRAIL_NATS_CA"), "PEM file of the authority of the server's certificate (KEYTRAIL_NATS_CA)")
	f.StringVar(&n.cert, "nats-cert", os.Getenv("KEYTRAIL_NATS_CERT"), "PEM file of a client certificate (KEYTRAIL_NATS_CERT)")
	f.StringVar(&n.key, "nats-key", os.Getenv("KEYTRAIL_NATS_KEY"), "PEM file of the certificate's key (KEYTRAIL_NATS_KEY)")
}

func (n *natsFlags) connect(name string, logger *slog.Logger) (*nats.Conn, error) {
	pw, err := password(n.user)
	if err != nil {
		return nil, err
	}
	return eventlog.Connect(n.url, eventlog.Login{User: n.user, Password: pw, Name: name, CAFile: n.ca, CertFile: n.cert, KeyFile: n.key, Logger: logger})
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
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s_FILE: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (a *app) logCmd() *cobra.Command {
	cfg := eventlog.ServerConfig{}
	var cluster eventlog.Cluster
	c := &cobra.Command{Use: "log", Short: "Run an event log node: an embedded NATS server with Keytrail's accounts", Args: none,
		Long: `Run an event log node: a NATS server that fsyncs every event before it
acknowledges it, with the accounts that Keytrail needs. Alone, or three of them as
a cluster with --cluster-listen and --route. 'keytrail init' prepares it once.

Passwords come from KEYTRAIL_ADMIN_PASSWORD, KEYTRAIL_CTRL_PASSWORD,
KEYTRAIL_EDGE_PASSWORD, KEYTRAIL_SYS_PASSWORD and KEYTRAIL_ROUTE_PASSWORD, or from
the files that the same names with _FILE give.`,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if cfg.Logger, err = a.logger(slog.LevelInfo); err != nil {
				return err
			}
			if cluster.Listen != "" {
				cfg.Cluster = &cluster
			}
			for user, pw := range map[string]*string{"admin": &cfg.Passwords.Admin, "ctrl": &cfg.Passwords.Ctrl, "edge": &cfg.Passwords.Edge,
				"sys": &cfg.Passwords.Sys, "route": &cfg.Passwords.Route} {
				if *pw, err = password(user); err != nil {
					return err
				}
				if *pw == "" && (user != "route" || cfg.Cluster != nil) && user != "sys" {
					return usageError{fmt.Errorf("KEYTRAIL_%s_PASSWORD is not set: nobody could connect as %s", strings.ToUpper(user), user)}
				}
			}
			return a.runLog(c.Context(), cfg)
		}}
	f := c.Flags()
	f.StringVar(&cfg.Dir, "dir", env("KEYTRAIL_DIR", "keytrail-log"), "where the streams are kept (KEYTRAIL_DIR)")
	f.StringVar(&cfg.Name, "name", os.Getenv("KEYTRAIL_NAME"), "the server's name, unique in a cluster (KEYTRAIL_NAME)")
	f.StringVar(&cfg.Listen, "listen", env("KEYTRAIL_LISTEN", "127.0.0.1:4222"), "address for clients (KEYTRAIL_LISTEN)")
	f.StringVar(&cfg.Monitor, "monitor", "", "address of NATS's own monitoring door")
	f.Int64Var(&cfg.MaxStore, "max-store", 0, "most bytes of all streams; keep it below the disk (default 16 GiB)")
	f.StringVar(&cluster.Listen, "cluster-listen", "", "address for the other members")
	f.StringVar(&cluster.Name, "cluster-name", "keytrail", "the cluster's name")
	f.StringSliceVar(&cluster.Routes, "route", nil, "host:port of another member")
	return c
}

func (a *app) runLog(ctx context.Context, cfg eventlog.ServerConfig) error {
	dir, err := ops.OpenDir(cfg.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	srv, err := eventlog.StartServer(cfg)
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
	<-ctx.Done()
	return nil
}
