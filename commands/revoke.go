package commands

import (
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// Revoke ends a key's life for good.
type Revoke struct {
	Code   events.RevokeCode `json:"code,omitzero"` // default "unspecified"
	Reason string            `json:"reason,omitzero"`
}

// Decide returns the revocation, or why not.
func (c *Revoke) Decide(k *events.Key, _ *Rules, now events.Time) ([]events.Data, error) {
	var f input.FieldErrors
	code := c.Code
	if code == "" {
		code = events.RevokeUnspecified
	}
	if err := code.Validate(); err != nil {
		f.Add("code", "invalid", err.Error())
	}
	return end(k, &events.KeyRevoked{Code: code}, c.Reason, f, now)
}
