package projections

import (
	"slices"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// Keyspace is one keyspace as verifiers see it; the pointer is stable.
type Keyspace struct {
	ID events.KeyspaceID

	rules  atomic.Pointer[keyspace.Compiled] // of the current definition; swapped whole
	formal atomic.Bool                       // no key here is without the form of its type; never true again
	state  events.Keyspace                   // owned by the writer
}

func newKeyspace(id events.KeyspaceID) *Keyspace {
	s := &Keyspace{ID: id}
	s.formal.Store(true) // no key yet
	s.rules.Store(keyspace.Compile(keyspace.Definition{}, nil))
	return s
}

// Rules returns the current definition, made ready for use; never nil.
func (s *Keyspace) Rules() *keyspace.Compiled { return s.rules.Load() }

// Definition returns the current definition, never nil. It is shared: do not
// modify.
func (s *Keyspace) Definition() *keyspace.Definition { return &s.rules.Load().Definition }

// WrongChecksum reports whether the checksum of the secret alone says that no key
// here has it. The rules must have been read from s before.
func (s *Keyspace) WrongChecksum(rules *keyspace.Compiled, secret string) bool {
	return rules.Checksums && s.formal.Load() && rules.WrongChecksum(secret)
}

// define takes the next version.
func (s *Keyspace) define(r *events.Recorded) error {
	next, err := s.state.Next(r)
	if err != nil {
		return err
	}
	s.state = next
	rules := keyspace.Compile(next.Definition, next.Retired)
	// If the format of a type changed, older keys may fail the new checksum. Whoever
	// reads the new rules must see that, so it is stored before them.
	if !rules.Checksums || !sameForms(s.Definition(), &rules.Definition) {
		s.formal.Store(false)
	}
	s.rules.Store(rules)
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

// Tenant is what holds for all keys of a tenant together; the pointer is stable.
type Tenant struct {
	limit  atomic.Pointer[keyspace.Limit] // nil = the keyspace's default
	bucket Bucket
	state  *events.Tenant // owned by the writer; nil without events
}

// Limit returns the tokens per minute and at once of all keys of the tenant
// together, under the rules of its keyspace: its own or the keyspace's default,
// as Key.Limit does; ok is false for none.
func (t *Tenant) Limit(rules *keyspace.Compiled) (perMinute, burst int64, ok bool) {
	return rules.Resolve(rules.WholeLimit(t.limit.Load()))
}

// Bucket returns the tenant's token bucket on this node. Like a key's it is not
// part of the fold.
func (t *Tenant) Bucket() *Bucket { return &t.bucket }
