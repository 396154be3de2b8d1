package commands_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestReviewWidening: what gives a live key power, or every key, is listed, and
// nothing else is.
func TestReviewWidening(t *testing.T) {
	writer := events.Role{Chain: events.Chain{Rev: 1}, ID: "writer", Scopes: []string{"write"}}
	role := func(_ events.TenantID, id events.RoleID) (events.Role, bool) { return writer, id == "writer" }
	in := func(kinds ...string) func(*events.Key) {
		return func(k *events.Key) {
			for _, kind := range kinds {
				k.Resources = append(k.Resources, events.Resource{Kind: kind, ID: "x"})
			}
			k.Grant.Scopes = []string{"deploy"}
		}
	}
	plain := func(*events.Key) {}
	type definition = func(*keyspace.Definition)
	same := func(*keyspace.Definition) {}
	for _, tt := range []struct {
		name   string
		before definition
		key    func(*events.Key)
		after  definition
		want   string // field:code
	}{
		{"nothing changes", same, plain, same, ""},
		{"its scope implies another", same, plain, func(d *keyspace.Definition) { d.Scopes[0].Implies = []string{"upload"} }, "scopes[0]:scope_gained"},
		{"its role's scope implies another", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"writer"}} },
			func(d *keyspace.Definition) { d.Scopes[1].Implies = []string{"read", "upload"} }, "roles[0]:scope_gained"},
		{"another scope implies more", same, plain, func(d *keyspace.Definition) { d.Scopes[2].Implies = []string{"write"} }, ""},
		{"a role that it does not hold", same, func(k *events.Key) { k.Grant = events.Grant{Roles: []events.RoleID{"none"}} },
			func(d *keyspace.Definition) { d.Scopes[1].Implies = []string{"read", "upload"} }, ""},
		{"its ceiling is raised", func(d *keyspace.Definition) { d.KeyTypes[0].Ceiling = []string{"read"} }, func(k *events.Key) { k.Grant.Scopes = []string{"write"} },
			same, "scopes[0]:scope_gained"},
		{"its ceiling is lifted over what it does not hold", func(d *keyspace.Definition) { d.KeyTypes[0].Ceiling = []string{"read"} }, plain, same, ""},
		{"its scope comes back", func(d *keyspace.Definition) {
			d.Scopes = drop(d.Scopes, 0)
			d.Scopes[0].Implies = nil
			d.KeyTypes[0].Defaults = nil
		}, plain, same, "scopes[0]:scope_gained"},
		{"its type comes back", func(d *keyspace.Definition) { d.KeyTypes = drop(d.KeyTypes, 0) }, plain, same, "scopes[0]:scope_gained"},
		{"its scope rises to the tenant", same, in("division"), func(d *keyspace.Definition) { d.Scopes[3].Level = "" }, "scopes[0]:scope_level"},
		{"the same, said so", same, in("division"), func(d *keyspace.Definition) { d.Scopes[3].Level = keyspace.LevelTenant }, "scopes[0]:scope_level"},
		{"it had the tenant anyway", same, in(), func(d *keyspace.Definition) { d.Scopes[3].Level = "" }, ""},
		{"its scope moves to a kind that it has", same, in("project"), func(d *keyspace.Definition) { d.Scopes[3].Level = "project" }, "scopes[0]:scope_level"},
		{"its scope moves to a kind that it has not", same, in("division"), func(d *keyspace.Definition) { d.Scopes[3].Level = "project" }, ""},
		{"its scope is bound to a kind", func(d *keyspace.Definition) { d.Scopes[3].Level = "" }, in("division"), same, ""},
		{"plain HTTP", func(d *keyspace.Definition) { d.HTTPSOnly = true }, plain, same, "https_only:plain_http"},
		{"HTTPS only", same, plain, func(d *keyspace.Definition) { d.HTTPSOnly = true }, ""},
		{"cut off and open", same, plain, func(d *keyspace.Definition) { d.Staleness.OnStale = "allow" }, "staleness.on_stale:on_stale"},
		{"cut off and closed", func(d *keyspace.Definition) { d.Staleness.OnStale = "allow" }, plain, func(d *keyspace.Definition) { d.Staleness.OnStale = "deny" }, ""},
		{"cut off for longer", same, plain, func(d *keyspace.Definition) { d.Staleness.MaxMillis = 10_001 }, "staleness.max_millis:max_millis"},
		{"cut off as long as by default", same, plain, func(d *keyspace.Definition) { d.Staleness.MaxMillis = 10_000 }, ""},
		{"limits of each node", func(d *keyspace.Definition) { d.Limits = keyspace.LimitsExact }, plain, same, "limits:limits"},
		{"limits of each node while the allocator is away", func(d *keyspace.Definition) { d.Limits = keyspace.LimitsExact }, plain,
			func(d *keyspace.Definition) { d.Limits = keyspace.LimitsExactElseLocal }, "limits:limits"},
		{"limits of all nodes", same, plain, func(d *keyspace.Definition) { d.Limits = keyspace.LimitsExact }, ""},
		{"another order of checks", same, plain, func(d *keyspace.Definition) {
			d.Checks = []keyspace.Check{keyspace.CheckAddress, keyspace.CheckState, keyspace.CheckScope, keyspace.CheckResource, keyspace.CheckLimit}
		}, ""},
		{"a revoked key", same, func(k *events.Key) { k.Status = events.StatusRevoked }, func(d *keyspace.Definition) { d.Scopes[0].Implies = []string{"upload"} }, ""},
		{"nobody to gain", func(d *keyspace.Definition) { d.HTTPSOnly = true }, func(k *events.Key) { k.Status = events.StatusRevoked }, same, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, after := changed(tt.before), changed(tt.after)
			if err := after.Validate().OrNil(); err != nil {
				t.Fatalf("not a definition: %v", err)
			}
			k := &events.Key{ID: events.KeyID{1}, Keyspace: "acme", Tenant: "t1", Label: events.Label{Name: "ci"}, KeyType: "secret", Environment: "live",
				Grant: events.Grant{Scopes: []string{"read"}}, Status: events.StatusActive, CreatedAt: t0}
			tt.key(k)
			got := reviewed(&before, &after, slices.Values([]*events.Key{k, k}), role, t0.Add(day))
			list, widened := []string{}, 0
			for _, x := range got.Widening {
				list = append(list, x.Field+":"+x.Code)
				if x.Message == "" || !x.KeyID.IsZero() && (x.KeyID != k.ID || x.Tenant != "t1" || x.Name != "ci") {
					t.Errorf("%+v", x)
				}
			}
			want := tt.want
			if want != "" {
				widened = 2
				if strings.HasPrefix(want, "scopes") || strings.HasPrefix(want, "roles") {
					want += " " + want // of each key
				}
			}
			if s := strings.Join(list, " "); s != want || got.Widened != widened {
				t.Errorf("%d: %q, want %d: %q", got.Widened, s, widened, want)
			}
		})
	}
}

// TestWideningIsAccepted: a definition by which live keys gain power is refused,
// with the keys, until the request says that this is meant.
func TestWideningIsAccepted(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	k := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "reader"}).Key
	wider := changed(func(d *keyspace.Definition) { d.Scopes[0].Implies = []string{"upload"} })
	body, err := json.Marshal(&wider)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		query string
		code  int
		tells string
	}{
		{"", http.StatusConflict, "1 of 1 live keys gain power by this definition, as " + k.ID.String() + ` (scopes[0]): the key could use scope \"upload\"`},
		{"?accept_violations=true", http.StatusConflict, `"code":"widening"`},
		{"?dry_run=true&accept_widening=true", http.StatusUnprocessableEntity, `"field":"accept_widening"`},
		{"?dry_run=true", http.StatusOK, `"widening":[{"key_id":"` + k.ID.String() + `","tenant":"t1","name":"reader","field":"scopes[0]","code":"scope_gained"`},
		{"?accept_widening=true", http.StatusOK, `"rev":2`},
		{"", http.StatusOK, `"rev":2`}, // it stands
	} {
		size := len(w.log.Records())
		a := n.do(w.root, "PUT", "/v1/keyspaces/acme"+tt.query, string(body))
		if a.Code != tt.code || !strings.Contains(a.Body.String(), tt.tells) {
			t.Errorf("%q: %d %s", tt.query, a.Code, a.Body)
		}
		wrote := 0
		if tt.query == "?accept_widening=true" {
			wrote = 1
		}
		if got := len(w.log.Records()) - size; got != wrote {
			t.Errorf("%q: %d events", tt.query, got)
		}
	}
}

// TestDeletedRoleAgain: who defines a deleted role again is told which live keys
// would have its scopes by that, and the role keeps its level.
func TestDeletedRoleAgain(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	const path = "/v1/keyspaces/acme/tenants/t1/roles/ops"
	step := func(method, query, body string, code int, tells string) {
		t.Helper()
		size := len(w.log.Records())
		a := n.do(w.root, method, path+query, body)
		if a.Code != code || !strings.Contains(a.Body.String(), tells) {
			t.Errorf("%s %s%s: %d %s, want %d %s", method, query, body, a.Code, a.Body, code, tells)
		}
		if wrote := len(w.log.Records()) > size; wrote != (code == http.StatusOK) {
			t.Errorf("%s %s%s: wrote %t", method, query, body, wrote)
		}
	}
	hold := func(name string, tenant events.TenantID, change commands.Change) events.KeyID {
		t.Helper()
		id := w.create(n, "acme", commands.Create{Tenant: tenant, Name: name, Roles: []events.RoleID{"ops"}, Resources: resources("division", "d")}).Key.ID
		if change != nil {
			if _, err := n.Change(t.Context(), w.call("", ""), "test", id, change); err != nil {
				t.Fatal(err)
			}
		}
		return id
	}
	step("PUT", "", `{"level":"division","scopes":["deploy"]}`, http.StatusOK, `"level":"division"`)
	step("DELETE", "", "", http.StatusOK, `"level":"division"`)
	// Nobody holds it: it comes back unasked, at its level, named or not.
	step("PUT", "", `{"level":"tenant","scopes":["write"]}`, http.StatusUnprocessableEntity, `"code":"immutable"`)
	step("PUT", "", `{"scopes":["write"]}`, http.StatusUnprocessableEntity, `"code":"scope_level"`)
	step("PUT", "", `{"scopes":["deploy"]}`, http.StatusOK, `"level":"division"`)
	first, second := hold("ci", "t1", nil), hold("paused", "t1", new(commands.Disable))
	hold("gone", "t1", new(commands.Revoke))
	step("DELETE", "", "", http.StatusOK, `"deleted":true`)
	names := `live keys hold it still (2): \"ci\" (` + first.String() + `), \"paused\" (` + second.String() + `). They`
	step("PUT", "", `{"level":"division","scopes":["deploy"]}`, http.StatusConflict, names)
	step("PUT", "", `{"level":"division","scopes":[]}`, http.StatusConflict, names) // it could be filled afterwards
	step("PUT", "?accept_holders=", `{"scopes":["deploy"]}`, http.StatusUnprocessableEntity, "accept_holders")
	step("PUT", "?accept_holders=true", `{"level":"division","scopes":["deploy"]}`, http.StatusOK, `"deleted":false`)
	step("PUT", "", `{"scopes":[]}`, http.StatusOK, `"rev":6`) // it exists: no question
	for i := range 25 {
		hold(fmt.Sprint("many ", i), "t1", nil)
	}
	step("DELETE", "", "", http.StatusOK, `"deleted":true`)
	a := n.do(w.root, "PUT", path, `{"scopes":["deploy"]}`)
	if a.Code != http.StatusConflict || strings.Count(a.Body.String(), `\" (key_`) != 20 || !strings.Contains(a.Body.String(), "(27): ") || !strings.Contains(a.Body.String(), " and 7 more.") {
		t.Errorf("many: %d %s", a.Code, a.Body)
	}
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
		{"?dry_run=true", http.StatusOK, `"violations":[],"violating":1,"violating_tenants":0,"widening":[],"widened":0,"keys":1`},
		{"", http.StatusConflict, `"1 of 1 live keys do not fit this definition, or lose by it. Nothing`},
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
		_, _, err := n.SetTenantLimit(t.Context(), w.call("", ""), "acme", "t1", &commands.SetTenantLimit{Limit: commands.Some(keyspace.Limit{PerMinute: rate, Burst: rate})})
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

// TestRegimesWordsForTheLog: what is not the caller's fault is told in the
// regime's words as well, with when to come again.
func TestRegimesWordsForTheLog(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", changed(func(d *keyspace.Definition) {
		d.Errors = keyspace.ErrorRules{ContentType: "application/vnd.acme+json", Envelope: []byte(`{"error":{"code":"{code}","reason":"{reason}","retry":"{retry_after}","status":"{status}"}}`)}
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
