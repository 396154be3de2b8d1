package verifier

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

const benchKeys = 1_000_000

// nowhere is a stream of uses that takes everything at once.
type nowhere struct{}

func (nowhere) Publish(context.Context, events.NodeID, string, events.Seq, []byte) (events.Seq, error) {
	return 1, nil
}

func (nowhere) Tail(context.Context, events.NodeID) (events.UseMessage, bool, error) {
	return events.UseMessage{}, false, nil
}

func (nowhere) Raise(context.Context, events.Head) error { return nil }

func (nowhere) RaiseRelease(context.Context, events.Release) error { return nil }

func (nowhere) Renew(context.Context, events.NodeLease) (events.LeaseGrant, error) {
	return events.LeaseGrant{}, nil
}

func (nowhere) Release(context.Context, events.NodeLease) error { return nil }

func (nowhere) Nodes(context.Context, events.Seq) (events.NodeLeases, error) {
	return events.NodeLeases{}, nil
}

// leased gives the node a lease.
func leased(tb testing.TB, n *Node) {
	if _, err := n.Confirm(context.Background()); err != nil {
		tb.Fatal(err)
	}
}

// bench is a node with a million keys that every check looks at.
type bench struct {
	view    *projections.Keys
	node    *Node
	ledger  *Ledger
	secrets []string // in random order
	bare    map[[32]byte]*int
}

var million = sync.OnceValue(func() *bench {
	rnd := rand.New(rand.NewPCG(1, 2))
	log := events.LogID{1}
	b := &bench{view: projections.NewKeys(), bare: make(map[[32]byte]*int, benchKeys)}
	def := scribeDefinition()
	def.Limit = &keyspace.Limit{PerMinute: 1e9, Burst: 1e9}
	def.Staleness.MaxMillis = 86_400_000
	batch := []events.Recorded{{Seq: 1, Event: events.Event{Rev: 1, Aggregate: events.KeyspaceAggregate(scribe), Data: &events.KeyspaceDefined{Definition: def}}}}
	alphabet := keyspace.Base62.Chars()
	values := make([]int, benchKeys) // one object: a million would be the collector's work beside every figure
	for i := range benchKeys {
		secret := []byte("sk_live_")
		for range keyspace.DefaultSecretLength {
			secret = append(secret, alphabet[rnd.IntN(len(alphabet))])
		}
		b.secrets = append(b.secrets, string(secret))
		b.bare[sha256.Sum256(secret)] = &values[i]
		var id events.KeyID
		binary.BigEndian.PutUint64(id[:], uint64(i+1))
		tenant := events.TenantID(fmt.Sprint("tenant", i%5000))
		r := events.Recorded{Seq: events.Seq(i + 2), Event: events.Event{Rev: 1, Aggregate: events.KeyAggregate(scribe, tenant, id), Data: &events.KeyCreated{
			Digest: events.NewSecret(string(secret)).Digest(), KeyType: "secret", Environment: "live", Scopes: []string{"write"},
			Resources: []events.Resource{{Kind: "project", ID: "proj_1"}, {Kind: "project", ID: fmt.Sprint("proj_2", i%1000)}},
			Allowlist: []netip.Prefix{office}, ExpiresAt: events.At(time.Now().AddDate(1, 0, 0)),
		}}}
		binary.BigEndian.PutUint64(r.Hash[:], uint64(i+1))
		if batch = append(batch, r); len(batch) == 1000 || i == benchKeys-1 {
			if err := b.view.Apply(batch); err != nil {
				panic(err)
			}
			batch = batch[:0]
		}
	}
	all := strings.Join(b.secrets, "") // one object too
	for i := range b.secrets {
		n := len(b.secrets[i])
		b.secrets[i], all = all[:n], all[n:]
	}
	rnd.Shuffle(len(b.secrets), func(i, j int) { b.secrets[i], b.secrets[j] = b.secrets[j], b.secrets[i] })
	quiet := slog.New(slog.DiscardHandler)
	b.ledger = NewLedger(LedgerConfig{Sink: nowhere{}, Node: testNode, Log: log, Logger: quiet})
	b.node = NewNode(NodeConfig{View: b.view, Ledger: b.ledger, Leases: nowhere{}, Log: log, Logger: quiet})
	b.view.Fresh(events.At(time.Now()), b.view.At())
	if _, err := b.node.Confirm(context.Background()); err != nil {
		panic(err)
	}
	return b
})

func (b *bench) request(i int) Request {
	return Request{Secret: events.NewSecret(b.secrets[i%benchKeys]), Keyspace: scribe, Scope: "read",
		Resource: events.Resource{Kind: "project", ID: "proj_1"}, IP: inside}
}

// BenchmarkVerify asks about random keys of a million. bare is the yardstick: the
// hash of the secret and one look-up in a Go map of the same keys. verify makes
// all checks, limit included; decide adds freshness, the clock and the ledger,
// whose encoder runs beside it. ratio runs the three in turn, in short blocks, and
// compares their medians and first deciles, which a busy machine cannot spoil for one
// of them.
func BenchmarkVerify(b *testing.B) {
	w := million()
	l := NewLedger(w.ledger.cfg)
	node := NewNode(NodeConfig{View: w.view, Ledger: l, Leases: nowhere{}, Log: w.node.cfg.Log})
	leased(b, node)
	stop := run(b, l)
	waitFor(b, func() bool { return l.Ready() == nil })
	now := events.At(time.Now())
	contenders := []struct {
		name string
		ask  func(i int) bool
	}{
		{"bare", func(i int) bool { return w.bare[sha256.Sum256([]byte(w.secrets[i%benchKeys]))] != nil }},
		{"verify", func(i int) bool {
			req := w.request(i)
			d := Verify(w.view, &w.node.buckets, &req, now)
			return d.Allowed()
		}},
		{"decide", func(i int) bool {
			req := w.request(i)
			d := node.Decide(context.Background(), &req)
			return d.Allowed()
		}},
	}
	for _, c := range contenders {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for i := range b.N {
				if !c.ask(i) {
					b.Fatal("refused")
				}
			}
		})
	}
	b.Run("ratio", func(b *testing.B) {
		const block = 128
		times := make([][]float64, len(contenders))
		for i := 0; i < b.N || len(times[0]) < 19; i += block {
			for n, c := range contenders {
				began := time.Now()
				for j := range block {
					if !c.ask(3*i + n*block + j) { // keys that the others have not just touched
						b.Fatal("refused")
					}
				}
				times[n] = append(times[n], float64(time.Since(began).Nanoseconds())/block)
			}
		}
		for n := range times {
			slices.Sort(times[n])
		}
		// The decile is what a processor of its own would show; the median what this one did.
		for _, q := range []struct {
			name string
			of   int
		}{{"", 2}, {"-decile", 10}} {
			at := func(n int) float64 { return times[n][len(times[n])/q.of] }
			b.ReportMetric(at(0), "bare-ns"+q.name)
			b.ReportMetric(at(1)/at(0), "verify/bare"+q.name)
			b.ReportMetric(at(2)/at(0), "decide/bare"+q.name)
		}
	})
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkLedgerAppend(b *testing.B) {
	for _, parallel := range []bool{false, true} {
		b.Run(fmt.Sprintf("parallel=%v", parallel), func(b *testing.B) {
			l := NewLedger(LedgerConfig{Sink: nowhere{}, Node: testNode, Log: events.LogID{1}, Logger: slog.New(slog.DiscardHandler)})
			stop := run(b, l)
			waitFor(b, func() bool { return l.Ready() == nil })
			u := testUse(1)
			b.ReportAllocs()
			b.ResetTimer()
			if parallel {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						l.Append(&u)
					}
				})
			} else {
				for range b.N {
					l.Append(&u)
				}
			}
			b.StopTimer()
			l.decided()
			b.ReportMetric(float64(l.lost.Load())/float64(b.N), "lost/op")
			if err := stop(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkHTTP asks over loopback, kept alive. bare decodes and encodes bodies
// of the same shapes with the same library and does nothing else.
func BenchmarkHTTP(b *testing.B) {
	w := million()
	var body = func(i int) []byte {
		return []byte(`{"key":"` + w.secrets[i%benchKeys] + `","keyspace":"scribe-sight","scope":"read","resource":{"kind":"project","id":"proj_1"},"ip":"203.0.113.7"}`)
	}
	drive := func(b *testing.B, h http.Handler, path string) {
		srv := httptest.NewServer(h)
		defer srv.Close()
		client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
		defer client.CloseIdleConnections()
		b.ReportAllocs()
		b.ResetTimer()
		b.RunParallel(func(pb *testing.PB) {
			for i := rand.IntN(benchKeys); pb.Next(); i++ {
				resp, err := client.Post(srv.URL+path, "application/json", bytes.NewReader(body(i)))
				if err != nil {
					b.Error(err)
					return
				}
				answer, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.HasPrefix(answer, []byte(`{"allowed":true`)) {
					b.Errorf("%v %s", err, answer)
					return
				}
			}
		})
		b.StopTimer()
	}
	b.Run("bare", func(b *testing.B) {
		type answer struct {
			Allowed     bool          `json:"allowed"`
			Reason      events.Reason `json:"reason"`
			Status      int           `json:"status"`
			Key         string        `json:"key_id"`
			Tenant      string        `json:"tenant"`
			Environment string        `json:"environment"`
			Scopes      []string      `json:"scopes"`
			Limit       struct {
				Limit     int64 `json:"limit"`
				Remaining int64 `json:"remaining"`
				Reset     int64 `json:"reset"`
			} `json:"limit"`
			Position string `json:"position"`
			Use      string `json:"use_id"`
		}
		fixed := answer{Allowed: true, Reason: events.ReasonOK, Status: 200, Key: events.KeyID{1}.String(), Tenant: "tenant42", Environment: "live",
			Scopes: []string{"read", "write"}, Position: events.Position{Seq: 1}.String(), Use: "node-1/1767693600000000/42"}
		fixed.Limit.Limit, fixed.Limit.Remaining, fixed.Limit.Reset = 1e9, 1e9-1, 1
		drive(b, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			in, err := io.ReadAll(r.Body)
			var q question
			if err == nil {
				err = json.Unmarshal(in, &q)
			}
			out, err2 := json.Marshal(&fixed)
			if err != nil || err2 != nil {
				rw.WriteHeader(400)
				return
			}
			rw.Header().Set("Content-Type", "application/json")
			rw.Write(out)
		}), "/")
	})
	b.Run("verify", func(b *testing.B) {
		l := NewLedger(w.ledger.cfg)
		node := NewNode(NodeConfig{View: w.view, Ledger: l, Leases: nowhere{}, Log: w.node.cfg.Log, Logger: slog.New(slog.DiscardHandler)})
		leased(b, node)
		stop := run(b, l)
		waitFor(b, func() bool { return l.Ready() == nil })
		mux := http.NewServeMux()
		node.Routes(mux)
		drive(b, api.Handler(mux), "/v1/verify")
		if err := stop(); err != nil {
			b.Fatal(err)
		}
	})
}
