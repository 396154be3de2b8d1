package events

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Position says where something stands in one log: the log's identity and a
// sequence. It travels as an opaque token, so that a reader may send it back as
// min_position and read its own write, and a token of another log is refused
// instead of compared.
type Position struct {
	Log LogID
	Seq Seq
}

// positionLen is version, log id, sequence, CRC-32 (IEEE) of what precedes it.
const positionLen = 1 + 16 + 8 + 4

// String returns the token: 39 characters of unpadded base64url.
func (p Position) String() string {
	b := make([]byte, 0, positionLen)
	b = append(b, 1)
	b = append(b, p.Log[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.Seq))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParsePosition reads what String prints. The checksum tells a truncated or
// mistyped token from a real one; it is no signature.
func ParsePosition(s string) (Position, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	// The length is checked because base64 skips line breaks.
	if err != nil || len(s) != base64.RawURLEncoding.EncodedLen(positionLen) || len(b) != positionLen || b[0] != 1 ||
		crc32.ChecksumIEEE(b[:positionLen-4]) != binary.BigEndian.Uint32(b[positionLen-4:]) {
		return Position{}, fmt.Errorf("position: not a token that this service issued")
	}
	return Position{Log: LogID(b[1:17]), Seq: Seq(binary.BigEndian.Uint64(b[17:]))}, nil
}

// MarshalText implements encoding.TextMarshaler.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is as strict as ParsePosition.
func (p *Position) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePosition(string(b))
	return err
}
