package verifier

import (
	"bytes"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/keytrail/keytrail/events"
)

// Answers are counted by the reason that was given, whatever the record says, and a count
// never falls: not even when an amendment is seen before the decision that it amends.
func TestDecisionsAreCountedAsAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := testLedger(nil, func(c *LedgerConfig) { c.Sink, c.Log = nowhere{}, events.LogID{1} })
		c := &decisionCount{ledger: l, desc: prometheus.NewDesc("decisions", "-", []string{"reason"}, nil)}
		want := func(ok, stale string) {
			t.Helper()
			text := string(shown(t, c))
			for reason, n := range map[string]string{"ok": ok, "verifier_stale": stale} {
				if line := "decisions{reason=\"" + reason + "\"} " + n + "\n"; !strings.Contains(text, line) {
					t.Errorf("no line %q in\n%s", line, text)
				}
			}
		}
		stop := run(t, l)
		synctest.Wait()
		mustAppend(t, l, 3)
		p, ok := pause(l, testUse(4))
		if !ok {
			t.Fatal("the slab has room")
		}
		c.answered(events.ReasonOK, events.ReasonOK)
		want("3", "0")
		c.answered(events.ReasonOK, events.ReasonVerifierStale) // the paused one, before it is written
		want("3", "1")
		p.finish()
		want("3", "1")
		mustAppend(t, l, 1)
		want("4", "1")
		c.answered(events.ReasonNone, events.ReasonVerifierStale) // without a record
		want("4", "2")
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		want("4", "2")
	})
}

// A histogram with a stripe for each processor adds up, however many observe at once.
func TestLatencyAddsUp(t *testing.T) {
	l := newLatency("seconds", "-", "verify", "batch")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				l.endpoints["verify"].Observe(20e-6)
				l.endpoints["verify"].Observe(0.015)
				l.endpoints["verify"].Observe(6)
			}
		})
	}
	all.Wait()
	text := shown(t, l)
	for _, line := range []string{
		`seconds_bucket{endpoint="verify",le="2e-05"} 8000`,
		`seconds_bucket{endpoint="verify",le="0.005"} 8000`,
		`seconds_bucket{endpoint="verify",le="0.02"} 16000`,
		`seconds_bucket{endpoint="verify",le="5"} 16000`,
		`seconds_bucket{endpoint="verify",le="+Inf"} 24000`,
		`seconds_count{endpoint="verify"} 24000`,
		`seconds_sum{endpoint="verify"} 48120.16`,
		`seconds_count{endpoint="batch"} 0`,
	} {
		if !bytes.Contains(text, []byte(line+"\n")) {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
}

// shown returns what c shows.
func shown(t *testing.T, c prometheus.Collector) []byte {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
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

// An answer of a node whose ledger is closed has no record, and is counted all the same.
func TestAnswersWithoutARecordAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := endpointsWorld(t, nil)
		ask := "> POST /v1/verify\n" + `{"key":"$plain"}`
		w.ask(ask)
		w.end()
		w.ask(ask)
		text := string(scrape(t, w.node))
		for _, line := range []string{`{reason="ok"} 1`, `{reason="verifier_stale"} 1`} {
			if !strings.Contains(text, "keytrail_verifier_decisions_total"+line+"\n") {
				t.Errorf("no line %s", line)
			}
		}
	})
}
