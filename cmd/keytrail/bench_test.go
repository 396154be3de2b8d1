package main

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/verifier"
)

// TestBenchMeasuresNoRefusals: an endpoint that denies the key, or is no verifier, gives
// no figure, and the keys that were made are removed.
func TestBenchMeasuresNoRefusals(t *testing.T) {
	t.Setenv(asMain, "1")
	var asked, removed atomic.Int64
	var answer atomic.Value // the server may still be answering a question that bench gave up
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		one := answer.Load().(string)
		switch r.Method + " " + r.URL.Path {
		case "GET /v1/keyspaces/keytrail-bench":
			w.WriteHeader(404)
			w.Write([]byte(`{"title":"Not Found","status":404,"code":"not_found"}`))
		case "PUT /v1/keyspaces/keytrail-bench":
			w.Write([]byte(`{"data":{}}`))
		case "POST /v1/keyspaces/keytrail-bench/keys":
			w.Write([]byte(`{"data":{"id":"key_1","key":"ktbench_0123456789012345678901234567"},"position":"p"}`))
		case "POST /v1/keys/revoke":
			removed.Add(1)
			w.Write([]byte(`{"data":[],"next_cursor":null,"total":0}`))
		case "POST /v1/verify":
			if r.Header.Get("Authorization") != "" {
				t.Error("the verifier saw the operator key")
			}
			asked.Add(1)
			w.Write([]byte(one))
		case "POST /v1/verify/batch":
			fmt.Fprintf(w, `{"data":[%s]}`, strings.TrimSuffix(strings.Repeat(one+",", verifier.MaxBatch), ","))
		default:
			t.Errorf("%s %s came through", r.Method, r.URL)
		}
	}))
	defer endpoint.Close()
	bench := func() (string, string, int) {
		asked.Store(0)
		removed.Store(0)
		return cliAt(t, endpoint.URL, "kt_x", "bench", "verify", "--keys", "1", "--time", "100ms", "--clients", "2")
	}
	for _, tt := range []struct{ answer, want string }{
		{`{"allowed":false,"reason":"key_revoked","status":401}`, "denies a key that was made for it (1 key_revoked)"},
		{`{"allowed":true,"reason":"key_revoked","status":200}`, "does not answer as a verifier"},
		{`{"data":[]}`, "does not answer as a verifier"},
		{`<html>`, "does not answer as a verifier"},
	} {
		answer.Store(tt.answer)
		if out, errs, code := bench(); code != exitFailed || out != "" || !strings.Contains(errs, tt.want) || asked.Load() != 1 || removed.Load() == 0 {
			t.Errorf("%s: exit %d after %d questions, removed %d times: %s%s", tt.answer, code, asked.Load(), removed.Load(), out, errs)
		}
	}
	answer.Store(`{"allowed":true,"reason":"ok","status":200,"tenant":"t","use_id":"v/1/1"}`)
	if out, errs, code := bench(); code != 0 || !strings.Contains(out, "OF BARE") || removed.Load() == 0 {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}

// TestBench runs every bench on a deployment of separate roles.
func TestBench(t *testing.T) {
	t.Setenv(asMain, "1")
	c := startCluster(t, 2)
	t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
	v1, v2 := c.verifiers[0].url, c.verifiers[1].url
	bench := func(t *testing.T, report any, args ...string) {
		t.Helper()
		var out, errs string
		for again := patiently(t); ; again(errs) {
			var code int
			if out, errs, code = c.control.cli(t, append([]string{"--json", "bench"}, args...)...); code == 0 {
				break
			}
			if !strings.Contains(errs, "allowed no request") { // the machine stood still for longer than a lease
				t.Fatalf("bench %s: exit %d\n%s%s", args, code, out, errs)
			}
		}
		if err := json.Unmarshal([]byte(out), &struct{ Data any }{report}, json.MatchCaseInsensitiveNames(true), json.RejectUnknownMembers(true)); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if !strings.Contains(errs, "all keys of this run are revoked") {
			t.Errorf("it does not say what stays: %s", errs)
		}
		if live := rows[keyView](t, c.control.must(t, "--json", "key", "list", "--keyspace", "keytrail-bench", "--status", "active")); len(live) > 0 {
			t.Errorf("keys that live afterwards: %+v", live)
		}
	}
	t.Run("verify", func(t *testing.T) {
		var r verifyReport
		bench(t, &r, "verify", "--verifier", v1, "--verifier", v2, "--time", "300ms", "--clients", "2", "--rounds", "2", "--keys", "5")
		if len(r.Rows) != 6 || len(r.Batch) != 2 {
			t.Fatalf("%+v", r)
		}
		for i, row := range r.Rows {
			s := row.RequestsPerSecond
			if row.Allowed == 0 || row.Refused > 0 && row.Reasons[stale] != row.Refused || s.Max < s.Median || s.Median < s.Min || s.Max <= 0 ||
				(row.OfBare == nil) != (i < 2) || row.KeysPerRequest != []int{1, verifier.MaxBatch}[i%2] {
				t.Errorf("%+v", row)
			}
		}
	})
	t.Run("revoke", func(t *testing.T) {
		var r revocationReport
		bench(t, &r, "revoke", "--verifier", v1, "--verifier", v2, "--time", "100ms", "--clients", "2")
		if r.Revocations < 4 || r.AllowedAfterReceipt != 0 || len(r.Rows) != 6 {
			t.Fatalf("%+v", r)
		}
		refused := 0
		for i, want := range []string{"question", "acknowledged", "refused", "refused", "refused by all", "receipt"} {
			row := &r.Rows[i]
			if row.What != want || row.Count == 0 || row.MaxMicros < row.P99Micros || row.P99Micros < row.P50Micros {
				t.Errorf("%+v", row)
			}
			if want == "refused" {
				refused = row.Count
				if row.Answers.Reasons["key_revoked"] != row.Count {
					t.Errorf("%+v: %+v", row, row.Answers)
				}
			}
		}
		if refused+r.Rows[5].Count != r.Revocations {
			t.Errorf("%+v", r)
		}
	})
	t.Run("limits", func(t *testing.T) {
		var r limitsReport
		bench(t, &r, "limits", "--verifier", v1, "--verifier", v2, "--time", "600ms", "--clients", "4", "--per-minute", "6000", "--burst", "5")
		var sum tally
		for _, n := range r.Nodes {
			sum.add(&n.tally)
			if float64(n.Most.Admitted) > n.Most.Limit || n.Most.Admitted < 1 {
				t.Errorf("%+v", n)
			}
		}
		if r.Mode != "local" || len(r.Nodes) != 2 || sum.Allowed == 0 || sum.Allowed != r.All.Allowed || sum.Refused != r.All.Refused ||
			r.Steady.Allowed == 0 || r.Steady.Reasons["rate_limited"] > 0 || r.Steady.FalseRefusals != 0 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("exact limits", func(t *testing.T) {
		out, errs, code := c.control.cli(t, "--json", "bench", "limits", "--mode", "exact", "--verifier", v1, "--verifier", v2, "--time", "900ms", "--clients", "4", "--per-minute", "6000", "--burst", "20")
		var r struct {
			Data limitsReport `json:"data"`
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("exit %d: %v\n%s%s", code, err, out, errs)
		}
		all := &r.Data.All
		if r.Data.Mode != keyspace.LimitsExact || len(r.Data.Nodes) != 2 || all.Allowed == 0 || all.Refused == 0 || float64(all.Most.Admitted) > all.Most.Limit ||
			r.Data.OfAllowed == 0 || r.Data.OfAllowed > 1 || r.Data.Unlimited.Refused > 0 || r.Data.Steady.P99Micros == 0 || r.Data.Unlimited.P99Micros < r.Data.Unlimited.P50Micros {
			t.Errorf("%+v", r.Data)
		}
		// A machine under load may keep a node from its allocator for a while.
		if code != 0 && (r.Data.Steady.FalseRefusals <= falseRefusals || !strings.Contains(errs, "all were within the limit")) {
			t.Errorf("exit %d: %s", code, errs)
		}
	})
	t.Run("ingest", func(t *testing.T) {
		var r ingestReport
		bench(t, &r, "ingest", "--verifier", v1, "--verifier", v2, "--time", "500ms", "--clients", "2", "--keys", "3", "--rate", "2000")
		if r.Missing != 0 || r.Differing != 0 || r.Gaps != 0 || r.Verified.Uses == 0 || r.Seen.Uses != r.Verified.Uses || r.Verified.Uses%verifier.MaxBatch != 0 ||
			r.Verified.Allowed+r.Verified.Refused != r.Verified.Uses || r.Seen.MaxMicros < r.Seen.P50Micros || r.Seen.Looks < 2 {
			t.Errorf("%+v", r)
		}
	})
	out, errs, code := c.control.cli(t, "bench", "verify", "--verifier", v1, "--time", "50ms", "--clients", "1", "--rounds", "1", "--keys", "1")
	if code != 0 || !strings.Contains(out, "bare handler, batches of 100 ") || !strings.Contains(out, strings.TrimPrefix(v1, "http://")+", batches of 100 ") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
}

// TestBenchOfItsOwnNodes: a bench starts a deployment, breaks it, and leaves nothing of it.
func TestBenchOfItsOwnNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits until another control has taken over")
	}
	t.Setenv(asMain, "1")
	t.Setenv("TMPDIR", t.TempDir())
	out, errs, code := cliAt(t, "http://127.0.0.1:1", "kt_x", "--json", "bench", "limits", "--mode", "exact", "--nodes", "3", "--faults",
		"--time", "3s", "--clients", "4", "--per-minute", "6000", "--burst", "20", "--times", "4")
	var r struct {
		Data limitsReport `json:"data"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("exit %d: %v\n%s%s", code, err, out, errs)
	}
	if all := &r.Data.All; len(r.Data.Nodes) != 3 || all.Allowed == 0 || all.Refused == 0 || float64(all.Most.Admitted) > all.Most.Limit {
		t.Errorf("%+v", r.Data)
	}
	if code != 0 && !strings.Contains(errs, "all were within the limit") { // a machine under load
		t.Errorf("exit %d: %s", code, errs)
	}
	if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
		t.Errorf("%v stays, %v", left, err)
	}
}

// TestBenchLeavesNoKey: a bench that is interrupted, or fails, revokes what it has made,
// and touches no keyspace that is not its own.
func TestBenchLeavesNoKey(t *testing.T) {
	t.Setenv(asMain, "1")
	p := up(t, filepath.Join(t.TempDir(), "data"))
	active := func() int {
		out, errs, code := p.proves(t, "--json", "key", "list", "--keyspace", "keytrail-bench", "--status", "active")
		if code != 0 && !strings.Contains(errs, "(404 ") {
			t.Fatalf("exit %d: %s", code, errs)
		}
		if code != 0 {
			return 0
		}
		return len(rows[keyView](t, out))
	}
	uses := func() (n int) {
		for _, cell := range rows[struct{ Count int }](t, p.must(t, "--json", "audit", "usage", "--keyspace", "keytrail-bench")) {
			n += cell.Count
		}
		return n
	}
	setenv(t, "KEYTRAIL_ROOT_KEY", p.root)
	for _, tt := range []struct {
		args string
		uses int // it is measuring when so many are on the record
	}{
		{"verify --clients 1 --keys 3", 20},
		{"revoke", 5},
		{"limits", 20},
		{"ingest --rate 1000", 2 * verifier.MaxBatch},
	} {
		t.Run(strings.Fields(tt.args)[0], func(t *testing.T) {
			before := uses()
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			var out, errw lockedBuffer
			ended := make(chan int, 1)
			go func() { // joined below
				ended <- run(ctx, append([]string{"--url", p.url, "bench"}, strings.Fields(tt.args+" --time 5m")...), nil, &out, &errw)
			}()
			eventually(t, func() string {
				if uses() >= before+tt.uses {
					return ""
				}
				return "it measures nothing: " + errw.String()
			})
			interrupt()
			if code := <-ended; code != exitFailed || out.String() != "" || !strings.Contains(errw.String(), "interrupted") || !strings.Contains(errw.String(), "are revoked") {
				t.Errorf("exit %d: %s%s", code, out.String(), errw.String())
			}
			if n := active(); n > 0 {
				t.Errorf("%d keys live afterwards", n)
			}
		})
	}

	// Its verifier is gone: the keys that control made meanwhile are removed.
	out, errs, code := p.cli(t, "bench", "verify", "--keys", "2", "--verifier", "http://"+freeAddr(t))
	if code != exitFailed || out != "" || !strings.Contains(errs, "did not answer") || !strings.Contains(errs, "are revoked") || active() > 0 {
		t.Errorf("exit %d: %s%s, %d keys live", code, out, errs, active())
	}
	p.stop(t)

	p = up(t, filepath.Join(t.TempDir(), "data"))
	p.data(t, 200, "PUT", "/v1/keyspaces/keytrail-bench", map[string]any{"title": "ours", "key_types": []any{map[string]any{"name": "secret", "prefix": "sk_"}}})
	out, errs, code = p.cli(t, "bench", "verify")
	if code != exitFailed || out != "" || !strings.Contains(errs, "is not of a bench") || active() > 0 {
		t.Errorf("exit %d: %s%s, %d keys live", code, out, errs, active())
	}
	if got := p.data(t, 200, "GET", "/v1/keyspaces/keytrail-bench", nil); got["rev"] != 1.0 {
		t.Errorf("the keyspace of the operator was changed: %v", got)
	}
	p.stop(t)
}

// TestBenchMistakes: what is typed wrongly, or would load another machine, is refused
// before anything is asked.
func TestBenchMistakes(t *testing.T) {
	endpoint := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s came through", r.Method, r.URL)
	}))
	defer endpoint.Close()
	for _, tt := range []struct{ args, want string }{
		{"bench verify --clients 257", "at most 256 --clients"},
		{"bench verify --clients 0", "--clients wants at least 1"},
		{"bench verify --time 6m", "at most 5m0s of --time"},
		{"bench verify --keys 1001", "--keys: want 1 to 1000"},
		{"bench verify --rounds 101", "--rounds: want 1 to 100"},
		{"bench verify --verifier 127.0.0.1:7071", "--verifier (KEYTRAIL_VERIFY_URL): want a URL"},
		{"bench verify --verifier http://192.0.2.1:7071", "192.0.2.1:7071 is not on this machine: --remote"},
		{"bench verify --verifier http://u:hunter2@127.0.0.1:7071", "--verifier holds a password"},
		{"bench verify a-secret", "unexpected argument"},
		{"bench limits --burst 16", "--burst: want 17 to"},
		{"bench limits --per-minute 59", "--per-minute: want 60 to"},
		{"bench limits --mode global", "--mode: want local, exact or exact_else_local"},
		{"bench limits --nodes 65", "--nodes: want 1 to 64"},
		{"bench limits --faults", "--faults: want --nodes of 3 at least"},
		{"bench limits --nodes 3 --verifier http://127.0.0.1:7071", "want either it, or --verifier"},
		{"bench limits --times 1", "--times: want 2 to 100"},
		{"bench limits --per-minute 600000 --times 3", "at most 20000 requests a second"},
		{"bench ingest --rate 99", "--rate: want 100 to 100000"},
		{"bench ingest --keys 1001", "--keys: want 1 to 1000"},
		{"bench a-secret", "unknown command"},
	} {
		out, errs, code := cliAt(t, endpoint.URL, "kt_x", strings.Fields(tt.args)...)
		if code != exitUsage || out != "" || !strings.Contains(errs, tt.want) || strings.Contains(errs, "hunter2") {
			t.Errorf("%s: exit %d, %s%s", tt.args, code, out, errs)
		}
	}
	t.Setenv("KEYTRAIL_AUDIT_URL", "http://192.0.2.1:7072")
	if _, errs, code := cliAt(t, endpoint.URL, "kt_x", "bench", "verify"); code != exitUsage || !strings.Contains(errs, "192.0.2.1:7072 is not on this machine") {
		t.Errorf("exit %d, %s", code, errs)
	}
}

// A verifier cannot send the load, and the secrets in it, somewhere else.
func TestBenchFollowsNoRedirect(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the redirect was followed") }))
	defer elsewhere.Close()
	there := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer there.Close()
	hc := benchLoader(1)
	defer hc.CloseIdleConnections()
	if _, err := post(t.Context(), hc, there.URL+"/v1/verify", []byte("{}")); err == nil || !strings.Contains(err.Error(), "answered 307") {
		t.Error(err)
	}
}

// FuzzTally: an answer is counted whole or not at all.
func FuzzTally(f *testing.F) {
	f.Add([]byte(`{"allowed":true,"reason":"ok","use_id":"v/1/1"}`), 1)
	f.Add([]byte(`{"data":[{"allowed":true,"reason":"ok","use_id":"v/1/1"},{"allowed":false,"reason":"rate_limited"}]}`), 2)
	f.Add([]byte(`{"data":[{"error":{}}]}`), 1)
	f.Fuzz(func(t *testing.T, answer []byte, per int) {
		per = min(max(per, 1), verifier.MaxBatch)
		var c tally
		allowed, err := c.count(answer, per)
		if n := c.Allowed + c.Refused; err == nil && n != per || err != nil && n != 0 || allowed != c.Allowed || c.numbered.total() > per {
			t.Errorf("%d of %d: %+v, %v", allowed, per, c, err)
		}
		if c.Reasons.total() != c.Refused {
			t.Errorf("%+v", c)
		}
	})
}

// TestMostAdmitted: the span that is found is the worst of all, and no bucket that keeps
// its limit is said to exceed it, however late its answers arrive.
func TestMostAdmitted(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	rapid.Check(t, func(t *rapid.T) {
		perMinute, burst := rapid.Int64Range(60, 600_000).Draw(t, "per minute"), rapid.Int64Range(1, 20).Draw(t, "burst")
		perSecond := float64(perMinute) / 60
		late := rapid.IntRange(0, 50).Draw(t, "late")
		var list []admission
		at, owed := 0, int64(0) // in parts of a token, as a bucket counts
		for range rapid.IntRange(1, 100).Draw(t, "asked") {
			passed := rapid.IntRange(0, 30).Draw(t, "passed")
			at, owed = at+passed, max(owed-perMinute*int64(passed), 0)
			if owed+60_000 > burst*60_000 {
				continue
			}
			owed += 60_000
			list = append(list, admission{ms(at - rapid.IntRange(0, late).Draw(t, "sent")), ms(at + rapid.IntRange(0, late).Draw(t, "got"))})
		}
		got := mostAdmitted(list, perSecond, burst)
		if float64(got.Admitted) > got.Limit {
			t.Errorf("a bucket that keeps its limit: %+v of %v", got, list)
		}
		worst := math.Inf(-1)
		for _, from := range list {
			for _, to := range list {
				if from.sent > to.got {
					continue
				}
				n := 0
				for _, a := range list {
					if a.got <= to.got {
						n++
					}
					if a.sent < from.sent {
						n--
					}
				}
				worst = max(worst, float64(n)-float64(burst)-perSecond*(to.got-from.sent+grain).Seconds())
			}
		}
		if beyond := float64(got.Admitted) - got.Limit; math.Abs(beyond-worst) > 1e-6 {
			t.Errorf("%+v is %v beyond the limit, the worst is %v: %v", got, beyond, worst, list)
		}
	})
	// Two nodes that count alone, at once.
	var list []admission
	for range 2 * 10 {
		list = append(list, admission{ms(1), ms(2)})
	}
	if got := mostAdmitted(list, 1, 10); got.Admitted != 20 || got.OfLimit < 1.9 || got.OfLimit > 2 {
		t.Errorf("%+v", got)
	}
}

// TestUsesSeen: a batch is seen with the first look that counts all up to it.
func TestUsesSeen(t *testing.T) {
	s := func(n int) time.Duration { return time.Duration(n) * time.Second }
	answers := []usesAnswered{{s(2), 100}, {s(1), 100}, {s(3), 100}} // of two clients
	for _, tt := range []struct {
		looks []look
		want  usesSeen
	}{
		{[]look{{s(1), 2}, {s(2), 101}, {s(4), 102}, {s(5), 302}}, usesSeen{Uses: 300, PerSecond: 60, P50Micros: 3e6, P99Micros: 3e6, MaxMicros: 3e6, Looks: 4}},
		{[]look{{s(2), 102}, {s(4), 301}, {s(10), 301}}, usesSeen{Uses: 200, PerSecond: 50, P50Micros: 2e6, P99Micros: 2e6, MaxMicros: 2e6, Looks: 3}},
		{[]look{{s(1), 2}}, usesSeen{Looks: 1}},
	} {
		if got := seenOf(slices.Clone(answers), tt.looks, 2); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.looks, got, tt.want)
		}
	}
}

// TestUsesCompared: what is missing, too much, or there with another outcome is an error.
// A decision that was answered as verifier_stale may be on the record as it was made.
func TestUsesCompared(t *testing.T) {
	answered := uses{"ok": 90, "rate_limited": 5, "verifier_stale": 5}
	for _, tt := range []struct {
		record             uses
		missing, differing int
		want               string // of the error; "" = none
	}{
		{uses{"ok": 90, "rate_limited": 5, "verifier_stale": 5}, 0, 0, ""},
		{uses{"ok": 95, "rate_limited": 5}, 0, 0, ""},
		{uses{"ok": 96, "rate_limited": 4}, 0, 1, "1 uses with another outcome"},
		{uses{"ok": 89, "rate_limited": 5, "verifier_stale": 5}, 1, 0, "1 uses are not in the record"},
		{uses{"ok": 97, "rate_limited": 5, "verifier_stale": 5}, -7, 0, "7 uses more than were answered"},
		{nil, 100, 0, "100 uses are not in the record"},
	} {
		var r ingestReport
		r.compare(answered, tt.record)
		err := r.verdict()
		if r.Missing != tt.missing || r.Differing != tt.differing || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v: %+v, %v", tt.record, r, err)
		}
	}
	if err := (&ingestReport{Gaps: 1}).verdict(); err == nil || !strings.Contains(err.Error(), "1 new gaps") {
		t.Error(err)
	}
}

// TestBenchVerdicts: a figure that must not be is an error.
func TestBenchVerdicts(t *testing.T) {
	node := func(n int) limitsReport {
		return limitsReport{Nodes: []admitted{{Node: "v/1", Most: span{Micros: 1000, Admitted: n, Limit: 10.5}}}}
	}
	within, beyond, refused := node(10), node(11), node(10)
	together := node(10)
	together.Mode, together.All.Most = keyspace.LimitsExact, span{Micros: 1000, Admitted: 11, Limit: 10.5}
	refused.Steady = steady{tally: tally{Allowed: 97, Refused: 3, Reasons: uses{"rate_limited": 3}}, FalseRefusals: .03}
	for _, tt := range []struct {
		report benchReport
		want   string
	}{
		{&within, ""},
		{&beyond, "v admitted 11 requests within 1ms, and its limit allows 10.5"},
		{&together, "all nodes together admitted 11 requests within 1ms, and the limit allows 10.5"},
		{&refused, "3 of 100 requests were refused (3 rate_limited)"},
		{&revocationReport{}, ""},
		{&revocationReport{AllowedAfterReceipt: 2}, "2 answers allowed a key after its receipt"},
	} {
		if err := tt.report.verdict(); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt.report, err)
		}
	}
}
