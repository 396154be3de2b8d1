package events

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Definition is one key regime: the rules under which an operator's product
// issues and accepts keys. It is data; a new regime needs a document and no
// code. Zero members take the documented default.
type Definition struct {
	Title       string       `json:"title,omitzero"`       // for people, at most 100 characters
	Description string       `json:"description,omitzero"` // for people, at most 1000 characters
	KeyTypes    []KeyType    `json:"key_types"`            // at least one; the first is the default
	Credential  Credential   `json:"credential,omitzero"`  // where a request carries the secret
	Scopes      []ScopeDef   `json:"scopes,omitempty"`     // the catalogue; a key may hold no scope outside it
	Resources   []string     `json:"resources,omitempty"`  // kinds that a key may be restricted to
	Expiry      ExpiryPolicy `json:"expiry,omitzero"`
	Limit       *Limit       `json:"limit,omitzero"` // for keys that set none; absent = unlimited
	Plans       []Plan       `json:"plans,omitempty"`
	Staleness   Staleness    `json:"staleness,omitzero"`
	Ledger      LedgerMode   `json:"ledger,omitzero"` // "async" (default) or "sync"
}

// KeyType is one kind of key: what its secret looks like and what it may hold.
type KeyType struct {
	Name        string   `json:"name"`                  // secret, publishable, ...
	Environment string   `json:"environment,omitzero"`  // live, test, ... told to the gateway
	Prefix      string   `json:"prefix,omitzero"`       // readable start of the secret, at most 32 characters
	Alphabet    Alphabet `json:"alphabet,omitzero"`     // "base62" (default) or "hex"
	Length      int      `json:"length,omitzero"`       // random characters after the prefix; default 32
	Defaults    []string `json:"defaults,omitempty"`    // scopes given when none are asked for
	Ceiling     []string `json:"ceiling,omitempty"`     // scopes it may hold at most, one at least; absent = all
	Description string   `json:"description,omitempty"` // for people
}

// Alphabet is the closed set of alphabets of the random part of a secret.
type Alphabet string

// The alphabets.
const (
	Base62 Alphabet = "base62"
	Hex    Alphabet = "hex"
)

// Chars returns the alphabet's characters.
func (a Alphabet) Chars() string {
	if a == Hex {
		return "0123456789abcdef"
	}
	return "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
}

// DefaultSecretLength is the number of random characters when a key type names
// none: 190 bits in base62. MinSecretBits is the entropy floor of any type.
const (
	DefaultSecretLength = 32
	MinSecretBits       = 120
)

// Len returns the number of random characters, with the default applied.
func (t KeyType) Len() int {
	if t.Length == 0 {
		return DefaultSecretLength
	}
	return t.Length
}

// Matches reports whether secret has the form of this type: prefix, length and
// alphabet. It does not allocate.
func (t *KeyType) Matches(secret string) bool {
	rest, ok := strings.CutPrefix(secret, t.Prefix)
	if !ok || len(rest) != t.Len() {
		return false
	}
	for i := 0; i < len(rest); i++ {
		c := rest[i]
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f':
		case t.Alphabet != Hex && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'):
		default:
			return false
		}
	}
	return true
}

// overlaps reports whether a secret that starts with o's prefix can have the
// form of t.
func (t *KeyType) overlaps(o *KeyType) bool {
	middle, ok := strings.CutPrefix(o.Prefix, t.Prefix)
	return ok && len(t.Prefix)+t.Len() == len(o.Prefix)+o.Len() &&
		strings.Trim(middle, t.Alphabet.Chars()) == ""
}

// Hint returns the readable start of a secret of this type, safe to show: the
// prefix and four more characters.
func (t *KeyType) Hint(secret string) string {
	n := len(t.Prefix) + 4
	if n > len(secret) {
		n = len(secret)
	}
	return secret[:n]
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
}

// ExpiryPolicy bounds the life of keys. The longest life is in seconds; zero
// means unbounded.
type ExpiryPolicy struct {
	Required       bool  `json:"required,omitzero"`
	MaxSeconds     int64 `json:"max_seconds,omitzero"`
	DefaultSeconds int64 `json:"default_seconds,omitzero"` // used when a request names no expiry
}

// Max returns the longest life, 0 for unbounded.
func (p ExpiryPolicy) Max() time.Duration { return time.Duration(p.MaxSeconds) * time.Second }

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

// TypeOf returns the key type whose form secret has.
func (d *Definition) TypeOf(secret string) (*KeyType, bool) {
	for i := range d.KeyTypes {
		if d.KeyTypes[i].Matches(secret) {
			return &d.KeyTypes[i], true
		}
	}
	return nil, false
}

// Expand returns scopes and all that they imply, sorted, each once. Scopes
// outside the catalogue stay as they are.
func (d *Definition) Expand(scopes []string) []string {
	seen := make(map[string]bool, len(scopes))
	todo := slices.Clone(scopes)
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[s] {
			continue
		}
		seen[s] = true
		for i := range d.Scopes {
			if d.Scopes[i].Name == s {
				todo = append(todo, d.Scopes[i].Implies...)
			}
		}
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

// Header and scheme with the defaults applied.
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

// Validate reports every fault of the definition at once, each with the dotted
// path of its member; nil means that the keyspace can be applied.
func (d *Definition) Validate() FieldErrors {
	var f FieldErrors
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
	f.text("title", d.Title, 100)
	f.text("description", d.Description, 1000)
	scopes := map[string]bool{}
	for i, s := range d.Scopes {
		p := fmt.Sprintf("scopes[%d]", i)
		if err := ValidScope(s.Name); err != nil {
			f.Add(p+".name", "invalid", err.Error())
		} else if scopes[s.Name] {
			f.Add(p+".name", "duplicate", fmt.Sprintf("scope %q stands twice", s.Name))
		}
		scopes[s.Name] = true
		f.text(p+".description", s.Description, 500)
	}
	known := func(path string, list []string) {
		if len(list) > MaxScopes {
			f.Add(path, "too_many", fmt.Sprintf("want at most %d", MaxScopes))
			return
		}
		for j, s := range list {
			if !scopes[s] {
				f.Add(fmt.Sprintf("%s[%d]", path, j), "unknown_scope", fmt.Sprintf("scope %q is not in the catalogue", clip(s)))
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
		if !kindWord.match(t.Name) {
			f.Add(p+".name", "invalid", "want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most")
		} else if names[t.Name] {
			f.Add(p+".name", "duplicate", fmt.Sprintf("key type %q stands twice", t.Name))
		}
		names[t.Name] = true
		if t.Environment != "" && !kindWord.match(t.Environment) {
			f.Add(p+".environment", "invalid", "want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most")
		}
		if len(t.Prefix) > 32 || strings.ContainsFunc(t.Prefix, func(r rune) bool { return !strings.ContainsRune(Base62.Chars()+"_-", r) }) {
			f.Add(p+".prefix", "invalid", "want at most 32 letters, digits, '_' or '-'")
		}
		bits := 4.0
		switch t.Alphabet {
		case "", Base62:
			bits = 5.954
		case Hex:
		default:
			f.Add(p+".alphabet", "invalid", "want base62 or hex")
		}
		if n := t.Len(); n < 1 || n > 200 || float64(n)*bits < MinSecretBits {
			f.Add(p+".length", "invalid", fmt.Sprintf("want at most 200 characters and at least %d bits: 21 of base62, 30 of hex", MinSecretBits))
		}
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
					f.Add(fmt.Sprintf("%s.defaults[%d]", p, j), "above_ceiling", fmt.Sprintf("scope %q is above the type's own ceiling", s))
				}
			}
		}
		f.text(p+".description", t.Description, 500)
		for j := range i {
			if o := &d.KeyTypes[j]; o.overlaps(t) || t.overlaps(o) {
				f.Add(p+".prefix", "duplicate", fmt.Sprintf("a secret could be of key type %q as well: want another prefix or length", clip(o.Name)))
			}
		}
	}
	if h := d.Credential.Header; h != "" && !headerRE.MatchString(h) {
		f.Add("credential.header", "invalid", "want the name of an HTTP header")
	}
	if s := d.Credential.Scheme; s != "" && !headerRE.MatchString(s) {
		f.Add("credential.scheme", "invalid", "want the name of an authentication scheme, as Bearer")
	}
	for i, k := range d.Resources {
		if !kindWord.match(k) {
			f.Add(fmt.Sprintf("resources[%d]", i), "invalid", "want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most")
		} else if slices.Contains(d.Resources[:i], k) {
			f.Add(fmt.Sprintf("resources[%d]", i), "duplicate", fmt.Sprintf("resource kind %q stands twice", k))
		}
	}
	const century = 100 * 365 * 24 * 3600
	if x := d.Expiry.MaxSeconds; x < 0 || x > century {
		f.Add("expiry.max_seconds", "invalid", "want 0 (unbounded) to 100 years")
	}
	if x := d.Expiry.DefaultSeconds; x < 0 || x > century || d.Expiry.MaxSeconds > 0 && x > d.Expiry.MaxSeconds {
		f.Add("expiry.default_seconds", "invalid", "want 0 (none) to max_seconds")
	}
	plans := map[string]bool{}
	for i, p := range d.Plans {
		path := fmt.Sprintf("plans[%d]", i)
		if !kindWord.match(p.Name) {
			f.Add(path+".name", "invalid", "want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most")
		} else if plans[p.Name] {
			f.Add(path+".name", "duplicate", fmt.Sprintf("plan %q stands twice", p.Name))
		}
		plans[p.Name] = true
		f.limit(path, p.PerMinute, p.Burst)
	}
	if d.Limit != nil {
		f.Merge("limit", d.CheckLimit(d.Limit))
	}
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

// CheckLimit reports what is wrong with l in this keyspace; paths are relative
// to the limit. A bad limit is refused, never silently off.
func (d *Definition) CheckLimit(l *Limit) FieldErrors {
	var f FieldErrors
	if l == nil {
		return nil
	}
	if l.Plan != "" {
		if l.PerMinute != 0 || l.Burst != 0 {
			f.Add("plan", "conflict", "want either a plan or per_minute and burst, not both")
		}
		if !slices.ContainsFunc(d.Plans, func(p Plan) bool { return p.Name == l.Plan }) {
			f.Add("plan", "unknown_plan", fmt.Sprintf("plan %q is not defined in the keyspace", clip(l.Plan)))
		}
		return f
	}
	f.limit("", l.PerMinute, l.Burst)
	return f
}
