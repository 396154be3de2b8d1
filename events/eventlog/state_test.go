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

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// smallDisk is a directory on a disk of its own. The test is skipped where none
// can be made.
func smallDisk(t *testing.T, bytes int64) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "keytrail-disk")
	if err != nil {
		t.Fatal(err)
	}
	if err := mountTmpfs(dir, bytes); err != nil {
		os.Remove(dir)
		t.Skipf("a file system of %d bytes cannot be mounted here (it needs Linux and root): %v", bytes, err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unmount(dir), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// ballast fills the disk of dir but for rest bytes.
func ballast(t *testing.T, dir string, rest int64) (path string) {
	t.Helper()
	free, err := diskFree(dir)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, "ballast")
	if err := os.WriteFile(path, make([]byte, free-rest), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A log whose disk is full stores nothing and says so, not that it cannot be
// reached. What it took before is there; what failed is not, and is stored once by
// the same call again, when there is room and the server was restarted.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t, 32<<20)
	cfg := childConfig(filepath.Join(disk, "log"), freeAddr(t))
	s, err := server.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { s.Stop() }()
	initLog(t, s)
	nc := conn(t, func() (*nats.Conn, error) { return dial.Connect(s.URL(), dial.Login{User: "ctrl", Password: "c"}) })
	l := openLog(t, nc, Options{})
	if _, err := l.Publish(t.Context(), "n1", "first", 0, []byte("x")); err != nil {
		t.Fatal(err)
	}
	file := ballast(t, disk, 256<<10)

	acked, w := 0, events.Write{}
	for err == nil && acked < 10_000 {
		w = first(noted(fmt.Sprint("r", acked)), note(acked))
		if _, err = l.Append(t.Context(), w); err == nil {
			acked++
		}
	}
	var state *events.StateError
	if !errors.Is(err, events.ErrNotStoring) || !errors.Is(err, events.ErrUnknownOutcome) || errors.Is(err, events.ErrFull) || errors.Is(err, events.ErrUnavailable) ||
		!errors.As(err, &state) || !strings.Contains(state.Reason, "KT_LIFE: its disk is full") {
		t.Fatalf("an event on a full disk, after %d: %v", acked, err)
	}
	if err := l.Storing(); !errors.Is(err, events.ErrNotStoring) {
		t.Errorf("the log is said to store: %v", err)
	}
	if last, err := l.Last(t.Context()); err != nil || last != events.Seq(acked) {
		t.Errorf("the log ends at %d after %d events, %v", last, acked, err)
	}
	if h, err := l.Load(t.Context(), w.Event.Aggregate); err != nil || len(h) != 0 {
		t.Errorf("the event that failed is there: %v, %v", h, err)
	}
	if h, err := l.Load(t.Context(), noted("r0")); err != nil || len(h) != 1 {
		t.Errorf("an acknowledged event cannot be read: %v, %v", h, err)
	}

	// The stream of uses meets the same disk.
	var useErr error
	uses := 0
	for useErr == nil && uses < 1000 {
		ctx, cancel := context.WithTimeout(t.Context(), patient)
		if _, useErr = l.Publish(ctx, "n1", fmt.Sprint(uses), events.Seq(uses+1), make([]byte, 16<<10)); useErr == nil {
			uses++
		}
		cancel()
	}
	if !errors.Is(useErr, events.ErrNotStoring) || !strings.Contains(useErr.Error(), "KT_USE") {
		t.Errorf("uses on a full disk, after %d: %v", uses, useErr)
	}

	// Room, and a restart.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if s, err = server.Start(cfg); err != nil {
		t.Fatal(err)
	}
	until(t, "the connection is back", nc.IsConnected)
	until(t, "the log stores again", func() bool { return l.Storing() == nil }) // told by a callback of the connection
	if seq, err := l.Append(t.Context(), w); err != nil || seq != events.Seq(acked+1) {
		t.Errorf("the same event again: %d, %v", seq, err)
	}
	if h, err := l.Load(t.Context(), w.Event.Aggregate); err != nil || len(h) != 1 {
		t.Errorf("the event is there %d times, %v", len(h), err)
	}
	for range 2 {
		if seq, err := l.Publish(t.Context(), "n1", fmt.Sprint(uses), events.Seq(uses+1), make([]byte, 16<<10)); err != nil || seq != events.Seq(uses+2) {
			t.Errorf("the same uses again: message %d of %d, %v", seq, uses+2, err)
		}
	}
	logtest.CheckLog(t, l)
}

// A stream that is full refuses cleanly: nothing is stored, the reason names the
// stream and its limit, and it is known without a write being tried. Room ends it.
func TestFullStream(t *testing.T) {
	s := testServer(t, server.Config{})
	if _, err := server.Init(t.Context(), conn(t, s.ConnectAdmin), server.InitConfig{MaxStore: 200 << 10}); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, conn(t, s.Connect), Options{})
	acked, err, w := 0, error(nil), events.Write{}
	for err == nil && acked < 10_000 {
		w = first(noted(fmt.Sprint("r", acked)), note(acked))
		if _, err = l.Append(t.Context(), w); err == nil {
			acked++
		}
	}
	const want = "the stream KT_LIFE has reached its size limit (max_bytes)"
	if !errors.Is(err, events.ErrFull) || errors.Is(err, events.ErrUnknownOutcome) || errors.Is(err, events.ErrNotStoring) || !strings.Contains(err.Error(), want) {
		t.Fatalf("an event into a full stream, after %d: %v", acked, err)
	}
	if h, err := l.Load(t.Context(), w.Event.Aggregate); err != nil || len(h) != 0 {
		t.Errorf("the event that was refused is there: %v, %v", h, err)
	}
	if err := l.Storing(); !errors.Is(err, events.ErrFull) || !strings.Contains(err.Error(), want) {
		t.Errorf("the log is said to store: %v", err)
	}
	if _, err := l.leaderHeartbeat(t.Context()); err != nil || l.Storing() == nil {
		t.Errorf("a heartbeat of a full stream forgets it: %v", err)
	}
	admin := conn(t, s.ConnectAdmin)
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	resize := func(bytes int64) {
		t.Helper()
		st, err := js.Stream(t.Context(), lifeStream)
		if err != nil {
			t.Fatal(err)
		}
		c := st.CachedInfo().Config
		c.MaxBytes = bytes
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	resize(1 << 20)
	if _, err := l.leaderHeartbeat(t.Context()); err != nil || l.Storing() != nil {
		t.Errorf("a heartbeat of a stream with room: %v, %v", err, l.Storing())
	}
	if seq, err := l.Append(t.Context(), w); err != nil || seq != events.Seq(acked+1) {
		t.Errorf("the same event again: %d, %v", seq, err)
	}
	// Another process, that has written nothing, hears of it with the heartbeat.
	si, err := l.info(t.Context(), lifeStream)
	if err != nil {
		t.Fatal(err)
	}
	resize(int64(si.State.Bytes) + 100)
	other := openLog(t, conn(t, s.Connect), Options{})
	if _, err := other.leaderHeartbeat(t.Context()); err != nil || !errors.Is(other.Storing(), events.ErrFull) {
		t.Errorf("a heartbeat of a full stream: %v, %v", err, other.Storing())
	}
}

// A log that cannot be reached, or has no leader, is told apart from a full one.
func TestUnreachableLog(t *testing.T) {
	s, pw := plainServer(t)
	as := func(user, password string) *nats.Conn {
		return conn(t, func() (*nats.Conn, error) {
			return dial.Connect(s.ClientURL(), dial.Login{User: user, Password: dial.Password(password)})
		})
	}
	if _, err := server.Init(t.Context(), as("admin", pw.Admin), server.InitConfig{MaxStore: testStore}); err != nil {
		t.Fatal(err)
	}
	nc := as("ctrl", pw.Ctrl)
	l := openLog(t, nc, Options{})
	write := func() (err error) {
		until(t, "it is told why", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err = l.Append(ctx, first(noted("r"), note(1)))
			return !errors.Is(err, events.ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) // the last try had no time for its answer
		})
		return err
	}
	if err := s.DisableJetStream(); err != nil {
		t.Fatal(err)
	}
	err := write()
	if !errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrUnknownOutcome) || !strings.Contains(err.Error(), "KT_LIFE has no leader") {
		t.Errorf("without JetStream: %v", err)
	}
	s.Shutdown()
	until(t, "the connection is gone", func() bool { return !nc.IsConnected() })
	err = write()
	if !errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrUnknownOutcome) || !strings.Contains(err.Error(), "no log server can be reached") {
		t.Errorf("without a server: %v", err)
	}
	if l.Storing() != nil {
		t.Errorf("nothing is known of its disk: %v", l.Storing())
	}
}
