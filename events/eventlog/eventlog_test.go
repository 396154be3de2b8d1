package eventlog

import (
	"cmp"
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

const testStore = 256 << 20

// testServer starts a server that stops with the test.
func testServer(t testing.TB, c server.Config) *server.Server {
	t.Helper()
	if c.Dir == "" {
		c.Dir = t.TempDir()
	}
	if c.MaxStore == 0 {
		c.MaxStore = testStore
	}
	if c.Nodes == "" {
		c.Nodes = nodesConf("n1", "n2", "n3")
	}
	s, err := server.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// nodesConf lets nodes in, each with the password that nodePassword returns.
func nodesConf(nodes ...events.NodeID) string {
	var b strings.Builder
	for _, n := range nodes {
		text, err := server.NodeConf(n, nodePassword(n))
		if err != nil {
			panic(err)
		}
		b.WriteString(text)
	}
	return b.String()
}

func nodePassword(n events.NodeID) string { return "pw-of-" + string(n) }

// edge connects as node n1.
func edge(s *server.Server) connectAs {
	return func() (*nats.Conn, error) { return s.ConnectNode("n1", nodePassword("n1")) }
}

// conn returns what connect makes, as soon as it does, and closes it with the test.
func conn(t testing.TB, connect func() (*nats.Conn, error)) *nats.Conn {
	t.Helper()
	var nc *nats.Conn
	var err error
	for deadline := time.Now().Add(patient); ; {
		if nc, err = connect(); err == nil {
			break
		}
		if time.Now().After(deadline) || waitFor(t.Context(), retryFirst) != nil {
			t.Fatal(err)
		}
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

func initLog(t testing.TB, s *server.Server) events.LogID {
	t.Helper()
	id, err := server.Init(t.Context(), conn(t, s.ConnectAdmin), server.InitConfig{MaxStore: testStore})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// openLog opens a log whose calls wait longer than a machine is busy with other work,
// unless o says how long.
func openLog(t testing.TB, nc *nats.Conn, o Options) *Log {
	t.Helper()
	o.Timeout = cmp.Or(o.Timeout, patient)
	l, err := Open(t.Context(), nc, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// newLog is a fresh log on a fresh single server.
func newLog(t testing.TB) *Log {
	t.Helper()
	s := testServer(t, server.Config{})
	initLog(t, s)
	return openLog(t, conn(t, s.Connect), Options{})
}

func TestLogContract(t *testing.T) {
	t.Parallel()
	logtest.TestLog(t, func(t *testing.T) events.Log { return contractLog(t) })
}

func TestUsesContract(t *testing.T) {
	logtest.TestUses(t, func(t *testing.T) logtest.Uses { return contractLog(t) })
}

func TestTimersContract(t *testing.T) {
	logtest.TestTimers(t, func(t *testing.T) logtest.TimerLog { return contractLog(t) })
}

func TestReadLogContract(t *testing.T) {
	logtest.TestReadLog(t, func(t *testing.T) (life, reads events.ReadLog) {
		l := contractLog(t)
		return l.Lifecycle, l.Reads()
	})
}

// The verifier's account passes the same contract as far as it may: it cannot
// append, so that control's log writes for it.
func TestLogContractFromEdge(t *testing.T) {
	t.Parallel()
	logtest.TestLog(t, func(t *testing.T) events.Log {
		s := testServer(t, server.Config{})
		initLog(t, s)
		return edgeReader{
			Log:  openLog(t, conn(t, edge(s)), Options{Edge: true}),
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

// note is an event that is legal at any time in the history of noted: a role may be
// defined again and again.
func note(i int) events.Data {
	return &events.RoleDefined{Description: "note " + strconv.Itoa(i), Scopes: []string{}}
}

func noted(name string) events.Aggregate {
	return events.RoleAggregate("shop", "acme", events.RoleID(name))
}

// first is the write that starts a history.
func first(a events.Aggregate, d events.Data) events.Write {
	return logtest.Stamp(&events.Chain{}, logtest.Event(a, d))
}

// fill appends n events in appends of up to 100, to histories of ten events.
func fill(t testing.TB, l events.Log, n int) {
	t.Helper()
	for n > 0 {
		var ws []events.Write
		for h := 0; len(ws) < min(n, 100); h++ {
			var c events.Chain
			a := noted(ulid.Make().String())
			for i := 0; i < 10 && len(ws) < min(n, 100); i++ {
				ws = append(ws, logtest.Stamp(&c, logtest.Event(a, note(i))))
			}
		}
		if _, err := l.Append(t.Context(), ws...); err != nil {
			t.Fatal(err)
		}
		n -= len(ws)
	}
}

// until polls cond.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patient); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patient)
		}
		if waitFor(t.Context(), 5*time.Millisecond) != nil {
			t.Fatal("the test's time is over")
		}
	}
}

// view is a follower that counts.
type view struct {
	mu     sync.Mutex
	next   events.Seq
	wrong  int
	fresh  events.Seq
	slow   func() // called in each Apply
	future bool   // a Fresh came from the future, or an event out of nowhere
}

func (v *view) Apply(batch []events.Recorded) error {
	if v.slow != nil {
		v.slow()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range batch {
		if v.next++; batch[i].Seq != v.next || batch[i].Aggregate.ID == "evil" {
			v.wrong++
		}
	}
	return nil
}

func (v *view) Fresh(at events.Time, last events.Seq) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fresh = last
	v.future = v.future || at > events.At(time.Now().Add(time.Minute))
}

func (v *view) at() (next events.Seq, wrong int, fresh events.Seq) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.next, v.wrong, v.fresh
}

// beside runs f beside the test; stop ends it and returns its error.
func beside(t testing.TB, f func(context.Context) error) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return sync.OnceValue(func() error {
		cancel()
		return <-done
	})
}
