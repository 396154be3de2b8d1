package main

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
)

// TestWaitFlags: every command that takes power away waits with --wait until no
// verifier answers as before. It asks again where one request does not suffice, shows
// the secret of a successor before that, and fails where the time is over.
func TestWaitFlags(t *testing.T) {
	log := logtest.New(t)
	endpoint := controlOn(t, log)
	lease := logtest.Lease(log.ID(), "edge-1")
	file := writeFile(t, "shop.yaml", "name: shop\nkey_types: [{name: secret, prefix: \"sk_\"}]\nscopes: [{name: read}]\n")
	ids := map[string]string{}
	const gone, lapsed = 0, "\n  edge-1 has lapsed"
	for _, tt := range []struct {
		life int64 // in ms, of the lease that edge-1 is granted before, and never renews; gone = it has ended
		args string
		code int
		want string // a regular expression
	}{
		{gone, "keyspace apply -f " + file, 0, "^keyspace +shop"},
		{gone, "key create --keyspace shop --tenant t --name a", 0, "^name +a"},
		{gone, "key create --keyspace shop --tenant t --name b", 0, "^name +b"},
		{gone, "key create --keyspace shop --tenant t --name c", 0, "^name +c"},
		{1500, "--json key rotate a --wait --wait-timeout 20s", 0, `(?s)"key": "sk_.*"complete": true.*"status": "lapsed".*"receipt_url": "/v1/keys/a/receipt"`},
		{1500, "key rotate b --wait --wait-timeout 20s", 0, `(?s)^secret +sk_.*in force on 1 of 1 verifiers` + lapsed},
		{60_000, "key limit c --per-minute 5 --burst 5 --wait --wait-timeout 20ms", exitFailed, `in force on 0 of 1 verifiers\n  edge-1 has not applied it(?s).*not complete: some nodes may still answer as before; GET /v1/keys/key_\w+/receipt tells later`},
		{gone, "key disable c --wait --wait-timeout 10us", exitUsage, "--wait-timeout: want a millisecond or more"},
		{gone, "key disable c --wait-timeout 5s", exitUsage, "are for --wait"},
		{gone, "key revoke --tenant t --preview --wait", exitUsage, "--wait is for --confirm"},
		{gone, "keyspace apply --wait --dry-run -f " + file, exitUsage, "none of the others can be"},
		{gone, "keyspace apply --wait -f " + file, 0, "in force on 1 of 1 verifiers"},
		{gone, "tenant limit t --keyspace shop --per-minute 5 --burst 5 --wait", 0, "in force on 1 of 1 verifiers"},
		{gone, "role define r --keyspace shop --tenant t --scope read --wait", 0, "in force on 1 of 1 verifiers"},
		{gone, "role delete r --keyspace shop --tenant t --wait", 0, `role r deleted\nin force on 1 of 1 verifiers`},
		{gone, "role define s --keyspace shop --tenant t --scope read", 0, ""},
		{gone, "--json role delete s --keyspace shop --tenant t --wait", 0, `(?s)^\{.*"complete": true.*"receipt_url": "/v1/keyspaces/shop/tenants/t/roles/s/receipt"`},
		{gone, "key update c --expires-in 1h --wait", 0, "in force on 1 of 1 verifiers"},
		{gone, "key scopes c --none --wait", 0, "in force on 1 of 1 verifiers"},
		{gone, "key allowlist c --allow 203.0.113.0/24 --wait", 0, "in force on 1 of 1 verifiers"},
		{gone, "key allowlist c --add 203.0.114.0/24 --wait", 0, "in force on 1 of 1 verifiers"},
		{gone, "key resources c --whole-tenant --wait", 0, "in force on 1 of 1 verifiers"},
		{gone, "key disable c --wait", 0, "refused on 1 of 1 verifiers"},
		{gone, "key enable c", 0, "^name +c"},
		{60_000, "--json key rotate c --wait --wait-timeout 20ms", exitFailed, `(?s)"key": "sk_.*"complete": false.*not complete`},
		{60_000, "key revoke --tenant t --confirm 3 --wait --wait-timeout 20ms", exitFailed, `3 of 3 keys revoked\nrefused on 0 of 1 verifiers`},
		{gone, "key create --keyspace shop --tenant u --name d", 0, "^name +d"},
		{gone, "--json key revoke --tenant u --confirm 1 --wait --wait-timeout 2m", 0, `(?s)"type": "key.revoked".*"complete": true.*"receipt_url": "/v1/keys/key_\w+/receipt"`},
	} {
		if err := log.Release(t.Context(), lease); err != nil {
			t.Fatal(err)
		}
		if tt.life != gone {
			lease = logtest.Lease(log.ID(), "edge-1")
			lease.LifeMS = tt.life
			if _, err := log.Renew(t.Context(), lease); err != nil {
				t.Fatal(err)
			}
		}
		args := strings.Fields(tt.args)
		for i := range args {
			if id, ok := ids[args[i]]; ok && args[i-1] != "--name" {
				args[i] = id
			}
		}
		out, errs, code := cliAt(t, endpoint, "kt_x", args...)
		want := regexp.MustCompile(`"/v1/keys/a/`).ReplaceAllString(tt.want, `"/v1/keys/`+ids["a"]+`/`)
		if code != tt.code || !regexp.MustCompile(`(?m)`+want).MatchString(out+errs) {
			t.Errorf("%s: exit %d, want %d and %s\n%s%s", tt.args, code, tt.code, want, out, errs)
		}
		if m := regexp.MustCompile(`(?s)(key_\w{26}).*`).FindStringSubmatch(out); m != nil && args[1] == "create" {
			ids[args[len(args)-1]] = m[1]
		}
	}

	// A retry of a revocation that was carried out has nothing to wait for, and says so.
	cliAt(t, endpoint, "kt_x", strings.Fields("key create --keyspace shop --tenant v --name e")...)
	preview, _, _ := cliAt(t, endpoint, "kt_x", strings.Fields("key revoke --tenant v --preview")...)
	m := regexp.MustCompile(`--token (\S+)`).FindStringSubmatch(preview)
	if m == nil {
		t.Fatal(preview)
	}
	for _, want := range []string{"1 of 1 keys revoked\nrefused on 1 of 1 verifiers", "0 of 1 keys revoked\nnote: no key was revoked now, so there is no receipt"} {
		out, errs, code := cliAt(t, endpoint, "kt_x", "key", "revoke", "--tenant", "v", "--confirm", "1", "--token", m[1], "--wait")
		if code != 0 || !strings.Contains(out+errs, want) {
			t.Errorf("exit %d, want %s\n%s%s", code, want, out, errs)
		}
	}
}

// TestAWaitGoesOnWhileControlCannotAnswer: a log that changes its leader, or a control
// that restarts, does not end a wait that has time left.
func TestAWaitGoesOnWhileControlCannotAnswer(t *testing.T) {
	log := logtest.New(t)
	endpoint, err := url.Parse(controlOn(t, log))
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	lease := logtest.Lease(log.ID(), "edge-1")
	proxy := httputil.NewSingleHostReverseProxy(endpoint)
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/receipt") {
			switch asked.Add(1) {
			case 1:
				api.Write(w, r, api.Unavailable(1, "no proof"))
				return
			case 2:
				if err := log.Release(r.Context(), lease); err != nil { // so that the third answer is complete
					t.Error(err)
				}
				panic(http.ErrAbortHandler)
			}
		} else if q := r.URL.Query(); q.Has("wait") { // the receipt comes later
			q.Set("wait_timeout", "50ms")
			r.URL.RawQuery = q.Encode()
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	run := func(code int, want, line string) {
		t.Helper()
		out, errs, got := cliAt(t, front.URL, "kt_x", strings.Fields(line)...)
		if got != code || !strings.Contains(out+errs, want) {
			t.Errorf("%s: exit %d, want %d and %q\n%s%s", line, got, code, want, out, errs)
		}
	}
	run(0, "", "keyspace apply -f "+writeFile(t, "shop.yaml", "name: shop\nkey_types: [{name: secret, prefix: \"sk_\"}]\nscopes: [{name: read}]\n"))
	lease.LifeMS = 60_000
	if _, err := log.Renew(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	run(0, "in force on 1 of 1 verifiers", "tenant limit t --keyspace shop --per-minute 5 --burst 5 --wait --wait-timeout 50s")
	if n := asked.Load(); n < 3 {
		t.Errorf("asked %d times", n)
	}
}
