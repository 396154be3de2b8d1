// Command clickhouse is the inside of a stand-in for the image
// clickhouse/clickhouse-server, for machines that cannot pull it: the local
// engine of Keytrail behind the vendor image's ports and variables. It is not
// ClickHouse's server, and nothing of it belongs into production; build.sh says
// what it is good for.
//
// Of the vendor's image it knows what docker-compose.yml and the tests use:
// CLICKHOUSE_PASSWORD, the ports 9000 and 8123, data below /var/lib/clickhouse,
// SIGTERM, and `wget URL` for the health check. The engine has one user and one
// database, both called keytrail: CLICKHOUSE_USER and CLICKHOUSE_DB must say so.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/internal/files"
)

const (
	dir  = "/var/lib/clickhouse"
	name = "keytrail"
)

func main() {
	engine.ChildMain()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := serve
	switch {
	case filepath.Base(os.Args[0]) == "wget":
		run = wget
	case len(os.Args) == 2 && os.Args[1] == "locate":
		run = locate
	}
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "stand-in:", err)
		stop()
		os.Exit(1)
	}
}

// wget asks the URL that is the last argument and judges by the status, which is
// all that a health check wants.
func wget(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, os.Args[len(os.Args)-1], nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// locate prints the path of the engine's library on this machine, fetching it if
// need be; build.sh puts it into the image.
func locate(ctx context.Context) error {
	lib, err := engine.Ensure(ctx, engine.Config{Progress: os.Stderr})
	if err == nil {
		fmt.Println(lib)
	}
	return err
}

func serve(ctx context.Context) (err error) {
	for _, v := range []string{"CLICKHOUSE_USER", "CLICKHOUSE_DB"} {
		if got := os.Getenv(v); got != name {
			return fmt.Errorf("%s is %q: this stand-in knows only %s", v, got, name)
		}
	}
	password := os.Getenv("CLICKHOUSE_PASSWORD")
	if password == "" {
		return errors.New("CLICKHOUSE_PASSWORD is not set")
	}
	// The engine takes the password of its directory's earlier starts.
	if err := files.Write(filepath.Join(dir, "password"), []byte(password+"\n")); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	eng, err := engine.Start(ctx, engine.Config{Dir: dir, Cache: os.TempDir(), Logger: logger})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, eng.Close()) }()
	native, err := url.Parse(eng.DSN())
	if err != nil {
		return errors.New("the engine's address is not a URL")
	}

	ctx, cancel := context.WithCancelCause(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel(nil)
	group.Go(func() { cancel(eng.Run(ctx)) })
	for _, p := range []struct{ from, to string }{{":9000", native.Host}, {":8123", eng.HTTPAddr()}} {
		l, err := net.Listen("tcp", p.from)
		if err != nil {
			return err
		}
		group.Go(func() { cancel(proxy(ctx, l, p.to)) })
	}
	logger.Info("ready: a stand-in for clickhouse/clickhouse-server, not the vendor's image")
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// proxy carries connections until ctx ends, and then cuts those that are left.
func proxy(ctx context.Context, l net.Listener, to string) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var group sync.WaitGroup
	defer group.Wait()
	for {
		in, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		group.Go(func() { carry(ctx, in, to) })
	}
}

func carry(ctx context.Context, in net.Conn, to string) {
	defer in.Close()
	out, err := net.Dial("tcp", to)
	if err != nil {
		return // the engine is restarting; the client sees its connection end
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { in.Close(); out.Close() })
	defer stop()
	var group sync.WaitGroup
	for _, d := range [][2]net.Conn{{in, out}, {out, in}} {
		group.Go(func() {
			// An end of either kind is passed on: the other side sees it too.
			_, _ = io.Copy(d[0], d[1])
			if w, ok := d[0].(*net.TCPConn); ok {
				_ = w.CloseWrite()
			}
		})
	}
	group.Wait()
}
