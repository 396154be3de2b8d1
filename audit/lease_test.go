package audit

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
)

// relay passes connections on to the server of dsn and counts them. It returns
// the DSN that leads through it.
func relay(t *testing.T, dsn string) (through string, dials *atomic.Int32) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	to := u.Host
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dials = new(atomic.Int32)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed below
			}
			dials.Add(1)
			conns.Go(func() {
				defer in.Close()
				out, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				conns.Go(func() {
					_, _ = io.Copy(out, in)
					_ = out.Close()
				})
				_, _ = io.Copy(in, out)
			})
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		conns.Wait()
	})
	u.Host = l.Addr().String()
	return u.String(), dials
}

// A standby looks now and then, over a connection that it keeps, and takes over
// when the lease is free.
func TestStandbyKeepsItsConnection(t *testing.T) {
	dsn := enginetest.Database(t)
	holder := openStore(t, dsn)
	through, dials := relay(t, dsn)
	standby := openStore(t, through)

	held := make(chan struct{})
	release := make(chan struct{})
	holding := make(chan error, 1)
	go func() {
		holding <- holder.withLease(t.Context(), "uses", func(context.Context) error {
			close(held)
			select {
			case <-release:
			case <-t.Context().Done():
			}
			return nil
		})
	}()
	<-held

	looks := make(chan time.Duration)
	standby.pause = func(ctx context.Context, d time.Duration) error {
		select {
		case looks <- d:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	opened := dials.Load()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	taken := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- standby.withLease(ctx, "uses", func(ctx context.Context) error {
			close(taken)
			<-ctx.Done()
			return context.Cause(ctx)
		})
	}()
	var slowest time.Duration
	const n = 50
	for range n {
		select {
		case d := <-looks:
			slowest = max(slowest, d)
		case err := <-ended:
			t.Fatalf("the standby does not look any more: %v", err)
		}
	}
	// One try to take it, and what the pool opens for the looks.
	if got := dials.Load() - opened; got > 2 {
		t.Errorf("%d looks cost %d connections, want 2 at most", n, got)
	}
	if slowest != leaseMax {
		t.Errorf("it looks every %v after a while, want %v", slowest, leaseMax)
	}

	close(release)
	if err := <-holding; err != nil {
		t.Errorf("holder: %v", err)
	}
	for waiting := true; waiting; {
		select {
		case <-looks:
		case <-taken:
			waiting = false
		case err := <-ended:
			t.Fatalf("the standby did not take over: %v", err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("standby: %v", err)
	}
}
