package audit

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
	"github.com/keytrail/keytrail/projections"
)

// rewritten is a log in which one event is another one than it was.
type rewritten struct {
	events.Log
	seq events.Seq
}

func (r rewritten) Follow(ctx context.Context, after events.Seq, f events.Follower) error {
	return r.Log.Follow(ctx, after, rewriter{f, r.seq})
}

type rewriter struct {
	events.Follower
	seq events.Seq
}

func (r rewriter) Apply(batch []events.Recorded) error {
	batch = slices.Clone(batch)
	for i := range batch {
		if batch[i].Seq == r.seq {
			batch[i].Hash[7] ^= 1
		}
	}
	return r.Follower.Apply(batch)
}

// followed returns a view that follows the log until the test ends.
func followed(t *testing.T, log events.Log) *projections.Keys {
	t.Helper()
	view := projections.NewKeys()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- projections.Follow(ctx, log, view) }()
	t.Cleanup(func() { cancel(); <-done })
	last, err := log.Last(ctx)
	if err == nil {
		err = view.Wait(ctx, last)
	}
	if err != nil {
		t.Fatal(err)
	}
	return view
}

// The copy carries the tree over what was copied. A copy that comes back to a log in
// which an event further back is another one stops before it takes anything, though the
// event that it ends with is the same, and so does one that is told later.
func TestCopiesCarryTheirHead(t *testing.T) {
	log := logtest.New(t)
	key := func(name string) {
		logtest.Append(t, log, logtest.NewKeyRef("scribe", "acme").Aggregate(), logtest.Created(name))
	}
	for _, name := range []string{"a", "b", "c"} {
		key(name)
	}
	s := openStore(t, enginetest.Database(t))
	check := func() {
		t.Helper()
		got, err := s.copied(t.Context(), events.Lifecycle)
		var want tree.Range
		for _, r := range log.Records() {
			want.Append(tree.LeafHash(r.Aggregate.Subject(), r.Hash))
		}
		if err != nil || got.tree != want {
			t.Errorf("the copy is at %d with root %x, %v; want %d with %x", got.seq(), got.tree.Root(), err, want.Size(), want.Root())
		}
	}
	for _, name := range []string{"d", "e"} { // restarts
		stop := startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, History: followed(t, log), Linger: time.Millisecond})
		waitCopied(t, s, log)
		check()
		key(name)
		waitCopied(t, s, log)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		check()
	}

	altered := rewritten{log, 2}
	view := followed(t, altered)
	cfg := WriterConfig{Store: s, Log: altered, Reads: log.Reads(), Uses: log, History: view}
	for _, name := range []string{"f", "g"} { // at its start, and with a later event
		at, root := view.Head()
		runToStop(t, cfg, root.String()[:16], "or an event in it was altered")
		if c, err := s.copied(t.Context(), events.Lifecycle); at == 5 && (err != nil || c.seq() != at) {
			t.Errorf("at %d, %v", c.seq(), err)
		}
		key(name)
		if err := view.Wait(t.Context(), at+1); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a row without its head", func(t *testing.T) {
		if err := s.conn.Exec(t.Context(), "ALTER TABLE events UPDATE tree = '' WHERE seq >= 5 SETTINGS mutations_sync = 2"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.copied(t.Context(), events.Lifecycle); err == nil || !strings.Contains(err.Error(), "fill a new database") {
			t.Errorf("%v", err)
		}
	})
}
