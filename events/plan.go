package events

import (
	"github.com/keytrail/keytrail/events/keyspace"
)

// Resolve is Definition.Resolve, with the plans that earlier definitions had.
func (k *Keyspace) Resolve(l *keyspace.Limit) (perMinute, burst int64, ok bool) {
	return k.Definition.Resolve(l, k.Retired)
}

// Redefined returns the keyspace as it would be with another definition.
func (k *Keyspace) Redefined(d keyspace.Definition) Keyspace {
	next := *k
	next.Definition, next.Retired = d, k.Definition.Retire(&d, k.Retired)
	return next
}
