package commands_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
)

// noDue are timers of which none fires. Once some were set, the next Set fails.
type noDue struct {
	*logtest.MemLog
	mu    sync.Mutex
	sets  int // 0 = none fails
	fault logtest.Fault
}

// failAfter makes the Set fail that comes after n others.
func (d *noDue) failAfter(n int, f logtest.Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sets, d.fault = n, f
}

func (d *noDue) Set(ctx context.Context, from events.TimerMark, through events.Seq, settings ...events.TimerSetting) (events.TimerMark, error) {
	d.mu.Lock()
	if d.sets > 0 {
		if d.sets--; d.sets == 0 {
			d.FailNext(logtest.OpTimer, d.fault)
		}
	}
	d.mu.Unlock()
	return d.MemLog.Set(ctx, from, through, settings...)
}

func (*noDue) Due(ctx context.Context, _ func(context.Context, events.KeyRef) error) error {
	<-ctx.Done()
	return ctx.Err()
}

// feeder is one control as far as the timers go: a view and an expirer that sets at
// most so many timers at once.
type feeder struct {
	log      *noDue
	most     int
	snapshot []byte // of the view, what it starts from
	dir      *projections.Directory
	stop     func() error
}

func (f *feeder) start() error {
	f.dir = projections.NewDirectory()
	if f.snapshot != nil {
		var err error
		if f.dir, err = projections.LoadDirectory(bytes.NewReader(f.snapshot), f.log.ID()); err != nil {
			return err
		}
	}
	x := commands.NewExpirer(commands.ExpirerConfig{Log: f.log, Leases: f.log, Timers: f.log, Dir: f.dir, Node: "a", Logger: slog.New(slog.DiscardHandler)})
	x.SetMost(f.most)
	ctx, cancel := context.WithCancel(context.Background())
	ends := make(chan error, 2)
	go func() { ends <- projections.Follow(ctx, f.log, f.dir) }()
	go func() { ends <- x.Run(ctx) }()
	f.stop = func() error {
		cancel()
		for range cap(ends) {
			if err := <-ends; !errors.Is(err, context.Canceled) {
				return err
			}
		}
		return nil
	}
	return nil
}

// wantTimers is the naive twin: when each key becomes due, by its whole history.
// open are the keys that have expired: their timers have fired, or will for nothing.
func wantTimers(all []events.Recorded) (want map[events.KeyRef]events.Time, open map[events.KeyRef]bool, err error) {
	histories := map[events.KeyRef][]events.Recorded{}
	for _, r := range all {
		if r.Aggregate.Kind == events.KindKey {
			ref := events.KeyRef{Keyspace: r.Aggregate.Keyspace, Tenant: r.Aggregate.Tenant, Key: r.Key()}
			histories[ref] = append(histories[ref], r)
		}
	}
	want, open = map[events.KeyRef]events.Time{}, map[events.KeyRef]bool{}
	for ref, h := range histories {
		k, err := events.FoldKey(h)
		switch {
		case err != nil:
			return nil, nil, err
		case k.Status == events.StatusExpired:
			open[ref] = true
		case k.Status != events.StatusRevoked && k.ExpiresAt != 0:
			want[ref] = k.ExpiresAt
		}
	}
	return want, open, nil
}

// feedStep is one thing that happens.
type feedStep struct {
	what  string
	who   int           // which feeder
	n     int           // how many
	fault logtest.Fault // which
	wait  time.Duration
}

// TestTimersAreAsTheHistories: whatever fails, whoever is killed and started again,
// from whichever snapshot, and although the timers are lost: at last each key has
// exactly the timer that its history says.
func TestTimersAreAsTheHistories(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		history := logtest.GenHistory(60).Draw(r, "history")
		steps := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) feedStep {
			return feedStep{
				what: rapid.SampledFrom([]string{"append", "append", "append", "start", "start", "kill", "snapshot", "fault", "fault after", "fault after", "mark fault", "hold", "lose", "down"}).Draw(r, "what"),
				who:  rapid.IntRange(0, 2).Draw(r, "who"), n: rapid.IntRange(1, 9).Draw(r, "n"),
				fault: rapid.SampledFrom([]logtest.Fault{logtest.Unavailable, logtest.UnknownNotStored, logtest.UnknownStored}).Draw(r, "fault"),
				wait:  time.Duration(rapid.SampledFrom([]int{0, 0, 1, 700, 5000}).Draw(r, "wait")) * time.Millisecond,
			}
		}), 1, 30).Draw(r, "steps")
		most := rapid.IntRange(1, 5).Draw(r, "most")
		var err error
		synctest.Test(t, func(t *testing.T) { err = playTimers(t, history, steps, most) })
		if err != nil {
			r.Fatal(err)
		}
	})
}

func playTimers(t *testing.T, history []events.Write, steps []feedStep, most int) (failed error) {
	log := &noDue{MemLog: logtest.New(t)}
	feeders := []*feeder{{log: log, most: most}, {log: log, most: most}, {log: log, most: most}}
	defer func() {
		for _, f := range feeders {
			if f.stop != nil {
				failed = errors.Join(failed, f.stop())
			}
		}
	}()
	write := func(n int) {
		for ; n > 0 && len(history) > 0; n-- {
			if _, err := log.Append(t.Context(), history[0]); err != nil {
				t.Error(err)
			}
			history = history[1:]
		}
	}
	for _, s := range append(steps, feedStep{what: "end"}) {
		f := feeders[s.who]
		switch s.what {
		case "append":
			write(s.n)
		case "start":
			if f.stop == nil {
				if err := f.start(); err != nil {
					return err
				}
			}
		case "kill":
			if f.stop != nil {
				if err := f.stop(); err != nil {
					return err
				}
				f.stop = nil
			}
		case "snapshot":
			if f.stop != nil {
				var b bytes.Buffer
				if _, err := f.dir.Snapshot(&b, log.ID()); err == nil {
					f.snapshot = b.Bytes()
				}
			}
		case "fault":
			log.FailNext(logtest.OpTimer, s.fault)
		case "fault after":
			log.failAfter(1+s.n/2, s.fault)
		case "mark fault":
			log.FailNext(logtest.OpMark, s.fault)
		case "hold": // a Set that is stored, or not, long after others went on
			p := log.PauseNext(logtest.OpTimer, logtest.Point(s.n%2))
			time.AfterFunc(time.Duration(s.n)*time.Second, p.Resume)
		case "lose":
			log.LoseTimers()
		case "down":
			log.SetDown(true)
			time.AfterFunc(time.Second, func() { log.SetDown(false) })
			time.Sleep(time.Second + time.Millisecond) // appends would fail
		}
		time.Sleep(s.wait)
	}
	write(len(history))
	if feeders[0].stop == nil {
		if err := feeders[0].start(); err != nil {
			return err
		}
	}
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	want, open, err := wantTimers(log.Records())
	if err != nil {
		return err
	}
	got := log.Settings()
	maps.DeleteFunc(got, func(ref events.KeyRef, _ events.Time) bool { return open[ref] })
	if !maps.Equal(got, want) {
		return fmt.Errorf("the timers are\n%v\nwant\n%v", got, want)
	}
	return nil
}

// TestTimersBegunAndBrokenOff: a key that was skipped, because it has an event further
// on, is found by whoever goes on, although that event says nothing of its timer.
func TestTimersBegunAndBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &noDue{MemLog: logtest.New(t)}
		a, b := logtest.NewKeyRef("shop", "acme"), logtest.NewKeyRef("shop", "acme")
		for i, ref := range []events.KeyRef{a, b} {
			created := logtest.Created(fmt.Sprint("secret ", i))
			created.ExpiresAt = events.At(time.Now().Add(time.Hour))
			logtest.Append(t, log, ref.Aggregate(), created)
		}
		logtest.Append(t, log, a.Aggregate(), &events.KeyDisabled{})
		f := &feeder{log: log, most: 1}
		run := func(d time.Duration, during func()) {
			if err := f.start(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(d)
			during()
			if err := f.stop(); err != nil {
				t.Error(err)
			}
		}
		log.FailNext(logtest.OpMark, logtest.Unavailable)
		run(time.Millisecond, func() {
			var snapshot bytes.Buffer
			if _, err := f.dir.Snapshot(&snapshot, log.ID()); err != nil {
				t.Error(err)
			}
			f.snapshot = snapshot.Bytes()
		})
		log.failAfter(2, logtest.Unavailable)
		run(time.Millisecond, func() { // knows the keys, and not the events
			if got := log.Settings(); got[a] != 0 || got[b] == 0 {
				t.Fatalf("the timers are %v, want that of %s", got, b.Key)
			}
		})
		f.snapshot = nil
		run(time.Minute, func() {}) // knows the events
		if got := log.Settings(); got[a] == 0 || got[b] == 0 {
			t.Errorf("the timers are %v, want %s and %s", got, a.Key, b.Key)
		}
	})
}
