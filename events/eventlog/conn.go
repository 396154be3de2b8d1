package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
)

// Login says as whom, and with what, to connect to a NATS server.
type Login struct {
	User     string       // ctrl, edge, admin or sys, as accounts.conf has them
	Password string       // never logged
	Name     string       // shown in the server's connection list
	CAFile   string       // PEM of the authority that signed the server's certificate; "" = the system's, or no TLS
	CertFile string       // PEM of this client's certificate, with KeyFile
	KeyFile  string       //
	Logger   *slog.Logger // where refused subjects and lost connections are told; default none
}

// Connect connects to a NATS server, or the first of several (a comma between
// them) that answers, and keeps reconnecting for as long as the connection is
// not closed. The error is events.ErrUnavailable when none answers.
func Connect(url string, login Login) (*nats.Conn, error) { return connect(url, login) }

func connect(url string, login Login, more ...nats.Option) (*nats.Conn, error) {
	log := login.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx := context.Background()
	opts := append([]nats.Option{
		nats.UserInfo(login.User, login.Password),
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

// waitFor waits for d or until ctx ends, and then returns its error.
func waitFor(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
