package commands_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
	"github.com/keytrail/keytrail/projections"
)

// hexOf is the digest of a secret as an import names it.
func hexOf(secret string) string {
	d := events.NewSecret(secret).Digest()
	return hex.EncodeToString(d[:])
}

func importKey(secret string, tenant events.TenantID, name string) commands.ImportKey {
	return commands.ImportKey{Digest: hexOf(secret), Create: newCreate(tenant, name)}
}

// importOf is an import of n keys of tenant t1.
func importOf(n int) *commands.Import {
	c := &commands.Import{ImportedFrom: "the old gateway"}
	for i := range n {
		c.Keys = append(c.Keys, importKey(fmt.Sprintf("the secret of key %d", i), "t1", fmt.Sprintf("key %d", i)))
	}
	return c
}

func (w *world) imports(n *node, c *commands.Import) []commands.ImportResult {
	w.Helper()
	out, _, err := n.Import(w.Context(), w.call("", ""), "acme", c)
	if err != nil {
		w.Fatal(err)
	}
	return out
}

// outcome is one result as a word: its status, or the codes of its refusal.
func outcome(r *commands.ImportResult) string {
	if r.Status == commands.ImportRefused {
		return codeOf(r.Errors)
	}
	return string(r.Status)
}

func outcomes(rs []commands.ImportResult) string {
	var out []string
	for i := range rs {
		if rs[i].Index != i {
			out = append(out, fmt.Sprintf("(index %d)", rs[i].Index))
		}
		out = append(out, outcome(&rs[i]))
	}
	return strings.Join(out, ", ")
}

func TestDecideImport(t *testing.T) {
	const good = "sha256:9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08"
	key := func(change func(*commands.ImportKey)) commands.ImportKey {
		c := commands.ImportKey{Digest: good, Hint: "old_abcd", Create: newCreate("t1", "ci")}
		change(&c)
		return c
	}
	digest := func(s string) commands.ImportKey { return key(func(c *commands.ImportKey) { c.Digest = s }) }
	hint := func(s string) commands.ImportKey { return key(func(c *commands.ImportKey) { c.Hint = s }) }
	held := func(by events.KeyID) func(*commands.Rules) {
		return func(r *commands.Rules) { r.DigestHolder = &by }
	}
	named := func(r *commands.Rules) { r.NameHolder = events.KeyID{1} }
	for _, tt := range []struct {
		name  string
		cmd   commands.ImportKey
		rules *commands.Rules
		want  string // an error's codes, or the event
	}{
		{"upper case and a prefix", key(func(*commands.ImportKey) {}), rules(),
			`key.imported{"digest":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08","hint":"old_abcd","name":"ci","key_type":"secret","environment":"live","scopes":["read"],"imported_from":"the old gateway"}`},
		{"no hint", hint(""), rules(), `"hint":"","name":"ci"`},
		{"no digest", digest(""), rules(), "digest:required"},
		{"short", digest(good[:70]), rules(), "digest:invalid"},
		{"long", digest(good + "0"), rules(), "digest:invalid"},
		{"no hexadecimal", digest(strings.Repeat("g", 64)), rules(), "digest:invalid"},
		{"another prefix", digest("SHA256:" + good[7:]), rules(), "digest:invalid"},
		{"nothing but zeros", digest(strings.Repeat("0", 64)), rules(), "digest:invalid"},
		{"of an empty text", digest(hexOf("")), rules(), "digest:invalid"},
		{"a secret in its place", digest("sk_live_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"), rules(), "digest:invalid"},
		{"a hint that is the secret", hint("test"), rules(), "hint:secret"},
		{"a hint of a secret's whole form", hint("sk_live_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdef"), rules(), "hint:secret"},
		{"a hint of most of a secret", hint("sk_live_ABCDEFGHIJKLMNOPQ"), rules(), "hint:secret"},
		{"a hint of half of a secret", hint("sk_live_ABCDEFGHIJKLMNOP"), rules(), `"hint":"sk_live_ABCDEFGHIJKLMNOP"`},
		{"a long hint of another form", hint("sk_live_ABCD... (the deploy bot's)"), rules(), `"hint":"sk_live_ABCD... (`},
		{"a hint of 65 characters", hint(strings.Repeat("x", 65)), rules(), "hint:invalid"},
		{"a hint with a control character", hint("a\x1b"), rules(), "hint:invalid"},
		{"every bad field at once", commands.ImportKey{Digest: "x", Hint: "\x00", Create: commands.Create{Tenant: "-", Scopes: &[]string{"fly"}, Reason: "\x00"}}, rules(),
			"digest:invalid hint:invalid tenant:invalid name:required scopes[0]:unknown_scope reason:invalid"},
		{"above the ceiling", key(func(c *commands.ImportKey) { c.Type, c.Scopes = "publishable", &[]string{"read"} }), rules(), "scopes[0]:above_ceiling"},
		{"a life from now", key(func(c *commands.ImportKey) { c.ExpiresAt = commands.Some("2026-02-06T10:00:00Z") }),
			rules(policy(keyspace.ExpiryPolicy{Max: "30d"})), "expires_at:too_late"},
		{"known", key(func(*commands.ImportKey) {}), rules(held(events.KeyID{2})), "digest_known"},
		{"known to others", key(func(*commands.ImportKey) {}), rules(held(events.KeyID{})), "digest_known"},
		{"bad fields before what is known", hint("\x00"), rules(held(events.KeyID{2}), named), "hint:invalid"},
		{"the digest before the name", key(func(*commands.ImportKey) {}), rules(held(events.KeyID{2}), named), "digest_known"},
		{"name taken", key(func(*commands.ImportKey) {}), rules(named), "duplicate_name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.cmd.Decide(tt.rules, t0, "the old gateway")
			if err != nil {
				if codeOf(err) != tt.want {
					t.Errorf("refused with\n  %s\nwant\n  %s", codeOf(err), tt.want)
				}
				if s := tt.cmd.Digest; len(s) > 20 && strings.Contains(err.Error(), s) {
					t.Errorf("the refusal repeats what stood for a digest: %v", err)
				}
				return
			}
			if !strings.Contains(print(got), tt.want) {
				t.Errorf("decided\n  %s\nwant\n  %s", print(got), tt.want)
			}
			if err := got.Validate(); err != nil {
				t.Errorf("the event is not valid: %v", err)
			}
		})
	}
}

// TestImportAsksWhatCreateAsks: whatever a create is refused for, an import of the
// same key is refused for.
func TestImportAsksWhatCreateAsks(t *testing.T) {
	typ := reflect.TypeFor[commands.ImportKey]()
	if f, ok := typ.FieldByName("Create"); !ok || !f.Anonymous || typ.NumField() != 7 {
		t.Fatal("an ImportKey is no longer digest, hint, Create how the key stands, and why it cannot be read")
	}
	rapid.Check(t, func(rt *rapid.T) {
		word := rapid.SampledFrom([]string{"", "read", "upload", "fly", "secret", "publishable", "live", "moon", "\x00", "project", "30d", "10.0.0.1/8", "10.0.0.0/8"})
		c := commands.Create{Tenant: events.TenantID(word.Draw(rt, "tenant")), Name: word.Draw(rt, "name"), Type: word.Draw(rt, "type"), Environment: word.Draw(rt, "environment")}
		if rapid.Bool().Draw(rt, "scoped") {
			c.Scopes = new(rapid.SliceOfN(word, 0, 3).Draw(rt, "scopes"))
		}
		c.Allowlist = rapid.SliceOfN(word, 0, 2).Draw(rt, "allowlist")
		if rapid.Bool().Draw(rt, "expiring") {
			c.ExpiresIn = new(word.Draw(rt, "expires_in"))
		}
		r := rules()
		if rapid.Bool().Draw(rt, "taken") {
			r.NameHolder = events.KeyID{1}
		}
		d := events.NewSecret("one").Digest()
		created, err := c.Decide(r, t0, d, "h")
		imported, ierr := (&commands.ImportKey{Digest: hexOf("one"), Hint: "h", Create: c}).Decide(r, t0, "")
		if codeOf(err) != codeOf(ierr) {
			rt.Fatalf("create: %v\nimport: %v", err, ierr)
		}
		if err == nil && !reflect.DeepEqual(*created, imported.KeyCreated) {
			rt.Fatalf("created  %s\nimported %s", print(created), print(&imported.KeyCreated))
		}
	})
}

// TestImport: each key on its own, in the order of the request.
func TestImport(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	w.define(n, "zeta", acme)
	made := w.create(n, "acme", newCreate("t1", "made"))
	elsewhere := w.create(n, "zeta", newCreate("t1", "made"))
	digestOf := func(s events.Secret) string { return hexOf(s.Reveal()) }

	c := &commands.Import{ImportedFrom: "the old gateway", Reason: "we move", Keys: []commands.ImportKey{
		importKey("a", "t1", "A"),
		importKey("b", "t1", "A"), // the name of the one before
		importKey("a", "t2", "A"), // the digest of the first
		importKey("a", "t1", "A"), // the first again
		{Digest: digestOf(made.Secret), Create: newCreate("t1", "stolen")},     // of a key that was created here
		{Digest: digestOf(elsewhere.Secret), Create: newCreate("t1", "other")}, // and in another keyspace
		{Digest: digestOf(w.root), Create: newCreate("t1", "root")},
		importKey("c", "t1", "made"),
		{Digest: "no", Create: newCreate("-", "")},
		importKey("d", "t2", "D"),
	}}
	c.Keys[9].Reason = "its own"
	size := len(w.log.Records())

	dry := *c
	dry.DryRun = true
	want := "imported, name:duplicate_name, digest:digest_known, already, digest:digest_known, digest:digest_known, digest:digest_known, " +
		"name:duplicate_name, digest:invalid tenant:invalid name:required, imported"
	rs := w.imports(n, &dry)
	if got := outcomes(rs); got != strings.ReplaceAll(want, "imported", "acceptable") || len(w.log.Records()) != size {
		t.Fatalf("dry run, %d events:\n%s", len(w.log.Records())-size, got)
	}
	dryID := rs[0].ID
	call := w.call("", "")
	call.Reason = c.Reason
	rs, _, err := n.Import(t.Context(), call, "acme", c)
	if err != nil {
		t.Fatal(err)
	}
	if got := outcomes(rs); got != want || len(w.log.Records()) != size+2 {
		t.Fatalf("%d events:\n got %s\nwant %s", len(w.log.Records())-size, got, want)
	}
	if rs[0].ID != rs[3].ID || rs[0].ID != dryID || rs[0].ID.IsZero() || !rs[1].ID.IsZero() {
		t.Errorf("ids: %s, %s again, %s dry, %s refused", rs[0].ID, rs[3].ID, dryID, rs[1].ID)
	}
	for i, id := range map[int]events.KeyID{2: rs[0].ID, 4: made.Key.ID, 5: elsewhere.Key.ID, 6: w.rootID} {
		if !strings.Contains(rs[i].Errors[0].Message, id.String()) {
			t.Errorf("%d does not name %s: %s", i, id, rs[i].Errors[0].Message)
		}
	}
	for i, reason := range map[int]string{0: "we move", 9: "its own"} {
		k, ok := n.dir.Key(rs[i].ID)
		if !ok {
			t.Fatalf("key %d is not there", i)
		}
		_, history := w.load(&k)
		d, ok := history[0].Data.(*events.KeyImported)
		if !ok || d.ImportedFrom != "the old gateway" || history[0].Reason != reason || history[0].Command != "" || history[0].Actor.ID != w.rootID.String() {
			t.Errorf("key %d begins with %+v", i, history[0])
		}
	}

	// Again, when much has happened to it since: it stays what it is.
	if _, err := n.Change(t.Context(), w.call("", ""), "revoke", rs[0].ID, new(commands.Revoke)); err != nil {
		t.Fatal(err)
	}
	expired := importKey("e", "t1", "E")
	expired.ExpiresIn = ptr("1h")
	w.imports(n, &commands.Import{Keys: []commands.ImportKey{expired}})
	w.clock.step(400 * day)
	expired.ExpiresIn, expired.ExpiresAt = nil, commands.Some("2026-01-06T11:00:00Z") // past by now
	again := w.imports(w.node("two"), &commands.Import{Keys: []commands.ImportKey{importKey("a", "t1", "another name"), expired, importKey("a", "t3", "A")}})
	if got := outcomes(again); got != "already, already, digest:digest_known" {
		t.Errorf("again: %s", got)
	}
	logtest.CheckLog(t, w.log)
}

// TestImportRefusedWhole: what is wrong with the request itself.
func TestImportRefusedWhole(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	size := len(w.log.Records())
	for _, tt := range []struct {
		ks   events.KeyspaceID
		c    *commands.Import
		want string
	}{
		{"nowhere", importOf(1), "not_found"},
		{events.Builtin, importOf(1), "builtin_protected"},
		{"acme", importOf(0), "keys:required"},
		{"acme", importOf(commands.MaxImport + 1), "keys:invalid"},
		{"acme", &commands.Import{ImportedFrom: strings.Repeat("x", 201), Reason: "\x00", Keys: importOf(1).Keys}, "imported_from:invalid reason:invalid"},
	} {
		if _, _, err := n.Import(t.Context(), w.call("", ""), tt.ks, tt.c); codeOf(err) != tt.want {
			t.Errorf("%s: %s, want %s", tt.ks, codeOf(err), tt.want)
		}
	}
	if len(w.log.Records()) != size {
		t.Error("something was written")
	}
	if out := w.imports(n, importOf(commands.MaxImport)); strings.Count(outcomes(out), "imported") != commands.MaxImport {
		t.Errorf("the most that is allowed: %s", outcomes(out))
	}
}

// TestImportPower: a caller imports within its reach, and learns nothing of what
// is beyond it.
func TestImportPower(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	w.define(n, "zeta", acme)
	foreign := w.create(n, "acme", newCreate("t2", "foreign"))
	of := func(resources ...events.Resource) *commands.Call {
		made := w.create(n, events.Builtin, commands.Create{Tenant: "operators", Name: fmt.Sprint("op ", resources), Scopes: &[]string{"keys:write"}, Resources: resources})
		call := w.call("", "")
		call.Principal.Actor = events.Actor{Kind: events.ActorKey, ID: made.Key.ID.String()}
		call.Principal.Scopes = []string{"keys:write"}
		for _, r := range resources {
			if r.Kind == events.ResourceTenant {
				call.Principal.Tenants = append(call.Principal.Tenants, events.TenantID(r.ID))
			} else {
				call.Principal.Keyspaces = append(call.Principal.Keyspaces, events.KeyspaceID(r.ID))
			}
		}
		return call
	}
	call := of(events.Resource{Kind: events.ResourceKeyspace, ID: "acme"}, events.Resource{Kind: events.ResourceTenant, ID: "t1"})
	c := &commands.Import{Keys: []commands.ImportKey{importKey("a", "t1", "A"), importKey("b", "t2", "B"),
		{Digest: hexOf(foreign.Secret.Reveal()), Create: newCreate("t1", "C")}}}
	out, _, err := n.Import(t.Context(), call, "acme", c)
	if err != nil || outcomes(out) != "imported, tenant:beyond_own_power, digest:digest_known" {
		t.Fatalf("%s, %v", outcomes(out), err)
	}
	if m := out[2].Errors[0].Message; strings.Contains(m, foreign.Key.ID.String()) {
		t.Errorf("it names a key that the caller may not see: %s", m)
	}
	if _, _, err := n.Import(t.Context(), call, "zeta", c); codeOf(err) != "not_found" {
		t.Errorf("another keyspace: %v", err)
	}
	// The key behind the caller ends after the endpoint has let it in.
	own, err := events.ParseKeyID(call.Principal.Actor.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Change(t.Context(), w.call("", ""), "disable", own, new(commands.Disable)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.Import(t.Context(), call, "acme", &commands.Import{Keys: []commands.ImportKey{importKey("z", "t1", "Z")}}); codeOf(err) != "beyond_own_power" {
		t.Errorf("with a disabled key: %v", err)
	}
}

// TestImportConflict: another node imports some of the keys in the same moment. The
// whole batch is refused and decided again.
func TestImportConflict(t *testing.T) {
	w := newWorld(t)
	n, other := w.node("one"), w.node("two")
	w.define(n, "acme", acme)
	before := len(w.log.Records())
	c := importOf(10)
	c.Keys = append(c.Keys, c.Keys[9]) // a line that repeats one
	p := w.log.PauseNext(logtest.OpAppend, logtest.BeforeEffect)
	var out []commands.ImportResult
	var done commands.Done
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { out, done, err = n.Import(t.Context(), w.call("", ""), "acme", c) })
	<-p.Entered()
	w.imports(other, &commands.Import{Keys: []commands.ImportKey{c.Keys[4], importKey("x", "t1", "key 7")}})
	if size := len(w.log.Records()) - before; size != 2 {
		t.Fatalf("%d events, want those of the other node", size)
	}
	p.Resume()
	wg.Wait()
	want := "imported, imported, imported, imported, already, imported, imported, name:duplicate_name, imported, imported, already"
	if got := outcomes(out); err != nil || got != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
	if size := len(w.log.Records()); size-before != 10 || int(done.Seq) != size {
		t.Errorf("%d events, done at %d of %d", size-before, done.Seq, size)
	}
	logtest.CheckLog(t, w.log)
}

// TestImportFaults lets an import meet every fault of every call to the log, then
// sends it again, and once more to another node: each key is in the log exactly once.
// The log's end is asked for after a conflict only: then the other node has imported
// half of the keys meanwhile.
func TestImportFaults(t *testing.T) {
	const keys = 40
	for opName, op := range map[string]logtest.Op{"append": logtest.OpAppend, "last": logtest.OpLast, "raise": logtest.OpRaise, "confirm": logtest.OpRenew} {
		for faultName, fault := range map[string]logtest.Fault{"unavailable": logtest.Unavailable, "full": logtest.Full,
			"unknown, not stored": logtest.UnknownNotStored, "unknown, stored": logtest.UnknownStored} {
			for _, retrySucceeds := range []bool{false, true} {
				if op == logtest.OpLast && (fault != logtest.Unavailable || retrySucceeds) || op == logtest.OpRaise && fault == logtest.Full {
					continue // such a call has one way to fail
				}
				t.Run(fmt.Sprintf("%s/%s/%t", opName, faultName, retrySucceeds), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t)
						w.log.RetrySucceeds = retrySucceeds
						n, other := w.node("one"), w.node("two")
						w.define(n, "acme", acme)
						before := len(w.log.Records())
						stored := func() int { return len(w.log.Records()) - before }

						pauseAt := op
						if op == logtest.OpLast {
							pauseAt = logtest.OpAppend
						}
						p := w.log.PauseNext(pauseAt, logtest.BeforeEffect)
						if op == logtest.OpRenew {
							p.Resume()
						}
						w.log.FailNext(op, fault)
						c := importOf(keys)
						var out []commands.ImportResult
						var err error
						var wg sync.WaitGroup
						wg.Go(func() { out, _, err = n.Import(t.Context(), w.call("", ""), "acme", c) })
						<-p.Entered()
						if op == logtest.OpLast {
							w.imports(other, &commands.Import{Keys: c.Keys[:keys/2]})
						}
						p.Resume()
						wg.Wait()
						settled := op == logtest.OpAppend && (fault == logtest.UnknownStored || fault == logtest.UnknownNotStored) ||
							op == logtest.OpRaise || op == logtest.OpRenew && fault != logtest.Full
						switch {
						case settled && (err != nil || strings.Count(outcomes(out), "imported") != keys || stored() != keys):
							t.Fatalf("%d events, %s, %v", stored(), outcomes(out), err)
						case !settled && !errors.Is(err, events.ErrUnavailable) && !errors.Is(err, events.ErrFull):
							t.Fatalf("err = %v, want the log's", err)
						case !settled && (out != nil || stored() != map[bool]int{true: keys / 2}[op == logtest.OpLast]):
							t.Fatalf("%d events, %v", stored(), out)
						}
						had := stored()
						out = w.imports(n, c)
						if got := outcomes(out); strings.Count(got, "already") != had || strings.Count(got, "imported") != keys-had {
							t.Fatalf("again, when there were %d: %s", had, got)
						}
						if got := outcomes(w.imports(other, c)); strings.Count(got, "already") != keys {
							t.Fatalf("on the other node: %s", got)
						}
						if stored() != keys {
							t.Errorf("%d events of %d keys", stored(), keys)
						}
						logtest.CheckLog(t, w.log)
					})
				})
			}
		}
	}
}

// TestImportRaces lets nodes import the same keys at once: each key is one event,
// and one answer says imported.
func TestImportRaces(t *testing.T) {
	w := newWorld(t)
	nodes := []*node{w.node("one"), w.node("two")}
	w.define(nodes[0], "acme", acme)
	if err := nodes[1].dir.Wait(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	const keys = 60
	before := len(w.log.Records())
	outs := make([][]commands.ImportResult, 4)
	var wg sync.WaitGroup
	for i := range outs {
		wg.Go(func() {
			c := importOf(keys)
			rand.New(rand.NewPCG(uint64(i), 0)).Shuffle(keys, func(a, b int) { c.Keys[a], c.Keys[b] = c.Keys[b], c.Keys[a] })
			out, _, err := nodes[i%2].Import(t.Context(), w.call("", ""), "acme", c)
			if err != nil {
				t.Errorf("importer %d: %v", i, err)
			}
			outs[i] = out
		})
	}
	wg.Wait()
	imported := map[events.KeyID]int{}
	for _, out := range outs {
		for i := range out {
			switch out[i].Status {
			case commands.ImportDone:
				imported[out[i].ID]++
			case commands.ImportAlready:
			default:
				t.Errorf("%+v", out[i])
			}
		}
	}
	for id, n := range imported {
		if n != 1 {
			t.Errorf("key %s was imported %d times", id, n)
		}
	}
	if len(imported) != keys || len(w.log.Records())-before != keys {
		t.Errorf("%d keys in %d events, want %d", len(imported), len(w.log.Records())-before, keys)
	}
	logtest.CheckLog(t, w.log)
}

// TestImportRaceOfTenants: two nodes give one digest to two tenants in the same
// moment. The log's order decides, and the answer tells.
func TestImportRaceOfTenants(t *testing.T) {
	// Not logtest.New: the check of a whole log insists that no digest stands twice,
	// and this is the one way to it.
	w := newWorldOn(t, newClock(start), logtest.NewMemLog())
	n, other := w.node("one"), w.node("two")
	w.define(n, "acme", acme)
	late := &commands.Import{Keys: []commands.ImportKey{importKey("a", "t1", "A")}}
	p := w.log.PauseNext(logtest.OpAppend, logtest.BeforeEffect)
	var out []commands.ImportResult
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { out, _, err = n.Import(t.Context(), w.call("", ""), "acme", late) })
	<-p.Entered()
	first := w.imports(other, &commands.Import{Keys: []commands.ImportKey{importKey("a", "t2", "A")}})
	p.Resume()
	wg.Wait()
	if err != nil || outcomes(first) != "imported" || outcomes(out) != "digest:digest_known" {
		t.Fatalf("first %s, late %s, %v", outcomes(first), outcomes(out), err)
	}
	if m := out[0].Errors[0].Message; !strings.Contains(m, first[0].ID.String()) || !strings.Contains(m, "revoke it") {
		t.Errorf("the late one is told: %s", m)
	}
	if again := w.imports(n, late); outcomes(again) != "digest:digest_known" {
		t.Errorf("the late one again: %s", outcomes(again))
	}
	for _, on := range []*node{n, other} {
		if holder, _ := on.dir.Digest(events.NewSecret("a").Digest()); holder != first[0].ID {
			t.Errorf("the digest is %s's, want %s's", holder, first[0].ID)
		}
	}
}

// TestImportTwin plays imports, creates, renames and revokes in any order, on two
// nodes, against a map of digests and one of names.
func TestImportTwin(t *testing.T) {
	type owner struct {
		tenant events.TenantID
		id     events.KeyID
	}
	type label struct {
		tenant events.TenantID
		name   string
	}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t)
		nodes := []*node{w.node("one"), w.node("two")}
		w.define(nodes[0], "acme", acme)
		digests := map[string]owner{}               // hex digest -> who has it
		names := map[label]events.KeyID{}           // live names
		labels := map[events.KeyID]label{}          // of live keys
		created := rapid.SampledFrom([]string{"-"}) // nothing yet
		var made []string
		tenant := rapid.SampledFrom([]events.TenantID{"t1", "t2"})
		letter := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			n := nodes[rapid.IntRange(0, 1).Draw(rt, "node")]
			switch rapid.IntRange(0, 3).Draw(rt, "what") {
			case 0: // create
				l := label{tenant.Draw(rt, "tenant"), letter.Draw(rt, "name")}
				done, err := n.Create(t.Context(), w.call("", ""), "acme", new(newCreate(l.tenant, l.name)))
				if _, taken := names[l]; taken != (codeOf(err) == "duplicate_name") {
					rt.Fatalf("create %v: %v", l, err)
				}
				if err == nil {
					w.secrets = append(w.secrets, done.Secret)
					d := hexOf(done.Secret.Reveal())
					digests[d] = owner{l.tenant, done.Key.ID}
					names[l], labels[done.Key.ID] = done.Key.ID, l
					made = append(made, d)
					created = rapid.SampledFrom(made)
				}
			case 1: // revoke
				if len(labels) == 0 {
					continue
				}
				var ids []string
				for id := range labels {
					ids = append(ids, id.String())
				}
				id, err := events.ParseKeyID(rapid.SampledFrom(slices.Sorted(slices.Values(ids))).Draw(rt, "id"))
				if err != nil {
					rt.Fatal(err)
				}
				if _, err := n.Change(t.Context(), w.call("", ""), "revoke", id, new(commands.Revoke)); err != nil {
					rt.Fatal(err)
				}
				delete(names, labels[id])
				delete(labels, id)
			default: // import
				c := &commands.Import{DryRun: rapid.IntRange(0, 3).Draw(rt, "dry") == 0}
				var want []string
				d2, n2 := maps.Clone(digests), maps.Clone(names) // what a dry run forgets again
				for range rapid.IntRange(1, 6).Draw(rt, "keys") {
					k := importKey(letter.Draw(rt, "secret"), tenant.Draw(rt, "tenant"), letter.Draw(rt, "name"))
					if s := created.Draw(rt, "created"); s != "-" && rapid.IntRange(0, 3).Draw(rt, "steal") == 0 {
						k.Digest = s
					}
					c.Keys = append(c.Keys, k)
					l := label{k.Tenant, k.Name}
					has, known := d2[k.Digest]
					imported := known && has.tenant == k.Tenant && !slices.Contains(made, k.Digest)
					switch _, taken := n2[l]; {
					case imported:
						want = append(want, "already")
					case known:
						want = append(want, "digest:digest_known")
					case taken:
						want = append(want, "name:duplicate_name")
					default:
						want = append(want, map[bool]string{false: "imported", true: "acceptable"}[c.DryRun])
						d2[k.Digest], n2[l] = owner{k.Tenant, events.KeyID{}}, events.KeyID{}
					}
				}
				before := len(w.log.Records())
				out := w.imports(n, c)
				if got := outcomes(out); got != strings.Join(want, ", ") {
					rt.Fatalf("import %+v:\n got %s\nwant %s", c.Keys, got, strings.Join(want, ", "))
				}
				if got := len(w.log.Records()) - before; got != strings.Count(outcomes(out), "imported") {
					rt.Fatalf("%d events of %s", got, outcomes(out))
				}
				for i := range out {
					if out[i].Status == commands.ImportDone {
						l := label{c.Keys[i].Tenant, c.Keys[i].Name}
						digests[c.Keys[i].Digest] = owner{l.tenant, out[i].ID}
						names[l], labels[out[i].ID] = out[i].ID, l
					}
					if out[i].Status == commands.ImportAlready && !c.DryRun && digests[c.Keys[i].Digest].id != out[i].ID {
						rt.Fatalf("already %s, was %s", out[i].ID, digests[c.Keys[i].Digest].id)
					}
				}
			}
		}
		for d, o := range digests {
			var sum events.Digest
			if err := sum.UnmarshalText([]byte(d)); err != nil {
				rt.Fatal(err)
			}
			last, err := w.log.Last(t.Context())
			if err != nil {
				rt.Fatal(err)
			}
			for _, n := range nodes {
				if err := n.dir.Wait(t.Context(), last); err != nil {
					rt.Fatal(err)
				}
				if id, ok := n.dir.Digest(sum); !ok || id != o.id {
					rt.Fatalf("digest is %s's, want %s's", id, o.id)
				}
			}
		}
		logtest.CheckLog(t, w.log)
	})
}

// TestDryRunSeesSecrets: a dry run refuses what the guard of texts will.
func TestDryRunSeesSecrets(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	c := importOf(3)
	c.Keys[1].Metadata = map[string]string{"old": "an-old-secret-of-key-2"}
	c.Keys[2].Digest = hexOf("an-old-secret-of-key-2")
	c.DryRun = true
	before := len(w.log.Records())
	if got := outcomes(w.imports(n, c)); got != "acceptable, metadata.old:secret, acceptable" || len(w.log.Records()) != before {
		t.Errorf("dry: %s", got)
	}
	c.DryRun = false
	if got := outcomes(w.imports(n, c)); got != "imported, metadata.old:secret, imported" {
		t.Error(got)
	}
}

// hooked is a log that does something before each append.
type hooked struct {
	*logtest.MemLog
	before func()
}

func (l *hooked) Append(ctx context.Context, writes ...events.Write) (events.Seq, error) {
	l.before()
	return l.MemLog.Append(ctx, writes...)
}

// TestImportNotSeen: an import that is stored, and that the node's view does not get to
// see, is not answered as if nothing was written.
func TestImportNotSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		other := w.node("two")
		w.define(other, "acme", acme)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		dir, followed := projections.NewDirectory(), make(chan struct{})
		go func() { defer close(followed); _ = projections.Follow(ctx, w.log, dir) }()
		log := &hooked{w.log, func() { stop(); <-followed }}
		n := commands.New(commands.Config{Log: log, Leases: w.log, Dir: dir, Confirm: confirms(w.log, w.log.ID(), "one"), Now: w.clock.now, Node: "one", Logger: slog.New(slog.DiscardHandler)})
		before := len(w.log.Records())
		_, _, err := n.Import(t.Context(), w.call("", ""), "acme", importOf(3))
		if !errors.Is(err, events.ErrUnknownOutcome) || len(w.log.Records()) != before+3 {
			t.Errorf("%v, with %d of 3 keys written", err, len(w.log.Records())-before)
		}
		if p := api.AsProblem(httptest.NewRequest("POST", "/", nil), err); p.Status != 503 || strings.Contains(p.Detail, "nothing was written") {
			t.Errorf("%d %s", p.Status, p.Detail)
		}
		if got := outcomes(w.imports(other, importOf(3))); got != "already, already, already" {
			t.Errorf("again: %s", got)
		}
	})
}

// TestImportsTakeTurns: of many imports at once the log has two at a time, and one whose
// turn does not come is refused and has written nothing.
func TestImportsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var now, most atomic.Int64
		n := w.nodeWith("one", func(c *commands.Config) {
			c.Log = &hooked{w.log, func() {
				for at := now.Add(1); ; {
					if m := most.Load(); at <= m || most.CompareAndSwap(m, at) {
						break
					}
				}
				time.Sleep(time.Second)
				now.Add(-1)
			}}
		})
		w.define(n, "acme", acme)
		before := len(w.log.Records())
		most.Store(0)
		var done, late atomic.Int64
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				_, _, err := n.Import(t.Context(), w.call("", ""), "acme", &commands.Import{Keys: []commands.ImportKey{importKey(fmt.Sprintf("the secret of key %d", i), "t1", fmt.Sprint(i))}})
				switch {
				case err == nil:
					done.Add(1)
				case errors.Is(err, events.ErrUnavailable) && !errors.Is(err, events.ErrUnknownOutcome):
					late.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if most.Load() != 2 || late.Load() == 0 || int(done.Load()) != len(w.log.Records())-before {
			t.Errorf("%d at once; %d imported, %d refused, %d events", most.Load(), done.Load(), late.Load(), len(w.log.Records())-before)
		}
	})
}
