package commands

import (
	"github.com/keytrail/keytrail/events"
)

// SetLimit replaces a key's own limit.
type SetLimit struct {
	Limit  Opt[events.Limit] `json:"limit,omitzero"` // null = the keyspace's default
	Reason string            `json:"reason,omitzero"`
}

// Decide returns the update, nothing when the limit stands as asked, or why not.
func (c *SetLimit) Decide(k *events.Key, r *Rules, now events.Time) ([]events.Data, error) {
	var f events.FieldErrors
	checkReason(&f, c.Reason)
	var after *events.Limit
	switch {
	case !c.Limit.Set:
		f.Add("limit", "required", "want a plan, or per_minute and burst; null gives the keyspace's default back")
	case !c.Limit.Null:
		after = &c.Limit.Value
		r.checkLimit(&f, after)
	}
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	same := k.Limit == nil && after == nil || k.Limit != nil && after != nil && *k.Limit == *after
	data := &events.KeyLimitUpdated{Before: k.Limit, After: after}
	if err := admit(k, data, now); err != nil || same {
		return nil, err
	}
	return []events.Data{data}, nil
}
