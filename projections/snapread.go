package projections

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

var errDamaged = errors.New("it is damaged")

// maxText bounds one text, the longest of which is a keyspace's definition.
const maxText = 8 << 20

// For a header that may be damaged, room is made for so many keys at the most, and
// not before so many have been read.
const (
	mostReserved  = 1 << 20
	firstReserved = 4096
)

// decoder reads records. A failed read sticks in err and yields zero
// values, so err is looked at once per record.
type decoder struct {
	in       io.Reader
	hash     hash.Hash // of what has left buf
	buf      []byte
	pos, end int
	err      error
}

func newDecoder(r io.Reader) decoder {
	return decoder{in: r, hash: sha256.New(), buf: make([]byte, 1<<16)}
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// next returns the next n bytes, valid until the next call.
func (d *decoder) next(n int) []byte {
	if d.end-d.pos < n && d.err == nil {
		d.fill(n)
	}
	if d.err != nil {
		return nil
	}
	d.pos += n
	return d.buf[d.pos-n : d.pos]
}

func (d *decoder) fill(n int) {
	d.hash.Write(d.buf[:d.pos])
	if n > len(d.buf) {
		d.buf = append(bytes.Clone(d.buf[d.pos:d.end]), make([]byte, n)...)
	} else {
		copy(d.buf, d.buf[d.pos:d.end])
	}
	d.end, d.pos = d.end-d.pos, 0
	m, err := io.ReadAtLeast(d.in, d.buf[d.end:], n-d.end)
	d.end += m
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		d.fail(errors.New("it is cut short"))
	case err != nil:
		d.fail(err)
	}
}

func (d *decoder) byte() byte {
	if b := d.next(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) bool() bool { return d.byte() == 1 }

func (d *decoder) uint() (u uint64) {
	if u, n := binary.Uvarint(d.buf[d.pos:d.end]); n > 0 && d.err == nil {
		d.pos += n
		return u
	}
	for shift := 0; ; shift += 7 { // at the end of the buffer
		b := d.byte()
		if shift > 63 {
			d.fail(errDamaged)
		}
		if d.err != nil {
			return 0
		}
		u |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return u
		}
	}
}

func (d *decoder) int() int64 {
	u := d.uint()
	return int64(u>>1) ^ -int64(u&1)
}

// count reads a number that must not pass max.
func (d *decoder) count(max int) int {
	u := d.uint()
	if u > uint64(max) {
		d.fail(errDamaged)
		return 0
	}
	return int(u)
}

func (d *decoder) text() string { return string(d.next(d.count(maxText))) }

func (d *decoder) texts() []string {
	var list []string
	for range d.count(math.MaxUint16) {
		if list = append(list, d.text()); d.err != nil {
			return nil
		}
	}
	return list
}

func (d *decoder) chain() (c events.Chain) {
	c.Rev, c.Seq = d.uint(), events.Seq(d.uint())
	copy(c.Head[:], d.next(len(c.Head)))
	return c
}

func (d *decoder) time() events.Time { return events.Time(d.int()) }

// status reads the status of a key.
func (d *decoder) status() events.Status {
	switch s := events.Status(d.next(d.count(maxText))); s {
	case events.StatusActive:
		return events.StatusActive
	case events.StatusDisabled:
		return events.StatusDisabled
	case events.StatusRevoked:
		return events.StatusRevoked
	case events.StatusExpired:
		return events.StatusExpired
	}
	d.fail(errDamaged)
	return ""
}

// header reads the header of a snapshot of the view that begins with magic; keys
// is what it says, to be checked.
func (d *decoder) header(magic, view string, log events.LogID) (h history, keys uint64, err error) {
	if b := d.next(len(magic)); string(b) != magic {
		if d.err != nil {
			return h, 0, d.err
		}
		return h, 0, fmt.Errorf("it is not a snapshot of %s", view)
	}
	if v := d.uint(); d.err == nil && v != snapshotVersion {
		return h, 0, fmt.Errorf("it is of version %d, this release reads version %d", v, snapshotVersion)
	}
	var id events.LogID
	if copy(id[:], d.next(len(id))); d.err == nil && id != log {
		return h, 0, fmt.Errorf("it is of log %s, this log is %s", id, log)
	}
	h.at = events.Seq(d.uint())
	copy(h.hash[:], d.next(len(h.hash)))
	if t := d.next(d.count(maxText)); d.err == nil && (h.tree.UnmarshalBinary(t) != nil || h.tree.Size() != uint64(h.at)) {
		d.fail(errDamaged)
	}
	h.unproven = h.at > 0
	return h, d.uint(), d.err
}

// sum checks that what was read has the sum that follows it, and that nothing
// follows that.
func (d *decoder) sum() error {
	d.hash.Write(d.buf[:d.pos])
	d.buf, d.pos, d.end = d.buf[d.pos:d.end], 0, d.end-d.pos
	want := d.hash.Sum(nil)
	if got := d.next(sha256.Size); d.err != nil || !bytes.Equal(got, want) {
		d.fail(errDamaged)
		return d.err
	}
	if n, _ := io.ReadFull(d.in, make([]byte, 1)); n > 0 || d.pos < d.end {
		return errDamaged
	}
	return nil
}

func (d *decoder) limitFields() *keyspace.Limit {
	return &keyspace.Limit{Plan: d.text(), PerMinute: d.int(), Burst: d.int()}
}

func (d *decoder) maybeLimit() *keyspace.Limit {
	if d.bool() {
		return d.limitFields()
	}
	return nil
}

// spaceState reads what encoder.spaceState writes.
func (d *decoder) spaceState(id events.KeyspaceID) (s events.Keyspace) {
	s = events.Keyspace{Chain: d.chain(), ID: id, CreatedAt: d.time(), UpdatedAt: d.time()}
	def, retired := d.text(), d.text()
	if d.err == nil && (json.Unmarshal([]byte(def), &s.Definition) != nil || json.Unmarshal([]byte(retired), &s.Retired) != nil) {
		d.fail(errDamaged)
	}
	return s
}

// tenantState reads what encoder.tenantState writes.
func (d *decoder) tenantState(ks events.KeyspaceID, id events.TenantID) *events.Tenant {
	return &events.Tenant{Keyspace: ks, ID: id, Chain: d.chain(), UpdatedAt: d.time(), Limit: d.maybeLimit()}
}
