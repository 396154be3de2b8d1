package commands

import (
	"bytes"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// DefineKeyspace makes a keyspace or replaces its definition.
type DefineKeyspace struct {
	keyspace.Definition
	Reason string `json:"reason,omitzero"`

	// AcceptViolations applies the definition although live keys do not fit it.
	// Without it such a definition is refused.
	AcceptViolations bool `json:"-"`

	// AcceptWidening applies the definition although live keys gain power by it.
	// Without it such a definition is refused.
	AcceptWidening bool `json:"-"`
}

// maxDefinition bounds a definition in bytes: the event that replaces it holds
// both, and the log takes no event past 1 MiB.
const maxDefinition = 500 << 10

// Decide returns the definition as an event, nil when it stands as asked, or why
// not. The built-in keyspace is never defined through an endpoint.
func (c *DefineKeyspace) Decide(ks *events.Keyspace, id events.KeyspaceID) (*events.KeyspaceDefined, error) {
	if id == events.Builtin {
		return nil, refuse(CodeBuiltinProtected, "", "keyspace %s guards Keytrail itself and cannot be defined anew", input.Quote(id))
	}
	f := c.Definition.Validate()
	if len(canonical(&c.Definition)) > maxDefinition {
		f.Add("body", "too_large", fmt.Sprintf("want a definition of at most %d bytes", maxDefinition))
	}
	if err := id.Validate(); err != nil {
		f.Add("keyspace", "invalid", err.Error())
	}
	checkReason(&f, c.Reason)
	if err := f.OrNil(); err != nil {
		return nil, err
	}
	return redefine(ks, c.Definition), nil
}

// redefine returns the event that makes d the definition, nil when it is already.
func redefine(ks *events.Keyspace, d keyspace.Definition) *events.KeyspaceDefined {
	data := &events.KeyspaceDefined{Definition: d}
	if ks.Exists() {
		if bytes.Equal(canonical(&ks.Definition), canonical(&d)) {
			return nil
		}
		data.Before = &ks.Definition
	}
	return data
}

// canonical returns the one JSON text of a command or definition. They are plain
// data, which encodes whatever it says, so there is no error to hand on.
func canonical(v any) []byte {
	b, err := json.Marshal(v, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		panic("commands: plain data does not encode: " + err.Error())
	}
	return b
}
