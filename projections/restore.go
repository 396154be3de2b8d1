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
	"net/netip"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
)

// LoadKeys reads what Snapshot wrote of the same log. It refuses, with a
// sentence, what is no snapshot, of another version or another log, cut short,
// or altered in any bit. Whether the log still holds the position is the
// caller's to check, as LoadFile does.
func LoadKeys(r io.Reader, log events.LogID) (*Keys, error) {
	d := &decoder{in: r, hash: sha256.New(), buf: make([]byte, 1<<16), view: NewKeys()}
	if err := d.decode(log); err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return d.view, nil
}

var errDamaged = errors.New("it is damaged; delete it, the view will be folded from the log")

// maxText bounds one text, the longest of which is a keyspace's definition.
const maxText = 8 << 20

// decoder reads records into a view. A failed read sticks in err and yields zero
// values, so err is looked at once per record.
type decoder struct {
	in       io.Reader
	hash     hash.Hash // of what has left buf
	buf      []byte
	pos, end int
	err      error

	view      *Keys
	spaces    []counted[Keyspace]
	classes   []counted[Class]
	grants    []counted[grant]
	resources []counted[resources]
	allows    []counted[allowlist]
	limits    []counted[events.Limit]
	terms     []counted[terms]
}

// counted is a shared value and how many users it has had so far.
type counted[V any] use[V]

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
		d.fail(errors.New("it is cut short; delete it, the view will be folded from the log"))
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

// share returns value number i and counts the use; 0 is none.
func share[V any](d *decoder, list []counted[V], i uint64) *V {
	if i == 0 {
		return nil
	}
	if i > uint64(len(list)) {
		d.fail(errDamaged)
		return nil
	}
	list[i-1].n++
	return list[i-1].v
}

// need is share of what there must be.
func need[V any](d *decoder, list []counted[V], i uint64) *V {
	v := share(d, list, i)
	if v == nil {
		d.fail(errDamaged)
	}
	return v
}

func (d *decoder) decode(log events.LogID) error {
	if magic := d.next(len(snapshotMagic)); string(magic) != snapshotMagic {
		if d.err != nil {
			return d.err
		}
		return errors.New("it is not a snapshot of keys")
	}
	if v := d.uint(); d.err == nil && v != snapshotVersion {
		return fmt.Errorf("it is of version %d, this release reads version %d; delete it, the view will be folded from the log", v, snapshotVersion)
	}
	var id events.LogID
	if copy(id[:], d.next(len(id))); d.err == nil && id != log {
		return fmt.Errorf("it is of log %s, this log is %s; delete it, or connect to the log it belongs to", id, log)
	}
	seq, keys := d.uint(), d.uint()
	for d.err == nil {
		switch tag := d.byte(); tag {
		case recKeyspace:
			d.keyspace()
		case recTenant:
			d.tenant()
		case recRole:
			d.role()
		case recReader:
			id := d.text()
			d.view.readers[id] = d.chain()
		case recClass:
			d.class()
		case recGrant:
			d.grant()
		case recResources:
			d.resourceList()
		case recAllow:
			d.allowlist()
		case recLimit:
			d.limits = append(d.limits, counted[events.Limit]{v: d.limit()})
		case recTerms:
			d.combination()
		case recKey:
			d.key()
		case recEnd:
			return d.finish(events.Seq(seq), keys)
		default:
			d.fail(errDamaged)
		}
	}
	return d.err
}

// finish checks the sum and completes the view.
func (d *decoder) finish(seq events.Seq, keys uint64) error {
	d.hash.Write(d.buf[:d.pos])
	d.buf, d.pos, d.end = d.buf[d.pos:d.end], 0, d.end-d.pos
	want := d.hash.Sum(nil)
	if got := d.next(sha256.Size); d.err != nil || !bytes.Equal(got, want) {
		d.fail(errDamaged)
		return d.err
	}
	if n, _ := io.ReadFull(d.in, make([]byte, 1)); n > 0 || d.pos < d.end {
		return errDamaged // something follows the end
	}
	v := d.view
	if uint64(v.Len()) != keys {
		return errDamaged
	}
	adopt(v.classes, d.classes, (*Class).ref)
	adopt(v.terms, d.terms, func(t *terms) terms { return *t })
	adopt(v.grants, d.grants, func(g *grant) sum { return g.key })
	adopt(v.resources, d.resources, func(r *resources) sum { return r.key })
	adopt(v.allows, d.allows, func(a *allowlist) sum { return a.key })
	adopt(v.limits, d.limits, func(l *events.Limit) events.Limit { return *l })
	for _, g := range d.grants {
		v.index(g.v)
	}
	v.advance(seq)
	return nil
}

func adopt[K comparable, V any](p pool[K, V], list []counted[V], key func(*V) K) {
	for _, c := range list {
		p[key(c.v)] = use[V](c)
	}
}

func (d *decoder) keyspace() {
	id := events.KeyspaceID(d.text())
	s := newKeyspace(id)
	s.state = events.Keyspace{Chain: d.chain(), ID: id, CreatedAt: d.time(), UpdatedAt: d.time()}
	def, retired, checksums := d.text(), d.text(), d.bool()
	if d.err != nil {
		return
	}
	var plans []events.Plan
	if json.Unmarshal([]byte(def), &s.state.Definition) != nil || json.Unmarshal([]byte(retired), &plans) != nil {
		d.fail(errDamaged)
		return
	}
	g := newRegime(s.state.Definition, plans)
	g.Checksums = checksums
	s.current.Store(g)
	d.spaces = append(d.spaces, counted[Keyspace]{v: s})
	if s.state.Exists() {
		d.view.publish(s)
	} else {
		d.view.undefined[id] = s
	}
}

func (d *decoder) limit() *events.Limit {
	return &events.Limit{Plan: d.text(), PerMinute: d.int(), Burst: d.int()}
}

func (d *decoder) tenant() {
	space, id := need(d, d.spaces, d.uint()), events.TenantID(d.text())
	state := &events.Tenant{ID: id, Chain: d.chain(), UpdatedAt: d.time()}
	if d.bool() {
		state.Limit = d.limit()
	}
	if d.err != nil {
		return
	}
	state.Keyspace = space.ID
	t := d.view.tenant(space, id)
	t.state = state
	t.limit.Store(state.Limit)
}

func (d *decoder) role() {
	ref := roleRef{events.KeyspaceID(d.text()), events.TenantID(d.text()), events.RoleID(d.text())}
	d.view.roles[ref] = &events.Role{Keyspace: ref.space, Tenant: ref.tenant, ID: ref.role,
		Chain: d.chain(), Deleted: d.bool(), Scopes: d.texts()}
}

func (d *decoder) class() {
	space := need(d, d.spaces, d.uint())
	c := &Class{events.TenantID(d.text()), d.text(), d.text(), events.Status(d.text()), space, nil}
	if d.err == nil {
		c.Whole = d.view.tenant(space, c.Tenant)
	}
	switch c.Status {
	case events.StatusActive, events.StatusDisabled, events.StatusRevoked, events.StatusExpired:
	default:
		d.fail(errDamaged)
	}
	d.classes = append(d.classes, counted[Class]{v: c})
}

func (d *decoder) grant() {
	g := &grant{space: need(d, d.spaces, d.uint()), tenant: events.TenantID(d.text()), keyType: d.text()}
	g.given.Scopes = d.texts()
	for _, r := range d.texts() {
		g.given.Roles = append(g.given.Roles, events.RoleID(r))
	}
	if d.err == nil {
		g.key = sumGrant(g.space, g.tenant, g.keyType, g.given)
		d.grants = append(d.grants, counted[grant]{v: g})
	}
}

func (d *decoder) resourceList() {
	r := new(resources)
	for range d.count(events.MaxResources) {
		if d.err != nil {
			return
		}
		r.list = append(r.list, events.Resource{Kind: d.text(), ID: d.text()})
	}
	r.key = sumResources(r.list)
	d.resources = append(d.resources, counted[resources]{v: r})
}

func (d *decoder) allowlist() {
	list := make([]netip.Prefix, d.count(events.MaxAllowlist))
	for i := range list {
		if err := list[i].UnmarshalBinary(d.next(d.count(maxText))); err != nil || !list[i].IsValid() {
			d.fail(errDamaged)
			return
		}
	}
	d.allows = append(d.allows, counted[allowlist]{v: newAllowlist(sumPrefixes(list), list)})
}

func (d *decoder) combination() {
	t := &terms{need(d, d.grants, d.uint()), share(d, d.resources, d.uint()), share(d, d.allows, d.uint()), share(d, d.limits, d.uint())}
	d.terms = append(d.terms, counted[terms]{v: t})
}

func (d *decoder) key() {
	k := &Key{turned: d.bool()}
	copy(k.ID[:], d.next(len(k.ID)))
	copy(k.Digest[:], d.next(len(k.Digest)))
	k.ExpiresAt = d.time()
	k.rev = uint32(d.count(math.MaxUint32))
	copy(k.head[:], d.next(len(k.head)))
	k.Class = need(d, d.classes, d.uint())
	k.terms = need(d, d.terms, d.uint())
	if d.err != nil {
		return
	}
	if _, _, limited := k.Limit(k.Space.Regime()); limited {
		k.bucket.Store(new(Bucket))
	}
	d.view.put(k, nil)
}
