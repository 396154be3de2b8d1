package projections

import (
	"slices"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
)

// Keyspace is one key regime as verifiers see it; the pointer is stable.
type Keyspace struct {
	ID events.KeyspaceID

	current atomic.Pointer[regime] // swapped whole
	state   events.Keyspace        // owned by the writer
}

// regime is one version of the definition, and what went before that still binds.
type regime struct {
	events.Definition
	retired []events.Plan // plans that earlier versions had, with their last numbers
}

func newKeyspace(id events.KeyspaceID) *Keyspace {
	s := &Keyspace{ID: id}
	s.current.Store(new(regime))
	return s
}

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
	s.current.Store(s.current.Load().next(next.Definition))
	return nil
}

func (g *regime) next(def events.Definition) *regime {
	n := &regime{Definition: def}
	for _, p := range slices.Concat(g.Plans, g.retired) {
		if !slices.ContainsFunc(def.Plans, func(q events.Plan) bool { return q.Name == p.Name }) {
			n.retired = append(n.retired, p)
		}
	}
	return n
}

func (g *regime) resolve(l *events.Limit) (perMinute, burst int64, ok bool) {
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
