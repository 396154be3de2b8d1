package eventlog

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

const testStore = 256 << 20

// testServer starts a server that stops with the test.
func testServer(t testing.TB, c ServerConfig) *Server {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if c.MaxStore == 0 {
		c.MaxStore = testStore
	}
	s, err := StartServer(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// conn returns what connect makes and closes it with the test.
func conn(t testing.TB, connect func() (*nats.Conn, error)) *nats.Conn {
	t.Helper()
	nc, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(nc) })
	return nc
}

// closed closes nc and waits until its goroutines are gone.
func closed(nc *nats.Conn) {
	done := make(chan struct{})
	nc.SetClosedHandler(func(*nats.Conn) { close(done) })
	if nc.IsClosed() {
		return
	}
	nc.Close()
	<-done
}

func initLog(t testing.TB, s *Server) events.LogID {
	t.Helper()
	id, err := Init(t.Context(), conn(t, s.ConnectAdmin), InitConfig{MaxStore: testStore})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func openLog(t testing.TB, nc *nats.Conn, o Options) *Log {
	t.Helper()
	l, err := Open(t.Context(), nc, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// newLog is a fresh log on a fresh single server.
func newLog(t testing.TB) *Log {
	t.Helper()
	s := testServer(t, ServerConfig{})
	initLog(t, s)
	return openLog(t, conn(t, s.Connect), Options{})
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, goleak.IgnoreCurrent()) }

func TestLogContract(t *testing.T) {
	logtest.TestLog(t, func(t *testing.T) events.Log { return contractLog(t) })
}

func TestUsesContract(t *testing.T) {
	logtest.TestUses(t, func(t *testing.T) logtest.Uses { return contractLog(t) })
}

func TestTimersContract(t *testing.T) {
	logtest.TestTimers(t, func(t *testing.T) logtest.TimerLog { return contractLog(t) })
}

// The verifier's account passes the same contract as far as it may: it cannot
// append, so that control's log writes for it.
func TestLogContractFromEdge(t *testing.T) {
	logtest.TestLog(t, func(t *testing.T) events.Log {
		s := testServer(t, ServerConfig{})
		initLog(t, s)
		return edgeReader{
			Log:  openLog(t, conn(t, s.ConnectEdge), Options{Edge: true}),
			ctrl: openLog(t, conn(t, s.Connect), Options{}),
		}
	})
}

type edgeReader struct {
	*Log
	ctrl *Log
}

func (e edgeReader) Append(ctx context.Context, w ...events.Write) (events.Seq, error) {
	return e.ctrl.Append(ctx, w...)
}

var _ = slog.New
var _ = time.Second
