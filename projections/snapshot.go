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
)

// A snapshot is what a fold of Keys came to at one position, so that a start
// reads it and the tail instead of the whole log (P7). It is a stream of
// records, each a letter and its fields; what keys share stands once, before the
// first that uses it, and is numbered by its order:
//
//	header   magic, version, log id, position, number of keys
//	s        keyspace    n  tenant    o  role      h  a reader's history
//	c        class       g  grant     r  resources   a  allowlist   l  limit
//	t        terms: the numbers of their parts
//	k        key; the owners of their digest first
//	z        end, then the SHA-256 of everything before
//
// SHA-256 costs a twentieth of the load where the processor has instructions for
// it, and a checksum that cannot be met by chance or by hand ends all questions
// about a file. encoding/gob was rejected: it is reflective, three times slower
// and cannot share values.
const (
	snapshotMagic   = "KEYTRAIL-KEYS\n"
	snapshotVersion = 2
)

const (
	recKeyspace  = 's'
	recTenant    = 'n'
	recRole      = 'o'
	recReader    = 'h'
	recClass     = 'c'
	recGrant     = 'g'
	recResources = 'r'
	recAllow     = 'a'
	recLimit     = 'l'
	recTerms     = 't'
	recKey       = 'k'
	recEnd       = 'z'
)

// picture is a view at one position. Everything in it is immutable.
type picture struct {
	at      events.Seq
	spaces  []spacePicture
	tenants map[tenantRef]*events.Tenant // that have events
	roles   map[roleRef]*events.Role
	readers map[string]events.Chain
	keys    []*Key // owners of their digest first, so that they own it again (P6)
}

// tenantRef names a tenant of a keyspace.
type tenantRef struct {
	space  *Keyspace
	tenant events.TenantID
}

type spacePicture struct {
	*Keyspace
	state  events.Keyspace
	regime *Regime
}

// picture stops the fold for as long as it takes to copy one pointer per key
// (some ms for a million) and readers not at all.
func (v *Keys) picture() *picture {
	v.mu.Lock()
	defer v.mu.Unlock()
	p := &picture{at: v.At(), tenants: make(map[tenantRef]*events.Tenant), roles: make(map[roleRef]*events.Role), readers: make(map[string]events.Chain), keys: make([]*Key, 0, v.Len())}
	add := func(s *Keyspace) {
		p.spaces = append(p.spaces, spacePicture{s, s.state, s.current.Load()})
	}
	for _, s := range *v.spaces.Load() {
		add(s)
	}
	for _, s := range v.undefined {
		add(s)
	}
	for space, tenants := range v.tenants {
		for id, t := range tenants {
			if t.state != nil {
				p.tenants[tenantRef{space, id}] = t.state
			}
		}
	}
	for ref, r := range v.roles {
		p.roles[ref] = r
	}
	for id, c := range v.readers {
		p.readers[id] = c
	}
	for k := range v.digests.all {
		p.keys = append(p.keys, k)
	}
	if len(p.keys) < v.Len() {
		for k := range v.ids.all {
			if v.Lookup(k.Digest).ID != k.ID {
				p.keys = append(p.keys, k)
			}
		}
	}
	return p
}

// Snapshot writes the view as of its position to w. It may be called while the
// view is followed and read. The file helpers are SaveFile and LoadFile.
func (v *Keys) Snapshot(w io.Writer, log events.LogID) error {
	_, err := v.snapshot(w, log)
	return err
}

func (v *Keys) snapshot(w io.Writer, log events.LogID) (events.Seq, error) {
	p := v.picture()
	h := sha256.New()
	e := &encoder{
		out: bufio.NewWriterSize(io.MultiWriter(w, h), 1<<16), hash: h,
		spaces: numbers[*Keyspace]{}, classes: numbers[*Class]{}, grants: numbers[*grant]{}, resources: numbers[*resources]{},
		allows: numbers[*allowlist]{}, limits: numbers[*events.Limit]{}, terms: numbers[*terms]{},
	}
	if err := e.encode(p, log); err != nil {
		return 0, fmt.Errorf("write snapshot: %w", err)
	}
	if _, err := w.Write(h.Sum(nil)); err != nil {
		return 0, fmt.Errorf("write snapshot: %w", err)
	}
	return p.at, nil
}

// numbers gives each shared value the number of its first appearance.
type numbers[V comparable] map[V]uint64

// number returns v's number, from 1 on, and whether it is new. None is 0.
func (n numbers[V]) number(v V) (uint64, bool) {
	var none V
	if v == none {
		return 0, false
	}
	i, known := n[v]
	if !known {
		i = uint64(len(n) + 1)
		n[v] = i
	}
	return i, !known
}

type encoder struct {
	out  *bufio.Writer
	hash hash.Hash
	buf  []byte // the record at hand

	spaces    numbers[*Keyspace]
	classes   numbers[*Class]
	grants    numbers[*grant]
	resources numbers[*resources]
	allows    numbers[*allowlist]
	limits    numbers[*events.Limit]
	terms     numbers[*terms]
}

func (e *encoder) byte(b byte)    { e.buf = append(e.buf, b) }
func (e *encoder) uint(u uint64)  { e.buf = binary.AppendUvarint(e.buf, u) }
func (e *encoder) int(i int64)    { e.buf = binary.AppendVarint(e.buf, i) }
func (e *encoder) bytes(b []byte) { e.buf = append(e.buf, b...) }
func (e *encoder) text(s string)  { e.uint(uint64(len(s))); e.buf = append(e.buf, s...) }
func (e *encoder) chain(c events.Chain) {
	e.uint(c.Rev)
	e.uint(uint64(c.Seq))
	e.bytes(c.Head[:])
}

// flush writes the record at hand; bufio keeps the first error.
func (e *encoder) flush() {
	e.out.Write(e.buf)
	e.buf = e.buf[:0]
}

func (e *encoder) encode(p *picture, log events.LogID) error {
	e.bytes([]byte(snapshotMagic))
	e.uint(snapshotVersion)
	e.bytes(log[:])
	e.uint(uint64(p.at))
	e.uint(uint64(len(p.keys)))
	e.flush()
	for _, s := range p.spaces {
		if err := e.keyspace(s); err != nil {
			return err
		}
	}
	for ref, t := range p.tenants {
		space, _ := e.spaces.number(ref.space)
		e.byte(recTenant)
		e.uint(space)
		e.text(string(ref.tenant))
		e.chain(t.Chain)
		e.int(int64(t.UpdatedAt))
		e.bool(t.Limit != nil)
		if t.Limit != nil {
			e.limitFields(t.Limit)
		}
		e.flush()
	}
	for ref, r := range p.roles {
		e.byte(recRole)
		e.text(string(ref.space))
		e.text(string(ref.tenant))
		e.text(string(ref.role))
		e.chain(r.Chain)
		e.bool(r.Deleted)
		e.texts(r.Scopes)
		e.flush()
	}
	for id, c := range p.readers {
		e.byte(recReader)
		e.text(id)
		e.chain(c)
		e.flush()
	}
	for _, k := range p.keys {
		e.key(k)
	}
	e.byte(recEnd)
	e.flush()
	return e.out.Flush()
}

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

func (e *encoder) keyspace(s spacePicture) error {
	def, err := json.Marshal(s.state.Definition, json.Deterministic(true))
	if err != nil {
		return err
	}
	retired, err := json.Marshal(s.regime.retired, json.Deterministic(true))
	if err != nil {
		return err
	}
	e.spaces.number(s.Keyspace)
	e.byte(recKeyspace)
	e.text(string(s.ID))
	e.chain(s.state.Chain)
	e.int(int64(s.state.CreatedAt))
	e.int(int64(s.state.UpdatedAt))
	e.text(string(def))
	e.text(string(retired))
	e.bool(s.regime.Checksums)
	e.flush()
	return nil
}

func (e *encoder) key(k *Key) {
	class, terms := e.class(k.Class), e.combination(k.terms)
	e.byte(recKey)
	e.bool(k.turned)
	e.bytes(k.ID[:])
	e.bytes(k.Digest[:])
	e.int(int64(k.ExpiresAt))
	e.uint(uint64(k.rev))
	e.bytes(k.head[:])
	e.uint(class)
	e.uint(terms)
	e.flush()
}

func (e *encoder) class(c *Class) uint64 {
	n, isNew := e.classes.number(c)
	if isNew {
		space, _ := e.spaces.number(c.Space)
		e.byte(recClass)
		e.uint(space)
		e.text(string(c.Tenant))
		e.text(c.KeyType)
		e.text(c.Environment)
		e.text(string(c.Status))
		e.flush()
	}
	return n
}

func (e *encoder) combination(t *terms) uint64 {
	n, isNew := e.terms.number(t)
	if isNew {
		grant, resources, allow, limit := e.grant(t.grant), e.resourceList(t.resources), e.allowlist(t.allow), e.limit(t.limit)
		e.byte(recTerms)
		e.uint(grant)
		e.uint(resources)
		e.uint(allow)
		e.uint(limit)
		e.flush()
	}
	return n
}

func (e *encoder) grant(g *grant) uint64 {
	n, isNew := e.grants.number(g)
	if isNew {
		space, _ := e.spaces.number(g.space)
		e.byte(recGrant)
		e.uint(space)
		e.text(string(g.tenant))
		e.text(g.keyType)
		e.texts(g.given.Scopes)
		e.uint(uint64(len(g.given.Roles)))
		for _, r := range g.given.Roles {
			e.text(string(r))
		}
		e.flush()
	}
	return n
}

func (e *encoder) resourceList(r *resources) uint64 {
	n, isNew := e.resources.number(r)
	if isNew {
		e.byte(recResources)
		e.uint(uint64(len(r.list)))
		for _, x := range r.list {
			e.text(x.Kind)
			e.text(x.ID)
		}
		e.flush()
	}
	return n
}

func (e *encoder) allowlist(a *allowlist) uint64 {
	n, isNew := e.allows.number(a)
	if isNew {
		e.byte(recAllow)
		e.uint(uint64(len(a.list)))
		for _, p := range a.list {
			b, _ := p.MarshalBinary() // never fails
			e.text(string(b))
		}
		e.flush()
	}
	return n
}

func (e *encoder) limit(l *events.Limit) uint64 {
	n, isNew := e.limits.number(l)
	if isNew {
		e.byte(recLimit)
		e.limitFields(l)
		e.flush()
	}
	return n
}

func (e *encoder) limitFields(l *events.Limit) {
	e.text(l.Plan)
	e.int(l.PerMinute)
	e.int(l.Burst)
}
