package events

import (
	"net/netip"
	"slices"

	"github.com/keytrail/keytrail/events/keyspace"
)

// The scopes of the built-in keyspace, one per duty. ScopeAdmin implies all.
const (
	ScopeAdmin          = "admin"
	ScopeKeysRead       = "keys:read"
	ScopeKeysWrite      = "keys:write"
	ScopeKeyspacesRead  = "keyspaces:read"
	ScopeKeyspacesWrite = "keyspaces:write"
	ScopeAuditRead      = "audit:read"
	ScopeAuditExport    = "audit:export"
)

// The kinds of resource to which a key of the built-in keyspace may be
// restricted.
const (
	ResourceKeyspace = "keyspace"
	ResourceTenant   = "tenant"
)

// RootTenant is the tenant of the keys that guard Keytrail's own endpoints.
const RootTenant TenantID = "operators"

// BuiltinDefinition returns the definition of the built-in keyspace. It is written
// to the log at initialisation and cannot be changed through an endpoint.
func BuiltinDefinition() keyspace.Definition {
	return keyspace.Definition{
		Title:       "Keytrail operators",
		Description: "Keys that guard Keytrail's own endpoints.",
		KeyTypes: []keyspace.KeyType{{
			Name: "operator", Prefix: "kt_", Length: 40,
			Description: "for people and programs that operate Keytrail",
		}},
		Scopes: []keyspace.ScopeDef{
			{Name: ScopeAdmin, Description: "everything", Implies: []string{ScopeKeysRead, ScopeKeysWrite, ScopeKeyspacesRead, ScopeKeyspacesWrite, ScopeAuditRead, ScopeAuditExport}},
			{Name: ScopeAuditExport, Description: "take copies of the record", Implies: []string{ScopeAuditRead}},
			{Name: ScopeAuditRead, Description: "read the record"},
			{Name: ScopeKeysRead, Description: "list and read keys, roles and their histories"},
			{Name: ScopeKeysWrite, Description: "create, change, rotate and revoke keys and roles", Implies: []string{ScopeKeysRead}},
			{Name: ScopeKeyspacesRead, Description: "list and read keyspaces"},
			{Name: ScopeKeyspacesWrite, Description: "define keyspaces", Implies: []string{ScopeKeyspacesRead}},
		},
		Resources: []string{ResourceKeyspace, ResourceTenant},
	}
}

// Principal is who calls one of Keytrail's own endpoints: the key presented, the
// power it holds now, and where the request came from. It is what events record
// as their actor.
//
// A restriction to tenants alone is one to tenants of products: it never admits
// the built-in keyspace, whose keys all belong to tenants such as RootTenant. Only
// a principal without restriction, or one whose restriction names the built-in
// keyspace, enters it.
type Principal struct {
	Actor     Actor
	Scopes    []string     // expanded, sorted
	Keyspaces []KeyspaceID // what it is restricted to; empty = all
	Tenants   []TenantID   // what it is restricted to; empty = all
	IP        netip.Addr
	UserAgent string
	RequestID string
}

// Has reports whether the principal holds scope.
func (p *Principal) Has(scope string) bool { return slices.Contains(p.Scopes, scope) }

// Restrict restricts the principal to the resources of its key.
func (p *Principal) Restrict(resources []Resource) {
	p.Keyspaces, p.Tenants = nil, nil
	for _, r := range resources {
		switch r.Kind {
		case ResourceKeyspace:
			p.Keyspaces = append(p.Keyspaces, KeyspaceID(r.ID))
		case ResourceTenant:
			p.Tenants = append(p.Tenants, TenantID(r.ID))
		}
	}
}

// Enters reports whether the principal's restrictions admit anything of the
// keyspace.
func (p *Principal) Enters(ks KeyspaceID) bool {
	if len(p.Keyspaces) > 0 {
		return slices.Contains(p.Keyspaces, ks)
	}
	return len(p.Tenants) == 0 || ks != Builtin
}

// Reaches reports whether the principal's restrictions admit the tenant of the
// keyspace. NoTenant asks about the keyspace as a whole, which a principal
// restricted to tenants does not reach.
func (p *Principal) Reaches(ks KeyspaceID, tenant TenantID) bool {
	return p.Enters(ks) && (len(p.Tenants) == 0 || slices.Contains(p.Tenants, tenant))
}

// Covers reports whether a key of the built-in keyspace with these (expanded)
// scopes and resources holds nothing that the principal does not hold itself. A
// creator cannot mint more than it has, nor touch a key that has more.
func (p *Principal) Covers(scopes []string, resources []Resource) bool {
	key := Principal{Scopes: scopes}
	key.Restrict(resources)
	return p.Contains(&key)
}

// Contains reports whether other holds nothing that p does not hold itself.
func (p *Principal) Contains(other *Principal) bool {
	for _, s := range other.Scopes {
		if !p.Has(s) {
			return false
		}
	}
	return within(other.Keyspaces, p.Keyspaces) && within(other.Tenants, p.Tenants) &&
		(p.Enters(Builtin) || !other.Enters(Builtin))
}

// Narrow takes from the principal what other does not hold. It reports whether the
// two reach anything in common; when they do not, p reaches nothing and must not
// be used.
func (p *Principal) Narrow(other *Principal) bool {
	enters := p.Enters(Builtin) && other.Enters(Builtin)
	p.Scopes = slices.DeleteFunc(slices.Clone(p.Scopes), func(s string) bool { return !other.Has(s) })
	var ks, ts bool
	p.Keyspaces, ks = intersect(p.Keyspaces, other.Keyspaces)
	p.Tenants, ts = intersect(p.Tenants, other.Tenants)
	if len(p.Keyspaces) > 0 && !enters {
		p.Keyspaces = slices.DeleteFunc(slices.Clone(p.Keyspaces), func(id KeyspaceID) bool { return id == Builtin })
		ks = ks && len(p.Keyspaces) > 0
	}
	return ks && ts
}

// intersect returns the restriction that admits what both admit; an empty one
// admits everything. ok is false when they have nothing in common.
func intersect[T comparable](a, b []T) (out []T, ok bool) {
	switch {
	case len(a) == 0:
		return b, true
	case len(b) == 0:
		return a, true
	}
	out = slices.DeleteFunc(slices.Clone(a), func(x T) bool { return !slices.Contains(b, x) })
	return out, len(out) > 0
}

// within reports whether restriction inner admits nothing that outer does not;
// an empty restriction admits everything.
func within[T comparable](inner, outer []T) bool {
	if len(outer) == 0 {
		return true
	}
	if len(inner) == 0 {
		return false
	}
	for _, x := range inner {
		if !slices.Contains(outer, x) {
			return false
		}
	}
	return true
}
