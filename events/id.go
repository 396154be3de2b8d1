package events

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/keytrail/keytrail/events/input"
)

// Seq is a place in one stream, as JetStream numbers it: the first message is
// 1 and 0 means "before everything".
type Seq uint64

// KeyID names a key for ever. It prints as "key_" and a ULID.
type KeyID ulid.ULID

const keyIDPrefix = "key_"

// ParseKeyID reads what String prints, and nothing else (upper case only).
func ParseKeyID(s string) (KeyID, error) {
	rest, ok := strings.CutPrefix(s, keyIDPrefix)
	if !ok {
		return KeyID{}, fmt.Errorf("key id %s: want key_ and a ULID of 26 characters", input.Echo(s))
	}
	u, err := parseULID(rest)
	if err != nil || KeyID(u).IsZero() { // the zero id prints as ""
		return KeyID{}, fmt.Errorf("key id %s: want key_ and a ULID of 26 characters", input.Echo(s))
	}
	return KeyID(u), nil
}

// String returns "key_<ULID>", or "" for the zero id.
func (k KeyID) String() string {
	if k.IsZero() {
		return ""
	}
	return string(k.Append(make([]byte, 0, len(keyIDPrefix)+ulid.EncodedSize)))
}

// Append appends what String returns to b.
func (k KeyID) Append(b []byte) []byte {
	if k.IsZero() {
		return b
	}
	return appendULID(append(b, keyIDPrefix...), ulid.ULID(k))
}

func appendULID(b []byte, u ulid.ULID) []byte {
	b = append(b, make([]byte, ulid.EncodedSize)...)
	u.MarshalTextTo(b[len(b)-ulid.EncodedSize:]) // fails only where there is less room
	return b
}

// IsZero reports whether k names no key.
func (k KeyID) IsZero() bool { return k == KeyID{} }

// MarshalText implements encoding.TextMarshaler.
func (k KeyID) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it is as strict as ParseKeyID.
func (k *KeyID) UnmarshalText(b []byte) (err error) {
	*k, err = ParseKeyID(string(b))
	return err
}

// RequestID names one HTTP request to Keytrail's own endpoints. It is random, and
// prints as "req_" and 26 characters in the alphabet of a ULID.
type RequestID [16]byte

const requestIDPrefix = "req_"

// NewRequestID draws an id. Nothing rests on its being hard to guess, and every request
// has one: so it comes from the runtime's generator, which each thread has its own of.
func NewRequestID() (id RequestID) {
	binary.BigEndian.PutUint64(id[:8], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], rand.Uint64())
	return id
}

// ParseRequestID reads what String prints, and nothing else (upper case only).
func ParseRequestID(s string) (RequestID, error) {
	rest, ok := strings.CutPrefix(s, requestIDPrefix)
	u, err := parseULID(rest)
	if !ok || err != nil || RequestID(u).IsZero() { // the zero id prints as ""
		return RequestID{}, fmt.Errorf("request id %s: want req_ and 26 characters", input.Echo(s))
	}
	return RequestID(u), nil
}

// String returns "req_" and 26 characters, or "" for the zero id.
func (r RequestID) String() string {
	if r.IsZero() {
		return ""
	}
	return string(appendULID(append(make([]byte, 0, len(requestIDPrefix)+ulid.EncodedSize), requestIDPrefix...), ulid.ULID(r)))
}

// IsZero reports whether r names no request.
func (r RequestID) IsZero() bool { return r == RequestID{} }

// MarshalText implements encoding.TextMarshaler.
func (r RequestID) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; it is as strict as ParseRequestID.
func (r *RequestID) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRequestID(string(b))
	return err
}

// EventID is the id of one event: a ULID, unique in the log, equal to the
// message's Nats-Msg-Id.
type EventID ulid.ULID

// ParseEventID reads what String prints.
func ParseEventID(s string) (EventID, error) {
	u, err := parseULID(s)
	if err != nil {
		return EventID{}, fmt.Errorf("event id %s: want a ULID of 26 characters", input.Echo(s))
	}
	return EventID(u), nil
}

// String returns the 26 characters of the ULID.
func (e EventID) String() string { return ulid.ULID(e).String() }

// IsZero reports whether e is unset.
func (e EventID) IsZero() bool { return e == EventID{} }

// MarshalText implements encoding.TextMarshaler.
func (e EventID) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (e *EventID) UnmarshalText(b []byte) (err error) {
	*e, err = ParseEventID(string(b))
	return err
}

// parseULID accepts the canonical form only, so that String prints it back.
func parseULID(s string) (ulid.ULID, error) {
	if len(s) != ulid.EncodedSize || s[0] > '7' { // above it, the 128 bits overflow
		return ulid.ULID{}, ulid.ErrDataSize
	}
	for i := range len(s) {
		if !ulidChars[s[i]] {
			return ulid.ULID{}, ulid.ErrInvalidCharacters
		}
	}
	return ulid.Parse(s)
}

var ulidChars = input.CharsOf(ulid.Encoding)

// LogID is the identity of one lifecycle log, a ULID drawn when the log is
// initialised. Positions of different logs are never compared.
type LogID ulid.ULID

// ParseLogID reads what String prints.
func ParseLogID(s string) (LogID, error) {
	u, err := parseULID(s)
	if err != nil {
		return LogID{}, fmt.Errorf("log id %s: want a ULID of 26 characters", input.Echo(s))
	}
	return LogID(u), nil
}

// String returns the 26 characters of the ULID.
func (l LogID) String() string { return ulid.ULID(l).String() }

// IsZero reports whether l is unset.
func (l LogID) IsZero() bool { return l == LogID{} }

// MarshalText implements encoding.TextMarshaler.
func (l LogID) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *LogID) UnmarshalText(b []byte) (err error) {
	*l, err = ParseLogID(string(b))
	return err
}

// Hash is the SHA-256 of an encoded event (see Message.Hash); each event
// carries the hash of the event before it on the same subject.
type Hash [sha256.Size]byte

// String returns 64 lower-case hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// IsZero reports whether h is unset, which only a first event's prev may be.
func (h Hash) IsZero() bool { return h == Hash{} }

// MarshalText returns 64 lower-case hexadecimal digits.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads 64 lower-case hexadecimal digits.
func (h *Hash) UnmarshalText(b []byte) error { return unhex(h[:], b, "hash") }

// isHex reports whether b is n lower-case hexadecimal digits.
func isHex[B ~string | ~[]byte](b B, n int) bool {
	for i := range len(b) {
		if c := b[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(b) == n
}

func unhex(dst, b []byte, what string) error {
	if !isHex(b, 2*len(dst)) {
		return fmt.Errorf("%s: want %d lower-case hexadecimal digits", what, 2*len(dst))
	}
	if _, err := hex.Decode(dst, b); err != nil {
		return fmt.Errorf("%s: want %d lower-case hexadecimal digits", what, 2*len(dst))
	}
	return nil
}

// KeyspaceID names a keyspace: a lower-case letter, then lower-case letters,
// digits and '-', 63 characters at most. It is a token of a subject.
type KeyspaceID string

// TenantID names a tenant inside a keyspace: letters, digits, '_' and '-', 1 to
// 64 characters, not starting with '-'. NoTenant stands where an aggregate
// belongs to the keyspace itself.
type TenantID string

// NoTenant is the tenant token of keyspace-wide aggregates.
const NoTenant TenantID = "-"

// RoleID names a role inside a tenant, by the same grammar as TenantID.
type RoleID string

// Builtin is the keyspace whose keys guard Keytrail's own endpoints.
const Builtin KeyspaceID = "keytrail"

var (
	keyspaceWord = input.NewGrammar(input.Lower, input.Lower+input.Digits+"-", 63)
	nameWord     = input.NewGrammar(input.Lower+input.Upper+input.Digits+"_", input.Lower+input.Upper+input.Digits+"_-", 64)
	resourceWord = input.NewGrammar(input.Lower+input.Upper+input.Digits+"_", input.Lower+input.Upper+input.Digits+"_.:@-", 128)
)

// Validate reports whether the id follows the grammar of its type.
func (k KeyspaceID) Validate() error {
	if !keyspaceWord.Match(string(k)) {
		return fmt.Errorf("keyspace %s: want a lower-case letter, then lower-case letters, digits or '-', 63 characters at most", input.Echo(k))
	}
	return nil
}

// Validate reports whether the id follows the grammar of its type; NoTenant does not.
func (t TenantID) Validate() error {
	if !nameWord.Match(string(t)) {
		return fmt.Errorf("tenant %s: want 1 to 64 letters, digits, '_' or '-', not starting with '-'", input.Echo(t))
	}
	return nil
}

// Validate reports whether the id follows the grammar of its type.
func (r RoleID) Validate() error {
	if !nameWord.Match(string(r)) {
		return fmt.Errorf("role %s: want 1 to 64 letters, digits, '_' or '-', not starting with '-'", input.Echo(r))
	}
	return nil
}

// Resource is what a key may be restricted to inside its tenant, for example
// {project proj_1}.
type Resource struct {
	Kind string `json:"kind"` // a kind that the keyspace declares
	ID   string `json:"id"`   // the operator's own id, at most 128 characters
}

// String returns "kind/id".
func (r Resource) String() string { return r.Kind + "/" + r.ID }

// IsZero reports whether r names nothing.
func (r Resource) IsZero() bool { return r == Resource{} }

// Validate reports whether both halves follow their grammar.
func (r Resource) Validate() error {
	if !input.IsWord(r.Kind) {
		return fmt.Errorf("resource kind %s: want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most", input.Echo(r.Kind))
	}
	if !resourceWord.Match(r.ID) {
		return fmt.Errorf("resource id %s: want 1 to 128 letters, digits or any of _ . : @ -", input.Echo(r.ID))
	}
	return nil
}

// Actor is who caused an event.
type Actor struct {
	Kind ActorKind `json:"kind"`
	ID   string    `json:"id"` // a key id for ActorKey, a component's name for ActorSystem
}

// ActorKind is the closed set of actors.
type ActorKind string

// The kinds of actor.
const (
	ActorKey    ActorKind = "key"    // a key of the built-in keyspace
	ActorSystem ActorKind = "system" // Keytrail itself: init, expirer
)

// Validate reports whether the actor can be written down.
func (a Actor) Validate() error {
	switch a.Kind {
	case ActorKey:
		if _, err := ParseKeyID(a.ID); err != nil {
			return fmt.Errorf("actor: %w", err)
		}
	case ActorSystem:
		if !nameWord.Match(a.ID) {
			return fmt.Errorf("actor id %s: want the name of a component", input.Echo(a.ID))
		}
	default:
		return fmt.Errorf("actor kind %s: want key or system", input.Echo(a.Kind))
	}
	return nil
}
