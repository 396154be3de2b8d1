package backup

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// magic is the first line of a file.
const magic = "keytrail-backup/v1\n"

// The kinds of a frame.
const (
	kindHeader   = 'h'
	kindStream   = 's'
	kindMessage  = 'm'
	kindManifest = 'e'
)

// MaxDocument is the most bytes of a message's document: what the log takes.
const MaxDocument = 1 << 20

// maxBody bounds the body of a frame, in bytes.
const maxBody = 1 + 8 + 8 + 2 + tree.MaxSubject + MaxDocument

// The streams of a backup.
const (
	Life = "KT_LIFE"
	Read = "KT_READ"
	Use  = "KT_USE"
)

// Streams returns the names of the streams in the order of the file.
func Streams() []string { return []string{Life, Read, Use} }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header says what the file is a backup of.
type Header struct {
	Log      events.LogID      `json:"log"`
	Restored []events.Ancestor `json:"restored,omitempty"` // the logs that this one was restored from, the newest first
	Made     events.Time       `json:"made"`               // by the clock of the machine that made it
}

// Message is one message of a stream.
type Message struct {
	Stream  string
	Seq     uint64
	Stored  int64 // by the log's clock, in nanoseconds since the Unix epoch
	Subject string
	Data    []byte // the document as it is stored
}

// Manifest says what the file holds.
type Manifest struct {
	Log     events.LogID `json:"log"`
	Streams []Extent     `json:"streams"`
	SHA256  events.Hash  `json:"sha256"` // of the file's bytes before the manifest's frame
}

// Extent is what is held of one stream: the messages First to Last, none if Last
// is First-1.
type Extent struct {
	Stream string    `json:"stream"`
	First  uint64    `json:"first"`
	Last   uint64    `json:"last"`
	Root   tree.Hash `json:"root"` // of the Merkle tree over these messages; of KT_LIFE and KT_READ that is the log's own
}

// Messages returns how many messages there are.
func (e *Extent) Messages() uint64 { return e.Last + 1 - e.First }

// Of returns what the manifest says of a stream.
func (m *Manifest) Of(stream string) Extent {
	for _, e := range m.Streams {
		if e.Stream == stream {
			return e
		}
	}
	return Extent{Stream: stream, First: 1}
}

// Fault is a fault of a backup or of a log. Seq is the first sequence of
// Stream that is wrong or missing, 0 when the evidence names none.
type Fault struct {
	Stream string `json:"stream,omitempty"`
	Seq    uint64 `json:"seq,omitempty"`
	Reason string `json:"reason"` // a clause for people
}

func (f *Fault) Error() string {
	switch {
	case f.Stream == "":
		return f.Reason
	case f.Seq == 0:
		return fmt.Sprintf("%s: %s", f.Stream, f.Reason)
	}
	return fmt.Sprintf("%s, sequence %d: %s", f.Stream, f.Seq, f.Reason)
}

// frame appends a frame to dst.
func frame(dst []byte, kind byte, parts ...[]byte) []byte {
	n := 1
	for _, p := range parts {
		n += len(p)
	}
	start := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, uint32(n))
	dst = append(dst, kind)
	for _, p := range parts {
		dst = append(dst, p...)
	}
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// decode reads a JSON object that this release wrote, and nothing else.
func decode(b []byte, v any) error {
	return json.Unmarshal(b, v, json.RejectUnknownMembers(true))
}
