package commands_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/projections"
)

// step is one write of each command: given the key, do it under the call.
type step struct {
	name string
	// do carries it out and returns the key that the answer shows.
	do     func(ctx context.Context, n *node, call *commands.Call, key events.KeyID) (commands.Done, error)
	events int // that it appends
}

var steps = []step{
	{"create", func(ctx context.Context, n *node, call *commands.Call, _ events.KeyID) (commands.Done, error) {
		return n.Create(ctx, call, "acme", &commands.Create{Tenant: "t1", Name: "made"})
	}, 1},
	{"create with permissions", func(ctx context.Context, n *node, call *commands.Call, _ events.KeyID) (commands.Done, error) {
		return n.Create(ctx, call, "acme", &commands.Create{Tenant: "t1", Name: "made", Permissions: &commands.Permissions{Scopes: &[]string{"write"}}})
	}, 2},
	{"scopes", change(&commands.AssignScopes{Scopes: &[]string{"write"}}), 1},
	{"resources", change(&commands.AssignResources{Resources: &[]events.Resource{{Kind: "project", ID: "p"}}}), 1},
	{"allowlist", change(&commands.SetAllowlist{Allowlist: &[]string{"10.0.0.0/8"}}), 1},
	{"limit", change(&commands.SetLimit{Limit: commands.Some(keyspace.Limit{Plan: "pro"})}), 1},
	{"patch", change(&commands.Patch{Name: ptr("other"), ExpiryWish: commands.ExpiryWish{ExpiresIn: ptr("1h")}}), 2},
	{"disable", change(new(commands.Disable)), 1},
	{"revoke", change(new(commands.Revoke)), 1},
	{"rotate", func(ctx context.Context, n *node, call *commands.Call, key events.KeyID) (commands.Done, error) {
		return n.Rotate(ctx, call, key, &commands.Rotate{Overlap: ptr("1h")})
	}, 2},
	{"keyspace", func(ctx context.Context, n *node, call *commands.Call, _ events.KeyID) (commands.Done, error) {
		d := acme
		d.Title = "Acme"
		_, done, err := n.DefineKeyspace(ctx, call, "acme", &commands.DefineKeyspace{Definition: d})
		return done, err
	}, 1},
	{"role", func(ctx context.Context, n *node, call *commands.Call, _ events.KeyID) (commands.Done, error) {
		_, done, err := n.DefineRole(ctx, call, commands.RoleRef{Keyspace: "acme", Tenant: "t1", Role: "dev"}, &commands.DefineRole{Scopes: &[]string{"read"}})
		return done, err
	}, 1},
	{"tenant limit", func(ctx context.Context, n *node, call *commands.Call, _ events.KeyID) (commands.Done, error) {
		_, done, err := n.SetTenantLimit(ctx, call, "acme", "t1", &commands.SetTenantLimit{Limit: commands.Some(keyspace.Limit{Plan: "pro"})})
		return done, err
	}, 1},
	{"keyspace with violations", func(ctx context.Context, n *node, call *commands.Call, _ events.KeyID) (commands.Done, error) {
		d := acme
		d.Expiry.Required = true
		_, done, err := n.DefineKeyspace(ctx, call, "acme", &commands.DefineKeyspace{Definition: d, AcceptViolations: true})
		return done, err
	}, 1},
}

func change(c commands.Change) func(context.Context, *node, *commands.Call, events.KeyID) (commands.Done, error) {
	return func(ctx context.Context, n *node, call *commands.Call, key events.KeyID) (commands.Done, error) {
		return n.Change(ctx, call, "test", key, c)
	}
}

// TestFaults lets every command meet every fault of every call to the log, then
// retries it under its idempotency key, and again on another node: the events of
// the command stand in the log exactly once, and the answers agree.
func TestFaults(t *testing.T) {
	faults := map[string]logtest.Fault{"unavailable": logtest.Unavailable, "full": logtest.Full,
		"unknown, not stored": logtest.UnknownNotStored, "unknown, stored": logtest.UnknownStored}
	ops := map[string]logtest.Op{"append": logtest.OpAppend, "load": logtest.OpLoad, "confirm": logtest.OpRenew, "raise": logtest.OpRaise}
	for _, s := range steps {
		for opName, op := range ops {
			for faultName, fault := range faults {
				for _, retrySucceeds := range []bool{false, true} {
					if op == logtest.OpLoad && (fault != logtest.Unavailable || retrySucceeds) || op == logtest.OpRaise && fault == logtest.Full {
						continue // such a call has one way to fail
					}
					t.Run(fmt.Sprintf("%s/%s/%s/%t", s.name, opName, faultName, retrySucceeds), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							w := newWorld(t)
							w.log.RetrySucceeds = retrySucceeds
							n, other := w.node("one"), w.node("two")
							w.define(n, "acme", acme)
							key := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "given"}).Key.ID
							before := len(w.log.Records())

							w.log.FailNext(op, fault)
							first, err := s.do(t.Context(), n, w.call("k1", s.name), key)
							settled := op == logtest.OpAppend && (fault == logtest.UnknownStored || fault == logtest.UnknownNotStored) ||
								op == logtest.OpRaise || op == logtest.OpRenew && fault != logtest.Full
							if settled != (err == nil) {
								t.Fatalf("err = %v", err)
							}
							if err != nil && !errors.Is(err, events.ErrUnavailable) && !errors.Is(err, events.ErrFull) {
								t.Fatalf("err = %v, want one that says that nothing is stored", err)
							}
							if got := len(w.log.Records()) - before; err != nil && got != 0 {
								t.Fatalf("%d events of a command that failed", got)
							}
							if !first.Secret.IsZero() {
								w.secrets = append(w.secrets, first.Secret)
							}

							again, err := s.do(t.Context(), n, w.call("k1", s.name), key)
							if err != nil {
								t.Fatalf("again: %v", err)
							}
							third, err := s.do(t.Context(), other, w.call("k1", s.name), key)
							if err != nil {
								t.Fatalf("on the other node: %v", err)
							}
							if again.Seq != third.Seq || !third.Replayed || !third.Secret.IsZero() || again.Key.ID != third.Key.ID {
								t.Errorf("answers differ: at %d, then at %d, replayed %t", again.Seq, third.Seq, third.Replayed)
							}
							if first.Seq != 0 && (first.Seq != again.Seq || !again.Replayed || !again.Secret.IsZero()) {
								t.Errorf("answers differ: at %d, then at %d, replayed %t", first.Seq, again.Seq, again.Replayed)
							}
							if got := len(w.log.Records()) - before; got != s.events {
								t.Errorf("%d events, want %d", got, s.events)
							}
							if nodes, err := w.log.Nodes(t.Context(), 0); err != nil || nodes.Floor.Size < third.Seq {
								t.Errorf("event %d was acknowledged, and the floor is %d, %v", third.Seq, nodes.Floor.Size, err)
							}
							logtest.CheckLog(t, w.log)
						})
					})
				}
			}
		}
	}
}

// TestUnknownForLong keeps the outcome unknown: the command gives up within its
// budget and says so, and a retry finds what was stored.
func TestUnknownForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.node("one")
		w.define(n, "acme", acme)
		w.log.FailNext(logtest.OpAppend, logtest.UnknownStored)
		for range 100 {
			w.log.FailNext(logtest.OpAppend, logtest.UnknownNotStored)
		}
		began := time.Now()
		call := w.call("k1", "")
		_, err := n.Create(t.Context(), call, "acme", &commands.Create{Tenant: "t1", Name: "a"})
		if !errors.Is(err, events.ErrUnknownOutcome) {
			t.Fatalf("err = %v", err)
		}
		if took := time.Since(began); took < 10*time.Second || took > 12*time.Second {
			t.Errorf("gave up after %s", took)
		}
		done, err := n.Create(t.Context(), call, "acme", &commands.Create{Tenant: "t1", Name: "a"})
		if err != nil || !done.Replayed {
			t.Errorf("retry: replayed %t, %v", done.Replayed, err)
		}
	})
}

// TestConflictAfterUnknown: the first try was not stored, and another command
// got in between. The command is decided anew on the history as it then is.
func TestConflictAfterUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n, other := w.node("one"), w.node("two")
		w.define(n, "acme", acme)
		key := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "a"}).Key
		p := w.log.PauseNext(logtest.OpAppend, logtest.BeforeEffect)
		w.log.FailNext(logtest.OpAppend, logtest.UnknownNotStored)
		var wg sync.WaitGroup
		wg.Go(func() {
			done, err := n.Change(t.Context(), w.call("", ""), "scopes", key.ID, &commands.AssignScopes{Scopes: &[]string{"write"}})
			if err != nil || done.Replayed {
				t.Errorf("scopes: %v", err)
			}
		})
		<-p.Entered()
		if _, err := other.Change(t.Context(), w.call("", ""), "disable", key.ID, new(commands.Disable)); err != nil {
			t.Error(err)
		}
		p.Resume()
		wg.Wait()
		k, history := w.load(&key)
		if len(history) != 3 || k.Status != events.StatusDisabled || k.Grant.Scopes[0] != "write" {
			t.Errorf("%d events: %s with %s", len(history), k.Status, k.Grant.Scopes)
		}
	})
}

// TestManyWriters lets two nodes write one key at once. Every command that says
// ok is one event, and none is lost or doubled.
func TestManyWriters(t *testing.T) {
	w := newWorld(t)
	nodes := []*node{w.node("one"), w.node("two")}
	w.define(nodes[0], "acme", acme)
	key := w.create(nodes[0], "acme", commands.Create{Tenant: "t1", Name: "a"}).Key
	const writers, writes = 6, 15
	ok := make([]int, writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for j := range writes {
				list := []string{fmt.Sprintf("10.%d.%d.0/24", i, j)}
				_, err := nodes[i%2].Change(t.Context(), w.call("", ""), "allowlist", key.ID, &commands.SetAllowlist{Allowlist: &list})
				if err == nil {
					ok[i]++
				} else if !errors.Is(err, events.ErrConflict) {
					t.Errorf("writer %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range ok {
		sum += n
	}
	if _, history := w.load(&key); len(history) != 1+sum || sum == 0 {
		t.Errorf("%d events after %d commands that went through", len(history)-1, sum)
	}
}

// TestOnlyOneEnds: of many who revoke, disable and rotate one key, the log's
// order says who was first; the others are refused.
func TestOnlyOneRotates(t *testing.T) {
	w := newWorld(t)
	nodes := []*node{w.node("one"), w.node("two")}
	w.define(nodes[0], "acme", acme)
	key := w.create(nodes[0], "acme", commands.Create{Tenant: "t1", Name: "a"}).Key
	var mu sync.Mutex
	codes := map[string]int{}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			done, err := nodes[i%2].Rotate(t.Context(), w.call("", ""), key.ID, &commands.Rotate{Overlap: ptr("1h")})
			mu.Lock()
			defer mu.Unlock()
			codes[codeOf(err)]++
			if err == nil {
				w.secrets = append(w.secrets, done.Secret)
			}
		})
	}
	wg.Wait()
	if codes["ok"] != 1 || codes["already_rotated"] != 7 {
		t.Errorf("codes: %v", codes)
	}
}

// TestCreateRaces lets two nodes meet the same request under one idempotency key
// at once: one key, one secret shown.
func TestCreateRaces(t *testing.T) {
	for round := range 20 {
		w := newWorld(t)
		nodes := []*node{w.node("one"), w.node("two")}
		w.define(nodes[0], "acme", acme)
		if err := nodes[1].dir.Wait(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		done := make([]commands.Done, 4)
		var wg sync.WaitGroup
		for i := range done {
			wg.Go(func() {
				var err error
				done[i], err = nodes[i%2].Create(t.Context(), w.call("k1", "a"), "acme", &commands.Create{Tenant: "t1", Name: "a"})
				if err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			})
		}
		wg.Wait()
		shown := 0
		for _, d := range done {
			if !d.Secret.IsZero() {
				shown++
				if d.Secret.Digest() != d.Key.Digest {
					t.Error("the secret shown is not the key's")
				}
			}
			if d.Key.ID != done[0].Key.ID || d.Seq != done[0].Seq || d.Secret.IsZero() != d.Replayed {
				t.Errorf("round %d: %s at %d and %s at %d", round, done[0].Key.ID, done[0].Seq, d.Key.ID, d.Seq)
			}
		}
		if shown != 1 {
			t.Errorf("round %d: %d secrets shown", round, shown)
		}
	}
}

// TestIdempotency replays a command after later events, and refuses the same
// idempotency key with another request.
func TestIdempotency(t *testing.T) {
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			w := newWorld(t)
			n := w.node("one")
			w.define(n, "acme", acme)
			key := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "given"}).Key.ID
			first, err := s.do(t.Context(), n, w.call("k1", s.name), key)
			if err != nil {
				t.Fatal(err)
			}
			if first.Replayed {
				t.Error("the first is a replay")
			}
			if first.Key.Exists() && first.Key.Status == events.StatusActive {
				if _, err := n.Change(t.Context(), w.call("k2", ""), "limit", first.Key.ID, &commands.SetLimit{Limit: commands.Some(keyspace.Limit{PerMinute: 7, Burst: 7})}); err != nil {
					t.Fatal(err)
				}
			}
			size := len(w.log.Records())
			w.clock.step(1000 * day) // any delay
			again, err := s.do(t.Context(), n, w.call("k1", s.name), key)
			if err != nil || !again.Replayed || again.Seq != first.Seq || !again.Secret.IsZero() || again.Key.ID != first.Key.ID {
				t.Errorf("replay: at %d replayed %t, %v; was at %d", again.Seq, again.Replayed, err, first.Seq)
			}
			if first.Key.Status == events.StatusActive && again.Key.Rev <= first.Key.Rev {
				t.Error("the replay does not show the resource as it is now")
			}
			if _, err := s.do(t.Context(), n, w.call("k1", "another request"), key); codeOf(err) != "idempotency_key_reused" {
				t.Errorf("another request: %s", codeOf(err))
			}
			if len(w.log.Records()) != size {
				t.Error("a replay wrote something")
			}
		})
	}
}

// TestNames: one live key of a tenant per name; the name is free again when the
// key has ended, and elsewhere.
func TestNames(t *testing.T) {
	w := newWorld(t)
	n, other := w.node("one"), w.node("two")
	w.define(n, "acme", acme)
	w.define(n, "zeta", acme)
	a := w.create(n, "acme", commands.Create{Tenant: "t1", Name: "A"}).Key.ID
	try := func(on *node, ks events.KeyspaceID, tenant events.TenantID, name string) string {
		done, err := on.Create(t.Context(), w.call("", ""), ks, &commands.Create{Tenant: tenant, Name: name})
		if err == nil {
			w.secrets = append(w.secrets, done.Secret)
		}
		return codeOf(err)
	}
	for _, tt := range []struct {
		on     *node
		ks     events.KeyspaceID
		tenant events.TenantID
		name   string
		want   string
	}{
		{n, "acme", "t1", "A", "duplicate_name"},
		{other, "acme", "t1", "A", "duplicate_name"},
		{other, "acme", "t1", "a", "ok"},
		{other, "acme", "t1", "AA", "ok"},
		{n, "acme", "t2", "A", "ok"},
		{n, "zeta", "t1", "A", "ok"},
	} {
		if got := try(tt.on, tt.ks, tt.tenant, tt.name); got != tt.want {
			t.Errorf("%s/%s/%s: %s, want %s", tt.ks, tt.tenant, tt.name, got, tt.want)
		}
	}
	if _, err := other.Change(t.Context(), w.call("", ""), "patch", a, &commands.Patch{Name: ptr("AA")}); codeOf(err) != "duplicate_name" {
		t.Errorf("rename: %s", codeOf(err))
	}
	if _, err := n.Change(t.Context(), w.call("", ""), "disable", a, new(commands.Disable)); err != nil {
		t.Fatal(err)
	}
	if got := try(n, "acme", "t1", "A"); got != "duplicate_name" {
		t.Errorf("a disabled key's name: %s", got)
	}
	if _, err := n.Change(t.Context(), w.call("", ""), "revoke", a, new(commands.Revoke)); err != nil {
		t.Fatal(err)
	}
	if got := try(other, "acme", "t1", "A"); got != "ok" {
		t.Errorf("a revoked key's name: %s", got)
	}

	// One node is exact.
	var mu sync.Mutex
	codes := map[string]int{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			got := try1(w, n)
			mu.Lock()
			defer mu.Unlock()
			codes[got]++
		})
	}
	wg.Wait()
	if codes["ok"] != 1 || codes["duplicate_name"] != 7 {
		t.Errorf("eight at once: %v", codes)
	}
}

func try1(w *world, n *node) string {
	_, err := n.Create(w.Context(), w.call("", ""), "acme", &commands.Create{Tenant: "t9", Name: "same"})
	return codeOf(err)
}

// TestBehind: a node whose view does not move decides nothing.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		n := w.node("one")
		w.define(n, "acme", acme)
		stuck := commands.New(commands.Config{Log: w.log, Leases: w.log, Confirm: confirms(w.log, w.log.ID(), "stuck"), Dir: projections.NewDirectory(), Now: w.clock.now, Node: "stuck", Logger: slog.New(slog.DiscardHandler)})
		size := len(w.log.Records())
		_, err := stuck.Create(t.Context(), w.call("", ""), "acme", &commands.Create{Tenant: "t1", Name: "a"})
		if !errors.Is(err, events.ErrUnavailable) || len(w.log.Records()) != size {
			t.Errorf("err = %v", err)
		}
		w.log.SetDown(true)
		if _, err := n.Create(t.Context(), w.call("", ""), "acme", &commands.Create{Tenant: "t1", Name: "a"}); !errors.Is(err, events.ErrUnavailable) {
			t.Errorf("log down: %v", err)
		}
		w.log.SetDown(false)
	})
}

// TestEnvelope reads what the events say of the request.
func TestEnvelope(t *testing.T) {
	w := newWorld(t)
	n := w.node("one")
	w.define(n, "acme", acme)
	call := w.call("k", "x")
	call.Reason = "because"
	call.Principal.UserAgent = "agent\x00\xff" + strings.Repeat("x", 500)
	call.Principal.RequestID = "req_1"
	done, err := n.Create(t.Context(), call, "acme", &commands.Create{Tenant: "t1", Name: "a", Reason: "because"})
	if err != nil {
		t.Fatal(err)
	}
	_, history := w.load(&done.Key)
	e := history[0].Event
	if e.Source != "/keytrail/control/one" || e.Reason != "because" || e.RequestID != "req_1" || e.Command != call.Command ||
		e.Actor != call.Principal.Actor || e.IP != call.Principal.IP || e.Time != w.clock.at() ||
		!strings.HasPrefix(e.UserAgent, "agent\uFFFDxxx") || len([]rune(e.UserAgent)) != 256 {
		t.Errorf("%+v", e)
	}
	// A node whose clock is behind does not write before what it follows.
	w.clock.step(-time.Hour)
	if _, err := n.Change(t.Context(), w.call("", ""), "disable", done.Key.ID, new(commands.Disable)); err != nil {
		t.Fatal(err)
	}
	if _, history = w.load(&done.Key); history[1].Time != history[0].Time {
		t.Errorf("the history goes back from %s to %s", history[0].Time, history[1].Time)
	}
}

// TestHistoryIsReadOnTheRecord: who reads a key's history is written down first,
// and where that fails nothing is read.
func TestHistoryIsReadOnTheRecord(t *testing.T) {
	w := newWorld(t)
	var fail error
	var read []string
	n := w.nodeWith("one", func(c *commands.Config) {
		c.Walk = func(_ context.Context, who *events.Principal, walk events.Seq, q *events.AuditQueried) (events.Seq, error) {
			read = append(read, fmt.Sprint(who.Actor.ID, " ", q.Kind, " ", q.Filter["key"], " ", walk))
			return 7, fail
		}
	})
	id := w.rootID.String()
	path := "/v1/keys/" + id + "/history"
	if a := n.do(w.root, "GET", path, ""); a.Code != http.StatusOK || !strings.Contains(a.Body.String(), "key.created") {
		t.Errorf("%d %s", a.Code, a.Body)
	}
	fail = events.ErrUnavailable
	if a := n.do(w.root, "GET", path, ""); a.Code != http.StatusServiceUnavailable || strings.Contains(a.Body.String(), "key.created") {
		t.Errorf("not written down, and yet: %d %s", a.Code, a.Body)
	}
	// A later page tells the walk that the first one began.
	fail = nil
	if a := n.do(w.root, "PATCH", "/v1/keys/"+id, `{"name":"the first"}`); a.Code != http.StatusOK {
		t.Fatalf("%d %s", a.Code, a.Body)
	}
	first := n.do(w.root, "GET", path+"?limit=1", "")
	next := member(t, first, "next_cursor")
	if a := n.do(w.root, "GET", path+"?limit=1&cursor="+next, ""); a.Code != http.StatusOK || !strings.Contains(a.Body.String(), "key.renamed") {
		t.Errorf("%d %s", a.Code, a.Body)
	}
	want := id + " history " + id + " "
	if !slices.Equal(read, []string{want + "0", want + "0", want + "0", want + "7"}) {
		t.Errorf("written down: %q", read)
	}
}
