package commands_test

import (
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// changed returns acme with a change. Its lists are its own.
func changed(change func(*events.Definition)) events.Definition {
	d := acme
	d.KeyTypes, d.Scopes, d.Resources, d.Plans = slices.Clone(d.KeyTypes), slices.Clone(d.Scopes), slices.Clone(d.Resources), slices.Clone(d.Plans)
	change(&d)
	return d
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
	type definition = func(*events.Definition)
	same := func(*events.Definition) {}
	for _, tt := range []struct {
		name   string
		before definition
		key    func(*events.Key)
		after  definition
		want   string // violations as field:code
	}{
		{"nothing changes", same, plain, same, ""},
		{"the type is gone", same, plain, func(d *events.Definition) { d.KeyTypes = d.KeyTypes[1:] }, "type:unknown_type"},
		{"another type is gone", same, plain, func(d *events.Definition) { d.KeyTypes = d.KeyTypes[:1] }, ""},
		{"the environment is gone", same, plain, func(d *events.Definition) { d.KeyTypes[0].Environments = []string{"prod"} }, "environment:unknown_environment"},
		{"another comes first", same, plain, func(d *events.Definition) { d.KeyTypes[0].Environments = []string{"prod", "live"} }, ""},
		{"its scope is gone", same, plain, func(d *events.Definition) {
			d.Scopes = d.Scopes[1:]
			d.Scopes[0].Implies = nil
			d.KeyTypes[0].Defaults = nil
		}, "scopes[0]:unknown_scope"},
		{"another scope is gone", same, plain, func(d *events.Definition) { d.Scopes = drop(d.Scopes, 1) }, ""},
		{"implied no more", same, write, func(d *events.Definition) { d.Scopes[1].Implies = nil }, "scopes[1]:not_implied"},
		{"above a new ceiling", same, write, func(d *events.Definition) { d.KeyTypes[0].Ceiling = []string{"read"} }, "scopes[0]:above_ceiling scopes[1]:above_ceiling"},
		{"within a new ceiling", same, plain, func(d *events.Definition) { d.KeyTypes[0].Ceiling = []string{"read"} }, ""},
		{"a scope wants a resource", same, write, func(d *events.Definition) { d.Scopes[2].Level = "project" }, "scopes[0]:scope_level"},
		{"a scope wants none any more", same, func(k *events.Key) { k.Grant.Scopes = []string{"deploy"} }, func(d *events.Definition) { d.Scopes[3].Level = "" }, ""},
		{"what its role gives is gone", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"none", "writer"}} },
			func(d *events.Definition) { d.Scopes = drop(d.Scopes, 1) }, "roles[1]:not_implied roles[1]:unknown_scope"},
		{"a role that gives nothing", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"gone"}} },
			func(d *events.Definition) { d.Scopes = drop(d.Scopes, 1) }, ""},
		{"its role is above a ceiling", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"writer"}} },
			func(d *events.Definition) { d.KeyTypes[0].Ceiling = []string{"read"} }, "roles[0]:above_ceiling"},
		{"its resource kind is gone", same, func(k *events.Key) {
			k.Resources = []events.Resource{{Kind: "project", ID: "a"}, {Kind: "project", ID: "b"}}
		},
			func(d *events.Definition) { d.Resources = []string{"division"} }, "resources:unknown_kind"},
		{"its plan is gone", same, func(k *events.Key) { k.Limit = &events.Limit{Plan: "pro"} }, func(d *events.Definition) { d.Plans = nil }, "limit.plan:unknown_plan"},
		{"a plan is gone", same, func(k *events.Key) { k.Limit = &events.Limit{PerMinute: 1, Burst: 1} }, func(d *events.Definition) { d.Plans = nil }, ""},
		{"keys must expire", same, plain, func(d *events.Definition) { d.Expiry.Required = true }, "expires_at:required"},
		{"and it does", same, expires(400), func(d *events.Definition) { d.Expiry.Required = true }, ""},
		{"it lives too long", same, expires(31), func(d *events.Definition) { d.Expiry.Max = "30d" }, "expires_at:too_late"},
		{"it lives just long enough", same, expires(30), func(d *events.Definition) { d.Expiry.Max = "30d" }, ""},
		{"no end under a longest", same, plain, func(d *events.Definition) { d.Expiry.Max = "30d" }, "expires_at:required"},
		{"choices are for requests", same, expires(31), func(d *events.Definition) { d.Expiry.Choices = []events.Span{"30d", "never"} }, ""},
		{"something is required", same, func(k *events.Key) { k.Grant = events.Grant{} }, func(d *events.Definition) { d.Grants.Required = true }, "scopes:required"},
		{"by roles", same, plain, func(d *events.Definition) { d.Grants.By = events.GrantsByRoles }, "scopes:not_by_scopes"},
		{"by scopes", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"writer"}} },
			func(d *events.Definition) { d.Grants.By = events.GrantsByScopes }, "roles:not_by_roles"},
		{"a checksum, which keys that live need not have", same, plain, func(d *events.Definition) { d.KeyTypes[0].Length, d.KeyTypes[0].Checksum = 26, events.CRC32 }, ""},
		{"several", same, func(k *events.Key) { write(k); k.Limit = &events.Limit{Plan: "pro"} },
			func(d *events.Definition) { d.Scopes[1].Implies, d.Plans, d.Expiry.Required = nil, nil, true }, "scopes[1]:not_implied limit.plan:unknown_plan expires_at:required"},
		{"what was so already is not said again", func(d *events.Definition) { d.Expiry.Required, d.Grants.Required, d.Plans = true, true, nil },
			func(k *events.Key) { k.Grant, k.Limit = events.Grant{}, &events.Limit{Plan: "pro"} },
			func(d *events.Definition) {
				d.Title, d.Expiry.Required, d.Grants.Required, d.Plans = "x", true, true, nil
			}, ""},
		{"a disabled key lives", same, func(k *events.Key) { k.Status = events.StatusDisabled }, func(d *events.Definition) { d.Expiry.Required = true }, "expires_at:required"},
		{"a revoked key does not", same, func(k *events.Key) { k.Status = events.StatusRevoked }, func(d *events.Definition) { d.Expiry.Required = true }, "dead"},
		{"nor one whose time is up", same, expires(1), func(d *events.Definition) { d.Grants.By = events.GrantsByRoles }, "dead"},
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
			got := commands.ReviewDefinition(&before, &after, slices.Values([]*events.Key{k, k}), role, t0.Add(day))
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
		after func(*events.Definition)
		want  string
	}{
		{func(*events.Definition) {}, ""},
		{func(d *events.Definition) { d.Title, d.HTTPSOnly = "Acme", true }, "https_only title"},
		{func(d *events.Definition) { d.Expiry = events.ExpiryPolicy{Max: "30d"} }, "expiry"},
		{func(d *events.Definition) { d.KeyTypes[1].Length, d.KeyTypes[1].Ceiling = 40, []string{"read"} }, "key_types[publishable].ceiling key_types[publishable].length"},
		{func(d *events.Definition) { d.KeyTypes[0], d.KeyTypes[1] = d.KeyTypes[1], d.KeyTypes[0] }, "key_types"},
		{func(d *events.Definition) { d.Scopes = append(drop(d.Scopes, 0), events.ScopeDef{Name: "fly"}) }, "scopes[fly] scopes[read]"},
		{func(d *events.Definition) { d.Scopes[1].Implies = []string{"read", "upload"} }, "scopes[write].implies"},
		{func(d *events.Definition) { d.Plans = nil }, "plans"},
		{func(d *events.Definition) { d.Plans[0].Burst++ }, "plans[pro].burst"},
		{func(d *events.Definition) { d.Errors.Envelope = []byte(`{"a":"{code}"}`) }, "errors"},
	} {
		before, after := changed(func(*events.Definition) {}), changed(tt.after)
		r := commands.ReviewDefinition(&before, &after, func(func(*events.Key) bool) {}, nil, t0)
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
		d := func(n string) *events.Definition {
			d := changed(func(d *events.Definition) { d.Errors.Envelope = []byte(`{"n":` + n + `}`) })
			if err := d.Validate().OrNil(); err != nil {
				t.Fatal(err)
			}
			return &d
		}
		r := commands.ReviewDefinition(d(tt.before), d(tt.after), func(func(*events.Key) bool) {}, nil, t0)
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
	before := changed(func(*events.Definition) {})
	after := changed(func(d *events.Definition) {
		d.Expiry.Required = true
		d.Scopes = drop(d.Scopes, 2)
		d.KeyTypes[1].Ceiling = nil
	})
	asked := 0
	role := func(events.TenantID, events.RoleID) (events.Role, bool) {
		asked++
		return events.Role{Chain: events.Chain{Rev: 1}, Scopes: []string{"read"}}, true
	}
	r := commands.ReviewDefinition(&before, &after, herd(50_000), role, t0)
	if r.Keys != 50_000 || r.Violating != 5_500 || len(r.Violations) != commands.MaxViolations {
		t.Errorf("%d of %d, %d listed", r.Violating, r.Keys, len(r.Violations))
	}
	if asked > 2*100 {
		t.Errorf("roles of 100 tenants were asked for %d times", asked)
	}
}

// BenchmarkReview holds a million keys against the next definition.
func BenchmarkReview(b *testing.B) {
	before := changed(func(*events.Definition) {})
	after := changed(func(d *events.Definition) {
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
		commands.ReviewDefinition(&before, &after, keys, role, t0)
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
	after := changed(func(d *events.Definition) { d.Expiry.Required = true })
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

// TestReviewTellsNoKeysToOthers: who may define keyspaces and not read keys learns
// how many keys do not fit, and nothing of any of them.
func TestReviewTellsNoKeysToOthers(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	k := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "unspoken"}).Key
	definer := w.create(n, events.Builtin, commands.Create{Tenant: events.RootTenant, Name: "definer", Scopes: ptr([]string{events.ScopeKeyspacesWrite})}).Secret
	const body = `{"key_types":[{"name":"secret"}]}`
	for _, tt := range []struct {
		query string
		code  int
		tells string
	}{
		{"?dry_run=true", http.StatusOK, `"violations":[],"violating":1,"keys":1`},
		{"", http.StatusConflict, `"1 of 1 live keys do not fit this definition. Nothing`},
	} {
		a := n.do(definer, "PUT", "/v1/keyspaces/acme"+tt.query, body)
		if a.Code != tt.code || !strings.Contains(a.Body.String(), tt.tells) {
			t.Errorf("%q: %d %s", tt.query, a.Code, a.Body)
		}
		for _, s := range []string{k.ID.String(), "t1", "unspoken"} {
			if strings.Contains(a.Body.String(), s) {
				t.Errorf("%q tells %s: %s", tt.query, s, a.Body)
			}
		}
	}
}

// TestPermissionsAtOnce: two nodes make one key with permissions under one
// idempotency key; there is one key and one role.
func TestPermissionsAtOnce(t *testing.T) {
	w := newWorld(t)
	n, other := w.node("one"), w.node("two")
	w.define(n, "acme", acme)
	p := w.log.PauseNext(logtest.OpAppend, logtest.BeforeEffect)
	create := func(n *node) (commands.Done, error) {
		return n.Create(t.Context(), w.call("k", "x"), "acme", &commands.Create{Tenant: "t1", Name: "a", Permissions: &commands.Permissions{Scopes: &[]string{"write"}}})
	}
	type result struct {
		commands.Done
		err error
	}
	first := make(chan result)
	go func() {
		done, err := create(n)
		first <- result{done, err}
	}()
	<-p.Entered()
	done, err := create(other)
	p.Resume()
	late := <-first
	if err != nil || late.err != nil || done.Replayed || !late.Replayed || late.Key.ID != done.Key.ID {
		t.Fatalf("%v, %v: replayed %t, %t", err, late.err, done.Replayed, late.Replayed)
	}
	w.secrets = append(w.secrets, done.Secret)
	var types []string
	for _, r := range w.log.Records()[3:] {
		types = append(types, string(r.Type())+" "+r.Aggregate.ID)
	}
	id := done.Key.ID.String()
	if want := []string{"role.defined " + strings.ToLower(id), "key.created " + id}; !slices.Equal(types, want) {
		t.Errorf("the log holds %q, want %q", types, want)
	}
	logtest.CheckLog(t, w.log)
}

// TestTenantLimitWriters lets two nodes set one tenant's limit at once: each
// event names what it replaces.
func TestTenantLimitWriters(t *testing.T) {
	w := newWorld(t)
	n, other := w.node("one"), w.node("two")
	w.define(n, "acme", acme)
	p := w.log.PauseNext(logtest.OpAppend, logtest.BeforeEffect)
	set := func(n *node, rate int64) error {
		_, _, err := n.SetTenantLimit(t.Context(), w.call("", ""), "acme", "t1", &commands.SetTenantLimit{Limit: commands.Some(events.Limit{PerMinute: rate, Burst: rate})})
		return err
	}
	first := make(chan error)
	go func() { first <- set(n, 1) }()
	<-p.Entered()
	if err := set(other, 2); err != nil {
		t.Error(err)
	}
	p.Resume()
	if err := <-first; err != nil {
		t.Error(err)
	}
	var last *events.TenantLimitUpdated
	for _, r := range w.log.Records() {
		if d, ok := r.Data.(*events.TenantLimitUpdated); ok {
			last = d
		}
	}
	if last == nil || last.Before == nil || last.Before.PerMinute != 2 || last.After.PerMinute != 1 {
		t.Errorf("the last is %+v", last)
	}
	logtest.CheckLog(t, w.log)
}

// TestTenantLimitOfOperators: a limit of all operators together holds for
// administrators too, so it is theirs to set.
func TestTenantLimitOfOperators(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	writer := w.create(n, events.Builtin, commands.Create{Tenant: events.RootTenant, Name: "writer", Scopes: ptr([]string{events.ScopeKeysWrite})}).Secret
	const body = `{"limit":{"per_minute":1,"burst":1}}`
	for _, tt := range []struct {
		as   events.Secret
		path string
		want int
	}{
		{writer, "/v1/keyspaces/keytrail/tenants/operators/limit", http.StatusForbidden},
		{writer, "/v1/keyspaces/acme/tenants/t1/limit", http.StatusOK},
		{w.root, "/v1/keyspaces/keytrail/tenants/operators/limit", http.StatusOK},
	} {
		if a := n.do(tt.as, "PUT", tt.path, body); a.Code != tt.want {
			t.Errorf("%s: %d %s, want %d", tt.path, a.Code, a.Body, tt.want)
		}
	}
}

// TestRegimesWordsForTheLog: what is not the caller's fault is told in the
// regime's words as well, with when to come again.
func TestRegimesWordsForTheLog(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", changed(func(d *events.Definition) {
		d.Errors = events.ErrorRules{ContentType: "application/vnd.acme+json", Envelope: []byte(`{"error":{"code":"{code}","reason":"{reason}","retry":"{retry_after}","status":"{status}"}}`)}
	}))
	w.log.SetDown(true)
	a := n.do(w.root, "POST", "/v1/keyspaces/acme/keys", `{"tenant":"t1","name":"a"}`, "Prefer", "envelope=regime")
	w.log.SetDown(false)
	var body struct {
		Error struct {
			Code, Reason  string
			Retry, Status int
		}
	}
	if err := json.Unmarshal(a.Body.Bytes(), &body, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Fatal(err)
	}
	if e := body.Error; a.Code != http.StatusServiceUnavailable || e.Code != "unavailable" || e.Reason != "unavailable" || e.Retry != 1 || e.Status != 503 ||
		a.Header().Get("Retry-After") != "1" || a.Header().Get("Content-Type") != "application/vnd.acme+json" {
		t.Errorf("%d %v %s", a.Code, a.Header(), a.Body)
	}
}
