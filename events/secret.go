package events

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
)

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
