package events_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
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
	for _, a := range alphabets {
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
		"reserved header": {func(d *events.Definition) { d.Credential.Header = "x-forwarded-for" }, "credential.header invalid"},
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
		"environments": {types(events.KeyType{Name: "a", Environments: []string{"live", "Live", "live", "", "a-b"}}),
			"key_types[0].environments[1] invalid, key_types[0].environments[2] duplicate, key_types[0].environments[3] invalid, key_types[0].environments[4] invalid"},
		"17 environments":      {types(events.KeyType{Name: "a", Environments: many(17)}), "key_types[0].environments too_many"},
		"16 environments":      {types(events.KeyType{Name: "a", Environments: many(16)}), ""},
		"template":             {types(events.KeyType{Name: "a", Prefix: "lat_{environment}_", Environments: []string{"live"}}), ""},
		"template twice":       {types(events.KeyType{Name: "a", Prefix: "{environment}{environment}", Environments: []string{"live"}}), "key_types[0].prefix invalid"},
		"another placeholder":  {types(events.KeyType{Name: "a", Prefix: "lat_{env}_", Environments: []string{"live"}}), "key_types[0].prefix invalid"},
		"template for nothing": {types(events.KeyType{Name: "a", Prefix: "lat_{environment}_"}), "key_types[0].prefix invalid"},
		"template of 33":       {types(events.KeyType{Name: "a", Prefix: strings.Repeat("p", 33) + "{environment}", Environments: []string{"e"}}), "key_types[0].prefix invalid"},
		"template of 48":       {types(events.KeyType{Name: "a", Prefix: strings.Repeat("p", 32) + "{environment}", Environments: []string{"e", strings.Repeat("e", 16)}}), ""},
		"template of 49":       {types(events.KeyType{Name: "a", Prefix: strings.Repeat("p", 32) + "{environment}", Environments: []string{"e", strings.Repeat("e", 17)}}), "key_types[0].prefix invalid"},
		"prefix of 32":         {types(events.KeyType{Name: "a", Prefix: strings.Repeat("p", 32)}), ""},
		"20 of base58":         {types(events.KeyType{Name: "a", Length: 20, Alphabet: events.Base58}), "key_types[0].length invalid"},
		"21 of base58":         {types(events.KeyType{Name: "a", Length: 21, Alphabet: events.Base58}), ""},
		"23 of base32":         {types(events.KeyType{Name: "a", Length: 23, Alphabet: events.Base32}), "key_types[0].length invalid"},
		"24 of base32":         {types(events.KeyType{Name: "a", Length: 24, Alphabet: events.Base32}), ""},
		"19 of base64url":      {types(events.KeyType{Name: "a", Length: 19, Alphabet: events.Base64URL}), "key_types[0].length invalid"},
		"20 of base64url":      {types(events.KeyType{Name: "a", Length: 20, Alphabet: events.Base64URL}), ""},
		"checksum":             {types(events.KeyType{Name: "a", Checksum: events.CRC32}), ""},
		"unknown checksum":     {types(events.KeyType{Name: "a", Checksum: "luhn"}), "key_types[0].checksum invalid"},
		"https only":           {func(d *events.Definition) { d.HTTPSOnly = true }, ""},
		"levels": {func(d *events.Definition) {
			d.Resources = []string{"project"}
			d.Scopes = []events.ScopeDef{{Name: "a", Level: "tenant"}, {Name: "b", Level: "project"}, {Name: "c"}}
		}, ""},
		"unknown level": {func(d *events.Definition) {
			d.Resources = []string{"project"}
			d.Scopes = []events.ScopeDef{{Name: "a", Level: "division"}}
		}, "scopes[0].level unknown_kind"},
		"grants":           {func(d *events.Definition) { d.Grants = events.GrantRules{Required: true, Fixed: true, By: "roles"} }, ""},
		"grants by scopes": {func(d *events.Definition) { d.Grants.By = "scopes" }, ""},
		"grants by":        {func(d *events.Definition) { d.Grants.By = "role" }, "grants.by invalid"},
		"max that is none": {func(d *events.Definition) { d.Expiry = events.ExpiryPolicy{Max: "a year", Default: "30d"} }, "expiry.max invalid"},
		"max of 0":         {func(d *events.Definition) { d.Expiry.Max = "0s" }, "expiry.max invalid"},
		"less than 1 ms": {func(d *events.Definition) {
			d.Expiry = events.ExpiryPolicy{Max: "1ms", Default: "999us", Choices: []events.Span{"1ns"}}
		}, "expiry.default invalid, expiry.choices[0] invalid, expiry.default not_a_choice"},
		"max of never":     {func(d *events.Definition) { d.Expiry.Max = events.Never }, "expiry.max invalid"},
		"max of 100 y":     {func(d *events.Definition) { d.Expiry.Max = "36500d" }, ""},
		"default of max":   {func(d *events.Definition) { d.Expiry = events.ExpiryPolicy{Max: "365d", Default: "8760h"} }, ""},
		"default of never": {func(d *events.Definition) { d.Expiry.Default = events.Never }, "expiry.default invalid"},
		"choices":          {func(d *events.Definition) { d.Expiry.Choices = []events.Span{events.Never, "30d", "90d", "365d"} }, ""},
		"choices above max": {func(d *events.Definition) {
			d.Expiry = events.ExpiryPolicy{Max: "90d", Choices: []events.Span{"30d", "91d"}}
		}, "expiry.choices[1] invalid"},
		"choice twice": {func(d *events.Definition) {
			d.Expiry.Choices = []events.Span{events.Never, "30d", "720h", events.Never}
		}, "expiry.choices[2] duplicate, expiry.choices[3] duplicate"},
		"bad choices": {func(d *events.Definition) { d.Expiry.Choices = []events.Span{events.Never, "0s", "x", "y", ""} }, "expiry.choices[1] invalid, expiry.choices[2] invalid, expiry.choices[3] invalid, expiry.choices[4] invalid"},
		"never, and must end": {func(d *events.Definition) {
			d.Expiry = events.ExpiryPolicy{Required: true, Choices: []events.Span{events.Never, "30d"}}
		}, "expiry.choices[0] conflict"},
		"never, and a max": {func(d *events.Definition) {
			d.Expiry = events.ExpiryPolicy{Max: "30d", Choices: []events.Span{events.Never, "30d"}}
		}, "expiry.choices[0] conflict"},
		"default no choice": {func(d *events.Definition) {
			d.Expiry = events.ExpiryPolicy{Default: "31d", Choices: []events.Span{events.Never, "30d"}}
		}, "expiry.default not_a_choice"},
		"default is a choice": {func(d *events.Definition) {
			d.Expiry = events.ExpiryPolicy{Default: "720h", Choices: []events.Span{"30d"}}
		}, ""},
		"never by default": {func(d *events.Definition) { d.Expiry.Choices = []events.Span{"30d"} }, "expiry.choices conflict"},
		"required, no default": {func(d *events.Definition) {
			d.Expiry = events.ExpiryPolicy{Required: true, Choices: []events.Span{"30d"}}
		}, ""},
		"33 choices": {func(d *events.Definition) { d.Expiry.Choices = make([]events.Span, 33) }, "expiry.choices too_many"},
		"tenant limit": {func(d *events.Definition) {
			d.Plans = []events.Plan{{"p", 1, 1}}
			d.TenantLimit = &events.Limit{Plan: "p"}
		}, ""},
		"tenant limit unknown": {func(d *events.Definition) { d.TenantLimit = &events.Limit{Plan: "p"} }, "tenant_limit.plan unknown_plan"},
		"tenant limit of 0":    {func(d *events.Definition) { d.TenantLimit = &events.Limit{PerMinute: 1} }, "tenant_limit.burst invalid"},
		"headers": {func(d *events.Definition) {
			d.LimitHeaders = events.LimitHeaders{Style: "x-ratelimit", Limit: "X-L", Remaining: "X-R", Reset: "X-Z", ResetAs: "unix"}
		}, ""},
		"one header":    {func(d *events.Definition) { d.LimitHeaders.Reset = "X-RateLimit-Reset" }, ""},
		"header style":  {func(d *events.Definition) { d.LimitHeaders = events.LimitHeaders{Style: "draft", ResetAs: "millis"} }, "limit_headers.style invalid, limit_headers.reset_as invalid"},
		"names of ietf": {func(d *events.Definition) { d.LimitHeaders = events.LimitHeaders{Style: "ietf", Limit: "X-L"} }, "limit_headers.limit conflict"},
		"names of none": {func(d *events.Definition) {
			d.LimitHeaders = events.LimitHeaders{Style: "none", Remaining: "X-R", Reset: "a b"}
		}, "limit_headers.remaining conflict, limit_headers.reset conflict, limit_headers.reset invalid"},
		"ietf": {func(d *events.Definition) { d.LimitHeaders.Style = "ietf" }, ""},
		"one header twice": {func(d *events.Definition) {
			d.LimitHeaders = events.LimitHeaders{Limit: "X-L", Remaining: "X-R", Reset: "x-l"}
		}, "limit_headers.reset duplicate"},
		"headers of others": {func(d *events.Definition) {
			d.LimitHeaders = events.LimitHeaders{Limit: "retry-after", Remaining: "X-Keytrail-Left", Reset: "Content-Type"}
		}, "limit_headers.limit invalid, limit_headers.remaining invalid, limit_headers.reset invalid"},
		"checks": {func(d *events.Definition) {
			d.Checks = []events.Check{"limit", "address", "state", "scope", "resource"}
		}, ""},
		"a check too few": {func(d *events.Definition) { d.Checks = []events.Check{"state", "address", "scope", "resource"} }, "checks invalid"},
		"a check twice":   {func(d *events.Definition) { d.Checks = []events.Check{"state", "address", "scope", "scope", "limit"} }, "checks invalid"},
		"an unknown check": {func(d *events.Definition) {
			d.Checks = []events.Check{"state", "address", "scope", "resource", "weather"}
		}, "checks invalid"},
		"a check too many": {func(d *events.Definition) {
			d.Checks = []events.Check{"state", "address", "scope", "resource", "limit", "state"}
		}, "checks invalid"},
		"envelope": {func(d *events.Definition) {
			d.Errors = events.ErrorRules{ContentType: "application/json; charset=utf-8", Envelope: jsontext.Value(`{"code":"{code}"}`)}
		}, ""},
		"content type": {func(d *events.Definition) {
			d.Errors = events.ErrorRules{ContentType: "json", Envelope: jsontext.Value(`{}`)}
		}, "errors.content_type invalid"},
		"content type of text": {func(d *events.Definition) {
			d.Errors = events.ErrorRules{ContentType: "application/json\r\nX-Y: z", Envelope: jsontext.Value(`{}`)}
		}, "errors.content_type invalid"},
		"content type alone": {func(d *events.Definition) { d.Errors.ContentType = "application/json" }, "errors.content_type conflict"},
		"no envelope":        {func(d *events.Definition) { d.Errors.Envelope = jsontext.Value(`null`) }, "errors.envelope invalid"},
		"bad envelope":       {func(d *events.Definition) { d.Errors.Envelope = jsontext.Value(`{"a":"{secret}"}`) }, "errors.envelope invalid"},
		"answers": {func(d *events.Definition) {
			d.Errors.Answers = []events.ErrorAnswer{{Reasons: events.FailureReasons(), Status: 400, Code: "a_B.c:d-9", Message: "{scope} {resource} {retry_after} {{}"}}
		}, ""},
		"answers of no reason": {func(d *events.Definition) { d.Errors.Answers = []events.ErrorAnswer{{Status: 400}} }, "errors.answers[0].reasons required"},
		"reason twice": {func(d *events.Definition) {
			d.Errors.Answers = []events.ErrorAnswer{{Reasons: []string{"key_missing", "key_missing"}}, {Reasons: []string{"key_missing"}}}
		}, "errors.answers[0].reasons[1] duplicate, errors.answers[1].reasons[0] duplicate"},
		"unknown reasons": {func(d *events.Definition) {
			d.Errors.Answers = []events.ErrorAnswer{{Reasons: []string{"ok", "", "bored"}}}
		},
			"errors.answers[0].reasons[0] unknown_reason, errors.answers[0].reasons[1] unknown_reason, errors.answers[0].reasons[2] unknown_reason"},
		"bad answers": {func(d *events.Definition) {
			d.Errors.Answers = []events.ErrorAnswer{{Reasons: []string{"key_missing"}, Status: 399, Code: "a b", Message: "\n"}, {Reasons: []string{"key_unknown"}, Status: 600, Code: strings.Repeat("c", 65), Message: "{code}"},
				{Reasons: []string{"invalid"}, Status: -1, Message: "{"}, {Reasons: []string{"conflict"}, Message: "{issue.path}"}, {Reasons: []string{"not_found"}, Message: strings.Repeat("é", 301)}}
		}, "errors.answers[0].status invalid, errors.answers[0].code invalid, errors.answers[0].message invalid, errors.answers[1].status invalid, errors.answers[1].code invalid, errors.answers[1].message invalid, " +
			"errors.answers[2].status invalid, errors.answers[2].message invalid, errors.answers[3].message invalid, errors.answers[4].message invalid"},
		"18 answers": {func(d *events.Definition) { d.Errors.Answers = make([]events.ErrorAnswer, 18) }, "errors.answers too_many"},
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
	d.Scopes = []events.ScopeDef{{Name: "a"}, {Name: "b", Level: "tenant"}, {Name: "c", Level: "project"}}
	for scope, want := range map[string]string{"a": "", "b": "", "c": "project", "gone": ""} {
		if got := d.ScopeLevel(scope); got != want {
			t.Errorf("scope %s has level %q, want %q", scope, got, want)
		}
	}
	if !slices.Equal(d.Order(), []events.Check{"state", "address", "scope", "resource", "limit"}) {
		t.Errorf("by default %v", d.Order())
	}
	d.Checks = []events.Check{"limit", "address", "state", "scope", "resource"}
	if !slices.Equal(d.Order(), d.Checks) {
		t.Errorf("order %v", d.Order())
	}
	for _, c := range []struct {
		h    events.LimitHeaders
		want string
	}{
		{events.LimitHeaders{}, "X-RateLimit-Limit X-RateLimit-Remaining X-RateLimit-Reset"},
		{events.LimitHeaders{Style: "x-ratelimit", ResetAs: "unix"}, "X-RateLimit-Limit X-RateLimit-Remaining X-RateLimit-Reset"},
		{events.LimitHeaders{Remaining: "X-Left"}, " X-Left "},
		{events.LimitHeaders{Limit: "A", Reset: "C"}, "A  C"},
		{events.LimitHeaders{Style: "ietf"}, "  "},
		{events.LimitHeaders{Style: "none"}, "  "},
	} {
		limit, remaining, reset := c.h.Names()
		if got := limit + " " + remaining + " " + reset; got != c.want {
			t.Errorf("%+v: %q, want %q", c.h, got, c.want)
		}
	}
	for _, c := range []struct {
		p    events.ExpiryPolicy
		want bool
	}{{events.ExpiryPolicy{}, false}, {events.ExpiryPolicy{Required: true}, true}, {events.ExpiryPolicy{Max: "1d"}, true}, {events.ExpiryPolicy{Default: "1d", Choices: []events.Span{"1d"}}, false}} {
		if c.p.MustEnd() != c.want {
			t.Errorf("%+v must end: %v", c.p, !c.want)
		}
	}
	want := []string{"key_missing", "key_malformed", "key_unknown", "key_revoked", "key_expired", "key_disabled", "address_not_allowed", "scope_missing", "resource_not_allowed",
		"rate_limited", "verifier_stale", "https_required", "invalid", "not_found", "conflict", "forbidden", "unavailable"}
	if got := events.FailureReasons(); !slices.Equal(got, want) {
		t.Errorf("reasons that may be answered: %v", got)
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
