package verifier

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/projections"
)

// cloudOrder is the order of checks of cloudDefinition.
var cloudOrder = []events.Reason{
	events.ReasonKeyMissing, events.ReasonKeyMalformed, events.ReasonKeyUnknown, events.ReasonAddressNotAllowed,
	events.ReasonKeyRevoked, events.ReasonKeyExpired, events.ReasonKeyDisabled,
	events.ReasonScopeMissing, events.ReasonResourceNotAllowed, events.ReasonRateLimited,
}

// A blocked address is told before the key's state, where the keyspace says so:
// each reason with its neighbour, and with all that come after it.
func TestOrderOfCloud(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		def := cloudDefinition()
		def.Errors, def.TenantLimit = keyspace.ErrorRules{}, nil
		w.define(scribe, def)
		for i, want := range cloudOrder {
			for _, flaws := range [][]events.Reason{{want}, cloudOrder[i:min(i+2, len(cloudOrder))], cloudOrder[i:]} {
				if d := w.node.Decide(t.Context(), flawed(w, flaws)); d.Reason != want || d.Status != statusOf(&noKeyspace, want) {
					t.Errorf("flaws %v: %s, want %s", flaws, d.Reason, want)
				}
			}
		}
	})
}

// permutations yields every order of the list.
func permutations[T any](list []T, yield func([]T)) {
	if len(list) < 2 {
		yield(list)
		return
	}
	for i := range list {
		rest := slices.Delete(slices.Clone(list), i, i+1)
		permutations(rest, func(p []T) { yield(append([]T{list[i]}, p...)) })
	}
}

// Every order of the checks with every combination of flaws, against a twin that
// goes through the list. A token is taken when the limit is asked and has one:
// then a check that comes later refuses at the price of a token.
func TestEveryOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		now := events.At(time.Now())
		states := []events.Reason{events.ReasonOK, events.ReasonKeyRevoked, events.ReasonKeyExpired, events.ReasonKeyDisabled}
		for i := range states {
			a := w.key(fmt.Sprint("state", i), func(c *events.KeyCreated) {
				c.Allowlist = []netip.Prefix{office}
				c.Resources = []events.Resource{{Kind: "project", ID: "proj_1"}}
				c.Limit = &keyspace.Limit{PerMinute: 1, Burst: 2}
				if states[i] == events.ReasonKeyExpired {
					c.ExpiresAt = now
				}
			})
			switch states[i] {
			case events.ReasonKeyRevoked:
				w.put(a, &events.KeyRevoked{Code: events.RevokeCompromise})
			case events.ReasonKeyDisabled:
				w.put(a, &events.KeyDisabled{})
			}
		}
		orders := 0
		permutations(keyspace.DefaultChecks(), func(order []keyspace.Check) {
			orders++
			def := scribeDefinition()
			def.Checks = order
			w.define(scribe, def)
			for i, state := range states {
				for flaws := range 16 {
					req := &Request{Secret: events.NewSecret(secretOf(fmt.Sprint("state", i))), Keyspace: scribe, Scope: "read",
						Resource: events.Resource{Kind: "project", ID: "proj_1"}, IP: inside}
					fails := map[keyspace.Check]events.Reason{}
					if state != events.ReasonOK {
						fails[keyspace.CheckState] = state
					}
					if flaws&1 != 0 {
						fails[keyspace.CheckAddress], req.IP = events.ReasonAddressNotAllowed, netip.Addr{}
					}
					if flaws&2 != 0 {
						fails[keyspace.CheckScope], req.Scope = events.ReasonScopeMissing, "upload"
					}
					if flaws&4 != 0 {
						fails[keyspace.CheckResource], req.Resource.ID = events.ReasonResourceNotAllowed, "proj_2"
					}
					bucket := w.bucket(byte(i + 1))
					bucket.At.Store(int64(now))
					bucket.Owed.Store(0)
					left := int64(2)
					if flaws&8 != 0 {
						fails[keyspace.CheckLimit] = events.ReasonRateLimited
						bucket.Owed.Store(2 * perToken)
						left = 0
					}
					want := Decision{Reason: events.ReasonOK, Limit: Limit{Limit: 2, Scope: ScopeKey}}
					for _, c := range order {
						if want.Reason = fails[c]; want.Reason != events.ReasonNone {
							break
						}
						want.Reason = events.ReasonOK
						if c == keyspace.CheckLimit {
							left--
						}
					}
					want.Limit.Remaining, want.Limit.Reset = left, 60*(2-left)
					if want.Reason == events.ReasonRateLimited {
						want.Limit.RetryAfter = 60
					}
					if d := Verify(w.view, &w.node.buckets, req, now); d.Reason != want.Reason || d.Limit != want.Limit {
						t.Fatalf("order %v, %s, flaws %v: %s %+v, want %s %+v", order, state, fails, d.Reason, d.Limit, want.Reason, want.Limit)
					}
				}
			}
		})
		if orders != 120 {
			t.Fatalf("%d orders", orders)
		}
	})
}

// A key that came over plain HTTP is refused before all else, and the record
// names the key that went over the wire in the clear.
func TestHTTPSOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		def := scribeDefinition()
		def.HTTPSOnly = true
		def.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"https_required"}, Status: 426}}
		w.define(scribe, def)
		w.define("open", scribeDefinition())
		good := w.key("good", func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{PerMinute: 60, Burst: 2} })
		w.keyIn("open", "acme", secretOf("open"), nil)
		for _, c := range []struct {
			secret string
			ks     events.KeyspaceID
			want   events.Reason
			named  bool
		}{
			{secretOf("good"), scribe, events.ReasonHTTPSRequired, true},
			{secretOf("good"), "", events.ReasonHTTPSRequired, true}, // the key's own keyspace
			{"", scribe, events.ReasonHTTPSRequired, false},
			{"short", scribe, events.ReasonHTTPSRequired, false},
			{secretOf("nobody"), scribe, events.ReasonHTTPSRequired, false},
			{secretOf("open"), scribe, events.ReasonHTTPSRequired, false}, // a key of another keyspace is unknown here
			{secretOf("open"), "open", events.ReasonOK, true},
			{secretOf("good"), "open", events.ReasonKeyUnknown, false},
			{secretOf("nobody"), "", events.ReasonKeyUnknown, false},
		} {
			req := &Request{Secret: events.NewSecret(c.secret), Keyspace: c.ks, Insecure: true}
			d := w.node.Decide(t.Context(), req)
			pure := Verify(w.view, &w.node.buckets, req, d.At)
			if d.Reason != c.want || d.Key.Exists() != c.named || pure.Reason != d.Reason || pure.Status != d.Status || pure.Limit != d.Limit {
				t.Errorf("%.12q in %q: %s with key %v, purely %s; want %s", c.secret, c.ks, d.Reason, d.Key, pure.Reason, c.want)
			}
			if c.want == events.ReasonHTTPSRequired && d.Status != 426 {
				t.Errorf("status %d", d.Status)
			}
			if d.Key.Exists() && d.Key.Space.ID == scribe && d.Limit.Remaining != 2 {
				t.Errorf("it took a token: %+v", d.Limit)
			}
		}
		w.put(good, &events.KeyRevoked{Code: events.RevokeCompromise})
		time.Sleep(time.Minute) // stale by now
		d := w.node.Decide(t.Context(), &Request{Secret: events.NewSecret(secretOf("good")), Insecure: true})
		if d.Reason != events.ReasonHTTPSRequired {
			t.Errorf("revoked and stale: %s", d.Reason)
		}
		w.heartbeat()
		uses := w.end()[0].uses
		if u := uses[1]; u.Reason != events.ReasonHTTPSRequired || u.Key.String() != good.ID || u.Tenant != "acme" {
			t.Errorf("on the record: %+v", u)
		}
	})
}

// A secret that the checksum gives away is refused before any look-up, where a
// keyspace is named, until a key comes that need not have the checksum: an
// imported one, or one from before the checksum.
func TestJunk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := regimesWorld(t, nil)
		defer w.end()
		w.keyIn("hub", "acme", secretOf("unchecked"), nil) // as no issuer makes it: it shows that nothing is looked up
		w.keyIn("hub", "acme", "sk_live_imported_of_another_length", nil)
		ask := func(secret string, ks events.KeyspaceID) events.Reason {
			d := Verify(w.view, &w.node.buckets, &Request{Secret: events.NewSecret(secret), Keyspace: ks}, events.At(time.Now()))
			return d.Reason
		}
		typo := []byte(checkedSecret())
		typo[12]++
		for _, c := range []struct {
			secret string
			ks     events.KeyspaceID
			want   events.Reason
		}{
			{checkedSecret(), "hub", events.ReasonOK},
			{checkedSecret(), "", events.ReasonOK},
			{string(typo), "hub", events.ReasonKeyMalformed},
			{string(typo), "", events.ReasonKeyUnknown},
			{secretOf("unchecked"), "hub", events.ReasonKeyMalformed},
			{secretOf("unchecked"), "", events.ReasonOK},
			{"sk_live_imported_of_another_length", "hub", events.ReasonOK},
			{"pk_live_" + strings.Repeat("x", keyspace.DefaultSecretLength), "hub", events.ReasonKeyUnknown}, // a type without a checksum
			{secretOf("safe"), "locked", events.ReasonOK},
			{checkedSecret(), "locked", events.ReasonKeyUnknown},
		} {
			if got := ask(c.secret, c.ks); got != c.want {
				t.Errorf("%.16s in %q: %s, want %s", c.secret, c.ks, got, c.want)
			}
		}
		checked := *w.view.Keyspace("hub").Definition()
		w.define("hub", checked) // nothing changes
		if got := ask(secretOf("unchecked"), "hub"); got != events.ReasonKeyMalformed {
			t.Errorf("defined again: %s", got)
		}
		imported := &events.KeyImported{KeyCreated: events.KeyCreated{
			Digest: events.NewSecret(secretOf("imported")).Digest(), Name: "imported", KeyType: "secret"}}
		w.put(events.KeyAggregate("hub", "acme", events.KeyID{0xaa}), imported)
		w.fold()
		for secret, want := range map[string]events.Reason{
			secretOf("imported"): events.ReasonOK, secretOf("unchecked"): events.ReasonOK,
			checkedSecret(): events.ReasonOK, string(typo): events.ReasonKeyMalformed,
		} {
			if got := ask(secret, "hub"); got != want {
				t.Errorf("%.16s after an import: %s, want %s", secret, got, want)
			}
		}
		// A checksum that comes later takes no key away either.
		w.define("late", scribeDefinition())
		w.keyIn("late", "acme", secretOf("before"), nil)
		w.define("late", checked)
		if got := ask(secretOf("before"), "late"); got != events.ReasonOK {
			t.Errorf("a key from before the checksum: %s", got)
		}
		// Nor does a definition that comes after the keys.
		w.keyIn("later", "acme", secretOf("early"), nil)
		w.put(events.KeyAggregate("last", "acme", events.KeyID{0xab}), &events.KeyImported{KeyCreated: events.KeyCreated{
			Digest: events.NewSecret(secretOf("moved")).Digest(), Name: "moved", KeyType: "secret"}})
		w.define("later", checked)
		w.define("last", checked)
		for secret, ks := range map[string]events.KeyspaceID{secretOf("early"): "later", secretOf("moved"): "last"} {
			if got := ask(secret, ks); got != events.ReasonOK {
				t.Errorf("a key from before the definition of %s: %s", ks, got)
			}
		}
	})
}

// A scope with the level of a resource is used on a resource of that kind. It is
// a part of the resource check, wherever that stands.
func TestLevelOfAScope(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		def := scribeDefinition()
		def.Resources = []string{"project", "division"}
		def.Scopes = append(def.Scopes, keyspace.ScopeDef{Name: "deploy", Level: "division"}, keyspace.ScopeDef{Name: "members", Level: keyspace.LevelTenant},
			keyspace.ScopeDef{Name: "admin", Implies: []string{"deploy", "members"}})
		w.define(scribe, def)
		w.key("whole", func(c *events.KeyCreated) { c.Scopes = []string{"admin"} })
		w.key("one", func(c *events.KeyCreated) {
			c.Scopes = []string{"admin"}
			c.Resources = []events.Resource{{Kind: "division", ID: "d1"}}
		})
		w.key("none", nil)
		none, d1, d2, project := events.Resource{}, events.Resource{Kind: "division", ID: "d1"}, events.Resource{Kind: "division", ID: "d2"}, events.Resource{Kind: "project", ID: "d1"}
		for _, c := range []struct {
			word, scope string
			resource    events.Resource
			want        events.Reason
		}{
			{"whole", "deploy", none, events.ReasonResourceNotAllowed},
			{"whole", "deploy", d1, events.ReasonOK},
			{"whole", "deploy", d2, events.ReasonOK},
			{"whole", "deploy", project, events.ReasonResourceNotAllowed},
			{"whole", "members", none, events.ReasonOK},
			{"whole", "members", project, events.ReasonOK},
			{"whole", "admin", none, events.ReasonOK}, // a scope's own level, not that of what it implies
			{"whole", "", none, events.ReasonOK},
			{"one", "deploy", none, events.ReasonResourceNotAllowed},
			{"one", "deploy", d1, events.ReasonOK},
			{"one", "deploy", d2, events.ReasonResourceNotAllowed},
			{"one", "members", none, events.ReasonOK},
			{"none", "deploy", none, events.ReasonScopeMissing}, // the scope is checked first
		} {
			req := &Request{Secret: events.NewSecret(secretOf(c.word)), Keyspace: scribe, Scope: c.scope, Resource: c.resource}
			d := Verify(w.view, &w.node.buckets, req, events.At(time.Now()))
			if d.Reason != c.want {
				t.Errorf("%s, scope %q on %s: %s, want %s", c.word, c.scope, c.resource, d.Reason, c.want)
			}
			says := strings.Contains(detail(&d, req), "of kind division")
			if want := d.Reason == events.ReasonResourceNotAllowed && c.resource.Kind != "division"; says != want {
				t.Errorf("%s, scope %q on %s: %q", c.word, c.scope, c.resource, detail(&d, req))
			}
		}
		def.Checks = []keyspace.Check{keyspace.CheckResource, keyspace.CheckScope, keyspace.CheckState, keyspace.CheckAddress, keyspace.CheckLimit}
		w.define(scribe, def)
		d := Verify(w.view, &w.node.buckets, &Request{Secret: events.NewSecret(secretOf("none")), Keyspace: scribe, Scope: "deploy"}, events.At(time.Now()))
		if d.Reason != events.ReasonResourceNotAllowed {
			t.Errorf("the resource is checked first: %s", d.Reason)
		}
	})
}

// What an event says of a limit holds from its position on, for the tokens that
// were taken before as well.
func TestLimitsFollowTheirEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		now := events.At(time.Now())
		def := scribeDefinition()
		def.Plans = []keyspace.Plan{{Name: "free", PerMinute: 60, Burst: 10}, {Name: "team", PerMinute: 300, Burst: 50}}
		w.define(scribe, def)
		key := w.key("key", nil)
		w.key("sister", nil)
		w.keyIn(scribe, "other", secretOf("other"), nil)
		tenant := events.TenantAggregate(scribe, "acme")
		var was *keyspace.Limit
		limit := func(after *keyspace.Limit) {
			w.put(tenant, &events.TenantLimitUpdated{Before: was, After: after})
			was = after
		}
		check := func(what, word string, cost uint32, want Limit) {
			t.Helper()
			d := Verify(w.view, &w.node.buckets, &Request{Secret: events.NewSecret(secretOf(word)), Keyspace: scribe, Cost: cost}, now)
			if d.Limit != want {
				t.Errorf("%s: %+v, want %+v", what, d.Limit, want)
			}
		}
		lim := func(scope string, l Limit) Limit { l.Scope = scope; return l }
		check("no limit at all", "key", 5, Limit{})
		limit(&keyspace.Limit{Plan: "free"})
		check("the tenant's plan", "key", 4, lim(ScopeTenant, at(10, 6, 4, 0)))
		check("for all its keys", "sister", 4, lim(ScopeTenant, at(10, 2, 8, 0)))
		check("for no other tenant's", "other", 4, Limit{})
		check("exceeded", "key", 3, lim(ScopeTenant, at(10, 2, 8, 1)))
		limit(&keyspace.Limit{PerMinute: 60, Burst: 9})
		check("lowered: 8 are taken", "key", 1, lim(ScopeTenant, at(9, 0, 9, 0)))
		limit(&keyspace.Limit{Plan: "team"})
		check("raised: 9 are taken", "key", 1, lim(ScopeTenant, at(50, 40, 2, 0)))
		limit(nil)
		check("removed", "key", 500, Limit{})
		def.TenantLimit = &keyspace.Limit{Plan: "free"}
		w.define(scribe, def)
		check("the keyspace's default, for one tenant", "other", 1, lim(ScopeTenant, at(10, 9, 1, 0)))
		check("and for the other: 10 are taken", "key", 1, lim(ScopeTenant, at(10, 0, 10, 1)))
		limit(&keyspace.Limit{Plan: "team"})
		def.Plans = []keyspace.Plan{{Name: "basic", PerMinute: 1, Burst: 1}}
		def.TenantLimit = nil
		w.define(scribe, def)
		check("a plan that is gone keeps its last numbers", "key", 1, lim(ScopeTenant, at(50, 39, 3, 0)))
		check("the default does not stay", "other", 1, Limit{})
		w.put(key, &events.KeyLimitUpdated{After: &keyspace.Limit{PerMinute: 60, Burst: 20}})
		w.put(events.TenantAggregate(scribe, "other"), &events.TenantLimitUpdated{After: &keyspace.Limit{Plan: "pemium"}})
		check("a tenant's plan that never was admits nothing", "other", 1, lim(ScopeTenant, at(0, 0, 0, 0)))
		w.put(events.TenantAggregate(scribe, "other"), &events.TenantLimitUpdated{Before: &keyspace.Limit{Plan: "pemium"}})
		check("until it is taken back", "other", 1, Limit{})
		w.keyIn(scribe, "other", secretOf("misspelt"), func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{Plan: "pemium"} })
		check("nor does a key's", "misspelt", 1, lim(ScopeKey, at(0, 0, 0, 0)))
		check("the key's own is the tighter", "key", 1, lim(ScopeKey, at(20, 19, 1, 0)))
		check("its sister has none", "sister", 30, lim(ScopeTenant, at(50, 8, 9, 0)))
		check("now the tenant's is the tighter", "key", 1, lim(ScopeTenant, at(50, 7, 9, 0)))
		check("both refuse, the tenant for longer", "key", 19, lim(ScopeTenant, at(50, 7, 9, 3)))
		check("the key for ever", "key", 21, lim(ScopeKey, at(20, 18, 2, 0)))
	})
}

// The keyspace's own statuses, where it gives them.
func TestStatusOfARegime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		def := scribeDefinition()
		for _, r := range events.Reasons() {
			if !r.Allowed() && r != events.ReasonKeyDisabled && r != events.ReasonScopeMissing && r != events.ReasonBeyondOwnPower {
				def.Errors.Answers = append(def.Errors.Answers, keyspace.ErrorAnswer{Reasons: []string{r.String()}, Status: 500 + int(r)})
			}
		}
		def.Errors.Answers = append(def.Errors.Answers, keyspace.ErrorAnswer{Reasons: []string{"scope_missing"}, Code: "no_scope"}, // no status of its own
			keyspace.ErrorAnswer{Reasons: []string{keyspace.FailureInvalid}, Status: 400})
		w.define(scribe, def)
		g := &w.view.Keyspace(scribe).Rules().Compiled
		for _, r := range events.Reasons() {
			want := 500 + int(r)
			if r.Allowed() || r == events.ReasonKeyDisabled || r == events.ReasonScopeMissing || r == events.ReasonBeyondOwnPower {
				want = statusOf(&noKeyspace, r)
			}
			if got := statusOf(g, r); got != want {
				t.Errorf("%s: %d, want %d", r, got, want)
			}
		}
		if g.Status("200") != 0 {
			t.Error("a reason out of nowhere has a status")
		}
		for _, r := range theOrder {
			req := flawed(w, []events.Reason{r})
			d := w.node.Decide(t.Context(), req)
			if pure := Verify(w.view, &w.node.buckets, req, d.At); d.Reason != r || d.Status != statusOf(g, r) || pure.Status != d.Status {
				t.Errorf("%s: %d, purely %d", d.Reason, d.Status, pure.Status)
			}
		}
		// An endpoint whose keyspace is not named answers as the key's.
		d := w.node.Decide(t.Context(), &Request{Secret: events.NewSecret(secretOf("key0")), Scope: "upload", IP: inside})
		if d.Status != 403 {
			t.Errorf("%s: %d", d.Reason, d.Status)
		}
		time.Sleep(time.Minute)
		for _, ks := range []events.KeyspaceID{scribe, ""} {
			if d := w.node.Decide(t.Context(), &Request{Secret: events.NewSecret(secretOf("nobody")), Keyspace: ks}); d.Status != map[events.KeyspaceID]int{scribe: 512, "": 503}[ks] {
				t.Errorf("stale in %q: %d", ks, d.Status)
			}
		}
	})
}

// No path of a decision allocates, under any definition.
func TestRegimesAllocateNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := regimesWorld(t, nil)
		defer w.end()
		def := cloudDefinition()
		def.Checks = []keyspace.Check{keyspace.CheckLimit, keyspace.CheckResource, keyspace.CheckScope, keyspace.CheckAddress, keyspace.CheckState}
		w.define("limit-first", def)
		w.keyIn("limit-first", "acme", secretOf("eager"), func(c *events.KeyCreated) { c.Scopes = []string{"deploy"} })
		project := events.Resource{Kind: "project", ID: "proj_1"}
		now := events.At(time.Now())
		for name, req := range map[string]Request{
			"both limits":   {Secret: events.NewSecret(secretOf("first")), Keyspace: "cloud", Scope: "read"},
			"no scope":      {Secret: events.NewSecret(secretOf("second")), Keyspace: "cloud", Scope: "upload"},
			"revoked":       {Secret: events.NewSecret(secretOf("gone")), Keyspace: "cloud", IP: inside},
			"address":       {Secret: events.NewSecret(secretOf("gone")), Keyspace: "cloud"},
			"no project":    {Secret: events.NewSecret(secretOf("deployer")), Keyspace: "cloud", Scope: "deploy"},
			"a project":     {Secret: events.NewSecret(secretOf("deployer")), Keyspace: "cloud", Scope: "deploy", Resource: project},
			"limit first":   {Secret: events.NewSecret(secretOf("eager")), Keyspace: "limit-first", Scope: "read"},
			"plain HTTP":    {Secret: events.NewSecret(secretOf("safe")), Keyspace: "locked", Insecure: true},
			"junk":          {Secret: events.NewSecret(secretOf("junk")), Keyspace: "hub"},
			"checked":       {Secret: events.NewSecret(checkedSecret()), Keyspace: "hub"},
			"malformed":     {Secret: events.NewSecret("lat_live_8FjK4qHN00000000"), Keyspace: "locked"},
			"unknown":       {Secret: events.NewSecret(secretOf("nobody"))},
			"missing":       {Keyspace: "cloud"},
			"named nowhere": {Secret: events.NewSecret(secretOf("first")), Keyspace: "nowhere"},
		} {
			if n := testing.AllocsPerRun(100, func() { Verify(w.view, &w.node.buckets, &req, now) }); n > 0 {
				t.Errorf("%s: %v allocations", name, n)
			}
		}
	})
}

// A key may stand on the log before its keyspace: no scope, no limit, but known.
func TestKeyBeforeItsKeyspace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		early := projections.NewKeys()
		key := alone(w, w.keyIn("early", "acme", secretOf("early"), nil))
		if err := early.Apply(key); err != nil {
			t.Fatal(err)
		}
		for ks, want := range map[events.KeyspaceID]events.Reason{"early": events.ReasonOK, "": events.ReasonOK, "late": events.ReasonKeyUnknown} {
			if d := Verify(early, new(Buckets), &Request{Secret: events.NewSecret(secretOf("early")), Keyspace: ks}, events.At(time.Now())); d.Reason != want || d.Limit != (Limit{}) {
				t.Errorf("in %q: %s, want %s", ks, d.Reason, want)
			}
		}
	})
}

// alone returns the history of a, as the only one of its log.
func alone(w *world, a events.Aggregate) (out []events.Recorded) {
	for _, r := range w.log.Records() {
		if r.Aggregate == a {
			r.Seq = events.Seq(len(out) + 1)
			out = append(out, r)
		}
	}
	return out
}
