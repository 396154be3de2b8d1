package commands

import (
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// Disable stops a key until it is enabled again.
type Disable struct {
	Reason string `json:"reason,omitzero"`
}

// Decide returns the disablement, or why not.
func (c *Disable) Decide(k *events.Key, _ *Rules, now events.Time) ([]events.Data, error) {
	return end(k, new(events.KeyDisabled), c.Reason, nil, now)
}

// end decides the commands that only move the key's status.
func end(k *events.Key, data events.Data, reason string, f input.FieldErrors, now events.Time) ([]events.Data, error) {
	checkReason(&f, reason)
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	if err := admit(k, data, now); err != nil {
		return nil, err
	}
	return []events.Data{data}, nil
}
