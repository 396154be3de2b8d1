package checkpoint

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/projections"
)

func connect(t *testing.T, f func() (*nats.Conn, error)) *nats.Conn {
	t.Helper()
	nc, err := f()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		done := make(chan struct{})
		nc.SetClosedHandler(func(*nats.Conn) { close(done) })
		nc.Close()
		<-done
	})
	return nc
}

// TestTwoSignersOnJetStream: two controls with their own views sign while the log
// grows; the stream holds one history. A third one, whose log differs, signs nothing,
// though it is asked all the time.
func TestTwoSignersOnJetStream(t *testing.T) {
	s, err := server.Start(server.Config{Dir: t.TempDir(), MaxStore: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	admin := connect(t, s.ConnectAdmin)
	id, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	open := func() *eventlog.Log {
		l, err := eventlog.Open(t.Context(), connect(t, s.Connect), eventlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	other := &world{id: id}
	sign := other.signer(t, keyFile)
	config := func(log Log, view View, cps events.Checkpoints) Config {
		return Config{Dir: t.TempDir(), Log: log, View: view, Checkpoints: cps, Signer: sign, Every: time.Millisecond}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	start := func(c Config) *Publisher {
		p, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { p.Run(ctx) })
		return p
	}
	var signers []*Publisher
	var view *projections.Keys
	for range 2 {
		log := open()
		view = projections.NewKeys()
		wg.Go(func() { projections.Follow(ctx, log, view) })
		signers = append(signers, start(config(log, view, log.Checkpoints())))
	}
	const n = 400
	log := open()
	keyspace := events.KeyspaceAggregate("ks")
	logtest.Append(t, log, keyspace, &events.KeyspaceDefined{Definition: events.BuiltinDefinition()})
	for i := range n - 1 {
		logtest.Append(t, log, logtest.NewKeyRef("ks", "acme").Aggregate(), logtest.Created(fmt.Sprint(i)))
		if i == 20 || i == 200 { // the third one would sign its own log, were it the first
			await(t, "some events are signed", func() bool { return signers[0].servedSize() > uint64(i) })
		}
		if i == 20 {
			other.grow(500, "other")
			signers = append(signers, start(config(other, other, open().Checkpoints())))
		}
	}
	for _, p := range signers[:2] {
		await(t, "all events are served", func() bool { return p.servedSize() == n })
	}
	await(t, "the fork is seen", signers[2].forked)
	cancel()
	wg.Wait()

	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), streams.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	last := stream.CachedInfo().State.LastSeq
	r := tree.Range{}
	roots := []tree.Hash{r.Root()}
	err = log.Leaves(t.Context(), 1, n, 1<<30, func(_ events.Seq, subject string, document events.Hash) error {
		r.Append(tree.LeafHash(subject, document))
		roots = append(roots, r.Root())
		return nil
	})
	if err != nil || r != view.Tree() {
		t.Fatal("the view has another tree than the log:", err)
	}
	var size uint64
	for seq := range last {
		m, err := stream.GetMsg(t.Context(), seq+1)
		if err != nil {
			t.Fatal(err)
		}
		cp, err := sign.Verifier().Open(m.Data)
		if err != nil || cp.Size <= size || cp.Size > n || cp.Root != roots[cp.Size] {
			t.Fatalf("checkpoint %d, after size %d: %+v, %v", seq+1, size, cp, err)
		}
		size = cp.Size
	}
	if size != n || last < 3 {
		t.Errorf("%d checkpoints up to %d of %d events", last, size, n)
	}
	if err := signers[2].Ready(); err == nil || signers[2].served.Load() != nil {
		t.Error("the signer on another log is content:", err)
	}
	t.Log(last, "checkpoints")
}
