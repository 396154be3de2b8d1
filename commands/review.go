package commands

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
)

// MaxViolations bounds the list of a Review; the counts go on.
const MaxViolations = 1000

// Review is what a new definition of a keyspace would do to the keys that live in
// it. Keys are never changed with the definition: what they may do follows it.
type Review struct {
	Changes    []string    `json:"changes"`    // paths of what differs; elements of lists by name, as scopes[read].implies
	Violations []Violation `json:"violations"` // at most MaxViolations, keys in the order of their creation; none for a caller without keys:read
	Violating  int         `json:"violating"`  // keys with a violation, the unlisted ones included
	Keys       int         `json:"keys"`       // keys that live
}

// Violation is one thing of a live key that the new definition does not admit
// or takes from it, where the present one does not. What a key has been let off
// once is not held against it again.
type Violation struct {
	KeyID   events.KeyID    `json:"key_id"`
	Tenant  events.TenantID `json:"tenant"`
	Name    string          `json:"name"`
	Field   string          `json:"field"`
	Code    string          `json:"code"`
	Message string          `json:"message"`
}

// ReviewDefinition holds the live keys of a keyspace against its next definition,
// in one pass. It is pure.
func ReviewDefinition(before, after *events.Definition, keys iter.Seq[*events.Key], role func(events.TenantID, events.RoleID) (events.Role, bool), now events.Time) *Review {
	r := &Review{Changes: changedPaths(before, after), Violations: []Violation{}}
	v := reviewer{before: before, after: after, role: role, terms: map[string]events.FieldErrors{}}
	for k := range keys {
		if s := k.StatusAt(now); s != events.StatusActive && s != events.StatusDisabled {
			continue
		}
		r.Keys++
		faults := v.key(k)
		if len(faults) == 0 {
			continue
		}
		r.Violating++
		for _, f := range faults {
			if len(r.Violations) < MaxViolations {
				r.Violations = append(r.Violations, Violation{k.ID, k.Tenant, k.Label.Name, f.Field, f.Code, f.Message})
			}
		}
	}
	return r
}

// reviewer compares what two definitions say of keys. Most keys hold what many
// others hold, so the verdict on that is kept.
type reviewer struct {
	before, after *events.Definition
	role          func(events.TenantID, events.RoleID) (events.Role, bool)
	terms         map[string]events.FieldErrors // by what the verdict depends on
	buf           []byte
}

func (v *reviewer) key(k *events.Key) events.FieldErrors {
	const end = 0 // no name holds it
	b := append(append(v.buf[:0], k.KeyType...), end)
	b = append(append(b, k.Environment...), end)
	if k.Limit != nil {
		b = append(b, k.Limit.Plan...)
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
	faults, known := v.terms[string(b)]
	if !known {
		faults = v.judge(k)
		v.terms[string(b)] = faults
	}
	if f := expiryFault(&v.after.Expiry, k); f != nil && expiryFault(&v.before.Expiry, k) == nil {
		faults = append(slices.Clip(faults), *f)
	}
	return faults
}

// judge says all but the expiry.
func (v *reviewer) judge(k *events.Key) (f events.FieldErrors) {
	t, ok := v.after.Type(k.KeyType)
	if !ok {
		f.Add("type", "unknown_type", fmt.Sprintf("key type %q would be gone: the key could do nothing", k.KeyType))
		return f
	}
	had, _ := v.before.Type(k.KeyType)
	if has := func(t *events.KeyType) bool {
		return k.Environment == t.Environment() || slices.Contains(t.Environments, k.Environment)
	}; !has(t) && (had == nil || has(had)) {
		f.Add("environment", "unknown_environment", fmt.Sprintf("key type %q would not have environment %q", t.Name, k.Environment))
	}
	v.power(&f, k, t)
	kind := ""
	for _, x := range k.Resources {
		if x.Kind != kind && !slices.Contains(v.after.Resources, x.Kind) && slices.Contains(v.before.Resources, x.Kind) {
			f.Add("resources", "unknown_kind", fmt.Sprintf("resource kind %q would be gone", x.Kind))
		}
		kind = x.Kind
	}
	if len(v.after.CheckLimit(k.Limit)) > 0 && len(v.before.CheckLimit(k.Limit)) == 0 {
		f.Add("limit.plan", "unknown_plan", fmt.Sprintf("plan %q would be gone: the key would keep its last numbers", k.Limit.Plan))
	}
	var held, was events.FieldErrors
	(&Rules{Keyspace: k.Keyspace, Definition: v.after}).checkHeld(&held, k.Grant)
	(&Rules{Keyspace: k.Keyspace, Definition: v.before}).checkHeld(&was, k.Grant)
	for _, x := range held {
		if !slices.ContainsFunc(was, func(y events.FieldError) bool { return x.Code == y.Code }) {
			f = append(f, x)
		}
	}
	return f
}

// power reports every scope that the key could use so far and could not use, or
// not for the whole tenant, afterwards.
func (v *reviewer) power(f *events.FieldErrors, k *events.Key, t *events.KeyType) {
	scopes := slices.Clone(k.Grant.Scopes)
	for _, id := range k.Grant.Roles {
		if role, ok := v.role(k.Tenant, id); ok && role.Exists() {
			scopes = append(scopes, role.Scopes...)
		}
	}
	after := v.after.Effective(k.KeyType, scopes)
	reached := v.after.Expand(scopes)
	for _, s := range v.before.Effective(k.KeyType, scopes) {
		level := v.after.ScopeLevel(s)
		switch {
		case !v.after.HasScope(s):
			f.Add(v.holder(k, s), "unknown_scope", fmt.Sprintf("scope %q would be gone from the catalogue", s))
		case !slices.Contains(reached, s):
			f.Add(v.holder(k, s), "not_implied", fmt.Sprintf("nothing that the key holds would imply scope %q any more", s))
		case !slices.Contains(after, s):
			f.Add(v.holder(k, s), "above_ceiling", fmt.Sprintf("keys of type %q could not hold scope %q", t.Name, s))
		case level != "" && level != v.before.ScopeLevel(s):
			f.Add(v.holder(k, s), "scope_level", fmt.Sprintf("to use scope %q a request would have to name a %s", s, level))
		}
	}
}

// holder names the member by which the key has the scope so far.
func (v *reviewer) holder(k *events.Key, scope string) string {
	for i := range k.Grant.Scopes {
		if slices.Contains(v.before.Expand(k.Grant.Scopes[i:i+1]), scope) {
			return fmt.Sprintf("scopes[%d]", i)
		}
	}
	for i, id := range k.Grant.Roles {
		if role, ok := v.role(k.Tenant, id); ok && role.Exists() && slices.Contains(v.before.Expand(role.Scopes), scope) {
			return fmt.Sprintf("roles[%d]", i)
		}
	}
	return "scopes"
}

func expiryFault(p *events.ExpiryPolicy, k *events.Key) *events.FieldError {
	switch {
	case k.ExpiresAt == 0 && p.MustEnd():
		return &events.FieldError{Field: "expires_at", Code: "required", Message: "the key never expires, and every key would have to"}
	case k.ExpiresAt != 0 && p.Max != "" && k.ExpiresAt > k.CreatedAt.Add(p.Longest()):
		return &events.FieldError{Field: "expires_at", Code: "too_late", Message: fmt.Sprintf("the key expires later than %s after its creation", p.Max)}
	}
	return nil
}

// changedPaths returns the paths at which two definitions differ.
func changedPaths(before, after *events.Definition) []string {
	var a, b any
	for v, d := range map[*any]*events.Definition{&a: before, &b: after} {
		if err := json.Unmarshal(canonical(d), v, asWritten); err != nil {
			panic("commands: a definition does not read back: " + err.Error())
		}
	}
	out := differ(nil, "", a, b)
	slices.Sort(out)
	return append([]string{}, out...)
}

// asWritten keeps numbers as their text: an envelope may hold any number, and a
// float64 holds neither all of them nor all of their digits.
var asWritten = json.WithUnmarshalers(json.UnmarshalFromFunc(func(dec *jsontext.Decoder, v *any) error {
	if dec.PeekKind() != '0' {
		return errors.ErrUnsupported // the default does it
	}
	number, err := dec.ReadValue()
	*v = string(number)
	return err
}))

func differ(out []string, path string, a, b any) []string {
	if am, ok := a.(map[string]any); ok {
		if bm, ok := b.(map[string]any); ok {
			return differMembers(out, am, bm, func(name string) string { return strings.TrimPrefix(path+"."+name, ".") })
		}
	}
	an, aOrder, aok := byName(a)
	bn, bOrder, bok := byName(b)
	if aok && bok {
		in := func(m map[string]any) func(string) bool {
			return func(name string) bool { _, ok := m[name]; return !ok }
		}
		if !slices.Equal(slices.DeleteFunc(aOrder, in(bn)), slices.DeleteFunc(bOrder, in(an))) {
			out = append(out, path) // the order of what both have
		}
		return differMembers(out, an, bn, func(name string) string { return path + "[" + name + "]" })
	}
	if !reflect.DeepEqual(a, b) {
		out = append(out, path)
	}
	return out
}

func differMembers(out []string, a, b map[string]any, path func(string) string) []string {
	all := maps.Clone(a)
	maps.Copy(all, b)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		x, inA := a[name]
		y, inB := b[name]
		if inA && inB {
			out = differ(out, path(name), x, y)
		} else {
			out = append(out, path(name))
		}
	}
	return out
}

// byName reads a list of objects that each have a name of their own.
func byName(v any) (m map[string]any, order []string, ok bool) {
	list, ok := v.([]any)
	m = map[string]any{}
	for _, x := range list {
		o, _ := x.(map[string]any)
		name, _ := o["name"].(string)
		if name == "" || m[name] != nil {
			return nil, nil, false
		}
		m[name] = x
		order = append(order, name)
	}
	return m, order, ok
}

// review holds the live keys of the keyspace against the definition. Who may not
// read keys is told how many do not fit, and not which.
func (h *Handler) review(p *events.Principal, ks *events.Keyspace, id events.KeyspaceID, after *events.Definition, now events.Time) *Review {
	role := func(tenant events.TenantID, role events.RoleID) (events.Role, bool) {
		return h.cfg.Dir.Role(id, tenant, role)
	}
	r := ReviewDefinition(&ks.Definition, after, h.cfg.Dir.All(id), role, now)
	if !p.Has(events.ScopeKeysRead) {
		r.Violations = []Violation{}
	}
	return r
}

// fits refuses a definition that live keys do not fit.
func (r *Review) fits() error {
	if r.Violating == 0 {
		return nil
	}
	var first []string
	for i, v := range r.Violations {
		if i > 0 && v.KeyID == r.Violations[i-1].KeyID {
			continue // one thing of each key
		}
		if len(first) == 3 {
			first = append(first, "…")
			break
		}
		first = append(first, fmt.Sprintf("%s (%s): %s", v.KeyID, v.Field, v.Message))
	}
	as, lists := "", ""
	if len(first) > 0 {
		as, lists = ", as "+strings.Join(first, "; "), "?dry_run=true lists them; "
	}
	return refuse(CodeViolations, "", "%d of %d live keys do not fit this definition%s. Nothing was written. %s?accept_violations=true applies it all the same",
		r.Violating, r.Keys, as, lists)
}

// ReviewKeyspace tells what DefineKeyspace would do, and does nothing: the
// keyspace as it would be, and what that means for its keys. Errors as there.
func (h *Handler) ReviewKeyspace(ctx context.Context, call *Call, id events.KeyspaceID, c *DefineKeyspace) (ks events.Keyspace, review *Review, err error) {
	defer h.observe(ctx, call, "review_keyspace", h.cfg.Now(), new(Done), &err)
	if err := h.mayDefine(ctx, call, id, c); err != nil {
		return ks, nil, err
	}
	b := h.batch(call)
	if err := h.standing(&call.Principal, b.now); err != nil {
		return ks, nil, err
	}
	ks, _ = h.cfg.Dir.Keyspace(id) // caught up; the zero one when there is none
	data, err := c.Decide(&ks, id)
	if err != nil {
		return ks, nil, err
	}
	review = h.review(&call.Principal, &ks, id, &c.Definition, b.now)
	if data == nil {
		return ks, review, nil
	}
	rec, err := b.add(events.KeyspaceAggregate(id), ks.Chain, ks.UpdatedAt, data)
	if err != nil {
		return ks, nil, err
	}
	ks, err = ks.Next(&rec)
	return ks, review, err
}
