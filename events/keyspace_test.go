package events_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

func TestKeyTypeMatches(t *testing.T) {
	base := events.KeyType{Name: "a", Prefix: "sk_"}
	hex := events.KeyType{Name: "b", Prefix: "h", Alphabet: events.Hex, Length: 40}
	bare := events.KeyType{Name: "c", Length: 30}
	for _, c := range []struct {
		kt     events.KeyType
		secret string
		want   bool
	}{
		{base, "sk_" + strings.Repeat("aZ09", 8), true},
		{base, "sk_" + strings.Repeat("a", 31), false},
		{base, "sk_" + strings.Repeat("a", 33), false},
		{base, "sk-" + strings.Repeat("a", 32), false},
		{base, "SK_" + strings.Repeat("a", 32), false},
		{base, strings.Repeat("a", 35), false},
		{base, "sk_" + strings.Repeat("a", 31) + "_", false},
		{base, "sk_" + strings.Repeat("a", 31) + " ", false},
		{base, "sk_" + strings.Repeat("a", 31) + "\n", false},
		{base, "sk_" + strings.Repeat("a", 30) + "é", false},
		{base, "", false},
		{base, "sk_", false},
		{hex, "h" + strings.Repeat("0f", 20), true},
		{hex, "h" + strings.Repeat("0F", 20), false},
		{hex, "h" + strings.Repeat("0g", 20), false},
		{bare, strings.Repeat("Q", 30), true},
		{bare, "", false},
	} {
		if _, got := c.kt.Match(c.secret); got != c.want {
			t.Errorf("%s matches %q: %v", c.kt.Name, c.secret, got)
		}
	}
	secret := "sk_" + strings.Repeat("a", 32)
	if n := testing.AllocsPerRun(100, func() { base.Match(secret) }); n != 0 {
		t.Errorf("Match allocates %v times", n)
	}
	// Every character of an alphabet, and nothing else of ASCII, is in the form.
	for _, a := range []events.Alphabet{"", events.Base62, events.Hex} {
		kt := events.KeyType{Alphabet: a, Length: 1}
		for c := range 256 {
			if _, got := kt.Match(string([]byte{byte(c)})); got != (c < 128 && strings.ContainsRune(a.Chars(), rune(c))) {
				t.Errorf("alphabet %q, character %q: %v", a, rune(c), got)
			}
		}
	}
	for _, c := range []struct{ secret, want string }{
		{"sk_8FjKaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "sk_8FjK"}, {"sk_8F", "s"}, {"another-issuers-own-long-secret-of-43-chars", "another-"}, {"", ""},
	} {
		if got := base.Hint(c.secret); got != c.want {
			t.Errorf("hint of %q is %q, want %q", c.secret, got, c.want)
		}
	}
}

// minimal is the least definition that can be applied.
func minimal() events.Definition {
	return events.Definition{KeyTypes: []events.KeyType{{Name: "secret", Prefix: "sk_"}}}
}

func TestDefinitionValidate(t *testing.T) {
	def := minimal()
	if f := def.Validate(); f != nil || f.OrNil() != nil {
		t.Errorf("the least definition: %v", f)
	}
	builtin := events.BuiltinDefinition()
	if f := builtin.Validate(); f != nil {
		t.Errorf("the built-in definition: %v", f)
	}
	many := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprint("s", i))
		}
		return out
	}
	catalogue := func(names ...string) (out []events.ScopeDef) {
		for _, n := range names {
			out = append(out, events.ScopeDef{Name: n})
		}
		return out
	}
	types := func(ts ...events.KeyType) func(*events.Definition) {
		return func(d *events.Definition) { d.KeyTypes = ts }
	}
	for name, c := range map[string]struct {
		change func(*events.Definition)
		want   string // "field code" of every fault, in order; "" = none
	}{
		"no key types":   {func(d *events.Definition) { d.KeyTypes = nil }, "key_types required"},
		"title of 101":   {func(d *events.Definition) { d.Title = strings.Repeat("é", 101) }, "title invalid"},
		"title of 100":   {func(d *events.Definition) { d.Title = strings.Repeat("é", 100) }, ""},
		"description":    {func(d *events.Definition) { d.Description = "\x00" }, "description invalid"},
		"bad scope":      {func(d *events.Definition) { d.Scopes = catalogue("a b") }, "scopes[0].name invalid"},
		"scope twice":    {func(d *events.Definition) { d.Scopes = catalogue("a", "a") }, "scopes[1].name duplicate"},
		"implies none":   {func(d *events.Definition) { d.Scopes = []events.ScopeDef{{Name: "a", Implies: []string{"b"}}} }, "scopes[0].implies[0] unknown_scope"},
		"implies itself": {func(d *events.Definition) { d.Scopes = []events.ScopeDef{{Name: "a", Implies: []string{"a"}}} }, ""},
		"implies later": {func(d *events.Definition) {
			d.Scopes = []events.ScopeDef{{Name: "a", Implies: []string{"b"}}, {Name: "b"}}
		}, ""},
		"type name":       {types(events.KeyType{Name: "A"}), "key_types[0].name invalid"},
		"type twice":      {types(events.KeyType{Name: "a", Prefix: "x_"}, events.KeyType{Name: "a", Prefix: "y_"}), "key_types[1].name duplicate"},
		"environment":     {types(events.KeyType{Name: "a", Environments: []string{"Live"}}), "key_types[0].environments[0] invalid"},
		"prefix of 33":    {types(events.KeyType{Name: "a", Prefix: strings.Repeat("p", 33)}), "key_types[0].prefix invalid"},
		"prefix with dot": {types(events.KeyType{Name: "a", Prefix: "a.b"}), "key_types[0].prefix invalid"},
		"alphabet":        {types(events.KeyType{Name: "a", Alphabet: "base64"}), "key_types[0].alphabet invalid"},
		"20 of base62":    {types(events.KeyType{Name: "a", Length: 20}), "key_types[0].length invalid"},
		"21 of base62":    {types(events.KeyType{Name: "a", Length: 21}), ""},
		"29 of hex":       {types(events.KeyType{Name: "a", Length: 29, Alphabet: events.Hex}), "key_types[0].length invalid"},
		"30 of hex":       {types(events.KeyType{Name: "a", Length: 30, Alphabet: events.Hex}), ""},
		"201":             {types(events.KeyType{Name: "a", Length: 201}), "key_types[0].length invalid"},
		"negative length": {types(events.KeyType{Name: "a", Length: -1}), "key_types[0].length invalid"},
		"unknown default": {types(events.KeyType{Name: "a", Defaults: []string{"x"}}), "key_types[0].defaults[0] unknown_scope"},
		"unknown ceiling": {types(events.KeyType{Name: "a", Ceiling: []string{"x"}}), "key_types[0].ceiling[0] unknown_scope"},
		"default above": {func(d *events.Definition) {
			d.Scopes = catalogue("r", "w")
			d.KeyTypes[0].Defaults = []string{"r", "w"}
			d.KeyTypes[0].Ceiling = []string{"r"}
		}, "key_types[0].defaults[1] above_ceiling"},
		"default below": {func(d *events.Definition) {
			d.Scopes = []events.ScopeDef{{Name: "r"}, {Name: "w", Implies: []string{"r"}}}
			d.KeyTypes[0].Defaults = []string{"r"}
			d.KeyTypes[0].Ceiling = []string{"w"}
		}, ""},
		"empty ceiling": {func(d *events.Definition) {
			d.Scopes = catalogue("r")
			d.KeyTypes[0].Defaults = []string{"r"}
			d.KeyTypes[0].Ceiling = []string{}
		}, "key_types[0].ceiling invalid, key_types[0].defaults[0] above_ceiling"},
		"one form twice":  {types(events.KeyType{Name: "a", Prefix: "p_"}, events.KeyType{Name: "b", Prefix: "p_"}), "key_types[1].prefix duplicate"},
		"two lengths":     {types(events.KeyType{Name: "a", Prefix: "p_"}, events.KeyType{Name: "b", Prefix: "p_", Length: 33}), ""},
		"prefix in form":  {types(events.KeyType{Name: "a", Prefix: "p", Length: 34}, events.KeyType{Name: "b", Prefix: "pab", Length: 32}), "key_types[1].prefix duplicate"},
		"form in prefix":  {types(events.KeyType{Name: "b", Prefix: "pab", Length: 32}, events.KeyType{Name: "a", Prefix: "p", Length: 34}), "key_types[1].prefix duplicate"},
		"not in form":     {types(events.KeyType{Name: "a", Prefix: "p_", Length: 37}, events.KeyType{Name: "b", Prefix: "p_live_", Length: 32}), ""},
		"not in alphabet": {types(events.KeyType{Name: "a", Prefix: "p", Length: 33, Alphabet: events.Hex}, events.KeyType{Name: "b", Prefix: "pz", Length: 32}), ""},
		"header":          {func(d *events.Definition) { d.Credential.Header = "X Key" }, "credential.header invalid"},
		"scheme":          {func(d *events.Definition) { d.Credential.Scheme = "a b" }, "credential.scheme invalid"},
		"resource kind":   {func(d *events.Definition) { d.Resources = []string{"P", "p", "p"} }, "resources[0] invalid, resources[2] duplicate"},
		"expiry":          {func(d *events.Definition) { d.Expiry.Max = "-1s" }, "expiry.max invalid"},
		"expiry of 101 y": {func(d *events.Definition) { d.Expiry.Max = "36865d" }, "expiry.max invalid"},
		"default expiry":  {func(d *events.Definition) { d.Expiry.Max = "5s"; d.Expiry.Default = "6s" }, "expiry.default invalid"},
		"plan":            {func(d *events.Definition) { d.Plans = []events.Plan{{"P", 1, 1}, {"p", 0, 1}, {"p", 1, 1 << 40}} }, "plans[0].name invalid, plans[1].per_minute invalid, plans[2].name duplicate, plans[2].burst invalid"},
		"unknown plan":    {func(d *events.Definition) { d.Limit = &events.Limit{Plan: "p"} }, "limit.plan unknown_plan"},
		"plan and numbers": {func(d *events.Definition) {
			d.Plans = []events.Plan{{"p", 1, 1}}
			d.Limit = &events.Limit{Plan: "p", Burst: 1}
		}, "limit.plan conflict"},
		"empty limit":      {func(d *events.Definition) { d.Limit = &events.Limit{} }, "limit.per_minute invalid, limit.burst invalid"},
		"staleness":        {func(d *events.Definition) { d.Staleness = events.Staleness{MaxMillis: -1, OnStale: "maybe"} }, "staleness.max_millis invalid, staleness.on_stale invalid"},
		"staleness of 2 d": {func(d *events.Definition) { d.Staleness.MaxMillis = 2 * 86400_000 }, "staleness.max_millis invalid"},
		"ledger":           {func(d *events.Definition) { d.Ledger = "never" }, "ledger invalid"},
		"1001 scopes":      {func(d *events.Definition) { d.Scopes = catalogue(many(1001)...) }, "scopes too_many"},
		"1000 scopes":      {func(d *events.Definition) { d.Scopes = catalogue(many(1000)...) }, ""},
		"201 implied":      {func(d *events.Definition) { d.Scopes = catalogue(many(300)...); d.Scopes[0].Implies = many(201) }, "scopes[0].implies too_many"},
		"33 key types":     {func(d *events.Definition) { d.KeyTypes = make([]events.KeyType, 33) }, "key_types too_many"},
		"33 kinds":         {func(d *events.Definition) { d.Resources = many(33) }, "resources too_many"},
		"101 plans":        {func(d *events.Definition) { d.Plans = make([]events.Plan, 101) }, "plans too_many"},
		"all at once": {func(d *events.Definition) {
			d.Title, d.Ledger, d.Scopes, d.KeyTypes[0].Name, d.Credential.Scheme = "\n", "x", catalogue("?"), "?", "?"
		}, "title invalid, scopes[0].name invalid, key_types[0].name invalid, credential.scheme invalid, ledger invalid"},
	} {
		d := minimal()
		c.change(&d)
		var got []string
		for _, f := range d.Validate() {
			got = append(got, f.Field+" "+f.Code)
			if len(f.Message) < 8 {
				t.Errorf("%s: %s says only %q", name, f.Field, f.Message)
			}
		}
		if strings.Join(got, ", ") != c.want {
			t.Errorf("%s: faults %q, want %q", name, strings.Join(got, ", "), c.want)
		}
	}
}

// No secret of the form of one type has the form of another, whatever passes.
func TestValidTypesDoNotOverlap(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var d events.Definition
		for i := range 2 {
			d.KeyTypes = append(d.KeyTypes, events.KeyType{
				Name: fmt.Sprint("t", i), Prefix: rapid.StringMatching(`[af_]{0,3}`).Draw(r, "prefix"), Length: rapid.IntRange(30, 33).Draw(r, "length"),
				Alphabet: rapid.SampledFrom([]events.Alphabet{events.Hex, events.Base62}).Draw(r, "alphabet"),
			})
		}
		if d.Validate() != nil {
			return
		}
		for i := range 2 {
			secret := d.KeyTypes[i].Prefix + strings.Repeat(rapid.SampledFrom([]string{"a", "f"}).Draw(r, "fill"), d.KeyTypes[i].Len())
			if kt, _, ok := d.TypeOf(secret); !ok || kt.Name != d.KeyTypes[i].Name {
				r.Fatalf("%q, of type %d, is taken for %v", secret, i, kt)
			}
		}
	})
}

func TestDefinitionDefaults(t *testing.T) {
	d := minimal()
	d.KeyTypes = append(d.KeyTypes, events.KeyType{Name: "other", Prefix: "o_"})
	if kt, ok := d.Type(""); !ok || kt.Name != "secret" || kt.Len() != events.DefaultSecretLength {
		t.Errorf("the default type: %+v, %v", kt, ok)
	}
	if kt, ok := d.Type("other"); !ok || kt.Name != "other" {
		t.Errorf("type by name: %+v, %v", kt, ok)
	}
	if _, ok := d.Type("none"); ok {
		t.Error("an undefined type is found")
	}
	if d.Staleness.MaxStaleness() != 10*time.Second || (events.Staleness{MaxMillis: 5}).MaxStaleness() != 5*time.Millisecond {
		t.Error("staleness")
	}
	if d.Expiry.Longest() != 0 || (&events.ExpiryPolicy{Max: "2s"}).Longest() != 2*time.Second {
		t.Error("expiry")
	}
	for _, c := range []struct {
		c              events.Credential
		header, scheme string
	}{
		{events.Credential{}, "Authorization", "Bearer"},
		{events.Credential{Header: "authorization"}, "authorization", "Bearer"},
		{events.Credential{Header: "X-Api-Key"}, "X-Api-Key", ""},
		{events.Credential{Scheme: "Key"}, "Authorization", "Key"},
		{events.Credential{Header: "X-K", Scheme: "Key"}, "X-K", "Key"},
	} {
		if c.c.HeaderName() != c.header || c.c.SchemeName() != c.scheme {
			t.Errorf("%+v: header %q, scheme %q", c.c, c.c.HeaderName(), c.c.SchemeName())
		}
	}
	d.Plans = []events.Plan{{"basic", 60, 5}}
	for _, c := range []struct {
		own, space *events.Limit
		rate       int64
		ok         bool
	}{
		{nil, nil, 0, false},
		{nil, &events.Limit{PerMinute: 7, Burst: 1}, 7, true},
		{nil, &events.Limit{Plan: "basic"}, 60, true},
		{&events.Limit{PerMinute: 9, Burst: 1}, &events.Limit{Plan: "basic"}, 9, true},
		{&events.Limit{Plan: "basic"}, nil, 60, true},
		{&events.Limit{Plan: "gone"}, nil, 0, false},
	} {
		d.Limit = c.space
		if rate, _, ok := d.Resolve(c.own); rate != c.rate || ok != c.ok {
			t.Errorf("%+v in a space of %+v: %d, %v", c.own, c.space, rate, ok)
		}
	}
}

func TestExpand(t *testing.T) {
	d := minimal()
	d.Scopes = []events.ScopeDef{
		{Name: "a", Implies: []string{"b"}}, {Name: "b", Implies: []string{"c"}}, {Name: "c", Implies: []string{"a"}},
		{Name: "self", Implies: []string{"self"}}, {Name: "x", Implies: []string{"self", "y"}}, {Name: "y"},
	}
	for in, want := range map[string]string{
		"": "", "a": "a b c", "c": "a b c", "y": "y", "x": "self x y", "self": "self", "x a y y": "a b c self x y", "gone": "gone", "z gone a": "a b c gone z",
	} {
		list := strings.Fields(in)
		given := slices.Clone(list)
		if got := strings.Join(d.Expand(list), " "); got != want {
			t.Errorf("%q expands to %q, want %q", in, got, want)
		}
		if !slices.Equal(list, given) {
			t.Errorf("Expand changed what it was given: %v", list)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		d := logtest.GenDefinition().Draw(r, "definition")
		if f := d.Validate(); f != nil {
			r.Fatalf("a drawn definition is invalid: %v", f)
		}
		var some []string
		for _, s := range d.Scopes {
			if rapid.Bool().Draw(r, s.Name) {
				some = append(some, s.Name)
			}
		}
		once := d.Expand(some)
		if !slices.Equal(d.Expand(once), once) || !slices.IsSorted(once) {
			r.Fatalf("Expand(%v) = %v is not closed", some, once)
		}
		for _, s := range some {
			if !slices.Contains(once, s) {
				r.Fatalf("%s got lost", s)
			}
		}
	})
}

func TestEffective(t *testing.T) {
	d := minimal()
	d.Scopes = []events.ScopeDef{{Name: "read"}, {Name: "write", Implies: []string{"read"}}, {Name: "admin", Implies: []string{"write"}}}
	d.KeyTypes = append(d.KeyTypes, events.KeyType{Name: "pub", Prefix: "pk_", Ceiling: []string{"write"}}, events.KeyType{Name: "mute", Prefix: "m_", Ceiling: []string{}})
	for _, c := range []struct{ kt, in, want string }{
		{"secret", "admin", "admin read write"},
		{"secret", "gone read", "read"},
		{"pub", "admin", "read write"},
		{"pub", "read", "read"},
		{"mute", "admin", ""},
		{"gone", "admin", ""},
		{"", "admin", ""},
		{"secret", "", ""},
	} {
		if got := strings.Join(d.Effective(c.kt, strings.Fields(c.in)), " "); got != c.want {
			t.Errorf("type %q with %q may %q, want %q", c.kt, c.in, got, c.want)
		}
	}
}

func TestFieldErrors(t *testing.T) {
	var f, inner events.FieldErrors
	inner.Add("", "required", "want one")
	inner.Add("plan", "invalid", "want a name")
	f.Merge("limit", inner)
	if got, want := f.Error(), "limit: want one; limit.plan: want a name"; got != want || f.OrNil() == nil {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPrincipal(t *testing.T) {
	for _, c := range []struct {
		keyspaces []events.KeyspaceID
		tenants   []events.TenantID
		ks        events.KeyspaceID
		tenant    events.TenantID
		want      bool
	}{
		{nil, nil, "shop", "acme", true},
		{nil, nil, "shop", events.NoTenant, true},
		{[]events.KeyspaceID{"shop"}, nil, "shop", "acme", true},
		{[]events.KeyspaceID{"shop"}, nil, "shop", events.NoTenant, true},
		{[]events.KeyspaceID{"shop"}, nil, "bank", "acme", false},
		{nil, []events.TenantID{"acme"}, "shop", "acme", true},
		{nil, []events.TenantID{"acme"}, "shop", "globex", false},
		{nil, []events.TenantID{"acme"}, "shop", events.NoTenant, false},
		{[]events.KeyspaceID{"shop", "mail"}, []events.TenantID{"acme", "b"}, "mail", "b", true},
		{[]events.KeyspaceID{"shop"}, []events.TenantID{"acme"}, "bank", "acme", false},
		{[]events.KeyspaceID{"shop"}, []events.TenantID{"acme"}, "shop", "globex", false},
	} {
		p := events.Principal{Keyspaces: c.keyspaces, Tenants: c.tenants}
		if got := p.Reaches(c.ks, c.tenant); got != c.want {
			t.Errorf("restricted to %v %v it reaches %s/%s: %v", c.keyspaces, c.tenants, c.ks, c.tenant, got)
		}
	}
	res := func(s ...string) (out []events.Resource) {
		for _, x := range s {
			kind, id, _ := strings.Cut(x, "/")
			out = append(out, events.Resource{Kind: kind, ID: id})
		}
		return out
	}
	full := []string{"audit:read", "keys:read", "keys:write"}
	for _, c := range []struct {
		name      string
		keyspaces []events.KeyspaceID
		tenants   []events.TenantID
		scopes    []string
		resources []events.Resource
		want      bool
	}{
		{"the same", nil, nil, full, nil, true},
		{"less", nil, nil, full[:1], res("keyspace/shop", "tenant/acme"), true},
		{"nothing", nil, nil, nil, nil, true},
		{"a scope more", nil, nil, []string{"keys:read", "keyspaces:write"}, nil, false},
		{"admin", nil, nil, []string{"admin"}, nil, false},
		{"without its restriction", []events.KeyspaceID{"shop"}, nil, full, nil, false},
		{"with its restriction", []events.KeyspaceID{"shop"}, nil, full, res("keyspace/shop"), true},
		{"restricted further", []events.KeyspaceID{"shop"}, nil, full, res("keyspace/shop", "tenant/acme"), true},
		{"a keyspace more", []events.KeyspaceID{"shop"}, nil, full, res("keyspace/shop", "keyspace/bank"), false},
		{"another keyspace", []events.KeyspaceID{"shop"}, nil, full, res("keyspace/bank"), false},
		{"one of two", []events.KeyspaceID{"shop", "bank"}, nil, full, res("keyspace/bank"), true},
		{"tenant for keyspace", []events.KeyspaceID{"shop"}, nil, full, res("tenant/shop"), false},
		{"another kind for keyspace", []events.KeyspaceID{"shop"}, nil, full, res("project/shop"), false},
		{"a tenant more", nil, []events.TenantID{"acme"}, full, res("tenant/acme", "tenant/globex"), false},
		{"its tenant, no keyspace", nil, []events.TenantID{"acme"}, full, res("tenant/acme"), true},
		{"both needed, one given", []events.KeyspaceID{"shop"}, []events.TenantID{"acme"}, full, res("keyspace/shop"), false},
		{"both needed, both given", []events.KeyspaceID{"shop"}, []events.TenantID{"acme"}, full, res("keyspace/shop", "tenant/acme"), true},
	} {
		p := events.Principal{Scopes: full, Keyspaces: c.keyspaces, Tenants: c.tenants}
		if got := p.Covers(c.scopes, c.resources); got != c.want {
			t.Errorf("%s: covers %v, want %v", c.name, got, c.want)
		}
	}
	// Whatever a minted key reaches, its creator reaches too.
	rapid.Check(t, func(r *rapid.T) {
		ks := rapid.SampledFrom([]events.KeyspaceID{"a", "b", "c"})
		ts := rapid.SampledFrom([]events.TenantID{"x", "y", "z"})
		p := events.Principal{Keyspaces: rapid.SliceOfN(ks, 0, 3).Draw(r, "keyspaces"), Tenants: rapid.SliceOfN(ts, 0, 3).Draw(r, "tenants")}
		minted := events.Principal{Keyspaces: rapid.SliceOfN(ks, 0, 3).Draw(r, "minted keyspaces"), Tenants: rapid.SliceOfN(ts, 0, 3).Draw(r, "minted tenants")}
		var rs []events.Resource
		for _, k := range minted.Keyspaces {
			rs = append(rs, events.Resource{Kind: events.ResourceKeyspace, ID: string(k)})
		}
		for _, x := range minted.Tenants {
			rs = append(rs, events.Resource{Kind: events.ResourceTenant, ID: string(x)})
		}
		beyond := false
		for _, k := range []events.KeyspaceID{"a", "b", "c", "other"} {
			for _, x := range []events.TenantID{"x", "y", "z", "other", events.NoTenant} {
				beyond = beyond || minted.Reaches(k, x) && !p.Reaches(k, x)
			}
		}
		if covers := p.Covers(nil, rs); covers == beyond {
			r.Fatalf("%+v covers %+v: %v, but reaches beyond: %v", p, minted, covers, beyond)
		}
	})
}
