package commands_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

var t0 = newClock(start).at()

const day = 24 * time.Hour

func rules(change ...func(*commands.Rules)) *commands.Rules {
	def := acme
	r := &commands.Rules{Keyspace: "acme", Tenant: "t1", Definition: &def, Roles: func(id events.RoleID) (events.Role, bool) {
		switch id {
		case "reader":
			return events.Role{Chain: events.Chain{Rev: 1}, ID: id, Scopes: []string{"read"}}, true
		case "uploader":
			return events.Role{Chain: events.Chain{Rev: 1}, ID: id, Scopes: []string{"upload"}}, true
		case "division_lead":
			return events.Role{Chain: events.Chain{Rev: 1}, ID: id, Level: "division", Scopes: []string{"write"}}, true
		case "gone":
			return events.Role{Chain: events.Chain{Rev: 2}, ID: id, Scopes: []string{"read"}, Deleted: true}, true
		}
		return events.Role{}, false
	}}
	for _, f := range change {
		f(r)
	}
	return r
}

func policy(p events.ExpiryPolicy) func(*commands.Rules) {
	return func(r *commands.Rules) { r.Definition.Expiry = p }
}

// print shows decided data as one line, without digests.
func print(data ...events.Data) string {
	var out []string
	for _, d := range data {
		if c, ok := d.(*events.KeyCreated); ok {
			c := *c
			c.Digest = events.Digest{}
			d = &c
		}
		b, err := json.Marshal(d, json.Deterministic(true), json.FormatNilSliceAsNull(true))
		if err != nil {
			return err.Error()
		}
		s := strings.ReplaceAll(string(b), `"digest":"`+strings.Repeat("0", 64)+`",`, "")
		out = append(out, string(d.EventType())+s)
	}
	return strings.Join(out, " ")
}

func TestDecideCreate(t *testing.T) {
	at := func(s string) commands.ExpiryWish { return commands.ExpiryWish{ExpiresAt: commands.Some(s)} }
	in := func(s string) commands.ExpiryWish { return commands.ExpiryWish{ExpiresIn: &s} }
	never := commands.ExpiryWish{ExpiresAt: commands.Null[string]()}
	key := func(change func(*commands.Create)) commands.Create {
		c := commands.Create{Tenant: "t1", Name: "ci"}
		change(&c)
		return c
	}
	expiring := func(w commands.ExpiryWish) commands.Create { return key(func(c *commands.Create) { c.ExpiryWish = w }) }
	listed := func(list ...string) commands.Create { return key(func(c *commands.Create) { c.Allowlist = list }) }
	month := events.ExpiryPolicy{Max: "30d"}
	for _, tt := range []struct {
		name  string
		cmd   commands.Create
		rules *commands.Rules
		want  string // an error's codes, or a part of the event
	}{
		{"defaults of the first type", key(func(*commands.Create) {}), rules(), `{"hint":"sk_live_abcd","name":"ci","key_type":"secret","environment":"live","scopes":["read"]}`},
		{"an empty list is none", key(func(c *commands.Create) { c.Scopes = &[]string{} }), rules(), `"environment":"live"}`},
		{"a role asked for is no default scope", key(func(c *commands.Create) { c.Roles = []events.RoleID{"reader"} }), rules(), `"environment":"live","roles":["reader"]}`},
		{"sorted, each once", key(func(c *commands.Create) { c.Scopes = &[]string{"write", "read", "write"} }), rules(), `"scopes":["read","write"]`},
		{"type by environment", key(func(c *commands.Create) { c.Environment = "test" }), rules(), `"key_type":"secret_test","environment":"test"`},
		{"type and environment that differ", key(func(c *commands.Create) { c.Type, c.Environment = "secret", "test" }), rules(), "environment:unknown_environment"},
		{"unknown environment", key(func(c *commands.Create) { c.Environment = "moon" }), rules(), "environment:unknown_environment"},
		{"unknown type", key(func(c *commands.Create) { c.Type = "gold" }), rules(), "type:unknown_type"},
		{"unknown scope and role", key(func(c *commands.Create) { c.Scopes, c.Roles = &[]string{"read", "fly"}, []events.RoleID{"boss"} }), rules(), "scopes[1]:unknown_scope roles[0]:unknown_role"},
		{"a deleted role", key(func(c *commands.Create) { c.Roles = []events.RoleID{"gone"} }), rules(), "roles[0]:unknown_role"},
		{"above the ceiling", key(func(c *commands.Create) { c.Type, c.Scopes = "publishable", &[]string{"upload", "read"} }), rules(), "scopes[1]:above_ceiling"},
		{"above the ceiling by a role", key(func(c *commands.Create) { c.Type, c.Roles = "publishable", []events.RoleID{"uploader", "reader"} }), rules(), "roles[1]:above_ceiling"},
		{"a role of a level above the key", key(func(c *commands.Create) { c.Roles = []events.RoleID{"division_lead"} }), rules(), "roles[0]:role_level"},
		{"a role of the key's level", key(func(c *commands.Create) {
			c.Roles, c.Resources = []events.RoleID{"division_lead"}, []events.Resource{{Kind: "division", ID: "d1"}}
		}), rules(), `"roles":["division_lead"],"resources":[{"kind":"division","id":"d1"}]`},
		{"resources", key(func(c *commands.Create) {
			c.Resources = []events.Resource{{Kind: "planet", ID: "p"}, {Kind: "project", ID: ""}, {Kind: "project", ID: "a b"}}
		}), rules(), "resources[0].kind:unknown_kind resources[1].id:invalid resources[2].id:invalid"},
		{"every bad field at once", commands.Create{Tenant: "-", Name: "", Scopes: &[]string{"fly"}, Allowlist: []string{"nowhere"},
			ExpiryWish: in("soon"), Limit: &events.Limit{}, Metadata: map[string]string{"": "x"}, Reason: "\x00"}, rules(),
			"tenant:invalid name:required scopes[0]:unknown_scope allowlist[0]:invalid expires_in:invalid limit.per_minute:invalid limit.burst:invalid metadata:invalid reason:invalid"},
		{"name too long", key(func(c *commands.Create) { c.Name = strings.Repeat("n", 101) }), rules(), "name:invalid"},
		{"name taken", key(func(*commands.Create) {}), rules(func(r *commands.Rules) { r.NameHolder = events.KeyID{1} }), "duplicate_name"},
		{"metadata value", key(func(c *commands.Create) { c.Metadata = map[string]string{"a": "\x07"} }), rules(), "metadata.a:invalid"},

		{"addresses and networks", listed("203.0.113.7", "2001:db8::/32", "::ffff:198.51.100.0/120", "::ffff:203.0.113.7", "203.0.113.7/32"), rules(),
			`"allowlist":["198.51.100.0/24","203.0.113.7/32","2001:db8::/32"]`},
		{"bad networks", listed("203.0.113.0/33", "10.0.0.1/8", "", "fe80::1%eth0", "::ffff:0.0.0.0/64", "1.2.3", "10.0.0.0/08", "*"), rules(),
			"allowlist[0]:invalid allowlist[1]:host_bits allowlist[2]:invalid allowlist[3]:invalid allowlist[4]:invalid allowlist[5]:invalid allowlist[6]:invalid allowlist[7]:invalid"},
		{"too many networks", listed(make([]string, 10_001)...), rules(), "allowlist:invalid"},

		{"an instant", expiring(at("2026-01-06T12:00:00+01:00")), rules(), `"expires_at":"2026-01-06T11:00:00.000Z"`},
		{"now is past", expiring(at("2026-01-06T10:00:00Z")), rules(), "expires_at:past"},
		{"no instant", expiring(at("0")), rules(), "expires_at:invalid"},
		{"empty", expiring(at("")), rules(), "expires_at:invalid"},
		{"hours", expiring(in("720h")), rules(), `"expires_at":"2026-02-05T10:00:00.000Z"`},
		{"days", expiring(in("30d")), rules(), `"expires_at":"2026-02-05T10:00:00.000Z"`},
		{"days and hours", expiring(in("1d12h")), rules(), `"expires_at":"2026-01-07T22:00:00.000Z"`},
		{"both", expiring(commands.ExpiryWish{ExpiresAt: never.ExpiresAt, ExpiresIn: ptr("1h")}), rules(), "expires_in:conflict"},
		{"never", expiring(never), rules(), `"scopes":["read"]}`},
		{"never where it must expire", expiring(never), rules(policy(events.ExpiryPolicy{Required: true})), "expires_at:required"},
		{"nothing where it must expire", expiring(commands.ExpiryWish{}), rules(policy(events.ExpiryPolicy{Required: true})), "expires_at:required"},
		{"the default", expiring(commands.ExpiryWish{}), rules(policy(events.ExpiryPolicy{Default: "1h"})), `"expires_at":"2026-01-06T11:00:00.000Z"`},
		{"never is not the default", expiring(never), rules(policy(events.ExpiryPolicy{Default: "1h"})), `"scopes":["read"]}`},
		{"the longest", expiring(in("30d")), rules(policy(month)), `"expires_at":"2026-02-05T10:00:00.000Z"`},
		{"longer", expiring(in("30d1ms")), rules(policy(month)), "expires_in:too_late"},
		{"never under a longest", expiring(never), rules(policy(month)), "expires_at:required"},

		{"a plan", key(func(c *commands.Create) { c.Limit = &events.Limit{Plan: "pro"} }), rules(), `"limit":{"plan":"pro"}`},
		{"an unknown plan", key(func(c *commands.Create) { c.Limit = &events.Limit{Plan: "gold"} }), rules(), "limit.plan:unknown_plan"},
		{"a limit of zero is not off", key(func(c *commands.Create) { c.Limit = &events.Limit{PerMinute: 0, Burst: 5} }), rules(), "limit.per_minute:invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.cmd.Decide(tt.rules, t0, events.NewSecret("s").Digest(), "sk_live_abcd")
			if err != nil {
				if codeOf(err) != tt.want {
					t.Errorf("refused with\n  %s\nwant\n  %s", codeOf(err), tt.want)
				}
				return
			}
			if !strings.Contains(print(got), tt.want) {
				t.Errorf("decided\n  %s\nwant\n  %s", print(got), tt.want)
			}
			if err := got.Validate(); err != nil {
				t.Errorf("the event is not valid: %v", err)
			}
		})
	}
}

// by sets the rules of grants.
func by(g events.GrantRules) func(*commands.Rules) {
	return func(r *commands.Rules) { r.Definition.Grants = g }
}

func TestDecideCreateGrants(t *testing.T) {
	made := func(r *commands.Rules) { r.NewKey = events.KeyID{15: 1} }
	required := by(events.GrantRules{Required: true})
	scopes, roles := by(events.GrantRules{By: events.GrantsByScopes}), by(events.GrantRules{By: events.GrantsByRoles})
	division := []events.Resource{{Kind: "division", ID: "d1"}}
	may := func(level string, s ...string) func(*commands.Create) {
		return func(c *commands.Create) { c.Permissions = &commands.Permissions{Level: level, Scopes: &s} }
	}
	for _, tt := range []struct {
		name  string
		given *commands.Rules
		when  func(*commands.Create)
		want  string // an error's codes, or a part of the event
	}{
		{"nothing where something is required", rules(required), func(c *commands.Create) { c.Scopes = &[]string{} }, "scopes:required"},
		{"defaults are something", rules(required), func(*commands.Create) {}, `"scopes":["read"]`},
		{"a role is something", rules(required), func(c *commands.Create) { c.Roles = []events.RoleID{"reader"} }, `"roles":["reader"]`},
		{"no defaults", rules(required), func(c *commands.Create) { c.Type = "publishable" }, "scopes:required"},
		{"a role where keys hold scopes", rules(scopes), func(c *commands.Create) { c.Roles = []events.RoleID{"reader"} }, "roles:not_by_roles"},
		{"permissions where keys hold scopes", rules(scopes, made), may("", "read"), "permissions:not_by_roles"},
		{"scopes where keys hold roles", rules(roles), func(c *commands.Create) { c.Scopes = &[]string{"read"} }, "scopes:not_by_scopes"},
		{"no defaults where keys hold roles", rules(roles), func(*commands.Create) {}, `"environment":"live"}`},
		{"and one is required", rules(by(events.GrantRules{Required: true, By: events.GrantsByRoles})), func(*commands.Create) {}, "roles:required"},

		{"permissions", rules(made, required), may("", "write"), `"roles":["key_00000000000000000000000001"]`},
		{"permissions and a role", rules(made, roles), func(c *commands.Create) { may("", "write")(c); c.Roles = []events.RoleID{"uploader", "reader"} },
			`"roles":["key_00000000000000000000000001","reader","uploader"]`},
		{"permissions and scopes", rules(made), func(c *commands.Create) { may("", "write")(c); c.Scopes = &[]string{"read"} }, "scopes:conflict"},
		{"permissions, and scopes where keys hold roles", rules(made, roles), func(c *commands.Create) { may("", "write")(c); c.Scopes = &[]string{"read"} }, "scopes:not_by_scopes"},
		{"permissions for no key", rules(), may("", "write"), "permissions:unsupported"},
		{"permissions for nothing", rules(made), may(""), "permissions.scopes:required"},
		{"permissions without scopes", rules(made), func(c *commands.Create) { c.Permissions = new(commands.Permissions) }, "permissions.scopes:required"},
		{"unknown scope and level", rules(made), may("planet", "read", "fly"), "permissions.level:unknown_kind permissions.scopes[1]:unknown_scope permissions.scopes[0]:scope_level"},
		{"above the ceiling", rules(made), func(c *commands.Create) { may("", "upload", "read")(c); c.Type = "publishable" }, "permissions.scopes[1]:above_ceiling"},
		{"of a level", rules(made), func(c *commands.Create) { may("division", "deploy")(c); c.Resources = division }, `"resources":[{"kind":"division","id":"d1"}]`},
		{"of a level that the key is not at", rules(made), may("division", "deploy"), "permissions.level:role_level"},
		{"a scope of another level", rules(made), func(c *commands.Create) { may("division", "deploy", "read")(c); c.Resources = division }, "permissions.scopes[1]:scope_level"},
		{"a tenant's role holds any", rules(made), may("tenant", "deploy", "read"), `"roles":["key_`},
		{"a description of control characters", rules(made), func(c *commands.Create) { may("", "read")(c); c.Permissions.Description = "\x07" }, "permissions.description:invalid"},
		{"one role too many", rules(made, func(r *commands.Rules) {
			r.Roles = func(id events.RoleID) (events.Role, bool) {
				return events.Role{Chain: events.Chain{Rev: 1}, ID: id}, true
			}
		}), func(c *commands.Create) {
			may("", "read")(c)
			for i := range events.MaxScopes {
				c.Roles = append(c.Roles, events.RoleID(fmt.Sprint("r", i)))
			}
		}, "roles:invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := commands.Create{Tenant: "t1", Name: "ci"}
			tt.when(&c)
			got, err := c.Decide(tt.given, t0, events.NewSecret("s").Digest(), "sk_live_abcd")
			if err != nil {
				if codeOf(err) != tt.want {
					t.Errorf("refused with\n  %s: %v\nwant\n  %s", codeOf(err), err, tt.want)
				}
				return
			}
			if !strings.Contains(print(got), tt.want) {
				t.Errorf("decided\n  %s\nwant\n  %s", print(got), tt.want)
			}
			role := c.Role()
			if (role != nil) != (c.Permissions != nil) || (len(got.Scopes) > 0) == (role != nil) && role != nil {
				t.Errorf("the role %v beside %s", role, print(got))
			}
			if role != nil && role.Validate() != nil {
				t.Errorf("the role: %v", role.Validate())
			}
		})
	}
	c := commands.Create{}
	may("division", "write", "read", "write")(&c)
	c.Permissions.Description = "d"
	if got := print(c.Role()); got != `role.defined{"level":"division","description":"d","scopes":["read","write"]}` {
		t.Errorf("the role: %s", got)
	}
}

func TestDecideScopesByRules(t *testing.T) {
	now := t0.Add(day)
	roles := func(ids ...events.RoleID) *[]events.RoleID { return &ids }
	for _, tt := range []struct {
		name  string
		rules events.GrantRules
		when  commands.AssignScopes
		want  string
	}{
		{"fixed", events.GrantRules{Fixed: true}, commands.AssignScopes{Scopes: &[]string{"write"}}, "scopes_fixed"},
		{"fixed as it is", events.GrantRules{Fixed: true}, commands.AssignScopes{Scopes: &[]string{"read"}}, "scopes_fixed"},
		{"roles are fixed too", events.GrantRules{Fixed: true}, commands.AssignScopes{Roles: roles("reader")}, "scopes_fixed"},
		{"all taken away", events.GrantRules{Required: true}, commands.AssignScopes{Scopes: &[]string{}}, "scopes:required"},
		{"all but a role", events.GrantRules{Required: true}, commands.AssignScopes{Scopes: &[]string{}, Roles: roles("reader")},
			`key.scopes_assigned{"before":{"scopes":["read"]},"after":{"roles":["reader"]}}`},
		{"a role by scopes", events.GrantRules{By: events.GrantsByScopes}, commands.AssignScopes{Roles: roles("reader")}, "roles:not_by_roles"},
		{"no roles by scopes", events.GrantRules{By: events.GrantsByScopes}, commands.AssignScopes{Roles: roles()}, ""},
		{"a scope by roles", events.GrantRules{By: events.GrantsByRoles}, commands.AssignScopes{Scopes: &[]string{"write"}}, "scopes:not_by_scopes"},
		{"the move to roles", events.GrantRules{By: events.GrantsByRoles}, commands.AssignScopes{Scopes: &[]string{}, Roles: roles("reader")},
			`key.scopes_assigned{"before":{"scopes":["read"]},"after":{"roles":["reader"]}}`},
		{"neither", events.GrantRules{Required: true}, commands.AssignScopes{}, "scopes:required"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.when.Decide(life(t), rules(by(tt.rules)), now)
			if s := print(got...); err == nil && s != tt.want || err != nil && codeOf(err) != tt.want {
				t.Errorf("got %s %s, want %s", s, codeOf(err), tt.want)
			}
		})
	}
	// Rotation keeps what is fixed, and makes nothing that could not be created.
	none := life(t, &events.KeyScopesAssigned{Before: events.Grant{Scopes: []string{"read"}}})
	for _, tt := range []struct {
		key   *events.Key
		rules events.GrantRules
		want  string
	}{
		{life(t), events.GrantRules{Fixed: true, Required: true, By: events.GrantsByScopes}, "ok"},
		{life(t), events.GrantRules{By: events.GrantsByRoles}, "scopes:not_by_scopes"},
		{none, events.GrantRules{Required: true}, "scopes:required"},
		{none, events.GrantRules{}, "ok"},
	} {
		created, _, err := new(commands.Rotate).Decide(tt.key, rules(by(tt.rules)), now, events.KeyID{7}, events.NewSecret("n").Digest(), "h")
		if codeOf(err) != tt.want {
			t.Errorf("rotate by %+v: %v, want %s", tt.rules, err, tt.want)
		}
		if err == nil && !slices.Equal(created.Scopes, tt.key.Grant.Scopes) {
			t.Errorf("rotate by %+v: %v", tt.rules, created.Scopes)
		}
	}
}

func TestExpiryChoices(t *testing.T) {
	free := events.ExpiryPolicy{Choices: []events.Span{"never", "30d", "90d", "365d"}}
	must := events.ExpiryPolicy{Required: true, Max: "365d", Choices: []events.Span{"30d", "365d"}}
	standard := events.ExpiryPolicy{Required: true, Default: "90d", Choices: []events.Span{"30d", "2160h"}}
	at := func(s string) commands.ExpiryWish { return commands.ExpiryWish{ExpiresAt: commands.Some(s)} }
	in := func(s string) commands.ExpiryWish { return commands.ExpiryWish{ExpiresIn: &s} }
	null := commands.ExpiryWish{ExpiresAt: commands.Null[string]()}
	const never = time.Duration(-1)
	for _, tt := range []struct {
		name   string
		policy events.ExpiryPolicy
		wish   commands.ExpiryWish
		want   string
		life   time.Duration
	}{
		{"a choice", free, in("30d"), "", 30 * day},
		{"a choice in other words", free, in("720h"), "", 30 * day},
		{"no choice", free, in("31d"), "expires_in:not_a_choice", 0},
		{"never, as null", free, null, "", never},
		{"never, as a word", free, in("never"), "", never},
		{"no wish", free, commands.ExpiryWish{}, "", never},
		{"an instant, though it falls on a choice", free, at("2026-02-05T10:00:00Z"), "expires_at:not_a_choice", 0},
		{"a past instant", free, at("2026-01-01T10:00:00Z"), "expires_at:past", 0},
		{"no span", free, in("soon"), "expires_in:invalid", 0},
		{"never where it is no choice", must, null, "expires_at:not_a_choice", 0},
		{"never as a word where it is no choice", must, in("never"), "expires_in:not_a_choice", 0},
		{"no wish where one is needed", must, commands.ExpiryWish{}, "expires_at:required", 0},
		{"the longest", must, in("365d"), "", 365 * day},
		{"the default", standard, commands.ExpiryWish{}, "", 90 * day},
		{"both", free, commands.ExpiryWish{ExpiresAt: null.ExpiresAt, ExpiresIn: ptr("30d")}, "expires_in:conflict", 0},
		{"never without choices", events.ExpiryPolicy{}, in("never"), "", never},
		{"never without choices under a longest", events.ExpiryPolicy{Max: "30d"}, in("never"), "expires_in:required", 0},
		{"Never", events.ExpiryPolicy{}, in("Never"), "expires_in:invalid", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check := func(what string, from, got events.Time, err error) {
				t.Helper()
				want := from.Add(tt.life)
				if tt.life == never {
					want = 0
				}
				if err == nil && (tt.want != "" || got != want) || err != nil && codeOf(err) != tt.want {
					t.Errorf("%s: %s, %s; want %s, %s", what, got, codeOf(err), want, tt.want)
				}
			}
			r := rules(policy(tt.policy))
			c := commands.Create{Tenant: "t1", Name: "n", ExpiryWish: tt.wish}
			made, err := c.Decide(r, t0, events.NewSecret("s").Digest(), "h")
			if err != nil {
				made = new(events.KeyCreated)
			}
			check("create", t0, made.ExpiresAt, err)
			if !tt.wish.Given() {
				return
			}
			p := commands.Patch{ExpiryWish: tt.wish}
			k := life(t, &events.KeyExpiryChanged{After: t0.Add(10 * day)})
			moved, err := p.Decide(k, r, t0)
			var got events.Time
			if len(moved) > 0 {
				got = moved[0].(*events.KeyExpiryChanged).After
			}
			check("patch", t0, got, err)
			next, _, err := (&commands.Rotate{ExpiryWish: tt.wish}).Decide(k, r, t0, events.KeyID{7}, events.NewSecret("n").Digest(), "h")
			if err != nil {
				next = new(events.KeyCreated)
			}
			check("rotate", t0, next.ExpiresAt, err)
		})
	}
	// A life that was chosen elsewhere is bounded, and may be any.
	elsewhere := func(r *commands.Rules) { r.AnyExpiry = true }
	for wish, want := range map[string]string{"2026-01-20T00:00:00Z": "ok", "2027-02-01T00:00:00Z": "expires_at:too_late"} {
		c := commands.Create{Tenant: "t1", Name: "n", ExpiryWish: at(wish)}
		if _, err := c.Decide(rules(policy(must), elsewhere), t0, events.NewSecret("s").Digest(), "h"); codeOf(err) != want {
			t.Errorf("chosen elsewhere, %s: %v", wish, err)
		}
	}
	// A choice counts from the request, the longest life from the creation.
	p := commands.Patch{ExpiryWish: in("365d")}
	if _, err := p.Decide(life(t), rules(policy(must)), t0.Add(day)); codeOf(err) != "expires_in:too_late" {
		t.Errorf("365 days more after a day: %v", err)
	}
	// A successor without a wish: the longest choice within the life that was, or
	// the shortest.
	now := t0.Add(day)
	for _, tt := range []struct {
		policy events.ExpiryPolicy
		was    time.Duration
		want   time.Duration
	}{
		{free, never, never}, {free, 90 * day, 90 * day}, {free, 100 * day, 90 * day}, {free, 29 * day, 30 * day},
		{must, never, 365 * day}, {must, 30 * day, 30 * day}, {must, 29 * day, 30 * day}, {must, 364 * day, 30 * day},
		{standard, 10 * day, 30 * day}, {standard, 90 * day, 90 * day}, {standard, never, 90 * day},
	} {
		var given []events.Data
		if tt.was != never {
			given = append(given, &events.KeyExpiryChanged{After: t0.Add(tt.was)})
		}
		next, _, err := new(commands.Rotate).Decide(life(t, given...), rules(policy(tt.policy)), now, events.KeyID{7}, events.NewSecret("n").Digest(), "h")
		switch {
		case err != nil:
			t.Errorf("a life of %s under %v: %v", tt.was, tt.policy, err)
		case tt.want == never && next.ExpiresAt != 0, tt.want != never && next.ExpiresAt != now.Add(tt.want):
			t.Errorf("a life of %s under %v: the successor expires at %s", tt.was, tt.policy, next.ExpiresAt)
		}
	}
}

func TestDecideTenantLimit(t *testing.T) {
	pro := &events.Limit{Plan: "pro"}
	for _, tt := range []struct {
		name   string
		given  *events.Limit
		tenant events.TenantID
		when   commands.SetTenantLimit
		want   string
	}{
		{"first", nil, "t1", commands.SetTenantLimit{Limit: commands.Some(*pro)}, `tenant.limit_updated{"after":{"plan":"pro"}}`},
		{"the same", pro, "t1", commands.SetTenantLimit{Limit: commands.Some(*pro)}, ""},
		{"another", pro, "t1", commands.SetTenantLimit{Limit: commands.Some(events.Limit{PerMinute: 1, Burst: 2})}, `tenant.limit_updated{"before":{"plan":"pro"},"after":{"per_minute":1,"burst":2}}`},
		{"back to the default", pro, "t1", commands.SetTenantLimit{Limit: commands.Null[events.Limit]()}, `tenant.limit_updated{"before":{"plan":"pro"}}`},
		{"the default again", nil, "t1", commands.SetTenantLimit{Limit: commands.Null[events.Limit]()}, ""},
		{"nothing", nil, "t1", commands.SetTenantLimit{}, "limit:required"},
		{"all at once", nil, "*", commands.SetTenantLimit{Limit: commands.Some(events.Limit{Plan: "gold"}), Reason: "\x00"}, "tenant:invalid limit.plan:unknown_plan reason:invalid"},
		{"zero is not off", nil, "t1", commands.SetTenantLimit{Limit: commands.Some(events.Limit{Burst: 1})}, "limit.per_minute:invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := rules(func(r *commands.Rules) { r.Tenant = tt.tenant })
			data, err := tt.when.Decide(&events.Tenant{Limit: tt.given}, r)
			got := codeOf(err)
			if err == nil {
				got = ""
				if data != nil {
					got = print(data)
				}
			}
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestDurations(t *testing.T) {
	for _, s := range []string{"", "0", "0s", "-1h", "d", "-1d", "+1d", "1d-1h", "1.5d", "1h1d", "36501d", "876001h", "36500d1s", "99999999999999d", "0d", "1", "1d1"} {
		c := commands.Create{Tenant: "t1", Name: "n", ExpiryWish: commands.ExpiryWish{ExpiresIn: &s}}
		if _, err := c.Decide(rules(), t0, events.NewSecret("s").Digest(), "h"); codeOf(err) != "expires_in:invalid" {
			t.Errorf("%q: %s", s, codeOf(err))
		}
	}
}

// life folds a history: a key created at t0, then the data given, a minute apart.
func life(t *testing.T, data ...events.Data) *events.Key {
	t.Helper()
	log := logtest.New(t)
	ref := logtest.NewKeyRef("acme", "t1")
	created := &events.KeyCreated{Digest: events.NewSecret("old").Digest(), Hint: "sk_live_aaaa", Name: "ci", KeyType: "secret", Environment: "live",
		Scopes: []string{"read"}, Metadata: map[string]string{"team": "a"}}
	if len(data) > 0 {
		if c, ok := data[0].(*events.KeyCreated); ok {
			created, data = c, data[1:]
		}
	}
	var c events.Chain
	var writes []events.Write
	for i, d := range append([]events.Data{created}, data...) {
		e := logtest.Event(ref.Aggregate(), d)
		e.Time = t0.Add(time.Duration(i) * time.Minute)
		writes = append(writes, logtest.Stamp(&c, e))
	}
	if _, err := log.Append(t.Context(), writes...); err != nil {
		t.Fatal(err)
	}
	history, err := log.Load(t.Context(), ref.Aggregate())
	if err != nil {
		t.Fatal(err)
	}
	k, err := events.FoldKey(history)
	if err != nil {
		t.Fatal(err)
	}
	return &k
}

func TestDecideChange(t *testing.T) {
	in := func(d time.Duration) *events.KeyExpiryChanged { return &events.KeyExpiryChanged{After: t0.Add(d)} }
	disabled, revoked := new(events.KeyDisabled), &events.KeyRevoked{Code: events.RevokeCompromise}
	rotated := &events.KeyRotated{Successor: events.KeyID{9}, After: t0.Add(2 * day)}
	given := func(data ...events.Data) []events.Data { return data }
	scopes := func(s ...string) *commands.AssignScopes { return &commands.AssignScopes{Scopes: &s} }
	roles := func(r ...events.RoleID) *commands.AssignScopes { return &commands.AssignScopes{Roles: &r} }
	patch := func(f func(*commands.Patch)) *commands.Patch { p := new(commands.Patch); f(p); return p }
	expire := func(s string) *commands.Patch {
		return patch(func(p *commands.Patch) { p.ExpiresAt = commands.Some(s) })
	}
	now := t0.Add(day)
	for _, tt := range []struct {
		name  string
		given []events.Data
		when  commands.Change
		want  string // an error's codes, or the events; "" for none
	}{
		{"scopes", nil, scopes("write", "read"), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{"scopes":["read","write"]}}`},
		{"the same scopes", nil, scopes("read", "read"), ""},
		{"no scopes", nil, scopes(), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{}}`},
		{"roles keep scopes", nil, roles("reader"), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{"scopes":["read"],"roles":["reader"]}}`},
		{"neither", nil, new(commands.AssignScopes), "scopes:required"},
		{"unknown scope", nil, scopes("fly"), "scopes[0]:unknown_scope"},
		{"scopes of a disabled key", given(disabled), scopes(), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{}}`},
		{"scopes of a revoked key", given(revoked), scopes(), "state"},
		{"scopes of an expired key, by the clock", given(in(day)), scopes(), "state"},
		{"scopes a millisecond before it expires", given(in(day + time.Millisecond)), scopes(), `key.scopes_assigned{"before":{"scopes":["read"]},"after":{}}`},

		{"resources", nil, &commands.AssignResources{Resources: &[]events.Resource{{Kind: "project", ID: "p2"}, {Kind: "project", ID: "p1"}}},
			`key.resources_assigned{"after":[{"kind":"project","id":"p1"},{"kind":"project","id":"p2"}]}`},
		{"resources missing", nil, new(commands.AssignResources), "resources:required"},
		{"resources taken from under a role", given(&events.KeyResourcesAssigned{After: []events.Resource{{Kind: "division", ID: "d"}}},
			&events.KeyScopesAssigned{Before: events.Grant{Scopes: []string{"read"}}, After: events.Grant{Roles: []events.RoleID{"division_lead"}}}),
			&commands.AssignResources{Resources: &[]events.Resource{}}, "resources:role_level"},

		{"allowlist", nil, &commands.SetAllowlist{Allowlist: &[]string{"10.0.0.0/8"}}, `key.allowlist_updated{"after":["10.0.0.0/8"]}`},
		{"allowlist opened", given(&events.KeyAllowlistUpdated{After: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}),
			&commands.SetAllowlist{Allowlist: &[]string{}}, `key.allowlist_updated{"before":["10.0.0.0/8"]}`},
		{"allowlist missing", nil, new(commands.SetAllowlist), "allowlist:required"},

		{"limit", nil, &commands.SetLimit{Limit: commands.Some(events.Limit{PerMinute: 60, Burst: 5})}, `key.limit_updated{"after":{"per_minute":60,"burst":5}}`},
		{"limit back to the default", given(&events.KeyLimitUpdated{After: &events.Limit{Plan: "pro"}}), &commands.SetLimit{Limit: commands.Null[events.Limit]()}, `key.limit_updated{"before":{"plan":"pro"}}`},
		{"limit missing", nil, new(commands.SetLimit), "limit:required"},
		{"limit out of range", nil, &commands.SetLimit{Limit: commands.Some(events.Limit{PerMinute: -1, Burst: 1})}, "limit.per_minute:invalid"},

		{"name", nil, patch(func(p *commands.Patch) { p.Name = ptr("cd") }), `key.renamed{"before":{"name":"ci","metadata":{"team":"a"}},"after":{"name":"cd","metadata":{"team":"a"}}}`},
		{"metadata", nil, patch(func(p *commands.Patch) { p.Metadata = &map[string]string{} }), `key.renamed{"before":{"name":"ci","metadata":{"team":"a"}},"after":{"name":"ci"}}`},
		{"two events", nil, patch(func(p *commands.Patch) { p.Name, p.ExpiresIn = ptr("cd"), ptr("1h") }),
			`key.renamed{"before":{"name":"ci","metadata":{"team":"a"}},"after":{"name":"cd","metadata":{"team":"a"}}} key.expiry_changed{"after":"2026-01-07T11:00:00.000Z"}`},
		{"nothing", nil, new(commands.Patch), "body:required"},
		{"the same", nil, patch(func(p *commands.Patch) { p.Name = ptr("ci") }), ""},
		{"expiry to never", given(in(2 * day)), patch(func(p *commands.Patch) { p.ExpiresAt = commands.Null[string]() }), `key.expiry_changed{"before":"2026-01-08T10:00:00.000Z"}`},
		{"expiry past", nil, expire("2026-01-07T10:00:00Z"), "expires_at:past"},
		{"an expired key is not revived", given(in(day)), expire("2027-01-01T00:00:00Z"), "state"},
		{"a rotated key lives no longer", given(rotated), expire("2026-01-08T10:00:00.001Z"), "expires_at:rotated"},
		{"a rotated key may end earlier", given(rotated), expire("2026-01-08T09:00:00Z"), `key.expiry_changed{"before":"2026-01-08T10:00:00.000Z","after":"2026-01-08T09:00:00.000Z"}`},

		{"disable", nil, new(commands.Disable), "key.disabled{}"},
		{"disable again", given(disabled), new(commands.Disable), "already"},
		{"disable a revoked key", given(revoked), new(commands.Disable), "state"},
		{"enable", given(disabled), new(commands.Enable), "key.enabled{}"},
		{"enable an active key", nil, new(commands.Enable), "already"},
		{"enable an expired key", given(in(day), disabled), new(commands.Enable), "state"},
		{"revoke", nil, new(commands.Revoke), `key.revoked{"code":"unspecified"}`},
		{"revoke a disabled key", given(disabled), &commands.Revoke{Code: events.RevokeCompromise}, `key.revoked{"code":"key_compromise"}`},
		{"revoke again", given(revoked), new(commands.Revoke), "already"},
		{"revoke an expired key", given(in(day)), new(commands.Revoke), "state"},
		{"revoke for no known reason", nil, &commands.Revoke{Code: "bored", Reason: strings.Repeat("r", 501)}, "code:invalid reason:invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := life(t, tt.given...)
			got, err := tt.when.Decide(k, rules(), now)
			if s := print(got...); err == nil && s != tt.want {
				t.Errorf("decided\n  %s\nwant\n  %s", s, tt.want)
			} else if err != nil && codeOf(err) != tt.want {
				t.Errorf("refused with\n  %s: %v\nwant\n  %s", codeOf(err), err, tt.want)
			}
			for _, d := range got {
				if err := d.Validate(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestPatchLife bounds the life from the key's creation, not from the change.
func TestPatchLife(t *testing.T) {
	r := rules(policy(events.ExpiryPolicy{Max: "30d"}))
	k := life(t, &events.KeyExpiryChanged{After: t0.Add(20 * day)})
	p := commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("20d")}}
	if _, err := p.Decide(k, r, t0.Add(10*day)); err != nil {
		t.Errorf("30 days from creation: %v", err)
	}
	if _, err := p.Decide(k, r, t0.Add(10*day+time.Millisecond)); codeOf(err) != "expires_in:too_late" {
		t.Errorf("more than 30 days from creation: %v", err)
	}
}

func TestDecideRotate(t *testing.T) {
	now := t0.Add(day)
	ends := func(d time.Duration) []events.Data { return []events.Data{&events.KeyExpiryChanged{After: t0.Add(d)}} }
	overlap := func(s string) commands.Rotate { return commands.Rotate{Overlap: &s} }
	at := func(d time.Duration) events.Time { return t0.Add(d) }
	end9999, err := events.ParseTime("9999-12-31T23:59:59.999Z")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		given     []events.Data
		when      commands.Rotate
		rules     *commands.Rules
		want      string      // an error's codes
		old, next events.Time // expiries
	}{
		{name: "at once", rules: rules(), old: now},
		{name: "an overlap", when: overlap("24h"), rules: rules(), old: at(2 * day)},
		{name: "an overlap within the old life", given: ends(10 * day), when: overlap("2d"), rules: rules(), old: at(3 * day), next: now.Add(10 * day)},
		{name: "an overlap past the old life", given: ends(2 * day), when: overlap("30d"), rules: rules(), old: at(2 * day), next: now.Add(2 * day)},
		{name: "an overlap below zero", when: overlap("-1s"), rules: rules(), want: "overlap:invalid"},
		{name: "a life past what a duration holds", given: []events.Data{&events.KeyExpiryChanged{After: end9999}}, when: overlap("1h"), rules: rules(), old: now.Add(time.Hour), next: now.Add(100 * 365 * day)},
		{name: "the policy shortens the successor", given: ends(10 * day), rules: rules(policy(events.ExpiryPolicy{Max: "1d"})), old: now, next: now.Add(day)},
		{name: "a policy that came later", rules: rules(policy(events.ExpiryPolicy{Required: true, Max: "24h"})), old: now, next: now.Add(day)},
		{name: "a policy with a default", rules: rules(policy(events.ExpiryPolicy{Required: true, Default: "60s"})), old: now, next: now.Add(time.Minute)},
		{name: "a policy without one", rules: rules(policy(events.ExpiryPolicy{Required: true})), want: "expires_at:required"},
		{name: "asked for", given: ends(10 * day), when: commands.Rotate{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("1h")}}, rules: rules(), old: now, next: now.Add(time.Hour)},
		{name: "asked for too much", when: commands.Rotate{ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("2d")}}, rules: rules(policy(events.ExpiryPolicy{Max: "1d"})), want: "expires_in:too_late"},
		{name: "twice", given: []events.Data{&events.KeyRotated{Successor: events.KeyID{9}, After: at(2 * day)}}, rules: rules(), want: "already_rotated"},
		{name: "a disabled key", given: []events.Data{new(events.KeyDisabled)}, rules: rules(), want: "state"},
		{name: "a revoked key", given: []events.Data{&events.KeyRevoked{Code: events.RevokeUnspecified}}, rules: rules(), want: "state"},
		{name: "an expired key", given: ends(day), rules: rules(), want: "state"},
		{name: "a type that is gone", rules: rules(func(r *commands.Rules) { r.Definition.KeyTypes = r.Definition.KeyTypes[1:] }), want: "type:unknown_type"},
		{name: "a scope that is gone", rules: rules(func(r *commands.Rules) { r.Definition.Scopes = r.Definition.Scopes[1:] }), want: "scopes[0]:unknown_scope"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := life(t, tt.given...)
			created, rotated, err := tt.when.Decide(k, tt.rules, now, events.KeyID{7}, events.NewSecret("new").Digest(), "sk_live_bbbb")
			if err != nil || tt.want != "" {
				if codeOf(err) != tt.want {
					t.Errorf("got %s (%v), want %q", codeOf(err), err, tt.want)
				}
				return
			}
			if rotated.After != tt.old || rotated.Before != k.ExpiresAt || created.ExpiresAt != tt.next {
				t.Errorf("the old key ends at %s, its successor at %s; want %s and %s", rotated.After, created.ExpiresAt, tt.old, tt.next)
			}
			if k.ExpiresAt != 0 && rotated.After > k.ExpiresAt {
				t.Errorf("C6: the old key's life grew from %s to %s", k.ExpiresAt, rotated.After)
			}
			if created.RotatedFrom != k.ID || rotated.Successor != (events.KeyID{7}) {
				t.Error("the lineage is broken")
			}
			if created.Name != "ci" || !slices.Equal(created.Scopes, k.Grant.Scopes) || created.Metadata["team"] != "a" || created.Environment != "live" {
				t.Errorf("the successor differs: %s", print(created))
			}
			for _, d := range []events.Data{created, rotated} {
				if err := d.Validate(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestDecideKeyspaceAndRole(t *testing.T) {
	var none events.Keyspace
	define := commands.DefineKeyspace{Definition: acme}
	data, err := define.Decide(&none, "acme")
	if err != nil || data == nil || data.Before != nil {
		t.Fatalf("define: %v, %v", data, err)
	}
	had := events.Keyspace{Chain: events.Chain{Rev: 1}, ID: "acme", Definition: acme}
	if data, err := define.Decide(&had, "acme"); err != nil || data != nil {
		t.Errorf("the same definition: %v, %v", data, err)
	}
	other := commands.DefineKeyspace{Definition: acme}
	other.Title = "Acme"
	if data, err := other.Decide(&had, "acme"); err != nil || data.Before == nil || data.Before.Title != "" {
		t.Errorf("another definition: %v, %v", data, err)
	}
	if _, err := define.Decide(&none, events.Builtin); codeOf(err) != "builtin_protected" {
		t.Errorf("built-in: %v", err)
	}
	bad := commands.DefineKeyspace{Reason: "\n"}
	if _, err := bad.Decide(&none, "A"); codeOf(err) != "key_types:required keyspace:invalid reason:invalid" {
		t.Errorf("bad: %s", codeOf(err))
	}
	big := commands.DefineKeyspace{Definition: acme}
	for i := range 900 {
		big.Scopes = append(big.Scopes, events.ScopeDef{Name: fmt.Sprintf("%s%03d", strings.Repeat("s", 60), i), Description: strings.Repeat("d", 500)})
	}
	if _, err := big.Decide(&none, "acme"); codeOf(err) != "body:too_large" {
		t.Errorf("a definition that could never be replaced within one event: %s", codeOf(err))
	}
	big.Scopes = big.Scopes[:len(acme.Scopes)+855]
	had.Definition, big.Title = big.Definition, "Acme"
	if data, err := big.Decide(&had, "acme"); err != nil {
		t.Errorf("a large definition: %v", err)
	} else if b, err := json.Marshal(data); err != nil || len(b) > 1_030_000 { // of the log's 1 MiB, with envelope and headers
		t.Errorf("replacing a large definition takes %d bytes: %v", len(b), err)
	}

	for _, tt := range []struct {
		cmd  commands.DefineRole
		role events.Role
		id   events.RoleID
		want string
	}{
		{commands.DefineRole{Scopes: &[]string{"write", "read"}}, events.Role{}, "dev", `role.defined{"level":"tenant","scopes":["read","write"]}`},
		{commands.DefineRole{Scopes: &[]string{}}, events.Role{}, "dev", `role.defined{"level":"tenant","scopes":[]}`},
		{commands.DefineRole{Scopes: &[]string{"deploy"}, Level: "division"}, events.Role{Chain: events.Chain{Rev: 1}, Level: "division", Scopes: []string{"write"}}, "dev", `role.defined{"level":"division","scopes":["deploy"],"before":["write"]}`},
		{commands.DefineRole{Scopes: &[]string{"deploy", "read"}, Level: "division"}, events.Role{}, "dev", "scopes[1]:scope_level"},
		{commands.DefineRole{Scopes: &[]string{"deploy"}, Level: "project"}, events.Role{}, "dev", "scopes[0]:scope_level"},
		{commands.DefineRole{Scopes: &[]string{"deploy", "read"}}, events.Role{}, "dev", `role.defined{"level":"tenant","scopes":["deploy","read"]}`},
		{commands.DefineRole{Scopes: &[]string{"read"}}, events.Role{}, "key_00000000000000000000000001", "role:reserved"},
		{commands.DefineRole{Scopes: &[]string{"read"}}, events.Role{Chain: events.Chain{Rev: 2}, Deleted: true}, "key_00000000000000000000000001", `role.defined{"level":"tenant","scopes":["read"]}`},
		{commands.DefineRole{Scopes: &[]string{"read"}}, events.Role{}, "key_8zzzzzzzzzzzzzzzzzzzzzzzzz", `role.defined{"level":"tenant","scopes":["read"]}`},
		{commands.DefineRole{Scopes: &[]string{"read"}, Level: "division"}, events.Role{Chain: events.Chain{Rev: 1}, Level: "tenant"}, "dev", "level:immutable"},
		{commands.DefineRole{Scopes: &[]string{"deploy"}, Level: "division"}, events.Role{Chain: events.Chain{Rev: 2}, Level: "tenant", Deleted: true}, "dev", "level:immutable"},
		{commands.DefineRole{Scopes: &[]string{"deploy"}, Level: "division"}, events.Role{Chain: events.Chain{Rev: 2}, Level: "division", Deleted: true}, "dev", `role.defined{"level":"division","scopes":["deploy"]}`},
		{commands.DefineRole{Scopes: &[]string{"read"}, Level: "planet"}, events.Role{}, "-", "role:invalid level:unknown_kind"},
		{commands.DefineRole{Scopes: &[]string{"fly"}}, events.Role{}, "dev", "scopes[0]:unknown_scope"},
		{commands.DefineRole{}, events.Role{}, "dev", "scopes:required"},
		// Of a list that is too long nothing else is said: it may hold as many as a body.
		{commands.DefineRole{Scopes: ptr(slices.Repeat([]string{"read"}, 201)), Level: "division"}, events.Role{}, "dev", "scopes:invalid"},
		{commands.DefineRole{Scopes: ptr(slices.Repeat([]string{"fly"}, 201))}, events.Role{}, "dev", "scopes:invalid"},
	} {
		data, err := tt.cmd.Decide(&tt.role, rules(), tt.id)
		got := codeOf(err)
		if err == nil {
			got = print(data)
		}
		if got != tt.want {
			t.Errorf("role: got %s, want %s", got, tt.want)
		}
	}
	if _, err := new(commands.DeleteRole).Decide(new(events.Role)); codeOf(err) != "not_found" {
		t.Errorf("delete a role that is not there: %v", err)
	}
}

func TestDecideExpire(t *testing.T) {
	k := life(t, &events.KeyExpiryChanged{After: t0.Add(day)})
	if commands.DecideExpire(k, t0.Add(day)-1) != nil {
		t.Error("expired before its millisecond")
	}
	if d := commands.DecideExpire(k, t0.Add(day)); d == nil || d.ExpiredAt != t0.Add(day) {
		t.Errorf("not expired at its millisecond: %v", d)
	}
	if commands.DecideExpire(life(t), t0.Add(1000*day)) != nil {
		t.Error("a key without expiry expired")
	}
	if commands.DecideExpire(life(t, &events.KeyExpiryChanged{After: t0.Add(day)}, &events.KeyRevoked{Code: events.RevokeUnspecified}), t0.Add(day)) != nil {
		t.Error("a revoked key expired")
	}
}

// TestNewSecret draws many secrets: each has its type's form, no two are equal,
// and every character comes as often as every other.
func TestNewSecret(t *testing.T) {
	for _, kt := range append(slices.Clone(acme.KeyTypes), events.KeyType{Prefix: "", Length: 200}, events.KeyType{Prefix: "x", Length: 1}) {
		random := newDice(3)
		seen, count := map[string]bool{}, map[rune]int{}
		const draws = 4000
		for range draws {
			s, err := commands.NewSecret(&kt, kt.Environment(), random)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := kt.Match(s.Reveal()); !ok {
				t.Fatalf("type %q: a secret of another form", kt.Name)
			}
			if seen[s.Reveal()] && kt.Len() > 1 {
				t.Fatal("the same secret twice")
			}
			seen[s.Reveal()] = true
			for _, c := range s.Reveal()[len(kt.Prefix):] {
				count[c]++
			}
		}
		chars := kt.Alphabet.Chars()
		want := float64(draws*kt.Len()) / float64(len(chars))
		chi := 0.0
		for _, c := range chars {
			d := float64(count[c]) - want
			chi += d * d / want
		}
		// 61 degrees of freedom: 120 is beyond 1 in 100 000.
		if chi > 120 {
			t.Errorf("type %q: the characters are not equally likely: chi-square %.0f", kt.Name, chi)
		}
	}
}
