package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/backup"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/raw"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
)

// ownServer serves the log of a data directory, as `keytrail up` does, until the
// returned function is called.
func ownServer(t testing.TB, dir string) (*server.Server, func()) {
	t.Helper()
	srv, err := server.Start(server.Config{Dir: filepath.Join(dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	return srv, srv.Stop
}

// fillLog makes the log of a data directory: keys, who read them, and uses of which
// retention has taken the first.
func fillLog(t testing.TB, dir string) events.LogID {
	t.Helper()
	srv, stop := ownServer(t, dir)
	defer stop()
	admin, err := srv.ConnectAdmin()
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	id, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, logMarker), []byte(id.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := eventlog.Open(t.Context(), admin, eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 150 { // some batches of a restore
		ref := logtest.NewKeyRef("shop", "acme")
		data := []events.Data{logtest.Created(fmt.Sprint("secret ", i))}
		for n := range i % 4 {
			data = append(data, &events.KeyRenamed{Before: events.Label{Name: "test"}, After: events.Label{Name: fmt.Sprint("name ", n)}})
		}
		logtest.Append(t, log, ref.Aggregate(), data...)
	}
	for range 3 {
		a := events.ReaderAggregate(events.Actor{Kind: events.ActorSystem, ID: "test"})
		logtest.Append(t, log.Reads(), a, &events.AuditQueried{Kind: "events"})
	}
	last := events.Seq(0)
	for i := range 7 {
		b := events.UseBatch{Log: id, Node: "v-1", Epoch: int64(i) + 1, Kind: events.BatchOpen, First: 1}
		data, err := events.EncodeUses(&b)
		if err != nil {
			t.Fatal(err)
		}
		if last, err = log.Publish(t.Context(), "v-1", fmt.Sprint("batch ", i), last, data); err != nil {
			t.Fatal(err)
		}
	}
	// Retention by age is by the server's clock; a limit on messages does the same.
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "KT_USE")
	if err != nil {
		t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.MaxMsgs = 4
	if _, err := js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.MaxMsgs = -1
	if _, err := js.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return id
}

// cliRun runs a command line in this process.
func cliRun(t testing.TB, args ...string) (out string, code int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(""), &stdout, &stderr)
	return stdout.String() + stderr.String(), code
}

func mustRun(t testing.TB, args ...string) string {
	t.Helper()
	out, code := cliRun(t, args...)
	if code != 0 {
		t.Fatalf("keytrail %s: exit %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// readDir returns what the log of a data directory holds.
func readDir(t testing.TB, dir string) (log raw.Log, all []backup.Message) {
	t.Helper()
	srv, stop := ownServer(t, dir)
	defer stop()
	nc, err := srv.ConnectAdmin()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	return readServer(t, nc)
}

func readServer(t testing.TB, nc *nats.Conn) (log raw.Log, all []backup.Message) {
	t.Helper()
	log, err := raw.Describe(t.Context(), nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range log.Streams {
		if _, err := raw.Each(t.Context(), nc, e, func(m *backup.Message) error {
			all = append(all, *m)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return log, all
}

// TestLogBackup backs a log up, restores it into a new directory, and compares the
// two: the same documents under the same sequences, and another id.
func TestLogBackup(t *testing.T) {
	dir := t.TempDir()
	old, restored, file := filepath.Join(dir, "old"), filepath.Join(dir, "new"), filepath.Join(dir, "log.backup")
	if err := os.Mkdir(old, 0o700); err != nil {
		t.Fatal(err)
	}
	id := fillLog(t, old)
	out := mustRun(t, "log", "backup", "--dir", old, file)
	if !strings.Contains(out, id.String()) || !strings.HasSuffix(out, "ok\n") {
		t.Errorf("backup says\n%s", out)
	}
	if out := mustRun(t, "log", "verify", file); !strings.Contains(out, "no checkpoint was given") {
		t.Errorf("verify says\n%s", out)
	}
	if out := mustRun(t, "log", "verify", "--dir", old); !strings.Contains(out, "neither a manifest nor a checkpoint") {
		t.Errorf("verify of the log says\n%s", out)
	}
	said := mustRun(t, "log", "restore", "--dir", restored, file)
	mustRun(t, "log", "verify", "--dir", restored)

	before, want := readDir(t, old)
	after, got := readDir(t, restored)
	if len(after.Restored) != 1 || after.Restored[0] != (events.Ancestor{Log: id, Size: events.Seq(before.Streams[0].Last), Reads: 3, Uses: 7}) {
		t.Errorf("the restored log says that it comes from %+v", after.Restored)
	}
	if after.ID == before.ID || !strings.Contains(said, id.String()) || !strings.Contains(said, after.ID.String()) {
		t.Errorf("log %s is restored as log %s, and restore says\n%s", before.ID, after.ID, said)
	}
	if want[len(want)-1].Seq != 7 || want[len(want)-4].Seq != 4 || len(got) != len(want) {
		t.Fatalf("%d messages were restored as %d; the uses end at %d", len(want), len(got), want[len(want)-1].Seq)
	}
	for i := range want {
		if got[i].Stream != want[i].Stream || got[i].Seq != want[i].Seq || got[i].Subject != want[i].Subject || !bytes.Equal(got[i].Data, want[i].Data) {
			t.Fatalf("message %d: %+v, want %+v", i, got[i], want[i])
		}
	}

	// A checkpoint and a backup of the old log speak for the restored one, as far as it
	// was restored.
	if out := mustRun(t, "log", "verify", "--dir", restored, "--against", file); !strings.Contains(out, fmt.Sprint(len(want), " messages are byte for byte")) {
		t.Errorf("verify against the backup says\n%s", out)
	}
	signer, err := tree.NewSigner(tree.Origin(id.String()), tree.GenerateKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	for _, more := range []uint64{0, 1} {
		var r tree.Range
		for r.Size() < before.Streams[0].Last+more {
			m := want[min(r.Size(), before.Streams[0].Last-1)]
			r.Append(tree.LeafHash(m.Subject, sha256.Sum256(m.Data)))
		}
		b, err := signer.Sign(r.Head(signer.Origin()), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "checkpoint")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		out, code := cliRun(t, "log", "verify", "--dir", restored, "--checkpoint", path, "--key", signer.VKeys()[0], "--key", signer.VKeys()[1])
		if more == 0 && (code != 0 || strings.Contains(out, "note:")) || more > 0 && (code != exitFailed || !strings.Contains(out, "the checkpoint is of "+signer.Origin())) {
			t.Errorf("a checkpoint of the old log with %d more events: exit %d\n%s", more, code, out)
		}
	}

	// It is a log: it opens, and goes on.
	srv, stop := ownServer(t, restored)
	defer stop()
	nc, err := srv.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	log, err := eventlog.Open(t.Context(), nc, eventlog.Options{AtLeast: events.Position{Log: after.ID, Seq: events.Seq(after.Streams[0].Last)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Check(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if seq := logtest.Append(t, log, logtest.NewKeyRef("shop", "acme").Aggregate(), logtest.Created("more")); seq != events.Seq(before.Streams[0].Last)+1 {
		t.Errorf("the restored log goes on at %d", seq)
	}
	// Whoever knows the old log does not take this one for it.
	_, err = eventlog.Open(t.Context(), nc, eventlog.Options{AtLeast: events.Position{Log: id, Seq: 1}})
	if err == nil || !strings.Contains(err.Error(), id.String()) || !strings.Contains(err.Error(), after.ID.String()) {
		t.Errorf("opened as the old log: %v", err)
	}
}

// TestRestoreRefuses: a backup that is not good is not restored, nor is one into a
// server that holds anything, and what a restore left that was broken off is no log.
func TestRestoreRefuses(t *testing.T) {
	dir := t.TempDir()
	old, file := filepath.Join(dir, "old"), filepath.Join(dir, "log.backup")
	if err := os.Mkdir(old, 0o700); err != nil {
		t.Fatal(err)
	}
	fillLog(t, old)
	mustRun(t, "log", "backup", "--dir", old, file)
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(want string, args ...string) {
		t.Helper()
		out, code := cliRun(t, args...)
		if code != exitFailed || !strings.Contains(out, want) {
			t.Errorf("%q: exit %d, want %q in\n%s", args, code, want, out)
		}
	}
	refused("is there already", "log", "backup", "--dir", old, file)
	refused("holds the log.id of another log", "log", "restore", "--dir", old, file)
	refused("there is no log in", "log", "backup", "--dir", filepath.Join(dir, "none"), filepath.Join(dir, "x"))
	for name, b := range map[string][]byte{"cut": good[:len(good)/2], "altered": append(append(bytes.Clone(good[:500]), good[500]^4), good[501:]...)} {
		bad, to := filepath.Join(dir, name), filepath.Join(dir, "from "+name)
		if err := os.WriteFile(bad, b, 0o600); err != nil {
			t.Fatal(err)
		}
		refused("KT_LIFE, sequence ", "log", "verify", bad)
		refused("KT_LIFE, sequence ", "log", "restore", "--dir", to, bad)
		if _, err := os.Stat(to); err == nil {
			t.Errorf("a backup that is %s leaves %s", name, to)
		}
	}

	// A restore that is broken off.
	half := filepath.Join(dir, "half")
	func() {
		if err := os.Mkdir(half, 0o700); err != nil {
			t.Fatal(err)
		}
		srv, stop := ownServer(t, half)
		defer stop()
		admin, err := srv.ConnectAdmin()
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		a := &app{err: os.Stderr}
		cfg, _, err := a.readBackup(file)
		if err != nil {
			t.Fatal(err)
		}
		cfg.MaxStore = 1 << 30
		r, err := server.BeginRestore(t.Context(), admin, cfg)
		if err != nil {
			t.Fatal(err)
		}
		br, err := backup.NewReader(bytes.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			m, err := br.Next()
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Put(t.Context(), m.Stream, m.Seq, m.Subject, "", bytes.Clone(m.Data)); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"open": second(eventlog.Open(t.Context(), admin, eventlog.Options{})),
			"init": second(server.Init(t.Context(), admin, server.InitConfig{MaxStore: 1 << 30})),
			"read": second(raw.Describe(t.Context(), admin)),
		} {
			if err == nil || !strings.Contains(err.Error(), "a restore of this log was begun and is not finished") {
				t.Errorf("%s of half a log: %v", name, err)
			}
		}
	}()
	refused("give --restart", "log", "restore", "--dir", half, file)
	mustRun(t, "log", "restore", "--restart", "--dir", half, file)
	mustRun(t, "log", "verify", "--dir", half)

	// --restart removes nothing but what a restore left.
	if err := os.Remove(filepath.Join(old, logMarker)); err != nil {
		t.Fatal(err)
	}
	refused("a log is restored into an empty server only", "log", "restore", "--dir", old, file)
	refused("nothing is removed", "log", "restore", "--restart", "--dir", old, file)
	if _, all := readDir(t, old); len(all) == 0 {
		t.Error("the log is gone")
	}
}

func second[T any](_ T, err error) error { return err }

// TestVerifyNamesTheSequence damages the log itself, and a checkpoint shows what its
// own rules cannot.
func TestVerifyNamesTheSequence(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	id := fillLog(t, dir)
	_, all := readDir(t, dir)
	signer, err := tree.NewSigner(tree.Origin(id.String()), tree.GenerateKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	checkpoint := func(name string, n int, alter func(i int, m backup.Message) backup.Message) string {
		var r tree.Range
		for i, m := range all[:n] {
			m = alter(i, m)
			r.Append(tree.LeafHash(m.Subject, sha256.Sum256(m.Data)))
		}
		b, err := signer.Sign(r.Head(signer.Origin()), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	same := func(_ int, m backup.Message) backup.Message { return m }
	other := func(i int, m backup.Message) backup.Message {
		if i == 2 {
			m.Data = []byte("another document")
		}
		return m
	}
	with := func(path string) []string {
		return []string{"log", "verify", "--dir", dir, "--checkpoint", path, "--key", signer.VKeys()[0], "--key", signer.VKeys()[1]}
	}
	if out := mustRun(t, with(checkpoint("good", 100, same))...); !strings.Contains(out, "covers KT_LIFE up to sequence 100") {
		t.Errorf("%s", out)
	}
	if out, code := cliRun(t, with(checkpoint("other", 100, other))...); code != exitFailed || !strings.Contains(out, "the root does not tell which") {
		t.Errorf("another history: exit %d\n%s", code, out)
	}
	if out, code := cliRun(t, append(with(checkpoint("other", 100, other)), "--json")...); code != exitFailed || !strings.Contains(out, `"ok": false`) || !strings.Contains(out, `"stream": "KT_LIFE"`) {
		t.Errorf("as JSON: exit %d\n%s", code, out)
	}

	// One bit of a block file.
	blocks, err := filepath.Glob(filepath.Join(dir, "log", "jetstream", "CTRL", "streams", "KT_LIFE", "msgs", "*.blk"))
	if err != nil || len(blocks) == 0 {
		t.Fatal(blocks, err)
	}
	b, err := os.ReadFile(blocks[0])
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(b, all[11].Data)
	if at < 0 {
		t.Fatal("the document of event 12 is not in the first block")
	}
	b[at+len(all[11].Data)/2] ^= 1
	if err := os.WriteFile(blocks[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	out, code := cliRun(t, "log", "verify", "--dir", dir)
	if code != exitFailed || !strings.Contains(out, "KT_LIFE, sequence 12:") {
		t.Errorf("a flipped bit in event 12: exit %d\n%s", code, out)
	}
}
