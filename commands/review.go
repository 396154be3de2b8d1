package commands

import (
	"fmt"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// MaxViolations bounds the list of a Review; the counts go on.
const MaxViolations = 1000

// Review is what a new definition of a keyspace would do to the keys that live in
// it. Keys are never changed with the definition: what they may do follows it.
type Review struct {
	Changes    []string    `json:"changes"`           // paths of what differs; elements of lists by name, as scopes[read].implies
	Violations []Violation `json:"violations"`        // at most MaxViolations: of every key, of tenants, of keys in the order of their creation; those of no tenant or key only, for a caller without keys:read
	Violating  int         `json:"violating"`         // keys with a violation, their tenant's and the unlisted ones included
	Tenants    int         `json:"violating_tenants"` // tenants with a limit of their own that have a violation
	Widening   []Widening  `json:"widening"`          // at most MaxViolations, what concerns every key first; none of a key for a caller without keys:read
	Widened    int         `json:"widened"`           // keys that gain power, the unlisted ones included
	Keys       int         `json:"keys"`              // keys that live
}

// Widening is one thing by which a live key, or every one, gains power.
type Widening struct {
	KeyID   events.KeyID    `json:"key_id,omitzero"` // absent: every live key
	Tenant  events.TenantID `json:"tenant,omitzero"`
	Name    string          `json:"name,omitzero"`
	Field   string          `json:"field"` // of the key, or of the definition
	Code    string          `json:"code"`
	Message string          `json:"message"`
}

// Violation is one thing of a live key, of a tenant or of every key that the new
// definition does not admit or takes away, where the present one does not. What a
// key has been let off once is not held against it again.
type Violation struct {
	KeyID   events.KeyID    `json:"key_id,omitzero"` // absent: every live key, of the tenant if there is one
	Tenant  events.TenantID `json:"tenant,omitzero"`
	Name    string          `json:"name,omitzero"`
	Field   string          `json:"field"` // of the key, of the tenant, or of the definition
	Code    string          `json:"code"`
	Message string          `json:"message"`
}

// ReviewDefinition holds the live keys of a keyspace against its next definition,
// in one pass. It is pure.
func ReviewDefinition(ks *events.Keyspace, after *keyspace.Definition, of Holders, now events.Time) *Review {
	before := &ks.Definition
	r := &Review{Changes: changedPaths(before, after), Violations: []Violation{}, Widening: widenedForAll(before, after)}
	v := reviewer{before: keyspace.Compile(*before, ks.Retired), after: keyspace.Compile(*after, before.Retire(after, ks.Retired)), role: of.Role, terms: map[string]verdict{}}
	forAll, tenants := narrowedForAll(before, after), v.tenants(of.Tenants)
	for _, loses := range tenants.own {
		if loses {
			r.Tenants++
		}
	}
	r.Violations = append(r.Violations, tenants.violations[:min(len(tenants.violations), MaxViolations)]...)
	othersLose := false
	for k := range of.Keys {
		if !lives(k, now) {
			continue
		}
		r.Keys++
		found := v.key(k)
		_, own := tenants.own[k.Tenant]
		othersLose = othersLose || !own && tenants.others != nil
		if len(found.faults) > 0 || len(forAll) > 0 || tenants.concerns(k.Tenant) {
			r.Violating++
		}
		for _, f := range found.faults {
			if len(r.Violations) < MaxViolations {
				r.Violations = append(r.Violations, Violation{k.ID, k.Tenant, k.Label.Name, f.Field, f.Code, f.Message})
			}
		}
		if len(found.gains) > 0 {
			r.Widened++
		}
		for _, f := range found.gains {
			if len(r.Widening) < MaxViolations {
				r.Widening = append(r.Widening, Widening{k.ID, k.Tenant, k.Label.Name, f.Field, f.Code, f.Message})
			}
		}
	}
	if othersLose {
		forAll = append(forAll, *tenants.others)
	}
	if r.Keys > 0 { // else there is nobody to lose
		r.Violations = slices.Insert(r.Violations, 0, forAll...)
		r.Violations = r.Violations[:min(len(r.Violations), MaxViolations)]
	}
	switch forAll := len(r.Widening) > 0 && r.Widening[0].KeyID.IsZero(); {
	case forAll && r.Keys > 0:
		r.Widened = r.Keys
	case forAll: // there is nobody to gain
		r.Widening = []Widening{}
	}
	return r
}

// widenedForAll says by what every key of the keyspace gains.
func widenedForAll(before, after *keyspace.Definition) []Widening {
	out := []Widening{}
	add := func(field, code, format string, args ...any) {
		out = append(out, Widening{Field: field, Code: code, Message: fmt.Sprintf(format, args...)})
	}
	if before.HTTPSOnly && !after.HTTPSOnly {
		add("https_only", "plain_http", "every key could be used over plain HTTP")
	}
	if allows := func(d *keyspace.Definition) bool { return d.Staleness.OnStale == "allow" }; allows(after) && !allows(before) {
		add("staleness.on_stale", "on_stale", "a verifier that is cut off would go on accepting every key, also after its end")
	}
	if before.Limits.StricterThan(after.Limits) {
		add("limits", "limits", "limits would hold for each verifier node by itself, always or while their allocator is away: n nodes admit n times them")
	}
	if was, next := before.Staleness.MaxStaleness(), after.Staleness.MaxStaleness(); next > was {
		add("staleness.max_millis", "max_millis", "a verifier that is cut off would go on accepting every key for %s instead of %s", next, was)
	}
	return out
}

// reviewer compares what two definitions say of keys. Most keys hold what many
// others hold, so the verdict on that is kept.
type reviewer struct {
	before, after *keyspace.Compiled // with the plans that each has retired
	role          func(events.TenantID, events.RoleID) (events.Role, bool)
	terms         map[string]verdict // by what the verdict depends on
	buf           []byte
}

// verdict is what a definition takes from a key or does not admit of it, and what
// it gives to the key.
type verdict struct{ faults, gains input.FieldErrors }

func (v *reviewer) key(k *events.Key) verdict {
	const end = 0 // no name holds it
	b := append(append(v.buf[:0], k.KeyType...), end)
	b = append(append(b, k.Environment...), end)
	switch {
	case k.Limit == nil: // the keyspace's
		b = append(b, end)
	case k.Limit.Plan != "":
		b = append(b, k.Limit.Plan...)
	default: // numbers, which no definition changes
		b = append(b, '=')
	}
	b = append(b, end)
	kind := ""
	for _, x := range k.Resources { // sorted
		if x.Kind != kind {
			kind = x.Kind
			b = append(append(b, kind...), end)
		}
	}
	b = append(b, end)
	for _, s := range k.Grant.Scopes {
		b = append(append(b, s...), end)
	}
	if len(k.Grant.Roles) > 0 {
		b = append(append(b, end), k.Tenant...)
		for _, id := range k.Grant.Roles {
			b = append(append(b, end), id...)
		}
	}
	v.buf = b
	found, known := v.terms[string(b)]
	if !known {
		found = verdict{v.judge(k), v.gains(k)}
		v.terms[string(b)] = found
	}
	if f := expiryFault(&v.after.Expiry, k); f != nil && expiryFault(&v.before.Expiry, k) == nil {
		found.faults = append(slices.Clip(found.faults), *f)
	}
	return found
}

// judge says all but the expiry.
func (v *reviewer) judge(k *events.Key) (f input.FieldErrors) {
	t, ok := v.after.Type(k.KeyType)
	if !ok {
		f.Add("type", "unknown_type", fmt.Sprintf("key type %s would be gone: the key could do nothing", input.Quote(k.KeyType)))
		return f
	}
	had, _ := v.before.Type(k.KeyType)
	if has := func(t *keyspace.KeyType) bool {
		return k.Environment == t.Environment() || slices.Contains(t.Environments, k.Environment)
	}; !has(t) && (had == nil || has(had)) {
		f.Add("environment", "unknown_environment", fmt.Sprintf("key type %s would not have environment %s", input.Quote(t.Name), input.Quote(k.Environment)))
	}
	v.power(&f, k, t)
	kind := ""
	for _, x := range k.Resources {
		if x.Kind != kind && !slices.Contains(v.after.Resources, x.Kind) && slices.Contains(v.before.Resources, x.Kind) {
			f.Add("resources", "unknown_kind", fmt.Sprintf("resource kind %s would be gone", input.Quote(x.Kind)))
		}
		kind = x.Kind
	}
	v.narrowedLimit(&f, "the key", k.Limit, (*keyspace.Definition).KeyLimit)
	var held, was input.FieldErrors
	(&Rules{Keyspace: k.Keyspace, Definition: &v.after.Definition}).checkHeld(&held, k.Grant)
	(&Rules{Keyspace: k.Keyspace, Definition: &v.before.Definition}).checkHeld(&was, k.Grant)
	for _, x := range held {
		if !slices.ContainsFunc(was, func(y input.FieldError) bool { return x.Code == y.Code }) {
			f = append(f, x)
		}
	}
	return f
}

// power reports every scope that the key could use so far and could not use, or
// not for the whole tenant, afterwards.
func (v *reviewer) power(f *input.FieldErrors, k *events.Key, t *keyspace.KeyType) {
	scopes := v.granted(k)
	after := v.after.Effective(k.KeyType, scopes)
	reached := v.after.Expand(scopes)
	for _, s := range v.before.Effective(k.KeyType, scopes) {
		level := v.after.ScopeLevel(s)
		switch {
		case !v.after.HasScope(s):
			f.Add(holder(v.before, v.role, k, s), "unknown_scope", fmt.Sprintf("scope %s would be gone from the catalogue", input.Quote(s)))
		case !slices.Contains(reached, s):
			f.Add(holder(v.before, v.role, k, s), "not_implied", fmt.Sprintf("nothing that the key holds would imply scope %s any more", input.Quote(s)))
		case !slices.Contains(after, s):
			f.Add(holder(v.before, v.role, k, s), "above_ceiling", fmt.Sprintf("keys of type %s could not hold scope %s", input.Quote(t.Name), input.Quote(s)))
		case level != "" && level != v.before.ScopeLevel(s):
			f.Add(holder(v.before, v.role, k, s), "scope_level", fmt.Sprintf("to use scope %s a request would have to name a %s", input.Quote(s), level))
		}
	}
}

// gains reports every scope that the key could not use so far, or not there, and
// could use afterwards.
func (v *reviewer) gains(k *events.Key) (f input.FieldErrors) {
	scopes := v.granted(k)
	before := v.before.Effective(k.KeyType, scopes)
	for _, s := range v.after.Effective(k.KeyType, scopes) {
		was, level := v.before.ScopeLevel(s), v.after.ScopeLevel(s)
		switch {
		case !slices.Contains(before, s):
			f.Add(holder(v.after, v.role, k, s), "scope_gained", fmt.Sprintf("the key could use scope %s", input.Quote(s)))
		case was == level || len(k.Resources) == 0:
		case level == "":
			f.Add(holder(v.after, v.role, k, s), "scope_level", fmt.Sprintf("the key could use scope %s without naming a %s that it is restricted to", input.Quote(s), was))
		case was != "" && slices.ContainsFunc(k.Resources, func(x events.Resource) bool { return x.Kind == level }):
			f.Add(holder(v.after, v.role, k, s), "scope_level", fmt.Sprintf("the key could use scope %s with a %s instead of a %s", input.Quote(s), level, was))
		}
	}
	return f
}

// granted returns the scopes of the key and of its roles.
func (v *reviewer) granted(k *events.Key) []string {
	scopes := slices.Clone(k.Grant.Scopes)
	for _, id := range k.Grant.Roles {
		if role, ok := v.role(k.Tenant, id); ok && role.Exists() {
			scopes = append(scopes, role.Scopes...)
		}
	}
	return scopes
}

// holder names the member by which the key has the scope under d.
func holder(d *keyspace.Compiled, role func(events.TenantID, events.RoleID) (events.Role, bool), k *events.Key, scope string) string {
	for i := range k.Grant.Scopes {
		if slices.Contains(d.Expand(k.Grant.Scopes[i:i+1]), scope) {
			return fmt.Sprintf("scopes[%d]", i)
		}
	}
	for i, id := range k.Grant.Roles {
		if role, ok := role(k.Tenant, id); ok && role.Exists() && slices.Contains(d.Expand(role.Scopes), scope) {
			return fmt.Sprintf("roles[%d]", i)
		}
	}
	return "scopes"
}

func expiryFault(p *keyspace.ExpiryPolicy, k *events.Key) *input.FieldError {
	switch {
	case k.ExpiresAt == 0 && p.MustEnd():
		return &input.FieldError{Field: "expires_at", Code: "required", Message: "the key never expires, and every key would have to"}
	case k.ExpiresAt != 0 && p.Max != "" && k.ExpiresAt > k.CreatedAt.Add(p.Longest()):
		return &input.FieldError{Field: "expires_at", Code: "too_late", Message: fmt.Sprintf("the key expires later than %s after its creation", p.Max)}
	}
	return nil
}
