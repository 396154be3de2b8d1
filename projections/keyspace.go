package projections

import (
	"slices"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
)

// Keyspace is one key regime as verifiers see it; the pointer is stable.
type Keyspace struct {
	ID events.KeyspaceID

	current atomic.Pointer[Regime] // swapped whole
	state   events.Keyspace        // owned by the writer
}

// Regime is one version of a keyspace's definition, made ready for verifying. It
// is immutable.
type Regime struct {
	events.Definition
	Order     []events.Check    // the order of checks
	Usual     bool              // Order is events.DefaultChecks
	Envelope  *events.Envelope  // of refusals; nil = problem details
	Checksums bool              // Junk may refuse a secret without a look-up: there is a checksum, and no key here is without the form of its type
	levels    map[string]string // scopes that want a resource, by its kind; nil when none does
	retired   []events.Plan     // plans that earlier versions had, with their last numbers
	statuses  [events.ReasonHTTPSRequired + 1]uint16
}

func newRegime(def events.Definition, retired []events.Plan) *Regime {
	g := &Regime{Definition: def, Order: def.Order(), Checksums: def.Checksums(), retired: retired}
	g.Usual = slices.Equal(g.Order, events.DefaultChecks)
	for _, r := range events.Reasons() {
		f := events.Failure{Reason: r.String()}
		g.Answer(&f)
		g.statuses[r] = uint16(f.Status)
	}
	if def.Errors.Envelope != nil {
		g.Envelope, _ = events.CompileEnvelope(def.Errors.Envelope) // a stored definition is valid
	}
	for _, s := range def.Scopes {
		if s.Level != "" && s.Level != events.LevelTenant {
			if g.levels == nil {
				g.levels = map[string]string{}
			}
			g.levels[s.Name] = s.Level
		}
	}
	return g
}

// Level returns the kind of resource that a request must name to use the scope,
// "" when it need not.
func (g *Regime) Level(scope string) string { return g.levels[scope] }

// Status returns the HTTP status that the regime itself gives the reason, 0 when
// it gives none.
func (g *Regime) Status(r events.Reason) int {
	if int(r) < len(g.statuses) {
		return int(g.statuses[r])
	}
	return 0
}

func newKeyspace(id events.KeyspaceID) *Keyspace {
	s := &Keyspace{ID: id}
	g := newRegime(events.Definition{}, nil)
	g.Checksums = true // no key yet
	s.current.Store(g)
	return s
}

// Regime returns the current version, never nil.
func (s *Keyspace) Regime() *Regime { return s.current.Load() }

// Definition returns the current definition, never nil. It is shared: do not
// modify.
func (s *Keyspace) Definition() *events.Definition { return &s.current.Load().Definition }

// define takes the next version.
func (s *Keyspace) define(r *events.Recorded) error {
	next, err := s.state.Next(r)
	if err != nil {
		return err
	}
	s.state = next
	n := s.current.Load().next(next.Definition)
	// A type that was, and is not so any more, may have keys that look like junk now.
	n.Checksums = n.Checksums && s.current.Load().Checksums && sameForms(s.Definition(), &n.Definition)
	s.current.Store(n)
	return nil
}

// sameForms reports whether each key type of old is in def with the same form.
func sameForms(old, def *events.Definition) bool {
	return !slices.ContainsFunc(old.KeyTypes, func(t events.KeyType) bool {
		return !slices.ContainsFunc(def.KeyTypes, func(u events.KeyType) bool {
			return t.Prefix == u.Prefix && slices.Equal(t.Environments, u.Environments) && t.Alphabet == u.Alphabet && t.Len() == u.Len() && t.Checksum == u.Checksum
		})
	})
}

// foreign takes note that a key lives here whose secret may have any form: of
// another issuer, or older than the definition.
func (s *Keyspace) foreign() {
	if g := s.current.Load(); g.Checksums {
		n := *g
		n.Checksums = false
		s.current.Store(&n)
	}
}

func (g *Regime) next(def events.Definition) *Regime {
	var retired []events.Plan
	for _, p := range slices.Concat(g.Plans, g.retired) {
		if !slices.ContainsFunc(def.Plans, func(q events.Plan) bool { return q.Name == p.Name }) {
			retired = append(retired, p)
		}
	}
	return newRegime(def, retired)
}

func (g *Regime) resolve(l *events.Limit) (perMinute, burst int64, ok bool) {
	if perMinute, burst, ok = g.Resolve(l); ok || l == nil {
		return perMinute, burst, ok
	}
	for _, p := range g.retired {
		if p.Name == l.Plan {
			return p.PerMinute, p.Burst, true
		}
	}
	return g.Resolve(nil) // a plan that never was; the write side refuses those
}

// Tenant is what holds for all keys of a tenant together; the pointer is stable.
type Tenant struct {
	limit  atomic.Pointer[events.Limit] // nil = the keyspace's default
	bucket Bucket
	state  *events.Tenant // owned by the writer; nil without events
}

// Limit returns the tokens per minute and at once of all keys of the tenant
// together, under the regime of its keyspace: its own or the keyspace's default,
// as Key.Limit does; ok is false for none.
func (t *Tenant) Limit(g *Regime) (perMinute, burst int64, ok bool) {
	l := t.limit.Load()
	if l == nil {
		l = g.TenantLimit
	}
	if l == nil {
		return 0, 0, false
	}
	return g.resolve(l)
}

// Bucket returns the tenant's token bucket on this node. Like a key's it is not
// part of the fold.
func (t *Tenant) Bucket() *Bucket { return &t.bucket }
