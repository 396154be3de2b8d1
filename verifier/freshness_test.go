package verifier

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/keytrail/keytrail/events"
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
		lenient.Staleness = events.Staleness{MaxMillis: 1000, OnStale: "allow"}
		w.define("lenient", lenient)
		strict := scribeDefinition()
		strict.Staleness = events.Staleness{MaxMillis: 100}
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
			{time.Hour, "lenient", 0, events.ReasonOK},
			{51 * time.Millisecond, "lenient", 50 * time.Millisecond, events.ReasonVerifierStale},
			{10 * time.Second, "nobody", 0, events.ReasonKeyUnknown},
			{11 * time.Second, "nobody", 0, events.ReasonVerifierStale},
		} {
			w.beat()
			time.Sleep(c.after)
			req := &Request{Secret: events.NewSecret(secretOf(c.word)), MaxStaleness: c.max}
			if d := w.node.Decide(t.Context(), req); d.Reason != c.want {
				t.Errorf("%s after %s, at most %s: %s, want %s", c.word, c.after, c.max, d.Reason, c.want)
			}
		}
		if w.node.Ready() == nil {
			t.Error("ready after an hour of silence")
		}
		w.beat()
		if err := w.node.Ready(); err != nil {
			t.Error(err)
		}
		w.end()
		if w.node.Ready() == nil {
			t.Error("ready without a ledger")
		}
	})
}

// Either clock alone is enough to tell that the view is old.
func TestStalenessClocks(t *testing.T) {
	now := time.Unix(1_790_000_000, 0)
	log := logtest.NewMemLog()
	view := projections.NewKeys()
	n := NewNode(NodeConfig{View: view, Log: log.ID(), Ledger: testLedger(log, nil), Now: func() time.Time { return now }})
	if n.Staleness(now) != never || n.Ready() == nil {
		t.Fatal("a node that never caught up is stale")
	}
	beat := func(at time.Time) { view.Fresh(events.At(at), 0); n.Fresh(events.At(at), 0) }
	beat(now.Add(-3 * time.Second)) // the follower lags, or the log's clock is behind
	if s := n.Staleness(now); s != 3*time.Second {
		t.Errorf("%s", s)
	}
	beat(now.Add(time.Hour)) // the node's clock is an hour behind the log's
	if s := n.Staleness(now); s != 0 {
		t.Errorf("%s", s)
	}
	now = now.Add(11 * time.Second)
	if s := n.Staleness(now); s != 11*time.Second {
		t.Errorf("%s: the steady clock must tell", s)
	}
}

func TestMinPosition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		a := w.key("plain", nil)
		req := &Request{Secret: events.NewSecret(secretOf("plain"))}
		at := func(seq events.Seq) events.Position { return events.Position{Log: w.log.ID(), Seq: seq} }

		// The revocation is in the log, and not yet in the view: whoever names its
		// position waits for it and never sees the key alive.
		req.MinPosition = at(logtest.Append(t, w.log, a, &events.KeyRevoked{Code: events.RevokeCompromise}))
		if d := Verify(w.view, req, events.At(time.Now())); !d.Allowed() {
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
		req.MinPosition = events.Position{Log: events.LogID{1}, Seq: 1}
		if d := w.node.Decide(t.Context(), req); d.Reason != events.ReasonVerifierStale {
			t.Errorf("a foreign position: %s", d.Reason)
		}
		w.end()
	})
}

func TestLedgerModes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		sync := scribeDefinition()
		sync.Ledger = events.LedgerSync
		w.define("sync", sync)
		w.key("plain", nil)
		w.keyIn("sync", "acme", secretOf("sync"), nil)
		ask := func(word string) Decision {
			w.beat()
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
		go func() { ended <- projections.Follow(ctx, w.log, w.view.At(), w.view, w.node) }()
		ref := logtest.NewKeyRef(scribe, "acme")
		c := logtest.Created(secretOf("live"))
		seq := logtest.Append(t, w.log, ref.Aggregate(), c)
		req := &Request{Secret: events.NewSecret(secretOf("live")), Keyspace: scribe, MinPosition: events.Position{Log: w.log.ID(), Seq: seq}}
		if d := w.node.Decide(t.Context(), req); !d.Allowed() {
			t.Fatal(d.Reason)
		}
		time.Sleep(time.Hour) // heartbeats keep it fresh
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
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		w.end()
	})
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := doorsWorld(t, nil)
		w.ask("> POST /v1/verify\n" + `{"key":"$plain"}`)
		w.ask("> POST /v1/verify\n" + `{"key":"$revoked"}`)
		time.Sleep(time.Second)
		synctest.Wait()
		text := scrape(t, w.node)
		for _, want := range []string{
			`keytrail_verifier_decisions_total{reason="ok"} 1`,
			`keytrail_verifier_decisions_total{reason="key_revoked"} 1`,
			`keytrail_verifier_decisions_total{reason="key_unknown"} 0`,
			`keytrail_verifier_request_seconds_count{door="verify"} 2`,
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
