package eventlog

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
)

// fabric is three servers each of which reaches each other one through a proxy of its
// own, so that one can be cut off from the others and not from its clients.
type fabric struct {
	t       *testing.T
	servers [3]*natsserver.Server
	links   [3][3]*proxy // by the one that dials and the one that is dialled
	pw      server.Passwords
}

func newFabric(t *testing.T) *fabric {
	t.Helper()
	f := &fabric{t: t}
	ports := freePorts(t, 3)
	for i := range 3 {
		var o *natsserver.Options
		o, f.pw = plainOptions(t)
		o.ServerName = fmt.Sprint("n", i)
		host, port, _ := strings.Cut(ports[i], ":")
		o.Cluster = natsserver.ClusterOpts{Name: "keytrail", Host: host, Username: "route", Password: f.pw.Route,
			// What the servers tell each other of their addresses leads nowhere.
			Advertise: "127.0.0.1:1", NoAdvertise: true}
		if _, err := fmt.Sscan(port, &o.Cluster.Port); err != nil {
			t.Fatal(err)
		}
		o.Routes = nil
		for j := range 3 {
			if i != j {
				f.links[i][j] = newProxy(t, ports[j])
				o.Routes = append(o.Routes, &url.URL{Scheme: "nats-route", Host: f.links[i][j].l.Addr().String(), User: url.UserPassword("route", f.pw.Route)})
			}
		}
		f.servers[i] = startPlain(t, o)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	if _, err := server.Init(ctx, f.as("admin", f.pw.Admin, 0, 1, 2), server.InitConfig{Replicas: 3, MaxStore: testStore}); err != nil {
		t.Fatal(err)
	}
	return f
}

// as connects to the first of the servers, and knows the others too.
func (f *fabric) as(user, password string, servers ...int) *nats.Conn {
	f.t.Helper()
	var urls []string
	for _, i := range servers {
		urls = append(urls, f.servers[i].ClientURL())
	}
	return conn(f.t, func() (*nats.Conn, error) {
		return dial.Connect(strings.Join(urls, ","), dial.Login{User: user, Password: dial.Password(password)}, nats.DontRandomize())
	})
}

// cut cuts one server off from the others, without a word to anybody.
func (f *fabric) cut(i int, off bool) {
	for j := range 3 {
		for _, p := range []*proxy{f.links[i][j], f.links[j][i]} {
			if p == nil {
				continue
			}
			p.mute.Store(off)
			p.deaf.Store(off)
			if !off {
				p.cut() // what was swallowed is missing: begin anew
			}
		}
	}
}

// ready waits until each server by itself knows who leads the log, takes an append, and
// has what was appended: no client of it has a reason to leave it.
func (f *fabric) ready() {
	f.t.Helper()
	for i := range f.servers {
		nc := f.as("ctrl", f.pw.Ctrl, i)
		l := openLog(f.t, nc, Options{})
		for _, stream := range []string{lifeStream, useStream, leaseStream} {
			ctx, cancel := l.bound(f.t.Context())
			_, err := l.confirmed(ctx, stream)
			cancel()
			if err != nil {
				f.t.Fatal(err)
			}
		}
		until(f.t, fmt.Sprintf("n%d serves", i), func() bool {
			ctx, cancel := context.WithTimeout(f.t.Context(), 2*patience)
			defer cancel()
			seq, err := l.Append(ctx, first(noted(ulid.Make().String()), note(1)))
			if err != nil {
				return false
			}
			var got events.Seq
			err = l.get(ctx, lifeStream, getRequest{Seq: seq, Batch: 1}, func(s *stored) error { got = s.seq; return nil })
			return err == nil && got == seq
		})
		closed(nc)
	}
}

// attach connects as connect does, with the servers in that order, until the first of
// them lets it in: a client that waits for it in vain goes to the next.
func (f *fabric) attach(user, password string, order ...int) *nats.Conn {
	f.t.Helper()
	var nc *nats.Conn
	until(f.t, fmt.Sprintf("%s is attached to n%d", user, order[0]), func() bool {
		if nc = f.as(user, password, order...); nc.ConnectedServerName() == fmt.Sprint("n", order[0]) {
			return true
		}
		closed(nc)
		return false
	})
	return nc
}

// leader returns which server leads the lifecycle stream, as l sees it.
func (f *fabric) leader(l *Log) int {
	f.t.Helper()
	ctx, cancel := l.bound(f.t.Context())
	defer cancel()
	si, err := l.confirmed(ctx, lifeStream)
	if err != nil {
		f.t.Fatal(err)
	}
	return int(si.Cluster.Leader[1] - '0')
}

// A process that knows several servers leaves the one that is cut off from the
// others, whether it leads the log or not; one that knows no other stays.
func TestLeavesServerThatIsCutOff(t *testing.T) {
	t.Parallel()
	f := newFabric(t)
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprintf("its leader %v", leads), func(t *testing.T) { f.leaves(t, leads) })
	}
}

// leavers are the clients of a server that will be cut off.
type leavers struct {
	ctrl, node, alone *Log
	v, lone           view // what node and alone follow
	stop              func()
}

// leavers attaches clients to the first of the servers in order, and lets them follow.
func (f *fabric) leavers(t *testing.T, order []int) *leavers {
	password := nodePassword("verifier-1")
	c := &leavers{
		ctrl:  openLog(t, f.attach("ctrl", f.pw.Ctrl, order...), Options{}),
		node:  openLog(t, f.attach("verifier-1", password, order...), Options{Edge: true}),
		alone: openLog(t, f.as("verifier-1", password, order[0]), Options{Edge: true}),
	}
	stops := []func() error{
		beside(t, func(ctx context.Context) error { return c.node.Follow(ctx, 0, &c.v) }),
		beside(t, func(ctx context.Context) error { return c.alone.Follow(ctx, 0, &c.lone) }),
	}
	c.stop = func() {
		for _, stop := range stops {
			_ = stop()
		}
		for _, l := range []*Log{c.ctrl, c.node, c.alone} {
			closed(l.nc)
		}
	}
	return c
}

// at reports whether all are attached to one server.
func (c *leavers) at(server int) bool {
	for _, l := range []*Log{c.ctrl, c.node, c.alone} {
		if l.nc.ConnectedServerName() != fmt.Sprint("n", server) {
			return false
		}
	}
	return true
}

func (f *fabric) leaves(t *testing.T, leads bool) {
	write := func(l *Log) events.Seq {
		t.Helper()
		seq, err := l.Append(t.Context(), first(noted(ulid.Make().String()), note(1)))
		if err != nil {
			t.Fatal(err)
		}
		return seq
	}
	f.ready()
	any := openLog(t, f.as("ctrl", f.pw.Ctrl, 0, 1, 2), Options{})
	var at int
	var c *leavers
	// While the servers settle, a client may leave one that is not cut off, and another
	// one may come to lead: then it begins anew.
	until(t, "the clients follow on one server", func() bool {
		if at = f.leader(any); !leads {
			at = (at + 1) % 3
		}
		c = f.leavers(t, []int{at, (at + 1) % 3, (at + 2) % 3})
		last := write(c.ctrl)
		until(t, "they follow", func() bool {
			_, _, a := c.v.at()
			_, _, b := c.lone.at()
			return a >= last && b >= last
		})
		if c.at(at) && (f.leader(any) == at) == leads {
			return true
		}
		c.stop()
		return false
	})
	defer c.stop()
	reconnects := c.alone.nc.Stats().Reconnects

	// They take 4 to 12 s, and more where the election of a leader takes long, as a client of
	// the other servers sees, or where the machine is busy. Who does not leave stays: the
	// server that is cut off answers its clients.
	const most = 40 * time.Second
	other := openLog(t, f.attach("ctrl", f.pw.Ctrl, (at+1)%3, (at+2)%3), Options{})
	machine := watchStalls(t)
	f.cut(at, true)
	began := time.Now()
	elected := make(chan time.Duration, 1)
	go func() { // joined below
		_, err := other.Append(t.Context(), first(noted(ulid.Make().String()), note(1)))
		if err != nil {
			t.Errorf("the other servers take no append: %v", err)
		}
		elected <- time.Since(began)
	}()
	last := write(c.ctrl)
	wrote := time.Since(began)
	until(t, "the verifier is fresh", func() bool { _, _, fresh := c.v.at(); return fresh >= last })
	followed, allowed := time.Since(began), max(most, <-elected+most/2)+machine.total()
	t.Logf("written after %s, followed after %s; allowed are %s", wrote, followed, allowed)
	if wrote > allowed {
		t.Errorf("the first write after the cut took %s", wrote)
	}
	if followed > allowed {
		t.Errorf("a verifier is fresh after %s", followed)
	}
	for _, l := range []*Log{c.ctrl, c.node} {
		if l.nc.ConnectedServerName() == fmt.Sprint("n", at) {
			t.Errorf("it is still attached to the server that is cut off")
		}
	}
	if n := c.alone.nc.Stats().Reconnects - reconnects; n != 0 {
		t.Errorf("who knows one server only has reconnected %d times", n)
	}
	f.cut(at, false)
	until(t, "all follow again", func() bool { _, _, fresh := c.lone.at(); return fresh >= last })
}

// Requests that fail one after the other make the connection move; an answer, or a
// pause, begins anew; and while nothing helps it moves less and less often.
func TestWhenToMove(t *testing.T) {
	var h health
	now := time.Now()
	if h.move(now.Add(-2*time.Second), 0) {
		t.Error("it moved after 2 s")
	}
	if !h.move(now.Add(-5*time.Second), 0) && h.limit > 5*time.Second { // since stands at the first failure
		t.Errorf("limit %s", h.limit)
	}
	h = health{}
	h.since, h.last, h.limit = now.Add(-5*time.Second), now.Add(-time.Second), 4*time.Second
	if !h.move(now.Add(-time.Second), 0) || h.moves != 1 {
		t.Errorf("it did not move after 5 s: %+v", &h)
	}
	if h.move(now.Add(-time.Minute), 0) {
		t.Error("a request from before the move counted")
	}
	if h.limit < 2*silentAfter || h.limit > 2*silentAfter+silentSpread {
		t.Errorf("the second limit is %s", h.limit)
	}
	h.since, h.last = now.Add(-time.Hour), now.Add(-time.Hour)
	if h.move(now, 0) {
		t.Error("failures an hour apart counted as one")
	}
	h.since, h.last = now.Add(-time.Hour), now
	if h.move(now, 1) {
		t.Error("failures of the connection before counted")
	}
	for range 100 {
		h.since, h.last = time.Time{}, time.Time{}
		h.moves++
		h.move(now, 1)
	}
	if h.limit > silentMost+silentSpread {
		t.Errorf("the limit grew to %s", h.limit)
	}
}
