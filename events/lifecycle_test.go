package events_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// life folds data into one key and returns it, with a function that makes the
// next recorded event.
func life(t testing.TB, data ...events.Data) (events.Key, func(events.Data) *events.Recorded) {
	t.Helper()
	ref := logtest.NewKeyRef("shop", "acme")
	var k events.Key
	next := func(d events.Data) *events.Recorded {
		c := k.Chain
		w := logtest.Stamp(&c, logtest.Event(ref.Aggregate(), d))
		return &events.Recorded{Event: w.Event, Seq: k.Seq + 1, Stored: w.Event.Time, Hash: c.Head}
	}
	for _, d := range data {
		n, err := k.Next(next(d))
		if err != nil {
			t.Fatal(err)
		}
		k = n
	}
	return k, next
}

const expiry events.Time = 2_000_000_000_000

// Every state against every type of the catalogue: admitted, or refused with a
// TransitionError that names the state (E5).
func TestTransitions(t *testing.T) {
	created := func(change ...func(*events.KeyCreated)) events.Data {
		c := logtest.Created("s")
		c.ExpiresAt = expiry
		for _, f := range change {
			f(c)
		}
		return c
	}
	rotated := &events.KeyRotated{Successor: events.KeyID{9}, Before: expiry, After: expiry - 1}
	states := map[string][]events.Data{
		"none":              nil,
		"active":            {created()},
		"active, for ever":  {created(func(c *events.KeyCreated) { c.ExpiresAt = 0 })},
		"active, imported":  {&events.KeyImported{KeyCreated: *created().(*events.KeyCreated)}},
		"active, rotated":   {created(), rotated},
		"disabled":          {created(), &events.KeyDisabled{}},
		"disabled, rotated": {created(), rotated, &events.KeyDisabled{}},
		"revoked":           {created(), &events.KeyRevoked{Code: events.RevokeCompromise}},
		"expired":           {created(), &events.KeyExpired{ExpiredAt: expiry}},
	}
	live := []string{"active", "active, for ever", "active, imported", "active, rotated", "disabled", "disabled, rotated"}
	var none []string
	admitted := map[events.Type][]string{
		events.TypeKeyCreated:           {"none"},
		events.TypeKeyImported:          {"none"},
		events.TypeKeyScopesAssigned:    live,
		events.TypeKeyResourcesAssigned: live,
		events.TypeKeyAllowlistUpdated:  live,
		events.TypeKeyLimitUpdated:      live,
		events.TypeKeyExpiryChanged:     live,
		events.TypeKeyRenamed:           live,
		events.TypeKeyRevoked:           live,
		events.TypeKeyDisabled:          {"active", "active, for ever", "active, imported", "active, rotated"},
		events.TypeKeyEnabled:           {"disabled", "disabled, rotated"},
		events.TypeKeyRotated:           {"active", "active, for ever", "active, imported"},
		events.TypeKeyExpired:           {"active", "active, imported", "active, rotated", "disabled", "disabled, rotated"},
		events.TypeKeyspaceDefined:      none, events.TypeRoleDefined: none, events.TypeRoleDeleted: none, events.TypeTenantLimitUpdated: none,
		events.TypeAuditQueried: none, events.TypeAuditExported: none, events.TypeAuditExportEnded: none,
	}
	samples := map[events.Type]events.Data{}
	for _, w := range logtest.Samples() {
		samples[w.Event.Type()] = w.Event.Data
	}
	for name, history := range states {
		k, next := life(t, history...)
		for _, typ := range logtest.Types() {
			if _, ok := admitted[typ]; !ok {
				t.Fatalf("%s is not in the table", typ)
			}
			want := slices.Contains(admitted[typ], name)
			d := samples[typ]
			err := k.May(d)
			var refused *events.TransitionError
			if want != (err == nil) || !want && (!errors.As(err, &refused) || refused.Type != typ || refused.Status != k.Status) {
				t.Errorf("%s, %s: %v, want admitted %v", name, typ, err, want)
			}
			if samples[typ] == nil || logtestKind(typ) != events.KindKey {
				continue
			}
			before := k
			n, err := k.Next(next(d))
			if want != (err == nil) || !want && !errors.As(err, &refused) {
				t.Errorf("%s, %s: Next says %v, May %v", name, typ, err, want)
			}
			if !want && !sameKey(n, k) || !sameKey(before, k) {
				t.Errorf("%s, %s: a refused or finished Next changed the key it was given", name, typ)
			}
			if want && (n.Rev != k.Rev+1 || n.Seq != k.Seq+1 || n.Head == k.Head) {
				t.Errorf("%s, %s: the chain did not move on", name, typ)
			}
		}
	}
}

func logtestKind(typ events.Type) events.AggregateKind {
	kind, _, _ := strings.Cut(string(typ), ".")
	return events.AggregateKind(kind)
}

// sameKey compares what Next may change.
func sameKey(a, b events.Key) bool {
	return a.Chain == b.Chain && a.Status == b.Status && a.ExpiresAt == b.ExpiresAt && a.UpdatedAt == b.UpdatedAt && a.RotatedTo == b.RotatedTo &&
		a.Label.Name == b.Label.Name && slices.Equal(a.Grant.Scopes, b.Grant.Scopes)
}

// What each event leaves behind.
func TestFold(t *testing.T) {
	keyID := must(events.ParseKeyID("key_" + ulidText))
	for _, w := range logtest.Samples() {
		if w.Event.Type() == events.TypeKeyRotated {
			keyID = w.Event.Key()
		}
	}
	var history []events.Recorded
	for _, r := range logtest.Records(logtest.Samples()) {
		if r.Key() == keyID {
			history = append(history, r)
		}
	}
	k, err := events.FoldKey(history)
	if err != nil {
		t.Fatal(err)
	}
	created := history[0].Data.(*events.KeyCreated)
	last := history[len(history)-1]
	check := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Errorf("%s is wrong in %+v", what, k)
		}
	}
	check("identity", k.ID == keyID && k.Keyspace == "shop" && k.Tenant == "acme" && k.Digest == created.Digest && k.Hint == created.Hint && k.KeyType == "secret" && k.Environment == "live")
	check("chain", k.Rev == uint64(len(history)) && k.Seq == last.Seq && k.Head == last.Hash)
	check("grant", slices.Equal(k.Grant.Scopes, []string{"read"}) && k.Grant.Roles == nil)
	check("resources", len(k.Resources) == 2)
	check("allowlist", len(k.Allowlist) == 1 && k.Allowlist[0].String() == "198.51.100.7/32")
	check("limit", k.Limit.Plan == "basic")
	check("label", k.Label.Name == "billing, old" && k.Label.Metadata["team"] == "ops")
	check("status", k.Status == events.StatusExpired && k.Exists())
	check("times", k.CreatedAt == history[0].Time && k.UpdatedAt == last.Time && k.ExpiresAt == last.Data.(*events.KeyExpired).ExpiredAt)
	check("lineage", k.RotatedFrom == created.RotatedFrom && !k.RotatedTo.IsZero())
	check("creator", k.CreatedBy == history[0].Actor)

	r, next := life(t, logtest.Created("s"))
	e := next(&events.KeyRevoked{Code: events.RevokeSuperseded})
	r, err = r.Next(e)
	if err != nil || r.RevokedAt != e.Time || r.RevokeCode != events.RevokeSuperseded || r.RevokeNote != e.Reason {
		t.Errorf("revoked: %+v, %v", r, err)
	}
}

// A key is refused from its expiry's own millisecond on, whatever is on record,
// and what is final stays.
func TestStatusAt(t *testing.T) {
	for _, c := range []struct {
		status  events.Status
		expires events.Time
		now     events.Time
		want    events.Status
	}{
		{events.StatusActive, 0, expiry, events.StatusActive},
		{events.StatusActive, expiry, expiry - 1, events.StatusActive},
		{events.StatusActive, expiry, expiry, events.StatusExpired},
		{events.StatusActive, expiry, expiry + 1, events.StatusExpired},
		{events.StatusDisabled, expiry, expiry - 1, events.StatusDisabled},
		{events.StatusDisabled, expiry, expiry, events.StatusExpired},
		{events.StatusRevoked, expiry, expiry, events.StatusRevoked},
		{events.StatusExpired, expiry, expiry - 1, events.StatusExpired},
		{"", 0, expiry, ""},
	} {
		k := events.Key{Status: c.status, ExpiresAt: c.expires}
		if got := k.StatusAt(c.now); got != c.want {
			t.Errorf("%q expiring at %d is %q at %d, want %q", c.status, c.expires, got, c.now, c.want)
		}
	}
}

func TestChainErrors(t *testing.T) {
	k, next := life(t, logtest.Created("s"), &events.KeyDisabled{})
	good := next(&events.KeyEnabled{})
	for name, c := range map[string]struct {
		spoil func(*events.Recorded)
		says  string
	}{
		"gap":            {func(r *events.Recorded) { r.Rev++ }, "rev 4 where rev 3 belongs"},
		"repeat":         {func(r *events.Recorded) { r.Rev-- }, "rev 2 where rev 3 belongs"},
		"altered before": {func(r *events.Recorded) { r.Prev[3] ^= 1 }, "does not carry the hash"},
		"no prev":        {func(r *events.Recorded) { r.Prev = events.Hash{} }, "does not carry the hash"},
		"out of order":   {func(r *events.Recorded) { r.Seq = k.Seq }, ""},
	} {
		r := *good
		c.spoil(&r)
		n, err := k.Next(&r)
		var chain *events.ChainError
		if !errors.As(err, &chain) || chain.Aggregate != r.Aggregate || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "restore the log") {
			t.Errorf("%s: %v", name, err)
		}
		if !sameKey(n, k) {
			t.Errorf("%s: the key moved on", name)
		}
	}
	if _, err := k.Next(good); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if _, err := events.FoldKey([]events.Recorded{*good}); err == nil {
		t.Error("a history that starts in the middle folds")
	}
}

func TestKeyspaceAndRoleNext(t *testing.T) {
	var ks events.Keyspace
	var role events.Role
	var first events.Time
	for _, r := range logtest.Records(logtest.Samples()) {
		var err error
		switch r.Aggregate.Kind {
		case events.KindKeyspace:
			if ks.Rev == 0 {
				first = r.Time
			}
			ks, err = ks.Next(&r)
		case events.KindRole:
			role, err = role.Next(&r)
			if d, ok := r.Data.(*events.RoleDefined); ok && (!role.Exists() || role.Level != d.Level || !slices.Equal(role.Scopes, d.Scopes) || role.ID != "dev" || role.Tenant != "acme") {
				t.Errorf("role after %d: %+v", r.Seq, role)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !ks.Exists() || ks.ID != "shop" || ks.Rev != 2 || ks.Definition.Title != "Shop, wider" || ks.CreatedAt != first || ks.UpdatedAt <= first {
		t.Errorf("keyspace: %+v", ks)
	}
	if role.Exists() || !role.Deleted || role.Rev != 3 || role.Scopes != nil {
		t.Errorf("deleted role: %+v", role)
	}
	again := func(c events.Chain, a events.Aggregate, d events.Data) *events.Recorded {
		w := logtest.Stamp(&c, logtest.Event(a, d))
		return &events.Recorded{Event: w.Event, Seq: c.Seq + 1, Hash: c.Head}
	}
	a := events.RoleAggregate("shop", "acme", "dev")
	if _, err := role.Next(again(role.Chain, a, &events.RoleDeleted{})); err == nil {
		t.Error("a role that does not exist was deleted")
	}
	if r, err := role.Next(again(role.Chain, a, &events.RoleDefined{Scopes: []string{"x"}})); err != nil || !r.Exists() {
		t.Errorf("a deleted role defined anew: %+v, %v", r, err)
	}
	gap := again(role.Chain, a, &events.RoleDefined{})
	gap.Rev++
	var chain *events.ChainError
	if _, err := role.Next(gap); !errors.As(err, &chain) {
		t.Errorf("a gap in a role: %v", err)
	}
	kgap := again(ks.Chain, events.KeyspaceAggregate("shop"), &events.KeyspaceDefined{Definition: ks.Definition})
	kgap.Prev[0] ^= 1
	if _, err := ks.Next(kgap); !errors.As(err, &chain) {
		t.Errorf("an altered keyspace: %v", err)
	}
}

func TestTenantNext(t *testing.T) {
	var tenant events.Tenant
	want := []*keyspace.Limit{{Plan: "basic"}, {PerMinute: 1200, Burst: 2400}}
	var last events.Recorded
	for _, r := range logtest.Records(logtest.Samples()) {
		if r.Aggregate.Kind != events.KindTenant {
			continue
		}
		before := tenant
		n, err := tenant.Next(&r)
		if err != nil {
			t.Fatal(err)
		}
		if tenant != before {
			t.Error("Next changed the tenant it was given")
		}
		tenant, last = n, r
		if i := int(tenant.Rev) - 1; i >= len(want) || *tenant.Limit != *want[i] || tenant.UpdatedAt != r.Time || tenant.Head != r.Hash || tenant.Seq != r.Seq {
			t.Errorf("tenant after %d: %+v", r.Seq, tenant)
		}
	}
	if tenant.Keyspace != "shop" || tenant.ID != "acme" || tenant.Rev != 2 {
		t.Errorf("tenant: %+v", tenant)
	}
	next := func(a events.Aggregate, d events.Data) *events.Recorded {
		c := tenant.Chain
		w := logtest.Stamp(&c, logtest.Event(a, d))
		return &events.Recorded{Event: w.Event, Seq: c.Seq + 1, Hash: c.Head}
	}
	a := events.TenantAggregate("shop", "acme")
	if n, err := tenant.Next(next(a, &events.TenantLimitUpdated{Before: tenant.Limit})); err != nil || n.Limit != nil || n.Rev != 3 {
		t.Errorf("back to the keyspace's default: %+v, %v", n, err)
	}
	var chain *events.ChainError
	for what, spoil := range map[string]func(*events.Recorded){
		"a gap":    func(r *events.Recorded) { r.Rev++ },
		"altered":  func(r *events.Recorded) { r.Prev[0] ^= 1 },
		"repeated": func(r *events.Recorded) { *r = last },
	} {
		r := next(a, &events.TenantLimitUpdated{})
		spoil(r)
		if n, err := tenant.Next(r); !errors.As(err, &chain) || n != tenant {
			t.Errorf("%s: %+v, %v", what, n, err)
		}
	}
	if n, err := tenant.Next(next(events.RoleAggregate("shop", "acme", "dev"), &events.RoleDeleted{})); err == nil || errors.As(err, &chain) || n != tenant {
		t.Errorf("an event of a role: %+v, %v", n, err)
	}
}

// Over random histories the status follows from the last deciding event.
func TestStatusFollowsTheHistory(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		naive := map[events.KeyID]events.Status{}
		folded := map[events.KeyID]events.Key{}
		for _, rec := range logtest.Records(logtest.GenHistory(40).Draw(r, "history")) {
			id := rec.Key()
			if id.IsZero() {
				continue
			}
			switch rec.Type() {
			case events.TypeKeyCreated, events.TypeKeyImported, events.TypeKeyEnabled:
				naive[id] = "active"
				if d, ok := rec.Data.(*events.KeyImported); ok && d.Status != "" {
					naive[id] = d.Status
				}
			case events.TypeKeyDisabled:
				naive[id] = "disabled"
			case events.TypeKeyRevoked:
				naive[id] = "revoked"
			case events.TypeKeyExpired:
				naive[id] = "expired"
			}
			k := folded[id]
			n, err := k.Next(&rec)
			if err != nil {
				r.Fatal(err)
			}
			folded[id] = n
			if n.Status != naive[id] {
				r.Fatalf("%s after event %d is %s, want %s", id, rec.Seq, n.Status, naive[id])
			}
			if rot, ok := rec.Data.(*events.KeyRotated); ok && k.ExpiresAt != 0 && rot.After > k.ExpiresAt {
				r.Fatalf("rotation made %s live longer", id)
			}
		}
	})
}
