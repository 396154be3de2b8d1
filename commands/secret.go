package commands

import (
	"fmt"
	"io"

	"github.com/keytrail/keytrail/events"
)

// NewSecret draws a secret of the type's form: its prefix and random characters
// of its alphabet, each equally likely. An error of rand is returned; nothing
// weaker is used instead.
func NewSecret(t *events.KeyType, rand io.Reader) (events.Secret, error) {
	chars := t.Alphabet.Chars()
	mask := byte(63) // the smallest 2^n-1 that holds every index
	if len(chars) <= 16 {
		mask = 15
	}
	out := make([]byte, len(t.Prefix), len(t.Prefix)+t.Len())
	copy(out, t.Prefix)
	buf := make([]byte, t.Len())
	for len(out) < cap(out) {
		if _, err := io.ReadFull(rand, buf); err != nil {
			return events.Secret{}, fmt.Errorf("draw a secret: %w", err)
		}
		for _, b := range buf {
			// An index past the end is drawn again: a remainder would favour the
			// first characters.
			if i := int(b & mask); i < len(chars) && len(out) < cap(out) {
				out = append(out, chars[i])
			}
		}
	}
	return events.NewSecret(string(out)), nil
}
