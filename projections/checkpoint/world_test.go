package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
)

// world is a log with the view of it and its checkpoints.
type world struct {
	id  events.LogID
	cps *logtest.MemCheckpoints

	mu       sync.Mutex
	events   []event
	view     tree.Range
	unproven bool
	read     int   // leaves handed out
	fail     error // of Leaves, after half of what is asked for
}

type event struct {
	subject  string
	document events.Hash
}

func newWorld() *world {
	return &world{id: events.LogID(ulid.Make()), cps: new(logtest.MemCheckpoints)}
}

// grow appends n events, which the view applies. History tells logs apart.
func (w *world) grow(n int, history string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range n {
		e := event{subject: fmt.Sprintf("kt.life.ks.acme.key.%d", len(w.events)%7)}
		e.document = sha256.Sum256(binary.BigEndian.AppendUint64([]byte(history), uint64(len(w.events))))
		w.events = append(w.events, e)
		w.view.Append(tree.LeafHash(e.subject, e.document))
	}
}

// cut takes the log back to its first n events, as an older copy, and so the view.
func (w *world) cut(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = w.events[:n]
	w.view = tree.Range{}
	for _, e := range w.events {
		w.view.Append(tree.LeafHash(e.subject, e.document))
	}
}

func (w *world) root(n uint64) tree.Hash {
	w.mu.Lock()
	defer w.mu.Unlock()
	var r tree.Range
	for _, e := range w.events[:n] {
		r.Append(tree.LeafHash(e.subject, e.document))
	}
	return r.Root()
}

func (w *world) ID() events.LogID { return w.id }

func (w *world) At() events.Seq {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.unproven {
		return 0
	}
	return events.Seq(w.view.Size())
}

func (w *world) Tree() tree.Range {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view
}

func (w *world) Leaves(ctx context.Context, first, last events.Seq, _ int, take func(events.Seq, string, events.Hash) error) error {
	w.mu.Lock()
	all, fail := w.events, w.fail
	if fail != nil {
		last = (first + last) / 2
	}
	w.mu.Unlock()
	for seq := first; seq <= last; seq++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.mu.Lock()
		w.read++
		w.mu.Unlock()
		if err := take(seq, all[seq-1].subject, all[seq-1].document); err != nil {
			return err
		}
	}
	return fail
}

var keyFile = tree.GenerateKeyFile()

func (w *world) signer(t testing.TB, file []byte) *tree.Signer {
	t.Helper()
	s, err := tree.NewSigner(tree.Origin(w.id.String()), file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) open(t testing.TB, dir string, change func(*Config)) *Publisher {
	t.Helper()
	c := Config{Dir: dir, Log: w, View: w, Checkpoints: w.cps, Signer: w.signer(t, keyFile), Every: time.Millisecond}
	if change != nil {
		change(&c)
	}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.tree.close() }) // most tests have done so
	return p
}

// await waits for what the publishers bring about.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting after 2 minutes: %s", what)
		}
	}
}

// mustRound runs one round that must succeed, and checks what is served.
func (w *world) mustRound(t testing.TB, p *Publisher) {
	t.Helper()
	if err := p.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkServed(t, p)
}

// checkServed holds what is served to the log: a stored checkpoint of its tree.
func (w *world) checkServed(t testing.TB, p *Publisher) {
	t.Helper()
	s := p.served.Load()
	if s == nil {
		return
	}
	cp, err := w.signer(t, keyFile).Verifier().Open(s.text)
	if err != nil || cp.Head != s.head || cp.Root != w.root(cp.Size) {
		t.Fatalf("served: %+v, %v", cp, err)
	}
	last, err := w.cps.Last(context.Background())
	if err != nil {
		return // a fault of the test's
	}
	stored, err := tree.ReadHead(last.Text)
	if err != nil || stored.Size < s.head.Size {
		t.Fatalf("what is served is not stored: %+v, %v", stored, err)
	}
}

func (p *Publisher) servedSize() uint64 {
	if s := p.served.Load(); s != nil {
		return s.head.Size
	}
	return 0
}
