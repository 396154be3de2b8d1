package verifier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
)

// scrape returns what a scrape of the node's metrics shows; it fails the test
// when they do not fit into one registry.
func scrape(t testing.TB, n *Node) []byte {
	reg := prometheus.NewPedanticRegistry()
	for _, c := range n.Collectors() {
		reg.MustRegister(c)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&out, f); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func TestStaleness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		lenient := scribeDefinition()
		lenient.Staleness = keyspace.Staleness{MaxMillis: 1000, OnStale: "allow"}
		w.define("lenient", lenient)
		strict := scribeDefinition()
		strict.Staleness = keyspace.Staleness{MaxMillis: 100}
		w.define("strict", strict)
		w.key("plain", nil)
		w.keyIn("lenient", "acme", secretOf("lenient"), nil)
		w.keyIn("strict", "acme", secretOf("strict"), nil)
		for _, c := range []struct {
			after time.Duration
			word  string
			max   time.Duration
			want  events.Reason
		}{
			{10 * time.Second, "plain", 0, events.ReasonOK},
			{10*time.Second + time.Millisecond, "plain", 0, events.ReasonVerifierStale},
			{10*time.Second + time.Millisecond, "plain", time.Hour, events.ReasonVerifierStale}, // a request cannot loosen the bound
			{50 * time.Millisecond, "plain", 50 * time.Millisecond, events.ReasonOK},
			{51 * time.Millisecond, "plain", 50 * time.Millisecond, events.ReasonVerifierStale},
			{100 * time.Millisecond, "strict", 0, events.ReasonOK},
			{101 * time.Millisecond, "strict", 0, events.ReasonVerifierStale},
			{time.Minute, "lenient", 0, events.ReasonOK},
			{time.Minute + time.Millisecond, "lenient", 0, events.ReasonVerifierStale}, // the node's ceiling
			{51 * time.Millisecond, "lenient", 50 * time.Millisecond, events.ReasonVerifierStale},
			{10 * time.Second, "nobody", 0, events.ReasonKeyUnknown},
			{11 * time.Second, "nobody", 0, events.ReasonVerifierStale},
		} {
			w.heartbeat()
			time.Sleep(c.after)
			req := &Request{Secret: events.NewSecret(secretOf(c.word)), MaxStaleness: c.max}
			if d := w.node.Decide(t.Context(), req); d.Reason != c.want {
				t.Errorf("%s after %s, at most %s: %s, want %s", c.word, c.after, c.max, d.Reason, c.want)
			}
		}
		if w.node.Ready() == nil {
			t.Error("ready with an old lease")
		}
		w.heartbeat()
		if err := w.node.Ready(); err != nil {
			t.Error(err)
		}
		w.end()
		if w.node.Ready() == nil {
			t.Error("ready without a ledger")
		}
	})
}

// Either clock alone is enough to tell that the view is old: the wall clock after a
// suspension, the steady one when somebody sets the other back. Nobody else's clock
// counts.
func TestStalenessClocks(t *testing.T) {
	now, steady := time.Unix(1_790_000_000, 0), time.Duration(0)
	log := logtest.NewMemLog()
	view := projections.NewKeys()
	n := NewNode(NodeConfig{View: view, Leases: log, Log: log.ID(), Ledger: testLedger(log, nil),
		Now: func() time.Time { return now }, Steady: func() time.Duration { return steady }})
	if n.Staleness(now) != never || n.Ready() == nil {
		t.Fatal("a node without a lease is stale")
	}
	if err := log.Raise(t.Context(), events.Head{Log: log.ID()}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Confirm(t.Context()); err != nil || n.Staleness(now) != never {
		t.Fatalf("a view that has never caught up is no ground for an answer: %s, %v", n.Staleness(now), err)
	}
	view.Fresh(events.At(now.Add(-time.Hour)), 0) // the log's clock is an hour behind
	for _, c := range []struct {
		name               string
		wall, steady, want time.Duration
	}{
		{"nothing passes", 0, 0, 0},
		{"both go on", 3 * time.Second, 3 * time.Second, 3 * time.Second},
		{"suspended", time.Minute, 0, time.Minute},
		{"set back", -time.Hour, 11 * time.Second, 11 * time.Second},
		{"set forward", time.Hour, time.Second, time.Hour},
	} {
		if _, err := n.Confirm(t.Context()); err != nil || n.Staleness(now) != 0 {
			t.Fatalf("%s: %s, %v", c.name, n.Staleness(now), err)
		}
		now, steady = now.Add(c.wall), steady+c.steady
		if s := n.Staleness(now); s != c.want {
			t.Errorf("%s: %s, want %s", c.name, s, c.want)
		}
	}
}

// A wall clock that is set back after a suspension does not hide it, and a lease that
// was asked for while the wall clock was ahead does not last longer for it.
func TestElapsed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var e elapsed
		var now reading // what the clocks say
		start := now
		e.base.Store(&start)
		real, marked, realMarked := time.Duration(0), time.Duration(0), time.Duration(0)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			// In one step the machine runs, and is suspended or has its clock set.
			ran := time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "ran"))
			slept := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "slept"))
			set := time.Duration(rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "set"))
			if rapid.Bool().Draw(t, "either") {
				slept = 0
			} else {
				set = 0
			}
			now.steady += ran
			now.wall += ran + slept + set
			real += ran + slept
			if got := e.at(now) - marked; got < real-realMarked {
				t.Fatalf("%s passed since a mark, measured as %s", real-realMarked, got)
			}
			if m := e.mark(now); rapid.Bool().Draw(t, "asks") {
				marked, realMarked = m, real
			}
		}
	})
}

func TestMinPosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		a := w.key("plain", nil)
		req := &Request{Secret: events.NewSecret(secretOf("plain"))}
		at := w.position

		// The revocation is in the log, and not yet in the view: whoever names its
		// position waits for it and never sees the key alive.
		req.MinPosition = at(logtest.Append(t, w.log, a, &events.KeyRevoked{Code: events.RevokeCompromise}))
		if d := Verify(w.view, &w.node.buckets, req, events.At(time.Now())); !d.Allowed() {
			t.Fatalf("the view is still behind: %s", d.Reason)
		}
		answer := make(chan Decision)
		go func() { answer <- w.node.Decide(t.Context(), req) }()
		time.Sleep(time.Second)
		synctest.Wait()
		w.fold()
		if d := <-answer; d.Reason != events.ReasonKeyRevoked || d.Seq != req.MinPosition.Seq {
			t.Errorf("%s at %d", d.Reason, d.Seq)
		}

		began := time.Now()
		req.MinPosition = at(w.view.At() + 1)
		if d := w.node.Decide(t.Context(), req); d.Reason != events.ReasonVerifierStale || time.Since(began) != 2*time.Second {
			t.Errorf("a position that does not come: %s after %s", d.Reason, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if d := w.node.Decide(ctx, req); d.Reason != events.ReasonVerifierStale || ctx.Err() == nil {
			t.Errorf("the request's own deadline is shorter: %s", d.Reason)
		}
		restored := at(w.view.At() - 1)
		restored.History[3] ^= 1
		for _, foreign := range []events.Position{{Log: events.LogID{1}, Seq: 1}, restored, {Log: w.log.ID(), Seq: 1}} {
			req.MinPosition = foreign
			if d := w.node.Decide(t.Context(), req); d.Reason != events.ReasonVerifierStale || d.Use.N != 0 {
				t.Errorf("a foreign position: %s, use %s", d.Reason, d.Use)
			}
		}
		w.end()
	})
}

func TestLedgerModes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		sync := scribeDefinition()
		sync.Ledger = keyspace.LedgerSync
		w.define("sync", sync)
		w.key("plain", nil)
		w.keyIn("sync", "acme", secretOf("sync"), nil)
		ask := func(word string) Decision {
			w.heartbeat()
			return w.node.Decide(t.Context(), &Request{Secret: events.NewSecret(secretOf(word))})
		}
		if d := ask("sync"); !d.Allowed() || w.ledger.Buffered() != 0 {
			t.Fatalf("%s, %d not durable", d.Reason, w.ledger.Buffered())
		}
		w.log.SetDown(true)
		if d := ask("sync"); d.Reason != events.ReasonVerifierStale || d.Status != 503 || d.Use.N != 2 {
			t.Errorf("a use that could not be made durable: %s, use %d", d.Reason, d.Use.N)
		}
		if d := ask("plain"); !d.Allowed() {
			t.Errorf("async: %s", d.Reason)
		}
		w.log.SetDown(false)
		time.Sleep(5 * time.Second)
		if d := ask("sync"); !d.Allowed() {
			t.Errorf("the stream is back: %s", d.Reason)
		}
		e := w.end()[0]
		if e.uses[2].Reason != events.ReasonOK || e.end != 4 {
			t.Errorf("the record holds the decision as it was made: %+v", e.uses[2])
		}
		if d := ask("plain"); d.Reason != events.ReasonVerifierStale || d.Use.N != 0 {
			t.Errorf("without an open epoch nothing is allowed: %s", d.Reason)
		}
	})
}

// The whole way, with the real follower in the background.
func TestNodeFollowsTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- projections.Follow(ctx, w.log, w.view, w.node) }()
		leased := make(chan error, 1)
		go func() { leased <- w.node.RunLease(ctx) }()
		ref := logtest.NewKeyRef(scribe, "acme")
		c := logtest.Created(secretOf("live"))
		seq := logtest.Append(t, w.log, ref.Aggregate(), c)
		if err := w.log.Raise(ctx, events.Head{Log: w.log.ID(), Size: seq}); err != nil {
			t.Fatal(err)
		}
		req := &Request{Secret: events.NewSecret(secretOf("live")), Keyspace: scribe, MinPosition: w.position(seq)}
		if d := w.node.Decide(t.Context(), req); !d.Allowed() {
			t.Fatal(d.Reason)
		}
		time.Sleep(time.Hour) // renewals keep it fresh
		if d := w.node.Decide(t.Context(), req); !d.Allowed() {
			t.Fatal(d.Reason)
		}
		w.log.SetDown(true)
		time.Sleep(11 * time.Second)
		if d := w.node.Decide(t.Context(), req); d.Reason != events.ReasonVerifierStale {
			t.Fatal(d.Reason)
		}
		w.log.SetDown(false)
		time.Sleep(time.Second)
		if d := w.node.Decide(t.Context(), req); !d.Allowed() {
			t.Fatal(d.Reason)
		}
		cancel()
		for _, err := range []error{<-ended, <-leased} {
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
		}
		if d := w.node.Decide(t.Context(), req); d.Allowed() {
			t.Error("an answer on a lease that was given back")
		}
		nodes, err := w.log.Nodes(t.Context(), 0)
		if err != nil || len(nodes.Leases) != 1 {
			t.Fatalf("%+v, %v", nodes, err)
		}
		if r := nodes.Leases[0]; r.State != events.LeaseEnded || r.Applied.Size != w.view.At() || r.Life() != DefaultStaleCeiling || r.Decisions != 4 {
			t.Errorf("the record at the end: %+v", r)
		}
		w.end()
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		w.ask("> POST /v1/verify\n" + `{"key":"$plain"}`)
		w.ask("> POST /v1/verify\n" + `{"key":"$revoked"}`)
		time.Sleep(time.Second)
		synctest.Wait()
		text := scrape(t, w.node)
		for _, want := range []string{
			`keytrail_verifier_decisions_total{reason="ok"} 1`,
			`keytrail_verifier_decisions_total{reason="key_revoked"} 1`,
			`keytrail_verifier_decisions_total{reason="key_unknown"} 0`,
			`keytrail_verifier_request_seconds_count{endpoint="verify"} 2`,
			`keytrail_verifier_ledger_published_total 2`,
			`keytrail_verifier_ledger_buffered 0`,
			`keytrail_verifier_ledger_gaps_total 0`,
			`keytrail_verifier_staleness_seconds 1`,
		} {
			if !bytes.Contains(text, []byte(want+"\n")) {
				t.Errorf("no line %s", want)
			}
		}
		w.end()
	})
}

// A clock that disagrees with the log's is told, with the metric that says by how
// much; the node stays ready.
func TestClockOffset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		for _, c := range []struct {
			offset time.Duration // of this node's clock to the log's
			clock  string
		}{
			{0, "<nil>"}, {1900 * time.Millisecond, "<nil>"}, {-1900 * time.Millisecond, "<nil>"},
			{5 * time.Minute, "5m0s ahead of the log's: keys expire that much early"},
			{-5 * time.Minute, "5m0s behind the log's: keys expire that much late"},
		} {
			w.heartbeat()
			w.node.Fresh(events.At(time.Now().Add(-c.offset)), w.view.At())
			if got := w.node.ClockOffset(); got != c.offset {
				t.Errorf("offset %s, want %s", got, c.offset)
			}
			if got := fmt.Sprint(w.node.Clock()); !strings.Contains(got, c.clock) {
				t.Errorf("clock with an offset of %s: %s, want %q", c.offset, got, c.clock)
			}
			if err := w.node.Ready(); err != nil {
				t.Errorf("not ready with an offset of %s: %v", c.offset, err)
			}
			if want := fmt.Sprintf("keytrail_verifier_clock_offset_seconds %g", c.offset.Seconds()); !strings.Contains(string(scrape(t, w.node)), want) {
				t.Errorf("the metrics do not say %s", want)
			}
		}
	})
}
