package snapshots

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/projections"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(logtest.Settled(m), goleak.Cleanup(os.Exit))
}

// world is a log with a revoked key, and a node that has followed it.
type world struct {
	t    testing.TB
	log  *logtest.MemLog
	all  []events.Recorded // what the log says now
	last events.Seq        // of the floor
	keys *projections.Keys
	dir  *projections.Directory
	bad  events.KeyRef // the revoked key

	replayed int // events handed out by Replay
	floors   int // times that Floor was asked
	rises    int // at this one the floor comes to the log's end; 0 = never
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, log: logtest.New(t), keys: projections.NewKeys(), dir: projections.NewDirectory()}
	logtest.Append(t, w.log, events.KeyspaceAggregate("ks"), &events.KeyspaceDefined{Definition: keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Prefix: "sk_"}}}})
	for i := range 5 {
		w.bad = logtest.NewKeyRef("ks", "acme")
		logtest.Append(t, w.log, w.bad.Aggregate(), logtest.Created(fmt.Sprint("secret ", i)))
	}
	logtest.Append(t, w.log, w.bad.Aggregate(), &events.KeyRevoked{Code: events.RevokeCompromise})
	w.all = w.log.Records()
	w.last = events.Seq(len(w.all))
	for _, v := range []View{w.keys, w.dir} {
		if err := v.Apply(w.all); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// grow appends an event that the node does not hold.
func (w *world) grow() {
	logtest.Append(w.t, w.log, logtest.NewKeyRef("ks", "acme").Aggregate(), logtest.Created(fmt.Sprint("more ", w.last)))
	w.all = w.log.Records()
	w.last = events.Seq(len(w.all))
}

func (w *world) ID() events.LogID { return w.log.ID() }

func (w *world) Last(context.Context) (events.Seq, error) { return events.Seq(len(w.all)), nil }

func (w *world) LastAtLeast(ctx context.Context, _ events.Seq) (events.Seq, error) {
	return w.Last(ctx)
}

func (w *world) Floor(context.Context) (events.Floor, error) {
	if w.floors++; w.floors == w.rises {
		w.last = events.Seq(len(w.all))
	}
	var r tree.Range
	for i := range w.all[:w.last] {
		r.Append(tree.LeafHash(w.all[i].Aggregate.Subject(), w.all[i].Hash))
	}
	return events.Floor{Head: events.Head{Log: w.ID(), Size: w.last, Root: events.Hash(r.Root())}, Seq: 1}, nil
}

func (w *world) Leaves(_ context.Context, first, last events.Seq, _ int, take func(events.Seq, string, events.Hash) error) error {
	for seq := first; seq <= last; seq++ {
		if err := take(seq, w.all[seq-1].Aggregate.Subject(), w.all[seq-1].Hash); err != nil {
			return err
		}
	}
	return nil
}

// Replay hands out batches that end where no snapshot does.
func (w *world) Replay(ctx context.Context, first, last events.Seq, rate int, apply func([]events.Recorded) error) error {
	for ; first <= last; first += 2 {
		batch := w.all[first-1 : min(int(first)+1, len(w.all))]
		w.replayed += len(batch)
		if err := apply(batch); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// node is a new one with a directory of its own.
type node struct {
	*world
	path string
	said bytes.Buffer
}

func (w *world) node() *node { return &node{world: w, path: w.t.TempDir()} }

// open opens the node's store, with the sources.
func (n *node) open(sources ...Source) *Store {
	n.t.Helper()
	n.said.Reset()
	s, err := Open(Config{Dir: n.path, Log: n.world, Sources: sources, Logger: slog.New(slog.NewTextHandler(&n.said, nil))})
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// start is how a node starts: with its own snapshot, or another's, or none.
func (n *node) start(sources ...Source) (*Store, *projections.Keys) {
	n.t.Helper()
	s := n.open(sources...)
	v, _, err := projections.RestoreKeys(n.path, n.ID(), n.last)
	if err != nil {
		n.t.Fatal(err)
	}
	if v.Resume() == 0 {
		got, ok, err := Fetch(n.t.Context(), s, projections.LoadKeys)
		if err != nil {
			n.t.Fatal(err)
		}
		if ok {
			v = got
		}
	}
	if err := s.Watch(v); err != nil {
		n.t.Fatal(err)
	}
	if err := v.Apply(n.all[max(v.Resume(), 1)-1:]); err != nil {
		n.t.Fatal(err)
	}
	return s, v
}

// proof runs the store's proof, and returns what it ends with; nil for one that holds.
func (n *node) proof(s *Store) error {
	ctx, cancel := context.WithCancel(n.t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }() // joined below
	select {
	case err := <-ended:
		return err
	case <-s.done:
		cancel()
		<-ended
		return nil
	}
}

// files are the names of what is in the node's directory.
func (n *node) files() string {
	list, err := os.ReadDir(n.path)
	if err != nil {
		n.t.Fatal(err)
	}
	var names []string
	for _, f := range list {
		names = append(names, f.Name())
	}
	return strings.Join(names, " ")
}

func (n *node) wantSaid(want ...string) {
	n.t.Helper()
	for _, s := range want {
		if !strings.Contains(n.said.String(), s) {
			n.t.Errorf("the node does not say %q:\n%s", s, n.said.String())
		}
	}
}

// sending is a source that sends the bytes.
func sending(url string, b []byte) Source {
	return Source{url, func(context.Context, string) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }}
}

func (w *world) export(v projections.View) []byte {
	var b bytes.Buffer
	if _, err := v.Export(&b, w.ID()); err != nil {
		w.t.Fatal(err)
	}
	return b.Bytes()
}

func (n *node) keep(v projections.View) {
	if _, err := projections.Save(n.t.Context(), n.path, v, n.ID()); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) has(name string) bool {
	_, err := os.Stat(filepath.Join(n.path, name))
	return err == nil
}

// status returns the status of the key in the view, "" if it is not there.
func status(v *projections.Keys, id events.KeyID) events.Status {
	var k projections.Key
	v.ByID(id, &k)
	return k.Status()
}
