package commands

import "github.com/keytrail/keytrail/events"

// Enable ends a disablement.
type Enable struct {
	Reason string `json:"reason,omitzero"`
}

// Decide returns the enablement, or why not.
func (c *Enable) Decide(k *events.Key, _ *Rules, now events.Time) ([]events.Data, error) {
	return end(k, new(events.KeyEnabled), c.Reason, nil, now)
}
