package events

import (
	"net/netip"
	"slices"
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

// RootTenant is the tenant of the keys that guard Keytrail's own doors.
const RootTenant TenantID = "operators"

// BuiltinDefinition returns the regime of the built-in keyspace. It is written
// to the log at initialisation and cannot be changed through a door.
func BuiltinDefinition() Definition {
	return Definition{
		Title:       "Keytrail operators",
		Description: "Keys that guard Keytrail's own doors.",
		KeyTypes: []KeyType{{
			Name: "operator", Prefix: "kt_", Length: 40,
			Description: "for people and programs that operate Keytrail",
		}},
		Scopes: []ScopeDef{
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

// Principal is who stands at one of Keytrail's own doors: the key presented,
// the power it holds now, and where the request came from. It is what events
// record as their actor.
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

// Reaches reports whether the principal's restrictions admit the tenant of the
// keyspace. NoTenant asks about the keyspace as a whole, which a principal
// restricted to tenants does not reach.
func (p *Principal) Reaches(ks KeyspaceID, tenant TenantID) bool {
	return (len(p.Keyspaces) == 0 || slices.Contains(p.Keyspaces, ks)) &&
		(len(p.Tenants) == 0 || slices.Contains(p.Tenants, tenant))
}

// Covers reports whether a key of the built-in keyspace with these (expanded)
// scopes and resources holds nothing that the principal does not hold itself. A
// creator cannot mint more than it has, nor touch a key that has more.
func (p *Principal) Covers(scopes []string, resources []Resource) bool {
	for _, s := range scopes {
		if !p.Has(s) {
			return false
		}
	}
	var ks []KeyspaceID
	var ts []TenantID
	for _, r := range resources {
		switch r.Kind {
		case ResourceKeyspace:
			ks = append(ks, KeyspaceID(r.ID))
		case ResourceTenant:
			ts = append(ts, TenantID(r.ID))
		}
	}
	return within(ks, p.Keyspaces) && within(ts, p.Tenants)
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
