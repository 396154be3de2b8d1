package verifier

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/projections"
)

// Readers decide while a role, a key and the definition change by turns, 10,000 times,
// so that each pair of a definition and a grant that ever held together denies
// what is asked for, and a new definition with the grant before would allow it. No
// decision may be one that neither version gives (V5).
func TestNoDecisionPairsNewRulesWithOldGrants(t *testing.T) {
	changes := 10_000
	if testing.Short() {
		changes = 1000
	}
	view := projections.NewKeys()
	seq := events.Seq(0)
	type chain struct {
		rev  uint64
		head events.Hash
	}
	chains := map[events.Aggregate]chain{}
	next := func(a events.Aggregate, d events.Data) {
		t.Helper()
		seq++
		c := chains[a]
		r := events.Recorded{Seq: seq, Event: events.Event{Aggregate: a, Rev: c.rev + 1, Prev: c.head, Data: d}}
		r.Hash = events.Hash{byte(seq), byte(seq >> 8), byte(seq >> 16), 1}
		chains[a] = chain{r.Rev, r.Hash}
		if err := view.Apply([]events.Recorded{r}); err != nil {
			t.Fatal(err)
		}
	}
	// Under definition i mod 3 the scope "write" is implied by "a", "b" or "c". The role
	// gives another one of them, at any time, and so is the third key's own.
	names := []string{"a", "b", "c"}
	define := func(i int) {
		def := scribeDefinition()
		def.Scopes = []keyspace.ScopeDef{{Name: "write"}, {Name: "a"}, {Name: "b"}, {Name: "c"}}
		def.Scopes[1+i%3].Implies = []string{"write"}
		next(events.KeyspaceAggregate(scribe), &events.KeyspaceDefined{Definition: def})
	}
	role := func(i int) {
		next(events.RoleAggregate(scribe, "acme", "dev"), &events.RoleDefined{Scopes: []string{names[i%3]}})
	}
	assign := func(i int) {
		next(events.KeyAggregate(scribe, "acme", events.KeyID{15: 3}), &events.KeyScopesAssigned{After: events.Grant{Scopes: []string{names[i%3]}}})
	}
	define(0)
	role(1)
	next(events.RoleAggregate(scribe, "acme", "idle"), &events.RoleDefined{Scopes: []string{}})
	var requests []*Request
	for i, roles := range [][]events.RoleID{{"dev"}, {"dev", "idle"}, nil} {
		secret := events.NewSecret(secretOf(fmt.Sprint("key", i)))
		var own []string
		if roles == nil {
			own = []string{names[1]}
		}
		next(events.KeyAggregate(scribe, "acme", events.KeyID{15: byte(i + 1)}), &events.KeyCreated{
			Digest: secret.Digest(), KeyType: "secret", Environment: "live", Roles: roles, Scopes: own})
		requests = append(requests, &Request{Secret: secret, Keyspace: scribe, Scope: "write"})
	}
	now := events.At(time.Now())
	var buckets Buckets
	var done atomic.Bool
	var decided, wrong atomic.Int64
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			for i := n; !done.Load(); i++ {
				d := Verify(view, &buckets, requests[i%3], now)
				decided.Add(1)
				if d.Reason != events.ReasonScopeMissing || len(d.Key.Scopes()) != 1 || d.Key.HasScope("write") {
					wrong.Add(1)
				}
				if holds(view, requests[i%3], now) {
					wrong.Add(1)
				}
			}
		})
	}
	// Definition i with grants i+1; then grants i+2 with definition i, then definition
	// i+1 with grants i+2, and so on: never i with i.
	for i := range changes {
		role(i + 2)
		assign(i + 2)
		define(i + 1)
	}
	for decided.Load() < 1000 { // on one slow core the readers may not have had their turn
		time.Sleep(time.Millisecond)
	}
	done.Store(true)
	wg.Wait()
	if wrong.Load() > 0 {
		t.Errorf("%d of %d decisions are those of no version", wrong.Load(), decided.Load())
	}
}

// A bucket stays with its key and its tenant, whatever becomes of the record, the limit
// and the definition: each change would fill it again otherwise.
func TestBucketsOutliveEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		a := w.key("spender", func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{PerMinute: 1, Burst: 100} })
		w.put(events.TenantAggregate(scribe, "acme"), &events.TenantLimitUpdated{After: &keyspace.Limit{PerMinute: 1, Burst: 1000}})
		ask := func() Limit {
			t.Helper()
			d := w.node.Decide(t.Context(), &Request{Secret: events.NewSecret(secretOf("spender")), Keyspace: scribe, Scope: "read", IP: inside})
			if !d.Allowed() {
				t.Fatal(d.Reason)
			}
			return d.Limit
		}
		left := ask().Remaining
		for _, change := range []func(){
			func() {
				w.put(a, &events.KeyRenamed{Before: events.Label{Name: "test"}, After: events.Label{Name: "x"}})
			},
			func() { w.define(scribe, scribeDefinition()) },
			func() { w.put(a, &events.KeyDisabled{}, &events.KeyEnabled{}) },
			func() {
				w.put(a, &events.KeyScopesAssigned{Before: events.Grant{Scopes: []string{"write"}}, After: events.Grant{Scopes: []string{"read"}}})
			},
			func() {
				for i := range 2000 { // the arena grows
					w.node.buckets.keys.at(projections.Slot(i * 700))
				}
			},
		} {
			change()
			if got := ask().Remaining; got != left-1 {
				t.Fatalf("%d tokens left, want %d", got, left-1)
			}
			left--
		}
		if l, _ := takeNow(w.node.buckets.tenants.at(0), events.At(time.Now()), 1, 1000, 0); l.Remaining != 1000-(100-left) {
			t.Errorf("the tenant has %d tokens left, %d were taken", l.Remaining, 100-left)
		}
	})
}

// However many ask for a bucket for the first time at once, all get the same one.
func TestBucketsAreMadeOnce(t *testing.T) {
	var b Buckets
	const slots = 300
	var got [8][slots]*Bucket
	var wg sync.WaitGroup
	for n := range got {
		wg.Go(func() {
			for i := range slots {
				got[n][i] = b.keys.at(projections.Slot(i * 511))
			}
		})
	}
	wg.Wait()
	seen := map[*Bucket]bool{}
	for i := range slots {
		for n := range got {
			if got[n][i] != got[0][i] {
				t.Fatalf("slot %d has two buckets", i*511)
			}
		}
		if seen[got[0][i]] {
			t.Fatalf("slot %d has the bucket of another", i*511)
		}
		seen[got[0][i]] = true
	}
}
