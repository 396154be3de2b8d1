package commands_test

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// membersOf lists the members of a document's type by their paths.
func membersOf(t reflect.Type, path string) (out []string) {
	for t.Kind() == reflect.Slice && t != reflect.TypeFor[jsontext.Value]() || t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return []string{path}
	}
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		out = append(out, membersOf(f.Type, strings.TrimPrefix(path+"."+name, "."))...)
	}
	return out
}

// takes lists the power that a change of one member can take, and the keys, roles or
// tenants that lose it.
type takes struct {
	change func(*keyspace.Definition)
	want   string // violations as field:code, of the key "one" of tenant t1, of tenant t2 (t2/field:code), or of all (*field:code)
	why    string // where nothing is taken: why
}

// TestEveryMemberOfADefinitionIsReviewed: for each member that a definition has,
// it is decided whether a change of it takes something from living keys or
// tenants. A member that is new fails this test until that is decided.
func TestEveryMemberOfADefinitionIsReviewed(t *testing.T) {
	const request = "it is asked about when a key is created or changed"
	const form = "a key is looked up before its secret's form is asked about (D18, D31)"
	const words = "it changes the words of an answer, not the decision"
	before := keyspace.Definition{
		KeyTypes:  []keyspace.KeyType{{Name: "secret", Environments: []string{"live", "test"}, Prefix: "sk_", Defaults: []string{"read"}}},
		Scopes:    []keyspace.ScopeDef{{Name: "read"}, {Name: "write", Implies: []string{"read"}}},
		Resources: []string{"project"},
		Plans:     []keyspace.Plan{{Name: "pro", PerMinute: 600, Burst: 60}, {Name: "team", PerMinute: 600, Burst: 60}},
		Limit:     &keyspace.Limit{PerMinute: 60, Burst: 6}, TenantLimit: &keyspace.Limit{PerMinute: 900, Burst: 90},
		Staleness: keyspace.Staleness{MaxMillis: 5000},
	}
	table := map[string]takes{
		"title":       {func(d *keyspace.Definition) { d.Title = "x" }, "", "it is for people"},
		"description": {func(d *keyspace.Definition) { d.Description = "x" }, "", "it is for people"},

		"key_types.name":         {func(d *keyspace.Definition) { d.KeyTypes[0].Name = "other" }, "type:unknown_type", ""},
		"key_types.environments": {func(d *keyspace.Definition) { d.KeyTypes[0].Environments = []string{"test"} }, "environment:unknown_environment", ""},
		"key_types.prefix":       {func(d *keyspace.Definition) { d.KeyTypes[0].Prefix = "pk_" }, "", form},
		"key_types.alphabet":     {func(d *keyspace.Definition) { d.KeyTypes[0].Alphabet = keyspace.Hex }, "", form},
		"key_types.length":       {func(d *keyspace.Definition) { d.KeyTypes[0].Length = 40 }, "", form},
		"key_types.checksum":     {func(d *keyspace.Definition) { d.KeyTypes[0].Checksum = keyspace.CRC32 }, "", form},
		"key_types.defaults":     {func(d *keyspace.Definition) { d.KeyTypes[0].Defaults = nil }, "", request},
		"key_types.ceiling":      {func(d *keyspace.Definition) { d.KeyTypes[0].Ceiling = []string{"read"} }, "scopes[0]:above_ceiling", ""},
		"key_types.description":  {func(d *keyspace.Definition) { d.KeyTypes[0].Description = "x" }, "", "it is for people"},

		"credential.header": {func(d *keyspace.Definition) { d.Credential.Header = "X-Api-Key" }, "*credential:credential", ""},
		"credential.scheme": {func(d *keyspace.Definition) { d.Credential.Scheme = "Token" }, "*credential:credential", ""},
		"cors.origins":      {func(d *keyspace.Definition) { d.CORS.Origins = []string{"https://a.example"} }, "", words},
		"https_only":        {func(d *keyspace.Definition) { d.HTTPSOnly = true }, "*https_only:https_only", ""},

		"scopes.name":        {func(d *keyspace.Definition) { d.Scopes[1].Name = "change" }, "scopes[0]:unknown_scope scopes[0]:not_implied", ""},
		"scopes.description": {func(d *keyspace.Definition) { d.Scopes[1].Description = "x" }, "", "it is for people"},
		"scopes.implies":     {func(d *keyspace.Definition) { d.Scopes[1].Implies = nil }, "scopes[0]:not_implied", ""},
		"scopes.level":       {func(d *keyspace.Definition) { d.Scopes[1].Level = "project" }, "scopes[0]:scope_level", ""},

		"grants.required": {func(d *keyspace.Definition) { d.Grants.Required = true }, "", "the key has a scope; see TestReviewDefinition"},
		"grants.fixed":    {func(d *keyspace.Definition) { d.Grants.Fixed = true }, "", request},
		"grants.by":       {func(d *keyspace.Definition) { d.Grants.By = keyspace.GrantsByRoles }, "scopes:not_by_scopes", ""},

		"resources": {func(d *keyspace.Definition) { d.Resources = []string{"division"} }, "resources:unknown_kind", ""},

		"expiry.required": {func(d *keyspace.Definition) { d.Expiry.Required = true }, "expires_at:required", ""},
		"expiry.max":      {func(d *keyspace.Definition) { d.Expiry.Max = "30d" }, "expires_at:required", ""},
		"expiry.default":  {func(d *keyspace.Definition) { d.Expiry.Default = "30d" }, "", request},
		"expiry.choices":  {func(d *keyspace.Definition) { d.Expiry.Choices = []keyspace.Span{"30d"} }, "", request},

		"plans.name":       {func(d *keyspace.Definition) { d.Plans[1].Name = "crew" }, "t2/limit.plan:unknown_plan", ""},
		"plans.per_minute": {func(d *keyspace.Definition) { d.Plans[1].PerMinute = 599 }, "t2/limit:lower_limit", ""},
		"plans.burst":      {func(d *keyspace.Definition) { d.Plans[1].Burst = 59 }, "t2/limit:lower_limit", ""},

		"limit.plan":              {func(d *keyspace.Definition) { d.Limit = &keyspace.Limit{Plan: "pro"} }, "", "the plan has more"},
		"limit.per_minute":        {func(d *keyspace.Definition) { d.Limit = &keyspace.Limit{PerMinute: 59, Burst: 6} }, "limit:lower_limit", ""},
		"limit.burst":             {func(d *keyspace.Definition) { d.Limit = &keyspace.Limit{PerMinute: 60, Burst: 5} }, "limit:lower_limit", ""},
		"tenant_limit.plan":       {func(d *keyspace.Definition) { d.TenantLimit = &keyspace.Limit{Plan: "pro"} }, "*tenant_limit:lower_limit", ""},
		"tenant_limit.per_minute": {func(d *keyspace.Definition) { d.TenantLimit = &keyspace.Limit{PerMinute: 899, Burst: 90} }, "*tenant_limit:lower_limit", ""},
		"tenant_limit.burst":      {func(d *keyspace.Definition) { d.TenantLimit = &keyspace.Limit{PerMinute: 900, Burst: 89} }, "*tenant_limit:lower_limit", ""},

		"limits": {func(d *keyspace.Definition) { d.Limits = keyspace.LimitsExact }, "*limits:limits", ""},

		"limit_headers.style":     {func(d *keyspace.Definition) { d.LimitHeaders.Style = keyspace.HeadersNone }, "", words},
		"limit_headers.limit":     {func(d *keyspace.Definition) { d.LimitHeaders.Limit = "X-Limit" }, "", words},
		"limit_headers.remaining": {func(d *keyspace.Definition) { d.LimitHeaders.Remaining = "X-Left" }, "", words},
		"limit_headers.reset":     {func(d *keyspace.Definition) { d.LimitHeaders.Reset = "X-Reset" }, "", words},
		"limit_headers.reset_as":  {func(d *keyspace.Definition) { d.LimitHeaders.ResetAs = keyspace.ResetUnix }, "", words},

		"checks": {func(d *keyspace.Definition) {
			d.Checks = keyspace.DefaultChecks()
			slices.Reverse(d.Checks)
		}, "", "all of them are made in any order"},

		"errors.envelope":     {func(d *keyspace.Definition) { d.Errors.Envelope = jsontext.Value(`{"e":"{code}"}`) }, "", words},
		"errors.content_type": {func(d *keyspace.Definition) { d.Errors.ContentType = "application/vnd.x+json" }, "", words},
		"errors.answers.reasons": {func(d *keyspace.Definition) {
			d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"key_unknown"}, Status: 404}}
		}, "", words},
		"errors.answers.status": {func(d *keyspace.Definition) {
			d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"key_unknown"}, Status: 403}}
		}, "", words},
		"errors.answers.code": {func(d *keyspace.Definition) {
			d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"key_unknown"}, Code: "x"}}
		}, "", words},
		"errors.answers.message": {func(d *keyspace.Definition) {
			d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"key_unknown"}, Message: "x"}}
		}, "", words},

		"staleness.max_millis": {func(d *keyspace.Definition) { d.Staleness.MaxMillis = 4999 }, "*staleness.max_millis:max_millis", ""},
		"staleness.on_stale":   {func(d *keyspace.Definition) { d.Staleness.OnStale = "allow" }, "", "it gives; the way back is in TestNarrowingForAll"},
		"ledger":               {func(d *keyspace.Definition) { d.Ledger = keyspace.LedgerSync }, "*ledger:ledger", ""},
	}
	members := membersOf(reflect.TypeFor[keyspace.Definition](), "")
	slices.Sort(members)
	if known := slices.Sorted(maps.Keys(table)); !slices.Equal(members, known) {
		for _, m := range members {
			if !slices.Contains(known, m) {
				t.Errorf("a definition has a member %s: decide what a change of it takes from living keys and tenants, and add it here", m)
			}
		}
		for _, m := range known {
			if !slices.Contains(members, m) {
				t.Errorf("a definition has no member %s any more", m)
			}
		}
	}
	for path, tt := range table {
		t.Run(path, func(t *testing.T) {
			if (tt.want == "") == (tt.why == "") {
				t.Fatal("say what is taken, or why nothing is")
			}
			after := before
			after.KeyTypes, after.Scopes, after.Resources, after.Plans = slices.Clone(before.KeyTypes), slices.Clone(before.Scopes), slices.Clone(before.Resources), slices.Clone(before.Plans)
			tt.change(&after)
			got, r := losses(&events.Keyspace{Definition: before}, &after)
			if len(r.Changes) == 0 {
				t.Fatal("nothing is changed")
			}
			// What implies another loss is said with it.
			for _, want := range strings.Fields(tt.want) {
				if !slices.Contains(got, want) {
					t.Errorf("takes %q, want %s among it", got, want)
				}
			}
			if tt.want == "" && len(got) > 0 {
				t.Errorf("takes %q, want nothing: %s", got, tt.why)
			}
			if refused := r.Violating+r.Tenants > 0; refused != (tt.want != "") {
				t.Errorf("%d keys, %d tenants", r.Violating, r.Tenants)
			}
		})
	}
}

// losses reviews a definition for one key and one tenant that holds a plan.
func losses(ks *events.Keyspace, after *keyspace.Definition) (out []string, r *commands.Review) {
	key := events.Key{ID: events.KeyID{1}, Keyspace: "acme", Tenant: "t1", Label: events.Label{Name: "one"}, KeyType: "secret", Environment: "live",
		Grant: events.Grant{Scopes: []string{"write"}}, Resources: []events.Resource{{Kind: "project", ID: "p"}}, Status: events.StatusActive, CreatedAt: t0}
	tenant := events.Tenant{Keyspace: "acme", ID: "t2", Limit: &keyspace.Limit{Plan: "team"}}
	r = commands.ReviewDefinition(ks, after, commands.Holders{
		Keys:    slices.Values([]*events.Key{&key}),
		Tenants: slices.Values([]*events.Tenant{&tenant}),
		Role:    func(events.TenantID, events.RoleID) (events.Role, bool) { return events.Role{}, false },
	}, t0.Add(day))
	for _, v := range r.Violations {
		what := v.Field + ":" + v.Code
		switch {
		case v.Message == "" || v.KeyID.IsZero() != (v.Name == ""):
			what = fmt.Sprintf("%+v", v)
		case v.KeyID.IsZero() && v.Tenant == "":
			what = "*" + what
		case v.KeyID.IsZero():
			what = string(v.Tenant) + "/" + what
		}
		out = append(out, what)
	}
	return out, r
}

// TestNarrowingForAll: what changes the way in for every key, and what a limit of
// many comes to.
func TestNarrowingForAll(t *testing.T) {
	type change = func(*keyspace.Definition)
	limit := func(perMinute, burst int64) *keyspace.Limit {
		return &keyspace.Limit{PerMinute: perMinute, Burst: burst}
	}
	base := keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Environments: []string{"live"}}}, Scopes: []keyspace.ScopeDef{{Name: "write"}}, Resources: []string{"project"},
		Plans: []keyspace.Plan{{Name: "team", PerMinute: 60, Burst: 6}}}
	for _, tt := range []struct {
		name          string
		before, after change
		want          string
	}{
		{"a limit where there was none", func(*keyspace.Definition) {}, func(d *keyspace.Definition) { d.Limit = limit(1e9, 1e9) }, "limit:lower_limit"},
		{"no limit any more", func(d *keyspace.Definition) { d.Limit = limit(1, 1) }, func(*keyspace.Definition) {}, ""},
		{"more a minute, less at once", func(d *keyspace.Definition) { d.Limit = limit(60, 60) }, func(d *keyspace.Definition) { d.Limit = limit(600, 59) }, "limit:lower_limit"},
		{"a limit of tenants where there was none", func(*keyspace.Definition) {}, func(d *keyspace.Definition) { d.TenantLimit = limit(5, 5) }, "*tenant_limit:lower_limit"},
		{"the default is a plan with less", func(d *keyspace.Definition) { d.Limit = limit(61, 6) }, func(d *keyspace.Definition) { d.Limit = &keyspace.Limit{Plan: "team"} }, "limit:lower_limit"},
		{"on_stale taken back", func(d *keyspace.Definition) { d.Staleness.OnStale = "allow" }, func(*keyspace.Definition) {}, "*staleness.on_stale:on_stale"},
		{"shorter, but nothing is denied by it", func(d *keyspace.Definition) { d.Staleness = keyspace.Staleness{MaxMillis: 9, OnStale: "allow"} },
			func(d *keyspace.Definition) { d.Staleness = keyspace.Staleness{MaxMillis: 5, OnStale: "allow"} }, ""},
		{"the default, written out", func(*keyspace.Definition) {}, func(d *keyspace.Definition) {
			d.Credential = keyspace.Credential{Header: "authorization", Scheme: "bearer"}
			d.Staleness = keyspace.Staleness{MaxMillis: 10_000, OnStale: "deny"}
			d.Ledger = keyspace.LedgerAsync
		}, ""},
		{"a way in back to plain HTTP", func(d *keyspace.Definition) { d.HTTPSOnly = true }, func(*keyspace.Definition) {}, ""},
		{"a plan that was retired comes back with less", func(d *keyspace.Definition) { d.Plans = nil }, func(d *keyspace.Definition) { d.Plans[0].Burst = 5 }, "t2/limit:lower_limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, after := base, base
			before.Plans, after.Plans = slices.Clone(base.Plans), slices.Clone(base.Plans)
			tt.before(&before)
			tt.after(&after)
			first := events.Keyspace{Definition: base}
			ks := first.Redefined(before)
			if got, _ := losses(&ks, &after); strings.Join(got, " ") != tt.want {
				t.Errorf("takes %q, want %s", got, tt.want)
			}
		})
	}
}

// TestNarrowingOfTenantsIsRefused: the endpoint asks about a plan that a tenant
// holds, also where the tenant has no key yet.
func TestNarrowingOfTenantsIsRefused(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	if _, _, err := n.SetTenantLimit(t.Context(), w.call("", ""), "acme", "t9", &commands.SetTenantLimit{Limit: commands.Some(keyspace.Limit{Plan: "pro"})}); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*keyspace.Definition){
		"removed": func(d *keyspace.Definition) { d.Plans = nil },
		"lowered": func(d *keyspace.Definition) { d.Plans[0].Burst-- },
	} {
		d := changed(change)
		_, review, err := n.ReviewKeyspace(t.Context(), w.call("", ""), "acme", &commands.DefineKeyspace{Definition: d})
		if err != nil || review.Tenants != 1 || review.Violating != 0 || len(review.Violations) != 1 || review.Violations[0].Tenant != "t9" {
			t.Errorf("%s: %+v, %v", name, review, err)
		}
		_, _, err = n.DefineKeyspace(t.Context(), w.call("", ""), "acme", &commands.DefineKeyspace{Definition: d})
		if codeOf(err) != "violations" || !strings.Contains(err.Error(), "1 tenants") {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := changed(func(d *keyspace.Definition) { d.Plans[0].Burst++ })
	w.define(n, "acme", d)
}
