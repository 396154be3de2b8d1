package projections

import (
	"slices"
	"strings"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Keyspace is one keyspace as verifiers see it; the pointer is stable.
type Keyspace struct {
	ID events.KeyspaceID

	rules  atomic.Pointer[Rules] // of the current definition; swapped whole
	formal atomic.Bool           // no key here is without the form of its type; never true again

	// Owned by the writer.
	state  events.Keyspace
	named  bool      // by an event of its own, of a tenant or of a key
	scopes numbering // of the definition, of roles and of keys
	types  numbering // of the definition and of kinds, which stay
}

func newKeyspace(id events.KeyspaceID) *Keyspace {
	s := &Keyspace{ID: id}
	s.formal.Store(true) // no key yet
	s.rules.Store(s.compile(0))
	return s
}

// rule puts the rules, which s has compiled, into force.
func (s *Keyspace) rule(r *Rules) {
	old := s.rules.Load()
	s.rules.Store(r)
	for i := range old.Definition.Scopes {
		s.scopes.drop(old.Definition.Scopes[i].Name)
	}
	for i := range old.Definition.KeyTypes {
		s.types.drop(old.Definition.KeyTypes[i].Name)
	}
}

// Rules returns the current definition, made ready for use; never nil.
func (s *Keyspace) Rules() *Rules { return s.rules.Load() }

// Definition returns the current definition, never nil. It is shared: do not
// modify.
func (s *Keyspace) Definition() *keyspace.Definition { return &s.rules.Load().Definition }

// WrongChecksum reports whether the checksum of the secret alone says that no key
// here has it. The rules must have been read from s before.
func (s *Keyspace) WrongChecksum(rules *Rules, secret string) bool {
	return rules.Checksums && s.formal.Load() && rules.WrongChecksum(secret)
}

// define takes the next version. What it costs depends on the definition alone: what
// the keys hold is worked out when somebody asks.
func (s *Keyspace) define(r *events.Recorded) error {
	next, err := s.state.Next(r)
	if err != nil {
		return err
	}
	s.state, s.named = next, true
	rules := s.compile(uint64(r.Seq))
	// If the format of a type changed, older keys may fail the new checksum. Whoever
	// reads the new rules must see that, so it is stored before them.
	if !rules.Checksums || !sameForms(s.Definition(), &rules.Definition) {
		s.formal.Store(false)
	}
	s.rule(rules)
	return nil
}

// sameForms reports whether each key type of old is in def with the same form.
func sameForms(old, def *keyspace.Definition) bool {
	return !slices.ContainsFunc(old.KeyTypes, func(t keyspace.KeyType) bool {
		return !slices.ContainsFunc(def.KeyTypes, func(u keyspace.KeyType) bool {
			return t.Prefix == u.Prefix && slices.Equal(t.Environments, u.Environments) && t.Alphabet == u.Alphabet && t.Len() == u.Len() && t.Checksum == u.Checksum
		})
	})
}

// foreign takes note that a key lives here whose secret may have any form: of
// another issuer, or older than the definition.
func (s *Keyspace) foreign() { s.formal.Store(false) }

// Rules is one version of a keyspace's definition, made ready for use. It is
// immutable, and may be shared. The zero value stands for a keyspace that is not
// known: the defaults, which deny.
type Rules struct {
	keyspace.Compiled

	version uint64                // tells the versions of one keyspace apart
	scopes  map[string]*scopeRule // the catalogue
	sorted  []*scopeRule          // by name
	types   []typeRule            // by the keyspace's numbers
}

// scopeRule is one scope of the catalogue.
type scopeRule struct {
	name, level string
	number      uint32
	by          bitset // what implies it, itself included
}

// typeRule is what holds for a type of key; the zero value is one that is not defined.
type typeRule struct {
	defined, bounded bool
	ceiling          bitset
}

// compile makes the current definition ready for use.
func (s *Keyspace) compile(version uint64) *Rules {
	r := &Rules{Compiled: *keyspace.Compile(s.state.Definition, s.state.Retired), version: version, scopes: map[string]*scopeRule{}}
	implied := map[string][]string{}
	for i := range r.Definition.Scopes {
		d := &r.Definition.Scopes[i]
		r.scopes[d.Name] = &scopeRule{name: d.Name, level: r.ScopeLevel(d.Name), number: s.scopes.hold(d.Name).number}
		implied[d.Name] = d.Implies
	}
	for _, by := range r.scopes {
		r.sorted = append(r.sorted, by)
		todo := []string{by.name}
		for len(todo) > 0 {
			of := r.scopes[todo[len(todo)-1]]
			todo = todo[:len(todo)-1]
			if of == nil || of.by.has(by.number) {
				continue
			}
			of.by.add(by.number)
			todo = append(todo, implied[of.name]...)
		}
	}
	slices.SortFunc(r.sorted, func(a, b *scopeRule) int { return strings.Compare(a.name, b.name) })
	for i := range r.Definition.KeyTypes {
		d := &r.Definition.KeyTypes[i]
		n := s.types.hold(d.Name).number
		for int(n) >= len(r.types) {
			r.types = append(r.types, typeRule{})
		}
		t := &r.types[n]
		t.defined = d.Name != ""
		if d.Ceiling == nil || t.bounded {
			continue
		}
		t.bounded = true
		for _, name := range r.Expand(d.Ceiling) {
			if in := r.scopes[name]; in != nil {
				t.ceiling.add(in.number)
			}
		}
	}
	return r
}

// admits reports whether a key of the type can hold the scope at all.
func (r *Rules) admits(keyType uint32, s *scopeRule) bool {
	if int(keyType) >= len(r.types) {
		return false
	}
	t := &r.types[keyType]
	return t.defined && (!t.bounded || t.ceiling.has(s.number))
}

// Kind is what is said of a key once and for all, and of many others; the pointer is
// stable.
type Kind struct {
	Space       *Keyspace
	KeyType     string
	Environment string // live, test, ... told to the gateway; may be ""

	keyType uint32 // the keyspace's number of KeyType
}

// Tenant is what holds for all keys of a tenant together; the pointer is stable.
type Tenant struct {
	ID events.TenantID

	space *Keyspace
	limit atomic.Pointer[keyspace.Limit] // nil = the keyspace's default
	state *events.Tenant                 // owned by the writer; nil without events
}

// Limit returns the tokens per minute and at once of all keys of the tenant
// together, under the rules of its keyspace: its own or the keyspace's default,
// as Key.Limit does; ok is false for none.
func (t *Tenant) Limit(rules *keyspace.Compiled) (perMinute, burst int64, ok bool) {
	return rules.Resolve(rules.WholeLimit(t.limit.Load()))
}
