package keyspace

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/keytrail/keytrail/events/input"
)

// Validate reports every fault of the definition at once, each with the dotted
// path of its member; nil means that the keyspace can be applied.
func (d *Definition) Validate() input.FieldErrors {
	var f input.FieldErrors
	for _, l := range []struct {
		path   string
		n, max int
	}{{"key_types", len(d.KeyTypes), MaxKeyTypes}, {"scopes", len(d.Scopes), MaxCatalogue}, {"resources", len(d.Resources), MaxKinds}, {"plans", len(d.Plans), MaxPlans}} {
		if l.n > l.max {
			f.Add(l.path, "too_many", fmt.Sprintf("want at most %d", l.max))
		}
	}
	if f != nil {
		return f // what follows compares each with each
	}
	f.Text("title", d.Title, 100)
	f.Text("description", d.Description, 1000)
	scopes := map[string]bool{}
	for i, s := range d.Scopes {
		p := fmt.Sprintf("scopes[%d]", i)
		if err := ValidScope(s.Name); err != nil {
			f.Add(p+".name", "invalid", err.Error())
		} else if scopes[s.Name] {
			f.Add(p+".name", "duplicate", fmt.Sprintf("scope %s stands twice", input.Echo(s.Name)))
		} else if s.Name == ScopeUnlisted {
			f.Add(p+".name", "reserved", fmt.Sprintf("want another name: gateways ask for %s where no key may pass", input.Echo(s.Name)))
		}
		scopes[s.Name] = true
		f.Text(p+".description", s.Description, 500)
		if s.Level != "" && s.Level != LevelTenant && !slices.Contains(d.Resources, s.Level) {
			f.Add(p+".level", "unknown_kind", fmt.Sprintf("level %s: want tenant or one of resources", input.Echo(s.Level)))
		}
	}
	known := func(path string, list []string) {
		if len(list) > MaxScopes {
			f.Add(path, "too_many", fmt.Sprintf("want at most %d", MaxScopes))
			return
		}
		for j, s := range list {
			if !scopes[s] {
				f.Add(fmt.Sprintf("%s[%d]", path, j), "unknown_scope", fmt.Sprintf("scope %s is not in the catalogue", input.Echo(s)))
			}
		}
	}
	for i, s := range d.Scopes {
		known(fmt.Sprintf("scopes[%d].implies", i), s.Implies)
	}
	if len(d.KeyTypes) == 0 {
		f.Add("key_types", "required", "want at least one key type")
	}
	names := map[string]bool{}
	for i := range d.KeyTypes {
		t := &d.KeyTypes[i]
		p := fmt.Sprintf("key_types[%d]", i)
		if !input.IsWord(t.Name) {
			f.Add(p+".name", "invalid", "want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most")
		} else if names[t.Name] {
			f.Add(p+".name", "duplicate", fmt.Sprintf("key type %s stands twice", input.Echo(t.Name)))
		}
		names[t.Name] = true
		t.validForm(&f, p)
		known(p+".defaults", t.Defaults)
		known(p+".ceiling", t.Ceiling)
		if t.Ceiling != nil && len(t.Ceiling) == 0 {
			// On the log an empty list is an absent one, which would mean all.
			f.Add(p+".ceiling", "invalid", "want at least one scope; left out, the type may hold all")
		}
		if t.Ceiling != nil && len(t.Ceiling) <= MaxScopes && len(t.Defaults) <= MaxScopes {
			ceiling := d.Expand(t.Ceiling)
			for j, s := range t.Defaults {
				if scopes[s] && !slices.Contains(ceiling, s) {
					f.Add(fmt.Sprintf("%s.defaults[%d]", p, j), "above_ceiling", fmt.Sprintf("scope %s is above the type's own ceiling", input.Echo(s)))
				}
			}
		}
		f.Text(p+".description", t.Description, 500)
		for j := range i {
			if o := &d.KeyTypes[j]; o.overlaps(t) || t.overlaps(o) {
				f.Add(p+".prefix", "duplicate", fmt.Sprintf("a secret could be of key type %s as well: want another prefix or length", input.Echo(o.Name)))
			}
		}
	}
	if h := d.Credential.Header; h != "" && !strings.EqualFold(h, "Authorization") {
		if err := ValidHeader(h); err != nil {
			f.Add("credential.header", "invalid", err.Error())
		}
	}
	if s := d.Credential.Scheme; s != "" && !headerRE.MatchString(s) {
		f.Add("credential.scheme", "invalid", "want the name of an authentication scheme, as Bearer")
	}
	f.Merge("cors", d.CORS.validate())
	for i, k := range d.Resources {
		if !input.IsWord(k) {
			f.Add(fmt.Sprintf("resources[%d]", i), "invalid", "want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most")
		} else if slices.Contains(d.Resources[:i], k) {
			f.Add(fmt.Sprintf("resources[%d]", i), "duplicate", fmt.Sprintf("resource kind %s stands twice", input.Echo(k)))
		}
	}
	f.Merge("expiry", d.Expiry.validate())
	if b := d.Grants.By; b != "" && b != GrantsByScopes && b != GrantsByRoles {
		f.Add("grants.by", "invalid", "want scopes or roles")
	}
	plans := map[string]bool{}
	for i, p := range d.Plans {
		path := fmt.Sprintf("plans[%d]", i)
		if !input.IsWord(p.Name) {
			f.Add(path+".name", "invalid", "want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most")
		} else if plans[p.Name] {
			f.Add(path+".name", "duplicate", fmt.Sprintf("plan %s stands twice", input.Echo(p.Name)))
		}
		plans[p.Name] = true
		addLimit(&f, path, p.PerMinute, p.Burst)
	}
	if d.Limit != nil {
		f.Merge("limit", d.CheckLimit(d.Limit))
	}
	if d.TenantLimit != nil {
		f.Merge("tenant_limit", d.CheckLimit(d.TenantLimit))
	}
	if m := d.Limits; m != "" && m != LimitsLocal && !m.Exact() {
		f.Add("limits", "invalid", "want local, exact or exact_else_local")
	}
	f.Merge("limit_headers", d.LimitHeaders.validate())
	for i, c := range d.Checks {
		if all := DefaultChecks(); !slices.Contains(all, c) || slices.Contains(d.Checks[:i], c) || len(d.Checks) != len(all) {
			f.Add("checks", "invalid", "want each of state, address, scope, resource and limit once, in the order of checking")
			break
		}
	}
	f.Merge("errors", d.Errors.validate())
	if x := d.Staleness.MaxMillis; x < 0 || x > 86_400_000 {
		f.Add("staleness.max_millis", "invalid", "want 0 (the default of 10000) to one day")
	}
	if s := d.Staleness.OnStale; s != "" && s != "deny" && s != "allow" {
		f.Add("staleness.on_stale", "invalid", "want deny or allow")
	}
	if m := d.Ledger; m != "" && m != LedgerAsync && m != LedgerSync {
		f.Add("ledger", "invalid", "want async or sync")
	}
	return f
}

// validForm checks what a secret of the type looks like.
func (t *KeyType) validForm(f *input.FieldErrors, p string) {
	const word = "want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most"
	if len(t.Environments) > 16 {
		f.Add(p+".environments", "too_many", "want at most 16")
		return
	}
	longest := 0
	for i, e := range t.Environments {
		path := fmt.Sprintf("%s.environments[%d]", p, i)
		if !input.IsWord(e) {
			f.Add(path, "invalid", word)
		} else if slices.Contains(t.Environments[:i], e) {
			f.Add(path, "duplicate", fmt.Sprintf("environment %s stands twice", input.Echo(e)))
		}
		longest = max(longest, len(e))
	}
	text := strings.Replace(t.Prefix, environmentPlaceholder, "", 1)
	templated := text != t.Prefix
	if strings.ContainsFunc(text, func(r rune) bool { return !strings.ContainsRune(base62+"_-", r) }) {
		f.Add(p+".prefix", "invalid", "want letters, digits, '_' or '-', and {environment} once at most")
	} else if templated && len(t.Environments) == 0 {
		f.Add(p+".prefix", "invalid", "{environment} stands for nothing: want environments as well")
	} else if n := len(text); n > 32 || templated && n+longest > 48 {
		f.Add(p+".prefix", "invalid", "want at most 32 characters, 48 with the environment")
	}
	chars := t.Alphabet.Chars()
	if chars == "" {
		f.Add(p+".alphabet", "invalid", "want base62, hex, base58, base32 or base64url")
	} else if n := t.Len(); n < t.Alphabet.minLength() || n > maxLength {
		f.Add(p+".length", "invalid", fmt.Sprintf("want %d to %d characters: at least %d bits", t.Alphabet.minLength(), maxLength, MinSecretBits))
	}
	if t.Checksum != "" && t.Checksum != CRC32 {
		f.Add(p+".checksum", "invalid", "want crc32, or leave it out")
	}
}

// validate reports every fault of the policy, paths relative to it.
func (p *ExpiryPolicy) validate() input.FieldErrors {
	var f input.FieldErrors
	span := func(path string, s Span) (ok bool) {
		d, err := ParseSpan(string(s))
		switch {
		case err != nil:
			f.Add(path, "invalid", errSpan.Error())
		case d < time.Millisecond: // no instant that the log holds is nearer
			f.Add(path, "invalid", "want at least 1ms")
		case p.Longest() > 0 && d > p.Longest():
			f.Add(path, "invalid", fmt.Sprintf("want at most max, %s", input.Echo(p.Max)))
		default:
			return true
		}
		return false
	}
	if p.Max != "" {
		span("max", p.Max)
	}
	if p.Default != "" {
		span("default", p.Default)
	}
	if len(p.Choices) > 32 {
		f.Add("choices", "too_many", "want at most 32")
		return f
	}
	for i, c := range p.Choices {
		path := fmt.Sprintf("choices[%d]", i)
		switch {
		case c != Never && !span(path, c):
		case slices.ContainsFunc(p.Choices[:i], func(o Span) bool { return o == c || c != Never && o.Duration() == c.Duration() }):
			f.Add(path, "duplicate", fmt.Sprintf("%s stands twice", input.Echo(c)))
		case c == Never && p.MustEnd():
			f.Add(path, "conflict", "every key of this keyspace expires")
		}
	}
	switch {
	case len(p.Choices) == 0:
	case p.Default != "" && !slices.ContainsFunc(p.Choices, func(c Span) bool { return c != Never && c.Duration() == p.Default.Duration() }):
		f.Add("default", "not_a_choice", "want one of the choices")
	case p.Default == "" && !p.MustEnd() && !slices.Contains(p.Choices, Never):
		f.Add("choices", "conflict", "without required or a default, a request that names no expiry makes a key that never expires: want never among them, required, or a default")
	}
	return f
}

// validate reports every fault of the headers, paths relative to them.
func (h *LimitHeaders) validate() input.FieldErrors {
	var f input.FieldErrors
	switch h.Style {
	case "", HeadersXRateLimit, HeadersIETF, HeadersNone:
	default:
		f.Add("style", "invalid", "want x-ratelimit, ietf or none")
	}
	names := []struct{ path, name string }{{"limit", h.Limit}, {"remaining", h.Remaining}, {"reset", h.Reset}}
	for i, x := range names {
		if x.name == "" {
			continue
		}
		if h.Style == HeadersIETF || h.Style == HeadersNone {
			f.Add(x.path, "conflict", "want names with the style x-ratelimit only")
		}
		if err := ValidHeader(x.name); err != nil {
			f.Add(x.path, "invalid", err.Error())
		}
		for _, o := range names[:i] {
			if strings.EqualFold(o.name, x.name) {
				f.Add(x.path, "duplicate", fmt.Sprintf("header %s stands twice", input.Echo(x.name)))
			}
		}
	}
	if r := h.ResetAs; r != "" && r != ResetSeconds && r != ResetUnix {
		f.Add("reset_as", "invalid", "want seconds or unix")
	}
	return f
}

var errHeader = errors.New("want the name of an HTTP header, not one that Keytrail or HTTP has another use for")

// ValidHeader reports whether name is the name of an HTTP header, of at most 64 characters,
// that a keyspace or a gateway's configuration may give a meaning.
func ValidHeader(name string) error {
	if !headerRE.MatchString(name) || reservedHeader(name) {
		return errHeader
	}
	return nil
}

// reservedHeader reports whether HTTP or Keytrail gives the header a meaning.
func reservedHeader(name string) bool {
	name = strings.ToLower(name)
	return strings.HasPrefix(name, "x-keytrail-") || slices.Contains([]string{"authorization", "cache-control", "connection",
		"content-length", "content-type", "cookie", "date", "expect", "forwarded", "host", "keep-alive", "location", "origin", "retry-after", "set-cookie", "te", "trailer", "transfer-encoding",
		"upgrade", "vary", "www-authenticate", "x-forwarded-for", "x-forwarded-proto", "x-request-id"}, name)
}

var headerRE = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,63}$`)

// CheckLimit reports what is wrong with l in this keyspace; paths are relative
// to the limit. A bad limit is refused, never silently off.
func (d *Definition) CheckLimit(l *Limit) input.FieldErrors {
	var f input.FieldErrors
	if l == nil {
		return nil
	}
	if l.Plan != "" {
		if l.PerMinute != 0 || l.Burst != 0 {
			f.Add("plan", "conflict", "want either a plan or per_minute and burst, not both")
		}
		if !slices.ContainsFunc(d.Plans, func(p Plan) bool { return p.Name == l.Plan }) {
			f.Add("plan", "unknown_plan", fmt.Sprintf("plan %s is not defined in the keyspace", input.Echo(l.Plan)))
		}
		return f
	}
	addLimit(&f, "", l.PerMinute, l.Burst)
	return f
}
