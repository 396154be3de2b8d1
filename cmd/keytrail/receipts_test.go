package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keytrail/keytrail/commands/receipts"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
)

var (
	receiptRounds = flag.Int("receipt-rounds", 8, "how many revocations TestReceiptsHold tries")
	receiptNodes  = flag.Int("receipt-nodes", 5, "how many verifiers it runs, 5 at least")
	receiptSeed   = flag.Uint64("receipt-seed", 0, "what it draws with; 0 draws one")
)

// receiptBatch is how many keys are revoked while the same verifiers are hurt.
const receiptBatch = 20

// TestReceiptsHold revokes keys while one verifier is stopped (SIGSTOP), one is stopped
// for a moment only, one is cut off from the log, and one is killed and started again:
// all four, or one of them alone, since a receipt that waits for one verifier hides that
// it does not wait for another. The revocations begin before, while and after the verifiers are hurt. From the moment
// at which control has answered with a complete receipt no verifier allows the key: not
// those that go on, not the one that is cut off, not the stopped ones when they go on.
func TestReceiptsHold(t *testing.T) {
	c, keys := startEdges(t, max(*receiptNodes, 5))
	c.control.data(t, 200, "PUT", "/v1/keyspaces/shop", map[string]any{"key_types": []any{map[string]any{"name": "secret", "prefix": "sk_"}},
		"scopes": []any{map[string]any{"name": "read"}}})
	seed := *receiptSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("seed %d", seed)
	cell := logtest.NewCell(t, fmt.Sprintf("receipts of %d processes: stopped, paused, cut off, killed", len(c.edges)), seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for round := 0; round < *receiptRounds && !t.Failed(); round += receiptBatch {
		b := &revocations{t: t, c: c, cell: cell, verifier: keys[0], first: round, keys: make([]*revocation, min(receiptBatch, *receiptRounds-round))}
		b.try(r)
	}
	if t.Failed() {
		return
	}
	out := c.control.must(t, "nodes")
	for _, e := range c.edges {
		if !strings.Contains(out, string(e.name)) {
			t.Errorf("keytrail nodes does not show %s:\n%s", e.name, out)
		}
	}
}

// revocations are those of keys that are revoked while the same verifiers are hurt.
type revocations struct {
	t        testing.TB
	c        *edges
	cell     *logtest.Cell
	verifier string // the key that receipts are verified with
	first    int    // the round of the first of keys
	keys     []*revocation
	body     []byte // of a question about all keys
}

// revocation is one key on its way.
type revocation struct {
	id       string
	at       time.Duration // when it is revoked, after the verifiers are hurt; before, if negative
	after    bool          // revoked once the verifiers were hurt
	received atomic.Bool   // the receipt
	before   atomic.Int64  // allowances before the receipt
	lapsed   int           // runs that the receipt says have lapsed
	took     time.Duration
}

// ask returns for each key why the verifier allows or refuses it, nothing when it does
// not answer.
func (b *revocations) ask(e *edge) (reasons []string) {
	req, err := http.NewRequestWithContext(b.t.Context(), "POST", e.base.Load().(string)+"/v1/verify/batch", bytes.NewReader(b.body))
	if err != nil {
		b.t.Error(err)
		return nil
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := edgeClient.Do(req)
	if err != nil {
		return nil // it is stopped, or gone
	}
	defer resp.Body.Close()
	var a struct {
		Data []struct{ Reason string } `json:"data"`
	}
	if json.NewDecoder(resp.Body).Decode(&a) != nil || len(a.Data) != len(b.keys) {
		return nil
	}
	for _, d := range a.Data {
		reasons = append(reasons, d.Reason)
	}
	return reasons
}

var edgeClient = &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 4}}

// all waits until every verifier says of every key what is wanted.
func (b *revocations) all(want string) {
	b.t.Helper()
	for _, e := range b.c.edges {
		eventually(b.t, func() string {
			got := b.ask(e)
			if len(got) == 0 || slices.ContainsFunc(got, func(reason string) bool { return reason != want }) {
				return fmt.Sprintf("round %d: %s answers %q, want %s", b.first, e.name, got, want)
			}
			return ""
		})
	}
}

// watch asks all verifiers all the time until it is stopped.
func (b *revocations) watch() (stop func()) {
	done := make(chan struct{})
	var askers sync.WaitGroup
	for _, e := range b.c.edges {
		askers.Go(func() {
			after := make([]bool, len(b.keys))
			for {
				select {
				case <-done:
					return
				case <-time.After(2 * time.Millisecond):
				}
				for i, k := range b.keys {
					after[i] = k.received.Load() // before it is asked
				}
				for i, reason := range b.ask(e) {
					if reason != "ok" {
						continue
					}
					if b.keys[i].before.Add(1); after[i] {
						b.cell.Wrong("round %d: %s allows the key after the receipt", b.first+i, e.name)
						return
					}
				}
			}
		})
	}
	return func() { close(done); askers.Wait() }
}

// revoke revokes one key and verifies its receipt.
func (b *revocations) revoke(i int) {
	k := b.keys[i]
	path := "/v1/keys/" + k.id
	began := time.Now()
	revoke := path + "?wait=applied&wait_timeout=50s&code=key_compromise"
	status, answer := b.c.control.do(b.t, "DELETE", revoke, nil, nil)
	for status == http.StatusServiceUnavailable && unproved.MatchString(fmt.Sprint(answer["detail"])) && time.Since(began) < patience {
		time.Sleep(20 * time.Millisecond) // a real process on the other side: poll, do not wait blindly
		status, answer = b.c.control.do(b.t, "DELETE", revoke, nil, nil)
	}
	given, _ := answer["receipt"].(map[string]any)
	if status != http.StatusOK || given["complete"] != true {
		b.t.Errorf("round %d: %d %v", b.first+i, status, answer)
		return
	}
	k.received.Store(true)
	k.took = time.Since(began)
	receipt, err := receipts.Open([]byte(given["note"].(string)), b.verifier)
	if err != nil || !receipt.Complete || receipt.Resource != path || receipt.Type != events.TypeKeyRevoked {
		b.t.Errorf("round %d: %v\n%+v", b.first+i, err, receipt)
	}
	for _, n := range receipt.Nodes {
		if n.Status == receipts.HasLapsed {
			k.lapsed++
		}
	}
}

func (b *revocations) try(r *rand.Rand) {
	t := b.t
	drawn := func(from, to time.Duration) time.Duration { return from + time.Duration(r.Int64N(int64(to-from))) }
	var questions []any
	for i := range b.keys {
		created := b.c.control.data(t, 201, "POST", "/v1/keyspaces/shop/keys", map[string]any{"tenant": "acme", "name": fmt.Sprint("k", b.first+i), "scopes": []string{"read"}})
		b.keys[i] = &revocation{id: created["id"].(string), at: drawn(-200*time.Millisecond, 2*edgeCeiling)}
		questions = append(questions, map[string]any{"key": created["key"], "keyspace": "shop", "scope": "read"})
	}
	b.body, _ = json.Marshal(map[string]any{"requests": questions})
	b.all("ok")
	stop := b.watch()
	hurt, only := r.Perm(len(b.c.edges)), r.IntN(5)
	var stopped, paused, cut, killed *edge
	for i, e := range []**edge{&stopped, &paused, &cut, &killed} {
		if only >= 4 || only == i {
			*e = b.c.edges[hurt[i]]
		}
	}
	rest, back, later := drawn(100*time.Millisecond, edgeCeiling), drawn(0, 2*edgeCeiling), drawn(0, 300*time.Millisecond)
	hurtAt := time.Now().Add(200*time.Millisecond + drawn(0, 300*time.Millisecond)) // at which point of its lease each verifier is hurt
	var all, repaired sync.WaitGroup
	var areHurt atomic.Bool
	for i, k := range b.keys {
		all.Go(func() {
			time.Sleep(time.Until(hurtAt.Add(k.at))) // drawn
			k.after = areHurt.Load()
			b.revoke(i)
		})
	}
	time.Sleep(time.Until(hurtAt)) // drawn
	unable := 0                    // to learn of a change from here on
	if stopped != nil {
		stopped.proc.cmd.Process.Signal(syscall.SIGSTOP)
		unable++
	}
	if cut != nil {
		cut.way.cut.Store(true)
		unable++
	}
	areHurt.Store(true)
	if paused != nil {
		paused.proc.cmd.Process.Signal(syscall.SIGSTOP)
		repaired.Go(func() {
			time.Sleep(rest) // drawn
			paused.proc.cmd.Process.Signal(syscall.SIGCONT)
		})
	}
	if killed != nil {
		killed.proc.kill()
		repaired.Go(func() {
			time.Sleep(back) // drawn
			if err := killed.start(t, b.c); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	time.Sleep(later) // drawn
	if stopped != nil {
		stopped.proc.cmd.Process.Signal(syscall.SIGCONT)
		time.Sleep(200 * time.Millisecond) // it answers before the cut one is reached again; no answer is waited for
	}
	if cut != nil {
		cut.way.cut.Store(false)
	}
	repaired.Wait()
	if !t.Failed() {
		b.all("key_revoked")
	}
	stop()
	for i, k := range b.keys {
		if !k.received.Load() {
			continue
		}
		b.cell.Tried(1)
		// Who was stopped or cut off before the command was sent cannot have applied it.
		if k.after && k.lapsed < unable {
			b.cell.Wrong("round %d: the receipt says that %d runs have lapsed, and %d could not learn of the change", b.first+i, k.lapsed, unable)
		}
		t.Logf("round %d: revoked %s after the faults, complete after %s with %d lapsed runs, %d allowances before that", b.first+i, k.at.Round(time.Millisecond), k.took.Round(time.Millisecond), k.lapsed, k.before.Load())
	}
}

// edges is a cluster whose verifiers reach the log each on a way of its own.
type edges struct {
	*cluster
	edges []*edge
}

type edge struct {
	name events.NodeID
	proc *proc
	base atomic.Value // its URL
	way  *way
}

// edgeCeiling is the ceiling of a verifier of edges. It answers for the bound of the
// keyspaces, 10 s, which is longer.
const edgeCeiling = 3 * time.Second

func (e *edge) start(t testing.TB, c *edges) (err error) {
	e.proc, err = trySpawn(t, c.env, "verifier", "--nats", "nats://"+e.way.addr, "--listen", "127.0.0.1:0", "--name", string(e.name), "--stale-ceiling", edgeCeiling.String())
	if err == nil {
		e.base.Store(e.proc.url)
	}
	return err
}

// startEdges starts a log, control that signs receipts, and n verifiers. It returns the
// verifier keys.
func startEdges(t testing.TB, n int) (*edges, []string) {
	t.Helper()
	dir, addr := t.TempDir(), freeAddr(t)
	c := &edges{cluster: &cluster{nats: "nats://" + addr}}
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats)
	b, err := os.ReadFile("../../deploy/nats/nodes.conf")
	if err != nil {
		t.Fatal(err)
	}
	_, entry, _ := strings.Cut(string(b), "  NODE_verifier-1 {")
	entry, _, _ = strings.Cut(entry, "  NODE_verifier-2 {")
	entry = strings.ReplaceAll("  NODE_verifier-1 {"+entry, "$KEYTRAIL_VERIFIER_1_PASSWORD", "$KEYTRAIL_NODE_PASSWORD")
	var accounts strings.Builder
	for i := range n {
		e := &edge{name: events.NodeID(fmt.Sprint("edge-", i)), way: newWay(t, addr)}
		c.edges = append(c.edges, e)
		accounts.WriteString(strings.ReplaceAll(entry, "verifier-1", string(e.name)))
	}
	conf := filepath.Join(dir, "nodes.conf")
	if err := os.WriteFile(conf, []byte(accounts.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c.env = append(c.env, "KEYTRAIL_LOG_NODES="+conf)
	c.log = spawn(t, c.env, "log", "--dir", filepath.Join(dir, "log"), "--listen", addr)
	for _, kv := range c.env {
		name, value, _ := strings.Cut(kv, "=")
		t.Setenv(name, value)
	}
	var out, errw bytes.Buffer
	rootFile, keyFile := filepath.Join(dir, "root.key"), filepath.Join(dir, "checkpoint.key")
	for _, args := range [][]string{{"init", "--nats", c.nats, "--root-key-file", rootFile}, {"log", "key", keyFile}} {
		if code := run(context.Background(), args, nil, &out, &errw); code != 0 {
			t.Fatalf("%s: exit %d\n%s%s", args[0], code, out.String(), errw.String())
		}
	}
	id := strings.TrimPrefix(strings.Split(out.String(), "\n")[0], "log: ")
	root, err := os.ReadFile(rootFile)
	if err != nil {
		t.Fatal(err)
	}
	c.root = strings.TrimSpace(string(root))
	key, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := tree.NewSigner(tree.Origin(id), key)
	if err != nil {
		t.Fatal(err)
	}
	c.control = c.role(t, "control", "--name", "control-1", "--dir", filepath.Join(dir, "control"), "--checkpoint-key", keyFile)
	for _, e := range c.edges {
		if err := e.start(t, c); err != nil {
			t.Fatal(err)
		}
	}
	return c, signer.VKeys()
}

// way is a TCP proxy that can be cut: then nothing passes either way, and nobody is
// told.
type way struct {
	addr string
	cut  atomic.Bool
}

func newWay(t testing.TB, to string) *way {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	w := &way{addr: l.Addr().String()}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil || w.cut.Load() {
				in.Close()
				if out != nil {
					out.Close()
				}
				continue
			}
			go w.pass(in, out)
			go w.pass(out, in)
		}
	}()
	return w
}

func (w *way) pass(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		for w.cut.Load() {
			time.Sleep(10 * time.Millisecond) // the cut of the link is polled
			if !w.cut.Load() {
				return // what was held is lost with the connection
			}
		}
		if err != nil {
			return
		}
		if _, err := io.Copy(to, bytes.NewReader(b[:n])); err != nil {
			return
		}
	}
}
