package keyspace

import (
	"strings"
	"time"
)

// Definition is the definition of one keyspace: the rules under which an operator's
// product issues and accepts keys. It is data; a new keyspace needs a document and no
// code. Zero members take the documented default.
type Definition struct {
	Title        string       `json:"title,omitzero"`       // for people, at most 100 characters
	Description  string       `json:"description,omitzero"` // for people, at most 1000 characters
	KeyTypes     []KeyType    `json:"key_types"`            // at least one; the first is the default
	Credential   Credential   `json:"credential,omitzero"`  // where a request carries the secret
	HTTPSOnly    bool         `json:"https_only,omitzero"`  // a key presented over plain HTTP is refused
	CORS         CORS         `json:"cors,omitzero"`        // which web pages may send keys and read refusals; absent = none
	Scopes       []ScopeDef   `json:"scopes,omitempty"`     // the catalogue; a key may hold no scope outside it
	Grants       GrantRules   `json:"grants,omitzero"`      // how keys hold scopes
	Resources    []string     `json:"resources,omitempty"`  // kinds that a key may be restricted to
	Expiry       ExpiryPolicy `json:"expiry,omitzero"`
	Plans        []Plan       `json:"plans,omitempty"`
	Limit        *Limit       `json:"limit,omitzero"`        // of each key that sets none; absent = unlimited
	TenantLimit  *Limit       `json:"tenant_limit,omitzero"` // of all keys of a tenant together, for tenants that have none of their own; absent = unlimited
	Limits       LimitsMode   `json:"limits,omitzero"`       // "local" (default), "exact" or "exact_else_local"
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

// ScopeUnlisted is a scope that no keyspace declares and no key holds. A gateway
// asks for it where its configuration lists nothing: the request is refused in the
// keyspace's own words, while any other scope that is not declared is a mistake.
const ScopeUnlisted = "unlisted"

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

// DefaultChecks returns the order of checks of a keyspace that names none.
func DefaultChecks() []Check {
	return []Check{CheckState, CheckAddress, CheckScope, CheckResource, CheckLimit}
}

// Order returns the order of checks with the default applied.
func (d *Definition) Order() []Check {
	if len(d.Checks) == 0 {
		return DefaultChecks()
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

// The bounds of a definition's lists, and of the scopes that a role, a key or a key
// type holds.
const (
	MaxScopes    = 200
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

// LimitsMode says what limits hold for.
type LimitsMode string

// The modes of limits.
const (
	LimitsLocal          LimitsMode = "local"            // for each verifier node by itself: n nodes admit n times them
	LimitsExact          LimitsMode = "exact"            // for all nodes together; while their allocator is away nothing is allowed that needs a token
	LimitsExactElseLocal LimitsMode = "exact_else_local" // for all nodes together; while their allocator is away for each by itself
)

// strictness orders the modes by what they let through.
func (m LimitsMode) strictness() int {
	switch m {
	case LimitsExact:
		return 2
	case LimitsExactElseLocal:
		return 1
	}
	return 0
}

// Exact reports whether limits hold for all nodes together.
func (m LimitsMode) Exact() bool { return m.strictness() > 0 }

// StricterThan reports whether m lets less through than n.
func (m LimitsMode) StricterThan(n LimitsMode) bool { return m.strictness() > n.strictness() }

// Type returns the key type named name, or the first when name is empty.
func (d *Definition) Type(name string) (*KeyType, bool) {
	for i := range d.KeyTypes {
		if name == "" || d.KeyTypes[i].Name == name {
			return &d.KeyTypes[i], true
		}
	}
	return nil, false
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
