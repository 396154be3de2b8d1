package projections

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

// A snapshot is what the fold of a view came to at one position, so that a start
// reads it and the tail instead of the whole log (P7). It is a stream of
// records, each a letter and its fields; what keys share stands once, before the
// first that uses it, and is numbered by its order:
//
//	header   magic of the view, version, log id, position, hash of the event there,
//	         compact range of the tree up to there, number of keys
//	…        the view's records
//	z        end, then the SHA-256 of everything before
//
// SHA-256 costs a twentieth of the load where the processor has instructions for
// it, and a checksum that cannot be met by chance or by hand ends all questions
// about a file. encoding/gob was rejected: it is reflective, three times slower
// and cannot share values.
const (
	snapshotVersion = 6
	recEnd          = 'z'
)

// encoder writes records. The first failed write sticks in out.
type encoder struct {
	out  *bufio.Writer
	hash hash.Hash
	buf  []byte // the record at hand
}

func newEncoder(w io.Writer) encoder {
	h := sha256.New()
	return encoder{out: bufio.NewWriterSize(io.MultiWriter(w, h), 1<<16), hash: h}
}

func (e *encoder) header(magic string, log events.LogID, h history, keys int) {
	e.bytes([]byte(magic))
	e.uint(snapshotVersion)
	e.bytes(log[:])
	e.uint(uint64(h.at))
	e.bytes(h.hash[:])
	t, _ := h.tree.MarshalBinary() // never fails
	e.text(string(t))
	e.uint(uint64(keys))
	e.flush()
}

// end completes the snapshot: w is where it was written.
func (e *encoder) end(w io.Writer) error {
	e.byte(recEnd)
	e.flush()
	err := e.out.Flush()
	if err == nil {
		_, err = w.Write(e.hash.Sum(nil))
	}
	if err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// flush writes the record at hand.
func (e *encoder) flush() {
	e.out.Write(e.buf) // end returns the first error
	e.buf = e.buf[:0]
}

func (e *encoder) byte(b byte)        { e.buf = append(e.buf, b) }
func (e *encoder) uint(u uint64)      { e.buf = binary.AppendUvarint(e.buf, u) }
func (e *encoder) int(i int64)        { e.buf = binary.AppendVarint(e.buf, i) }
func (e *encoder) time(t events.Time) { e.int(int64(t)) }
func (e *encoder) bytes(b []byte)     { e.buf = append(e.buf, b...) }
func (e *encoder) text(s string)      { e.uint(uint64(len(s))); e.buf = append(e.buf, s...) }

func (e *encoder) bool(b bool) {
	if b {
		e.byte(1)
	} else {
		e.byte(0)
	}
}

func (e *encoder) texts(list []string) {
	e.uint(uint64(len(list)))
	for _, s := range list {
		e.text(s)
	}
}

func (e *encoder) chain(c events.Chain) {
	e.uint(c.Rev)
	e.uint(uint64(c.Seq))
	e.bytes(c.Head[:])
}

func (e *encoder) limitFields(l *keyspace.Limit) {
	e.text(l.Plan)
	e.int(l.PerMinute)
	e.int(l.Burst)
}

// maybeLimit writes a limit that may be nil.
func (e *encoder) maybeLimit(l *keyspace.Limit) {
	if e.bool(l != nil); l != nil {
		e.limitFields(l)
	}
}

// spaceState writes what the events say of a keyspace, without its id.
func (e *encoder) spaceState(s *events.Keyspace) error {
	def, err := json.Marshal(s.Definition, json.Deterministic(true))
	if err != nil {
		return err
	}
	retired, err := json.Marshal(s.Retired, json.Deterministic(true))
	if err != nil {
		return err
	}
	e.chain(s.Chain)
	e.time(s.CreatedAt)
	e.time(s.UpdatedAt)
	e.text(string(def))
	e.text(string(retired))
	return nil
}

// tenantState writes what the events say of a tenant, without its names.
func (e *encoder) tenantState(t *events.Tenant) {
	e.chain(t.Chain)
	e.time(t.UpdatedAt)
	e.maybeLimit(t.Limit)
}
