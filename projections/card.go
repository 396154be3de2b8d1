package projections

import (
	"encoding/binary"
	"strings"

	"github.com/keytrail/keytrail/events"
)

// card is what the directory keeps of one key: 160 bytes and its text, where the whole
// events.Key takes 480. It is immutable, and replaced when the key changes (P1). What
// keys have in common is stored once.
type card struct {
	chain                     events.Chain
	id                        events.KeyID
	digest                    events.Digest
	expires, created, updated events.Time
	common                    *common
	more                      *more  // nil for most
	text                      string // the hint, then the name
	hint                      uint32 // its length
}

// common is what many keys have in common.
type common struct {
	key   events.Key // Keyspace, Tenant, KeyType, Environment, CreatedBy, Grant, Resources, Allowlist, Limit and Status only
	sum   sum        // of the content
	users int        // cards that are current; the writer's
}

// more is what few keys have.
type more struct {
	metadata               map[string]string
	rotatedFrom, rotatedTo events.KeyID
	revokedAt              events.Time
	revokeCode             events.RevokeCode
	revokeNote             string
}

// key returns the whole key. Its lists are shared.
func (c *card) key() events.Key {
	k := c.common.key
	k.Chain, k.ID, k.Digest = c.chain, c.id, c.digest
	k.Hint, k.Label.Name = c.text[:c.hint], c.name()
	k.ExpiresAt, k.CreatedAt, k.UpdatedAt = c.expires, c.created, c.updated
	if m := c.more; m != nil {
		k.Label.Metadata = m.metadata
		k.RotatedFrom, k.RotatedTo = m.rotatedFrom, m.rotatedTo
		k.RevokedAt, k.RevokeCode, k.RevokeNote = m.revokedAt, m.revokeCode, m.revokeNote
	}
	return k
}

func (c *card) name() string { return c.text[c.hint:] }

func (c *card) status() events.Status { return c.common.key.Status }

func (c *card) statusAt(now events.Time) events.Status { return c.status().At(c.expires, now) }

func (c *card) ref() events.KeyRef {
	return events.KeyRef{Keyspace: c.common.key.Keyspace, Tenant: c.common.key.Tenant, Key: c.id}
}

func (c *card) nameRef() nameRef {
	return nameRef{c.common.key.Keyspace, c.common.key.Tenant, c.name()}
}

// card returns k's. What k is made of may be parts of a whole message, so text is copied;
// what did not change is taken over from old, the card before, and from like, what k was
// made from. Both may be nil.
func (d *Directory) card(k *events.Key, old *card, like *common) *card {
	c := &card{
		chain: k.Chain, id: k.ID, digest: k.Digest, expires: k.ExpiresAt, created: k.CreatedAt, updated: k.UpdatedAt,
		hint: uint32(len(k.Hint)),
	}
	switch {
	case old != nil && old.hint == c.hint && old.text[:c.hint] == k.Hint && old.name() == k.Label.Name:
		c.text = old.text
	case k.Label.Name == "":
		c.text = strings.Clone(k.Hint)
	default:
		c.text = k.Hint + strings.Clone(k.Label.Name)
	}
	if c.common = like; like == nil || !like.of(k) {
		c.common = d.share(k)
	}
	c.common.users++
	if len(k.Label.Metadata) > 0 || !k.RotatedFrom.IsZero() || !k.RotatedTo.IsZero() || k.RevokedAt != 0 || k.RevokeCode != "" || k.RevokeNote != "" {
		c.more = &more{k.Label.Metadata, k.RotatedFrom, k.RotatedTo, k.RevokedAt, events.RevokeCode(d.own(string(k.RevokeCode))), strings.Clone(k.RevokeNote)}
	}
	return c
}

// of reports whether k, which was made from c, has its very parts.
func (c *common) of(k *events.Key) bool {
	was := &c.key
	return k.Status == was.Status && k.Limit == was.Limit && sameList(k.Grant.Scopes, was.Grant.Scopes) && sameList(k.Grant.Roles, was.Grant.Roles) &&
		sameList(k.Resources, was.Resources) && sameList(k.Allowlist, was.Allowlist)
}

// share returns what k has in common with others.
func (d *Directory) share(k *events.Key) *common {
	s := sumCommon(k)
	c := d.commons[s]
	if c == nil {
		c = &common{sum: s, key: events.Key{
			Keyspace: events.KeyspaceID(d.own(string(k.Keyspace))), Tenant: events.TenantID(d.own(string(k.Tenant))),
			KeyType: d.own(k.KeyType), Environment: d.own(k.Environment), Status: events.Status(d.own(string(k.Status))),
			CreatedBy: events.Actor{Kind: events.ActorKind(d.own(string(k.CreatedBy.Kind))), ID: d.own(k.CreatedBy.ID)},
			Grant:     k.Grant, Resources: k.Resources, Allowlist: k.Allowlist, Limit: k.Limit,
		}}
		d.commons[s] = c
	}
	return c
}

// unshare takes one user of c back.
func (d *Directory) unshare(c *common) {
	if c.users--; c.users == 0 {
		delete(d.commons, c.sum)
	}
}

func sumCommon(k *events.Key) sum {
	h := make(encoding, 0, 512)
	for _, s := range []string{string(k.Keyspace), string(k.Tenant), k.KeyType, k.Environment, string(k.Status), string(k.CreatedBy.Kind), k.CreatedBy.ID} {
		h = h.text(s)
	}
	h = h.count(len(k.Grant.Scopes), k.Grant.Scopes == nil)
	for _, s := range k.Grant.Scopes {
		h = h.text(s)
	}
	h = h.count(len(k.Grant.Roles), k.Grant.Roles == nil)
	for _, r := range k.Grant.Roles {
		h = h.text(string(r))
	}
	h = h.count(len(k.Resources), k.Resources == nil)
	for _, r := range k.Resources {
		h = h.text(r.Kind).text(r.ID)
	}
	h = h.count(len(k.Allowlist), k.Allowlist == nil)
	for _, p := range k.Allowlist {
		b, _ := p.MarshalBinary() // never fails
		h = h.text(string(b))
	}
	if h = h.count(0, k.Limit == nil); k.Limit != nil {
		h = h.text(k.Limit.Plan)
		h = binary.AppendVarint(binary.AppendVarint(h, k.Limit.PerMinute), k.Limit.Burst)
	}
	return h.sum()
}

// count begins a list: none at all is another than an empty one.
func (e encoding) count(n int, none bool) encoding {
	if none {
		return append(e, 0)
	}
	return binary.AppendUvarint(e, uint64(n)+1)
}
