// Package dial connects to the NATS servers that keep the log, as one of the users
// that the server's accounts know.
package dial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
)

// Login is the user and the credentials with which to connect to a NATS server.
type Login struct {
	User     string       // ctrl, edge, admin or sys, as accounts.conf has them
	Password Password     // never printed
	Name     string       // shown in the server's connection list
	CAFile   string       // PEM of the authority that signed the server's certificate; "" = the system's, or no TLS
	CertFile string       // PEM of this client's certificate, with KeyFile
	KeyFile  string       //
	Logger   *slog.Logger // where refused subjects and lost connections are told; default none
}

// Password is a user's password. It prints redacted, in every format.
type Password string

const redacted = "[password]"

// String returns a redaction.
func (Password) String() string { return redacted }

// Format prints the redaction for every verb: %d and %#v would print the password.
func (Password) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer with a redaction.
func (Password) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, and so JSON, with a redaction.
func (Password) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Connect connects to a NATS server, or the first of several (a comma between
// them) that answers, and keeps reconnecting for as long as the connection is
// not closed. The error is events.ErrUnavailable when none answers. Options in
// more come after Connect's own.
func Connect(url string, login Login, more ...nats.Option) (*nats.Conn, error) {
	log := login.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx := context.Background()
	opts := append([]nats.Option{
		nats.UserInfo(login.User, string(login.Password)),
		nats.Name(login.Name),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(100 * time.Millisecond),
		nats.ReconnectJitter(50*time.Millisecond, 200*time.Millisecond),
		nats.IgnoreAuthErrorAbort(), // a server restarting with new passwords is not the end
		// A dead peer is noticed after 4 s.
		nats.PingInterval(2 * time.Second),
		nats.MaxPingsOutstanding(2),
		// Nothing is buffered while the connection is down: a write either went
		// out or it did not, and Append can tell which.
		nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrSlowConsumer) { // a follower repairs its gap
				log.LogAttrs(ctx, slog.LevelDebug, "follower fell behind", slog.Any("err", err))
				return
			}
			log.LogAttrs(ctx, slog.LevelWarn, "log connection", slog.Any("err", err))
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.LogAttrs(ctx, slog.LevelWarn, "log connection lost", slog.Any("err", err))
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.LogAttrs(ctx, slog.LevelInfo, "log connection is back", slog.String("server", nc.ConnectedServerName()))
		}),
	}, more...)
	if login.CAFile != "" {
		opts = append(opts, nats.RootCAs(login.CAFile))
	}
	if login.CertFile != "" || login.KeyFile != "" {
		opts = append(opts, nats.ClientCert(login.CertFile, login.KeyFile))
	}
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: connect as %s: %w", events.ErrUnavailable, login.User, err)
	}
	return nc, nil
}
