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
)

// theOrder is the documented order of checks from the secret on.
var theOrder = []events.Reason{
	events.ReasonKeyMissing, events.ReasonKeyMalformed, events.ReasonKeyUnknown,
	events.ReasonKeyRevoked, events.ReasonKeyExpired, events.ReasonKeyDisabled,
	events.ReasonAddressNotAllowed, events.ReasonScopeMissing, events.ReasonResourceNotAllowed, events.ReasonRateLimited,
}

// flawed makes a key and a request that fail exactly the checks given.
func flawed(w *world, flaws []events.Reason) *Request {
	has := func(r events.Reason) bool { return slices.Contains(flaws, r) }
	word := fmt.Sprint("key", w.made)
	a := w.key(word, func(c *events.KeyCreated) {
		c.Allowlist = []netip.Prefix{office}
		c.Resources = []events.Resource{{Kind: "project", ID: "proj_1"}}
		c.Limit = &keyspace.Limit{PerMinute: 1, Burst: 1}
		if has(events.ReasonKeyExpired) {
			c.ExpiresAt = events.At(time.Now().Add(time.Second))
		}
	})
	req := &Request{Secret: events.NewSecret(secretOf(word)), Keyspace: scribe, Scope: "read",
		Resource: events.Resource{Kind: "project", ID: "proj_1"}, IP: inside}
	if has(events.ReasonRateLimited) {
		if d := w.node.Decide(w.t.Context(), req); !d.Allowed() {
			w.t.Fatalf("the first request takes the only token: %s", d.Reason)
		}
	}
	if has(events.ReasonKeyDisabled) {
		w.put(a, &events.KeyDisabled{})
	}
	if has(events.ReasonKeyRevoked) {
		w.put(a, &events.KeyRevoked{Code: events.RevokeCompromise})
	}
	if has(events.ReasonAddressNotAllowed) {
		req.IP = netip.MustParseAddr("198.51.100.1")
	}
	if has(events.ReasonScopeMissing) {
		req.Scope = "upload"
	}
	if has(events.ReasonResourceNotAllowed) {
		req.Resource.ID = "proj_2"
	}
	switch {
	case has(events.ReasonKeyMissing):
		req.Secret = events.Secret{}
	case has(events.ReasonKeyMalformed):
		req.Secret = events.NewSecret("lat_live_8FjK4qHN00000000")
	case has(events.ReasonKeyUnknown):
		req.Secret = events.NewSecret(secretOf("nobody"))
	}
	time.Sleep(time.Second) // the expiry comes
	w.heartbeat()
	return req
}

// Each reason alone, each with its neighbour, and each with all that come after
// it: the first check that fails names the decision.
func TestOrderOfChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		if d := w.node.Decide(t.Context(), flawed(w, nil)); !d.Allowed() || d.Status != 200 || !d.Key.Exists() {
			t.Fatalf("no flaw: %+v", d)
		}
		for i, want := range theOrder {
			for _, flaws := range [][]events.Reason{{want}, theOrder[i:min(i+2, len(theOrder))], theOrder[i:]} {
				req := flawed(w, flaws)
				d := w.node.Decide(t.Context(), req)
				if d.Reason != want || d.Allowed() {
					t.Errorf("flaws %v: %s, want %s", flaws, d.Reason, want)
				}
				if pure := Verify(w.view, &w.node.buckets, req, d.At); pure.Reason != want || pure.Seq != d.Seq || pure.Key != d.Key {
					t.Errorf("flaws %v: Verify says %s, want %s", flaws, pure.Reason, want)
				}
				if !d.Key.Exists() != (i <= 2) || (d.Limit == Limit{}) != (i <= 2) || (d.Limit.RetryAfter > 0) != (want == events.ReasonRateLimited) {
					t.Errorf("flaws %v: key %v, limit %+v", flaws, d.Key, d.Limit)
				}
			}
		}
		stale := flawed(w, theOrder[:1])
		time.Sleep(10*time.Second + time.Millisecond)
		if d := w.node.Decide(t.Context(), stale); d.Reason != events.ReasonVerifierStale || d.Status != 503 {
			t.Errorf("stale before all: %s", d.Reason)
		}
		def := scribeDefinition()
		def.HTTPSOnly = true
		w.define(scribe, def)
		stale.Insecure = true
		if d := w.node.Decide(t.Context(), stale); d.Reason != events.ReasonHTTPSRequired || d.Status != 403 {
			t.Errorf("HTTPS before all: %s", d.Reason)
		}
		// Every one of those decisions is on the record, as it was made. Only
		// ReasonBeyondOwnPower is never a verifier's.
		e := w.end()[0]
		seen := map[events.Reason]bool{}
		for _, u := range e.uses {
			seen[u.Reason] = true
		}
		if len(seen) != len(events.Reasons())-1 || e.end != uint64(len(e.uses)) {
			t.Errorf("%d of %d reasons, %d of %d uses on the record", len(seen), len(events.Reasons()), len(e.uses), e.end)
		}
	})
}

func TestStatusOfEveryReason(t *testing.T) {
	want := map[events.Reason]int{1: 200, 2: 401, 3: 401, 4: 401, 5: 401, 6: 401, 7: 401, 8: 403, 9: 403, 10: 403, 11: 429, 12: 503, 13: 403, 14: 403}
	for _, r := range append(events.Reasons(), events.ReasonNone) {
		if got := statusOf(&noKeyspace, r); got != want[r] && !(r == events.ReasonNone && got == 503) {
			t.Errorf("%s: %d, want %d", r, got, want[r])
		}
	}
}

func TestVerify(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.define("twin", scribeDefinition()) // keys of the same form
		w.define("lattica", keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "live", Prefix: "lat_live_"}}})
		now := events.At(time.Now())
		plainKey := w.key("plain", nil)
		w.key("expiring", func(c *events.KeyCreated) { c.ExpiresAt = now + 1000 })
		w.key("limited", func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{PerMinute: 60, Burst: 5} })
		w.key("listed", func(c *events.KeyCreated) { c.Allowlist = []netip.Prefix{office} })
		w.keyIn("twin", "acme", secretOf("elsewhere"), nil)
		for _, secret := range []string{"an-imported-key-of-its-own-form", "twelve-chars", strings.Repeat("long", 75), "my old pass phrase", "schlüssel-von-früher"} {
			w.imported(secret, &events.KeyImported{})
		}
		w.imported("revoked-here", &events.KeyImported{Status: events.StatusRevoked, RevokeCode: events.RevokeUnspecified})
		ask := func(secret string, change func(*Request)) *Request {
			r := &Request{Secret: events.NewSecret(secret), Keyspace: scribe}
			if change != nil {
				change(r)
			}
			return r
		}
		for _, c := range []struct {
			name string
			req  *Request
			now  events.Time
			want events.Reason
		}{
			{"no keyspace named", ask(secretOf("plain"), func(r *Request) { r.Keyspace = "" }), now, events.ReasonOK},
			{"a scope held", ask(secretOf("plain"), func(r *Request) { r.Scope = "write" }), now, events.ReasonOK},
			{"a scope implied", ask(secretOf("plain"), func(r *Request) { r.Scope = "read" }), now, events.ReasonOK},
			{"a scope that nobody defined", ask(secretOf("plain"), func(r *Request) { r.Scope = "reads" }), now, events.ReasonScopeMissing},
			{"a resource, of an unrestricted key", ask(secretOf("plain"), func(r *Request) { r.Resource = events.Resource{Kind: "project", ID: "x"} }), now, events.ReasonOK},

			{"one ms before the expiry", ask(secretOf("expiring"), nil), now + 999, events.ReasonOK},
			{"at the expiry's own ms", ask(secretOf("expiring"), nil), now + 1000, events.ReasonKeyExpired},
			{"one ms after", ask(secretOf("expiring"), nil), now + 1001, events.ReasonKeyExpired},

			{"of another keyspace with the same form", ask(secretOf("elsewhere"), nil), now, events.ReasonKeyUnknown},
			{"of this keyspace, another named", ask(secretOf("plain"), func(r *Request) { r.Keyspace = "twin" }), now, events.ReasonKeyUnknown},
			{"of this keyspace, one with another form named", ask(secretOf("plain"), func(r *Request) { r.Keyspace = "lattica" }), now, events.ReasonKeyMalformed},
			{"a keyspace that is not defined", ask(secretOf("plain"), func(r *Request) { r.Keyspace = "nowhere" }), now, events.ReasonKeyUnknown},
			{"a form of its own, imported", ask("an-imported-key-of-its-own-form", nil), now, events.ReasonOK},
			{"the same form, not imported", ask("an-imported-key-of-no-one-at-all", nil), now, events.ReasonKeyMalformed},
			{"the same form, no keyspace named", ask("an-imported-key-of-no-one-at-all", func(r *Request) { r.Keyspace = "" }), now, events.ReasonKeyUnknown},

			{"12 characters, imported", ask("twelve-chars", nil), now, events.ReasonOK},
			{"300 characters, imported", ask(strings.Repeat("long", 75), nil), now, events.ReasonOK},
			{"spaces, imported", ask("my old pass phrase", nil), now, events.ReasonOK},
			{"not ASCII, imported", ask("schlüssel-von-früher", nil), now, events.ReasonOK},
			{"12 characters, imported and revoked", ask("revoked-here", nil), now, events.ReasonKeyRevoked},
			{"12 characters, not imported", ask("twelve-other", nil), now, events.ReasonKeyMalformed},
			{"15 characters", ask(strings.Repeat("x", 15), func(r *Request) { r.Keyspace = "" }), now, events.ReasonKeyMalformed},
			{"16 characters", ask(strings.Repeat("x", 16), func(r *Request) { r.Keyspace = "" }), now, events.ReasonKeyUnknown},
			{"256 characters", ask(strings.Repeat("x", 256), func(r *Request) { r.Keyspace = "" }), now, events.ReasonKeyUnknown},
			{"257 characters", ask(strings.Repeat("x", 257), func(r *Request) { r.Keyspace = "" }), now, events.ReasonKeyMalformed},
			{"a space in it", ask(secretOf("pl ain"), nil), now, events.ReasonKeyMalformed},
			{"a NUL in it", ask(secretOf("pl\x00ain"), nil), now, events.ReasonKeyMalformed},
			{"a DEL in it", ask(secretOf("pl\x7fain"), nil), now, events.ReasonKeyMalformed},
			{"not ASCII", ask(secretOf("plä"), nil), now, events.ReasonKeyMalformed},
			{"the secret and a line break", ask(secretOf("plain")+"\n", nil), now, events.ReasonKeyMalformed},
			{"in upper case", ask(strings.ToUpper(secretOf("plain")), nil), now, events.ReasonKeyMalformed},

			{"an address on the list", ask(secretOf("listed"), func(r *Request) { r.IP = inside }), now, events.ReasonOK},
			{"the same address, in IPv6", ask(secretOf("listed"), func(r *Request) { r.IP = netip.MustParseAddr("::ffff:203.0.113.7") }), now, events.ReasonOK},
			{"no address", ask(secretOf("listed"), nil), now, events.ReasonAddressNotAllowed},

			{"a cost above the burst", ask(secretOf("limited"), func(r *Request) { r.Cost = 6 }), now, events.ReasonRateLimited},
			{"the whole burst at once: the refusal took nothing", ask(secretOf("limited"), func(r *Request) { r.Cost = 5 }), now, events.ReasonOK},
			{"then nothing is left", ask(secretOf("limited"), nil), now, events.ReasonRateLimited},
			{"one ms too early", ask(secretOf("limited"), nil), now + 999, events.ReasonRateLimited},
			{"a second later", ask(secretOf("limited"), nil), now + 1000, events.ReasonOK},
		} {
			if d := Verify(w.view, &w.node.buckets, c.req, c.now); d.Reason != c.want || d.Status != statusOf(&noKeyspace, c.want) || d.At != c.now || d.Seq != w.view.At() {
				t.Errorf("%s: %s, want %s", c.name, d.Reason, c.want)
			}
		}

		// A change is in force from its own position on, and not before.
		req := ask(secretOf("plain"), nil)
		for _, c := range []struct {
			data events.Data
			want events.Reason
		}{
			{&events.KeyDisabled{}, events.ReasonKeyDisabled},
			{&events.KeyEnabled{}, events.ReasonOK},
			{&events.KeyAllowlistUpdated{After: []netip.Prefix{office}}, events.ReasonAddressNotAllowed},
			{&events.KeyAllowlistUpdated{Before: []netip.Prefix{office}}, events.ReasonOK},
			{&events.KeyRevoked{Code: events.RevokeSuperseded}, events.ReasonKeyRevoked},
		} {
			before := Verify(w.view, &w.node.buckets, req, now)
			w.put(plainKey, c.data)
			after := Verify(w.view, &w.node.buckets, req, now)
			if after.Reason != c.want || before.Reason == after.Reason || after.Seq != before.Seq+1 {
				t.Errorf("%s: %s at %d, then %s at %d", c.data.EventType(), before.Reason, before.Seq, after.Reason, after.Seq)
			}
		}
	})
}

// An otherwise refused request takes no token (V3).
func TestTokensOfRefusedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		for _, r := range theOrder[:len(theOrder)-1] {
			req := flawed(w, []events.Reason{r})
			w.node.Decide(t.Context(), req)
			if w.bucket(byte(w.made)).Owed.Load() != 0 {
				t.Errorf("%s: a token is gone", r)
			}
		}
	})
}

func TestVerifyAllocatesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // no time passes, so that nothing is stored while it counts
		w := newWorld(t, nil)
		w.key("limited", func(c *events.KeyCreated) {
			c.Limit = &keyspace.Limit{PerMinute: 1e9, Burst: 1e9}
			c.Allowlist = []netip.Prefix{office}
			c.Resources = []events.Resource{{Kind: "project", ID: "proj_1"}}
		})
		req := &Request{Secret: events.NewSecret(secretOf("limited")), Keyspace: scribe, Scope: "read",
			Resource: events.Resource{Kind: "project", ID: "proj_1"}, IP: inside}
		now := events.At(time.Now())
		if n := testing.AllocsPerRun(1000, func() {
			if d := Verify(w.view, &w.node.buckets, req, now); !d.Allowed() {
				t.Fatal(d.Reason)
			}
		}); n > 0 {
			t.Errorf("Verify: %v allocations", n)
		}
		ctx := t.Context()
		if n := testing.AllocsPerRun(1000, func() {
			if d := w.node.Decide(ctx, req); !d.Allowed() {
				t.Fatal(d.Reason)
			}
		}); n > 0 {
			t.Errorf("Decide: %v allocations", n)
		}
		w.end()
	})
}

// A question without a keyspace means those of products: an operator's key is
// good only where the built-in keyspace is named.
func TestOperatorsKeyNeedsItsKeyspaceNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		operator := "kt_" + strings.Repeat("a", 40)
		w.keyIn(events.Builtin, events.RootTenant, operator, func(c *events.KeyCreated) {
			c.KeyType, c.Environment, c.Scopes = "operator", "", []string{events.ScopeAuditRead}
		})
		w.key("plain", nil)
		for _, c := range []struct {
			secret   string
			keyspace events.KeyspaceID
			want     events.Reason
		}{
			{operator, "", events.ReasonKeyUnknown},
			{operator, events.Builtin, events.ReasonOK},
			{secretOf("plain"), "", events.ReasonOK},
			{secretOf("plain"), events.Builtin, events.ReasonKeyMalformed}, // not the form of its keys
		} {
			req := Request{Secret: events.NewSecret(c.secret), Keyspace: c.keyspace}
			d := w.node.Decide(t.Context(), &req)
			if known := c.want == events.ReasonOK; d.Reason != c.want || d.Key.Exists() != known {
				t.Errorf("%q in %q: %s", c.secret[:4], c.keyspace, d.Reason)
			}
		}
	})
}
