package projections

import (
	"bytes"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

var testLog = events.LogID{1, 2, 3}

// TestTwin lets random histories run through both views and compares every
// answer with that of code which recomputes everything from the events, at every
// step. On the way the views are saved and loaded (P7) at random, and batches overlap
// (P3). At the end their exports are those of views that were folded at once (P10).
func TestTwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		keys, dir := NewKeys(), NewDirectory()
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			for range rapid.IntRange(1, 3).Draw(rt, "batch") {
				w.step(rt)
			}
			from := int(keys.At()) - rapid.IntRange(0, min(2, int(keys.At()))).Draw(rt, "overlap")
			if len(w.log) == from {
				continue
			}
			if err := (fanout{keys, dir}).Apply(w.log[from:]); err != nil {
				rt.Fatal(err)
			}
			if rapid.IntRange(0, 4).Draw(rt, "save and load") == 0 {
				keys = reload(rt, keys, LoadKeys)
				apply(t, keys, w)
			}
			if rapid.IntRange(0, 4).Draw(rt, "save and load the directory") == 0 {
				dir = reload(rt, dir, LoadDirectory)
				apply(t, dir, w)
			}
			compareKeys(rt, w, keys)
			compareDirectory(rt, w, dir)
			checkPools(rt, keys)
		}
		full := NewKeys()
		if err := full.Apply(w.log); len(w.log) > 0 && err != nil {
			rt.Fatal(err)
		}
		compareKeys(rt, w, full)
		fullDir := NewDirectory()
		if err := fullDir.Apply(w.log); len(w.log) > 0 && err != nil {
			rt.Fatal(err)
		}
		for _, views := range [][2]View{{keys, full}, {dir, fullDir}} { // P10
			if a, b := export(t, views[0]), export(t, views[1]); !bytes.Equal(a, b) {
				rt.Fatalf("exports of the %s differ between a view that was loaded on the way and one that was folded from the begin:\n%q\n%q", views[0].Name(), a, b)
			}
		}
	})
}

func export(t testing.TB, v View) []byte {
	var buf bytes.Buffer
	if _, err := v.Export(&buf, testLog); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func reload[V View](t rapid.TB, v V, load func(io.Reader, events.LogID) (V, error)) V {
	var buf bytes.Buffer
	if _, err := v.Snapshot(&buf, testLog); err != nil {
		t.Fatal(err)
	}
	n, err := load(&buf, testLog)
	if err != nil {
		t.Fatal(err)
	}
	if n.Resume() != v.At() || n.At() != 0 || n.Len() != v.Len() {
		t.Fatalf("loaded %d keys at %d (%d proven), saved %d at %d", n.Len(), n.Resume(), n.At(), v.Len(), v.At())
	}
	return n
}

func compareKeys(t rapid.TB, w *world, v *Keys) {
	t.Helper()
	if v.At() != events.Seq(len(w.log)) || v.Len() != len(w.refs) {
		t.Fatalf("at %d with %d keys, want %d with %d", v.At(), v.Len(), len(w.log), len(w.refs))
	}
	for _, ks := range someSpaces {
		defs := w.definitions(ks)
		s := v.Keyspace(ks)
		if (s != nil) != (len(defs) > 0) {
			t.Fatalf("keyspace %s is known: %v, has %d versions", ks, s != nil, len(defs))
		}
		if s != nil {
			equal(t, "definition", *s.Definition(), defs[len(defs)-1])
			compareRules(t, s, defs[len(defs)-1], w.checked(ks))
		}
	}
	owner := map[events.Digest]events.KeyID{}
	wholes := map[spaceTenant]Slot{}
	slots := map[Slot]events.KeyID{}
	for _, ref := range w.refs {
		want, got := w.key(ref), byID(v, ref.Key)
		if got == nil {
			t.Fatalf("%s is unknown", ref.Key)
		}
		if _, taken := owner[want.Digest]; !taken {
			owner[want.Digest] = ref.Key
		}
		if o := lookup(v, want.Digest); o == nil || o.ID != owner[want.Digest] || o.ID == ref.Key && *o != *got {
			t.Fatalf("the digest of %s leads to %v, want %s", ref.Key, o, owner[want.Digest])
		}
		kept, _ := v.whole(ref.Key)
		equal(t, "digest", kept.digest, want.Digest)
		equal(t, "revision", uint64(kept.rev), want.Rev)
		equal(t, "id", got.ID, want.ID)
		equal(t, "tenant", got.Tenant, want.Tenant)
		equal(t, "keyspace", got.Space.ID, want.Keyspace)
		equal(t, "type", got.KeyType, want.KeyType)
		equal(t, "environment", got.Environment, want.Environment)
		equal(t, "status", got.Status(), want.Status)
		equal(t, "expiry", got.ExpiresAt, want.ExpiresAt)
		for _, now := range []events.Time{want.ExpiresAt - 1, want.ExpiresAt, want.ExpiresAt + 1, w.now} {
			equal(t, "status at", got.StatusAt(now), want.StatusAt(now))
		}
		holds := w.holds(&want)
		equal(t, "scopes", append([]string{}, got.Scopes()...), holds)
		for _, s := range append(someScopes, "", "zz") {
			equal(t, "scope "+s, got.HasScope(s), slices.Contains(holds, s))
		}
		equal(t, "resources", append([]events.Resource{}, got.Resources()...), append([]events.Resource{}, want.Resources...))
		for _, r := range append(someResources, events.Resource{}, events.Resource{Kind: "project", ID: "p9"}) {
			equal(t, "resource "+r.String(), got.AllowsResource(r), len(want.Resources) == 0 || r.IsZero() || slices.Contains(want.Resources, r))
		}
		for _, a := range someAddrs {
			equal(t, "address "+a.String(), got.AllowsAddr(a), naiveAllows(want.Allowlist, a))
		}
		perMinute, burst, ok := got.Limit(&got.Rules.Compiled)
		equal(t, "limit", [3]any{perMinute, burst, ok}, w.limit(&want))
		perMinute, burst, ok = got.Whole.Limit(&got.Rules.Compiled)
		equal(t, "tenant's limit", [3]any{perMinute, burst, ok}, w.wholeLimit(want.Keyspace, want.Tenant))
		if slot, again := wholes[spaceTenant{want.Keyspace, want.Tenant}]; again && slot != got.TenantSlot {
			t.Fatalf("tenant %s of %s stands twice: with two buckets it has twice its limit", want.Tenant, want.Keyspace)
		}
		wholes[spaceTenant{want.Keyspace, want.Tenant}] = got.TenantSlot
		if other, again := slots[got.Slot]; again {
			t.Fatalf("%s and %s have one slot: they would spend from one bucket", ref.Key, other)
		}
		slots[got.Slot] = ref.Key
	}
	if lookup(v, events.NewSecret("never issued").Digest()) != nil {
		t.Fatal("an unknown digest leads to a key")
	}
}

// compareRules asks the keyspace what it has worked out in advance.
func compareRules(t rapid.TB, s *Keyspace, def keyspace.Definition, checked bool) {
	t.Helper()
	g := s.Rules()
	order := def.Checks
	if len(order) == 0 {
		order = keyspace.DefaultChecks()
	}
	equal(t, "order", g.Order, order)
	equal(t, "usual order", g.Usual, reflect.DeepEqual(order, keyspace.DefaultChecks()))
	equal(t, "checksums", s.formal.Load() && g.Checksums, checked)
	equal(t, "an envelope", g.Envelope != nil, def.Errors.Envelope != nil)
	for _, s := range def.Scopes {
		level := s.Level
		if level == keyspace.LevelTenant {
			level = ""
		}
		equal(t, "level of "+s.Name, g.ScopeLevel(s.Name), level)
	}
	equal(t, "level of no scope", g.ScopeLevel("zz"), "")
	for _, r := range events.Reasons() {
		want := 0
		for _, a := range def.Errors.Answers {
			if slices.Contains(a.Reasons, r.String()) {
				want = a.Status
			}
		}
		equal(t, "status of "+r.String(), g.Status(r.String()), want)
	}
}

func equal[T any](t rapid.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

// definitions returns every version of the keyspace's definition.
func (w *world) definitions(ks events.KeyspaceID) (defs []keyspace.Definition) {
	for _, r := range w.history(events.KeyspaceAggregate(ks)) {
		defs = append(defs, r.Data.(*events.KeyspaceDefined).Definition)
	}
	return defs
}

// checked reports whether every key that the keyspace ever took in has the
// checksum of its type: all were issued here, and no type was ever without it.
func (w *world) checked(ks events.KeyspaceID) bool {
	checked, types := true, 0
	for _, r := range w.log {
		if r.Aggregate.Keyspace != ks {
			continue
		}
		switch d := r.Data.(type) {
		case *events.KeyspaceDefined:
			// The first type is the only one that ever has another form, the second
			// comes and goes: as long as it was never there, it took none away.
			checked = checked && d.Definition.KeyTypes[0].Checksum != "" && len(d.Definition.KeyTypes) >= types
			types = len(d.Definition.KeyTypes)
		case *events.KeyCreated:
			checked = checked && types != 0 // of a key from before the definition nothing is known
		case *events.KeyImported:
			checked = false
		}
	}
	return checked
}

// holds grows the set of scopes until nothing more is implied, then cuts.
func (w *world) holds(k *events.Key) []string {
	defs := w.definitions(k.Keyspace)
	if len(defs) == 0 {
		return []string{}
	}
	def := defs[len(defs)-1]
	given := slices.Clone(k.Grant.Scopes)
	for _, role := range k.Grant.Roles {
		h := w.history(events.RoleAggregate(k.Keyspace, k.Tenant, role))
		if len(h) > 0 {
			if d, ok := h[len(h)-1].Data.(*events.RoleDefined); ok {
				given = append(given, d.Scopes...)
			}
		}
	}
	i := slices.IndexFunc(def.KeyTypes, func(t keyspace.KeyType) bool { return t.Name == k.KeyType })
	if i < 0 {
		return []string{}
	}
	had, top := closure(def, given), closure(def, def.KeyTypes[i].Ceiling)
	out := []string{}
	for _, s := range def.Scopes {
		if had[s.Name] && (def.KeyTypes[i].Ceiling == nil || top[s.Name]) {
			out = append(out, s.Name)
		}
	}
	slices.Sort(out)
	return out
}

func closure(def keyspace.Definition, given []string) map[string]bool {
	set := map[string]bool{}
	for _, s := range given {
		set[s] = true
	}
	for range def.Scopes { // as often as the longest path can be
		for _, s := range def.Scopes {
			for _, i := range s.Implies {
				set[i] = set[i] || set[s.Name]
			}
		}
	}
	return set
}

func naiveAllows(list []netip.Prefix, a netip.Addr) bool {
	if len(list) == 0 {
		return true
	}
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a.Unmap().WithZone("")) })
}

// wholeLimit is the limit of all keys of the tenant together.
func (w *world) wholeLimit(ks events.KeyspaceID, tenant events.TenantID) [3]any {
	var l *keyspace.Limit
	if h := w.history(events.TenantAggregate(ks, tenant)); len(h) > 0 {
		l = h[len(h)-1].Data.(*events.TenantLimitUpdated).After
	}
	if defs := w.definitions(ks); l == nil && len(defs) > 0 {
		l = defs[len(defs)-1].TenantLimit
	}
	if l == nil {
		return [3]any{int64(0), int64(0), false}
	}
	return w.limit(&events.Key{Keyspace: ks, Limit: l})
}

// limit looks for the plan from the last version of the definition back.
func (w *world) limit(k *events.Key) [3]any {
	defs := w.definitions(k.Keyspace)
	slices.Reverse(defs)
	if k.Limit != nil && k.Limit.Plan == "" {
		return [3]any{k.Limit.PerMinute, k.Limit.Burst, true}
	}
	plan := ""
	if k.Limit != nil {
		plan = k.Limit.Plan
	}
	for _, d := range defs {
		for _, p := range d.Plans {
			if p.Name == plan {
				return [3]any{p.PerMinute, p.Burst, true}
			}
		}
	}
	if plan != "" {
		return [3]any{int64(1), int64(0), true} // a plan that never was admits nothing
	}
	if len(defs) == 0 || defs[0].Limit == nil {
		return [3]any{int64(0), int64(0), false}
	}
	return w.limit(&events.Key{Keyspace: k.Keyspace, Limit: defs[0].Limit})
}
