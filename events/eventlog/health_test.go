package eventlog

import (
	"context"
	"fmt"
	"log/slog"
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
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
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

// ready waits until each server knows who leads the log.
func (f *fabric) ready() {
	f.t.Helper()
	for i := range f.servers {
		l := newClients(newTransport(f.as("ctrl", f.pw.Ctrl, i), controlAPI, 30*time.Second, slog.New(slog.DiscardHandler)))
		for _, stream := range []string{lifeStream, useStream} {
			ctx, cancel := l.bound(f.t.Context())
			defer cancel()
			if _, err := l.confirmed(ctx, stream); err != nil {
				f.t.Fatal(err)
			}
		}
	}
}

// leader returns which server leads the lifecycle stream, as l sees it.
func (f *fabric) leader(l *Log) int {
	f.t.Helper()
	si, err := l.confirmed(f.t.Context(), lifeStream)
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
		t.Run(fmt.Sprintf("its leader %v", leads), func(t *testing.T) {
			f.ready()
			any := openLog(t, f.as("ctrl", f.pw.Ctrl, 0, 1, 2), Options{Timeout: 30 * time.Second})
			at := f.leader(any)
			if !leads {
				at = (at + 1) % 3
			}
			order := []int{at, (at + 1) % 3, (at + 2) % 3}
			ctrl := openLog(t, f.as("ctrl", f.pw.Ctrl, order...), Options{Timeout: 30 * time.Second})
			node := openLog(t, f.as("verifier-1", nodePassword("verifier-1"), order...), Options{Edge: true})
			alone := openLog(t, f.as("verifier-1", nodePassword("verifier-1"), at), Options{Edge: true})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			v, lone := &view{}, &view{}
			stops := []func() error{
				beside(t, func(ctx context.Context) error { return node.Follow(ctx, 0, v) }),
				beside(t, func(ctx context.Context) error { return alone.Follow(ctx, 0, lone) }),
			}
			write := func() events.Seq {
				seq, err := ctrl.Append(ctx, first(noted(ulid.Make().String()), note(1)))
				if err != nil {
					t.Fatal(err)
				}
				return seq
			}
			last := write()
			until(t, "they follow", func() bool {
				_, _, a := v.at()
				_, _, b := lone.at()
				return a == last && b == last
			})

			for _, l := range []*Log{ctrl, node, alone} {
				if s := l.nc.ConnectedServerName(); s != fmt.Sprint("n", at) {
					t.Fatalf("attached to %s, not to n%d", s, at)
				}
			}
			f.cut(at, true)
			began := time.Now()
			last = write()
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("the first write after the cut took %s", took)
			} else {
				t.Logf("written after %s", took)
			}
			until(t, "the verifier is fresh", func() bool { _, _, fresh := v.at(); return fresh >= last })
			t.Logf("followed after %s", time.Since(began))
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("a verifier is fresh after %s", took)
			}
			for _, l := range []*Log{ctrl, node} {
				if l.nc.ConnectedServerName() == fmt.Sprint("n", at) {
					t.Errorf("it is still attached to the server that is cut off")
				}
			}
			if n := alone.nc.Stats().Reconnects; n != 0 {
				t.Errorf("who knows one server only has reconnected %d times", n)
			}
			f.cut(at, false)
			until(t, "all follow again", func() bool { _, _, fresh := lone.at(); return fresh >= last })
			for _, stop := range stops {
				_ = stop()
			}
		})
	}
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
