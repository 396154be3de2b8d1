package audit

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/prometheus/client_golang/prometheus"
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
	c := clockAt(start)
	log.SetClock(c.now)
	startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: 10 * time.Millisecond})

	ref := logtest.NewKeyRef("scribe", "acme")
	logtest.Append(t, log, ref.Aggregate(), logtest.Created("s1"), &events.KeyDisabled{}, &events.KeyEnabled{})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 1, Uses: []events.Use{
		use(c.get(), "scribe", "acme", ref.Key, events.ReasonOK, "203.0.113.7"),
		use(c.get()+1, "scribe", "acme", ref.Key, events.ReasonKeyDisabled, "2001:db8::1"),
		use(c.get()+2, "", "", events.KeyID{}, events.ReasonKeyUnknown, ""),
	}})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchGap, First: 4, Count: 10, Note: "buffer full"})
	c.set(c.get().Add(2 * time.Minute))
	logtest.Append(t, log, ref.Aggregate(), &events.KeyRevoked{Code: events.RevokeSuperseded})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 14, Uses: []events.Use{
		use(c.get(), "scribe", "acme", ref.Key, events.ReasonKeyRevoked, "203.0.113.7")}})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchSuppressed, First: 15, Tallies: []events.Tally{
		{Time: c.get(), Until: c.get(), Keyspace: "scribe", Reason: events.ReasonKeyUnknown, Block: events.AnyBlock(), Count: 70}, {Time: c.get() + 5, Until: c.get() + 9, Reason: events.ReasonKeyMissing, Count: 5}}})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchClose, First: 90})
	waitCopied(t, s, log)
	if r := mustReconcile(t, s, log); r.Events != 4 || r.Uses != 4 || r.UsesFrom != 1 || r.UsesTo != 6 || r.Epochs != 1 {
		t.Errorf("compared %+v", r)
	}
	var parts uint64
	err := s.conn.QueryRow(t.Context(), "SELECT uniqExact(partition) FROM system.parts WHERE active AND database = currentDatabase() AND table = 'uses'").Scan(&parts)
	if err != nil || parts != 2 {
		t.Errorf("%d partitions, %v", parts, err)
	}
}

// TestUseIsQueryableSoon holds the promise of doc.go with default settings. What the
// machine makes of it is taken off: a writer that does not linger shows how long the
// same takes at least, and the best of many pairs counts.
func TestUseIsQueryableSoon(t *testing.T) {
	copying := func(linger time.Duration) (once func() time.Duration) {
		s := openStore(t, enginetest.Database(t))
		log := logtest.New(t)
		startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: linger})
		publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
		waitCopied(t, s, log)
		n := 0
		return func() time.Duration {
			began := time.Now()
			n++
			publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: uint64(n), Uses: []events.Use{use(start, "ks", "acme", keyID(1), events.ReasonOK, "")}})
			eventually(t, func() error {
				rows, _, err := s.Uses(t.Context(), ScopeOf(&events.Principal{}), filter(t, KindUses, nil), Page{Limit: n})
				if err == nil && len(rows) < n {
					err = errors.New("not there")
				}
				return err
			})
			return time.Since(began)
		}
	}
	const promise = 2 * time.Second
	byDefault := copying(0)
	took := byDefault()
	if took <= promise {
		return
	}
	plain := copying(time.Nanosecond)
	for end := time.Now().Add(patience); took > promise; took = byDefault() - plain() {
		if time.Now().After(end) {
			t.Fatalf("a use is queryable %v later than without a linger", took)
		}
	}
}

// runToStop runs a writer that is expected to stop by itself, with a sentence.
func runToStop(t *testing.T, cfg WriterConfig, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
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
		stop := startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: time.Millisecond})
		waitCopied(t, s, log)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("another log", func(t *testing.T) {
		s := copied(t)
		other := logtest.New(t)
		runToStop(t, WriterConfig{Store: s, Log: other, Reads: other.Reads(), Uses: other}, "is the copy of log", log.ID().String(), other.ID().String())
		fresh := &Store{conn: s.conn, options: s.options, database: s.database}
		if err := fresh.CheckLog(t.Context(), other.ID()); err == nil {
			t.Error("an endpoint of another log is let in")
		}
	})
	t.Run("the log ends before the copy", func(t *testing.T) {
		s := copied(t)
		runToStop(t, WriterConfig{Store: s, Log: otherID{log, log.ID(), 1}, Reads: log.Reads(), Uses: log}, "ends at event 1", "has event 2")
	})
	t.Run("the log was replaced", func(t *testing.T) {
		s := copied(t)
		other := logtest.New(t)
		logtest.Append(t, other, ref.Aggregate(), logtest.Created("s"), &events.KeyDisabled{}, &events.KeyEnabled{})
		runToStop(t, WriterConfig{Store: s, Log: otherID{Log: other, id: log.ID()}, Reads: log.Reads(), Uses: log}, "event 2", "another history")
	})
	t.Run("the log of reads was replaced", func(t *testing.T) {
		logtest.Append(t, log.Reads(), events.ReaderAggregate(events.Actor{ID: "someone"}), &events.AuditQueried{Kind: "uses"})
		s := copied(t)
		other := logtest.New(t).Reads()
		logtest.Append(t, other, events.ReaderAggregate(events.Actor{ID: "someone"}), &events.AuditQueried{Kind: "events"}, &events.AuditQueried{Kind: "uses"})
		runToStop(t, WriterConfig{Store: s, Log: log, Reads: other, Uses: log}, "event 1", "another history")
	})
	t.Run("the use stream ends before the copy", func(t *testing.T) {
		s := copied(t)
		runToStop(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: shortUses{log, 2}}, "ends at message 2", "has message 3")
	})
	t.Run("a hole in the use stream", func(t *testing.T) {
		s := openStore(t, enginetest.Database(t))
		runToStop(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: holedUses{log, 2}, Linger: time.Millisecond}, "no message 2")
	})
	t.Run("a hole in the use stream that was copied", func(t *testing.T) {
		s := copied(t)
		r, err := Reconcile(t.Context(), s, log, log.Reads(), holedUses{log, 2})
		if err != nil || len(r.Mismatches) == 0 || !strings.Contains(r.Mismatches[0].String(), "seq 2: the use stream has no such message, but message 3") {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("a hole after a trimmed range", func(t *testing.T) {
		log := logtest.New(t)
		for i := range 9 {
			publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: uint64(1 + i), Uses: []events.Use{use(start, "scribe", "acme", ref.Key, events.ReasonOK, "")}})
		}
		s := openStore(t, enginetest.Database(t))
		stop := startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: time.Millisecond})
		waitCopied(t, s, log)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		for i := range 9 {
			publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: uint64(10 + i), Uses: []events.Use{use(start, "scribe", "acme", ref.Key, events.ReasonOK, "")}})
		}
		log.TrimUses(12) // 10 to 12 are past retention; 13 is what must follow
		holed := holedUses{log, 13}
		runToStop(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: holed, Linger: time.Millisecond}, "no message 13, but message 14")
		var last, trimmed uint64
		if err := s.conn.QueryRow(t.Context(), "SELECT max(seq), countIf(kind = 'trimmed') FROM use_batches").Scan(&last, &trimmed); err != nil || last != 9 || trimmed != 0 {
			t.Errorf("the copy is at %d, with %d trimmed ranges, %v", last, trimmed, err)
		}
	})
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
	w := NewWriter(WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: time.Millisecond})
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
	if !counted(w.metrics, w.metrics.trimmed, float64(count)) {
		t.Errorf("metric says %v", testutil.ToFloat64(w.metrics.trimmed))
	}
	r, err := Reconcile(t.Context(), s, log, log.Reads(), log)
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
	startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: &trimming{log, []events.Seq{5, 7}}, Linger: time.Millisecond})
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
	t.Cleanup(func() { eventually(t, func() error { return goleak.Find(before) }) })
	s := openStore(t, enginetest.Database(t))
	log := logtest.New(t)
	log.SetDown(true)
	startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: time.Millisecond})
	log.FailNext(logtest.OpReadUses, logtest.Unavailable)
	log.SetDown(false)
	ref := logtest.NewKeyRef("scribe", "acme")
	logtest.Append(t, log, ref.Aggregate(), logtest.Created("s"))
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchUses, First: 1, Uses: []events.Use{use(start, "scribe", "acme", ref.Key, events.ReasonOK, "")}})
	waitCopied(t, s, log)
	mustReconcile(t, s, log)
}

// TestNodeClocks: a node's clock is judged by its last two messages, so that one
// that came late after an outage accuses nobody.
func TestNodeClocks(t *testing.T) {
	m := NewWriterMetrics()
	dated := func(node events.NodeID, offset time.Duration) {
		m.heard(node, start, []events.Use{{Time: start.Add(-time.Hour)}, {Time: start.Add(offset)}})
	}
	for _, c := range []struct {
		node    events.NodeID
		offsets []time.Duration
		want    float64
	}{
		{"good", []time.Duration{-100 * time.Millisecond, -90 * time.Millisecond}, -0.09},
		{"behind", []time.Duration{-5 * time.Minute, -5 * time.Minute}, -300},
		{"ahead", []time.Duration{5 * time.Minute, 5 * time.Minute}, 300},
		{"late-once", []time.Duration{-time.Second / 10, -time.Minute}, -0.1},
		{"mended", []time.Duration{-time.Hour, -time.Hour, 0}, 0},
	} {
		for _, o := range c.offsets {
			dated(c.node, o)
		}
		if got := testutil.ToFloat64(m.clock.WithLabelValues(string(c.node))); got != c.want {
			t.Errorf("%s: %v s, want %v", c.node, got, c.want)
		}
	}
	for i := range 2 * maxNodes { // a label is no place for whatever somebody writes
		for range 2 {
			dated(events.NodeID("n"+strconv.Itoa(i)), 0)
		}
	}
	if n := testutil.CollectAndCount(m.clock); n != maxNodes {
		t.Errorf("%d nodes are labels, want %d", n, maxNodes)
	}
}

func TestMetrics(t *testing.T) {
	m := NewWriterMetrics()
	m.copied(sourceUses, 3)
	m.ends(sourceUses, 10)
	m.inserted(sourceUses, 5, 2, 100, time.Millisecond)
	if lag := testutil.ToFloat64(m.lagMessages.WithLabelValues(sourceUses)); lag != 5 {
		t.Errorf("lag %v", lag)
	}
	for _, c := range m.Collectors() {
		if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
			t.Errorf("%v, %v", problems, err)
		}
	}
}

// Before ClickHouse has answered, every metric that an alert needs is there, and
// the lag grows.
func TestMetricsWithoutClickHouse(t *testing.T) {
	log := logtest.New(t) // not in the bubble, which it would outlive
	ref := logtest.NewKeyRef("scribe", "acme")
	logtest.Append(t, log, ref.Aggregate(), logtest.Created("s"))
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	synctest.Test(t, func(t *testing.T) {
		m := NewWriterMetrics()
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(m.Collectors()...)
		ctx, cancel := context.WithCancel(t.Context())
		watched := make(chan error)
		go func() { watched <- m.Watch(ctx, log, log.Reads(), log) }()
		time.Sleep(time.Minute)
		synctest.Wait()

		got := map[string]float64{}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, metric := range f.GetMetric() {
				name := f.GetName()
				for _, l := range metric.GetLabel() {
					name += " " + l.GetValue()
				}
				got[name] = metric.GetGauge().GetValue() + metric.GetCounter().GetValue()
			}
		}
		for name, want := range map[string]float64{
			"keytrail_audit_lag_seconds events": 60, "keytrail_audit_lag_seconds uses": 60,
			"keytrail_audit_lag_seconds reads": 60, "keytrail_audit_lag_messages reads": 0,
			"keytrail_audit_lag_messages events": 1, "keytrail_audit_lag_messages uses": 1,
			"keytrail_audit_log_end events": 1, "keytrail_audit_log_end uses": 1,
			"keytrail_audit_position events": 0, "keytrail_audit_position uses": 0,
			"keytrail_audit_restarts_total events": 0, "keytrail_audit_restarts_total uses": 0,
			"keytrail_audit_trimmed_messages_total": 0,
		} {
			if have, ok := got[name]; !ok || have != want {
				t.Errorf("%s: %v (there: %v), want %v", name, have, ok, want)
			}
		}

		// ClickHouse answers, and has it all. An empty source is complete too.
		m.copied(sourceEvents, 1)
		m.sources[sourceReads] = &sourceState{known: true, complete: time.Now()}
		m.sources[sourceUses] = &sourceState{known: true, complete: time.Now()}
		m.ends(sourceEvents, 1)
		m.ends(sourceUses, 0)
		for source, s := range m.sources {
			if lag := s.lag(); lag != 0 {
				t.Errorf("%s: lag %v s of a complete copy", source, lag)
			}
		}
		cancel()
		if err := <-watched; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
	})
}

// otherClock is a log whose clock says what at returns for a sequence.
type otherClock struct {
	*logtest.MemLog
	at func(events.Seq) events.Time
}

func (c otherClock) Follow(ctx context.Context, after events.Seq, f events.Follower) error {
	return c.MemLog.Follow(ctx, after, otherClockFollower{f, c})
}

func (c otherClock) ReadUses(ctx context.Context, after events.Seq, max int) ([]events.UseMessage, error) {
	msgs, err := c.MemLog.ReadUses(ctx, after, max)
	for i := range msgs {
		msgs[i].Stored = c.at(msgs[i].Seq)
	}
	return msgs, err
}

type otherClockFollower struct {
	events.Follower
	log otherClock
}

func (f otherClockFollower) Apply(batch []events.Recorded) error {
	batch = slices.Clone(batch)
	for i := range batch {
		batch[i].Stored = f.log.at(batch[i].Seq)
	}
	return f.Follower.Apply(batch)
}

// TestClockOfTheLog sets the log's clock back all the time, so that the months run
// backwards too, or lets it jump far ahead once. Each row has the log's own time:
// one jump dates nothing that comes after it. A later run of the writer must not
// take for missing what an earlier one wrote under another time, and the rollups
// must count it.
func TestClockOfTheLog(t *testing.T) {
	for name, at := range map[string]func(events.Seq) events.Time{
		"set back": func(seq events.Seq) events.Time { return start.Add(time.Duration(3-int(seq)) * time.Hour) },
		"one jump": func(seq events.Seq) events.Time {
			if seq == 5 {
				return events.At(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC))
			}
			return start.Add(time.Duration(seq) * time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) { copyUnder(t, at) })
	}
}

func copyUnder(t *testing.T, at func(events.Seq) events.Time) {
	s := openStore(t, enginetest.Database(t))
	mem := logtest.New(t)
	log := otherClock{mem, at}
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
		stop := startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: time.Millisecond})
		waitCopied(t, s, mem)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		mark, err := s.Watermark(t.Context())
		if err != nil || mark.UsesSeq != events.Seq(n) || mark.StoredAt != max(at(mark.EventsSeq), at(mark.UsesSeq)) {
			t.Errorf("the copy is at %+v, %v", mark, err)
		}
	}
	for table, want := range map[string]events.Seq{"events": 19, "uses": 10, "use_batches": 10} {
		seen := events.Seq(0)
		err := s.each(t.Context(), "SELECT seq, toUnixTimestamp64Milli(stored) FROM "+table+" ORDER BY seq", nil, func(rows driver.Rows) error {
			var seq uint64
			var stored int64
			if err := rows.Scan(&seq, &stored); err != nil {
				return err
			}
			if seen = events.Seq(seq); events.Time(stored) != at(seen) {
				t.Errorf("%s: row %d is stored at %s, want %s", table, seq, events.Time(stored), at(seen))
			}
			return nil
		})
		if err != nil || seen != want {
			t.Errorf("%s ends at %d, %v", table, seen, err)
		}
	}
	if r, err := Reconcile(t.Context(), s, log, log.Reads(), log); err != nil || len(r.Mismatches) > 0 || r.Events != 19 || r.Uses != 9 {
		t.Fatalf("%+v, %v", r.Mismatches, err)
	}
	mem.TrimUses(8)
	if r, err := Reconcile(t.Context(), s, log, log.Reads(), log); err != nil || len(r.Mismatches) > 0 || r.UsesFrom != 9 {
		t.Fatalf("%+v, %v", r.Mismatches, err)
	}
}

// TestTalliesFillABlock: a message may hold as many tallies as uses, so they are bounded
// alike. A node that writes nothing else cannot exhaust the auditor's memory.
func TestTalliesFillABlock(t *testing.T) {
	log := logtest.New(t)
	publish(t, log, events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchOpen})
	const messages, each = 8, 60
	for i := range uint64(messages) {
		batch := events.UseBatch{Node: "n1", Epoch: 1, Kind: events.BatchSuppressed, First: 1 + i*each}
		for range each {
			batch.Tallies = append(batch.Tallies, events.Tally{Time: start, Until: start, Keyspace: "scribe", Reason: events.ReasonKeyUnknown, Count: 1})
		}
		publish(t, log, batch)
	}
	w := NewWriter(WriterConfig{Log: log, Reads: log.Reads(), Uses: log, Linger: time.Minute, MaxRows: 100})
	r := &useReader{w: w, log: events.LineageOf(log), nodes: places{}}
	for rows := 0; rows < messages*each; {
		b := newUseBlock()
		if err := r.fill(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if n := b.tN.Rows(); n < 100 || n >= 100+each {
			t.Fatalf("a block of %d tallies, want 100 and the rest of a message", n)
		}
		rows += b.tN.Rows()
	}
}
