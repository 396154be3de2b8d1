package commands_test

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
)

var timersOf = flag.Int("timers", 50_000, "how many keys that expire BenchmarkRebuildTimers has")

// callPatience bounds one call to the server.
const callPatience = 2 * time.Minute

// jetStream is a log on a server of its own.
type jetStream struct {
	testing.TB
	*eventlog.Log
	js    jetstream.JetStream
	again func() // Init
}

func newJetStream(t testing.TB, max int64) *jetStream {
	t.Helper()
	s, err := server.Start(server.Config{Dir: t.TempDir(), MaxStore: 2 * max})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	connect := func(f func() (*nats.Conn, error)) *nats.Conn {
		nc, err := f()
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		nc.SetClosedHandler(func(*nats.Conn) { close(done) })
		t.Cleanup(func() { nc.Close(); <-done })
		return nc
	}
	admin := connect(s.ConnectAdmin)
	j := &jetStream{TB: t, again: func() {
		if _, err := server.Init(t.Context(), admin, server.InitConfig{MaxStore: max}); err != nil {
			t.Fatal(err)
		}
	}}
	j.again()
	// A call has as long as it takes: how fast the server answers is not what is tried.
	if j.Log, err = eventlog.Open(t.Context(), connect(s.Connect), eventlog.Options{Timeout: callPatience}); err != nil {
		t.Fatal(err)
	}
	if j.js, err = jetstream.New(admin, jetstream.WithDefaultTimeout(callPatience)); err != nil {
		t.Fatal(err)
	}
	return j
}

// lose takes all timers away.
func (j *jetStream) lose() {
	j.Helper()
	if err := j.js.DeleteStream(j.Context(), streams.Timer); err != nil {
		j.Fatal(err)
	}
	j.again()
}

// create appends n keys that expire.
func (j *jetStream) create(n int, at events.Time) (refs []events.KeyRef) {
	j.Helper()
	for len(refs) < n {
		var batch []events.Write
		for range min(100, n-len(refs)) {
			ref := logtest.NewKeyRef("shop", "acme")
			created := logtest.Created(ref.Key.String())
			created.ExpiresAt = at
			batch = append(batch, logtest.Stamp(new(events.Chain), logtest.Event(ref.Aggregate(), created)))
			refs = append(refs, ref)
		}
		if _, err := j.Append(j.Context(), batch...); err != nil {
			j.Fatal(err)
		}
	}
	return refs
}

// expirer runs one with a view of its own, which has followed the log to its end.
func (j *jetStream) expirer() (stop func()) {
	j.Helper()
	dir := projections.NewDirectory()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = projections.Follow(ctx, j.Log, dir) })
	last, err := j.Last(ctx)
	if err == nil {
		err = dir.Wait(ctx, last)
	}
	if err != nil {
		j.Error(err)
	}
	x := commands.NewExpirer(commands.ExpirerConfig{Log: j.Log, Leases: j.Log, Timers: j.Log, Dir: dir, Node: "a", Logger: slog.New(slog.DiscardHandler)})
	wg.Go(func() { _ = x.Run(ctx) })
	return func() { cancel(); wg.Wait() }
}

// await returns when all timers are set for the log's end.
func (j *jetStream) await() {
	j.Helper()
	last, err := j.Last(j.Context())
	for end := time.Now().Add(10 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		var mark events.TimerMark
		if err == nil {
			mark, err = j.Mark(j.Context())
		}
		if err != nil || time.Now().After(end) {
			j.Fatalf("the timers are set up to %d of %d: %v", mark.Through, last, err)
		}
		if mark.Through >= last {
			return
		}
	}
}

// BenchmarkRebuildTimers sets the timers of keys that expire, as after the loss of
// KT_TIMER. -timers says how many keys there are.
func BenchmarkRebuildTimers(b *testing.B) {
	j := newJetStream(b, 32<<30)
	j.create(*timersOf, events.At(time.Now().Add(24*time.Hour)))
	var computed time.Duration
	for b.Loop() {
		b.StopTimer()
		j.lose()
		before := computing(b)
		b.StartTimer()
		stop := j.expirer()
		j.await()
		b.StopTimer()
		computed += computing(b) - before
		stop()
		b.StartTimer()
	}
	s, err := j.js.Stream(b.Context(), streams.Timer)
	if err != nil {
		b.Fatal(err)
	}
	if state := s.CachedInfo().State; state.Msgs != uint64(*timersOf)+1 {
		b.Errorf("%d timers and a mark, want %d", state.Msgs, *timersOf)
	} else {
		b.ReportMetric(float64(state.Bytes)/float64(*timersOf), "B/timer")
	}
	b.ReportMetric(float64(*timersOf*b.N)/b.Elapsed().Seconds(), "timers/s")
	b.ReportMetric(float64(computed.Microseconds())/float64(*timersOf*b.N), "cpu-µs/timer")
}

// computing returns the time that the process has computed, the server's included.
func computing(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// TestTimersOnJetStream: two controls come and go while keys are made, moved and
// revoked, and the timers are lost. At last the schedules on the server are those of
// the histories.
func TestTimersOnJetStream(t *testing.T) {
	j := newJetStream(t, 512<<20)
	r := rand.New(rand.NewPCG(1, 2))
	day := func() events.Time { return events.At(time.Now().Add(time.Duration(1+r.IntN(9)) * 24 * time.Hour)) }
	keys := j.create(2500, day())
	stops := make([]func(), 2)
	for round := range 12 {
		i := round % len(stops)
		if stops[i] != nil {
			stops[i]() // as likely as not in the middle of a batch
		}
		for range 40 {
			ref := keys[r.IntN(len(keys))]
			history, err := j.Load(t.Context(), ref.Aggregate())
			if err != nil {
				t.Fatal(err)
			}
			k, err := events.FoldKey(history)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range []events.Data{
				&events.KeyRevoked{Code: events.RevokeCompromise}, &events.KeyDisabled{},
				&events.KeyExpiryChanged{Before: k.ExpiresAt}, &events.KeyExpiryChanged{Before: k.ExpiresAt, After: day()},
			}[r.IntN(4):] {
				if k.May(d) == nil {
					logtest.Append(t, j.Log, ref.Aggregate(), d)
					break
				}
			}
		}
		keys = append(keys, j.create(20, day())...)
		if round == 5 {
			j.lose()
		}
		stops[i] = j.expirer()
		time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
	}
	logtest.Append(t, j.Log, logtest.NewKeyRef("shop", "acme").Aggregate(), created(day()))
	j.await()
	for _, stop := range stops {
		stop()
	}
	want, _, err := wantTimers(logtest.ReadAll(t, j.Log))
	if err != nil {
		t.Fatal(err)
	}
	s, err := j.js.Stream(t.Context(), streams.Timer)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter("kt.timer.set.>"))
	if err != nil {
		t.Fatal(err)
	}
	scheduled := 0
	for subject := range info.State.Subjects {
		m, err := s.GetLastMsgForSubject(t.Context(), subject)
		if err != nil {
			t.Fatal(err)
		}
		if m.Header.Get("Nats-Schedule") != "" {
			scheduled++
		}
	}
	for ref, at := range want {
		m, err := s.GetLastMsgForSubject(t.Context(), fmt.Sprintf("kt.timer.set.%s.%s.%s", ref.Keyspace, ref.Tenant, ref.Key))
		if err != nil {
			t.Errorf("%s: %v", ref.Key, err)
		} else if got := m.Header.Get("Nats-Schedule"); got != "@at "+at.Std().Format(time.RFC3339Nano) {
			t.Errorf("%s has the timer %q, want %s", ref.Key, got, at)
		}
	}
	if scheduled != len(want) {
		t.Errorf("%d timers are set, want %d", scheduled, len(want))
	}
}

func created(at events.Time) *events.KeyCreated {
	c := logtest.Created("the last")
	c.ExpiresAt = at
	return c
}
