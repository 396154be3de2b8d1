package commands

import (
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// SetLimit replaces a key's own limit.
type SetLimit struct {
	Limit  Opt[keyspace.Limit] `json:"limit,omitzero"` // null = the keyspace's default
	Reason string              `json:"reason,omitzero"`
}

// Decide returns the update, nothing when the limit stands as asked, or why not.
func (c *SetLimit) Decide(k *events.Key, r *Rules, now events.Time) ([]events.Data, error) {
	var f input.FieldErrors
	checkReason(&f, c.Reason)
	after := limitOf(&f, r, &c.Limit)
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	data := &events.KeyLimitUpdated{Before: k.Limit, After: after}
	if err := admit(k, data, now); err != nil || sameLimit(k.Limit, after) {
		return nil, err
	}
	return []events.Data{data}, nil
}

// limitOf returns the limit asked for, nil for the keyspace's own; faults go to f.
func limitOf(f *input.FieldErrors, r *Rules, o *Opt[keyspace.Limit]) *keyspace.Limit {
	switch {
	case !o.Set:
		f.Add("limit", "required", "want a plan, or per_minute and burst; null gives the keyspace's default back")
	case !o.Null:
		r.checkLimit(f, &o.Value)
		return &o.Value
	}
	return nil
}

func sameLimit(a, b *keyspace.Limit) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}
