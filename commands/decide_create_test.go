package commands_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

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
	month := keyspace.ExpiryPolicy{Max: "30d"}
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
			ExpiryWish: in("soon"), Limit: &keyspace.Limit{}, Metadata: map[string]string{"": "x"}, Reason: "\x00"}, rules(),
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
		{"never where it must expire", expiring(never), rules(policy(keyspace.ExpiryPolicy{Required: true})), "expires_at:required"},
		{"nothing where it must expire", expiring(commands.ExpiryWish{}), rules(policy(keyspace.ExpiryPolicy{Required: true})), "expires_at:required"},
		{"the default", expiring(commands.ExpiryWish{}), rules(policy(keyspace.ExpiryPolicy{Default: "1h"})), `"expires_at":"2026-01-06T11:00:00.000Z"`},
		{"never is not the default", expiring(never), rules(policy(keyspace.ExpiryPolicy{Default: "1h"})), `"scopes":["read"]}`},
		{"the longest", expiring(in("30d")), rules(policy(month)), `"expires_at":"2026-02-05T10:00:00.000Z"`},
		{"longer", expiring(in("30d1ms")), rules(policy(month)), "expires_in:too_late"},
		{"never under a longest", expiring(never), rules(policy(month)), "expires_at:required"},

		{"a plan", key(func(c *commands.Create) { c.Limit = &keyspace.Limit{Plan: "pro"} }), rules(), `"limit":{"plan":"pro"}`},
		{"an unknown plan", key(func(c *commands.Create) { c.Limit = &keyspace.Limit{Plan: "gold"} }), rules(), "limit.plan:unknown_plan"},
		{"a limit of zero is not off", key(func(c *commands.Create) { c.Limit = &keyspace.Limit{PerMinute: 0, Burst: 5} }), rules(), "limit.per_minute:invalid"},
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
func by(g keyspace.GrantRules) func(*commands.Rules) {
	return func(r *commands.Rules) { r.Definition.Grants = g }
}

func TestDecideCreateGrants(t *testing.T) {
	made := func(r *commands.Rules) { r.NewKey = events.KeyID{15: 1} }
	required := by(keyspace.GrantRules{Required: true})
	scopes, roles := by(keyspace.GrantRules{By: keyspace.GrantsByScopes}), by(keyspace.GrantRules{By: keyspace.GrantsByRoles})
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
		{"and one is required", rules(by(keyspace.GrantRules{Required: true, By: keyspace.GrantsByRoles})), func(*commands.Create) {}, "roles:required"},

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
			for i := range keyspace.MaxScopes {
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
		rules keyspace.GrantRules
		when  commands.AssignScopes
		want  string
	}{
		{"fixed", keyspace.GrantRules{Fixed: true}, commands.AssignScopes{Scopes: &[]string{"write"}}, "scopes_fixed"},
		{"fixed as it is", keyspace.GrantRules{Fixed: true}, commands.AssignScopes{Scopes: &[]string{"read"}}, "scopes_fixed"},
		{"roles are fixed too", keyspace.GrantRules{Fixed: true}, commands.AssignScopes{Roles: roles("reader")}, "scopes_fixed"},
		{"all taken away", keyspace.GrantRules{Required: true}, commands.AssignScopes{Scopes: &[]string{}}, "scopes:required"},
		{"all but a role", keyspace.GrantRules{Required: true}, commands.AssignScopes{Scopes: &[]string{}, Roles: roles("reader")},
			`key.scopes_assigned{"before":{"scopes":["read"]},"after":{"roles":["reader"]}}`},
		{"a role by scopes", keyspace.GrantRules{By: keyspace.GrantsByScopes}, commands.AssignScopes{Roles: roles("reader")}, "roles:not_by_roles"},
		{"no roles by scopes", keyspace.GrantRules{By: keyspace.GrantsByScopes}, commands.AssignScopes{Roles: roles()}, ""},
		{"a scope by roles", keyspace.GrantRules{By: keyspace.GrantsByRoles}, commands.AssignScopes{Scopes: &[]string{"write"}}, "scopes:not_by_scopes"},
		{"the move to roles", keyspace.GrantRules{By: keyspace.GrantsByRoles}, commands.AssignScopes{Scopes: &[]string{}, Roles: roles("reader")},
			`key.scopes_assigned{"before":{"scopes":["read"]},"after":{"roles":["reader"]}}`},
		{"neither", keyspace.GrantRules{Required: true}, commands.AssignScopes{}, "scopes:required"},
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
		rules keyspace.GrantRules
		want  string
	}{
		{life(t), keyspace.GrantRules{Fixed: true, Required: true, By: keyspace.GrantsByScopes}, "ok"},
		{life(t), keyspace.GrantRules{By: keyspace.GrantsByRoles}, "scopes:not_by_scopes"},
		{none, keyspace.GrantRules{Required: true}, "scopes:required"},
		{none, keyspace.GrantRules{}, "ok"},
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
	free := keyspace.ExpiryPolicy{Choices: []keyspace.Span{"never", "30d", "90d", "365d"}}
	must := keyspace.ExpiryPolicy{Required: true, Max: "365d", Choices: []keyspace.Span{"30d", "365d"}}
	standard := keyspace.ExpiryPolicy{Required: true, Default: "90d", Choices: []keyspace.Span{"30d", "2160h"}}
	at := func(s string) commands.ExpiryWish { return commands.ExpiryWish{ExpiresAt: commands.Some(s)} }
	in := func(s string) commands.ExpiryWish { return commands.ExpiryWish{ExpiresIn: &s} }
	null := commands.ExpiryWish{ExpiresAt: commands.Null[string]()}
	const never = time.Duration(-1)
	for _, tt := range []struct {
		name   string
		policy keyspace.ExpiryPolicy
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
		{"never without choices", keyspace.ExpiryPolicy{}, in("never"), "", never},
		{"never without choices under a longest", keyspace.ExpiryPolicy{Max: "30d"}, in("never"), "expires_in:required", 0},
		{"Never", keyspace.ExpiryPolicy{}, in("Never"), "expires_in:invalid", 0},
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
		policy keyspace.ExpiryPolicy
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

// TestNewSecret draws many secrets: each has its type's form, no two are equal,
// and every character comes as often as every other.
func TestNewSecret(t *testing.T) {
	for _, kt := range append(slices.Clone(acme.KeyTypes), keyspace.KeyType{Prefix: "", Length: 200}, keyspace.KeyType{Prefix: "x", Length: 1}) {
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

func TestDurations(t *testing.T) {
	for _, s := range []string{"", "0", "0s", "-1h", "d", "-1d", "+1d", "1d-1h", "1.5d", "1h1d", "36501d", "876001h", "36500d1s", "99999999999999d", "0d", "1", "1d1"} {
		c := commands.Create{Tenant: "t1", Name: "n", ExpiryWish: commands.ExpiryWish{ExpiresIn: &s}}
		if _, err := c.Decide(rules(), t0, events.NewSecret("s").Digest(), "h"); codeOf(err) != "expires_in:invalid" {
			t.Errorf("%q: %s", s, codeOf(err))
		}
	}
}
