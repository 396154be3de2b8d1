package commands_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestImportKeepsTheDeadDead: a key stands here as it stood where it comes from,
// from its first event on.
func TestImportKeepsTheDeadDead(t *testing.T) {
	const year = "2025-01-06T10:00:00Z"
	at := func(s string) commands.Opt[string] { return commands.Some(s) }
	for _, tt := range []struct {
		name   string
		change func(*commands.ImportKey)
		want   string // the faults, or how the key stands
	}{
		{"not said", func(k *commands.ImportKey) {}, "active"},
		{"active", func(k *commands.ImportKey) { k.Status = "active" }, "active"},
		{"disabled", func(k *commands.ImportKey) { k.Status = "disabled" }, "disabled"},
		{"revoked", func(k *commands.ImportKey) { k.Status = "revoked" }, "revoked unspecified " + start[:19]},
		{"revoked, with code and time", func(k *commands.ImportKey) {
			k.Status, k.RevokeCode, k.RevokedAt = "revoked", events.RevokeCompromise, year
		}, "revoked key_compromise " + year[:19]},
		{"revoked, and expired since", func(k *commands.ImportKey) { k.Status, k.ExpiresAt = "revoked", at(year) }, "revoked unspecified " + start[:19]},
		{"expired", func(k *commands.ImportKey) { k.Status, k.ExpiresAt = "expired", at(year) }, "expired"},
		{"expired without its end", func(k *commands.ImportKey) { k.Status = "expired" }, "expires_at:required"},
		{"expired in the future", func(k *commands.ImportKey) { k.Status, k.ExpiresAt = "expired", at("2027-01-01T00:00:00Z") }, "expires_at:required"},
		{"expired in a while", func(k *commands.ImportKey) { k.Status, k.ExpiresIn = "expired", ptr("1h") }, "expires_in:ended expires_at:required"},
		{"an end in the past, not said to be expired", func(k *commands.ImportKey) { k.ExpiresAt = at(year) }, "expires_at:past"},
		{"disabled, with an end in the past", func(k *commands.ImportKey) { k.Status, k.ExpiresAt = "disabled", at(year) }, "expires_at:past"},
		{"a status of none", func(k *commands.ImportKey) { k.Status = "dead" }, "status:invalid"},
		{"a code without a revocation", func(k *commands.ImportKey) { k.Status, k.RevokeCode = "disabled", events.RevokeCompromise }, "status:conflict"},
		{"a time without a revocation", func(k *commands.ImportKey) { k.RevokedAt = year }, "status:conflict"},
		{"a code of none", func(k *commands.ImportKey) { k.Status, k.RevokeCode = "revoked", "why" }, "revoke_code:invalid"},
		{"revoked tomorrow", func(k *commands.ImportKey) { k.Status, k.RevokedAt = "revoked", "2026-01-07T10:00:00Z" }, "revoked_at:future"},
		{"revoked at no time", func(k *commands.ImportKey) { k.Status, k.RevokedAt = "revoked", "yesterday" }, "revoked_at:invalid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			n := w.node("one")
			w.define(n, "acme", acme)
			key := importKey("the secret of the key", "t1", "a")
			tt.change(&key)
			rs := w.imports(n, &commands.Import{Keys: []commands.ImportKey{key}})
			got := outcomes(rs)
			if rs[0].Status == commands.ImportDone {
				ref := events.Key{Keyspace: "acme", Tenant: "t1", ID: rs[0].ID}
				k, history := w.load(&ref)
				if len(history) != 1 {
					t.Errorf("%d events: between two the key would live", len(history))
				}
				got = string(k.StatusAt(w.clock.at()))
				if k.Status == events.StatusRevoked {
					got += " " + string(k.RevokeCode) + " " + k.RevokedAt.String()[:19]
				}
				if rec := n.do(w.root, "POST", "/v1/keys/"+rs[0].ID.String()+"/enable", ""); strings.HasPrefix(got, "revoked") && rec.Code != http.StatusConflict {
					t.Errorf("enabled: %d %s", rec.Code, rec.Body)
				}
			}
			if got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			logtest.CheckLog(t, w.log)
		})
	}
}

// TestImportOfTheDeadIsBoundByNoRuleOfLife: a keyspace whose keys must end, and a
// name that a live key has, keep no dead key out; and a dead one keeps no name.
func TestImportOfTheDeadIsBoundByNoRuleOfLife(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	d := acme
	d.Expiry = keyspace.ExpiryPolicy{Required: true, Max: "30d"}
	w.define(n, "acme", d)
	dead := importKey("a dead secret", "t1", "a")
	dead.Status = "revoked"
	old := importKey("an old secret", "t1", "a")
	old.Status, old.ExpiresAt = "expired", commands.Some("2020-01-01T00:00:00Z")
	live := importKey("a live secret", "t1", "a")
	live.ExpiresIn = ptr("1d")
	for _, dry := range []bool{true, false} {
		want := "imported, imported, imported"
		if dry {
			want = "acceptable, acceptable, acceptable"
		}
		if got := outcomes(w.imports(n, &commands.Import{DryRun: dry, Keys: []commands.ImportKey{dead, old, live}})); got != want {
			t.Errorf("dry %t: %s", dry, got)
		}
	}
	w.clock.step(time.Hour)
	again := importKey("another dead secret", "t1", "a")
	again.Status = "revoked"
	if got := outcomes(w.imports(n, &commands.Import{Keys: []commands.ImportKey{again}})); got != "imported" {
		t.Errorf("beside a live key of the name: %s", got)
	}
}
