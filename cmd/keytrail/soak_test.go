package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/keytrail/keytrail/events/keyspace"
)

var (
	soakFor  = flag.Duration("soak", 5*time.Second, "how long TestSoak keeps the deployment under load")
	soakSeed = flag.Uint64("soak-seed", 0, "what it draws with; 0 draws one")
)

// soaked is a deployment that is asked and changed for long while its processes are
// killed, stopped, paused and started again. control-2 and verifier-2 are left alone:
// what they hold in memory is measured, and verifier-2 loses no use.
type soaked struct {
	*upgraded
	t      *testing.T
	limit  keyspace.Limit
	shared *loadKey // the key with the exact limit
	began  time.Time
	asked  [2]map[string]*soakCount // by verifier and keyspace

	mu         sync.Mutex
	admissions []admission // guarded by mu
	faults     map[string]int
	limited    int // refusals by the limit
}

// soakCount is what one verifier was asked about one keyspace, and how often it answered.
type soakCount struct{ asked, answered, stale atomic.Int64 }

// soakKeys is how many keys are changed again and again.
const soakKeys = 200

// TestSoak keeps a deployment under load for -soak, with limits on: keys are changed,
// roles redefined, keys revoked with receipts, while JetStream, ClickHouse and the nodes
// are killed and started again. No answer is other than what was acknowledged, no window
// admits more than the limit, every use that a caller had an answer to is on the record
// once (of a killed verifier those of the keyspace with ledger sync), log and copy are
// the same, and the processes that were left alone hold no more memory at the end.
// `make soak` runs it for half an hour.
func TestSoak(t *testing.T) {
	if testing.Short() {
		t.Skip("it is a run of the whole deployment")
	}
	seed := *soakSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-soak-seed %d", seed)
	s := startSoak(t)
	ctx, stop := context.WithTimeout(t.Context(), *soakFor)
	defer stop()
	var load sync.WaitGroup
	for i := range s.controls {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		load.Go(func() { s.churn(ctx, r, i) })
	}
	for i := range s.verifiers {
		load.Go(func() { s.use(ctx, i, "shop", 5*time.Millisecond) })
		load.Go(func() { s.use(ctx, i, "bank", 10*time.Millisecond) })
		load.Go(func() { s.spend(ctx, i) })
	}
	sizes := make(chan []soakSize, 1)
	go func() { sizes <- s.weigh(ctx) }()
	s.hurt(ctx, rand.New(rand.NewPCG(seed, 9)))
	load.Wait()
	s.settled()
	s.wantFlat(<-sizes)
	answers := int64(0)
	for i := range s.asked {
		for name, n := range s.asked[i] {
			t.Logf("verifier-%d, %s: %d asked, %d answered, of them %d stale", i+1, name, n.asked.Load(), n.answered.Load(), n.stale.Load())
			answers += n.answered.Load()
		}
	}
	t.Logf("%s: %d changes, %d answers, %d admitted and %d refused by the limit, faults %v", *soakFor, s.changes.Load(), answers, len(s.admissions), s.limited, s.faults)
}

func startSoak(t *testing.T) *soaked {
	c := startCluster(t, 0)
	c.control.stop(t)
	c.auditor.stop(t)
	s := &soaked{upgraded: &upgraded{cluster: c}, t: t, limit: keyspace.Limit{PerMinute: 3000, Burst: 100}, faults: map[string]int{}}
	supervised, stop := context.WithCancel(t.Context())
	var engineRun sync.WaitGroup
	engineRun.Go(func() { c.engine.Run(supervised) })
	t.Cleanup(func() { stop(); engineRun.Wait() })
	dir := t.TempDir()
	start := func(role, name string, more ...string) *part {
		p := &part{args: append([]string{role, "--nats", c.nats, "--listen", "127.0.0.1:0", "--name", name, "--dir", filepath.Join(dir, name)}, more...)}
		s.run(t, p, os.Args[0])
		return p
	}
	for _, n := range []string{"1", "2"} {
		s.controls = append(s.controls, start("control", "control-"+n))
		s.verifiers = append(s.verifiers, start("verifier", "verifier-"+n))
	}
	s.auditor = start("auditor", "auditor-1", "--clickhouse", c.dsn)
	for i := range s.asked {
		s.asked[i] = map[string]*soakCount{"shop": {}, "bank": {}}
	}
	for name, ledger := range map[string]string{"shop": "async", "bank": "sync"} {
		s.define(t.Context(), name, ledger, 0)
	}
	for i := range soakKeys {
		s.keys = append(s.keys, s.create(t.Context(), "shop", fmt.Sprint("k", i), nil))
	}
	s.keys = append(s.keys, s.create(t.Context(), "bank", "sync", nil))
	s.shared = s.create(t.Context(), "shop", "shared", &s.limit)
	s.began = time.Now()
	return s
}

// soakAnswer is what an endpoint of control answers.
type soakAnswer struct {
	Data     struct{ ID, Key string }
	Position string
	Receipt  struct{ Complete bool }
	again    bool // it is a refusal to do again what a lost answer did
}

// must calls an endpoint of control until the control is there, and insists on the
// status, but for a refusal to do again what a lost answer did. It gives up when ctx ends.
func (s *soaked) must(ctx context.Context, p *part, want int, method, path string, body any) (v soakAnswer) {
	in, _ := json.Marshal(body)
	for tries := 0; ctx.Err() == nil; tries++ {
		req, err := http.NewRequestWithContext(ctx, method, p.url.Load().(string)+path, bytes.NewReader(in))
		if err != nil {
			s.t.Error(err)
			return v
		}
		req.Header.Set("Authorization", "Bearer "+s.root)
		req.Header.Set("Content-Type", "application/json")
		status, data := 0, []byte(nil)
		if resp, err := soakClient.Do(req); err == nil {
			status = resp.StatusCode
			if data, err = io.ReadAll(resp.Body); err != nil {
				status = 0
			}
			resp.Body.Close()
		}
		switch {
		case away(status):
			rest(ctx, 20*time.Millisecond)
		case status == http.StatusConflict && tries > 0:
			v.again = true
			return v
		default:
			if err := json.Unmarshal(data, &v); err != nil || status != want && status != http.StatusAccepted {
				s.t.Errorf("%s %s: %d, want %d: %s", method, path, status, want, data)
			}
			return v
		}
	}
	return v
}

// define defines a keyspace; round tells its versions apart.
func (s *soaked) define(ctx context.Context, name, ledger string, round int) {
	s.must(ctx, s.controls[1], 200, "PUT", "/v1/keyspaces/"+name, map[string]any{
		"key_types": []any{map[string]any{"name": "secret", "prefix": "sk_"}}, "limits": "exact", "ledger": ledger,
		"scopes": []any{map[string]any{"name": "read"}, map[string]any{"name": fmt.Sprint("extra", round%2)}}})
}

func (s *soaked) create(ctx context.Context, space, name string, limit *keyspace.Limit) *loadKey {
	body := map[string]any{"tenant": "acme", "name": name, "scopes": []string{"read"}}
	if limit != nil {
		body["limit"] = map[string]any{"per_minute": limit.PerMinute, "burst": limit.Burst}
	}
	v := s.must(ctx, s.controls[1], 201, "POST", "/v1/keyspaces/"+space+"/keys", body)
	return &loadKey{id: v.Data.ID, secret: v.Data.Key, position: v.Position}
}

// ask asks verifier i once and counts it. It returns no reason when there is no answer.
func (s *soaked) decide(i int, space, secret, position string) (reason string) {
	n := s.asked[i][space]
	body := map[string]any{"key": secret, "keyspace": space, "scope": "read"}
	if position != "" {
		body["min_position"] = position
	}
	b, _ := json.Marshal(body)
	n.asked.Add(1)
	resp, err := soakClient.Post(s.verifiers[i].url.Load().(string)+"/v1/verify", "application/json", bytes.NewReader(b))
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	var a struct{ Reason string }
	if err != nil || resp.StatusCode != http.StatusOK || json.Unmarshal(data, &a) != nil {
		if resp.StatusCode/100 == 4 {
			s.t.Errorf("verify: %s: %s", resp.Status, data)
		}
		return "" // it is away, or could not store the use in time
	}
	n.answered.Add(1)
	if a.Reason == stale {
		n.stale.Add(1)
	}
	return a.Reason
}

// soakClient gives no answer up: what has one is counted.
var soakClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}

// use asks a verifier about the keyspace's keys until ctx ends.
func (s *soaked) use(ctx context.Context, i int, space string, every time.Duration) {
	for n := 0; ctx.Err() == nil; n++ {
		rest(ctx, every)
		k := s.keys[n%soakKeys]
		if space == "bank" {
			k = s.keys[soakKeys]
		}
		switch reason := s.decide(i, space, k.secret, ""); reason {
		case "", "ok", stale, "rate_limited", "key_disabled":
			if space == "bank" && reason == "key_disabled" {
				s.t.Errorf("bank: %s", reason)
			}
		default:
			s.t.Errorf("%s: verifier-%d answers %s", space, i+1, reason)
			return
		}
	}
}

// spend asks for the shared key at twice its rate, over all verifiers.
func (s *soaked) spend(ctx context.Context, i int) {
	for ctx.Err() == nil {
		rest(ctx, time.Duration(float64(time.Minute)/float64(s.limit.PerMinute)))
		sent := time.Since(s.began)
		reason := s.decide(i, "shop", s.shared.secret, "")
		got := time.Since(s.began)
		s.mu.Lock()
		switch reason {
		case "ok":
			s.admissions = append(s.admissions, admission{sent, got})
		case "rate_limited":
			s.limited++
		case "", stale:
		default:
			s.t.Errorf("the shared key: %s", reason)
		}
		s.mu.Unlock()
	}
}

// churn changes keys by one control until ctx ends: each control has every other key.
// After a change was acknowledged no verifier answers by what was before.
func (s *soaked) churn(ctx context.Context, r *rand.Rand, c int) {
	p := s.controls[c]
	for n := 0; ctx.Err() == nil; n++ {
		rest(ctx, 50*time.Millisecond)
		k := s.keys[c+2*r.IntN(soakKeys/2)]
		path := "/v1/keys/" + k.id
		switch draw := r.IntN(100); {
		case draw < 2 && c == 1:
			s.define(ctx, "shop", "async", n)
		case draw < 5:
			s.revoked(ctx, r, c, n)
		case draw < 40:
			s.must(ctx, p, 200, "POST", path+"/disable", map[string]any{"reason": "soak"})
			v := s.must(ctx, p, 200, "POST", path+"/enable", map[string]any{})
			s.wants(ctx, r, "shop", k.secret, v.Position, "ok")
		case draw < 70:
			s.must(ctx, p, 200, "PATCH", path, map[string]any{"name": fmt.Sprintf("name %d-%d", c, n)})
		default:
			s.must(ctx, p, 200, "PUT", path+"/limit", map[string]any{"limit": map[string]any{"per_minute": 60_000 + n%100, "burst": 1000}})
		}
		s.changes.Add(1)
	}
}

// revoked makes a key, lets both verifiers allow it, and revokes it with a receipt.
func (s *soaked) revoked(ctx context.Context, r *rand.Rand, c, n int) {
	k := s.create(ctx, "shop", fmt.Sprintf("short %d-%d", c, n), nil)
	if k.id == "" {
		return // its answer was lost
	}
	s.wants(ctx, r, "shop", k.secret, k.position, "ok")
	v := s.must(ctx, s.controls[1], 200, "DELETE", "/v1/keys/"+k.id+"?wait=applied&wait_timeout=50s", map[string]any{})
	for i := range s.verifiers {
		if v.again {
			break // it is revoked, and nobody said as of when
		}
		position := v.Position
		if v.Receipt.Complete {
			position = "" // then it holds without a position
		}
		if reason := s.decide(i, "shop", k.secret, position); reason == "ok" && ctx.Err() == nil {
			s.t.Errorf("verifier-%d allows a revoked key, receipt %+v", i+1, v.Receipt)
		}
	}
}

// wants asks one verifier with the position until it can answer.
func (s *soaked) wants(ctx context.Context, r *rand.Rand, space, secret, position, want string) {
	for i := r.IntN(2); ctx.Err() == nil; rest(ctx, 20*time.Millisecond) {
		switch reason := s.decide(i, space, secret, position); reason {
		case want:
			return
		case "", stale:
		case "rate_limited": // there is no allocator for a moment
		default:
			s.t.Errorf("verifier-%d answers %s after the change was acknowledged, want %s", i+1, reason, want)
			return
		}
	}
}

// hurt kills, stops and pauses what may be hurt, one after the other, until ctx ends.
func (s *soaked) hurt(ctx context.Context, r *rand.Rand) {
	again := func(p *part, kill bool) {
		if kill {
			p.proc.kill()
		} else {
			p.proc.stop(s.t)
		}
		rest(ctx, time.Duration(r.IntN(2000))*time.Millisecond)
		s.run(s.t, p, os.Args[0])
	}
	log := func(kill bool) {
		args := s.log.cmd.Args[1:]
		if kill {
			s.log.kill()
		} else {
			s.log.stop(s.t)
		}
		rest(ctx, time.Duration(r.IntN(2000))*time.Millisecond)
		s.log = spawn(s.t, s.env, args...)
	}
	kinds := []struct {
		name string
		do   func()
	}{
		{"log killed", func() { log(true) }},
		{"log stopped", func() { log(false) }},
		{"verifier killed", func() { again(s.verifiers[0], true) }},
		{"verifier stopped", func() { again(s.verifiers[0], false) }},
		{"verifier paused", func() {
			s.verifiers[0].proc.cmd.Process.Signal(syscall.SIGSTOP)
			rest(ctx, time.Duration(r.IntN(5000))*time.Millisecond)
			s.verifiers[0].proc.cmd.Process.Signal(syscall.SIGCONT)
		}},
		{"control killed", func() { again(s.controls[0], true) }},
		{"control stopped", func() { again(s.controls[0], false) }},
		{"auditor killed", func() { again(s.auditor, true) }},
		{"engine killed", func() { s.engine.Kill() }},
	}
	longest := min(15*time.Second, *soakFor/4)
	for ctx.Err() == nil {
		rest(ctx, time.Duration(r.Int64N(int64(longest))))
		if ctx.Err() == nil {
			k := kinds[r.IntN(len(kinds))]
			k.do()
			s.faults[k.name]++
		}
	}
}

// settled insists on what must hold when the load is over.
func (s *soaked) settled() {
	t := s.t
	if m := mostAdmitted(s.admissions, float64(s.limit.PerMinute)/60, s.limit.Burst); float64(m.Admitted) > m.Limit {
		t.Errorf("%d admitted within %s, and the limit is %.1f", m.Admitted, microseconds(m.Micros), m.Limit)
	} else {
		t.Logf("most admitted: %d within %s, of at most %.1f", m.Admitted, microseconds(m.Micros), m.Limit)
	}
	opts, err := clickhouse.ParseDSN(s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	db, err := clickhouse.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	count := func(query string, args ...any) (n uint64, err error) {
		err = db.QueryRow(t.Context(), query, args...).Scan(&n)
		return n, err
	}
	for i := range s.asked {
		for space, n := range s.asked[i] {
			if i == 0 && space != "bank" {
				continue // of an async ledger that is killed, the last uses are a gap
			}
			eventually(t, func() string {
				got, err := count("SELECT count() FROM uses WHERE node = ? AND keyspace = ?", fmt.Sprint("verifier-", i+1), space)
				if got > uint64(n.asked.Load()) {
					t.Fatalf("verifier-%d, %s: %d uses on the record, it was asked %d times", i+1, space, got, n.asked.Load())
				}
				if err != nil || got < uint64(n.answered.Load()) {
					return fmt.Sprintf("verifier-%d, %s: %d uses on the record of %d answered: %v", i+1, space, got, n.answered.Load(), err)
				}
				return ""
			})
		}
	}
	if n, err := count("SELECT count() FROM use_batches WHERE node = 'verifier-2' AND kind IN ('gap', 'unended')"); err != nil || n > 0 {
		t.Errorf("verifier-2 was left alone and has %d gaps: %v", n, err)
	}
	control := &proc{url: s.controls[1].url.Load().(string), root: s.root}
	t.Setenv("KEYTRAIL_AUDIT_URL", s.auditor.url.Load().(string))
	eventually(t, func() string {
		out, errs, code := control.cli(t, "doctor", "--deep", "--nats", s.nats, "--clickhouse", s.dsn)
		if code != 0 || !strings.Contains(out, "are the same") {
			return fmt.Sprintf("doctor: exit %d\n%s%s", code, out, errs)
		}
		return ""
	})
}

// soakSize is what the processes hold at one time, in KiB by name.
type soakSize map[string]int

// weigh notes what the processes hold until ctx ends.
func (s *soaked) weigh(ctx context.Context) (sizes []soakSize) {
	every := max(*soakFor/200, 500*time.Millisecond)
	for n := 0; ctx.Err() == nil; n++ {
		rest(ctx, every)
		size := soakSize{}
		for name, p := range map[string]*part{"control-2": s.controls[1], "verifier-2": s.verifiers[1]} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.proc.cmd.Process.Pid))
			if err != nil {
				return nil // no /proc here
			}
			_, line, _ := strings.Cut(string(b), "VmRSS:")
			size[name], _ = strconv.Atoi(strings.Fields(line)[0])
		}
		sizes = append(sizes, size)
		if n%20 == 0 {
			s.t.Logf("%s: %v KiB", time.Since(s.began).Round(time.Second), size)
		}
	}
	return sizes
}

// wantFlat compares the last quarter of a long run with its second quarter.
func (s *soaked) wantFlat(sizes []soakSize) {
	if *soakFor < 5*time.Minute || len(sizes) < 40 {
		return // the processes are still growing into their work
	}
	for name := range sizes[0] {
		median := func(part []soakSize) int {
			var list []int
			for _, size := range part {
				list = append(list, size[name])
			}
			slices.Sort(list)
			return list[len(list)/2]
		}
		quarter := len(sizes) / 4
		early, late := median(sizes[quarter:2*quarter]), median(sizes[3*quarter:])
		s.t.Logf("%s held %d MiB in the second quarter, and %d in the last", name, early>>10, late>>10)
		if late > early+early/10+(8<<10) {
			s.t.Errorf("%s grows: %d MiB, then %d MiB", name, early>>10, late>>10)
		}
	}
}
