package events

import (
	"slices"
	"strings"
	"time"
)

// Definition is one key regime: the rules under which an operator's product
// issues and accepts keys. It is data; a new regime needs a document and no
// code. Zero members take the documented default.
type Definition struct {
	Title        string       `json:"title,omitzero"`       // for people, at most 100 characters
	Description  string       `json:"description,omitzero"` // for people, at most 1000 characters
	KeyTypes     []KeyType    `json:"key_types"`            // at least one; the first is the default
	Credential   Credential   `json:"credential,omitzero"`  // where a request carries the secret
	HTTPSOnly    bool         `json:"https_only,omitzero"`  // a key presented over plain HTTP is refused
	Scopes       []ScopeDef   `json:"scopes,omitempty"`     // the catalogue; a key may hold no scope outside it
	Grants       GrantRules   `json:"grants,omitzero"`      // how keys hold scopes
	Resources    []string     `json:"resources,omitempty"`  // kinds that a key may be restricted to
	Expiry       ExpiryPolicy `json:"expiry,omitzero"`
	Plans        []Plan       `json:"plans,omitempty"`
	Limit        *Limit       `json:"limit,omitzero"`        // of each key that sets none; absent = unlimited
	TenantLimit  *Limit       `json:"tenant_limit,omitzero"` // of all keys of a tenant together, for tenants that have none of their own; absent = unlimited
	LimitHeaders LimitHeaders `json:"limit_headers,omitzero"`
	Checks       []Check      `json:"checks,omitempty"` // their order; absent = DefaultChecks
	Errors       ErrorRules   `json:"errors,omitzero"`
	Staleness    Staleness    `json:"staleness,omitzero"`
	Ledger       LedgerMode   `json:"ledger,omitzero"` // "async" (default) or "sync"
}

// Credential says where a request carries the secret.
type Credential struct {
	Header string `json:"header,omitzero"` // default "Authorization"
	Scheme string `json:"scheme,omitzero"` // default "Bearer" for Authorization, none for other headers
}

// ScopeDef is one scope of the catalogue.
type ScopeDef struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitzero"`
	Implies     []string `json:"implies,omitempty"` // scopes of the same catalogue that come with it
	Level       string   `json:"level,omitzero"`    // "tenant" (default), or the kind of resource that a request must name to use it
}

// LevelTenant is the level of what reaches a whole tenant.
const LevelTenant = "tenant"

// GrantRules say how keys hold scopes.
type GrantRules struct {
	Required bool   `json:"required,omitzero"` // a key holds at least one scope or role
	Fixed    bool   `json:"fixed,omitzero"`    // the scopes and roles that a key holds never change after its creation; what a role gives still may
	By       string `json:"by,omitzero"`       // "scopes" or "roles" only; absent = either
}

// The values of GrantRules.By.
const (
	GrantsByScopes = "scopes"
	GrantsByRoles  = "roles"
)

// ExpiryPolicy bounds the life of keys.
type ExpiryPolicy struct {
	Required bool   `json:"required,omitzero"` // every key expires
	Max      Span   `json:"max,omitzero"`      // the longest life; absent = unbounded
	Default  Span   `json:"default,omitzero"`  // used when a request names no expiry
	Choices  []Span `json:"choices,omitempty"` // the only lives that a request may ask for; absent = any
}

// Longest returns the longest life, 0 for unbounded.
func (p *ExpiryPolicy) Longest() time.Duration { return p.Max.Duration() }

// MustEnd reports whether every key expires.
func (p *ExpiryPolicy) MustEnd() bool { return p.Required || p.Max != "" }

// LimitHeaders say how an answer tells where the limit stands.
type LimitHeaders struct {
	Style     string `json:"style,omitzero"`     // "x-ratelimit" (default), "ietf" (RateLimit and RateLimit-Policy) or "none"
	Limit     string `json:"limit,omitzero"`     // header of the bucket's size
	Remaining string `json:"remaining,omitzero"` // header of the tokens left
	Reset     string `json:"reset,omitzero"`     // header of when the bucket is full again
	ResetAs   string `json:"reset_as,omitzero"`  // "seconds" from now (default) or "unix" seconds
}

// The styles of limit headers, and what reset is told as.
const (
	HeadersXRateLimit = "x-ratelimit"
	HeadersIETF       = "ietf" // draft-ietf-httpapi-ratelimit-headers
	HeadersNone       = "none"
	ResetSeconds      = "seconds"
	ResetUnix         = "unix"
)

// Names returns the headers of size, tokens left and reset of the x-ratelimit
// style, "" for what is not told. Once a name is given, only named ones are.
func (h *LimitHeaders) Names() (limit, remaining, reset string) {
	switch {
	case h.Style == HeadersNone || h.Style == HeadersIETF:
		return "", "", ""
	case h.Limit == "" && h.Remaining == "" && h.Reset == "":
		return "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"
	}
	return h.Limit, h.Remaining, h.Reset
}

// Check is one of the checks that a verification makes of a key, once it is
// found.
type Check string

// The checks. CheckLimit takes tokens, so what stands after it is refused at the
// price of a token.
const (
	CheckAddress  Check = "address"  // address_not_allowed
	CheckState    Check = "state"    // key_revoked, key_expired, key_disabled
	CheckScope    Check = "scope"    // scope_missing
	CheckResource Check = "resource" // resource_not_allowed
	CheckLimit    Check = "limit"    // rate_limited: the key's limit and its tenant's
)

// DefaultChecks is the order of checks of a regime that names none.
var DefaultChecks = []Check{CheckState, CheckAddress, CheckScope, CheckResource, CheckLimit}

// Order returns the order of checks with the default applied.
func (d *Definition) Order() []Check {
	if len(d.Checks) == 0 {
		return DefaultChecks
	}
	return d.Checks
}

// Limit is a token bucket: PerMinute tokens a minute, Burst at once. Either it
// names a plan of the keyspace or it gives the two numbers.
type Limit struct {
	Plan      string `json:"plan,omitzero"`
	PerMinute int64  `json:"per_minute,omitzero"`
	Burst     int64  `json:"burst,omitzero"`
}

// Plan is a named limit.
type Plan struct {
	Name      string `json:"name"`
	PerMinute int64  `json:"per_minute"`
	Burst     int64  `json:"burst"`
}

// The bounds of a definition's lists. Those of scopes inside it are MaxScopes.
const (
	MaxKeyTypes  = 32
	MaxCatalogue = 1000
	MaxKinds     = 32
	MaxPlans     = 100
)

// MaxPerMinute bounds both numbers of a limit.
const MaxPerMinute = 1_000_000_000

// Staleness is how far a verifier may lag before it stops trusting itself.
type Staleness struct {
	MaxMillis int64  `json:"max_millis,omitzero"` // default 10 s
	OnStale   string `json:"on_stale,omitzero"`   // "deny" (default) or "allow"
}

// LedgerMode says when a verification may be answered.
type LedgerMode string

// The ledger modes.
const (
	LedgerAsync LedgerMode = "async" // answer at once; the use is durable within the flush interval or becomes a gap
	LedgerSync  LedgerMode = "sync"  // answer only after the use is durable
)

// Type returns the key type named name, or the first when name is empty.
func (d *Definition) Type(name string) (*KeyType, bool) {
	for i := range d.KeyTypes {
		if name == "" || d.KeyTypes[i].Name == name {
			return &d.KeyTypes[i], true
		}
	}
	return nil, false
}

// Expand returns scopes and all that they imply, sorted, each once. Scopes
// outside the catalogue stay as they are.
func (d *Definition) Expand(scopes []string) []string {
	implies := make(map[string][]string, len(d.Scopes))
	for i := range d.Scopes {
		implies[d.Scopes[i].Name] = d.Scopes[i].Implies
	}
	seen := make(map[string]bool, len(scopes))
	todo := slices.Clone(scopes)
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[s] {
			continue
		}
		seen[s] = true
		todo = append(todo, implies[s]...)
	}
	out := make([]string, 0, len(seen))
	for s := range seen {
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}

// Effective returns what a key of the type named keyType may do when it is
// granted scopes (its own and those of its roles): they and all that they imply,
// within the type's ceiling and within the catalogue, sorted. It is always asked
// of the current definition, so a scope that leaves the catalogue or rises above
// the ceiling leaves every key at once, whether it came directly or by a role.
// A type that is no longer defined may do nothing.
func (d *Definition) Effective(keyType string, scopes []string) []string {
	t, ok := d.Type(keyType)
	if !ok || keyType == "" {
		return nil
	}
	var ceiling []string
	if t.Ceiling != nil {
		ceiling = d.Expand(t.Ceiling)
	}
	return slices.DeleteFunc(d.Expand(scopes), func(s string) bool {
		return !d.HasScope(s) || ceiling != nil && !slices.Contains(ceiling, s)
	})
}

// HasScope reports whether the catalogue holds s.
func (d *Definition) HasScope(s string) bool {
	return slices.ContainsFunc(d.Scopes, func(c ScopeDef) bool { return c.Name == s })
}

// Resolve returns the numbers behind l: those of its plan, or its own. The nil
// limit resolves to the keyspace's default, which may be none (ok false).
func (d *Definition) Resolve(l *Limit) (perMinute, burst int64, ok bool) {
	if l == nil {
		l = d.Limit
	}
	if l == nil {
		return 0, 0, false
	}
	if l.Plan == "" {
		return l.PerMinute, l.Burst, true
	}
	for _, p := range d.Plans {
		if p.Name == l.Plan {
			return p.PerMinute, p.Burst, true
		}
	}
	return 0, 0, false
}

// ScopeLevel returns the kind of resource that a request must name to use the
// scope, "" when it need not.
func (d *Definition) ScopeLevel(scope string) string {
	for i := range d.Scopes {
		if d.Scopes[i].Name == scope && d.Scopes[i].Level != LevelTenant {
			return d.Scopes[i].Level
		}
	}
	return ""
}

// HeaderName returns the header with the default applied.
func (c Credential) HeaderName() string {
	if c.Header == "" {
		return "Authorization"
	}
	return c.Header
}

// SchemeName returns the authentication scheme, "" for a bare header.
func (c Credential) SchemeName() string {
	if c.Scheme == "" && strings.EqualFold(c.HeaderName(), "Authorization") {
		return "Bearer"
	}
	return c.Scheme
}

// MaxStaleness returns the bound with the default applied.
func (s Staleness) MaxStaleness() time.Duration {
	if s.MaxMillis == 0 {
		return 10 * time.Second
	}
	return time.Duration(s.MaxMillis) * time.Millisecond
}
