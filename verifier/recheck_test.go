package verifier

import (
	"errors"
	"net/http/httptest"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
)

// TestACallerIsRechecked: who streams an answer is told the newest state of its key,
// and pays nothing for it.
func TestACallerIsRechecked(t *testing.T) {
	for name, c := range map[string]struct {
		data events.Data
		want string // code of the problem, "" = none
	}{
		"nothing happens":      {nil, ""},
		"renamed":              {&events.KeyRenamed{Before: events.Label{Name: "test"}, After: events.Label{Name: "other"}}, ""},
		"revoked":              {&events.KeyRevoked{Code: events.RevokeCompromise}, "key_revoked"},
		"disabled":             {&events.KeyDisabled{}, "key_disabled"},
		"without the scope":    {&events.KeyScopesAssigned{Before: events.Grant{Scopes: []string{events.ScopeAuditExport}}, After: events.Grant{Scopes: []string{events.ScopeKeysRead}}}, "scope_missing"},
		"with a wider scope":   {&events.KeyScopesAssigned{Before: events.Grant{Scopes: []string{events.ScopeAuditExport}}, After: events.Grant{Scopes: []string{events.ScopeAdmin}}}, ""},
		"restricted to tenant": {&events.KeyResourcesAssigned{After: []events.Resource{{Kind: events.ResourceTenant, ID: "acme"}}}, "resource_not_allowed"},
		"from elsewhere only":  {&events.KeyAllowlistUpdated{After: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}, "address_not_allowed"},
	} {
		synctest.Test(t, func(t *testing.T) { // no time passes, so that the ledger holds what it has
			w, secret := operatorsWorld(t, events.ScopeAuditExport)
			r := httptest.NewRequest("POST", "/v1/audit/exports", nil)
			r.Header.Set("Authorization", "Bearer "+secret)
			caller, err := w.node.Authenticate(r, events.ScopeAuditExport, "POST /v1/audit/exports")
			if err != nil {
				t.Fatal(err)
			}
			if c.data != nil {
				id, _ := events.ParseKeyID(caller.Principal.Actor.ID)
				w.put(events.KeyAggregate(events.Builtin, events.RootTenant, id), c.data)
			}
			before := w.ledger.Buffered()
			for range 3 {
				got := caller.Recheck()
				var p *api.Problem
				if errors.As(got, &p); (got == nil) != (c.want == "") || p != nil && p.Code != c.want {
					t.Errorf("%s: %v, want %q", name, got, c.want)
				}
			}
			if w.ledger.Buffered() != before {
				t.Errorf("%s: it is on the record", name)
			}
			w.node.lease.ended.Store(true)
			if caller.Recheck() == nil {
				t.Errorf("%s: a node without a lease lets it go on", name)
			}
		})
	}
}
