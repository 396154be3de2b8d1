package verifier

import (
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(os.Exit))
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

// scribeDefinition is the regime of most tests.
func scribeDefinition() events.Definition {
	return events.Definition{
		KeyTypes: []events.KeyType{
			{Name: "secret", Environments: []string{"live"}, Prefix: "sk_live_"},
			{Name: "publishable", Environments: []string{"live"}, Prefix: "pk_live_", Ceiling: []string{"upload"}},
		},
		Scopes:    []events.ScopeDef{{Name: "read"}, {Name: "write", Implies: []string{"read"}}, {Name: "upload"}},
		Resources: []string{"project"},
	}
}

// cloudDefinition is a regime of its own order: a blocked address is told before
// the key's state. Its statuses are its own too, a scope wants a project, and keys
// are limited one by one and by tenant.
func cloudDefinition() events.Definition {
	d := scribeDefinition()
	d.Scopes = append(d.Scopes, events.ScopeDef{Name: "deploy", Level: "project"}, events.ScopeDef{Name: "members", Level: events.LevelTenant})
	d.Checks = []events.Check{events.CheckAddress, events.CheckState, events.CheckScope, events.CheckResource, events.CheckLimit}
	d.Limit = &events.Limit{PerMinute: 60, Burst: 2}
	d.TenantLimit = &events.Limit{PerMinute: 60, Burst: 3}
	d.Errors.Answers = []events.ErrorAnswer{{Reasons: []string{"resource_not_allowed"}, Status: 404}, {Reasons: []string{"key_unknown", "verifier_stale"}, Status: 400}}
	return d
}

func newWorld(t testing.TB, change func(*NodeConfig)) *world {
	w := &world{t: t, log: logtest.New(t), view: projections.NewKeys(), mux: http.NewServeMux()}
	cfg := NodeConfig{View: w.view, Log: w.log.ID(), Logger: slog.New(slog.DiscardHandler)}
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

// fold brings the view to the log's end and the heartbeat after it.
func (w *world) fold() {
	w.t.Helper()
	if rs := w.log.Records()[w.view.At():]; len(rs) > 0 {
		if err := w.view.Apply(rs); err != nil {
			w.t.Fatal(err)
		}
	}
	w.beat()
}

// beat is a heartbeat of the log.
func (w *world) beat() {
	at := events.At(time.Now())
	w.view.Fresh(at, w.view.At())
	w.node.Fresh(at, w.view.At())
}

func (w *world) put(a events.Aggregate, data ...events.Data) {
	w.t.Helper()
	logtest.Append(w.t, w.log, a, data...)
	w.fold()
}

func (w *world) define(id events.KeyspaceID, d events.Definition) {
	w.put(events.KeyspaceAggregate(id), &events.KeyspaceDefined{Definition: d})
}

// secretOf makes the form of a secret key out of a word.
func secretOf(word string) string {
	return "sk_live_" + (word + strings.Repeat("x", events.DefaultSecretLength))[:events.DefaultSecretLength]
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
