package projections

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/keytrail/keytrail/events"
)

// directoryMagic begins a snapshot of Directory (snapwrite.go describes the file). Its
// records:
//
//	m  memory of the history
//	s  keyspace    n  tenant    o  role
//	t  terms: what many keys have in common
//	k  key, in the order of creation
//
// Terms are shared by their bytes. So a view that was loaded holds once what a
// view that was folded holds for each key.
const directoryMagic = "KEYTRAIL-DIRECTORY\n"

// directoryPicture is the view at one position. Everything in it is immutable.
type directoryPicture struct {
	past    history
	memory  memory
	spaces  []*events.Keyspace
	tenants []*events.Tenant
	roles   []*events.Role
	keys    []placedKey
}

type placedKey struct {
	created events.Seq
	card    *card
}

// picture stops the fold for as long as it takes to copy one pointer per key.
func (d *Directory) picture() *directoryPicture {
	d.mu.RLock()
	defer d.mu.RUnlock()
	p := &directoryPicture{past: d.past, memory: d.memory.clone(), keys: make([]placedKey, 0, d.count)}
	for _, s := range d.spaces {
		p.spaces = append(p.spaces, s)
	}
	for _, t := range d.tenants {
		p.tenants = append(p.tenants, t)
	}
	for _, r := range d.roles {
		p.roles = append(p.roles, r)
	}
	for _, l := range d.lists {
		for _, e := range l.all {
			p.keys = append(p.keys, placedKey{e.created, e.key.Load()})
		}
	}
	return p
}

// inOrder puts what is not a key into an order of its own content (P10).
func (p *directoryPicture) inOrder() {
	slices.SortFunc(p.spaces, func(a, b *events.Keyspace) int { return cmp.Compare(a.ID, b.ID) })
	slices.SortFunc(p.tenants, func(a, b *events.Tenant) int {
		return cmp.Or(cmp.Compare(a.Keyspace, b.Keyspace), cmp.Compare(a.ID, b.ID))
	})
	slices.SortFunc(p.roles, func(a, b *events.Role) int {
		return roleRef{a.Keyspace, a.Tenant, a.ID}.compare(roleRef{b.Keyspace, b.Tenant, b.ID})
	})
}

// Snapshot writes the view as of its position to w and returns the position. It
// may be called while the view is followed and read.
func (d *Directory) Snapshot(w io.Writer, log events.LogID) (events.Seq, error) {
	return d.picture().write(w, log)
}

// Export writes what Keys.Export does.
func (d *Directory) Export(w io.Writer, log events.LogID) (events.Seq, error) {
	p := d.picture()
	p.memory.recent = nil
	return p.write(w, log)
}

func (p *directoryPicture) write(w io.Writer, log events.LogID) (events.Seq, error) {
	// Over all keyspaces, so that whoever owns a digest comes first (P6).
	slices.SortFunc(p.keys, func(a, b placedKey) int { return cmp.Compare(a.created, b.created) })
	p.inOrder()
	e := &directoryEncoder{encoder: newEncoder(w), terms: map[string]uint64{}}
	e.header(directoryMagic, log, p.past, len(p.keys))
	e.memory(&p.memory)
	for _, s := range p.spaces {
		e.byte(recKeyspace)
		e.text(string(s.ID))
		if err := e.spaceState(s); err != nil {
			return 0, fmt.Errorf("write snapshot: %w", err)
		}
		e.flush()
	}
	for _, t := range p.tenants {
		e.byte(recTenant)
		e.text(string(t.Keyspace))
		e.text(string(t.ID))
		e.tenantState(t)
		e.flush()
	}
	for _, r := range p.roles {
		e.role(r)
	}
	for _, k := range p.keys {
		whole := k.card.key()
		e.key(k.created, &whole)
	}
	return p.past.at, e.end(w)
}

type directoryEncoder struct {
	encoder
	terms map[string]uint64 // the number of each by its bytes, from 1 on
}

func (e *directoryEncoder) role(r *events.Role) {
	e.byte(recRole)
	e.text(string(r.Keyspace))
	e.text(string(r.Tenant))
	e.text(string(r.ID))
	e.chain(r.Chain)
	e.text(r.Level)
	e.text(r.Description)
	e.texts(r.Scopes)
	e.bool(r.Deleted)
	e.time(r.UpdatedAt)
	e.flush()
}

func (e *directoryEncoder) key(created events.Seq, k *events.Key) {
	terms := e.termsOf(k)
	e.byte(recKey)
	e.uint(uint64(created))
	e.chain(k.Chain)
	e.bytes(k.ID[:])
	e.bytes(k.Digest[:])
	e.uint(terms)
	e.text(k.Hint)
	e.text(k.Label.Name)
	e.uint(uint64(len(k.Label.Metadata)))
	for _, name := range slices.Sorted(maps.Keys(k.Label.Metadata)) {
		e.text(name)
		e.text(k.Label.Metadata[name])
	}
	e.time(k.ExpiresAt)
	e.time(k.CreatedAt)
	e.time(k.UpdatedAt)
	e.text(string(k.Status))
	e.bytes(k.RotatedFrom[:])
	e.bytes(k.RotatedTo[:])
	e.time(k.RevokedAt)
	e.text(string(k.RevokeCode))
	e.text(k.RevokeNote)
	e.flush()
}

// termsOf returns the number of what k has in common with others.
func (e *directoryEncoder) termsOf(k *events.Key) uint64 {
	e.byte(recTerms)
	e.text(string(k.Keyspace))
	e.text(string(k.Tenant))
	e.text(k.KeyType)
	e.text(k.Environment)
	e.text(string(k.CreatedBy.Kind))
	e.text(k.CreatedBy.ID)
	e.texts(k.Grant.Scopes)
	e.uint(uint64(len(k.Grant.Roles)))
	for _, r := range k.Grant.Roles {
		e.text(string(r))
	}
	e.uint(uint64(len(k.Resources)))
	for _, r := range k.Resources {
		e.text(r.Kind)
		e.text(r.ID)
	}
	e.uint(uint64(len(k.Allowlist)))
	for _, p := range k.Allowlist {
		b, _ := p.MarshalBinary() // never fails
		e.text(string(b))
	}
	e.maybeLimit(k.Limit)
	n, known := e.terms[string(e.buf)]
	if known {
		e.buf = e.buf[:0]
		return n
	}
	n = uint64(len(e.terms) + 1)
	e.terms[string(e.buf)] = n
	e.flush()
	return n
}
