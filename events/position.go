package events

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Position says where something stands in one history of one log. It travels as an
// opaque token, so that a reader may send it back as min_position and read its own
// write. A token of another log, or of another history of the same log, is refused
// and not compared: a log that was restored from an older copy and written on has the
// same id, and other events at the same sequences.
type Position struct {
	Log     LogID
	Seq     Seq
	History Fingerprint
}

// Fingerprint tells the histories of one log apart at one position. It protects
// from a mistake, not from a forger: a token gives no rights.
type Fingerprint [8]byte

// NewFingerprint returns the fingerprint of a position: the first four bytes of the
// hash of the event there, then the first four of the root of the tree over the
// first events of the log, as many as the largest multiple of 4,096 up to it. The
// hash of an event differs after two histories parted, and every follower has it
// for nothing; the root shows an event that was altered further back. Where there is
// no event, or no such root, the hash is zero.
func NewFingerprint(event, root Hash) (f Fingerprint) {
	copy(f[:4], event[:])
	copy(f[4:], root[:])
	return f
}

// Event returns the part that is of the event.
func (f Fingerprint) Event() [4]byte { return [4]byte(f[:4]) }

// Root returns the part that is of the root.
func (f Fingerprint) Root() [4]byte { return [4]byte(f[4:]) }

// positionLen is version, log id, sequence, fingerprint, CRC-32 (IEEE) of what
// precedes it.
const positionLen = 1 + 16 + 8 + 8 + 4

// String returns the token: 50 characters of unpadded base64url.
func (p Position) String() string { return string(p.Append(make([]byte, 0, 50))) }

// Append appends what String returns to dst.
func (p Position) Append(dst []byte) []byte {
	b := make([]byte, 0, positionLen)
	b = append(b, 1)
	b = append(b, p.Log[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(p.Seq))
	b = append(b, p.History[:]...)
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.AppendEncode(dst, b)
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
	return Position{Log: LogID(b[1:17]), Seq: Seq(binary.BigEndian.Uint64(b[17:])), History: Fingerprint(b[25:33])}, nil
}

// MarshalText implements encoding.TextMarshaler.
func (p Position) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is as strict as ParsePosition.
func (p *Position) UnmarshalText(b []byte) (err error) {
	*p, err = ParsePosition(string(b))
	return err
}
