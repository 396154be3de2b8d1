package backup

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"math"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/tree"
)

// Reader reads a backup and trusts none of it: every error of the content is a
// *Fault that names the first sequence that cannot be had. It is not safe for
// concurrent use.
type Reader struct {
	r        *bufio.Reader
	sum      hash.Hash
	header   Header
	manifest Manifest
	seen     []Extent // the last one is being read; roots are not known here
	head     [4]byte  // the frame that was read last: its length,
	buf      []byte   // and its body and checksum
	err      error    // which every later call returns
}

// NewReader reads the header.
func NewReader(r io.Reader) (*Reader, error) {
	b := &Reader{r: bufio.NewReaderSize(r, 1<<20), sum: sha256.New()}
	var line [len(magic)]byte
	if _, err := io.ReadFull(b.r, line[:]); err != nil && !short(err) {
		return nil, err
	} else if err != nil || string(line[:]) != magic {
		return nil, &Fault{Reason: fmt.Sprintf("this is no backup of a Keytrail log that this release reads: want the first line %q", magic[:len(magic)-1])}
	}
	b.sum.Write(line[:])
	body, err := b.frame()
	if err != nil {
		return nil, err
	}
	b.count()
	if body[0] != kindHeader || decode(body[1:], &b.header) != nil || b.header.Log.IsZero() {
		return nil, &Fault{Reason: "the header of the backup cannot be read"}
	}
	return b, nil
}

// Header returns what the file says that it is a backup of.
func (b *Reader) Header() Header { return b.header }

// Manifest returns the manifest once Next has returned io.EOF. Its roots are for
// the caller to compare.
func (b *Reader) Manifest() Manifest { return b.manifest }

// Next returns the next message; its Data is the caller's only until the next
// call. At the end, when the manifest is there, agrees with what was read and is
// followed by nothing, it returns io.EOF. Other errors are *Fault, or those of the underlying reader.
func (b *Reader) Next() (Message, error) {
	if b.err != nil {
		return Message{}, b.err
	}
	m, err := b.next()
	b.err = err
	return m, err
}

func (b *Reader) next() (Message, error) {
	for {
		body, err := b.frame()
		if err != nil {
			return Message{}, err
		}
		if body[0] != kindManifest { // whose digest is that of all before it
			b.count()
		}
		switch kind, rest := body[0], body[1:]; kind {
		case kindStream:
			if err := b.stream(rest); err != nil {
				return Message{}, err
			}
		case kindMessage:
			return b.message(rest)
		case kindManifest:
			return Message{}, b.end(rest)
		default:
			return Message{}, b.fault("a frame of an unknown kind")
		}
	}
}

// fault is about the message that should come next.
func (b *Reader) fault(format string, args ...any) error {
	f := &Fault{Reason: fmt.Sprintf(format, args...)}
	if n := len(b.seen); n > 0 {
		f.Stream, f.Seq = b.seen[n-1].Stream, b.seen[n-1].Last+1
	}
	return f
}

// frame reads the body of the next frame, at least one byte.
func (b *Reader) frame() ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(b.r, head[:]); err != nil {
		return nil, b.cut(err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxBody {
		return nil, b.fault("damaged: a frame of %d bytes, want 1 to %d", n, maxBody)
	}
	// The buffer grows with what arrives: a length alone costs no memory.
	buf := bytes.NewBuffer(b.buf[:0])
	_, err := io.CopyN(buf, b.r, int64(n)+4)
	if b.buf = buf.Bytes(); err != nil {
		return nil, b.cut(err)
	}
	body, sum := b.buf[:n], binary.BigEndian.Uint32(b.buf[n:])
	if crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, body) != sum {
		return nil, b.fault("damaged: the checksum does not hold")
	}
	b.head = head
	return body, nil
}

// count adds the frame that was read last to the digest.
func (b *Reader) count() {
	b.sum.Write(b.head[:])
	b.sum.Write(b.buf)
}

func (b *Reader) cut(err error) error {
	if short(err) {
		return b.fault("the file ends here, without its manifest: it was cut, or never finished")
	}
	return err
}

func short(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

func (b *Reader) stream(rest []byte) error {
	i := len(b.seen)
	if i >= len(Streams()) || len(rest) < 8 || string(rest[8:]) != Streams()[i] {
		return b.fault("a stream begins that does not belong here")
	}
	first := binary.BigEndian.Uint64(rest)
	if first == 0 || first > math.MaxInt64 || Streams()[i] != Use && first != 1 {
		return &Fault{Stream: Streams()[i], Seq: 1, Reason: fmt.Sprintf("missing: the stream begins at sequence %d", first)}
	}
	b.seen = append(b.seen, Extent{Stream: Streams()[i], First: first, Last: first - 1})
	return nil
}

func (b *Reader) message(rest []byte) (m Message, err error) {
	if len(b.seen) == 0 {
		return m, b.fault("a message before the first stream")
	}
	e := &b.seen[len(b.seen)-1]
	if len(rest) < 18 {
		return m, b.fault("a message that is too short")
	}
	m = Message{Stream: e.Stream, Seq: binary.BigEndian.Uint64(rest), Stored: int64(binary.BigEndian.Uint64(rest[8:]))}
	n := int(binary.BigEndian.Uint16(rest[16:]))
	if rest = rest[18:]; n > len(rest) || n > tree.MaxSubject || len(rest)-n > MaxDocument {
		return m, b.fault("a message whose lengths do not fit")
	}
	if m.Seq != e.Last+1 {
		return m, b.fault("missing: sequence %d comes next", m.Seq)
	}
	m.Subject, m.Data = string(rest[:n]), rest[n:]
	e.Last = m.Seq
	return m, nil
}

// end compares the manifest with what was read.
func (b *Reader) end(text []byte) error {
	if err := decode(text, &b.manifest); err != nil {
		return &Fault{Reason: "the manifest cannot be read"}
	}
	if _, err := b.r.ReadByte(); !short(err) {
		return &Fault{Reason: "something follows the manifest"}
	}
	m := &b.manifest
	if m.Log != b.header.Log || len(m.Streams) != len(Streams()) {
		return &Fault{Reason: "the manifest is of another backup"}
	}
	for i, name := range Streams() {
		want := m.Streams[i]
		if want.Stream != name {
			return &Fault{Reason: "the manifest is of another backup"}
		}
		if i >= len(b.seen) {
			return &Fault{Stream: name, Seq: want.First, Reason: "missing: the file does not hold the stream"}
		}
		got := b.seen[i]
		switch {
		case got.First != want.First:
			return &Fault{Stream: name, Seq: min(got.First, want.First), Reason: fmt.Sprintf("the stream begins at sequence %d, the manifest says %d", got.First, want.First)}
		case got.Last != want.Last:
			return &Fault{Stream: name, Seq: min(got.Last, want.Last) + 1, Reason: fmt.Sprintf("the stream ends at sequence %d, the manifest says %d", got.Last, want.Last)}
		}
	}
	if m.SHA256 != events.Hash(b.sum.Sum(nil)) {
		return &Fault{Reason: "the SHA-256 of the file is not the manifest's"}
	}
	return io.EOF
}
