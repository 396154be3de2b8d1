package verifier

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/internal/loadtest"
	"github.com/keytrail/keytrail/projections"
)

func TestMain(m *testing.M) {
	loadtest.Main(loadtest.HTTP())
	goleak.VerifyTestMain(logtest.Settled(m), goleak.Cleanup(os.Exit))
}

// world is a node over an in-memory log, folded step by step and not in the
// background. Tests run it in a synctest bubble.
type world struct {
	t      testing.TB
	log    *logtest.MemLog
	view   *projections.Keys
	ledger *Ledger
	node   *Node
	mux    *http.ServeMux
	stop   func() error
	made   int
}

const scribe events.KeyspaceID = "scribe-sight"

// scribeDefinition is that of most tests.
func scribeDefinition() keyspace.Definition {
	return keyspace.Definition{
		KeyTypes: []keyspace.KeyType{
			{Name: "secret", Environments: []string{"live"}, Prefix: "sk_live_"},
			{Name: "publishable", Environments: []string{"live"}, Prefix: "pk_live_", Ceiling: []string{"upload"}},
		},
		Scopes:    []keyspace.ScopeDef{{Name: "read"}, {Name: "write", Implies: []string{"read"}}, {Name: "upload"}},
		Resources: []string{"project"},
	}
}

// cloudDefinition is a keyspace of its own order: a blocked address is told before
// the key's state. Its statuses are its own too, a scope wants a project, and keys
// are limited one by one and by tenant.
func cloudDefinition() keyspace.Definition {
	d := scribeDefinition()
	d.Scopes = append(d.Scopes, keyspace.ScopeDef{Name: "deploy", Level: "project"}, keyspace.ScopeDef{Name: "members", Level: keyspace.LevelTenant})
	d.Checks = []keyspace.Check{keyspace.CheckAddress, keyspace.CheckState, keyspace.CheckScope, keyspace.CheckResource, keyspace.CheckLimit}
	d.Limit = &keyspace.Limit{PerMinute: 60, Burst: 2}
	d.TenantLimit = &keyspace.Limit{PerMinute: 60, Burst: 3}
	d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"resource_not_allowed"}, Status: 404}, {Reasons: []string{"key_unknown", "verifier_stale"}, Status: 400}}
	return d
}

func newWorld(t testing.TB, change func(*NodeConfig)) *world {
	w := &world{t: t, log: logtest.New(t), view: projections.NewKeys(), mux: http.NewServeMux()}
	cfg := NodeConfig{View: w.view, Leases: w.log, Log: w.log.ID(), Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&cfg)
	}
	w.ledger = NewLedger(LedgerConfig{Sink: w.log, Node: testNode, Log: w.log.ID(), Logger: cfg.Logger})
	cfg.Ledger = w.ledger
	w.node = NewNode(cfg)
	w.node.Routes(w.mux)
	w.stop = run(t, w.ledger)
	waitFor(t, func() bool { return w.ledger.Ready() == nil })
	w.define(scribe, scribeDefinition())
	w.define(events.Builtin, events.BuiltinDefinition())
	return w
}

// fold brings the view to the log's end and renews the lease after it.
func (w *world) fold() {
	w.t.Helper()
	if rs := w.log.Records()[w.view.At():]; len(rs) > 0 {
		if err := w.view.Apply(rs); err != nil {
			w.t.Fatal(err)
		}
	}
	w.heartbeat()
}

// heartbeat is one of the log and, where it can be reached, a floor of all that
// the view holds and a lease on it.
func (w *world) heartbeat() {
	at := events.At(time.Now())
	w.view.Fresh(at, w.view.At())
	w.node.Fresh(at, w.view.At())
	if err := w.log.Raise(context.Background(), events.Head{Log: w.log.ID(), Size: w.view.At()}); err == nil {
		_, _ = w.node.Confirm(context.Background())
	}
}

func (w *world) put(a events.Aggregate, data ...events.Data) {
	w.t.Helper()
	logtest.Append(w.t, w.log, a, data...)
	w.fold()
}

func (w *world) define(id events.KeyspaceID, d keyspace.Definition) {
	w.put(events.KeyspaceAggregate(id), &events.KeyspaceDefined{Definition: d})
}

// serve returns the answer of the node's endpoints.
func serve(w *world, r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.mux.ServeHTTP(rec, r)
	return rec
}

// request is one that came from peer.
func request(method, target, peer string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = peer
	return r
}

// statusOfError returns the status of a problem, 0 of none.
func statusOfError(err error) int {
	var p *api.Problem
	if errors.As(err, &p) {
		return p.Status
	}
	return 0
}

// secretOf makes the form of a secret key out of a word.
func secretOf(word string) string {
	return "sk_live_" + (word + strings.Repeat("x", keyspace.DefaultSecretLength))[:keyspace.DefaultSecretLength]
}

// key creates a key whose secret is secretOf(word); its id counts up from 1.
func (w *world) key(word string, change func(*events.KeyCreated)) events.Aggregate {
	w.t.Helper()
	return w.keyIn(scribe, "acme", secretOf(word), change)
}

func (w *world) keyIn(ks events.KeyspaceID, tenant events.TenantID, secret string, change func(*events.KeyCreated)) events.Aggregate {
	w.t.Helper()
	w.made++
	c := logtest.Created(secret)
	c.Environment, c.Scopes = "live", []string{"write"}
	if change != nil {
		change(c)
	}
	id := events.KeyID{0: 1, 15: byte(w.made)}
	a := events.KeyAggregate(ks, tenant, id)
	w.put(a, c)
	return a
}

// bucket returns the bucket of key number n.
func (w *world) bucket(n byte) *Bucket {
	w.t.Helper()
	var k projections.Key
	if !w.view.ByID(events.KeyID{0: 1, 15: n}, &k) {
		w.t.Fatalf("there is no key %d", n)
	}
	return w.node.buckets.keys.at(k.Slot)
}

// imported imports a key by the digest of its secret, whatever form that has.
func (w *world) imported(secret string, d *events.KeyImported) {
	w.t.Helper()
	w.made++
	d.KeyCreated = *logtest.Created(secret)
	d.Environment, d.Scopes = "live", []string{"write"}
	w.put(events.KeyAggregate(scribe, "acme", events.KeyID{0: 1, 15: byte(w.made)}), d)
}

// end stops the ledger and checks the log and the record.
func (w *world) end() []*epochRecord {
	w.t.Helper()
	if err := w.stop(); err != nil {
		w.t.Fatal(err)
	}
	logtest.CheckLog(w.t, w.log)
	all := readLedger(w.t, w.log, testNode)
	if !all[len(all)-1].closed {
		w.t.Fatal("the epoch is not closed")
	}
	return all
}

var (
	office = netip.MustParsePrefix("203.0.113.0/24")
	inside = netip.MustParseAddr("203.0.113.7")
)
