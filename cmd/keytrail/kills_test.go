package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events/logtest"
)

var killRounds = flag.Int("kill-rounds", 12, "how many kills TestRecordSurvivesKills tries")

// TestRecordSurvivesKills keeps a verifier busy while the auditor, the ClickHouse
// engine, or both are killed again and again. Afterwards every single answer that
// was given is on the record once: the rollups add up to the answers counted here,
// and the doctor finds log and copy the same. KEYTRAIL_TEST_SEED replays a run.
func TestRecordSurvivesKills(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("KEYTRAIL_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("KEYTRAIL_TEST_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	c := startCluster(t, 1)
	supervised, stop := context.WithCancel(t.Context())
	var engineRun sync.WaitGroup
	engineRun.Go(func() { c.engine.Run(supervised) })
	defer engineRun.Wait()
	defer stop()

	c.control.must(t, "keyspace", "apply", "-f", regime)
	created := c.control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	v := c.verifiers[0]
	var answers atomic.Int64
	v.reached(t, map[string]any{"key": "nobody_0123456789abcdef", "min_position": created["__position"]}) // a use of no tenant
	if got := v.verify(t, map[string]any{"key": created["key"], "keyspace": "scribe-sight"}); got["reason"] != "ok" {
		t.Fatal("the new key: ", got)
	}
	answers.Add(1)
	busy, rest := context.WithCancel(t.Context())
	var load sync.WaitGroup
	defer load.Wait()
	defer rest()
	for i := range 4 {
		load.Go(func() {
			scopes := []string{"read", "write", "delete"}
			for n := 0; busy.Err() == nil; n++ {
				v.verify(t, map[string]any{"key": created["key"], "keyspace": "scribe-sight", "scope": scopes[(i+n)%3]})
				answers.Add(1)
			}
		})
	}
	rounds := *killRounds
	if testing.Short() {
		rounds = 4
	}
	cell := logtest.NewCell(t, "uses on the record while auditor and engine are killed", seed)
	for range rounds {
		cell.Tried(1)
		pause(time.Duration(50+rng.IntN(450)) * time.Millisecond)
		what := rng.IntN(3)
		if what != 1 {
			c.auditor.kill()
		}
		if what != 0 {
			c.engine.Kill()
		}
		if what != 1 {
			c.auditor = c.role(t, "auditor", "--name", "auditor-1", "--clickhouse", c.dsn)
		}
	}
	rest()
	load.Wait()

	want := answers.Load()
	eventually(t, func() string {
		out, errs, code := c.auditor.cli(t, "--json", "audit", "usage", "--tenant", "acme", "--per", "day")
		if code != 0 {
			return errs
		}
		var got int64
		for _, cell := range rows[struct{ Count int64 }](t, out) {
			got += cell.Count
		}
		if got > want {
			cell.Wrong("%d uses on the record, %d answers were given", got, want)
		}
		if got < want {
			return fmt.Sprintf("%d uses on the record, %d answers were given", got, want)
		}
		return ""
	})
	t.Setenv("KEYTRAIL_AUDIT_URL", c.auditor.url)
	eventually(t, func() string {
		out, errs, code := c.control.cli(t, "doctor", "--deep", "--nats", c.nats, "--clickhouse", c.dsn)
		if code != 0 || !strings.Contains(out, "are the same") {
			return fmt.Sprintf("doctor: exit %d\n%s%s", code, out, errs)
		}
		return ""
	})
	t.Logf("%d answers over %d kills, each on the record once", want, rounds)
}

// pause lets real processes run for a random while: where a kill lands is the
// point of the test.
func pause(d time.Duration) { <-time.After(d) }

// TestWrongCopyLeavesTheRest makes the copy in ClickHouse wrong under a running
// `up`: the record is refused with a sentence, and keys are verified and changed on.
func TestWrongCopyLeavesTheRest(t *testing.T) {
	eng := enginetest.Start(t, engine.Config{Dir: filepath.Join(t.TempDir(), "clickhouse")})
	supervised, stop := context.WithCancel(t.Context())
	var engineRun sync.WaitGroup
	engineRun.Go(func() { eng.Run(supervised) })
	defer engineRun.Wait()
	defer stop()
	p := up(t, filepath.Join(t.TempDir(), "data"), "--clickhouse", eng.DSN())
	p.must(t, "keyspace", "apply", "-f", regime)
	key := p.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})

	opts, err := clickhouse.ParseDSN(eng.DSN())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := clickhouse.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Exec(t.Context(), "INSERT INTO use_batches (seq, stored, node, epoch, kind, first, count, note) SELECT 1000000 AS seq, now64(3) AS stored, 'x' AS node, 1 AS epoch, 'open' AS kind, 1 AS first, 0 AS count, '' AS note"); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	eng.Kill() // the writer reads its offset anew
	eventually(t, func() string {
		status, v := p.do(t, "GET", "/v1/audit/events", nil, nil)
		if v["code"] != "copy_stopped" || status != 503 {
			return fmt.Sprint("the audit endpoint does not say that the copy has stopped: ", status, v)
		}
		return ""
	})
	eventually(t, func() string {
		if said := p.stderr.String(); !strings.Contains(said, "the use stream ends at message") {
			return "the log does not say why:\n" + said
		}
		return ""
	})
	p.wantReason(t, "ok", map[string]any{"key": key["key"], "keyspace": "scribe-sight", "scope": "read", "min_position": key["__position"]})
	revoked := p.data(t, 200, "DELETE", "/v1/keys/"+key["id"].(string), nil)
	p.wantReason(t, "key_revoked", map[string]any{"key": key["key"], "keyspace": "scribe-sight", "scope": "read", "min_position": revoked["__position"]})
	p.stop(t)

	// Another log is not mixed into this copy: the start is refused.
	foreign, err := trySpawn(t, nil, "up", "--dir", filepath.Join(t.TempDir(), "other"), "--listen", "127.0.0.1:0", "--clickhouse", eng.DSN())
	if err == nil {
		foreign.kill()
		t.Fatal("a second log was taken into the copy of the first")
	}
	if !strings.Contains(err.Error(), "log") || foreign.cmd.ProcessState.ExitCode() != exitFailed {
		t.Fatalf("exit %d: %v", foreign.cmd.ProcessState.ExitCode(), err)
	}
}
