package commands

import (
	"fmt"
	"io"
	"math/bits"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// NewSecret draws a secret of the type's form: its prefix in the environment,
// random characters of its alphabet, each equally likely, and its checksum. An
// error of rand is returned; nothing weaker is used instead.
func NewSecret(t *keyspace.KeyType, environment string, rand io.Reader) (events.Secret, error) {
	chars := t.Alphabet.Chars()
	mask := byte(1)<<bits.Len(uint(len(chars)-1)) - 1 // the smallest 2^n-1 that holds every index
	out := []byte(t.PrefixIn(environment))
	prefix := len(out)
	buf := make([]byte, t.Len())
	for len(out) < prefix+t.Len() {
		if _, err := io.ReadFull(rand, buf); err != nil {
			return events.Secret{}, fmt.Errorf("draw a secret: %w", err)
		}
		for _, b := range buf {
			// An index past the end is drawn again: a remainder would favour the
			// first characters.
			if i := int(b & mask); i < len(chars) && len(out) < prefix+t.Len() {
				out = append(out, chars[i])
			}
		}
	}
	return events.NewSecret(string(t.Checksum.Append(out, out[prefix:]))), nil
}
