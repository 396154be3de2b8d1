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
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
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
	t.Parallel()
	const n = 22_000 // three blocks of 4 MiB
	origin := t.TempDir()
	s, err := server.Start(server.Config{Dir: origin, MaxStore: testStore})
	if err != nil {
		t.Fatal(err)
	}
	admin := conn(t, s.ConnectAdmin)
	id, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: 48 << 20})
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

			s := testServer(t, server.Config{Dir: dir, MaxStore: testStore})
			l, err := Open(t.Context(), conn(t, s.Connect), Options{AtLeast: events.Position{Log: id, Seq: n}, Timeout: patient})
			if err == nil {
				var done, total events.Seq
				err = l.Check(t.Context(), func(d, n events.Seq) { done, total = d, n })
				if err == nil && (done != n || total != n) {
					t.Errorf("progress ended at %d of %d", done, total)
				}
				leaves := events.Seq(0)
				scrubbed := l.Leaves(t.Context(), 1, n, 10_000_000, func(seq events.Seq, _ string, _ events.Hash) error {
					if leaves++; seq != leaves {
						t.Errorf("leaf %d came where %d belongs", seq, leaves)
					}
					return nil
				})
				if (scrubbed == nil) != (err == nil) || scrubbed == nil && leaves != n {
					t.Errorf("a scrub ended after %d leaves with %v, a check with %v", leaves, scrubbed, err)
				}
				at := events.Seq(0)
				replayed := l.Replay(t.Context(), 1, n, 10_000_000, func(batch []events.Recorded) error {
					for i := range batch {
						if at++; batch[i].Seq != at {
							t.Errorf("event %d came where %d belongs", batch[i].Seq, at)
						}
					}
					return nil
				})
				if (replayed == nil) != (err == nil) || replayed == nil && at != n {
					t.Errorf("a replay ended after %d events with %v, a check with %v", at, replayed, err)
				}
				if scrubbed != nil {
					wantCorrupt(t, "scrub", scrubbed, fmt.Sprintf("event %d is gone from the log", leaves+1), "restore")
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

// newerLog are the messages of ../testdata/next: what a next release may write,
// and what no release writes, each with what the reader is told.
var newerLog = map[string][]string{
	"new-optional-member":        {`event 4: member "/ticket" of the event's data is unknown`, "a newer release wrote it", "The log is not damaged", "Upgrade this process to the release that wrote it, or newer"},
	"new-member-beside-the-data": {`event 4: member "/session" of the event's body is unknown`, "Upgrade this process"},
	"new-type":                   {`event 4: event type "keytrail.key.frozen.v1" is unknown`, "Upgrade this process to release 2.1, or newer"},
	"new-version":                {`event 4: event type "keytrail.key.revoked.v2" is unknown`, "Upgrade this process to release 2.1, or newer"},
	"new-attribute":              {`event 4: attribute "partitionkey" is unknown`, "Upgrade this process"},
	"new-revoke-code":            {"event 4 cannot be read", "If a newer release of Keytrail has run on this log, upgrade this process. If none has", "restore the log"},
	"corrupt-body":               {"event 4 cannot be read", "its store is damaged", "restore the log"},
	"foreign-message":            {"event 4 cannot be read", "something other than Keytrail wrote to the log", "restore the log"},
}

// TestUnreadableEvents: what cannot be read stops every reader with a sentence,
// and only what is damaged asks for a backup.
func TestUnreadableEvents(t *testing.T) {
	files, err := filepath.Glob("../testdata/next/*.json")
	if err != nil || len(files) != len(newerLog) {
		t.Fatalf("%d files, %v, want one for each of %d sentences", len(files), err, len(newerLog))
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".json")
		words := newerLog[name]
		t.Run(name, func(t *testing.T) {
			m := logtest.ReadMessage(t, path)
			a, err := events.ParseSubject(m.Subject)
			if err != nil {
				t.Fatal(err)
			}
			l := newLog(t)
			fill(t, l, 3)
			v := &view{} // one that follows already
			stop := make(chan error, 1)
			go func() { stop <- l.Follow(t.Context(), 0, v) }() // joined below
			until(t, "three events", func() bool { next, _, _ := v.at(); return next == 3 })
			if _, err := l.nc.RequestMsg(&nats.Msg{Subject: m.Subject, Data: m.Data}, patient); err != nil {
				t.Fatal(err)
			}
			told := func(what string, err error) {
				t.Helper()
				wantCorrupt(t, what, err, words...)
				if err != nil && len(words) > 1 && strings.HasPrefix(words[len(words)-1], "Upgrade") && strings.Contains(err.Error(), "restore") {
					t.Errorf("%s: a log that is whole asks for a backup: %v", what, err)
				}
			}
			told("a live follower", <-stop)
			told("a new follower", l.Follow(t.Context(), 0, &view{}))
			told("check", l.Check(t.Context(), nil))
			_, err = l.Load(t.Context(), a)
			told("load", err)
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
			a := noted("r")
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
	s := testServer(t, server.Config{})
	initLog(t, s)
	l := openLog(t, conn(t, s.Connect), Options{})
	node := openLog(t, conn(t, edge(s)), Options{Edge: true})
	fill(t, l, 7)
	sub, err := node.nc.SubscribeSync(streams.Heartbeats)
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
	if err := l.nc.Publish(streams.Heartbeats, fmt.Appendf(nil, `{"log":%q,"last":7,"ts":%d}`, ulid.Make(), time.Now().UnixMilli())); err != nil {
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
		if err := l.nc.Publish(streams.Heartbeats, fmt.Appendf(nil, `{"log":%q,"last":1,"ts":%d}`, l.ID(), at)); err != nil {
			t.Fatal(err)
		}
		return h.n.Load() >= before+5
	})
	if h.back.Load() {
		t.Error("the time of a heartbeat went back")
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
		if got := leads(&jetstream.ClusterInfo{Leader: "n1", Replicas: c.peers}); got != c.want {
			t.Errorf("case %d: %v", i, got)
		}
	}
	if leads(&jetstream.ClusterInfo{}) {
		t.Error("nobody leads")
	}
	if !leads(nil) {
		t.Error("a single server leads")
	}
}
