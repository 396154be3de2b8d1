package commands_test

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// changed returns acme with a change. Its lists are its own.
func changed(change func(*keyspace.Definition)) keyspace.Definition {
	d := acme
	d.KeyTypes, d.Scopes, d.Resources, d.Plans = slices.Clone(d.KeyTypes), slices.Clone(d.Scopes), slices.Clone(d.Resources), slices.Clone(d.Plans)
	change(&d)
	return d
}

// reviewed reviews a definition for keys whose tenants have no limit of their own.
func reviewed(before, after *keyspace.Definition, keys iter.Seq[*events.Key], role func(events.TenantID, events.RoleID) (events.Role, bool), now events.Time) *commands.Review {
	return commands.ReviewDefinition(&events.Keyspace{Definition: *before}, after, commands.Holders{Keys: keys, Role: role}, now)
}

func drop[T any](list []T, i int) []T { return slices.Delete(slices.Clone(list), i, i+1) }

func TestReviewDefinition(t *testing.T) {
	role := func(tenant events.TenantID, id events.RoleID) (events.Role, bool) {
		switch {
		case tenant == "t1" && id == "writer":
			return events.Role{Chain: events.Chain{Rev: 1}, ID: id, Scopes: []string{"write"}}, true
		case tenant == "t1" && id == "gone":
			return events.Role{Chain: events.Chain{Rev: 2}, ID: id, Scopes: []string{"write"}, Deleted: true}, true
		}
		return events.Role{}, false
	}
	key := func(change func(*events.Key)) *events.Key {
		k := &events.Key{ID: events.KeyID{1}, Keyspace: "acme", Tenant: "t1", Label: events.Label{Name: "ci"}, KeyType: "secret", Environment: "live",
			Hint: "sk_live_abcd", Grant: events.Grant{Scopes: []string{"read"}}, Status: events.StatusActive, CreatedAt: t0}
		change(k)
		return k
	}
	plain := func(*events.Key) {}
	write := func(k *events.Key) { k.Grant.Scopes = []string{"upload", "write"} }
	expires := func(n int) func(*events.Key) {
		return func(k *events.Key) { k.ExpiresAt = t0.Add(time.Duration(n) * day) }
	}
	type definition = func(*keyspace.Definition)
	same := func(*keyspace.Definition) {}
	for _, tt := range []struct {
		name   string
		before definition
		key    func(*events.Key)
		after  definition
		want   string // violations as field:code
	}{
		{"nothing changes", same, plain, same, ""},
		{"the type is gone", same, plain, func(d *keyspace.Definition) { d.KeyTypes = d.KeyTypes[1:] }, "type:unknown_type"},
		{"another type is gone", same, plain, func(d *keyspace.Definition) { d.KeyTypes = d.KeyTypes[:1] }, ""},
		{"the environment is gone", same, plain, func(d *keyspace.Definition) { d.KeyTypes[0].Environments = []string{"prod"} }, "environment:unknown_environment"},
		{"another comes first", same, plain, func(d *keyspace.Definition) { d.KeyTypes[0].Environments = []string{"prod", "live"} }, ""},
		{"its scope is gone", same, plain, func(d *keyspace.Definition) {
			d.Scopes = d.Scopes[1:]
			d.Scopes[0].Implies = nil
			d.KeyTypes[0].Defaults = nil
		}, "scopes[0]:unknown_scope"},
		{"another scope is gone", same, plain, func(d *keyspace.Definition) { d.Scopes = drop(d.Scopes, 1) }, ""},
		{"implied no more", same, write, func(d *keyspace.Definition) { d.Scopes[1].Implies = nil }, "scopes[1]:not_implied"},
		{"above a new ceiling", same, write, func(d *keyspace.Definition) { d.KeyTypes[0].Ceiling = []string{"read"} }, "scopes[0]:above_ceiling scopes[1]:above_ceiling"},
		{"within a new ceiling", same, plain, func(d *keyspace.Definition) { d.KeyTypes[0].Ceiling = []string{"read"} }, ""},
		{"a scope wants a resource", same, write, func(d *keyspace.Definition) { d.Scopes[2].Level = "project" }, "scopes[0]:scope_level"},
		{"a scope wants none any more", same, func(k *events.Key) { k.Grant.Scopes = []string{"deploy"} }, func(d *keyspace.Definition) { d.Scopes[3].Level = "" }, ""},
		{"what its role gives is gone", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"none", "writer"}} },
			func(d *keyspace.Definition) { d.Scopes = drop(d.Scopes, 1) }, "roles[1]:not_implied roles[1]:unknown_scope"},
		{"a role that gives nothing", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"gone"}} },
			func(d *keyspace.Definition) { d.Scopes = drop(d.Scopes, 1) }, ""},
		{"its role is above a ceiling", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"writer"}} },
			func(d *keyspace.Definition) { d.KeyTypes[0].Ceiling = []string{"read"} }, "roles[0]:above_ceiling"},
		{"its resource kind is gone", same, func(k *events.Key) {
			k.Resources = []events.Resource{{Kind: "project", ID: "a"}, {Kind: "project", ID: "b"}}
		},
			func(d *keyspace.Definition) { d.Resources = []string{"division"} }, "resources:unknown_kind"},
		{"its plan is gone", same, func(k *events.Key) { k.Limit = &keyspace.Limit{Plan: "pro"} }, func(d *keyspace.Definition) { d.Plans = nil }, "limit.plan:unknown_plan"},
		{"a plan is gone", same, func(k *events.Key) { k.Limit = &keyspace.Limit{PerMinute: 1, Burst: 1} }, func(d *keyspace.Definition) { d.Plans = nil }, ""},
		{"keys must expire", same, plain, func(d *keyspace.Definition) { d.Expiry.Required = true }, "expires_at:required"},
		{"and it does", same, expires(400), func(d *keyspace.Definition) { d.Expiry.Required = true }, ""},
		{"it lives too long", same, expires(31), func(d *keyspace.Definition) { d.Expiry.Max = "30d" }, "expires_at:too_late"},
		{"it lives just long enough", same, expires(30), func(d *keyspace.Definition) { d.Expiry.Max = "30d" }, ""},
		{"no end under a longest", same, plain, func(d *keyspace.Definition) { d.Expiry.Max = "30d" }, "expires_at:required"},
		{"choices are for requests", same, expires(31), func(d *keyspace.Definition) { d.Expiry.Choices = []keyspace.Span{"30d", "never"} }, ""},
		{"something is required", same, func(k *events.Key) { k.Grant = events.Grant{} }, func(d *keyspace.Definition) { d.Grants.Required = true }, "scopes:required"},
		{"by roles", same, plain, func(d *keyspace.Definition) { d.Grants.By = keyspace.GrantsByRoles }, "scopes:not_by_scopes"},
		{"by scopes", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"writer"}} },
			func(d *keyspace.Definition) { d.Grants.By = keyspace.GrantsByScopes }, "roles:not_by_roles"},
		{"a checksum, which keys that live need not have", same, plain, func(d *keyspace.Definition) { d.KeyTypes[0].Length, d.KeyTypes[0].Checksum = 26, keyspace.CRC32 }, ""},
		{"several", same, func(k *events.Key) { write(k); k.Limit = &keyspace.Limit{Plan: "pro"} },
			func(d *keyspace.Definition) { d.Scopes[1].Implies, d.Plans, d.Expiry.Required = nil, nil, true }, "scopes[1]:not_implied limit.plan:unknown_plan expires_at:required"},
		{"what was so already is not said again", func(d *keyspace.Definition) { d.Expiry.Required, d.Grants.Required, d.Plans = true, true, nil },
			func(k *events.Key) { k.Grant, k.Limit = events.Grant{}, &keyspace.Limit{Plan: "pro"} },
			func(d *keyspace.Definition) {
				d.Title, d.Expiry.Required, d.Grants.Required, d.Plans = "x", true, true, nil
			}, ""},
		{"a disabled key lives", same, func(k *events.Key) { k.Status = events.StatusDisabled }, func(d *keyspace.Definition) { d.Expiry.Required = true }, "expires_at:required"},
		{"a revoked key does not", same, func(k *events.Key) { k.Status = events.StatusRevoked }, func(d *keyspace.Definition) { d.Expiry.Required = true }, "dead"},
		{"nor one whose time is up", same, expires(1), func(d *keyspace.Definition) { d.Grants.By = keyspace.GrantsByRoles }, "dead"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, after := changed(tt.before), changed(tt.after)
			if err := after.Validate().OrNil(); err != nil {
				t.Fatalf("not a definition: %v", err)
			}
			k := key(tt.key)
			live := 2
			if tt.want == "dead" {
				live, tt.want = 0, ""
			}
			// Twice, so that the kept verdict is asked as well.
			got := reviewed(&before, &after, slices.Values([]*events.Key{k, k}), role, t0.Add(day))
			var list []string
			for _, v := range got.Violations {
				list = append(list, v.Field+":"+v.Code)
				if v.KeyID != k.ID || v.Tenant != "t1" || v.Name != "ci" || v.Message == "" {
					t.Errorf("%+v", v)
				}
			}
			want := strings.TrimSpace(tt.want + " " + tt.want)
			violating := 0
			if tt.want != "" {
				violating = live
			}
			if s := strings.Join(list, " "); s != want || got.Violating != violating || got.Keys != live {
				t.Errorf("%d of %d: %s\nwant %d of %d: %s", got.Violating, got.Keys, s, violating, live, want)
			}
		})
	}
}

func TestReviewChanges(t *testing.T) {
	for _, tt := range []struct {
		after func(*keyspace.Definition)
		want  string
	}{
		{func(*keyspace.Definition) {}, ""},
		{func(d *keyspace.Definition) { d.Title, d.HTTPSOnly = "Acme", true }, "https_only title"},
		{func(d *keyspace.Definition) { d.Expiry = keyspace.ExpiryPolicy{Max: "30d"} }, "expiry"},
		{func(d *keyspace.Definition) { d.KeyTypes[1].Length, d.KeyTypes[1].Ceiling = 40, []string{"read"} }, "key_types[publishable].ceiling key_types[publishable].length"},
		{func(d *keyspace.Definition) { d.KeyTypes[0], d.KeyTypes[1] = d.KeyTypes[1], d.KeyTypes[0] }, "key_types"},
		{func(d *keyspace.Definition) { d.Scopes = append(drop(d.Scopes, 0), keyspace.ScopeDef{Name: "fly"}) }, "scopes[fly] scopes[read]"},
		{func(d *keyspace.Definition) { d.Scopes[1].Implies = []string{"read", "upload"} }, "scopes[write].implies"},
		{func(d *keyspace.Definition) { d.Plans = nil }, "plans"},
		{func(d *keyspace.Definition) { d.Plans[0].Burst++ }, "plans[pro].burst"},
		{func(d *keyspace.Definition) { d.Errors.Envelope = []byte(`{"a":"{code}"}`) }, "errors"},
	} {
		before, after := changed(func(*keyspace.Definition) {}), changed(tt.after)
		r := reviewed(&before, &after, func(func(*events.Key) bool) {}, nil, t0)
		if got := strings.Join(r.Changes, " "); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}

// TestReviewAnyNumber: an envelope may hold numbers that no float64 holds, and
// such a definition can be replaced.
func TestReviewAnyNumber(t *testing.T) {
	for _, tt := range []struct{ before, after, want string }{
		{`1e400`, `1e400`, ""},
		{`1e400`, `"1e401"`, "errors.envelope.n"},
		{`9007199254740992`, `9007199254740993`, "errors.envelope.n"},
	} {
		d := func(n string) *keyspace.Definition {
			d := changed(func(d *keyspace.Definition) { d.Errors.Envelope = []byte(`{"n":` + n + `}`) })
			if err := d.Validate().OrNil(); err != nil {
				t.Fatal(err)
			}
			return &d
		}
		r := reviewed(d(tt.before), d(tt.after), func(func(*events.Key) bool) {}, nil, t0)
		if got := strings.Join(r.Changes, " "); got != tt.want {
			t.Errorf("%s, then %s: got %q, want %q", tt.before, tt.after, got, tt.want)
		}
	}
}

// herd yields n keys of a hundred tenants: one in ten never expires, and one in a
// hundred holds upload.
func herd(n int) iter.Seq[*events.Key] {
	keys := make([]events.Key, n)
	for i := range keys {
		k := &keys[i]
		*k = events.Key{ID: events.KeyID{byte(i >> 16), byte(i >> 8), byte(i), 1}, Keyspace: "acme", Tenant: events.TenantID(fmt.Sprint("t", i%100)),
			Label: events.Label{Name: fmt.Sprint("key ", i)}, KeyType: "secret", Environment: "live", Hint: "sk_live_abcd", Status: events.StatusActive, CreatedAt: t0,
			Grant: events.Grant{Scopes: []string{"read", "write"}}, Resources: []events.Resource{{Kind: "project", ID: fmt.Sprint("p", i)}}}
		if i%10 != 0 {
			k.ExpiresAt = t0.Add(30 * day)
		}
		if i%100 == 7 {
			k.Grant = events.Grant{Scopes: []string{"upload"}, Roles: []events.RoleID{"reader"}}
		}
	}
	return func(yield func(*events.Key) bool) {
		for i := range keys {
			if !yield(&keys[i]) {
				return
			}
		}
	}
}

// TestReviewMany: all are counted, a thousand are listed, and what many hold is
// judged once.
func TestReviewMany(t *testing.T) {
	before := changed(func(*keyspace.Definition) {})
	after := changed(func(d *keyspace.Definition) {
		d.Expiry.Required = true
		d.Scopes = drop(d.Scopes, 2)
		d.KeyTypes[1].Ceiling = nil
	})
	asked := 0
	role := func(events.TenantID, events.RoleID) (events.Role, bool) {
		asked++
		return events.Role{Chain: events.Chain{Rev: 1}, Scopes: []string{"read"}}, true
	}
	r := reviewed(&before, &after, herd(50_000), role, t0)
	if r.Keys != 50_000 || r.Violating != 5_500 || len(r.Violations) != commands.MaxViolations {
		t.Errorf("%d of %d, %d listed", r.Violating, r.Keys, len(r.Violations))
	}
	if asked > 2*100 {
		t.Errorf("roles of 100 tenants were asked for %d times", asked)
	}
}

// BenchmarkReview holds a million keys against the next definition.
func BenchmarkReview(b *testing.B) {
	before := changed(func(*keyspace.Definition) {})
	after := changed(func(d *keyspace.Definition) {
		d.Expiry.Required = true
		d.Scopes = drop(d.Scopes, 2)
		d.KeyTypes[1].Ceiling = nil
	})
	role := func(events.TenantID, events.RoleID) (events.Role, bool) {
		return events.Role{Chain: events.Chain{Rev: 1}, Scopes: []string{"read"}}, true
	}
	const n = 1_000_000
	keys := herd(n)
	for b.Loop() {
		reviewed(&before, &after, keys, role, t0)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/key")
}

// TestDefinitionThatKeysDoNotFit: a dry run and a refusal write nothing, and the
// same request goes through once it is said to be meant.
func TestDefinitionThatKeysDoNotFit(t *testing.T) {
	w := newWorld(t)
	n, other := w.node("one"), w.node("two")
	w.define(n, "acme", acme)
	for i := range 5 {
		w.create(n, "acme", commands.Create{Tenant: "t1", Name: fmt.Sprint("key ", i)})
	}
	w.create(n, "acme", commands.Create{Tenant: "t1", Name: "mortal", ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("1h")}})
	after := changed(func(d *keyspace.Definition) { d.Expiry.Required = true })
	size := len(w.log.Records())
	ks, review, err := other.ReviewKeyspace(t.Context(), w.call("k", "dry"), "acme", &commands.DefineKeyspace{Definition: after})
	if err != nil || review.Violating != 5 || review.Keys != 6 || !slices.Equal(review.Changes, []string{"expiry"}) || ks.Rev != 2 || !ks.Definition.Expiry.Required {
		t.Fatalf("%+v of rev %d, %v", review, ks.Rev, err)
	}
	_, _, err = other.DefineKeyspace(t.Context(), w.call("k", "define"), "acme", &commands.DefineKeyspace{Definition: after})
	if codeOf(err) != "violations" || !strings.Contains(err.Error(), "5 of 6") || strings.Count(err.Error(), "key_") != 3 {
		t.Errorf("not accepted: %v", err)
	}
	if got := len(w.log.Records()); got != size {
		t.Fatalf("%d events of what writes nothing", got-size)
	}
	_, done, err := other.DefineKeyspace(t.Context(), w.call("k", "define"), "acme", &commands.DefineKeyspace{Definition: after, AcceptViolations: true})
	if err != nil || len(w.log.Records()) != size+1 {
		t.Fatalf("accepted: %v", err)
	}
	// The retry is answered although the keys do not fit, by either node.
	_, again, err := n.DefineKeyspace(t.Context(), w.call("k", "define"), "acme", &commands.DefineKeyspace{Definition: after})
	if err != nil || !again.Replayed || again.Seq != done.Seq {
		t.Errorf("again: %+v, %v", again, err)
	}
	// What they were let off is not held against them.
	after.Title = "Acme"
	if _, _, err := n.DefineKeyspace(t.Context(), w.call("", ""), "acme", &commands.DefineKeyspace{Definition: after}); err != nil {
		t.Errorf("another change: %v", err)
	}
	logtest.CheckLog(t, w.log)
}
