package events

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/oklog/ulid/v2"
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
		return KeyID{}, fmt.Errorf("key id %q: want key_ and a ULID of 26 characters", clip(s))
	}
	u, err := parseULID(rest)
	if err != nil || KeyID(u).IsZero() { // the zero id prints as ""
		return KeyID{}, fmt.Errorf("key id %q: want key_ and a ULID of 26 characters", clip(s))
	}
	return KeyID(u), nil
}

// String returns "key_<ULID>", or "" for the zero id.
func (k KeyID) String() string {
	if k.IsZero() {
		return ""
	}
	return keyIDPrefix + ulid.ULID(k).String()
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

// EventID is the id of one event: a ULID, unique in the log, equal to the
// message's Nats-Msg-Id.
type EventID ulid.ULID

// ParseEventID reads what String prints.
func ParseEventID(s string) (EventID, error) {
	u, err := parseULID(s)
	if err != nil {
		return EventID{}, fmt.Errorf("event id %q: want a ULID of 26 characters", clip(s))
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
	u, err := ulid.ParseStrict(s)
	if err != nil {
		return u, err
	}
	if u.String() != s {
		return u, fmt.Errorf("not canonical")
	}
	return u, nil
}

// LogID is the identity of one lifecycle log, a ULID drawn when the log is
// initialised. Positions of different logs are never compared.
type LogID ulid.ULID

// ParseLogID reads what String prints.
func ParseLogID(s string) (LogID, error) {
	u, err := parseULID(s)
	if err != nil {
		return LogID{}, fmt.Errorf("log id %q: want a ULID of 26 characters", clip(s))
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

// Digest is the SHA-256 of a secret's bytes. It is what the log and the views
// hold instead of the secret. It prints redacted (E3); MarshalText gives the
// 64 hexadecimal digits for the wire.
type Digest [sha256.Size]byte

// String returns a redaction that is safe in a log line.
func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:4]) + "…" }

// Format prints the redaction for every verb: %d and %#v would print the bytes.
func (d Digest) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, d.String()) }

// LogValue implements slog.LogValuer with the same redaction.
func (d Digest) LogValue() slog.Value { return slog.StringValue(d.String()) }

// IsZero reports whether d is unset.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText returns 64 lower-case hexadecimal digits.
func (d Digest) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(d[:])), nil }

// UnmarshalText reads 64 lower-case hexadecimal digits.
func (d *Digest) UnmarshalText(b []byte) error { return unhex(d[:], b, "digest") }

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

func unhex(dst, b []byte, what string) error {
	if len(b) != 2*len(dst) || strings.ToLower(string(b)) != string(b) {
		return fmt.Errorf("%s: want %d lower-case hexadecimal digits", what, 2*len(dst))
	}
	if _, err := hex.Decode(dst, b); err != nil {
		return fmt.Errorf("%s: want %d lower-case hexadecimal digits", what, 2*len(dst))
	}
	return nil
}

// Secret is the bearer string of a key. It exists in memory between issuing
// and the one reply that shows it, and during one verification. It prints
// redacted; Reveal is the only way to its bytes. Keep it out of unexported
// fields of structs that are printed whole: fmt cannot call its methods there.
type Secret struct{ s string }

// NewSecret wraps s.
func NewSecret(s string) Secret { return Secret{s} }

// Reveal returns the plaintext. Call it only to answer the one reply that
// shows a new key, or to hash.
func (s Secret) Reveal() string { return s.s }

// Digest returns the SHA-256 of the secret's bytes. It does not allocate for
// secrets of up to 256 bytes: each verification calls it.
func (s Secret) Digest() Digest {
	var stack [256]byte
	if len(s.s) > len(stack) {
		return sha256.Sum256([]byte(s.s))
	}
	return sha256.Sum256(stack[:copy(stack[:], s.s)])
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.s == "" }

// String returns a redaction.
func (s Secret) String() string { return "[secret]" }

// Format prints the redaction for every verb: %d would print the plaintext.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue implements slog.LogValuer with a redaction.
func (s Secret) LogValue() slog.Value { return slog.StringValue("[secret]") }

// MarshalText redacts: a secret reaches the wire only through Reveal.
func (s Secret) MarshalText() ([]byte, error) { return []byte("[secret]"), nil }

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

// Builtin is the keyspace whose keys guard Keytrail's own doors.
const Builtin KeyspaceID = "keytrail"

// The grammars are byte tables, not regular expressions: they are checked for
// each name of each batch of uses.
type class [256]bool

func classOf(chars string) (c class) {
	for i := 0; i < len(chars); i++ {
		c[chars[i]] = true
	}
	return c
}

const (
	lower  = "abcdefghijklmnopqrstuvwxyz"
	upper  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits = "0123456789"
)

// grammar is a set of words: a first character, further ones, a greatest length.
type grammar struct {
	first, rest class
	max         int
}

func (g *grammar) match(s string) bool {
	if s == "" || len(s) > g.max || !g.first[s[0]] {
		return false
	}
	for i := 1; i < len(s); i++ {
		if !g.rest[s[i]] {
			return false
		}
	}
	return true
}

var (
	keyspaceWord = grammar{classOf(lower), classOf(lower + digits + "-"), 63}
	nameWord     = grammar{classOf(lower + upper + digits + "_"), classOf(lower + upper + digits + "_-"), 64}
	scopeWord    = grammar{classOf(lower + upper + digits + "_"), classOf(lower + upper + digits + "_.:/*-"), 100}
	resourceWord = grammar{classOf(lower + upper + digits + "_"), classOf(lower + upper + digits + "_.:@-"), 128}
	kindWord     = grammar{classOf(lower), classOf(lower + digits + "_"), 32}
)

// Validate reports whether the id follows the grammar of its type.
func (k KeyspaceID) Validate() error {
	if !keyspaceWord.match(string(k)) {
		return fmt.Errorf("keyspace %q: want a lower-case letter, then lower-case letters, digits or '-', 63 characters at most", clip(string(k)))
	}
	return nil
}

// Validate reports whether the id follows the grammar of its type; NoTenant does not.
func (t TenantID) Validate() error {
	if !nameWord.match(string(t)) {
		return fmt.Errorf("tenant %q: want 1 to 64 letters, digits, '_' or '-', not starting with '-'", clip(string(t)))
	}
	return nil
}

// Validate reports whether the id follows the grammar of its type.
func (r RoleID) Validate() error {
	if !nameWord.match(string(r)) {
		return fmt.Errorf("role %q: want 1 to 64 letters, digits, '_' or '-', not starting with '-'", clip(string(r)))
	}
	return nil
}

// ValidScope reports whether s can name a scope: letters, digits and
// "_ . : / * -", starting with a letter, digit or '_', 100 characters at most.
func ValidScope(s string) error {
	if !scopeWord.match(s) {
		return fmt.Errorf("scope %q: want 1 to 100 letters, digits or any of _ . : / * -, starting with a letter, digit or '_'", clip(s))
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
	if !kindWord.match(r.Kind) {
		return fmt.Errorf("resource kind %q: want a lower-case letter, then lower-case letters, digits or '_', 32 characters at most", clip(r.Kind))
	}
	if !resourceWord.match(r.ID) {
		return fmt.Errorf("resource id %q: want 1 to 128 letters, digits or any of _ . : @ -", clip(r.ID))
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
		if !nameWord.match(a.ID) {
			return fmt.Errorf("actor id %q: want the name of a component", clip(a.ID))
		}
	default:
		return fmt.Errorf("actor kind %q: want key or system", clip(string(a.Kind)))
	}
	return nil
}

// clip bounds what an error repeats of its input.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
