package audit

import (
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestActorsHaveNames: an actor is shown with the present name of its key, to
// readers that may know of operators' keys.
func TestActorsHaveNames(t *testing.T) {
	f := newFixture(t)
	ops := events.KeyRef{Keyspace: events.Builtin, Tenant: events.RootTenant, Key: keyID(77)}
	created := logtest.Created("kt_" + strings.Repeat("c", 40))
	created.Name = "first"
	logtest.Append(t, f.log, ops.Aggregate(), created, &events.KeyRenamed{Before: events.Label{Name: "first"}, After: events.Label{Name: "deployer"}})
	a := events.KeyAggregate("scribe", "acme", f.keys[0].Key)
	history, err := f.log.Load(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	c := logtest.ChainOf(history)
	e := logtest.Event(a, &events.KeyDisabled{})
	e.Actor = events.Actor{Kind: events.ActorKey, ID: ops.Key.String()}
	if _, err := f.log.Append(t.Context(), logtest.Stamp(&c, e)); err != nil {
		t.Fatal(err)
	}
	waitCopied(t, f.store, f.log)
	srv := serveEndpoint(t, f.store, f.log)
	named := `"actor":{"kind":"key","id":"` + ops.Key.String() + `","name":"deployer"}`
	bare := `"actor":{"kind":"key","id":"` + ops.Key.String() + `"}`
	for who, want := range map[string]string{"root": named, "tenant": bare, "keyspace": bare} {
		if _, body := call(t, srv, who, "GET", "/v1/audit/events?type=key.disabled&limit=1", ""); !strings.Contains(body, want) {
			t.Errorf("%s sees %s, want %s", who, body, want)
		}
	}
}
