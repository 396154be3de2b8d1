package eventlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// wantCorrupt wants a *CorruptError that says each of the words.
func wantCorrupt(t *testing.T, what string, err error, words ...string) {
	t.Helper()
	var corrupt *events.CorruptError
	if !errors.As(err, &corrupt) {
		t.Errorf("%s: %v, want a *CorruptError", what, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(corrupt.Reason, w) {
			t.Errorf("%s: %q does not say %q", what, corrupt.Reason, w)
		}
	}
}

// The server itself keeps quiet about a damaged store, and may even give the
// lost sequences out again; start-up must not.
func TestDamagedStoreIsRefused(t *testing.T) {
	const n = 22_000 // three blocks of 4 MiB
	origin := t.TempDir()
	s, err := StartServer(ServerConfig{Dir: origin, MaxStore: testStore})
	if err != nil {
		t.Fatal(err)
	}
	admin := conn(t, s.ConnectAdmin)
	id, err := Init(t.Context(), admin, InitConfig{MaxStore: 48 << 20})
	if err != nil {
		t.Fatal(err)
	}
	nc := conn(t, s.Connect)
	fill(t, openLog(t, nc, Options{}), n)
	closed(nc)
	closed(admin)
	s.Stop()
	flip := func(t *testing.T, path string) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 0x10
		write(t, path, b)
	}
	for name, c := range map[string]struct {
		damage func(t *testing.T, msgs string, blocks []string)
		sound  bool
	}{
		"index dropped": {sound: true, damage: func(t *testing.T, msgs string, _ []string) {
			remove(t, filepath.Join(msgs, "index.db"))
		}},
		"a bit of the last block": {damage: func(t *testing.T, _ string, blocks []string) {
			flip(t, blocks[len(blocks)-1])
		}},
		"a bit of the first block, index dropped": {damage: func(t *testing.T, msgs string, blocks []string) {
			remove(t, filepath.Join(msgs, "index.db"))
			flip(t, blocks[0])
		}},
		"a bit of the last block, index dropped": {damage: func(t *testing.T, msgs string, blocks []string) {
			remove(t, filepath.Join(msgs, "index.db"))
			flip(t, blocks[len(blocks)-1])
		}},
		"last block cut short, index dropped": {damage: func(t *testing.T, msgs string, blocks []string) {
			remove(t, filepath.Join(msgs, "index.db"))
			last := blocks[len(blocks)-1]
			b, err := os.ReadFile(last)
			if err != nil {
				t.Fatal(err)
			}
			write(t, last, b[:len(b)-min(1000, len(b)/2)])
		}},
		"first block deleted":  {damage: func(t *testing.T, _ string, blocks []string) { remove(t, blocks[0]) }},
		"second block deleted": {damage: func(t *testing.T, _ string, blocks []string) { remove(t, blocks[1]) }},
		"last block deleted":   {damage: func(t *testing.T, _ string, blocks []string) { remove(t, blocks[len(blocks)-1]) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "copy")
			if err := os.CopyFS(dir, os.DirFS(origin)); err != nil {
				t.Fatal(err)
			}
			msgs := filepath.Join(dir, "jetstream", "CTRL", "streams", lifeStream, "msgs")
			blocks, err := filepath.Glob(filepath.Join(msgs, "*.blk"))
			if err != nil || len(blocks) < 3 {
				t.Fatalf("blocks %v, %v", blocks, err)
			}
			slices.SortFunc(blocks, func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) })
			c.damage(t, msgs, blocks)

			s := testServer(t, ServerConfig{Dir: dir, MaxStore: testStore})
			l, err := Open(t.Context(), conn(t, s.Connect), Options{AtLeast: events.Position{Log: id, Seq: n}})
			if err == nil {
				var done, total events.Seq
				err = l.Check(t.Context(), func(d, n events.Seq) { done, total = d, n })
				if err == nil && (done != n || total != n) {
					t.Errorf("progress ended at %d of %d", done, total)
				}
				if err != nil { // a follower stops there too
					wantCorrupt(t, "follow", l.Follow(t.Context(), 0, &view{}), "restore")
				}
			}
			if c.sound {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantCorrupt(t, "start", err, "restore the log from its archive mirror or a backup")
			t.Log(err)
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// What cannot be read, or breaks a history, stops every reader with a sentence.
func TestUnreadableEvents(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(m *nats.Msg)
		words []string
	}{
		"unknown type":   {func(m *nats.Msg) { m.Header["ce-type"] = []string{"keytrail.key.exploded.v1"} }, []string{"event 4", "upgrade this process"}},
		"newer version":  {func(m *nats.Msg) { m.Header["ce-type"] = []string{"keytrail.audit.queried.v2"} }, []string{"event 4", "upgrade this process"}},
		"no event":       {func(m *nats.Msg) { m.Header, m.Data = nats.Header{}, []byte("hello") }, []string{"event 4 cannot be read", "something other than Keytrail"}},
		"unknown member": {func(m *nats.Msg) { m.Data = []byte(strings.Replace(string(m.Data), "{", `{"x":1,`, 1)) }, []string{"event 4 cannot be read"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t)
			fill(t, l, 3)
			a := reader("odd")
			msgs, err := messages([]events.Write{first(a, note(1))})
			if err != nil {
				t.Fatal(err)
			}
			v := &view{} // one that follows already
			stop := make(chan error, 1)
			go func() { stop <- l.Follow(t.Context(), 0, v) }() // joined below
			until(t, "three events", func() bool { next, _, _ := v.at(); return next == 3 })
			c.spoil(msgs[0])
			if _, err := l.nc.RequestMsg(msgs[0], 5*time.Second); err != nil {
				t.Fatal(err)
			}
			wantCorrupt(t, "a live follower", <-stop, c.words...)
			wantCorrupt(t, "a new follower", l.Follow(t.Context(), 0, &view{}), c.words...)
			wantCorrupt(t, "check", l.Check(t.Context(), nil), c.words...)
			_, err = l.Load(t.Context(), a)
			wantCorrupt(t, "load", err, c.words...)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			wantCorrupt(t, "changes", l.Changes(ctx, func(context.Context, *events.Recorded) error { return nil }), c.words...)
		})
	}
}

func TestBrokenChain(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*events.Event)
		word  string
	}{
		"a revision left out": {func(e *events.Event) { e.Rev = 4 }, "is broken"},
		"another history":     {func(e *events.Event) { e.Prev[0] ^= 1 }, "is altered"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLog(t)
			a := reader("r")
			logtest.Append(t, l, a, note(1), note(2))
			h, err := l.Load(t.Context(), a)
			if err != nil {
				t.Fatal(err)
			}
			chain := logtest.ChainOf(h)
			w := logtest.Stamp(&chain, logtest.Event(a, note(3)))
			c.spoil(&w.Event)
			if _, err := l.Append(t.Context(), w); err != nil {
				t.Fatal(err)
			}
			wantCorrupt(t, "check", l.Check(t.Context(), nil), c.word, "restore")
			_, err = l.Load(t.Context(), a)
			wantCorrupt(t, "load", err, c.word)
		})
	}
}

// A heartbeat of another log means that the server's store was replaced.
func TestHeartbeats(t *testing.T) {
	s := testServer(t, ServerConfig{})
	initLog(t, s)
	l := openLog(t, conn(t, s.Connect), Options{})
	node := openLog(t, conn(t, s.ConnectEdge), Options{Edge: true})
	fill(t, l, 7)
	sub, err := node.nc.SubscribeSync(heartbeats)
	if err != nil {
		t.Fatal(err)
	}
	if err := node.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	stop := beside(t, l.Heartbeat)
	stop2 := beside(t, l.Heartbeat)
	for range 6 {
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil || !strings.Contains(string(m.Data), fmt.Sprintf(`{"log":%q,"last":7,"ts":`, l.ID())) || len(m.Header) > 0 {
			t.Errorf("heartbeat %s %v", m.Data, err)
		}
	}
	v := &view{}
	done := make(chan error, 1)
	go func() { done <- node.Follow(t.Context(), 7, v) }() // joined below
	until(t, "fresh", func() bool { _, _, fresh := v.at(); return fresh == 7 })
	for _, err := range []error{stop(), stop2()} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("heartbeat ended with %v", err)
		}
	}
	if err := l.nc.Publish(heartbeats, fmt.Appendf(nil, `{"log":%q,"last":7,"ts":%d}`, ulid.Make(), time.Now().UnixMilli())); err != nil {
		t.Fatal(err)
	}
	wantCorrupt(t, "follow", <-done, "replaced")
}

// A follower that is too slow for the live tail loses none of it.
func TestSlowFollower(t *testing.T) {
	l := newLog(t)
	fill(t, l, 1)
	hold := make(chan struct{})
	v := &view{slow: func() { <-hold }}
	stop := beside(t, func(ctx context.Context) error { return l.Follow(ctx, 0, v) })
	fill(t, l, 5000)
	close(hold)
	until(t, "everything", func() bool { next, wrong, fresh := v.at(); return next == 5001 && fresh == 5001 && wrong == 0 })
	if err := stop(); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// heard counts heartbeats; at must not go back.
type heard struct {
	n    atomic.Int64
	at   events.Time
	back atomic.Bool
}

func (h *heard) Apply([]events.Recorded) error { return nil }
func (h *heard) Fresh(at events.Time, _ events.Seq) {
	if at < h.at {
		h.back.Store(true)
	}
	h.at = at
	h.n.Add(1)
}

// A publisher's clock that was set back silences no heartbeat: every verifier
// would be stale until that clock is where it was.
func TestHeartbeatAfterClockSetBack(t *testing.T) {
	l := newLog(t)
	fill(t, l, 1)
	h := new(heard)
	beside(t, func(ctx context.Context) error { return l.Follow(ctx, 0, h) })
	until(t, "the first heartbeat", func() bool { return h.n.Load() > 0 })
	before, at := h.n.Load(), time.Now().Add(-time.Hour).UnixMilli()
	until(t, "five more", func() bool {
		// Often enough that Follow does not ask for itself.
		if err := l.nc.Publish(heartbeats, fmt.Appendf(nil, `{"log":%q,"last":1,"ts":%d}`, l.ID(), at)); err != nil {
			t.Fatal(err)
		}
		return h.n.Load() >= before+5
	})
	if h.back.Load() {
		t.Error("the time of a heartbeat went back")
	}
}

// A server's clock that was set back does not show in the uses.
func TestUseTimesDoNotGoBack(t *testing.T) {
	l := newLog(t)
	for i := range 5 {
		if _, err := l.Publish(t.Context(), "n1", fmt.Sprint(i), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	ahead := events.At(time.Now().Add(time.Hour))
	l.uses.set(2, ahead)
	got, err := l.ReadUses(t.Context(), 2, 10)
	if err != nil || len(got) != 3 {
		t.Fatalf("%d messages, %v", len(got), err)
	}
	for _, m := range got {
		if m.Stored != ahead {
			t.Errorf("message %d is of %s, before the %s of the one before", m.Seq, m.Stored, ahead)
		}
	}
	// Another process takes the time of the message before from the stream.
	other := openLog(t, l.nc, Options{})
	got, err = other.ReadUses(t.Context(), 4, 10)
	if err != nil || len(got) != 1 || got[0].Stored > events.At(time.Now()) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestLeads(t *testing.T) {
	peer := func(active time.Duration, offline bool) *jetstream.PeerInfo {
		return &jetstream.PeerInfo{Active: active, Offline: offline}
	}
	for i, c := range []struct {
		peers []*jetstream.PeerInfo
		want  bool
	}{
		{nil, true},
		{[]*jetstream.PeerInfo{peer(time.Second, false), peer(time.Minute, false)}, true},
		{[]*jetstream.PeerInfo{peer(time.Minute, false), peer(leaseHolds, false)}, false},
		{[]*jetstream.PeerInfo{peer(0, true), peer(0, true)}, false},
		{[]*jetstream.PeerInfo{peer(0, false), peer(0, false), peer(time.Hour, false), peer(time.Hour, true)}, true},
		{[]*jetstream.PeerInfo{peer(0, false), peer(time.Hour, false), peer(time.Hour, false), peer(time.Hour, true)}, false},
	} {
		if got := leads(&jetstream.ClusterInfo{Replicas: c.peers}); got != c.want {
			t.Errorf("case %d: %v", i, got)
		}
	}
	if !leads(nil) {
		t.Error("a single server leads")
	}
}
