package commands_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestNoCommandStoresASecret puts a live secret into every text of every command,
// past the endpoints: by its form, by its digest, and as one that is only being
// imported.
func TestNoCommandStoresASecret(t *testing.T) {
	w := newWorld(t)
	n := w.node("a")
	w.define(n, "acme", acme)
	issued := w.create(n, "acme", newCreate("t1", "victim")).Secret.Reveal()
	key := w.create(n, "acme", newCreate("t1", "other")).Key.ID
	legacy := "Xq7-legacy_Secret-2019"
	w.secrets = append(w.secrets, events.NewSecret(legacy))
	doImport := func(c commands.Import) error {
		results, _, err := n.Import(w.Context(), w.call("", ""), "acme", &c)
		if err == nil && results[0].Status == commands.ImportRefused {
			err = results[0].Errors
		}
		return err
	}
	if err := doImport(commands.Import{Keys: []commands.ImportKey{{Digest: hexOf(legacy), Create: newCreate("t1", "legacy")}}}); err != nil {
		t.Fatal(err)
	}
	create := func(change func(*commands.Create)) error {
		c := newCreate("t2", "name")
		change(&c)
		call := w.call("", "")
		call.Reason = c.Reason
		_, err := n.Create(w.Context(), call, "acme", &c)
		return err
	}
	change := func(reason string, c commands.Change) error {
		call := w.call("", "")
		call.Reason = reason
		_, err := n.Change(w.Context(), call, "x", key, c)
		return err
	}
	for name, secret := range map[string]string{
		"issued": issued, "never issued": "sk_live_" + strings.Repeat("a", 32), "of an operator": w.root.Reveal(), "of another issuer": legacy,
	} {
		commandsWith := map[string]func() error{
			"create name": func() error { return create(func(c *commands.Create) { c.Name = "a " + secret }) },
			"create metadata value": func() error {
				return create(func(c *commands.Create) { c.Metadata = map[string]string{"a": secret + " b"} })
			},
			"create metadata name": func() error { return create(func(c *commands.Create) { c.Metadata = map[string]string{secret: "b"} }) },
			"create reason":        func() error { return create(func(c *commands.Create) { c.Reason = "replaces " + secret }) },
			"create permissions": func() error {
				return create(func(c *commands.Create) {
					c.Scopes, c.Permissions = nil, &commands.Permissions{Scopes: &[]string{"read"}, Description: secret}
				})
			},
			"patch name":     func() error { return change("", &commands.Patch{Name: ptr(secret)}) },
			"patch metadata": func() error { return change("", &commands.Patch{Metadata: &map[string]string{"a": secret}}) },
			"disable reason": func() error { return change(secret, &commands.Disable{Reason: secret}) },
			"revoke reason":  func() error { return change(secret, &commands.Revoke{Reason: secret}) },
			"import name": func() error {
				return doImport(commands.Import{Keys: []commands.ImportKey{{Digest: hexOf("another-secret-0000"), Create: newCreate("t1", secret)}}})
			},
			"imported_from": func() error {
				return doImport(commands.Import{ImportedFrom: secret, Keys: []commands.ImportKey{{Digest: hexOf("another-secret-0000"), Create: newCreate("t1", "i")}}})
			},
			"role description": func() error {
				_, _, err := n.DefineRole(w.Context(), w.call("", ""), commands.RoleRef{Keyspace: "acme", Tenant: "t1", Role: "dev"}, &commands.DefineRole{Scopes: &[]string{"read"}, Description: secret})
				return err
			},
			"title": func() error {
				_, _, err := n.DefineKeyspace(w.Context(), w.call("", ""), "acme", &commands.DefineKeyspace{Definition: keyspace.Definition{Title: secret, KeyTypes: acme.KeyTypes, Scopes: acme.Scopes, Resources: acme.Resources, Plans: acme.Plans}})
				return err
			},
		}
		commandsWith["tenant"] = func() error { return create(func(c *commands.Create) { c.Tenant = events.TenantID(secret) }) }
		commandsWith["resource"] = func() error {
			return create(func(c *commands.Create) { c.Resources = []events.Resource{{Kind: "project", ID: secret}} })
		}
		commandsWith["role id"] = func() error {
			_, _, err := n.DefineRole(w.Context(), w.call("", ""), commands.RoleRef{Keyspace: "acme", Tenant: "t1", Role: events.RoleID(secret)}, &commands.DefineRole{Scopes: &[]string{"read"}})
			return err
		}
		commandsWith["tenant limit"] = func() error {
			_, _, err := n.SetTenantLimit(w.Context(), w.call("", ""), "acme", events.TenantID(secret), &commands.SetTenantLimit{Limit: commands.Some(keyspace.Limit{PerMinute: 1, Burst: 1})})
			return err
		}
		for what, run := range commandsWith {
			before := len(w.log.Records())
			err := run()
			if got := codeOf(err); err == nil || !strings.Contains(got, "secret") || strings.Contains(err.Error(), secret) {
				t.Errorf("%s with a secret %s: %s", what, name, got)
			}
			if after := len(w.log.Records()); after != before {
				t.Errorf("%s with a secret %s: %d events were written", what, name, after-before)
			}
		}
	}
	// A key is not imported with its own secret beside its digest.
	fresh := "not-known-before-0001"
	err := doImport(commands.Import{Keys: []commands.ImportKey{{Digest: hexOf(fresh), Create: newCreate("t1", fresh)}}})
	if got := codeOf(err); got != "name:secret" {
		t.Errorf("a key imported under its own secret as its name: %s", got)
	}
	w.secrets = append(w.secrets, events.NewSecret(fresh))
}

// TestTextThatCannotBeSeenIsRefused: by the one guard, whichever command brings it.
func TestTextThatCannotBeSeenIsRefused(t *testing.T) {
	w := newWorld(t)
	n := w.node("a")
	w.define(n, "acme", acme)
	done := w.create(n, "acme", newCreate("t1", "victim"))
	for _, hidden := range []string{"deploy\u200b", "\u202etxt.exe", "a\u2066b", "\ufeffx"} {
		for field, c := range map[string]commands.Patch{
			"name":       {Name: ptr(hidden)},
			"metadata":   {Metadata: &map[string]string{hidden: "x"}},
			"metadata.a": {Metadata: &map[string]string{"a": hidden}},
		} {
			_, err := n.Change(w.Context(), w.call("", ""), "patch", done.Key.ID, &c)
			if got := codeOf(err); got != field+":invalid" {
				t.Errorf("%+q as %s: %s", hidden, field, got)
			}
		}
		call := w.call("", "")
		call.Reason = hidden
		_, err := n.Change(w.Context(), call, "disable", done.Key.ID, &commands.Disable{Reason: hidden})
		if got := codeOf(err); got != "reason:invalid" {
			t.Errorf("%+q as a reason: %s", hidden, got)
		}
		def := acme
		def.Description = hidden
		_, _, err = n.DefineKeyspace(w.Context(), w.call("", ""), "acme", &commands.DefineKeyspace{Definition: def})
		if got := codeOf(err); got != "description:invalid" {
			t.Errorf("%+q as a description: %s", hidden, got)
		}
	}
	for _, blank := range []string{" ", "victim ", "\u00a0victim", "\u3000"} {
		_, err := n.Change(w.Context(), w.call("", ""), "patch", done.Key.ID, &commands.Patch{Name: &blank})
		if got := codeOf(err); got != "name:invalid" {
			t.Errorf("%+q as a name: %s", blank, got)
		}
		_, err = n.Create(w.Context(), w.call("", ""), "acme", new(newCreate("t1", blank)))
		if got := codeOf(err); got != "name:invalid" {
			t.Errorf("%+q as a new name: %s", blank, got)
		}
	}
	// An envelope is for programs: what it may hold is its own matter.
	def := acme
	def.Errors.Envelope = []byte(`{"error":"line\n\u200bline","code":"{code}"}`)
	w.define(n, "acme", def)
}

// TestOldTextDoesNotStandInTheWay: a key whose name was stored before it was
// refused can be rotated, disabled, renamed and revoked.
func TestOldTextDoesNotStandInTheWay(t *testing.T) {
	w := newWorld(t)
	n := w.node("a")
	w.define(n, "acme", acme)
	var c events.Chain
	old := fmt.Sprint("sk_live_", strings.Repeat("b", 32))
	id := events.KeyID{15: 7}
	e := logtest.Event(events.KeyAggregate("acme", "t1", id), &events.KeyCreated{
		Digest: events.NewSecret("x").Digest(), Name: "a\u202e " + old, KeyType: "secret", Environment: "live", Hint: "sk_",
	})
	e.Time = w.clock.at()
	seq, err := w.log.Append(w.Context(), logtest.Stamp(&c, e))
	if err == nil {
		err = w.log.Raise(w.Context(), events.Head{Log: w.log.ID(), Size: seq})
	}
	if err != nil {
		t.Fatal(err)
	}
	done, err := n.Rotate(w.Context(), w.call("", ""), id, &commands.Rotate{Overlap: ptr("1h")})
	if err != nil {
		t.Fatal(err)
	}
	w.secrets = append(w.secrets, done.Secret)
	for _, c := range []commands.Change{&commands.Disable{}, &commands.Enable{}, &commands.Patch{Name: ptr("clean")}, &commands.Revoke{}} {
		if _, err := n.Change(w.Context(), w.call("", ""), "x", done.Key.ID, c); err != nil {
			t.Errorf("%T: %v", c, err)
		}
	}
	var r *commands.Refusal
	if _, err := n.Change(w.Context(), w.call("", ""), "x", id, &commands.Patch{Metadata: &map[string]string{"a": "b"}}); !errors.As(err, &r) || r.Code != commands.CodeSecret {
		t.Errorf("a label that keeps the secret: %v", err)
	}
}
