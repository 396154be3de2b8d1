package commands_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
)

var errReserve = &events.StateError{Class: events.ErrFull, Reason: "the stream is nearly full"}

// reserveWorld has a node whose log keeps its last room when full is set.
func reserveWorld(t *testing.T) (*world, *node, *atomic.Bool) {
	w := newWorld(t)
	full := new(atomic.Bool)
	n := w.nodeWith("one", func(c *commands.Config) {
		c.Reserved = func() error {
			if full.Load() {
				return errReserve
			}
			return nil
		}
	})
	w.define(n, "acme", acme)
	return w, n, full
}

// TestReserve: of a log that is nearly full, each command that takes power away is
// carried out, and each other one is refused and writes nothing.
func TestReserve(t *testing.T) {
	w, n, full := reserveWorld(t)
	limit := keyspace.Limit{PerMinute: 100, Burst: 10}
	create := func(name string, change func(*commands.Create)) events.KeyID {
		c := newCreate("t1", name)
		c.Scopes = &[]string{"read", "write"}
		c.Limit = &limit
		if change != nil {
			change(&c)
		}
		return w.create(n, "acme", c).Key.ID
	}
	role := commands.RoleRef{Keyspace: "acme", Tenant: "t1", Role: "dev"}
	define := func(scopes ...string) func() error {
		return func() error {
			_, _, err := n.DefineRole(w.Context(), w.call("", ""), role, &commands.DefineRole{Scopes: &scopes})
			return err
		}
	}
	if err := define("read", "write")(); err != nil {
		t.Fatal(err)
	}
	tenant := func(l commands.Opt[keyspace.Limit]) func() error {
		return func() error {
			_, _, err := n.SetTenantLimit(w.Context(), w.call("", ""), "acme", "t1", &commands.SetTenantLimit{Limit: l})
			return err
		}
	}
	if err := tenant(commands.Some(limit))(); err != nil {
		t.Fatal(err)
	}
	change := func(id events.KeyID, c commands.Change) func() error {
		return func() error {
			_, err := n.Change(w.Context(), w.call("", ""), "test", id, c)
			return err
		}
	}
	soon, later := "24h", "48h"
	a := create("a", func(c *commands.Create) { c.ExpiresIn = &later })
	off := create("off", nil)
	if err := change(off, &commands.Disable{})(); err != nil {
		t.Fatal(err)
	}
	networks := func(s ...string) *[]string { return &s }
	full.Store(true)
	for _, c := range []struct {
		name  string
		do    func() error
		taken bool
	}{
		{"create", func() error {
			c := newCreate("t1", "new")
			_, err := n.Create(w.Context(), w.call("", ""), "acme", &c)
			return err
		}, false},
		{"rotate", func() error {
			_, err := n.Rotate(w.Context(), w.call("", ""), a, &commands.Rotate{})
			return err
		}, false},
		{"enable", change(off, &commands.Enable{}), false},
		{"more scopes", change(a, &commands.AssignScopes{Scopes: &[]string{"read", "upload", "write"}}), false},
		{"other scopes", change(a, &commands.AssignScopes{Scopes: &[]string{"upload"}}), false},
		{"fewer scopes", change(a, &commands.AssignScopes{Scopes: &[]string{"read"}}), true},
		{"a role that gives more", change(a, &commands.AssignScopes{Scopes: &[]string{"read"}, Roles: &[]events.RoleID{"dev"}}), false},
		{"an allowlist", change(a, &commands.SetAllowlist{Allowlist: networks("203.0.113.0/24")}), true},
		{"a narrower allowlist", change(a, &commands.SetAllowlist{Allowlist: networks("203.0.113.7/32")}), true},
		{"a wider allowlist", change(a, &commands.SetAllowlist{Allowlist: networks("203.0.113.0/24")}), false},
		{"no allowlist", change(a, &commands.SetAllowlist{Allowlist: networks()}), false},
		{"a lower limit", change(a, &commands.SetLimit{Limit: commands.Some(keyspace.Limit{PerMinute: 50, Burst: 10})}), true},
		{"a higher limit", change(a, &commands.SetLimit{Limit: commands.Some(keyspace.Limit{PerMinute: 60, Burst: 10})}), false},
		{"a mixed limit", change(a, &commands.SetLimit{Limit: commands.Some(keyspace.Limit{PerMinute: 40, Burst: 11})}), false},
		{"an earlier end", change(a, &commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresIn: &soon}}), true},
		{"a later end", change(a, &commands.Patch{ExpiryWish: commands.ExpiryWish{ExpiresIn: &later}}), false},
		{"a new name", change(a, &commands.Patch{Name: ptr("b")}), false},
		{"a role that gives less", define("read"), true},
		{"a role that gives more again", define("read", "write"), false},
		{"a lower limit of the tenant", tenant(commands.Some(keyspace.Limit{PerMinute: 10, Burst: 1})), true},
		{"a higher limit of the tenant", tenant(commands.Some(limit)), false},
		{"the keyspace again", func() error {
			d := acme
			d.Plans = append(slices.Clone(d.Plans), keyspace.Plan{Name: "basic", PerMinute: 60, Burst: 6})
			_, _, err := n.DefineKeyspace(w.Context(), w.call("", ""), "acme", &commands.DefineKeyspace{Definition: d})
			return err
		}, false},
		{"disable", change(a, &commands.Disable{}), true},
		{"revoke", change(a, &commands.Revoke{}), true},
		{"revoke what is disabled", change(off, &commands.Revoke{}), true},
	} {
		before := len(w.log.Records())
		err := c.do()
		switch {
		case c.taken && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case !c.taken && (!errors.Is(err, events.ErrFull) || len(w.log.Records()) != before):
			t.Errorf("%s: %v, %d events", c.name, err, len(w.log.Records())-before)
		}
	}
}

// able is the naive twin: everything that a key may do, over a few of each.
func able(k *events.Key, at events.Time, d *keyspace.Definition) map[string]bool {
	out := map[string]bool{}
	for _, s := range keyspace.Compile(*d, nil).Effective(k.KeyType, k.Grant.Scopes) {
		for _, ip := range []string{"203.0.113.7", "203.0.113.200", "198.51.100.1"} {
			for _, hours := range []int{0, 12, 36, 100} {
				for _, res := range []events.Resource{{Kind: "project", ID: "1"}, {Kind: "project", ID: "2"}, {Kind: "project", ID: "3"}} {
					for _, rate := range []int64{1, 5, 10, 1000} {
						when := at.Add(time.Duration(hours) * time.Hour)
						ok := k.StatusAt(when) == events.StatusActive &&
							(len(k.Allowlist) == 0 || slices.ContainsFunc(k.Allowlist, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(ip)) })) &&
							(len(k.Resources) == 0 || slices.Contains(k.Resources, res)) &&
							(k.Limit == nil || rate <= k.Limit.PerMinute)
						if ok {
							out[fmt.Sprint(s, " ", ip, " ", hours, " ", res, " ", rate)] = true
						}
					}
				}
			}
		}
	}
	return out
}

// TestReserveProperty: whatever a change asks for, a log that is nearly full takes
// it if and only if the key can do nothing afterwards that it could not do before,
// and something less.
func TestReserveProperty(t *testing.T) {
	w, n, full := reserveWorld(t)
	i := 0
	taken, refused := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		scopes := func(label string) *[]string {
			s := slices.DeleteFunc([]string{"read", "upload", "write"}, func(string) bool { return !rapid.Bool().Draw(rt, label) })
			return &s
		}
		networks := func(label string) *[]string {
			s := []string{rapid.SampledFrom([]string{"203.0.113.0/24", "203.0.113.7/32", "198.51.100.0/24"}).Draw(rt, label)}
			if rapid.IntRange(0, 2).Draw(rt, label) == 0 {
				s = []string{}
			}
			return &s
		}
		resources := func(label string) *[]events.Resource {
			out := []events.Resource{}
			for _, id := range []string{"1", "2", "3"} {
				if rapid.Bool().Draw(rt, label) {
					out = append(out, events.Resource{Kind: "project", ID: id})
				}
			}
			return &out
		}
		limit := func(label string) keyspace.Limit {
			return keyspace.Limit{PerMinute: rapid.SampledFrom([]int64{1, 5, 10}).Draw(rt, label), Burst: 5}
		}
		ends := func(label string) commands.ExpiryWish {
			return commands.ExpiryWish{ExpiresIn: ptr(rapid.SampledFrom([]string{"6h", "24h", "48h"}).Draw(rt, label))}
		}
		full.Store(false)
		i++
		c := newCreate("t1", fmt.Sprint("k", i))
		c.Scopes, c.Allowlist, c.Resources, c.Limit, c.ExpiryWish = scopes("scopes"), *networks("allowlist"), *resources("resources"), ptr(limit("limit")), ends("expires")
		done, err := n.Create(w.Context(), w.call("", ""), "acme", &c)
		if err != nil {
			rt.Fatal(err)
		}
		id := done.Key.ID
		if rapid.IntRange(0, 3).Draw(rt, "disabled") == 0 {
			if done, err = n.Change(w.Context(), w.call("", ""), "test", id, &commands.Disable{}); err != nil {
				rt.Fatal(err)
			}
		}
		before := done.Key
		var ask commands.Change
		switch rapid.IntRange(0, 7).Draw(rt, "what") {
		case 0:
			ask = &commands.AssignScopes{Scopes: scopes("next")}
		case 1:
			ask = &commands.SetAllowlist{Allowlist: networks("next")}
		case 2:
			ask = &commands.AssignResources{Resources: resources("next")}
		case 3:
			ask = &commands.SetLimit{Limit: commands.Some(limit("next"))}
		case 4:
			ask = &commands.Patch{ExpiryWish: ends("next")}
		case 5:
			ask = &commands.Disable{}
		case 6:
			ask = &commands.Enable{}
		case 7:
			ask = &commands.Revoke{}
		}
		full.Store(true)
		_, err = n.Change(w.Context(), w.call("", ""), "test", id, ask)
		full.Store(false)
		if err == nil {
			after, _ := w.load(&before)
			check(rt, &before, &after, w.clock.at(), true)
			taken++
			return
		}
		if !errors.Is(err, events.ErrFull) {
			return // refused for another reason, as without the reserve
		}
		done, err = n.Change(w.Context(), w.call("", ""), "test", id, ask)
		if err != nil {
			rt.Fatalf("refused for want of room, and then: %v", err)
		}
		check(rt, &before, &done.Key, w.clock.at(), false)
		refused++
	})
	if taken == 0 || refused == 0 {
		t.Errorf("%d changes were taken, %d refused", taken, refused)
	}
}

// check holds a change that was taken, or refused for want of room, against the twin.
// A disabled key can do nothing; what it could do if it were enabled counts.
func check(rt *rapid.T, before, after *events.Key, at events.Time, taken bool) {
	was, is := *before, *after
	if was.Rev == is.Rev {
		return // nothing was asked for
	}
	woken := was.Status == events.StatusDisabled && is.Status == events.StatusActive
	stopped := was.Status != is.Status && !woken
	if !stopped {
		was.Status, is.Status = events.StatusActive, events.StatusActive
	}
	could, can := able(&was, at, &acme), able(&is, at, &acme)
	gained := woken
	for what := range can {
		gained = gained || !could[what]
	}
	lost := stopped || len(can) < len(could)
	// Of a key that could do nothing at all, the twin sees no difference.
	if len(could) == 0 && len(can) == 0 && !stopped && !woken {
		return
	}
	if taken && gained || !taken && !gained && lost {
		rt.Fatalf("taken: %t, but gained: %t, lost: %t\n%+v\n%+v", taken, gained, lost, before, after)
	}
}

// TestRecording: while no floor can be raised no command is begun, whichever it is,
// since none could be acknowledged; what is read is answered.
func TestRecording(t *testing.T) {
	w := newWorld(t)
	full := &events.StateError{Class: events.ErrNotStoring, Reason: "nothing is stored"}
	on := new(atomic.Bool)
	n := w.nodeWith("one", func(c *commands.Config) {
		c.Recording = func() error {
			if on.Load() {
				return full
			}
			return nil
		}
	})
	w.define(n, "acme", acme)
	k := w.create(n, "acme", newCreate("t1", "a"))
	on.Store(true)
	size := len(w.log.Records())
	if _, err := n.Change(w.Context(), w.call("", ""), "revoke", k.Key.ID, &commands.Revoke{}); !errors.Is(err, events.ErrNotStoring) || len(w.log.Records()) != size {
		t.Errorf("a key is revoked: %v, %d events more", err, len(w.log.Records())-size)
	}
	on.Store(false)
	if _, err := n.Change(w.Context(), w.call("", ""), "revoke", k.Key.ID, &commands.Revoke{}); err != nil {
		t.Error(err)
	}
}
