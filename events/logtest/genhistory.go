package logtest

import (
	"encoding/binary"
	"slices"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
)

// GenHistory draws a legal history of at most steps events over several
// keyspaces, tenants, roles and keys, for an empty log, one append a write:
// definitions and limits that change, roles that come and go, keys in every status. What
// events say was there before is what was there.
func GenHistory(steps int) *rapid.Generator[[]events.Write] {
	return rapid.Custom(func(t *rapid.T) []events.Write {
		h := &historian{T: t, story: newStory(1767693600000), spaces: map[events.Aggregate]events.Keyspace{},
			roles: map[events.Aggregate]events.Role{}, tenants: map[events.Aggregate]events.Tenant{}}
		h.define("shop")
		for range rapid.IntRange(0, steps-1).Draw(t, "steps") {
			h.now += events.Time(rapid.Int64Range(0, 1000).Draw(t, "pause"))
			h.step()
		}
		return h.writes
	})
}

type historian struct {
	*rapid.T
	*story
	spaces  map[events.Aggregate]events.Keyspace
	roles   map[events.Aggregate]events.Role
	tenants map[events.Aggregate]events.Tenant
	keys    []events.Key
}

// few draws one of a few names, so that histories meet.
func few[T ~string](t *rapid.T, names ...T) T { return rapid.SampledFrom(names).Draw(t, "name") }

func (h *historian) step() {
	switch n := rapid.IntRange(0, 19).Draw(h.T, "what"); {
	case n == 0:
		h.define(few[events.KeyspaceID](h.T, "shop", "bank", "mail"))
	case n <= 2:
		h.role(few[events.RoleID](h.T, "dev", "ops"))
	case n <= 4:
		h.tenant(few[events.TenantID](h.T, "acme", "globex"))
	case n <= 8 || len(h.keys) == 0:
		h.create(h.space().ID, few[events.TenantID](h.T, "acme", "globex"), events.KeyID{})
	default:
		h.change(&h.keys[rapid.IntRange(0, len(h.keys)-1).Draw(h.T, "key")])
	}
}

func (h *historian) define(id events.KeyspaceID) {
	a := events.KeyspaceAggregate(id)
	was := h.spaces[a]
	d := &events.KeyspaceDefined{Definition: GenDefinition().Draw(h.T, "definition")}
	if was.Exists() {
		d.Before = &was.Definition
	}
	h.spaces[a] = must(was.Next(h.recorded(a, d)))
}

func (h *historian) role(id events.RoleID) {
	a := events.RoleAggregate(h.space().ID, few[events.TenantID](h.T, "acme", "globex"), id)
	was := h.roles[a]
	var d events.Data = &events.RoleDeleted{}
	if !was.Exists() || rapid.Bool().Draw(h.T, "define") {
		scopes := h.scopes()
		if scopes == nil {
			scopes = []string{}
		}
		def := &events.RoleDefined{Level: few(h.T, "", "tenant"), Scopes: scopes}
		if was.Exists() {
			def.Before = was.Scopes
		}
		d = def
	}
	h.roles[a] = must(was.Next(h.recorded(a, d)))
}

func (h *historian) tenant(id events.TenantID) {
	a := events.TenantAggregate(h.space().ID, id)
	was := h.tenants[a]
	h.tenants[a] = must(was.Next(h.recorded(a, &events.TenantLimitUpdated{Before: was.Limit, After: genLimit().Draw(h.T, "tenant limit")})))
}

// space draws one of the keyspaces that are defined.
func (h *historian) space() events.Keyspace {
	var all []events.Keyspace
	for _, id := range []events.KeyspaceID{"bank", "mail", "shop"} {
		if s, ok := h.spaces[events.KeyspaceAggregate(id)]; ok {
			all = append(all, s)
		}
	}
	return rapid.SampledFrom(all).Draw(h.T, "keyspace")
}

// scopes draws scopes of a few catalogues, known to the key's keyspace or not:
// a definition may drop what keys still hold.
func (h *historian) scopes() []string {
	names := []string{"read", "write"}
	for _, s := range h.space().Definition.Scopes {
		names = append(names, s.Name)
	}
	slices.Sort(names)
	return genSet(rapid.SampledFrom(slices.Compact(names)), compareStrings, 4).Draw(h.T, "scopes")
}

func (h *historian) grant() events.Grant {
	return events.Grant{Scopes: h.scopes(), Roles: genSet(rapid.SampledFrom([]events.RoleID{"dev", "none", "ops"}), compareStrings, 2).Draw(h.T, "roles")}
}

func (h *historian) create(ks events.KeyspaceID, tenant events.TenantID, from events.KeyID) *events.Key {
	ref := h.newKey(ks, tenant)
	c := drawCreated(h.T)
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(h.writes)))
	c.Digest = events.NewSecret(string(n[:])).Digest() // each secret once
	c.KeyType = rapid.SampledFrom(h.spaces[events.KeyspaceAggregate(ks)].Definition.KeyTypes).Draw(h.T, "type").Name
	c.RotatedFrom = from
	g := h.grant()
	c.Scopes, c.Roles = g.Scopes, g.Roles
	c.ExpiresAt = h.expiry()
	var d events.Data = &c
	if from.IsZero() && rapid.Bool().Draw(h.T, "import") {
		d = drawImported(h.T, c)
	}
	h.keys = append(h.keys, must(new(events.Key).Next(h.recorded(ref.Aggregate(), d))))
	return &h.keys[len(h.keys)-1]
}

// expiry draws never, or an instant that the history may live to see.
func (h *historian) expiry() events.Time {
	if rapid.Bool().Draw(h.T, "never") {
		return 0
	}
	return h.now + events.Time(rapid.Int64Range(1, 20_000).Draw(h.T, "life"))
}

// change appends one event that the key's life admits now.
func (h *historian) change(k *events.Key) {
	var may []events.Data
	for _, d := range []events.Data{
		&events.KeyScopesAssigned{Before: k.Grant, After: h.grant()},
		&events.KeyResourcesAssigned{Before: k.Resources, After: genResources().Draw(h.T, "resources")},
		&events.KeyAllowlistUpdated{Before: k.Allowlist, After: genAllowlist().Draw(h.T, "allowlist")},
		&events.KeyLimitUpdated{Before: k.Limit, After: genLimit().Draw(h.T, "limit")},
		&events.KeyExpiryChanged{Before: k.ExpiresAt, After: h.expiry()},
		&events.KeyRenamed{Before: k.Label, After: genLabel().Draw(h.T, "label")},
		&events.KeyDisabled{}, &events.KeyEnabled{},
		&events.KeyRotated{Before: k.ExpiresAt},
		&events.KeyRevoked{Code: rapid.SampledFrom(revokeCodes).Draw(h.T, "code")},
		&events.KeyExpired{ExpiredAt: k.ExpiresAt},
	} {
		if k.May(d) == nil {
			may = append(may, d)
		}
	}
	if len(may) == 0 {
		return // its life is over
	}
	d := rapid.SampledFrom(may).Draw(h.T, "change")
	i := slices.IndexFunc(h.keys, func(x events.Key) bool { return x.ID == k.ID })
	switch x := d.(type) {
	case *events.KeyRotated:
		x.Successor = h.create(k.Keyspace, k.Tenant, k.ID).ID // moves h.keys
		x.After = h.now + events.Time(rapid.Int64Range(0, 5000).Draw(h.T, "overlap"))
		if x.Before != 0 {
			x.After = min(x.After, x.Before)
		}
	case *events.KeyExpired:
		h.now = max(h.now, x.ExpiredAt)
	}
	k = &h.keys[i]
	*k = must(k.Next(h.recorded(events.KeyAggregate(k.Keyspace, k.Tenant, k.ID), d)))
}

// recorded adds the event to the story and returns it as the log will.
func (h *historian) recorded(a events.Aggregate, d events.Data) *events.Recorded {
	e := h.add(a, d)
	c := h.chains[a]
	return &events.Recorded{Event: *e, Seq: c.Seq, Stored: e.Time, Hash: c.Head}
}

func must[T any](x T, err error) T {
	if err != nil {
		panic(err)
	}
	return x
}
