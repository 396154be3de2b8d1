package projections

import (
	"fmt"
	"io"
	"math"
	"net/netip"
	"sync"

	"github.com/keytrail/keytrail/events"
)

// LoadDirectory reads what Directory.Snapshot wrote of the same log. It refuses, as
// LoadKeys does, whatever is not exactly that.
func LoadDirectory(r io.Reader, log events.LogID) (*Directory, error) {
	d := &directoryDecoder{decoder: newDecoder(r), view: NewDirectory(), read: make(chan []entry, 4)}
	var indexed sync.WaitGroup
	indexed.Go(d.index)
	err := d.decode(log)
	close(d.read)
	indexed.Wait()
	if err != nil {
		return nil, fmt.Errorf("read snapshot: %w", err)
	}
	return d.view, nil
}

// index enters the keys that were read under their digests and names, beside the
// goroutine that reads: each index costs a miss of the processor's caches per key.
func (d *directoryDecoder) index() {
	v, n := d.view, 0
	for batch := range d.read {
		for i := range batch {
			e := &batch[i]
			c := e.key.Load()
			v.claim(c, e)
			if lives(c.status()) {
				v.names.add(c.nameRef(), e)
			}
		}
		if n += len(batch); n == firstReserved {
			v.digests.reserve(d.reserve)
			v.names.reserve(d.reserve)
		}
	}
}

// directoryTerms are what many keys have in common, and where those are listed.
type directoryTerms struct {
	key  events.Key // nothing else is set
	last *common    // of the last key that had these
	place
}

type directoryDecoder struct {
	decoder
	view    *Directory
	terms   []directoryTerms
	created events.Seq // of the last key read
	reserve int        // keys to make room for
	batch   []entry    // keys read, not yet handed on
	read    chan []entry
}

func (d *directoryDecoder) decode(log events.LogID) error {
	h, keys, err := d.header(directoryMagic, "the directory", log)
	if err != nil {
		return err
	}
	v := d.view
	d.reserve = int(min(keys, mostReserved))
	for d.err == nil {
		switch tag := d.byte(); tag {
		case recMemory:
			v.memory = d.memory(h.at)
		case recKeyspace:
			s := d.spaceState(events.KeyspaceID(d.text()))
			v.spaces[s.ID] = &s
			v.compile(&s)
		case recTenant:
			t := d.tenantState(events.KeyspaceID(d.text()), events.TenantID(d.text()))
			v.tenants[spaceTenant{t.Keyspace, t.ID}] = t
		case recRole:
			r := d.role()
			v.roles[roleRef{r.Keyspace, r.Tenant, r.ID}] = r
		case recTerms:
			k := d.common()
			d.terms = append(d.terms, directoryTerms{k, nil, v.place(k.Keyspace, k.Tenant)})
		case recKey:
			d.key()
			if v.count == firstReserved { // growing step by step would cost a third of the load
				v.ids.reserve(d.reserve)
			}
		case recEnd:
			if err := d.sum(); err != nil {
				return err
			}
			d.read <- d.batch
			if uint64(v.Len()) != keys || d.created > h.at || !v.memory.of(&h) {
				return errDamaged
			}
			v.past, v.timed.from = h, h.at
			return nil
		default:
			d.fail(errDamaged)
		}
	}
	return d.err
}

func (d *directoryDecoder) role() *events.Role {
	return &events.Role{Keyspace: events.KeyspaceID(d.text()), Tenant: events.TenantID(d.text()), ID: events.RoleID(d.text()),
		Chain: d.chain(), Level: d.text(), Description: d.text(), Scopes: d.texts(), Deleted: d.bool(), UpdatedAt: d.time()}
}

// common reads terms. Names come from the view, which keeps one copy of each.
func (d *directoryDecoder) common() (k events.Key) {
	name := func() string { return d.view.own(d.text()) }
	k.Keyspace, k.Tenant = events.KeyspaceID(name()), events.TenantID(name())
	k.KeyType, k.Environment = name(), name()
	k.CreatedBy = events.Actor{Kind: events.ActorKind(name()), ID: name()}
	for range d.count(math.MaxUint16) {
		if k.Grant.Scopes = append(k.Grant.Scopes, name()); d.err != nil {
			return k
		}
	}
	for range d.count(math.MaxUint16) {
		if k.Grant.Roles = append(k.Grant.Roles, events.RoleID(name())); d.err != nil {
			return k
		}
	}
	for range d.count(events.MaxResources) {
		if k.Resources = append(k.Resources, events.Resource{Kind: name(), ID: d.text()}); d.err != nil {
			return k
		}
	}
	for range d.count(events.MaxAllowlist) {
		var p netip.Prefix
		if err := p.UnmarshalBinary(d.next(d.count(maxText))); err != nil || !p.IsValid() {
			d.fail(errDamaged)
			return k
		}
		k.Allowlist = append(k.Allowlist, p)
	}
	k.Limit = d.maybeLimit()
	return k
}

func (d *directoryDecoder) key() {
	created, chain := events.Seq(d.uint()), d.chain()
	var id events.KeyID
	var digest events.Digest
	copy(id[:], d.next(len(id)))
	copy(digest[:], d.next(len(digest)))
	n := d.uint()
	if d.err == nil && (n == 0 || n > uint64(len(d.terms)) || created <= d.created || d.view.byID(&id) != nil) {
		d.fail(errDamaged)
	}
	if d.err != nil {
		return
	}
	d.created = created
	terms := &d.terms[n-1]
	k := terms.key
	k.Chain, k.ID, k.Digest = chain, id, digest
	k.Hint, k.Label.Name = d.text(), d.text()
	if n := d.count(math.MaxUint16); n > 0 {
		k.Label.Metadata = make(map[string]string)
		for range n {
			name := d.view.own(d.text())
			if k.Label.Metadata[name] = d.text(); d.err != nil {
				return
			}
		}
	}
	k.ExpiresAt, k.CreatedAt, k.UpdatedAt = d.time(), d.time(), d.time()
	k.Status = d.status()
	copy(k.RotatedFrom[:], d.next(len(k.RotatedFrom)))
	copy(k.RotatedTo[:], d.next(len(k.RotatedTo)))
	k.RevokedAt, k.RevokeCode, k.RevokeNote = d.time(), events.RevokeCode(d.view.own(d.text())), d.text()
	if d.err != nil {
		return
	}
	if cap(d.batch) == 0 {
		d.batch = make([]entry, 0, 512)
	}
	d.batch = append(d.batch, entry{created: created})
	e := &d.batch[len(d.batch)-1]
	c := d.view.card(&k, nil, terms.last)
	terms.last = c.common
	e.key.Store(c)
	terms.add(e)
	d.view.ids.insert(e)
	d.view.count++
	if len(d.batch) == cap(d.batch) {
		d.read <- d.batch
		d.batch = nil
	}
}
