package eventlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
)

const natsConf = "../../deploy/nats/nats.conf"

// The plain image's configuration gives the same rights as the embedded server:
// it carries the same text, and passes the same attempts.
func TestPlainServerHasTheSameAccounts(t *testing.T) {
	text, err := os.ReadFile(natsConf)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(text), accountsConf) {
		t.Errorf("%s does not end in the text of accounts.conf", natsConf)
	}
}

// plainServer runs deploy/nats/nats.conf as the image would, but for its
// directories and ports.
func plainServer(t *testing.T) (url string, pw Passwords) {
	t.Helper()
	pw = Passwords{Admin: "pw-admin", Ctrl: "pw-ctrl", Edge: "pw-edge", Sys: "pw-sys", Route: "pw-route"}
	for k, v := range map[string]string{"NATS_NAME": "nats-1", "NATS_MAX_STORE": "1GB", "NATS_ROUTES": "[]",
		"KEYTRAIL_ADMIN_PASSWORD": pw.Admin, "KEYTRAIL_CTRL_PASSWORD": pw.Ctrl, "KEYTRAIL_EDGE_PASSWORD": pw.Edge,
		"KEYTRAIL_SYS_PASSWORD": pw.Sys, "KEYTRAIL_ROUTE_PASSWORD": pw.Route} {
		t.Setenv(k, v)
	}
	o, err := server.ProcessConfigFile(natsConf)
	if err != nil {
		t.Fatal(err)
	}
	if !o.SyncAlways || o.MaxPayload != maxPayload || o.StoreDir != "/data" || o.Cluster.Username != "route" {
		t.Errorf("nats.conf: sync always %v, max payload %d, store %s, route user %q", o.SyncAlways, o.MaxPayload, o.StoreDir, o.Cluster.Username)
	}
	o.StoreDir, o.Host, o.Port, o.HTTPPort, o.NoSigs, o.NoLog = t.TempDir(), "127.0.0.1", -1, 0, true, true
	o.Cluster = server.ClusterOpts{}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not come up")
	}
	return s.ClientURL(), pw
}

func TestRights(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		s := testServer(t, ServerConfig{})
		testRights(t, s.ConnectAdmin, s.Connect, s.ConnectEdge, s.ConnectSystem)
	})
	t.Run("plain", func(t *testing.T) {
		url, pw := plainServer(t)
		as := func(user, password string) func() (*nats.Conn, error) {
			return func() (*nats.Conn, error) { return Connect(url, Login{User: user, Password: password}) }
		}
		testRights(t, as("admin", pw.Admin), as("ctrl", pw.Ctrl), as("edge", pw.Edge), as("sys", pw.Sys))
		if nc, err := Connect(url, Login{User: "ctrl", Password: pw.Edge}); err == nil {
			nc.Close()
			t.Error("a wrong password was let in")
		}
	})
}

type connectAs = func() (*nats.Conn, error)

func testRights(t *testing.T, admin, ctrl, edge, sys connectAs) {
	ctx := t.Context()
	adminConn := conn(t, admin)
	if _, err := Init(ctx, adminConn, InitConfig{MaxStore: testStore}); err != nil {
		t.Fatal(err)
	}
	if err := CheckServers(ctx, conn(t, sys), 1); err != nil { // L1, as the running server says
		t.Error(err)
	}
	control := openLog(t, conn(t, ctrl), Options{})
	edgeConn := conn(t, edge)
	node := openLog(t, edgeConn, Options{Edge: true})
	fill(t, control, 20)

	// What a verifier may do.
	if seq, err := node.Publish(ctx, "n1", "n1/1/1/1", []byte("uses")); err != nil || seq != 1 {
		t.Errorf("a verifier's uses: %d, %v", seq, err)
	}
	if m, ok, err := node.Tail(ctx, "n1"); err != nil || !ok || m.Seq != 1 || string(m.Data) != "uses" {
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
			"$JS.API.STREAM.LEADER.STEPDOWN.KT_LIFE", "$JS.API.STREAM.PEER.REMOVE.KT_LIFE",
			"$JS.API.CONSUMER.CREATE.KT_LIFE.x", "$JS.API.CONSUMER.DURABLE.CREATE.KT_LIFE.x", "$JS.API.CONSUMER.DELETE.KT_LIFE.timers",
			"kt.rp.life.shop.acme.key.x", "kt.rp.use.n1", "$SYS.REQ.SERVER.PING.JSZ",
		}
		if user == "edge" {
			attempts = append(attempts, "kt.life.shop.acme.key.x", "kt.hb.life", "kt.timer.due.a.b.c",
				"$JS.API.STREAM.INFO.KT_USE", "kt.api.STREAM.DELETE.KT_LIFE", "kt.api.STREAM.INFO.KT_USE", "kt.api.DIRECT.GET.KT_USE", "kt.api.DIRECT.GET.KT_USE.kt.use.n1",
				"$JS.API.DIRECT.GET.KT_USE", "$JS.API.DIRECT.GET.KT_USE.kt.use.n1", "$JS.API.DIRECT.GET.KT_USE.x.kt.use.n1",
				"$JS.API.CONSUMER.MSG.NEXT.KT_LIFE.timers", "$JS.ACK.KT_LIFE.timers.1.1.1.1.0")
		}
		for _, subject := range attempts {
			refused(t, user, nc, subject)
		}
		for _, subject := range []string{">", "kt.life.>", "kt.use.>", "$JS.>", "$SYS.>"} {
			if err := subscribe(nc, subject); err == nil {
				t.Errorf("%s may subscribe to %s", user, subject)
			}
		}
	}
	// A read whose answer is aimed at a subject of a stream, or of the tail.
	for _, aim := range []string{"kt.life.shop.acme.key.x", "kt.use.n2", "kt.timer.x", "kt.rp.life.shop.acme.key.x", "kt.hb.life"} {
		for subject, body := range map[string]string{
			"kt.api.DIRECT.GET.KT_LIFE":     `{"seq":1,"batch":10}`,
			"kt.api.STREAM.MSG.GET.KT_LIFE": `{"seq":1}`,
			"kt.api.STREAM.INFO.KT_LIFE":    `{}`,
			"kt.api.STREAM.MSG.GET.KT_USE":  `{"last_by_subj":"kt.use.n1"}`,
			"kt.use.n9":                     `uses whose acknowledgement is aimed`,
		} {
			if err := edgeConn.PublishRequest(subject, aim, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := edgeConn.Flush(); err != nil {
		t.Fatal(err)
	}
	// The five aimed appends of uses are uses; nothing else may have changed.
	var after string
	until(t, "the aimed appends are stored", func() bool {
		n, err := control.LastUse(ctx)
		return err == nil && n == 6
	})
	if after = states(t, adminConn); strings.Replace(after, "KT_USE 1..6", "KT_USE 1..1", 1) != before {
		t.Errorf("the streams went from %s to %s", before, after)
	}
	// And another verifier takes none of what is aimed at it: a use that looks
	// like the next event, or like a heartbeat from the future.
	w := &view{}
	stop = beside(t, func(ctx context.Context) error { return node.Follow(ctx, 0, w) })
	until(t, "another verifier follows", func() bool { next, _, fresh := w.at(); return next == 20 && fresh == 20 })
	evil, err := messages([]events.Write{first(reader("evil"), note(1))})
	if err != nil {
		t.Fatal(err)
	}
	forged := nats.NewMsg("kt.use.n1")
	forged.Data = evil[0].Data
	for k, v := range evil[0].Header {
		if strings.HasPrefix(k, "ce-") {
			forged.Header[k] = v
		}
	}
	forged.Header["Nats-Stream"] = []string{lifeStream}
	forged.Header["Nats-Subject"] = []string{evil[0].Subject}
	forged.Header["Nats-Sequence"] = []string{"21"}
	forged.Header["Nats-Time-Stamp"] = []string{time.Now().Format(time.RFC3339Nano)}
	beatMsg := nats.NewMsg("kt.use.n1")
	beatMsg.Data = fmt.Appendf(nil, `{"log":%q,"last":21,"ts":%d}`, control.ID(), time.Now().Add(time.Hour).UnixMilli())
	for _, m := range []*nats.Msg{forged, beatMsg} {
		if _, err := edgeConn.RequestMsg(m, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		for _, aim := range []string{"kt.rp.life.shop.acme.key.x", "kt.hb.life"} {
			for subject, body := range map[string]string{
				"kt.api.DIRECT.GET.KT_LIFE":          `{"seq":1,"batch":10}`,
				"kt.api.STREAM.MSG.GET.KT_USE":       `{"last_by_subj":"kt.use.n1"}`,
				"kt.api.DIRECT.GET.KT_USE.kt.use.n1": ``, // refused
				"kt.api.DIRECT.GET.KT_USE":           `{"last_by_subj":"kt.use.n1"}`,
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
	if w.future {
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
	case <-time.After(5 * time.Second):
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
	case <-time.After(5 * time.Second):
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
	for si := range js.ListStreams(t.Context()).Info() {
		fmt.Fprintf(&b, "%s %d..%d, %d consumers; ", si.Config.Name, si.State.FirstSeq, si.State.LastSeq, si.State.Consumers)
	}
	return b.String()
}

// Open refuses what is not the log it is meant to be, each with a sentence.
func TestOpenRefuses(t *testing.T) {
	type setup struct {
		s     *Server
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
		"missing":        {remove(lifeStream), []string{"no Keytrail log", "restore"}},
		"uses missing":   {remove(useStream), []string{"KT_USE is missing", "restore"}},
		"timers missing": {remove(timerStream), []string{"KT_TIMER is missing", "run the initialisation again"}},
		"consumer missing": {func(t *testing.T, s setup) Options {
			if err := s.admin.DeleteConsumer(t.Context(), timerStream, expirerConsumer); err != nil {
				t.Fatal(err)
			}
			return Options{}
		}, []string{"lost its consumer expirer", "run the initialisation again"}},
		"foreign":          {update(func(c *jetstream.StreamConfig) { c.Metadata = nil }, lifeStream), []string{"no identity", "own server"}},
		"mixed":            {update(func(c *jetstream.StreamConfig) { c.Metadata[metaLog] = events.LogID(ulid.Make()).String() }, useStream), []string{"two installations"}},
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
			s := testServer(t, ServerConfig{})
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
	s := testServer(t, ServerConfig{})
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
	// Timers are rebuilt from the whole log.
	handed := make(chan events.Seq, 8)
	changes := func(ctx context.Context) error {
		return l.Changes(ctx, func(_ context.Context, r *events.Recorded) error { handed <- r.Seq; return nil })
	}
	for range 2 {
		stop := beside(t, changes)
		for want := range events.Seq(3) {
			if got := <-handed; got != want+1 {
				t.Errorf("change %d came, want %d", got, want+1)
			}
		}
		_ = stop()
		if err := js.DeleteStream(t.Context(), timerStream); err != nil {
			t.Fatal(err)
		}
		if again := initLog(t, s); again != id {
			t.Errorf("Init after the loss of KT_TIMER made log %s of log %s", again, id)
		}
	}
	for _, lost := range []string{useStream, lifeStream} {
		if err := js.DeleteStream(t.Context(), lost); err != nil {
			t.Fatal(err)
		}
		if _, err := Init(t.Context(), admin, InitConfig{MaxStore: testStore}); err == nil || !strings.Contains(err.Error(), "restore") {
			t.Errorf("Init after the loss of %s: %v", lost, err)
		}
	}
}

// An Init that ended half way is finished by the next one.
func TestInitGoesOn(t *testing.T) {
	s := testServer(t, ServerConfig{})
	js, err := jetstream.New(conn(t, s.ConnectAdmin))
	if err != nil {
		t.Fatal(err)
	}
	id := initLog(t, s)
	for _, step := range []func() error{
		func() error { return js.DeleteConsumer(t.Context(), lifeStream, timersConsumer) },
		func() error { return js.DeleteConsumer(t.Context(), timerStream, expirerConsumer) },
		func() error { return js.DeleteStream(t.Context(), timerStream) },
		func() error { return js.DeleteStream(t.Context(), useStream) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		if again := initLog(t, s); again != id {
			t.Errorf("log %s became %s", id, again)
		}
		openLog(t, conn(t, s.Connect), Options{})
		for stream, consumer := range map[string]string{lifeStream: timersConsumer, timerStream: expirerConsumer} {
			if _, err := js.Consumer(t.Context(), stream, consumer); err != nil {
				t.Errorf("consumer %s: %v", consumer, err)
			}
		}
	}
}

func TestServerConfig(t *testing.T) {
	err := (&ServerConfig{Listen: "x", Monitor: "y:z", MaxStore: -1, Cluster: &Cluster{}, Passwords: Passwords{Edge: `a"b`}}).Validate()
	for _, want := range []string{"dir:", "listen:", "monitor:", "cluster listen:", "name:", "max store:", "password of edge"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want it to say %q", err, want)
		}
	}
	pw := Passwords{Admin: "sesame"}
	if s := fmt.Sprintf("%v %+v %#v %s", pw, pw, pw, ServerConfig{Passwords: pw}.Passwords); strings.Contains(s, "sesame") {
		t.Errorf("passwords print: %s", s)
	}
	s := testServer(t, ServerConfig{Dir: filepath.Join(t.TempDir(), "a", "b"), Listen: "127.0.0.1:0", Monitor: "127.0.0.1:0"})
	if s.URL() == "" || s.Monitor() == nil || s.ClusterAddr() != nil {
		t.Errorf("url %q, monitor %v, cluster %v", s.URL(), s.Monitor(), s.ClusterAddr())
	}
	if err := s.WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	if n, err := s.Budget(); err != nil || n <= 0 || n > testStore {
		t.Errorf("budget %d, %v", n, err)
	}
	if _, err := Open(t.Context(), conn(t, s.Connect), Options{}); !errors.Is(err, ErrNoLog) {
		t.Errorf("open before Init: %v", err)
	}
}
