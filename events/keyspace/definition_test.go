package keyspace_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

func TestKeyTypeMatches(t *testing.T) {
	base := keyspace.KeyType{Name: "a", Prefix: "sk_"}
	hex := keyspace.KeyType{Name: "b", Prefix: "h", Alphabet: keyspace.Hex, Length: 40}
	bare := keyspace.KeyType{Name: "c", Length: 30}
	for _, c := range []struct {
		kt     keyspace.KeyType
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
	// Every character of an alphabet, and nothing else of ASCII, is in the form.
	for _, a := range alphabets {
		kt := keyspace.KeyType{Alphabet: a, Length: 1}
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
func minimal() keyspace.Definition {
	return keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "secret", Prefix: "sk_"}}}
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
	catalogue := func(names ...string) (out []keyspace.ScopeDef) {
		for _, n := range names {
			out = append(out, keyspace.ScopeDef{Name: n})
		}
		return out
	}
	types := func(ts ...keyspace.KeyType) func(*keyspace.Definition) {
		return func(d *keyspace.Definition) { d.KeyTypes = ts }
	}
	for name, c := range map[string]struct {
		change func(*keyspace.Definition)
		want   string // "field code" of every fault, in order; "" = none
	}{
		"no key types":   {func(d *keyspace.Definition) { d.KeyTypes = nil }, "key_types required"},
		"title of 101":   {func(d *keyspace.Definition) { d.Title = strings.Repeat("é", 101) }, "title invalid"},
		"title of 100":   {func(d *keyspace.Definition) { d.Title = strings.Repeat("é", 100) }, ""},
		"description":    {func(d *keyspace.Definition) { d.Description = "\x00" }, "description invalid"},
		"bad scope":      {func(d *keyspace.Definition) { d.Scopes = catalogue("a b") }, "scopes[0].name invalid"},
		"scope twice":    {func(d *keyspace.Definition) { d.Scopes = catalogue("a", "a") }, "scopes[1].name duplicate"},
		"implies none":   {func(d *keyspace.Definition) { d.Scopes = []keyspace.ScopeDef{{Name: "a", Implies: []string{"b"}}} }, "scopes[0].implies[0] unknown_scope"},
		"implies itself": {func(d *keyspace.Definition) { d.Scopes = []keyspace.ScopeDef{{Name: "a", Implies: []string{"a"}}} }, ""},
		"implies later": {func(d *keyspace.Definition) {
			d.Scopes = []keyspace.ScopeDef{{Name: "a", Implies: []string{"b"}}, {Name: "b"}}
		}, ""},
		"type name":       {types(keyspace.KeyType{Name: "A"}), "key_types[0].name invalid"},
		"type twice":      {types(keyspace.KeyType{Name: "a", Prefix: "x_"}, keyspace.KeyType{Name: "a", Prefix: "y_"}), "key_types[1].name duplicate"},
		"environment":     {types(keyspace.KeyType{Name: "a", Environments: []string{"Live"}}), "key_types[0].environments[0] invalid"},
		"prefix of 33":    {types(keyspace.KeyType{Name: "a", Prefix: strings.Repeat("p", 33)}), "key_types[0].prefix invalid"},
		"prefix with dot": {types(keyspace.KeyType{Name: "a", Prefix: "a.b"}), "key_types[0].prefix invalid"},
		"alphabet":        {types(keyspace.KeyType{Name: "a", Alphabet: "base64"}), "key_types[0].alphabet invalid"},
		"20 of base62":    {types(keyspace.KeyType{Name: "a", Length: 20}), "key_types[0].length invalid"},
		"21 of base62":    {types(keyspace.KeyType{Name: "a", Length: 21}), ""},
		"29 of hex":       {types(keyspace.KeyType{Name: "a", Length: 29, Alphabet: keyspace.Hex}), "key_types[0].length invalid"},
		"30 of hex":       {types(keyspace.KeyType{Name: "a", Length: 30, Alphabet: keyspace.Hex}), ""},
		"201":             {types(keyspace.KeyType{Name: "a", Length: 201}), "key_types[0].length invalid"},
		"negative length": {types(keyspace.KeyType{Name: "a", Length: -1}), "key_types[0].length invalid"},
		"unknown default": {types(keyspace.KeyType{Name: "a", Defaults: []string{"x"}}), "key_types[0].defaults[0] unknown_scope"},
		"unknown ceiling": {types(keyspace.KeyType{Name: "a", Ceiling: []string{"x"}}), "key_types[0].ceiling[0] unknown_scope"},
		"default above": {func(d *keyspace.Definition) {
			d.Scopes = catalogue("r", "w")
			d.KeyTypes[0].Defaults = []string{"r", "w"}
			d.KeyTypes[0].Ceiling = []string{"r"}
		}, "key_types[0].defaults[1] above_ceiling"},
		"default below": {func(d *keyspace.Definition) {
			d.Scopes = []keyspace.ScopeDef{{Name: "r"}, {Name: "w", Implies: []string{"r"}}}
			d.KeyTypes[0].Defaults = []string{"r"}
			d.KeyTypes[0].Ceiling = []string{"w"}
		}, ""},
		"empty ceiling": {func(d *keyspace.Definition) {
			d.Scopes = catalogue("r")
			d.KeyTypes[0].Defaults = []string{"r"}
			d.KeyTypes[0].Ceiling = []string{}
		}, "key_types[0].ceiling invalid, key_types[0].defaults[0] above_ceiling"},
		"one form twice":  {types(keyspace.KeyType{Name: "a", Prefix: "p_"}, keyspace.KeyType{Name: "b", Prefix: "p_"}), "key_types[1].prefix duplicate"},
		"two lengths":     {types(keyspace.KeyType{Name: "a", Prefix: "p_"}, keyspace.KeyType{Name: "b", Prefix: "p_", Length: 33}), ""},
		"prefix in form":  {types(keyspace.KeyType{Name: "a", Prefix: "p", Length: 34}, keyspace.KeyType{Name: "b", Prefix: "pab", Length: 32}), "key_types[1].prefix duplicate"},
		"form in prefix":  {types(keyspace.KeyType{Name: "b", Prefix: "pab", Length: 32}, keyspace.KeyType{Name: "a", Prefix: "p", Length: 34}), "key_types[1].prefix duplicate"},
		"not in form":     {types(keyspace.KeyType{Name: "a", Prefix: "p_", Length: 37}, keyspace.KeyType{Name: "b", Prefix: "p_live_", Length: 32}), ""},
		"not in alphabet": {types(keyspace.KeyType{Name: "a", Prefix: "p", Length: 33, Alphabet: keyspace.Hex}, keyspace.KeyType{Name: "b", Prefix: "pz", Length: 32}), ""},
		"header":          {func(d *keyspace.Definition) { d.Credential.Header = "X Key" }, "credential.header invalid"},
		"reserved header": {func(d *keyspace.Definition) { d.Credential.Header = "x-forwarded-for" }, "credential.header invalid"},
		"forwarded":       {func(d *keyspace.Definition) { d.Credential.Header = "Forwarded" }, "credential.header invalid"},
		"reserved scope":  {func(d *keyspace.Definition) { d.Scopes = []keyspace.ScopeDef{{Name: keyspace.ScopeUnlisted}} }, "scopes[0].name reserved"},
		"scheme":          {func(d *keyspace.Definition) { d.Credential.Scheme = "a b" }, "credential.scheme invalid"},
		"resource kind":   {func(d *keyspace.Definition) { d.Resources = []string{"P", "p", "p"} }, "resources[0] invalid, resources[2] duplicate"},
		"expiry":          {func(d *keyspace.Definition) { d.Expiry.Max = "-1s" }, "expiry.max invalid"},
		"expiry of 101 y": {func(d *keyspace.Definition) { d.Expiry.Max = "36865d" }, "expiry.max invalid"},
		"default expiry":  {func(d *keyspace.Definition) { d.Expiry.Max = "5s"; d.Expiry.Default = "6s" }, "expiry.default invalid"},
		"plan":            {func(d *keyspace.Definition) { d.Plans = []keyspace.Plan{{"P", 1, 1}, {"p", 0, 1}, {"p", 1, 1 << 40}} }, "plans[0].name invalid, plans[1].per_minute invalid, plans[2].name duplicate, plans[2].burst invalid"},
		"unknown plan":    {func(d *keyspace.Definition) { d.Limit = &keyspace.Limit{Plan: "p"} }, "limit.plan unknown_plan"},
		"plan and numbers": {func(d *keyspace.Definition) {
			d.Plans = []keyspace.Plan{{"p", 1, 1}}
			d.Limit = &keyspace.Limit{Plan: "p", Burst: 1}
		}, "limit.plan conflict"},
		"empty limit":      {func(d *keyspace.Definition) { d.Limit = &keyspace.Limit{} }, "limit.per_minute invalid, limit.burst invalid"},
		"staleness":        {func(d *keyspace.Definition) { d.Staleness = keyspace.Staleness{MaxMillis: -1, OnStale: "maybe"} }, "staleness.max_millis invalid, staleness.on_stale invalid"},
		"staleness of 2 d": {func(d *keyspace.Definition) { d.Staleness.MaxMillis = 2 * 86400_000 }, "staleness.max_millis invalid"},
		"ledger":           {func(d *keyspace.Definition) { d.Ledger = "never" }, "ledger invalid"},
		"1001 scopes":      {func(d *keyspace.Definition) { d.Scopes = catalogue(many(1001)...) }, "scopes too_many"},
		"1000 scopes":      {func(d *keyspace.Definition) { d.Scopes = catalogue(many(1000)...) }, ""},
		"201 implied":      {func(d *keyspace.Definition) { d.Scopes = catalogue(many(300)...); d.Scopes[0].Implies = many(201) }, "scopes[0].implies too_many"},
		"33 key types":     {func(d *keyspace.Definition) { d.KeyTypes = make([]keyspace.KeyType, 33) }, "key_types too_many"},
		"33 kinds":         {func(d *keyspace.Definition) { d.Resources = many(33) }, "resources too_many"},
		"101 plans":        {func(d *keyspace.Definition) { d.Plans = make([]keyspace.Plan, 101) }, "plans too_many"},
		"environments": {types(keyspace.KeyType{Name: "a", Environments: []string{"live", "Live", "live", "", "a-b"}}),
			"key_types[0].environments[1] invalid, key_types[0].environments[2] duplicate, key_types[0].environments[3] invalid, key_types[0].environments[4] invalid"},
		"17 environments":      {types(keyspace.KeyType{Name: "a", Environments: many(17)}), "key_types[0].environments too_many"},
		"16 environments":      {types(keyspace.KeyType{Name: "a", Environments: many(16)}), ""},
		"template":             {types(keyspace.KeyType{Name: "a", Prefix: "lat_{environment}_", Environments: []string{"live"}}), ""},
		"template twice":       {types(keyspace.KeyType{Name: "a", Prefix: "{environment}{environment}", Environments: []string{"live"}}), "key_types[0].prefix invalid"},
		"another placeholder":  {types(keyspace.KeyType{Name: "a", Prefix: "lat_{env}_", Environments: []string{"live"}}), "key_types[0].prefix invalid"},
		"template for nothing": {types(keyspace.KeyType{Name: "a", Prefix: "lat_{environment}_"}), "key_types[0].prefix invalid"},
		"template of 33":       {types(keyspace.KeyType{Name: "a", Prefix: strings.Repeat("p", 33) + "{environment}", Environments: []string{"e"}}), "key_types[0].prefix invalid"},
		"template of 48":       {types(keyspace.KeyType{Name: "a", Prefix: strings.Repeat("p", 32) + "{environment}", Environments: []string{"e", strings.Repeat("e", 16)}}), ""},
		"template of 49":       {types(keyspace.KeyType{Name: "a", Prefix: strings.Repeat("p", 32) + "{environment}", Environments: []string{"e", strings.Repeat("e", 17)}}), "key_types[0].prefix invalid"},
		"prefix of 32":         {types(keyspace.KeyType{Name: "a", Prefix: strings.Repeat("p", 32)}), ""},
		"20 of base58":         {types(keyspace.KeyType{Name: "a", Length: 20, Alphabet: keyspace.Base58}), "key_types[0].length invalid"},
		"21 of base58":         {types(keyspace.KeyType{Name: "a", Length: 21, Alphabet: keyspace.Base58}), ""},
		"23 of base32":         {types(keyspace.KeyType{Name: "a", Length: 23, Alphabet: keyspace.Base32}), "key_types[0].length invalid"},
		"24 of base32":         {types(keyspace.KeyType{Name: "a", Length: 24, Alphabet: keyspace.Base32}), ""},
		"19 of base64url":      {types(keyspace.KeyType{Name: "a", Length: 19, Alphabet: keyspace.Base64URL}), "key_types[0].length invalid"},
		"20 of base64url":      {types(keyspace.KeyType{Name: "a", Length: 20, Alphabet: keyspace.Base64URL}), ""},
		"checksum":             {types(keyspace.KeyType{Name: "a", Checksum: keyspace.CRC32}), ""},
		"unknown checksum":     {types(keyspace.KeyType{Name: "a", Checksum: "luhn"}), "key_types[0].checksum invalid"},
		"https only":           {func(d *keyspace.Definition) { d.HTTPSOnly = true }, ""},
		"levels": {func(d *keyspace.Definition) {
			d.Resources = []string{"project"}
			d.Scopes = []keyspace.ScopeDef{{Name: "a", Level: "tenant"}, {Name: "b", Level: "project"}, {Name: "c"}}
		}, ""},
		"unknown level": {func(d *keyspace.Definition) {
			d.Resources = []string{"project"}
			d.Scopes = []keyspace.ScopeDef{{Name: "a", Level: "division"}}
		}, "scopes[0].level unknown_kind"},
		"grants":           {func(d *keyspace.Definition) { d.Grants = keyspace.GrantRules{Required: true, Fixed: true, By: "roles"} }, ""},
		"grants by scopes": {func(d *keyspace.Definition) { d.Grants.By = "scopes" }, ""},
		"grants by":        {func(d *keyspace.Definition) { d.Grants.By = "role" }, "grants.by invalid"},
		"max that is none": {func(d *keyspace.Definition) { d.Expiry = keyspace.ExpiryPolicy{Max: "a year", Default: "30d"} }, "expiry.max invalid"},
		"max of 0":         {func(d *keyspace.Definition) { d.Expiry.Max = "0s" }, "expiry.max invalid"},
		"less than 1 ms": {func(d *keyspace.Definition) {
			d.Expiry = keyspace.ExpiryPolicy{Max: "1ms", Default: "999us", Choices: []keyspace.Span{"1ns"}}
		}, "expiry.default invalid, expiry.choices[0] invalid, expiry.default not_a_choice"},
		"max of never":     {func(d *keyspace.Definition) { d.Expiry.Max = keyspace.Never }, "expiry.max invalid"},
		"max of 100 y":     {func(d *keyspace.Definition) { d.Expiry.Max = "36500d" }, ""},
		"default of max":   {func(d *keyspace.Definition) { d.Expiry = keyspace.ExpiryPolicy{Max: "365d", Default: "8760h"} }, ""},
		"default of never": {func(d *keyspace.Definition) { d.Expiry.Default = keyspace.Never }, "expiry.default invalid"},
		"choices":          {func(d *keyspace.Definition) { d.Expiry.Choices = []keyspace.Span{keyspace.Never, "30d", "90d", "365d"} }, ""},
		"choices above max": {func(d *keyspace.Definition) {
			d.Expiry = keyspace.ExpiryPolicy{Max: "90d", Choices: []keyspace.Span{"30d", "91d"}}
		}, "expiry.choices[1] invalid"},
		"choice twice": {func(d *keyspace.Definition) {
			d.Expiry.Choices = []keyspace.Span{keyspace.Never, "30d", "720h", keyspace.Never}
		}, "expiry.choices[2] duplicate, expiry.choices[3] duplicate"},
		"bad choices": {func(d *keyspace.Definition) { d.Expiry.Choices = []keyspace.Span{keyspace.Never, "0s", "x", "y", ""} }, "expiry.choices[1] invalid, expiry.choices[2] invalid, expiry.choices[3] invalid, expiry.choices[4] invalid"},
		"never, and must end": {func(d *keyspace.Definition) {
			d.Expiry = keyspace.ExpiryPolicy{Required: true, Choices: []keyspace.Span{keyspace.Never, "30d"}}
		}, "expiry.choices[0] conflict"},
		"never, and a max": {func(d *keyspace.Definition) {
			d.Expiry = keyspace.ExpiryPolicy{Max: "30d", Choices: []keyspace.Span{keyspace.Never, "30d"}}
		}, "expiry.choices[0] conflict"},
		"default no choice": {func(d *keyspace.Definition) {
			d.Expiry = keyspace.ExpiryPolicy{Default: "31d", Choices: []keyspace.Span{keyspace.Never, "30d"}}
		}, "expiry.default not_a_choice"},
		"default is a choice": {func(d *keyspace.Definition) {
			d.Expiry = keyspace.ExpiryPolicy{Default: "720h", Choices: []keyspace.Span{"30d"}}
		}, ""},
		"never by default": {func(d *keyspace.Definition) { d.Expiry.Choices = []keyspace.Span{"30d"} }, "expiry.choices conflict"},
		"required, no default": {func(d *keyspace.Definition) {
			d.Expiry = keyspace.ExpiryPolicy{Required: true, Choices: []keyspace.Span{"30d"}}
		}, ""},
		"33 choices": {func(d *keyspace.Definition) { d.Expiry.Choices = make([]keyspace.Span, 33) }, "expiry.choices too_many"},
		"tenant limit": {func(d *keyspace.Definition) {
			d.Plans = []keyspace.Plan{{"p", 1, 1}}
			d.TenantLimit = &keyspace.Limit{Plan: "p"}
		}, ""},
		"tenant limit unknown": {func(d *keyspace.Definition) { d.TenantLimit = &keyspace.Limit{Plan: "p"} }, "tenant_limit.plan unknown_plan"},
		"tenant limit of 0":    {func(d *keyspace.Definition) { d.TenantLimit = &keyspace.Limit{PerMinute: 1} }, "tenant_limit.burst invalid"},
		"headers": {func(d *keyspace.Definition) {
			d.LimitHeaders = keyspace.LimitHeaders{Style: "x-ratelimit", Limit: "X-L", Remaining: "X-R", Reset: "X-Z", ResetAs: "unix"}
		}, ""},
		"one header": {func(d *keyspace.Definition) { d.LimitHeaders.Reset = "X-RateLimit-Reset" }, ""},
		"header style": {func(d *keyspace.Definition) {
			d.LimitHeaders = keyspace.LimitHeaders{Style: "draft", ResetAs: "millis"}
		}, "limit_headers.style invalid, limit_headers.reset_as invalid"},
		"names of ietf": {func(d *keyspace.Definition) { d.LimitHeaders = keyspace.LimitHeaders{Style: "ietf", Limit: "X-L"} }, "limit_headers.limit conflict"},
		"names of none": {func(d *keyspace.Definition) {
			d.LimitHeaders = keyspace.LimitHeaders{Style: "none", Remaining: "X-R", Reset: "a b"}
		}, "limit_headers.remaining conflict, limit_headers.reset conflict, limit_headers.reset invalid"},
		"ietf": {func(d *keyspace.Definition) { d.LimitHeaders.Style = "ietf" }, ""},
		"one header twice": {func(d *keyspace.Definition) {
			d.LimitHeaders = keyspace.LimitHeaders{Limit: "X-L", Remaining: "X-R", Reset: "x-l"}
		}, "limit_headers.reset duplicate"},
		"headers of others": {func(d *keyspace.Definition) {
			d.LimitHeaders = keyspace.LimitHeaders{Limit: "retry-after", Remaining: "X-Keytrail-Left", Reset: "Content-Type"}
		}, "limit_headers.limit invalid, limit_headers.remaining invalid, limit_headers.reset invalid"},
		"checks": {func(d *keyspace.Definition) {
			d.Checks = []keyspace.Check{"limit", "address", "state", "scope", "resource"}
		}, ""},
		"a check too few": {func(d *keyspace.Definition) { d.Checks = []keyspace.Check{"state", "address", "scope", "resource"} }, "checks invalid"},
		"a check twice": {func(d *keyspace.Definition) {
			d.Checks = []keyspace.Check{"state", "address", "scope", "scope", "limit"}
		}, "checks invalid"},
		"an unknown check": {func(d *keyspace.Definition) {
			d.Checks = []keyspace.Check{"state", "address", "scope", "resource", "weather"}
		}, "checks invalid"},
		"a check too many": {func(d *keyspace.Definition) {
			d.Checks = []keyspace.Check{"state", "address", "scope", "resource", "limit", "state"}
		}, "checks invalid"},
		"envelope": {func(d *keyspace.Definition) {
			d.Errors = keyspace.ErrorRules{ContentType: "application/json; charset=utf-8", Envelope: jsontext.Value(`{"code":"{code}"}`)}
		}, ""},
		"content type": {func(d *keyspace.Definition) {
			d.Errors = keyspace.ErrorRules{ContentType: "json", Envelope: jsontext.Value(`{}`)}
		}, "errors.content_type invalid"},
		"content type of text": {func(d *keyspace.Definition) {
			d.Errors = keyspace.ErrorRules{ContentType: "application/json\r\nX-Y: z", Envelope: jsontext.Value(`{}`)}
		}, "errors.content_type invalid"},
		"content type that scripts": {func(d *keyspace.Definition) {
			d.Errors = keyspace.ErrorRules{ContentType: "text/html", Envelope: jsontext.Value(`{}`)}
		}, "errors.content_type invalid"},
		"content type that scripts as XML": {func(d *keyspace.Definition) {
			d.Errors = keyspace.ErrorRules{ContentType: "application/xhtml+xml", Envelope: jsontext.Value(`{}`)}
		}, "errors.content_type invalid"},
		"content type of its own": {func(d *keyspace.Definition) {
			d.Errors = keyspace.ErrorRules{ContentType: "application/vnd.acme.v1+json", Envelope: jsontext.Value(`{}`)}
		}, ""},
		"content type alone": {func(d *keyspace.Definition) { d.Errors.ContentType = "application/json" }, "errors.content_type conflict"},
		"no envelope":        {func(d *keyspace.Definition) { d.Errors.Envelope = jsontext.Value(`null`) }, "errors.envelope invalid"},
		"bad envelope":       {func(d *keyspace.Definition) { d.Errors.Envelope = jsontext.Value(`{"a":"{secret}"}`) }, "errors.envelope invalid"},
		"answers": {func(d *keyspace.Definition) {
			d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: keyspace.FailureReasons(), Status: 400, Code: "a_B.c:d-9", Message: "{scope} {resource} {retry_after} {{}"}}
		}, ""},
		"answers of no reason": {func(d *keyspace.Definition) { d.Errors.Answers = []keyspace.ErrorAnswer{{Status: 400}} }, "errors.answers[0].reasons required"},
		"reason twice": {func(d *keyspace.Definition) {
			d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"key_missing", "key_missing"}}, {Reasons: []string{"key_missing"}}}
		}, "errors.answers[0].reasons[1] duplicate, errors.answers[1].reasons[0] duplicate"},
		"unknown reasons": {func(d *keyspace.Definition) {
			d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"ok", "", "bored"}}}
		},
			"errors.answers[0].reasons[0] unknown_reason, errors.answers[0].reasons[1] unknown_reason, errors.answers[0].reasons[2] unknown_reason"},
		"bad answers": {func(d *keyspace.Definition) {
			d.Errors.Answers = []keyspace.ErrorAnswer{{Reasons: []string{"key_missing"}, Status: 399, Code: "a b", Message: "\n"}, {Reasons: []string{"key_unknown"}, Status: 600, Code: strings.Repeat("c", 65), Message: "{code}"},
				{Reasons: []string{"invalid"}, Status: -1, Message: "{"}, {Reasons: []string{"conflict"}, Message: "{issue.path}"}, {Reasons: []string{"not_found"}, Message: strings.Repeat("é", 301)}}
		}, "errors.answers[0].status invalid, errors.answers[0].code invalid, errors.answers[0].message invalid, errors.answers[1].status invalid, errors.answers[1].code invalid, errors.answers[1].message invalid, " +
			"errors.answers[2].status invalid, errors.answers[2].message invalid, errors.answers[3].message invalid, errors.answers[4].message invalid"},
		"18 answers": {func(d *keyspace.Definition) { d.Errors.Answers = make([]keyspace.ErrorAnswer, 18) }, "errors.answers too_many"},
		"all at once": {func(d *keyspace.Definition) {
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
	d.KeyTypes = append(d.KeyTypes, keyspace.KeyType{Name: "other", Prefix: "o_"})
	if kt, ok := d.Type(""); !ok || kt.Name != "secret" || kt.Len() != keyspace.DefaultSecretLength {
		t.Errorf("the default type: %+v, %v", kt, ok)
	}
	if kt, ok := d.Type("other"); !ok || kt.Name != "other" {
		t.Errorf("type by name: %+v, %v", kt, ok)
	}
	if _, ok := d.Type("none"); ok {
		t.Error("an undefined type is found")
	}
	if d.Staleness.MaxStaleness() != 10*time.Second || (keyspace.Staleness{MaxMillis: 5}).MaxStaleness() != 5*time.Millisecond {
		t.Error("staleness")
	}
	if d.Expiry.Longest() != 0 || (&keyspace.ExpiryPolicy{Max: "2s"}).Longest() != 2*time.Second {
		t.Error("expiry")
	}
	for _, c := range []struct {
		c              keyspace.Credential
		header, scheme string
	}{
		{keyspace.Credential{}, "Authorization", "Bearer"},
		{keyspace.Credential{Header: "authorization"}, "authorization", "Bearer"},
		{keyspace.Credential{Header: "X-Api-Key"}, "X-Api-Key", ""},
		{keyspace.Credential{Scheme: "Key"}, "Authorization", "Key"},
		{keyspace.Credential{Header: "X-K", Scheme: "Key"}, "X-K", "Key"},
	} {
		if c.c.HeaderName() != c.header || c.c.SchemeName() != c.scheme {
			t.Errorf("%+v: header %q, scheme %q", c.c, c.c.HeaderName(), c.c.SchemeName())
		}
	}
	d.Scopes = []keyspace.ScopeDef{{Name: "a"}, {Name: "b", Level: "tenant"}, {Name: "c", Level: "project"}}
	for scope, want := range map[string]string{"a": "", "b": "", "c": "project", "gone": ""} {
		if got := d.ScopeLevel(scope); got != want {
			t.Errorf("scope %s has level %q, want %q", scope, got, want)
		}
	}
	if !slices.Equal(d.Order(), []keyspace.Check{"state", "address", "scope", "resource", "limit"}) {
		t.Errorf("by default %v", d.Order())
	}
	d.Checks = []keyspace.Check{"limit", "address", "state", "scope", "resource"}
	if !slices.Equal(d.Order(), d.Checks) {
		t.Errorf("order %v", d.Order())
	}
	for _, c := range []struct {
		h    keyspace.LimitHeaders
		want string
	}{
		{keyspace.LimitHeaders{}, "X-RateLimit-Limit X-RateLimit-Remaining X-RateLimit-Reset"},
		{keyspace.LimitHeaders{Style: "x-ratelimit", ResetAs: "unix"}, "X-RateLimit-Limit X-RateLimit-Remaining X-RateLimit-Reset"},
		{keyspace.LimitHeaders{Remaining: "X-Left"}, " X-Left "},
		{keyspace.LimitHeaders{Limit: "A", Reset: "C"}, "A  C"},
		{keyspace.LimitHeaders{Style: "ietf"}, "  "},
		{keyspace.LimitHeaders{Style: "none"}, "  "},
	} {
		limit, remaining, reset := c.h.Names()
		if got := limit + " " + remaining + " " + reset; got != c.want {
			t.Errorf("%+v: %q, want %q", c.h, got, c.want)
		}
	}
	for _, c := range []struct {
		p    keyspace.ExpiryPolicy
		want bool
	}{{keyspace.ExpiryPolicy{}, false}, {keyspace.ExpiryPolicy{Required: true}, true}, {keyspace.ExpiryPolicy{Max: "1d"}, true}, {keyspace.ExpiryPolicy{Default: "1d", Choices: []keyspace.Span{"1d"}}, false}} {
		if c.p.MustEnd() != c.want {
			t.Errorf("%+v must end: %v", c.p, !c.want)
		}
	}
	want := []string{"key_missing", "key_malformed", "key_unknown", "key_revoked", "key_expired", "key_disabled", "address_not_allowed", "scope_missing", "resource_not_allowed",
		"rate_limited", "verifier_stale", "https_required", "invalid", "not_found", "conflict", "forbidden", "unavailable"}
	if got := keyspace.FailureReasons(); !slices.Equal(got, want) {
		t.Errorf("reasons that may be answered: %v", got)
	}
}

func TestExpand(t *testing.T) {
	d := minimal()
	d.Scopes = []keyspace.ScopeDef{
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
	d.Scopes = []keyspace.ScopeDef{{Name: "read"}, {Name: "write", Implies: []string{"read"}}, {Name: "admin", Implies: []string{"write"}}}
	d.KeyTypes = append(d.KeyTypes, keyspace.KeyType{Name: "pub", Prefix: "pk_", Ceiling: []string{"write"}}, keyspace.KeyType{Name: "mute", Prefix: "m_", Ceiling: []string{}})
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
		if got := strings.Join(keyspace.Compile(d, nil).Effective(c.kt, strings.Fields(c.in)), " "); got != c.want {
			t.Errorf("type %q with %q may %q, want %q", c.kt, c.in, got, c.want)
		}
	}
}
