package checkpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(logtest.Settled(m)) }

func TestPublish(t *testing.T) {
	w := newWorld()
	p := w.open(t, t.TempDir(), nil)
	w.mustRound(t, p)
	if p.served.Load() != nil {
		t.Error("an empty log has a checkpoint")
	}
	var before []byte
	for _, n := range []int{1, 4, 300, 0, 2000} {
		w.grow(n, "a")
		w.mustRound(t, p)
		if p.servedSize() != w.view.Size() {
			t.Fatalf("%d of %d events are in the checkpoint", p.servedSize(), w.view.Size())
		}
		if text := p.served.Load().text; n == 0 && string(text) != string(before) {
			t.Error("a log that does not grow is signed again")
		} else {
			before = text
		}
	}
	if got, _ := w.cps.Last(t.Context()); got.Seq != 4 {
		t.Errorf("%d checkpoints are stored, want 4", got.Seq)
	}
}

// A checkpoint that is not stored is not served; one whose storing was not answered
// is served once it has been read.
func TestServedOnlyWhenStored(t *testing.T) {
	for name, c := range map[string]struct {
		stored bool
		err    error
	}{
		"not stored":            {false, events.ErrUnavailable},
		"full":                  {false, events.ErrFull},
		"unknown, not stored":   {false, events.ErrUnknownOutcome},
		"stored without answer": {true, events.ErrUnknownOutcome},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.grow(10, "a")
			p := w.open(t, t.TempDir(), nil)
			w.mustRound(t, p)
			w.grow(10, "a")
			calls := 0
			w.cps.Fail(func() (bool, error) {
				if calls++; calls == 1 {
					return true, nil // Last
				}
				return c.stored, c.err
			})
			_ = p.round(t.Context())
			if p.servedSize() != 10 {
				t.Fatalf("size %d is served", p.servedSize())
			}
			w.cps.Fail(nil)
			w.mustRound(t, p)
			if last, _ := w.cps.Last(t.Context()); p.servedSize() != 20 || last.Seq != 2 {
				t.Errorf("size %d is served, %d checkpoints are stored", p.servedSize(), last.Seq)
			}
		})
	}
}

// fork runs rounds until the publisher says what is wrong.
func fork(t *testing.T, p *Publisher) error {
	t.Helper()
	for range patience + 1 {
		if err := p.round(t.Context()); err != nil {
			return err
		}
	}
	return nil
}

// A log that was restored from an older copy, with the checkpoints of that copy, is
// not signed by a control that has signed more of it: not while it is shorter, nor
// when it was written on, nor after the control's file of hashes is lost (C4).
func TestAnOlderCopyIsNotSigned(t *testing.T) {
	for _, lost := range []bool{false, true} {
		dir := t.TempDir()
		w := newWorld()
		w.grow(100, "a")
		p := w.open(t, dir, nil)
		w.mustRound(t, p)
		old, _ := w.cps.Last(t.Context())
		w.grow(100, "a")
		w.mustRound(t, p)
		signed, _ := w.cps.Last(t.Context())
		p.tree.close()
		if lost {
			os.Remove(filepath.Join(dir, hashesFile))
		}

		w.cut(100)
		w.cps = new(logtest.MemCheckpoints)
		if _, err := w.cps.Append(t.Context(), 0, old.Text); err != nil {
			t.Fatal(err)
		}
		p = w.open(t, dir, nil)
		if err := fork(t, p); !errors.Is(err, errBehind) {
			t.Fatalf("lost %v: of the older copy: %v", lost, err)
		}
		w.grow(200, "b")
		err := fork(t, p)
		if !lost { // the first round found that the file is not the log's
			err = fork(t, p)
		}
		if _, ok := errors.AsType[*forkError](err); !ok || !strings.Contains(err.Error(), markFile) {
			t.Fatalf("lost %v: of the copy that was written on: %v", lost, err)
		}
		if last, _ := w.cps.Last(t.Context()); last.Seq != 1 {
			t.Errorf("it was signed: %s after %s", last.Text, signed.Text)
		}
	}
}

// A signer refuses a checkpoint of another history, and goes on refusing (C2).
func TestForkIsNeverSigned(t *testing.T) {
	w := newWorld()
	w.grow(100, "a")
	w.mustRound(t, w.open(t, t.TempDir(), nil))
	other := &world{id: w.id, cps: w.cps}
	other.grow(50, "b")
	p := other.open(t, t.TempDir(), nil)
	if err := fork(t, p); !errors.Is(err, errBehind) {
		t.Fatal("while it is shorter:", err)
	}
	other.grow(100, "b")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	await(t, "the fork is seen", p.forked)
	if err := p.Ready(); err == nil || !strings.HasPrefix(err.Error(), "fork: ") {
		t.Error(err)
	}
	w.grow(1, "a") // the good one goes on
	w.mustRound(t, w.open(t, t.TempDir(), nil))
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	last, _ := w.cps.Last(t.Context())
	if head, err := tree.ReadHead(last.Text); last.Seq != 2 || err != nil || head.Size != 101 {
		t.Errorf("%d checkpoints, the last: %s", last.Seq, last.Text)
	}
	if p.served.Load() != nil {
		t.Error("a checkpoint of another history is served")
	}
}

func TestOtherKeys(t *testing.T) {
	w := newWorld()
	w.grow(10, "a")
	w.mustRound(t, w.open(t, t.TempDir(), nil))
	w.grow(10, "a")
	others := w.signer(t, tree.GenerateKeyFile())
	replaces := func(c *Config) { c.Signer = others }
	p := w.open(t, t.TempDir(), replaces)
	if err := p.round(t.Context()); err == nil || !strings.Contains(err.Error(), "--replace-checkpoint-key") || p.servedSize() != 10 {
		t.Fatalf("size %d is served: %v", p.servedSize(), err)
	}
	serving := w.open(t, t.TempDir(), func(c *Config) { c.Signer = nil })
	w.mustRound(t, serving)
	if serving.servedSize() != 10 {
		t.Errorf("without a key: size %d is served", serving.servedSize())
	}
	p = w.open(t, t.TempDir(), func(c *Config) { replaces(c); c.Replace = true })
	if err := p.round(t.Context()); err != nil || p.servedSize() != 20 {
		t.Fatalf("size %d is served: %v", p.servedSize(), err)
	}
	if _, err := others.Verifier().Open(p.served.Load().text); err != nil {
		t.Error(err)
	}
	if _, err := New(Config{Dir: t.TempDir(), Log: newWorld(), View: w, Checkpoints: w.cps, Signer: others}); err == nil {
		t.Error("keys of another log are accepted")
	}
}

// A control whose view is always a little behind the newest checkpoint serves those
// that it has come to, and is not alarmed.
func TestAViewThatLags(t *testing.T) {
	w := newWorld()
	w.grow(10, "a")
	p := w.open(t, t.TempDir(), nil)
	w.mustRound(t, p)
	late := &world{id: w.id, cps: w.cps}
	late.grow(5, "a")
	q := late.open(t, t.TempDir(), func(c *Config) { c.Signer = nil })
	for range 3 * patience {
		w.grow(10, "a")
		w.mustRound(t, p)
		late.grow(10, "a") // 5 behind
		if err := q.round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	late.checkServed(t, q)
	if behind := p.servedSize() - q.servedSize(); behind == 0 || behind > 20 {
		t.Errorf("size %d is served, %d is signed", q.servedSize(), p.servedSize())
	}
}

func TestNoCheckpointInTheStream(t *testing.T) {
	for _, text := range []string{"x", "keytrail/log/other\n1\n" + strings.Repeat("A", 43) + "=\n\n"} {
		w := newWorld()
		w.grow(10, "a")
		if _, err := w.cps.Append(t.Context(), 0, []byte(text)); err != nil {
			t.Fatal(err)
		}
		p := w.open(t, t.TempDir(), nil)
		err := p.round(t.Context())
		if err == nil || p.served.Load() != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Two signers, one log: whatever the order, the stored checkpoints are of one history
// and grow.
func TestTwoSigners(t *testing.T) {
	w := newWorld()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	ps := []*Publisher{w.open(t, t.TempDir(), nil), w.open(t, t.TempDir(), nil), w.open(t, t.TempDir(), func(c *Config) { c.Signer = nil })}
	for _, p := range ps {
		wg.Go(func() { p.Run(ctx) })
	}
	for range 200 {
		w.grow(3, "a")
		time.Sleep(200 * time.Microsecond)
	}
	for _, p := range ps {
		await(t, "all events are served", func() bool { return p.servedSize() == 600 })
		if err := p.Ready(); err != nil {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
	checkHistory(t, w, w.cps.All())
}

// checkHistory holds all stored checkpoints to the log.
func checkHistory(t *testing.T, w *world, all [][]byte) {
	t.Helper()
	v := w.signer(t, keyFile).Verifier()
	var size uint64
	for _, text := range all {
		cp, err := v.Open(text)
		if err != nil || cp.Size <= size || cp.Root != w.root(cp.Size) {
			t.Fatalf("after size %d: %+v, %v", size, cp, err)
		}
		size = cp.Size
	}
	t.Log(len(all), "checkpoints")
}

// Whatever fails and whenever the process dies, what is stored is of one history, and
// in the end all of the log is signed.
func TestRandomFaults(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w, dir := newWorld(), t.TempDir()
		p := w.open(t, dir, nil)
		rt.Repeat(map[string]func(*rapid.T){
			"grow": func(rt *rapid.T) { w.grow(rapid.IntRange(1, 400).Draw(rt, "n"), "a") },
			"round": func(rt *rapid.T) {
				if err := p.round(t.Context()); err != nil {
					rt.Fatal(err)
				}
			},
			"a log that breaks off": func(rt *rapid.T) {
				w.fail = events.ErrUnavailable
				_ = p.round(t.Context())
				w.fail = nil
			},
			"checkpoints that fail": func(rt *rapid.T) {
				stored := rapid.Bool().Draw(rt, "stored")
				w.cps.Fail(func() (bool, error) { return stored, events.ErrUnknownOutcome })
				_ = p.round(t.Context())
				w.cps.Fail(nil)
			},
			"crash": func(rt *rapid.T) {
				p.tree.close()
				path := filepath.Join(dir, hashesFile)
				b, err := os.ReadFile(path)
				if err != nil {
					rt.Fatal(err)
				}
				for i := range rapid.IntRange(0, 64).Draw(rt, "torn") { // what was not synced
					if at := int(2*p.tree.mark.Size)*32 + i; at < len(b) {
						b[at] ^= 0x55
					}
				}
				if err := os.WriteFile(path, b, 0o600); err != nil {
					rt.Fatal(err)
				}
				p = w.open(t, dir, nil)
			},
			"": func(*rapid.T) { w.checkServed(t, p) },
		})
		w.grow(1, "a")
		for range 2 {
			if err := p.round(t.Context()); err != nil {
				rt.Fatal(err)
			}
		}
		if p.servedSize() != w.view.Size() {
			rt.Fatalf("size %d of %d is served", p.servedSize(), w.view.Size())
		}
		if err := p.tree.hashes.Load().Verify(t.Context()); err != nil {
			rt.Fatal(err)
		}
		p.tree.close()
	})
}
