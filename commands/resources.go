package commands

import (
	"fmt"
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// AssignResources replaces what a key is restricted to inside its tenant.
type AssignResources struct {
	Resources *[]events.Resource `json:"resources,omitzero"` // [] = the whole tenant
	Reason    string             `json:"reason,omitzero"`
}

// Decide returns the assignment, nothing when the list stands as asked, or why not.
func (c *AssignResources) Decide(k *events.Key, r *Rules, now events.Time) ([]events.Data, error) {
	var f input.FieldErrors
	checkReason(&f, c.Reason)
	var after []events.Resource
	if c.Resources == nil {
		f.Add("resources", "required", "want a list of resources; [] opens the whole tenant")
	} else {
		r.checkResources(&f, *c.Resources)
		after = sorted(*c.Resources, events.CompareResources)
		for _, id := range k.Grant.Roles {
			role, _ := r.role(id)
			level := role.Level
			if atResource(level) && !slices.ContainsFunc(after, func(x events.Resource) bool { return x.Kind == level }) {
				f.Add("resources", "role_level", fmt.Sprintf("the key holds role %s of level %s: want a resource of that kind", input.Quote(id), input.Quote(level)))
			}
		}
	}
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	data := &events.KeyResourcesAssigned{Before: k.Resources, After: after}
	if err := admit(k, data, now); err != nil || slices.Equal(k.Resources, after) {
		return nil, err
	}
	return []events.Data{data}, nil
}
