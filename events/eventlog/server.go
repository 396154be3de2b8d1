package eventlog

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
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
	Edge  string // EDGE: verifiers
	Sys   string // SYS: reads the servers' settings
	Route string // between the members of a cluster
}

// String returns a redaction.
func (Passwords) String() string { return "[passwords]" }

// GoString returns a redaction, so that %#v prints none either.
func (Passwords) GoString() string { return "[passwords]" }

// LogValue implements slog.LogValuer with a redaction.
func (Passwords) LogValue() slog.Value { return slog.StringValue("[passwords]") }

// ServerConfig describes an embedded NATS server.
type ServerConfig struct {
	Dir       string    // where the streams are kept; made with mode 0700 when missing
	Name      string    // unique in a cluster; default "keytrail"
	Listen    string    // host:port for clients (port -1: any free one); "" = in process only
	Cluster   *Cluster  // nil = a single server
	MaxStore  int64     // most bytes of all streams; default DefaultMaxStore. Init's share must fit in it
	Passwords Passwords // empty ones become random
	Monitor   string    // host:port of the HTTP monitoring door; "" = none
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

// maxPayload is what the server takes in one message: MaxMessage and headers.
const maxPayload = MaxMessage + headerRoom

// Server is an embedded NATS server with Keytrail's accounts. Every stream it
// holds is fsynced before an acknowledgement (invariant L1).
type Server struct {
	s   *server.Server
	dir string
	max int64
	pw  Passwords
}

// Validate reports every fault of the configuration.
func (c *ServerConfig) Validate() error {
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
	if c.MaxStore < 0 {
		errs = append(errs, errors.New("max store: want a number of bytes"))
	}
	p := c.Passwords
	for _, pw := range []struct{ name, v string }{{"admin", p.Admin}, {"ctrl", p.Ctrl}, {"edge", p.Edge}, {"sys", p.Sys}, {"route", p.Route}} {
		if strings.ContainsFunc(pw.v, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\'' || r == '\\' }) {
			errs = append(errs, fmt.Errorf("password of %s: want visible ASCII characters without quotes and backslashes", pw.name))
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

// StartServer starts the server and returns when it takes connections. A single
// server has then recovered its streams; a member of a cluster is fit for use
// when Ready says so. The caller must Stop it.
func StartServer(c ServerConfig) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("log server: %w", err)
	}
	for _, p := range []*string{&c.Passwords.Admin, &c.Passwords.Ctrl, &c.Passwords.Edge, &c.Passwords.Sys, &c.Passwords.Route} {
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
	opts, err := c.options()
	if err != nil {
		return nil, fmt.Errorf("log server: %w", err)
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("log server: %w", err)
	}
	if c.Logger != nil {
		s.SetLoggerV2(serverLogger{c.Logger}, false, false, false)
	}
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		err := fmt.Errorf("log server: it takes no connections after 30 s; is %s in use by another process?", c.Dir)
		s.Shutdown()
		s.WaitForShutdown()
		return nil, err
	}
	if s.JetStreamConfig() == nil {
		s.Shutdown()
		s.WaitForShutdown()
		return nil, fmt.Errorf("log server: JetStream did not start on %s; its log says why", c.Dir)
	}
	return &Server{s: s, dir: c.Dir, max: c.MaxStore, pw: c.Passwords}, nil
}

// options returns the whole configuration of the server.
func (c *ServerConfig) options() (*server.Options, error) {
	o := &server.Options{
		ServerName:          c.Name,
		NoSigs:              true,
		NoLog:               c.Logger == nil,
		MaxPayload:          maxPayload,
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
	for _, v := range [][2]string{{"ADMIN", p.Admin}, {"CTRL", p.Ctrl}, {"EDGE", p.Edge}, {"SYS", p.Sys}} {
		fmt.Fprintf(&vars, "KEYTRAIL_%s_PASSWORD: %q\n", v[0], v[1])
	}
	if err := o.ProcessConfigString(vars.String() + accountsConf); err != nil {
		return nil, err
	}
	if c.Listen == "" {
		o.DontListen = true
	} else {
		o.Host, o.Port, _ = hostPort(c.Listen)
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
func (s *Server) Connect() (*nats.Conn, error) { return s.as("ctrl", s.pw.Ctrl) }

// ConnectEdge returns an in-process connection as a verifier.
func (s *Server) ConnectEdge() (*nats.Conn, error) { return s.as("edge", s.pw.Edge) }

// ConnectAdmin returns the in-process connection that Init needs.
func (s *Server) ConnectAdmin() (*nats.Conn, error) { return s.as("admin", s.pw.Admin) }

// ConnectSystem returns the in-process connection that CheckServers needs.
func (s *Server) ConnectSystem() (*nats.Conn, error) { return s.as("sys", s.pw.Sys) }

func (s *Server) as(user, password string) (*nats.Conn, error) {
	return connect("", Login{User: user, Password: password, Name: "keytrail in process"}, nats.InProcessServer(s.s))
}

// URL returns where clients connect, "" when the server does not listen.
func (s *Server) URL() string {
	if a := s.s.Addr(); a != nil {
		return "nats://" + a.String()
	}
	return ""
}

// Monitor returns the address of the monitoring door, nil when there is none.
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
	free, err := diskFree(s.dir)
	if err != nil {
		return 0, fmt.Errorf("free space of %s: %w", filepath.Clean(s.dir), err)
	}
	return min(s.max, free/5*4), nil
}

// Ready reports whether every stream on this server is recovered and caught up
// with its leader; the error says what is not.
func (s *Server) Ready() error {
	h := s.s.Healthz(&server.HealthzOptions{})
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
		if waitFor(ctx, 20*time.Millisecond) != nil {
			return err
		}
	}
}

// Stop ends the server in order and waits for it: a member of a cluster hands
// its leaderships over first (writes pause for milliseconds, not seconds).
func (s *Server) Stop() {
	if s.s.ClusterAddr() != nil {
		s.s.LameDuckShutdown()
	}
	s.s.Shutdown()
	s.s.WaitForShutdown()
}

// serverLogger passes the server's lines on: its notices are our debug.
type serverLogger struct{ l *slog.Logger }

func (s serverLogger) put(level slog.Level, format string, v []any) {
	s.l.LogAttrs(context.Background(), level, "nats-server", slog.String("line", fmt.Sprintf(format, v...)))
}

// expected reports whether a warning says what is as it should be: the
// configuration comes with passwords, from the environment or drawn at start,
// and after a crash the timers' state is rebuilt by a scan.
func expected(format string) bool {
	return strings.HasPrefix(format, "Plaintext passwords detected") || strings.Contains(format, "state is outdated; attempting to recover")
}

func (s serverLogger) Noticef(format string, v ...any) { s.put(slog.LevelDebug, format, v) }
func (s serverLogger) Warnf(format string, v ...any) {
	level := slog.LevelWarn
	if expected(format) {
		level = slog.LevelDebug
	}
	s.put(level, format, v)
}
func (s serverLogger) Errorf(format string, v ...any) { s.put(slog.LevelError, format, v) }
func (s serverLogger) Fatalf(format string, v ...any) { s.put(slog.LevelError, format, v) }
func (s serverLogger) Debugf(format string, v ...any) {}
func (s serverLogger) Tracef(format string, v ...any) {}
