package eventlog

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// service is what goes on while a verifier is hostile: control writes and raises the
// floor, the honest node n2 follows, renews its lease and appends uses, and an
// auditor reads the uses.
type service struct {
	s       *server.Server
	control *Log
	honest  *Log
	view    *view

	written, renewed, used atomic.Int64
	slowest                atomic.Int64 // nanoseconds of the slowest of these
	mu                     sync.Mutex
	read                   []events.UseMessage // of n2, by the auditor; guarded by mu
}

func (w *service) as(t testing.TB, user, password string) *nats.Conn {
	t.Helper()
	return conn(t, func() (*nats.Conn, error) {
		return dial.Connect(w.s.URL(), dial.Login{User: user, Password: dial.Password(password)})
	})
}

// startService starts it on a server that lets n1, n2 and others in. stop ends it and
// waits until the auditor has read what n2 has appended.
func startService(t *testing.T, others ...events.NodeID) (w *service, stop func()) {
	t.Helper()
	c := childConfig(t.TempDir(), "127.0.0.1:0")
	c.Nodes = nodesConf(append(others, "n1", "n2")...)
	s := testServer(t, c)
	initLog(t, s)
	w = &service{s: s, view: &view{}}
	w.control = openLog(t, w.as(t, "ctrl", "c"), Options{})
	w.honest = openLog(t, w.as(t, "n2", nodePassword("n2")), Options{Edge: true})
	if err := w.control.Raise(t.Context(), events.Head{Log: w.control.ID()}); err != nil {
		t.Fatal(err)
	}
	auditor := openLog(t, w.as(t, "ctrl", "c"), Options{})

	timed := func(n *atomic.Int64, f func() error) error {
		began := time.Now()
		if err := f(); err != nil {
			return err
		}
		n.Add(1)
		for took := int64(time.Since(began)); ; {
			if old := w.slowest.Load(); took <= old || w.slowest.CompareAndSwap(old, took) {
				return nil
			}
		}
	}
	every := func(ctx context.Context, d time.Duration, f func(i int) error) error {
		for i := 1; ; i++ {
			if err := f(i); err != nil {
				return err
			}
			if err := waitFor(ctx, d); err != nil {
				return err
			}
		}
	}
	var last events.Seq
	lease := logtest.Lease(w.control.ID(), "n2")
	var stops []func() error
	for _, part := range []func(context.Context) error{
		w.control.Heartbeat,
		func(ctx context.Context) error { return w.honest.Follow(ctx, 0, w.view) },
		func(ctx context.Context) error {
			return every(ctx, 5*time.Millisecond, func(i int) error {
				return timed(&w.written, func() error {
					seq, err := w.control.Append(ctx, first(noted(fmt.Sprint("w", i)), note(i)))
					if err != nil {
						return err
					}
					return w.control.Raise(ctx, events.Head{Log: w.control.ID(), Size: seq})
				})
			})
		},
		func(ctx context.Context) error {
			return every(ctx, 5*time.Millisecond, func(int) error {
				return timed(&w.renewed, func() error { _, err := w.honest.Renew(ctx, lease); return err })
			})
		},
		func(ctx context.Context) error {
			return every(ctx, 5*time.Millisecond, func(i int) error {
				return timed(&w.used, func() (err error) {
					last, err = w.honest.Publish(ctx, "n2", fmt.Sprint("n2/", i), last, fmt.Append(nil, "use ", i))
					return err
				})
			})
		},
		func(ctx context.Context) error {
			for after := events.Seq(0); ; {
				got, err := auditor.ReadUses(ctx, after, 256)
				if err != nil {
					return err
				}
				w.mu.Lock()
				for _, m := range got {
					if m.Node == "n2" {
						w.read = append(w.read, m)
					}
				}
				w.mu.Unlock()
				after = got[len(got)-1].Seq
				if err := auditor.Copied(after); err != nil {
					return err
				}
			}
		},
	} {
		stops = append(stops, beside(t, func(ctx context.Context) error {
			err := part(ctx)
			if ctx.Err() == nil {
				t.Errorf("a part of the service ended: %v", err)
			}
			return err
		}))
	}
	w.goesOn(t, "before anything hostile")
	return w, func() {
		for i, stop := range stops {
			if i == len(stops)-1 { // the auditor, after n2
				until(t, "the auditor has read the uses of n2", func() bool {
					w.mu.Lock()
					defer w.mu.Unlock()
					return int64(len(w.read)) >= w.used.Load()
				})
			}
			_ = stop() // what ended before is told
		}
	}
}

// goesOn waits until every part of the service has done more.
func (w *service) goesOn(t *testing.T, when string) {
	t.Helper()
	written, renewed, used := w.written.Load(), w.renewed.Load(), w.used.Load()
	until(t, "the service goes on "+when, func() bool {
		next, wrong, _ := w.view.at()
		w.mu.Lock()
		defer w.mu.Unlock()
		return wrong == 0 && w.written.Load() >= written+5 && w.renewed.Load() >= renewed+5 && w.used.Load() >= used+5 &&
			int64(next) >= written+5 && int64(len(w.read)) >= used+5
	})
}

// Whoever holds the credential of node n1 harms the record of n1 and nothing else.
func TestAHostileNode(t *testing.T) {
	t.Parallel()
	machine := watchStalls(t)
	w, stop := startService(t)
	evil := w.as(t, "n1", nodePassword("n1"))
	var overheard atomic.Int64 // uses of n2
	for _, subject := range []string{"kt.>", "_INBOX.>"} {
		if _, err := evil.Subscribe(subject, func(m *nats.Msg) {
			if bytes.HasPrefix(m.Data, []byte("use ")) {
				overheard.Add(1)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	nobody := func(t *testing.T, subject, body string) {
		t.Helper()
		// Its own subscription to kt.> is interest: what it asks reaches itself alone.
		if got, err := evil.Request(subject, []byte(body), 200*time.Millisecond); err == nil {
			t.Errorf("%s answers: %s", subject, got.Data)
		}
	}
	t.Run("the subjects of others", func(t *testing.T) {
		for _, subject := range []string{"kt.use.n2", "kt.lease.node.n2.x", "kt.lease.floor", "kt.life.shop.acme.key.x", "kt.read.x", "kt.checkpoint", "kt.timer.set.a.b", "kt.hb.life", "kt.rp.life.x"} {
			nobody(t, subject, "evil")
		}
		w.goesOn(t, "while it writes as others")
	})
	t.Run("reading the uses of others", func(t *testing.T) {
		for subject, body := range map[string]string{
			"kt.api.STREAM.MSG.GET.KT_USE": `{"last_by_subj":"kt.use.n2"}`, "kt.api.DIRECT.GET.KT_USE": `{"last_by_subj":"kt.use.n2"}`,
			"kt.api.DIRECT.GET.KT_USE.kt.use.n2": "", "kt.api.STREAM.INFO.KT_USE": "", "kt.api.STREAM.MSG.GET.KT_LEASE": `{"last_by_subj":"kt.lease.floor"}`,
			"kt.api.DIRECT.GET.KT_LEASE.kt.lease.node.n2.x": "",
		} {
			nobody(t, subject, body)
		}
		// A body does not make its own tail another's.
		if m, err := evil.Request("kt.api.DIRECT.GET.KT_USE.kt.use.n1", []byte(`{"last_by_subj":"kt.use.n2"}`), time.Second); err == nil && said(m, "Nats-Subject") != "" && said(m, "Nats-Subject") != "kt.use.n1" {
			t.Errorf("it reads %s", said(m, "Nats-Subject"))
		}
	})
	t.Run("managing the streams", func(t *testing.T) {
		for _, verb := range []string{"STREAM.PURGE.KT_USE", "STREAM.DELETE.KT_USE", "STREAM.PURGE.KT_LEASE", "STREAM.UPDATE.KT_LIFE", "CONSUMER.CREATE.KT_USE.x", "CONSUMER.DURABLE.CREATE.KT_LIFE.x"} {
			refused(t, "n1", evil, "$JS.API."+verb)
			nobody(t, "kt.api."+verb, "{}")
		}
		for _, subject := range []string{">", "$JS.>", "$SYS.>"} {
			if err := subscribe(evil, subject); err == nil {
				t.Errorf("it may subscribe to %s", subject)
			}
		}
	})
	t.Run("answers aimed at others", func(t *testing.T) {
		// Even an inbox that it knows is in another account.
		inbox := make(chan *nats.Msg, 64)
		for _, l := range []*Log{w.honest, w.control} {
			if _, err := l.nc.ChanSubscribe("_INBOX.known", inbox); err != nil {
				t.Fatal(err)
			}
			if err := l.nc.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		event, err := w.control.messages([]events.Write{first(noted("evil"), note(1))})
		if err != nil {
			t.Fatal(err)
		}
		forged := nats.NewMsg("kt.use.n1")
		forged.Data = event[0].Data
		forged.Header = nats.Header{hdrContentType: event[0].Header[hdrContentType], "Nats-Stream": {lifeStream},
			"Nats-Subject": {event[0].Subject}, "Nats-Sequence": {"9999"}, "Nats-Time-Stamp": {time.Now().Format(time.RFC3339Nano)}}
		heartbeat := nats.NewMsg("kt.use.n1")
		heartbeat.Data = fmt.Appendf(nil, `{"log":%q,"last":99999,"ts":%d}`, w.control.ID(), time.Now().Add(time.Hour).UnixMilli())
		head, _ := events.EncodeHead(&events.Head{Log: w.control.ID(), Size: 1 << 40})
		floor := nats.NewMsg("kt.use.n1")
		floor.Data = head
		for _, m := range []*nats.Msg{forged, heartbeat, floor} {
			for _, aim := range []string{"_INBOX.known", "kt.rp.life.shop.acme.key.x", "kt.hb.life", "kt.use.n2", "kt.lease.floor", "kt.life.shop.acme.key.x"} {
				m.Reply = aim
				if err := evil.PublishMsg(m); err != nil {
					t.Fatal(err)
				}
				// Nobody sees the answer, so the server counts the write as under way for 2 s;
				// four at once, and the next one would wait.
				if err := waitFor(t.Context(), 600*time.Millisecond); err != nil {
					t.Fatal(err)
				}
				for subject, body := range map[string]string{"kt.api.DIRECT.GET.KT_USE.kt.use.n1": "", "kt.api.DIRECT.GET.KT_LIFE": `{"seq":1,"batch":10}`,
					"kt.api.STREAM.MSG.GET.KT_LIFE": `{"seq":1}`, "kt.api.DIRECT.GET.KT_LEASE.kt.lease.floor": ""} {
					if err := evil.PublishRequest(subject, aim, []byte(body)); err != nil {
						t.Fatal(err)
					}
				}
				if err := evil.Publish(aim, m.Data); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := evil.Flush(); err != nil {
			t.Fatal(err)
		}
		w.goesOn(t, "while answers are aimed at others")
		if n := len(inbox); n != 0 {
			t.Errorf("%d messages came into inboxes of others", n)
		}
	})
	t.Run("answers aimed at its own records", func(t *testing.T) {
		// They would be stored without being counted, many for one request.
		tail := func() (events.Seq, events.Seq) {
			t.Helper()
			var seqs []events.Seq
			for _, stream := range []string{useStream, leaseStream} {
				s, err := w.control.leaderGet(t.Context(), stream, getRequest{LastFor: map[string]string{useStream: "kt.use.n1", leaseStream: "kt.lease.node.n1.*"}[stream]})
				if err != nil {
					t.Fatal(err)
				}
				seq := events.Seq(0)
				if s != nil {
					seq = s.seq
				}
				seqs = append(seqs, seq)
			}
			return seqs[0], seqs[1]
		}
		uses, leases := tail()
		for _, aim := range []string{"kt.use.n1", "kt.lease.node.n1.x"} {
			for subject, body := range map[string]string{"kt.api.DIRECT.GET.KT_LIFE": `{"seq":1,"batch":256}`, "kt.api.STREAM.MSG.GET.KT_LIFE": `{"seq":1}`, "kt.api.STREAM.INFO.KT_LIFE": ""} {
				if err := evil.PublishRequest(subject, aim, []byte(body)); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 2 { // what it asked came before this
			if _, err := evil.Request("kt.api.STREAM.MSG.GET.KT_LIFE", []byte(`{"seq":1}`), patient); err != nil {
				t.Fatal(err)
			}
		}
		if u, l := tail(); u != uses || l != leases {
			t.Errorf("its record of uses ends with message %d, was %d; its leases with %d, was %d", u, uses, l, leases)
		}
	})
	t.Run("2,000 subscriptions", func(t *testing.T) {
		greedy := w.as(t, "n1", nodePassword("n1"))
		greedy.SetErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
		var held atomic.Int64
		for i := range 2000 {
			if _, err := greedy.Subscribe(fmt.Sprint("kt.x.", i), func(*nats.Msg) { held.Add(1) }); err != nil {
				break
			}
		}
		for i := range 1000 {
			if greedy.Publish(fmt.Sprint("kt.x.", i), nil) != nil {
				break
			}
		}
		_ = greedy.FlushTimeout(time.Minute)
		_ = greedy.FlushTimeout(time.Minute)
		until(t, "a subscription gets what is published", func() bool { return held.Load() > 0 })
		if n := held.Load(); n > 256 {
			t.Errorf("the server holds %d subscriptions of one connection", n)
		}
		w.goesOn(t, "beside 2,000 subscriptions")
	})
	t.Run("large headers", func(t *testing.T) {
		large := w.as(t, "n1", nodePassword("n1"))
		m := nats.NewMsg("kt.use.n1")
		m.Header.Set("X", strings.Repeat("x", 1<<20))
		if r, err := large.RequestMsg(m, 2*time.Second); err == nil && !bytes.Contains(r.Data, []byte(`"error"`)) {
			t.Errorf("headers of 1 MiB are stored: %s", r.Data)
		}
		w.goesOn(t, "beside large headers")
	})
	t.Run("many connections", func(t *testing.T) {
		let := 0
		for range 50 {
			nc, err := nats.Connect(w.s.URL(), nats.UserInfo("n1", nodePassword("n1")), nats.NoReconnect())
			if err == nil {
				let++
				defer closed(nc)
			}
		}
		if let > 8 {
			t.Errorf("n1 holds %d connections more", let)
		}
		w.as(t, "n2", nodePassword("n2")) // others still connect
		w.as(t, "ctrl", "c")
		w.goesOn(t, "beside many connections")
	})
	t.Run("a flood of leases", func(t *testing.T) {
		flood := w.as(t, "n1", nodePassword("n1"))
		for i := range 300 {
			m := nats.NewMsg(fmt.Sprintf("kt.lease.node.n1.x%d", i)) // without an end
			m.Data = bytes.Repeat([]byte{'x'}, 3<<10)
			if _, err := flood.RequestMsg(m, patient); err != nil {
				t.Fatal(err)
			}
		}
		if r, err := flood.Request("kt.lease.node.n1.last", []byte("x"), patient); err != nil || bytes.Contains(r.Data, []byte(`"error"`)) {
			t.Errorf("the last of the flood: %v, %v", r, err)
		}
		n, err := w.control.Nodes(t.Context(), 0)
		if err != nil || len(n.Unreadable) > 64 || len(n.Leases) != 1 {
			t.Errorf("%d leases and %d records that cannot be read, %v: want one lease, and no more than 64 records of n1", len(n.Leases), len(n.Unreadable), err)
		}
		w.goesOn(t, "in a flood of leases")
		// Its own honest run finds no place, and another's does.
		if _, err := openLog(t, flood, Options{Edge: true}).Renew(t.Context(), logtest.Lease(w.control.ID(), "n1")); err == nil || !strings.Contains(err.Error(), "wait an hour") {
			t.Errorf("n1 renews a lease: %v", err)
		}
		if _, err := w.honest.Renew(t.Context(), logtest.Lease(w.control.ID(), "n2")); err != nil {
			t.Errorf("another run of n2: %v", err)
		}
	})
	w.goesOn(t, "at the end")
	stop()
	if took := time.Duration(w.slowest.Load()) - machine.total(); took > 20*time.Second {
		t.Errorf("an operation of the others took %s", took)
	}
	if n := overheard.Load(); n != 0 {
		t.Errorf("it overheard %d uses of n2", n)
	}
	// Every use of n2 was read, once and in order.
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, m := range w.read {
		if want := fmt.Sprint("use ", i+1); string(m.Data) != want {
			t.Fatalf("use %d of n2 is %q, want %q", i+1, m.Data, want)
		}
	}
	if n := int64(len(w.read)); n < w.used.Load() || n > w.used.Load()+1 { // the last one may have been stored at the end, without an answer
		t.Errorf("the auditor read %d of %d uses of n2", len(w.read), w.used.Load())
	}
}

// A node that is taken out of nodes.conf is cut off at once, one that is put in may
// connect, a new password takes the place of the old one, and all others go on.
func TestNodesChange(t *testing.T) {
	w, stop := startService(t)
	stolen := w.as(t, "n1", nodePassword("n1"))
	gone := make(chan struct{}, 8)
	stolen.SetDisconnectErrHandler(func(*nats.Conn, error) { gone <- struct{}{} })
	if err := w.s.SetNodes("NODE_x {"); err == nil {
		t.Error("a text that cannot be read is accepted")
	}
	w.goesOn(t, "after a text that cannot be read")
	if !stolen.IsConnected() {
		t.Error("it closed a connection")
	}
	if err := w.s.SetNodes(nodesConf("n2", "n3")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-gone:
	case <-time.After(patient):
		t.Fatal("the connection of a node that is revoked stays")
	}
	try := func(node events.NodeID, password string) error {
		nc, err := nats.Connect(w.s.URL(), nats.UserInfo(string(node), password), nats.NoReconnect(), nats.Timeout(patient))
		if err == nil {
			closed(nc)
		}
		return err
	}
	if try("n1", nodePassword("n1")) == nil || stolen.IsConnected() {
		t.Error("a node that is revoked connects again")
	}
	if err := try("n3", nodePassword("n3")); err != nil {
		t.Errorf("a node that is new: %v", err)
	}
	w.goesOn(t, "after a revocation")
	again, err := server.NodeConf("n1", "another")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.SetNodes(nodesConf("n2") + again); err != nil {
		t.Fatal(err)
	}
	if try("n1", nodePassword("n1")) == nil {
		t.Error("the old password is accepted")
	}
	if err := try("n1", "another"); err != nil {
		t.Errorf("the new password: %v", err)
	}
	w.goesOn(t, "after a rotation")
	stop()
}
