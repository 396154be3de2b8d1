package verifier

import (
	"slices"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/internal/api"
)

// screen adds a fault to f for each part of a demand that holds a secret: a use is
// recorded with its demand, and what is on the record stays there.
func (n *Node) screen(f *input.FieldErrors, path string, ks events.KeyspaceID, scope string, r events.Resource) {
	for _, x := range [...]struct{ field, text string }{
		{"keyspace", string(ks)}, {"scope", scope}, {"resource.kind", r.Kind}, {"resource.id", r.ID},
	} {
		if len(x.text) >= events.MinSecret && n.cfg.View.IsSecret(x.text) {
			*f = append(*f, api.SecretFault(path+x.field))
		}
	}
}

// refused makes the problem of a question with faults. One that holds a secret
// says nothing else of itself.
func refused(f input.FieldErrors) *api.Problem {
	secrets := slices.DeleteFunc(slices.Clone(f), func(e input.FieldError) bool { return e.Code != api.CodeSecret })
	if len(secrets) > 0 {
		return api.SecretFound(secrets)
	}
	return api.Invalid(f)
}
