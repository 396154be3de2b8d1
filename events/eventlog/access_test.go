package eventlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

const natsConf = "../../deploy/nats/nats.conf"

// plainServer runs deploy/nats/nats.conf as the image would, but for its
// directories and ports.
func plainServer(t *testing.T) (*natsserver.Server, server.Passwords) {
	t.Helper()
	o, pw := plainOptions(t)
	o.Cluster = natsserver.ClusterOpts{}
	return startPlain(t, o), pw
}

// plainOptions are those of deploy/nats/nats.conf, but for its directories and ports.
func plainOptions(t *testing.T) (o *natsserver.Options, pw server.Passwords) {
	t.Helper()
	plainEnv()
	o, err := natsserver.ProcessConfigFile(natsConf)
	if err != nil {
		t.Fatal(err)
	}
	if !o.SyncAlways || o.MaxPayload != streams.MaxPayload || o.StoreDir != "/data" || o.Cluster.Username != "route" {
		t.Errorf("nats.conf: sync always %v, max payload %d, store %s, route user %q", o.SyncAlways, o.MaxPayload, o.StoreDir, o.Cluster.Username)
	}
	o.StoreDir, o.Host, o.Port, o.HTTPPort, o.NoSigs, o.NoLog = t.TempDir(), "127.0.0.1", -1, 0, true, true
	return o, plainPasswords
}

var plainPasswords = server.Passwords{Admin: "pw-admin", Ctrl: "pw-ctrl", Sys: "pw-sys", Route: "pw-route"}

// plainEnv sets what nats.conf reads of the environment, for all tests of the process:
// those that run beside each other cannot set it back.
var plainEnv = sync.OnceFunc(func() {
	pw := plainPasswords
	for k, v := range map[string]string{"NATS_NAME": "nats-1", "NATS_MAX_STORE": "1GB", "NATS_ROUTES": "[]",
		"KEYTRAIL_ADMIN_PASSWORD": pw.Admin, "KEYTRAIL_CTRL_PASSWORD": pw.Ctrl, "KEYTRAIL_VERIFIER_1_PASSWORD": nodePassword("verifier-1"), "KEYTRAIL_VERIFIER_2_PASSWORD": nodePassword("verifier-2"),
		"KEYTRAIL_SYS_PASSWORD": pw.Sys, "KEYTRAIL_ROUTE_PASSWORD": pw.Route} {
		os.Setenv(k, v)
	}
})

// startPlain starts a server that stops with the test.
func startPlain(t *testing.T, o *natsserver.Options) *natsserver.Server {
	t.Helper()
	s, err := natsserver.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patient) {
		t.Fatal("the server does not come up")
	}
	return s
}

func TestRights(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		s := testServer(t, server.Config{})
		testRights(t, s.ConnectAdmin, s.Connect, s.ConnectSystem, "n1", edge(s), func() (*nats.Conn, error) { return s.ConnectNode("n2", nodePassword("n2")) })
	})
	t.Run("plain", func(t *testing.T) {
		s, pw := plainServer(t)
		url := s.ClientURL()
		as := func(user, password string) func() (*nats.Conn, error) {
			return func() (*nats.Conn, error) {
				return dial.Connect(url, dial.Login{User: user, Password: dial.Password(password)})
			}
		}
		testRights(t, as("admin", pw.Admin), as("ctrl", pw.Ctrl), as("sys", pw.Sys), "verifier-1",
			as("verifier-1", nodePassword("verifier-1")), as("verifier-2", nodePassword("verifier-2")))
		if nc, err := dial.Connect(url, dial.Login{User: "ctrl", Password: dial.Password(nodePassword("verifier-1"))}); err == nil {
			nc.Close()
			t.Error("a wrong password was let in")
		}
	})
}

type connectAs = func() (*nats.Conn, error)

func testRights(t *testing.T, admin, ctrl, sys connectAs, name events.NodeID, edge, other connectAs) {
	ctx := t.Context()
	adminConn := conn(t, admin)
	if _, err := server.Init(ctx, adminConn, server.InitConfig{MaxStore: testStore}); err != nil {
		t.Fatal(err)
	}
	syncs(t, conn(t, sys), 1) // as the running server says
	control := openLog(t, conn(t, ctrl), Options{})
	edgeConn := conn(t, edge)
	node := openLog(t, edgeConn, Options{Edge: true})
	fill(t, control, 20)

	// What a verifier may do.
	if seq, err := node.Publish(ctx, name, "n1/1/1/1", 0, []byte("uses")); err != nil || seq != 1 {
		t.Errorf("a verifier's uses: %d, %v", seq, err)
	}
	if m, ok, err := node.Tail(ctx, name); err != nil || !ok || m.Seq != 1 || string(m.Data) != "uses" {
		t.Errorf("a verifier's tail: %v %v %v", m, ok, err)
	}
	v := &view{}
	stop := beside(t, func(ctx context.Context) error { return node.Follow(ctx, 0, v) })
	until(t, "a verifier follows", func() bool { next, _, fresh := v.at(); return next == 20 && fresh == 20 })
	_ = stop()

	before := states(t, adminConn)
	for user, nc := range map[string]*nats.Conn{"edge": edgeConn, "ctrl": conn(t, ctrl)} {
		attempts := []string{ // subjects nobody at run time may publish to
			"$JS.API.STREAM.CREATE.EVIL", "$JS.API.STREAM.UPDATE.KT_LIFE", "$JS.API.STREAM.DELETE.KT_LIFE",
			"$JS.API.STREAM.PURGE.KT_LIFE", "$JS.API.STREAM.MSG.DELETE.KT_LIFE", "$JS.API.STREAM.SNAPSHOT.KT_LIFE",
			"$JS.API.STREAM.RESTORE.KT_LIFE", "$JS.API.STREAM.DELETE.KT_USE", "$JS.API.STREAM.PURGE.KT_USE", "$JS.API.STREAM.DELETE.KT_TIMER",
			"$JS.API.STREAM.DELETE.KT_READ", "$JS.API.STREAM.PURGE.KT_READ", "$JS.API.STREAM.UPDATE.KT_READ", "kt.rp.read.x",
			"$JS.API.STREAM.DELETE.KT_LEASE", "$JS.API.STREAM.PURGE.KT_LEASE", "$JS.API.STREAM.MSG.DELETE.KT_LEASE",
			"$JS.API.STREAM.DELETE.KT_CHECKPOINT", "$JS.API.STREAM.PURGE.KT_CHECKPOINT", "$JS.API.STREAM.MSG.DELETE.KT_CHECKPOINT", "$JS.API.STREAM.UPDATE.KT_CHECKPOINT",
			"$JS.API.STREAM.LEADER.STEPDOWN.KT_LIFE", "$JS.API.STREAM.PEER.REMOVE.KT_LIFE",
			"$JS.API.CONSUMER.CREATE.KT_LIFE.x", "$JS.API.CONSUMER.DURABLE.CREATE.KT_LIFE.x", "$JS.API.CONSUMER.DELETE.KT_TIMER.expirer",
			"kt.rp.life.shop.acme.key.x", "kt.rp.use.n1", "$SYS.REQ.SERVER.PING.JSZ",
		}
		if user == "edge" {
			attempts = append(attempts, "kt.life.shop.acme.key.x", "kt.read.x", "kt.hb.life", "kt.timer.due.a.b.c",
				"$JS.API.STREAM.INFO.KT_READ", "kt.api.STREAM.INFO.KT_READ", "kt.api.DIRECT.GET.KT_READ", "kt.api.STREAM.MSG.GET.KT_READ", "$JS.API.DIRECT.GET.KT_READ",
				"$JS.API.STREAM.INFO.KT_USE", "kt.api.STREAM.DELETE.KT_LIFE", "kt.api.STREAM.INFO.KT_USE", "kt.api.DIRECT.GET.KT_USE", "kt.api.STREAM.MSG.GET.KT_USE", "kt.api.STREAM.MSG.GET.KT_LEASE",
				"kt.checkpoint", "kt.api.STREAM.MSG.GET.KT_CHECKPOINT", "$JS.API.STREAM.MSG.GET.KT_CHECKPOINT",
				"kt.lease.floor", "kt.lease.node.n1", "kt.api.DIRECT.GET.KT_LEASE", "$JS.API.DIRECT.GET.KT_LEASE", "kt.api.STREAM.INFO.KT_LEASE",
				"$JS.API.DIRECT.GET.KT_USE", "$JS.API.DIRECT.GET.KT_USE.kt.use.n1", "$JS.API.DIRECT.GET.KT_USE.x.kt.use.n1",
				"$JS.API.CONSUMER.MSG.NEXT.KT_TIMER.expirer", "$JS.ACK.KT_TIMER.expirer.1.1.1.1.0")
		}
		if user == "edge" { // it may say what it likes, and nobody is there
			for _, subject := range append(attempts, "kt.use.x", "kt.lease.node.x.y", "kt.api.DIRECT.GET.KT_USE.kt.use.x") {
				if !strings.HasPrefix(subject, "kt.") {
					refused(t, user, nc, subject)
				} else if m, err := nc.Request(subject, []byte("{}"), patient); !errors.Is(err, nats.ErrNoResponders) {
					t.Errorf("a verifier reaches %s: %v, %v", subject, m, err)
				}
			}
			attempts = nil
		}
		for _, subject := range attempts {
			refused(t, user, nc, subject)
		}
		for _, subject := range []string{">", "kt.life.>", "kt.read.>", "kt.use.>", "$JS.>", "$SYS.>"} {
			if user == "edge" && strings.HasPrefix(subject, "kt.") {
				continue // its own account's: what others say there is not heard
			}
			if err := subscribe(nc, subject); err == nil {
				t.Errorf("%s may subscribe to %s", user, subject)
			}
		}
	}
	// A read whose answer is aimed at a subject of a stream, or of the tail.
	for _, aim := range []string{"kt.life.shop.acme.key.x", "kt.read.x", "kt.use.n2", "kt.timer.x", "kt.rp.life.shop.acme.key.x", "kt.hb.life", "kt.lease.floor", "kt.lease.node.n1.x", "kt.checkpoint"} {
		for subject, body := range map[string]string{
			"kt.api.DIRECT.GET.KT_LIFE":                       `{"seq":1,"batch":10}`,
			"kt.api.STREAM.MSG.GET.KT_LIFE":                   `{"seq":1}`,
			"kt.api.STREAM.INFO.KT_LIFE":                      `{}`,
			"kt.use." + string(name):                          `uses whose acknowledgement is aimed`,
			"kt.api.DIRECT.GET.KT_USE.kt.use." + string(name): ``,
		} {
			if err := edgeConn.PublishRequest(subject, aim, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := edgeConn.Flush(); err != nil {
		t.Fatal(err)
	}
	// The nine aimed appends of uses are uses; nothing else may have changed.
	var after string
	until(t, "the aimed appends are stored", func() bool {
		n, err := control.LastUse(ctx)
		return err == nil && n == 10
	})
	if after = states(t, adminConn); strings.Replace(after, "KT_USE 1..10", "KT_USE 1..1", 1) != before {
		t.Errorf("the streams went from %s to %s", before, after)
	}
	// And another verifier takes none of what is aimed at it: a use that looks
	// like the next event, or like a heartbeat from the future.
	w := &view{}
	neighbour := openLog(t, conn(t, other), Options{Edge: true})
	stop = beside(t, func(ctx context.Context) error { return neighbour.Follow(ctx, 0, w) })
	// Nor does one process of a node take it from another of the same node.
	same := &view{}
	stopSame := beside(t, func(ctx context.Context) error { return node.Follow(ctx, 0, same) })
	until(t, "its own follows", func() bool { next, _, fresh := same.at(); return next == 20 && fresh == 20 })
	until(t, "another verifier follows", func() bool { next, _, fresh := w.at(); return next == 20 && fresh == 20 })
	evil, err := control.messages([]events.Write{first(noted("evil"), note(1))})
	if err != nil {
		t.Fatal(err)
	}
	forged := nats.NewMsg("kt.use." + string(name))
	forged.Data = evil[0].Data
	forged.Header[hdrContentType] = evil[0].Header[hdrContentType]
	forged.Header["Nats-Stream"] = []string{lifeStream}
	forged.Header["Nats-Subject"] = []string{evil[0].Subject}
	forged.Header["Nats-Sequence"] = []string{"21"}
	forged.Header["Nats-Time-Stamp"] = []string{time.Now().Format(time.RFC3339Nano)}
	heartbeatMsg := nats.NewMsg("kt.use." + string(name))
	heartbeatMsg.Data = fmt.Appendf(nil, `{"log":%q,"last":21,"ts":%d}`, control.ID(), time.Now().Add(time.Hour).UnixMilli())
	for _, m := range []*nats.Msg{forged, heartbeatMsg} {
		if _, err := edgeConn.RequestMsg(m, patient); err != nil {
			t.Fatal(err)
		}
		for _, aim := range []string{"kt.rp.life.shop.acme.key.x", "kt.hb.life"} {
			for subject, body := range map[string]string{
				"kt.api.DIRECT.GET.KT_LIFE":                       `{"seq":1,"batch":10}`,
				"kt.api.DIRECT.GET.KT_USE.kt.use." + string(name): ``,
			} {
				if err := edgeConn.PublishRequest(subject, aim, []byte(body)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := edgeConn.Flush(); err != nil {
		t.Fatal(err)
	}
	fill(t, control, 5)
	until(t, "it goes on", func() bool { next, wrong, fresh := w.at(); return next == 25 && fresh == 25 && wrong == 0 })
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("follow ended with %v", err)
	}
	until(t, "its own goes on", func() bool { next, wrong, fresh := same.at(); return next == 25 && fresh == 25 && wrong == 0 })
	if err := stopSame(); !errors.Is(err, context.Canceled) {
		t.Errorf("follow ended with %v", err)
	}
	if w.future || same.future {
		t.Error("a forged heartbeat was believed")
	}
}

// refused wants a publish to be refused by the server.
func refused(t *testing.T, user string, nc *nats.Conn, subject string) {
	t.Helper()
	got := make(chan error, 8)
	old := nc.ErrorHandler()
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case got <- err:
		default:
		}
	})
	defer nc.SetErrorHandler(old)
	if err := nc.PublishRequest(subject, nc.NewInbox(), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-got:
		if !strings.Contains(err.Error(), "ermissions") {
			t.Errorf("%s to %s: %v", user, subject, err)
		}
	case <-time.After(patient):
		t.Errorf("%s may publish to %s", user, subject)
	}
}

func subscribe(nc *nats.Conn, subject string) error {
	got := make(chan error, 1)
	old := nc.ErrorHandler()
	nc.SetErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case got <- err:
		default:
		}
	})
	defer nc.SetErrorHandler(old)
	sub, err := nc.SubscribeSync(subject)
	if err != nil {
		return err
	}
	defer sub.Unsubscribe()
	select {
	case err := <-got:
		return err
	case <-time.After(patient):
		return nil
	}
}

func states(t *testing.T, admin *nats.Conn) string {
	t.Helper()
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	list := js.ListStreams(ctx)
	for si := range list.Info() {
		fmt.Fprintf(&b, "%s %d..%d, %d consumers; ", si.Config.Name, si.State.FirstSeq, si.State.LastSeq, si.State.Consumers)
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Open refuses what is not the log it is meant to be, each with a sentence.
func TestOpenRefuses(t *testing.T) {
	type setup struct {
		s     *server.Server
		admin jetstream.JetStream
		id    events.LogID
	}
	update := func(change func(*jetstream.StreamConfig), name string) func(*testing.T, setup) Options {
		return func(t *testing.T, s setup) Options {
			st, err := s.admin.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			c := st.CachedInfo().Config
			change(&c)
			if _, err := s.admin.UpdateStream(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			return Options{}
		}
	}
	remove := func(name string) func(*testing.T, setup) Options {
		return func(t *testing.T, s setup) Options {
			if err := s.admin.DeleteStream(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			return Options{}
		}
	}
	for name, c := range map[string]struct {
		spoil func(*testing.T, setup) Options
		want  []string // in the sentence
	}{
		"missing":             {remove(lifeStream), []string{"no Keytrail log", "restore"}},
		"uses missing":        {remove(useStream), []string{"KT_USE is missing", "restore"}},
		"timers missing":      {remove(timerStream), []string{"KT_TIMER is missing", "run the initialisation again"}},
		"checkpoints missing": {remove(checkpointStream), []string{"KT_CHECKPOINT is missing", "restore"}},
		"consumer missing": {func(t *testing.T, s setup) Options {
			if err := s.admin.DeleteConsumer(t.Context(), timerStream, streams.ExpirerConsumer); err != nil {
				t.Fatal(err)
			}
			return Options{}
		}, []string{"lost its consumer expirer", "run the initialisation again"}},
		"foreign":          {update(func(c *jetstream.StreamConfig) { c.Metadata = nil }, lifeStream), []string{"no identity", "own server"}},
		"mixed":            {update(func(c *jetstream.StreamConfig) { c.Metadata[streams.MetaLog] = events.LogID(ulid.Make()).String() }, useStream), []string{"two installations"}},
		"forgets by age":   {update(func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour }, lifeStream), []string{"max_age set is true, want false", "set it back"}},
		"forgets by count": {update(func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 9 }, lifeStream), []string{"max_msgs_per_subject is 9"}},
		"forgets the old":  {update(func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }, lifeStream), []string{"discard is DiscardOld"}},
		"no republish":     {update(func(c *jetstream.StreamConfig) { c.RePublish = nil }, lifeStream), []string{"republish is none"}},
		"ends too early":   {func(t *testing.T, s setup) Options { return Options{AtLeast: events.Position{Log: s.id, Seq: 21}} }, []string{"ends at event 20", "event 21 was acknowledged", "restore"}},
		"another log": {func(t *testing.T, s setup) Options {
			return Options{AtLeast: events.Position{Log: events.LogID(ulid.Make()), Seq: 1}}
		}, []string{"was used here before"}},
		"replicas": {func(t *testing.T, s setup) Options { return Options{Replicas: 3} }, []string{"num_replicas is 1, want 3"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := testServer(t, server.Config{})
			id := initLog(t, s)
			nc := conn(t, s.Connect)
			l := openLog(t, nc, Options{AtLeast: events.Position{Log: id}})
			fill(t, l, 20)
			openLog(t, nc, Options{AtLeast: events.Position{Log: id, Seq: 20}})
			admin, err := jetstream.New(conn(t, s.ConnectAdmin))
			if err != nil {
				t.Fatal(err)
			}
			o := c.spoil(t, setup{s, admin, id})
			_, err = Open(t.Context(), nc, o)
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("open: %v; want it to say %q", err, want)
				}
			}
			t.Log(err)
		})
	}
}

// Init is idempotent, rebuilds what can be rebuilt, and refuses to put a new
// log where parts of an older one are.
func TestInit(t *testing.T) {
	s := testServer(t, server.Config{})
	id := initLog(t, s)
	if again := initLog(t, s); again != id {
		t.Errorf("a second Init made log %s of log %s", again, id)
	}
	l := openLog(t, conn(t, s.Connect), Options{})
	fill(t, l, 3)
	admin := conn(t, s.ConnectAdmin)
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	// With the timers their mark is lost, and none that was known before is taken again.
	var old []events.TimerMark
	for range 2 {
		mark, err := l.Mark(t.Context())
		if err != nil || mark != (events.TimerMark{}) {
			t.Errorf("the mark of new timers is %+v, %v", mark, err)
		}
		for through := range events.Seq(3) {
			if mark, err = l.Set(t.Context(), mark, through); err != nil {
				t.Fatal(err)
			}
			for _, m := range old {
				if _, err := l.Set(t.Context(), m, through); !errors.Is(err, events.ErrConflict) {
					t.Errorf("a mark of the timers that were lost is taken: %v", err)
				}
			}
			old = append(old, mark)
		}
		if err := js.DeleteStream(t.Context(), timerStream); err != nil {
			t.Fatal(err)
		}
		if again := initLog(t, s); again != id {
			t.Errorf("Init after the loss of KT_TIMER made log %s of log %s", again, id)
		}
	}
	for _, lost := range []string{checkpointStream, readStream, useStream, lifeStream} {
		if err := js.DeleteStream(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: testStore}); err == nil || !strings.Contains(err.Error(), "restore") {
			t.Errorf("Init after the loss of %s: %v", lost, err)
		}
	}
}

// An Init that ended half way is finished by the next one.
func TestInitGoesOn(t *testing.T) {
	s := testServer(t, server.Config{})
	js, err := jetstream.New(conn(t, s.ConnectAdmin))
	if err != nil {
		t.Fatal(err)
	}
	id := initLog(t, s)
	for _, step := range []func() error{
		func() error { return js.DeleteConsumer(t.Context(), timerStream, streams.ExpirerConsumer) },
		func() error { return js.DeleteStream(t.Context(), timerStream) },
		func() error { return js.DeleteStream(t.Context(), useStream) },
		func() error { return js.DeleteStream(t.Context(), readStream) },
		func() error { return js.DeleteStream(t.Context(), checkpointStream) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		if again := initLog(t, s); again != id {
			t.Errorf("log %s became %s", id, again)
		}
		openLog(t, conn(t, s.Connect), Options{})
		if _, err := js.Consumer(t.Context(), timerStream, streams.ExpirerConsumer); err != nil {
			t.Errorf("consumer %s: %v", streams.ExpirerConsumer, err)
		}
	}
}
