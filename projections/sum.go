package projections

import (
	"crypto/sha256"
	"encoding/binary"
)

// sum names a shared value by its content: 128 bits of SHA-256, so that equal
// sums are equal values.
type sum [16]byte

// encoding is what is summed: each text behind its length.
type encoding []byte

func (e encoding) text(s string) encoding {
	return append(binary.AppendUvarint(e, uint64(len(s))), s...)
}

func (e encoding) sum() sum {
	h := sha256.Sum256(e)
	return sum(h[:16])
}
