package commands

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// IdempotencyHeader makes the retry of a write safe; ReplayedHeader marks the
// answer to a retry.
const (
	IdempotencyHeader = "Idempotency-Key"
	ReplayedHeader    = "Idempotent-Replayed"
)

// askLen is the half of a command id that says who asked and which ask it is.
const askLen = 32

// CommandID returns the 64 hexadecimal digits that name one command for ever:
// who asked under which idempotency key, then what was asked (see the package
// comment). body is the canonical text of the command.
func CommandID(actor events.Actor, key, method, path string, body []byte) string {
	ask := digest("keytrail/idempotency/ask/v1", string(actor.Kind), actor.ID, key)
	what := digest("keytrail/idempotency/what/v1", method, path, string(body))
	return hex.EncodeToString(ask[:16]) + hex.EncodeToString(what[:16])
}

// derivedKey returns the id of the key that a create under this command id
// makes. Any 16 bytes are a ULID.
func derivedKey(command string, ks events.KeyspaceID, tenant events.TenantID) events.KeyID {
	d := digest("keytrail/idempotency/key/v1", command[:askLen], string(ks), string(tenant))
	return events.KeyID(d[:16])
}

// digest hashes the parts, each with its length before it so that no two lists
// of parts read the same.
func digest(parts ...string) [sha256.Size]byte {
	var buf []byte
	for _, p := range parts {
		buf = binary.BigEndian.AppendUint64(buf, uint64(len(p)))
		buf = append(buf, p...)
	}
	return sha256.Sum256(buf)
}

// replayed looks for the command in a history. It returns the last event that it
// wrote, nil when it wrote none, or a *Refusal when the same ask was made with
// another request.
func replayed(history []events.Recorded, command string) (*events.Recorded, error) {
	if command == "" {
		return nil, nil
	}
	var last *events.Recorded
	for i := range history {
		c := history[i].Command
		if c == "" || c[:askLen] != command[:askLen] {
			continue
		}
		if c != command {
			return nil, refuse(CodeIdempotencyReused, "", "this %s was used before with another request: want a new one", IdempotencyHeader)
		}
		last = &history[i]
	}
	return last, nil
}

// idempotencyKey reads the header: a structured-field string or its bare
// characters, 1 to 255 visible ones. "" means that there is none.
func idempotencyKey(h http.Header) (string, error) {
	values := h.Values(IdempotencyHeader)
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	if s, ok := strings.CutPrefix(key, `"`); ok {
		if s, ok = strings.CutSuffix(s, `"`); ok {
			key = s
		}
	}
	bad := len(values) > 1 || key == "" || len(key) > 255
	for i := 0; i < len(key) && !bad; i++ {
		bad = key[i] < '!' || key[i] > '~'
	}
	if bad {
		return "", input.FieldErrors{{Field: IdempotencyHeader, Code: "invalid", Message: fmt.Sprintf("want one %s of 1 to 255 visible ASCII characters", IdempotencyHeader)}}
	}
	return key, nil
}
