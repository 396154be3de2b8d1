package audit

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

// TestRecorderKeepsNoSecret: whoever reads the record, a filter with a secret in it
// is refused before it is written down, and nothing is read.
func TestRecorderKeepsNoSecret(t *testing.T) {
	log, dir := logtest.New(t).Reads(), projections.NewDirectory()
	var c events.Chain
	w := logtest.Stamp(&c, logtest.Event(events.KeyspaceAggregate("ks"), &events.KeyspaceDefined{Definition: keyspace.Definition{
		KeyTypes: []keyspace.KeyType{{Name: "secret", Prefix: "sk_live_"}}, Scopes: []keyspace.ScopeDef{{Name: "read"}},
	}}))
	if err := dir.Apply([]events.Recorded{{Event: w.Event, Seq: 1, Hash: c.Head}}); err != nil {
		t.Fatal(err)
	}
	r := NewRecorder(log, dir, "/keytrail/test/a", time.Now)
	who := &events.Principal{Actor: events.Actor{Kind: events.ActorKey, ID: (events.KeyID{15: 1}).String()}}
	secret := "sk_live_" + strings.Repeat("x", 32)
	for _, data := range []events.Data{
		&events.AuditQueried{Kind: "uses", Filter: map[string]string{"scope": secret, "tenant": "acme"}},
		&events.AuditExported{Kind: "events", Format: "csv", Filter: map[string]string{"request_id": "the key " + secret}},
	} {
		var p *api.Problem
		if err := r.Record(t.Context(), who, data); !errors.As(err, &p) || p.Status != 422 || p.Code != "secret" || len(p.Errors) != 1 {
			t.Errorf("%T: %v", data, err)
		}
	}
	if n := len(log.Records()); n != 0 {
		t.Errorf("%d events were written", n)
	}
	if err := r.Record(t.Context(), who, &events.AuditQueried{Kind: "uses", Filter: map[string]string{"tenant": "acme"}}); err != nil || len(log.Records()) != 1 {
		t.Errorf("%v, %d events", err, len(log.Records()))
	}
}

// TestWalkIsRecordedOnce: the pages of one question are one event; whatever is not
// the very walk that its event began is an event of its own.
func TestWalkIsRecordedOnce(t *testing.T) {
	log := logtest.New(t).Reads()
	now := time.Now()
	log.SetClock(func() time.Time { return now })
	r := NewRecorder(log, nil, "/keytrail/test/a", func() time.Time { return now })
	other := NewRecorder(log, nil, "/keytrail/test/b", func() time.Time { return now }) // of another process
	who := func(n byte) *events.Principal {
		return &events.Principal{Actor: events.Actor{Kind: events.ActorKey, ID: (events.KeyID{15: n}).String()}}
	}
	question := func(tenant string) *events.AuditQueried {
		return &events.AuditQueried{Kind: "uses", Filter: map[string]string{"tenant": tenant}}
	}
	walk, err := r.Walk(t.Context(), who(1), 0, question("acme"))
	if err != nil || walk != 1 {
		t.Fatal(walk, err)
	}
	for _, next := range []*Recorder{r, other, r} {
		if again, err := next.Walk(t.Context(), who(1), walk, question("acme")); err != nil || again != walk || len(log.Records()) != 1 {
			t.Fatalf("the next page: walk %d, %v, %d events", again, err, len(log.Records()))
		}
	}
	now = now.Add(walkLife - time.Millisecond)
	if again, err := r.Walk(t.Context(), who(1), walk, question("acme")); err != nil || again != walk {
		t.Fatalf("nearly too late: walk %d, %v", again, err)
	}
	exported := events.Seq(len(log.Records()) + 1)
	if err := r.Record(t.Context(), who(1), &events.AuditExported{Kind: "uses", Format: "csv", Filter: map[string]string{"tenant": "acme"}}); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		who      byte
		walk     events.Seq
		question *events.AuditQueried
	}{
		"another reader's":  {2, walk, question("acme")},
		"another question":  {1, walk, question("globex")},
		"fewer filters":     {1, walk, &events.AuditQueried{Kind: "uses"}},
		"another kind":      {1, walk, &events.AuditQueried{Kind: "usage", Filter: map[string]string{"tenant": "acme"}}},
		"of an export":      {1, exported, question("acme")},
		"past the log":      {1, 1 << 40, question("acme")},
		"of no walk at all": {1, 0, question("acme")},
	} {
		before := events.Seq(len(log.Records()))
		if fresh, err := r.Walk(t.Context(), who(c.who), c.walk, c.question); err != nil || fresh != before+1 {
			t.Errorf("%s: walk %d after %d events, %v", name, fresh, before, err)
		}
	}
	now = now.Add(time.Millisecond)
	if fresh, err := r.Walk(t.Context(), who(1), walk, question("acme")); err != nil || fresh != events.Seq(len(log.Records())) || fresh == walk {
		t.Errorf("too late: walk %d, %v", fresh, err)
	}
	var p *api.Problem
	log.SetDown(true)
	if _, err := r.Walk(t.Context(), who(1), walk, question("acme")); !errors.As(err, &p) || p.Status != 503 {
		t.Errorf("the walk cannot be looked up: %v", err)
	}
}

// TestWhatHappenedIsInsistedOn: how an export ended is on the record once, however
// long the log takes nothing, and whatever became of the tries; what must not happen
// unrecorded is refused at once.
func TestWhatHappenedIsInsistedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logtest.New(t).Reads()
		r := NewRecorder(log, nil, "/keytrail/test/a", time.Now)
		who := &events.Principal{Actor: events.Actor{Kind: events.ActorKey, ID: (events.KeyID{15: 1}).String()}}
		id, _, err := r.record(t.Context(), who, "", &events.AuditExported{Kind: "uses", Format: "csv"})
		if err != nil {
			t.Fatal(err)
		}
		for range 40 { // more than one try makes
			log.FailNext(logtest.OpAppend, logtest.Unavailable)
			log.FailNext(logtest.OpAppend, logtest.UnknownNotStored)
		}
		log.FailNext(logtest.OpAppend, logtest.UnknownStored)
		log.FailNext(logtest.OpLoad, logtest.Unavailable)
		if err := r.insist(t.Context(), who, "", &events.AuditExportEnded{Export: id}); err != nil {
			t.Fatal(err)
		}
		if n := len(log.Records()); n != 2 {
			t.Errorf("%d events, want a beginning and an end", n)
		}

		log.SetDown(true)
		ctx, cancel := context.WithTimeout(t.Context(), endBudget)
		defer cancel()
		began := time.Now()
		if err := r.insist(ctx, who, "", &events.AuditExportEnded{Export: id}); err == nil || time.Since(began) != endBudget {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		began = time.Now()
		if err := r.Record(t.Context(), who, &events.AuditExported{Kind: "uses", Format: "csv"}); err == nil || time.Since(began) != 0 {
			t.Errorf("a beginning: %v after %v", err, time.Since(began))
		}
	})
}
