package backup

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// Writer writes a backup. It is not safe for concurrent use.
type Writer struct {
	w    *bufio.Writer
	sum  hash.Hash
	log  events.LogID
	done []Extent // of the streams so far; the last one is being written
	tree tree.Range
	buf  []byte
}

// NewWriter begins a backup.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	b := &Writer{w: bufio.NewWriterSize(w, 1<<20), sum: sha256.New(), log: h.Log}
	text, err := json.Marshal(&h)
	if err != nil {
		return nil, fmt.Errorf("backup: header: %w", err)
	}
	return b, b.put(frame([]byte(magic), kindHeader, text))
}

// Stream begins the next stream, whose first message has this sequence.
func (b *Writer) Stream(name string, first uint64) error {
	b.end()
	if i := len(b.done); i >= len(Streams()) || Streams()[i] != name {
		return fmt.Errorf("backup: stream %s: want %v in this order", name, Streams())
	}
	b.done, b.tree = append(b.done, Extent{Stream: name, First: first, Last: first - 1}), tree.Range{}
	b.buf = frame(b.buf[:0], kindStream, binary.BigEndian.AppendUint64(nil, first), []byte(name))
	return b.put(b.buf)
}

// Put writes the stream's next message.
func (b *Writer) Put(m *Message) error {
	if len(b.done) == 0 {
		return fmt.Errorf("backup: message %d before a stream", m.Seq)
	}
	e := &b.done[len(b.done)-1]
	if m.Seq != e.Last+1 || len(m.Subject) > tree.MaxSubject || len(m.Data) > MaxDocument {
		return fmt.Errorf("backup: %s: message %d with %d bytes: want message %d with at most %d bytes", e.Stream, m.Seq, len(m.Data), e.Last+1, MaxDocument)
	}
	e.Last = m.Seq
	b.tree.Append(tree.LeafHash(m.Subject, sha256.Sum256(m.Data)))
	var head [18]byte
	binary.BigEndian.PutUint64(head[:], m.Seq)
	binary.BigEndian.PutUint64(head[8:], uint64(m.Stored))
	binary.BigEndian.PutUint16(head[16:], uint16(len(m.Subject)))
	b.buf = frame(b.buf[:0], kindMessage, head[:], []byte(m.Subject), m.Data)
	return b.put(b.buf)
}

// Close writes the manifest and flushes. The backup is whole if it returns no
// error; the caller makes it durable.
func (b *Writer) Close() (Manifest, error) {
	b.end()
	m := Manifest{Log: b.log, Streams: slices.Clone(b.done), SHA256: events.Hash(b.sum.Sum(nil))}
	if len(b.done) != len(Streams()) {
		return m, fmt.Errorf("backup: %d streams: want %d", len(b.done), len(Streams()))
	}
	text, err := json.Marshal(&m)
	if err != nil {
		return m, fmt.Errorf("backup: manifest: %w", err)
	}
	if err := b.put(frame(b.buf[:0], kindManifest, text)); err != nil {
		return m, err
	}
	return m, b.w.Flush()
}

// end notes the root of the stream that was written last.
func (b *Writer) end() {
	if n := len(b.done); n > 0 {
		b.done[n-1].Root = b.tree.Root()
	}
}

func (b *Writer) put(p []byte) error {
	b.sum.Write(p) // never fails
	_, err := b.w.Write(p)
	return err
}
