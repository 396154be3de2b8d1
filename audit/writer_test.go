package audit

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestWriterCopies writes one of everything, across the turn of a month.
func TestWriterCopies(t *testing.T) {
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	c := &clock{start}
	log.SetClock(c.now)
	startWriter(t, WriterConfig{Store: s, Log: log, Uses: log, Linger: 10 * time.Millisecond})

	ref := logtest.NewKeyRef("scribe", "acme")
	logtest.Append(t, log, ref.Aggregate(), logtest.Created("s1"), &events.KeyDisabled{}, &events.KeyEnabled{})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 1, Uses: []events.Use{
		use(c.at, "scribe", "acme", ref.Key, events.ReasonOK, "203.0.113.7"),
		use(c.at+1, "scribe", "acme", ref.Key, events.ReasonKeyDisabled, "2001:db8::1"),
		use(c.at+2, "", "", events.KeyID{}, events.ReasonKeyUnknown, ""),
	}})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchGap, First: 4, Count: 10, Note: "buffer full"})
	c.at = c.at.Add(2 * time.Minute)
	logtest.Append(t, log, ref.Aggregate(), &events.KeyRevoked{Code: events.RevokeSuperseded})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 14, Uses: []events.Use{
		use(c.at, "scribe", "acme", ref.Key, events.ReasonKeyRevoked, "203.0.113.7")}})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchClose, First: 15})
	waitCopied(t, s, log)
	if r := mustReconcile(t, s, log); r.Events != 4 || r.Uses != 4 || r.UsesFrom != 1 || r.UsesTo != 5 || r.Epochs != 1 {
		t.Errorf("compared %+v", r)
	}
	var parts uint64
	err := s.conn.QueryRow(t.Context(), "SELECT uniqExact(partition) FROM system.parts WHERE active AND database = currentDatabase() AND table = 'uses'").Scan(&parts)
	if err != nil || parts != 2 {
		t.Errorf("%d partitions, %v", parts, err)
	}
}

// TestUseIsQueryableSoon holds the promise of doc.go with default settings.
func TestUseIsQueryableSoon(t *testing.T) {
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	startWriter(t, WriterConfig{Store: s, Log: log, Uses: log})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	waitCopied(t, s, log)
	began := time.Now()
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 1, Uses: []events.Use{use(start, "ks", "acme", keyID(1), events.ReasonOK, "")}})
	eventually(t, func() error {
		rows, _, err := s.Uses(t.Context(), ScopeOf(&events.Principal{}), filter(t, KindUses, nil), Page{Limit: 1})
		if err == nil && len(rows) == 0 {
			err = errors.New("not there")
		}
		return err
	})
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("a use was queryable after %v", took)
	}
}

// runToStop runs a writer that is expected to stop by itself, with a sentence.
func runToStop(t *testing.T, cfg WriterConfig, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := NewWriter(cfg).Run(ctx)
	var stopped *StopError
	if !errors.As(err, &stopped) {
		t.Fatalf("the writer ended with %v", err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// otherID is a log under another identity, or with a shorter history.
type otherID struct {
	events.Log
	id   events.LogID
	last events.Seq
}

func (o otherID) ID() events.LogID { return o.id }
func (o otherID) Last(ctx context.Context) (events.Seq, error) {
	if o.last > 0 {
		return o.last, nil
	}
	return o.Log.Last(ctx)
}

type shortUses struct {
	events.UseSource
	last events.Seq
}

func (u shortUses) LastUse(context.Context) (events.Seq, error) { return u.last, nil }

// holedUses leaves out one message.
type holedUses struct {
	events.UseSource
	hole events.Seq
}

func (u holedUses) ReadUses(ctx context.Context, after events.Seq, max int) ([]events.UseMessage, error) {
	if after == u.hole-1 {
		after++
	}
	return u.UseSource.ReadUses(ctx, after, 1)
}

func TestWriterStops(t *testing.T) {
	log := logtest.New(t)
	ref := logtest.NewKeyRef("scribe", "acme")
	logtest.Append(t, log, ref.Aggregate(), logtest.Created("s"), &events.KeyDisabled{})
	for i := range 3 {
		publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: uint64(1 + i), Uses: []events.Use{use(start, "scribe", "acme", ref.Key, events.ReasonOK, "")}})
	}
	copied := func(t *testing.T) *Store {
		s := openStore(t, enginetest.Database(t))
		stop := startWriter(t, WriterConfig{Store: s, Log: log, Uses: log, Linger: time.Millisecond})
		waitCopied(t, s, log)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("another log", func(t *testing.T) {
		s := copied(t)
		other := logtest.New(t)
		runToStop(t, WriterConfig{Store: s, Log: other, Uses: other}, "is the copy of log", log.ID().String(), other.ID().String())
		fresh := &Store{conn: s.conn, options: s.options, database: s.database}
		if err := fresh.CheckLog(t.Context(), other.ID()); err == nil {
			t.Error("a door of another log is let in")
		}
	})
	t.Run("the log ends before the copy", func(t *testing.T) {
		s := copied(t)
		runToStop(t, WriterConfig{Store: s, Log: otherID{log, log.ID(), 1}, Uses: log}, "ends at event 1", "has event 2")
	})
	t.Run("the log was replaced", func(t *testing.T) {
		s := copied(t)
		other := logtest.New(t)
		logtest.Append(t, other, ref.Aggregate(), logtest.Created("s"), &events.KeyDisabled{}, &events.KeyEnabled{})
		runToStop(t, WriterConfig{Store: s, Log: otherID{Log: other, id: log.ID()}, Uses: log}, "event 2", "another history")
	})
	t.Run("the use stream ends before the copy", func(t *testing.T) {
		s := copied(t)
		runToStop(t, WriterConfig{Store: s, Log: log, Uses: shortUses{log, 2}}, "ends at message 2", "has message 3")
	})
	t.Run("a hole in the use stream", func(t *testing.T) {
		s := openStore(t, enginetest.Database(t))
		runToStop(t, WriterConfig{Store: s, Log: log, Uses: holedUses{log, 2}, Linger: time.Millisecond}, "no message 2")
	})
	for name, c := range map[string]struct {
		data func(*logtest.MemLog) []byte
		want string
	}{
		"poison": {func(*logtest.MemLog) []byte { return []byte("\xff\xff not a batch") }, "cannot be read"},
		"uses of another log": {func(*logtest.MemLog) []byte {
			return encode(t, events.UseBatch{Log: events.LogID{1}, Node: "n1", Epoch: 1, Kind: events.BatchOpen})
		}, "belongs to log"},
		"in another node's name": {func(l *logtest.MemLog) []byte {
			return encode(t, events.UseBatch{Log: l.ID(), Node: "n2", Epoch: 1, Kind: events.BatchOpen})
		}, "in another's name"},
	} {
		t.Run(name, func(t *testing.T) {
			log := logtest.New(t)
			s := openStore(t, enginetest.Database(t))
			publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 1, Uses: []events.Use{use(start, "ks", "acme", keyID(1), events.ReasonOK, "")}})
			stop := startWriter(t, WriterConfig{Store: s, Log: log, Uses: log, Linger: time.Millisecond})
			waitCopied(t, s, log)
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if _, err := log.Publish(t.Context(), "n1", "n1/1/9/9", c.data(log)); err != nil {
				t.Fatal(err)
			}
			runToStop(t, WriterConfig{Store: s, Log: log, Uses: log, Linger: time.Millisecond}, "message 2", "node n1", c.want)
			var n uint64
			if err := s.conn.QueryRow(t.Context(), "SELECT max(seq) FROM use_batches").Scan(&n); err != nil || n != 1 {
				t.Errorf("the copy is at %d, %v", n, err)
			}
		})
	}
}

func encode(t testing.TB, b events.UseBatch) []byte {
	t.Helper()
	data, err := events.EncodeUses(&b)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestTrimmed loses messages to retention before they are copied: the loss is on
// the record, counted, and found by reconcile.
func TestTrimmed(t *testing.T) {
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	for i := range 10 {
		publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: uint64(1 + i), Uses: []events.Use{use(start, "ks", "acme", keyID(1), events.ReasonOK, "")}})
	}
	log.TrimUses(6)
	w := NewWriter(WriterConfig{Store: s, Log: log, Uses: log, Linger: time.Millisecond})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	waitCopied(t, s, log)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var first, count, uses uint64
	err := s.conn.QueryRow(t.Context(), "SELECT max(first), max(count), (SELECT count() FROM uses) FROM use_batches WHERE kind = 'trimmed'").Scan(&first, &count, &uses)
	if err != nil || first != 1 || first+count+uses != 11 || count == 0 {
		t.Errorf("trimmed from %d, %d messages; %d uses; %v", first, count, uses, err)
	}
	if got := testutil.ToFloat64(w.metrics.trimmed); got != float64(count) {
		t.Errorf("metric says %v", got)
	}
	r, err := Reconcile(t.Context(), s, log, log)
	if err != nil || len(r.Mismatches) == 0 || !strings.Contains(r.Mismatches[0].String(), "dropped by the stream") {
		t.Errorf("reconcile: %v, %v", r, err)
	}
}

// trimming drops more messages after each time that it tells of dropped ones.
type trimming struct {
	*logtest.MemLog
	next []events.Seq
}

func (u *trimming) ReadUses(ctx context.Context, after events.Seq, max int) ([]events.UseMessage, error) {
	msgs, err := u.MemLog.ReadUses(ctx, after, max)
	if err != nil && len(u.next) > 0 {
		u.MemLog.TrimUses(u.next[0])
		u.next = u.next[1:]
	}
	return msgs, err
}

// TestTrimmedAgain: while the copy is behind the retention, the stream goes on
// dropping. All of it is one row.
func TestTrimmedAgain(t *testing.T) {
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	for i := range 10 {
		publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: uint64(1 + i), Uses: []events.Use{use(start, "ks", "acme", keyID(1), events.ReasonOK, "")}})
	}
	log.TrimUses(2)
	startWriter(t, WriterConfig{Store: s, Log: log, Uses: &trimming{log, []events.Seq{5, 7}}, Linger: time.Millisecond})
	waitCopied(t, s, log)
	var rows, first, count, uses uint64
	err := s.conn.QueryRow(t.Context(), "SELECT count(), max(first), max(count), (SELECT count() FROM uses) FROM use_batches WHERE kind = 'trimmed'").Scan(&rows, &first, &count, &uses)
	if err != nil || rows != 1 || first != 1 || count != 7 || uses != 3 {
		t.Errorf("%d rows, trimmed from %d, %d messages; %d uses; %v", rows, first, count, uses, err)
	}
}

// TestWriterWaits takes the log away and gives it back. Nothing runs on after the
// writer and the store are closed.
func TestWriterWaits(t *testing.T) {
	enginetest.DSN(t) // the engine stays
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	log.SetDown(true)
	startWriter(t, WriterConfig{Store: s, Log: log, Uses: log, Linger: time.Millisecond})
	log.FailNext(logtest.OpReadUses, logtest.Unavailable)
	log.SetDown(false)
	ref := logtest.NewKeyRef("scribe", "acme")
	logtest.Append(t, log, ref.Aggregate(), logtest.Created("s"))
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 1, Uses: []events.Use{use(start, "scribe", "acme", ref.Key, events.ReasonOK, "")}})
	waitCopied(t, s, log)
	mustReconcile(t, s, log)
}

func TestMetrics(t *testing.T) {
	w := NewWriter(WriterConfig{})
	w.metrics.move(sourceUses, 3, 10)
	w.metrics.inserted(sourceUses, 5, 2, 100, time.Millisecond)
	if lag := testutil.ToFloat64(w.metrics.lagMessages.WithLabelValues(sourceUses)); lag != 5 {
		t.Errorf("lag %v", lag)
	}
	for _, c := range w.Collectors() {
		if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
	}
}

// backwards is a log whose clock is set back with each message: by an hour each,
// so that the months run backwards too.
type backwards struct{ *logtest.MemLog }

func (b backwards) back(seq events.Seq) events.Time {
	return start.Add(time.Duration(3-int(seq)) * time.Hour)
}

func (b backwards) Follow(ctx context.Context, after events.Seq, f events.Follower) error {
	return b.MemLog.Follow(ctx, after, backwardsFollower{f, b})
}

func (b backwards) ReadUses(ctx context.Context, after events.Seq, max int) ([]events.UseMessage, error) {
	msgs, err := b.MemLog.ReadUses(ctx, after, max)
	for i := range msgs {
		msgs[i].Stored = b.back(msgs[i].Seq)
	}
	return msgs, err
}

type backwardsFollower struct {
	events.Follower
	log backwards
}

func (f backwardsFollower) Apply(batch []events.Recorded) error {
	batch = slices.Clone(batch)
	for i := range batch {
		batch[i].Stored = f.log.back(batch[i].Seq)
	}
	return f.Follower.Apply(batch)
}

// TestClockSetBack sets the log's clock back all the time. A later run of the
// writer must not take for missing what an earlier one wrote under an earlier
// time, and the rollups must count it.
func TestClockSetBack(t *testing.T) {
	s := openStore(t, enginetest.Database(t))
	mem := logtest.New(t)
	log := backwards{mem}
	ref := logtest.NewKeyRef("scribe", "acme")
	logtest.Append(t, mem, ref.Aggregate(), logtest.Created("s"))
	publish(t, mem, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	n := uint64(1)
	for range 3 {
		for range 3 {
			logtest.Append(t, mem, ref.Aggregate(), &events.KeyDisabled{}, &events.KeyEnabled{})
			publish(t, mem, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: n, Uses: []events.Use{use(start, "scribe", "acme", ref.Key, events.ReasonOK, "")}})
			n++
		}
		stop := startWriter(t, WriterConfig{Store: s, Log: log, Uses: log, Linger: time.Millisecond})
		waitCopied(t, s, mem)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := Reconcile(t.Context(), s, log, log); err != nil || len(r.Mismatches) > 0 || r.Events != 19 || r.Uses != 9 {
		t.Fatalf("%+v, %v", r.Mismatches, err)
	}
	mem.TrimUses(8) // what is left of the stream begins at an earlier time than the copy gave it
	if r, err := Reconcile(t.Context(), s, log, log); err != nil || len(r.Mismatches) > 0 || r.UsesFrom != 9 {
		t.Fatalf("%+v, %v", r.Mismatches, err)
	}
}
