package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestWayBackIn shuts every administrator out of a deployment, past the guards: the
// operator key is of no use any more. Then it goes the documented way, a start
// without the old root.key, and the new root key does what it is asked, as often as
// it is asked.
func TestWayBackIn(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	one := &keyspace.Limit{PerMinute: 1, Burst: 1}
	p := up(t, dir)
	for _, lockout := range []struct {
		name   string
		key    events.Data // on the root key, if any
		tenant events.Data // on its tenant, if any
		want   string      // what the old key is told
	}{
		{"disabled", new(events.KeyDisabled), nil, "key_disabled"},
		{"tied to addresses", &events.KeyAllowlistUpdated{After: []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32")}}, nil, "address_not_allowed"},
		{"limited", &events.KeyLimitUpdated{After: one}, nil, "rate_limited"},
		{"limited with its tenant", nil, &events.TenantLimitUpdated{After: one}, "rate_limited"},
	} {
		root := ""
		for line := range strings.Lines(p.must(t, "key", "list", "--keyspace", "keytrail", "--status", "active", "--all")) {
			if f := strings.Fields(line); strings.Contains(line, " root ") {
				root = f[0] // the newest is the last
			}
		}
		id, err := events.ParseKeyID(root)
		if err != nil {
			t.Fatal(err)
		}
		old := p.root
		p.stop(t)
		appendPastGuards(t, dir, id, lockout.key, lockout.tenant)

		p = up(t, dir)
		var told string
		for range 3 {
			_, errs, _ := cliAt(t, p.url, old, "key", "list", "--keyspace", "keytrail")
			told += errs
		}
		if !strings.Contains(told, lockout.want) {
			t.Errorf("%s: the old key is told %q, want %s", lockout.name, told, lockout.want)
		}
		p.stop(t)
		if err := os.Rename(filepath.Join(dir, "root.key"), filepath.Join(dir, "root.old")); err != nil {
			t.Fatal(err)
		}

		p = up(t, dir)
		if p.root == old {
			t.Fatal("the root key is the old one")
		}
		for range 5 {
			p.must(t, "key", "list", "--keyspace", "keytrail")
		}
		p.must(t, "key", "create", "--keyspace", "keytrail", "--tenant", "operators", "--name", "after: "+lockout.name, "--scope", "keys:read")
		if out := p.must(t, "tenant", "get", "operators", "--keyspace", "keytrail"); !strings.Contains(out, "none") {
			t.Errorf("%s: the tenant is limited still:\n%s", lockout.name, out)
		}
	}
	p.stop(t)
}

// appendPastGuards writes events of the root key and of its tenant to the log of a
// stopped `keytrail up`.
func appendPastGuards(t *testing.T, dir string, root events.KeyID, key, tenant events.Data) {
	t.Helper()
	srv, err := server.Start(server.Config{Dir: filepath.Join(dir, "log")})
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Stop()
	nc, err := srv.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	log, err := eventlog.Open(t.Context(), nc, eventlog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if key != nil {
		logtest.Append(t, log, events.KeyAggregate(events.Builtin, events.RootTenant, root), key)
	}
	if tenant != nil {
		logtest.Append(t, log, events.TenantAggregate(events.Builtin, events.RootTenant), tenant)
	}
}
