// Package server embeds the NATS server that a single machine, or a member of a
// small cluster, keeps the log in; it makes the streams and says who may do what.
// Whoever only reads or writes a log needs package eventlog and not this one.
package server

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/jwt/v2"
	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/proxy"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// accountsConf is who may do what; deploy/nats/nats.conf carries the same text.
//
//go:embed accounts.conf
var accountsConf string

// Passwords are those of the server's users. They print redacted. An empty one
// is replaced by a random one at start, so that only this process, through
// Server.Connect, can use it. Allowed are visible ASCII characters without
// quotes and backslashes; a cluster's members need the same ones.
type Passwords struct {
	Admin string // CTRL: makes the streams; used by Init only
	Ctrl  string // CTRL: the running control and auditor
	Sys   string // SYS: reads the servers' settings
	Route string // between the members of a cluster
}

// String returns a redaction.
func (Passwords) String() string { return "[passwords]" }

// Format prints the redaction for every verb: %d and %#v would print the passwords.
func (Passwords) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[passwords]") }

// LogValue implements slog.LogValuer with a redaction.
func (Passwords) LogValue() slog.Value { return slog.StringValue("[passwords]") }

// MarshalText implements encoding.TextMarshaler, and so JSON, with a redaction.
func (Passwords) MarshalText() ([]byte, error) { return []byte("[passwords]"), nil }

// Config describes an embedded NATS server.
type Config struct {
	Dir       string       // where the streams are kept; made with mode 0700 when missing
	Name      string       // unique in a cluster; default "keytrail"
	Listen    string       // host:port for clients (port -1: any free one); "" = in process only
	Cluster   *Cluster     // nil = a single server
	MaxStore  int64        // most bytes of all streams; default DefaultMaxStore. Init's share must fit in it
	Passwords Passwords    // empty ones become random
	Nodes     string       // the verifier nodes that may connect, each a text as NodeConf returns it; "" = none
	Limits    proxy.Limits // what a node may ask of this server
	Monitor   string       // host:port of the HTTP monitoring endpoint; "" = none
	Logger    *slog.Logger
}

// Cluster makes a server a member of a cluster.
type Cluster struct {
	Name   string   // the same on all members; default "keytrail"
	Listen string   // host:port for the other members
	Routes []string // host:port of the other members; its own may be among them
}

// DefaultMaxStore is the server's quota for streams when none is configured.
const DefaultMaxStore int64 = 16 << 30

// Server is an embedded NATS server with Keytrail's accounts. Every stream it
// holds is fsynced before an acknowledgement (invariant L1).
type Server struct {
	s      *natsserver.Server
	config Config // with its passwords filled in

	// Of a server that listens: clients reach it through the proxy.
	listener net.Listener
	proxy    *proxy.Proxy
	shares   *proxy.Shares
	nodes    atomic.Int64 // that may connect
	endGuard func()       // ends the guard and waits for it
}

// Validate reports every fault of the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.Dir == "" {
		errs = append(errs, errors.New("dir: want the directory of the streams"))
	}
	for _, a := range []struct{ name, addr string }{{"listen", c.Listen}, {"monitor", c.Monitor}} {
		if _, _, err := hostPort(a.addr); a.addr != "" && err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
		}
	}
	if c.Cluster != nil {
		if _, _, err := hostPort(c.Cluster.Listen); err != nil {
			errs = append(errs, fmt.Errorf("cluster listen: %w", err))
		}
		if c.Name == "" {
			errs = append(errs, errors.New("name: a member of a cluster needs a name of its own"))
		}
	}
	if c.Limits.Uses < 0 || c.Limits.Bytes < 0 {
		errs = append(errs, errors.New("limits of a node: want numbers a second"))
	}
	if c.MaxStore < 0 {
		errs = append(errs, errors.New("max store: want a number of bytes"))
	}
	p := c.Passwords
	for _, pw := range []struct{ name, v string }{{"admin", p.Admin}, {"ctrl", p.Ctrl}, {"sys", p.Sys}, {"route", p.Route}} {
		if !visible(pw.v) {
			errs = append(errs, fmt.Errorf("password of %s: %w", pw.name, errPassword))
		}
	}
	return errors.Join(errs...)
}

func hostPort(s string) (string, int, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("%q: want host:port", s)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < -1 || n > 65535 {
		return "", 0, fmt.Errorf("%q: want a port from 0 to 65535, or -1 for a free one", s)
	}
	if n == 0 { // to the server 0 means its default port; here, as in package net, any free one
		n = -1
	}
	return host, n, nil
}

// Start starts the server and returns when it takes connections. A single
// server has then recovered its streams; a member of a cluster is fit for use
// when Ready says so. The caller must Stop it.
func Start(c Config) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("log server: %w", err)
	}
	for _, p := range []*string{&c.Passwords.Admin, &c.Passwords.Ctrl, &c.Passwords.Sys, &c.Passwords.Route} {
		if *p == "" {
			*p = rand.Text()
		}
	}
	if c.MaxStore == 0 {
		c.MaxStore = DefaultMaxStore
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("log server: %w", err)
	}
	if err := removeUnmade(c.Dir); err != nil {
		return nil, fmt.Errorf("log server: %w", err)
	}
	opts, err := c.options()
	if err != nil {
		return nil, fmt.Errorf("log server: %w", err)
	}
	var listener net.Listener
	if c.Listen != "" {
		if listener, err = listen(c.Listen); err != nil {
			return nil, fmt.Errorf("log server: %w", err)
		}
	}
	server, err := startServer(c, opts)
	if err != nil {
		if listener != nil {
			_ = listener.Close()
		}
		return nil, fmt.Errorf("log server: %w", err)
	}
	if listener != nil {
		server.open(listener)
	}
	return server, nil
}

func startServer(c Config, opts *natsserver.Options) (*Server, error) {
	s, err := natsserver.NewServer(opts)
	if err != nil {
		return nil, err
	}
	if c.Logger != nil {
		s.SetLoggerV2(serverLogger{c.Logger}, false, false, false)
	}
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		err := fmt.Errorf("it takes no connections after 30 s; is %s in use by another process?", c.Dir)
		s.Shutdown()
		s.WaitForShutdown()
		return nil, err
	}
	if s.JetStreamConfig() == nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("JetStream did not start on %s; its log says why", c.Dir)
	}
	server := &Server{s: s, config: c}
	server.nodes.Store(int64(len(opts.Users) - len(users)))
	return server, nil
}

// options returns the whole configuration of the server.
func (c *Config) options() (*natsserver.Options, error) {
	o := &natsserver.Options{
		ServerName:          c.Name,
		NoSigs:              true,
		NoLog:               c.Logger == nil,
		MaxPayload:          streams.MaxPayload,
		WriteDeadline:       10 * time.Second,
		JetStream:           true,
		StoreDir:            c.Dir,
		SyncAlways:          true, // L1: server-wide, the stream itself has no such setting
		JetStreamMaxStore:   c.MaxStore,
		JetStreamMaxMemory:  256 << 20,
		LameDuckDuration:    2 * time.Second,
		LameDuckGracePeriod: 200 * time.Millisecond,
	}
	if o.ServerName == "" {
		o.ServerName = "keytrail"
	}
	var vars strings.Builder
	p := c.Passwords
	for _, v := range [][2]string{{"ADMIN", p.Admin}, {"CTRL", p.Ctrl}, {"SYS", p.Sys}} {
		fmt.Fprintf(&vars, "KEYTRAIL_%s_PASSWORD: %q\n", v[0], v[1])
	}
	if err := o.ProcessConfigString(vars.String() + strings.Replace(accountsConf, nodesLine, c.Nodes, 1)); err != nil {
		return nil, err
	}
	// Clients come through the proxy. A member of a cluster needs a listener of its own
	// to hand its leaderships over when it stops; no node may use that one.
	if c.Listen == "" || c.Cluster == nil {
		o.DontListen = true
	} else {
		o.Host, o.Port, o.Cluster.NoAdvertise = "127.0.0.1", natsserver.RANDOM_PORT, true
	}
	if c.Listen != "" {
		for _, u := range o.Users {
			if !slices.Contains(users, u.Username) {
				u.AllowedConnectionTypes = map[string]struct{}{jwt.ConnectionTypeInProcess: {}}
			}
		}
	}
	if c.Monitor != "" {
		o.HTTPHost, o.HTTPPort, _ = hostPort(c.Monitor)
	}
	if c.Cluster != nil {
		o.Cluster.Name = c.Cluster.Name
		if o.Cluster.Name == "" {
			o.Cluster.Name = "keytrail"
		}
		o.Cluster.Host, o.Cluster.Port, _ = hostPort(c.Cluster.Listen)
		o.Cluster.Username, o.Cluster.Password = "route", p.Route
		for _, r := range c.Cluster.Routes {
			if _, _, err := hostPort(r); err != nil {
				return nil, fmt.Errorf("cluster route: %w", err)
			}
			o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: r, User: url.UserPassword("route", p.Route)})
		}
	}
	return o, nil
}

// Connect returns an in-process connection as the running control: it appends
// and reads, and cannot manage streams. It ends with this Server: after a
// restart make a new one. The caller must Close it.
func (s *Server) Connect() (*nats.Conn, error) { return s.as("ctrl", s.config.Passwords.Ctrl) }

// ConnectAdmin returns the in-process connection that Init needs.
func (s *Server) ConnectAdmin() (*nats.Conn, error) { return s.as("admin", s.config.Passwords.Admin) }

// ConnectSystem returns the in-process connection that CheckServers needs.
func (s *Server) ConnectSystem() (*nats.Conn, error) { return s.as("sys", s.config.Passwords.Sys) }

func (s *Server) as(user, password string) (*nats.Conn, error) {
	return s.connect(dial.Login{User: user, Password: dial.Password(password)})
}

func (s *Server) connect(login dial.Login) (*nats.Conn, error) {
	login.Name = "keytrail in process"
	return dial.Connect("", login, nats.InProcessServer(s.s))
}

// URL returns where clients connect, "" when the server does not listen.
func (s *Server) URL() string {
	if s.listener == nil {
		return ""
	}
	return "nats://" + s.listener.Addr().String()
}

// Monitor returns the address of the monitoring endpoint, nil when there is none.
func (s *Server) Monitor() net.Addr {
	if a := s.s.MonitorAddr(); a != nil {
		return a
	}
	return nil
}

// ClusterAddr returns the address the other members dial, nil for a single server.
func (s *Server) ClusterAddr() net.Addr {
	if a := s.s.ClusterAddr(); a != nil {
		return a
	}
	return nil
}

// Budget returns how many bytes Init may give to the streams: the quota, but
// no more than four fifths of what the disk has free now, so that the clean
// refusal of a full stream comes before the disk is full.
func (s *Server) Budget() (int64, error) {
	free, err := diskFree(s.config.Dir)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", filepath.Clean(s.config.Dir), err)
	}
	return min(s.config.MaxStore, free/5*4), nil
}

// Free returns how many bytes the disk of the streams has left.
func (s *Server) Free() (int64, error) {
	free, err := diskFree(s.config.Dir)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", filepath.Clean(s.config.Dir), err)
	}
	return free, nil
}

// leastSpace is when the disk is nearly full: some minutes of a busy log.
const leastSpace = 64 << 20

// Space reports whether the disk of the streams has room left: nil, or an error
// that says how much.
func (s *Server) Space() error {
	free, err := diskFree(s.config.Dir)
	if err != nil {
		return fmt.Errorf("free space of the log's directory: %w", err)
	}
	if free < leastSpace {
		return fmt.Errorf("the disk of the log has %d KiB left: when it is full, the log stores nothing", free>>10)
	}
	return nil
}

// Ready reports whether every stream on this server is recovered and caught up
// with its leader; the error says what is not.
func (s *Server) Ready() error {
	h := s.s.Healthz(&natsserver.HealthzOptions{})
	if h.Status == "ok" {
		return nil
	}
	return fmt.Errorf("log server is %s: %s", h.Status, h.Error)
}

// WaitReady waits until Ready.
func (s *Server) WaitReady(ctx context.Context) error {
	for {
		err := s.Ready()
		if err == nil {
			return nil
		}
		if wait(ctx, 20*time.Millisecond) != nil {
			return err
		}
	}
}

// Stop ends the server in order and waits for it: a member of a cluster hands
// its leaderships over first (writes pause for milliseconds, not seconds).
func (s *Server) Stop() {
	if s.proxy != nil {
		s.endGuard()
		s.proxy.CloseListener()
	}
	if s.s.ClusterAddr() != nil {
		s.s.LameDuckShutdown()
	}
	s.s.Shutdown()
	s.s.WaitForShutdown()
	if s.proxy != nil {
		s.proxy.Close()
	}
}

// wait waits for d or until ctx ends, and then returns its error.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
