package keyspace_test

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestCompiledAgrees: what is worked out in advance is what the document says.
func TestCompiledAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := logtest.GenDefinition().Draw(t, "definition")
		c := keyspace.Compile(d, []keyspace.Plan{{Name: "retired", PerMinute: 7, Burst: 8}})
		if !slices.Equal(c.Order, d.Order()) || c.Usual != slices.Equal(d.Order(), keyspace.DefaultChecks()) || (c.Envelope != nil) != (d.Errors.Envelope != nil) {
			t.Fatalf("order %v, usual %t, envelope %v", c.Order, c.Usual, c.Envelope)
		}
		names := []string{"", "gone", keyspace.ScopeUnlisted}
		for _, s := range d.Scopes {
			names = append(names, s.Name)
		}
		held := rapid.SliceOf(rapid.SampledFrom(names)).Draw(t, "held")
		if got, want := c.Expand(held), d.Expand(held); !slices.Equal(got, want) {
			t.Fatalf("%v expands to %v, want %v", held, got, want)
		}
		for _, s := range names {
			if c.HasScope(s) != d.HasScope(s) || c.ScopeLevel(s) != d.ScopeLevel(s) {
				t.Fatalf("scope %q: %t at level %q", s, c.HasScope(s), c.ScopeLevel(s))
			}
		}
		for i := range d.KeyTypes {
			kt := &d.KeyTypes[i]
			want := slices.DeleteFunc(d.Expand(held), func(s string) bool {
				return !d.HasScope(s) || kt.Ceiling != nil && !slices.Contains(d.Expand(kt.Ceiling), s)
			})
			if got := c.Effective(kt.Name, held); !slices.Equal(got, want) {
				t.Fatalf("type %s with %v may %v, want %v", kt.Name, held, got, want)
			}
			secret, environment := drawSecret(t, kt)
			if got, env, ok := c.TypeOf(secret); !ok || got.Name != kt.Name || env != environment || c.WrongChecksum(secret) {
				t.Fatalf("%q of type %s in %q is taken for %v in %q", secret, kt.Name, environment, got, env)
			}
		}
		for _, reason := range append(keyspace.FailureReasons(), "", "ok") {
			f := keyspace.Failure{Reason: reason, Status: 418, Code: "c", Message: "m"}
			want := f
			for _, a := range d.Errors.Answers {
				if slices.Contains(a.Reasons, reason) {
					if a.Status != 0 {
						want.Status = a.Status
					}
					if a.Code != "" {
						want.Code = a.Code
					}
				}
			}
			if c.Answer(&f); f.Status != want.Status || f.Code != want.Code || c.Status(reason) != 0 && c.Status(reason) != want.Status {
				t.Fatalf("reason %q: %+v, want %+v", reason, f, want)
			}
		}
		for _, name := range []string{"retired", "never"} {
			perMinute, burst, ok := c.Resolve(&keyspace.Limit{Plan: name})
			if want := map[string][2]int64{"retired": {7, 8}, "never": {1, 0}}[name]; !ok || [2]int64{perMinute, burst} != want {
				t.Fatalf("plan %s: %d, %d, %t", name, perMinute, burst, ok)
			}
		}
	})
}

// A definition that no Validate would admit, as a damaged or hostile snapshot may hold it,
// is compiled, asked everything, and makes nothing more powerful.
func TestCompiledOfInvalidDefinitions(t *testing.T) {
	texts := []string{"", "x", "sk_", "sk_a", "a sk_12345678901234567890 b", "sk_live_0000000000000000000000000000000000"}
	for _, length := range []int{math.MinInt, -5, -1, 0, 1, 3, math.MaxInt} {
		for _, sum := range []keyspace.Checksum{"", keyspace.CRC32, "later"} {
			for _, prefix := range []string{"", "sk_", "sk_{environment}_"} {
				d := keyspace.Definition{KeyTypes: []keyspace.KeyType{{Name: "k", Prefix: prefix, Environments: []string{"live"}, Length: length, Checksum: sum, Alphabet: "later"}}}
				c := keyspace.Compile(d, nil)
				for _, text := range texts {
					c.TypeOf(text)
					c.WrongChecksum(text)
					c.Find(text)
				}
			}
		}
	}
	for _, perMinute := range []int64{math.MinInt64, -1, 0} {
		plan := keyspace.Plan{Name: "p", PerMinute: perMinute, Burst: 1 << 40}
		d := keyspace.Definition{Plans: []keyspace.Plan{plan}}
		for _, l := range []*keyspace.Limit{{Plan: "p"}, {PerMinute: perMinute, Burst: 1 << 40}} {
			if n, burst, ok := keyspace.Compile(d, nil).Resolve(l); n != 1 || burst != 0 || !ok {
				t.Errorf("%+v: %d a minute, %d at once, %t", *l, n, burst, ok)
			}
		}
		plan.Name = "gone"
		if n, burst, ok := keyspace.Compile(d, []keyspace.Plan{plan}).Resolve(&keyspace.Limit{Plan: "gone"}); n != 1 || burst != 0 || !ok {
			t.Errorf("a retired plan: %d a minute, %d at once, %t", n, burst, ok)
		}
	}
}
