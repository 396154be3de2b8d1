package embed_test

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/projections"
	"github.com/keytrail/keytrail/verifier"
	"github.com/keytrail/keytrail/verifier/embed"
)

// within ends a test's wait.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// TestVerifier: what an embedded verifier decides is on the record to the last use, and
// nothing is allowed once it is closed.
func TestVerifier(t *testing.T) {
	d := deploy()
	defer d.end()
	id, secret := d.create("ci", `,"scopes":["write"],"resources":[{"kind":"project","id":"p1"}],"allowlist":["203.0.113.0/24"]`)
	v := d.open(t, nil)
	req := verifier.Request{Secret: secret, Keyspace: "reports", Scope: "read", Resource: events.Resource{Kind: "project", ID: "p1"}, IP: netip.MustParseAddr("::ffff:203.0.113.7")}
	verify := func(req verifier.Request) events.Reason {
		t.Helper()
		dec, err := v.Verify(within(t), req)
		if err != nil {
			t.Fatal(err)
		}
		return dec.Reason
	}
	want := []events.Reason{}
	expect := func(req verifier.Request, reason events.Reason) {
		t.Helper()
		if got := verify(req); got != reason {
			t.Errorf("%v, want %v", got, reason)
		}
		want = append(want, reason)
	}
	expect(req, events.ReasonOK)
	other := req
	other.Resource.ID = "p2"
	expect(other, events.ReasonResourceNotAllowed)
	other.Scope = "rewrite"
	expect(other, events.ReasonScopeMissing)

	for field, bad := range map[string]verifier.Request{
		"keyspace":      {Keyspace: "Not One"},
		"scope":         {Scope: "no scope"},
		"resource":      {Resource: events.Resource{Kind: "project"}},
		"resource.id":   {Resource: events.Resource{Kind: "project", ID: secret.Reveal()}},
		"max_staleness": {MaxStaleness: -time.Second},
		"min_position":  {Secret: secret, MinPosition: events.Position{Log: events.LogID{9}, Seq: 1}},
	} {
		dec, err := v.Verify(within(t), bad)
		f, ok := errors.AsType[input.FieldErrors](err)
		if !ok || len(f) != 1 || f[0].Field != field || dec.Allowed() || strings.Contains(err.Error(), secret.Reveal()) {
			t.Errorf("%s: %v, allowed: %v", field, err, dec.Allowed())
		}
	}

	pos, err := events.ParsePosition(d.call("DELETE", "/v1/keys/"+id, "")["position"].(string))
	if err != nil {
		t.Fatal(err)
	}
	req.MinPosition = pos
	expect(req, events.ReasonKeyRevoked)

	if err := v.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(within(t)); err != nil {
		t.Errorf("closed again: %v", err)
	}
	select {
	case <-v.Done():
	default:
		t.Error("a closed verifier is not done")
	}
	if err := v.Ready(); err == nil || verify(req) != events.ReasonVerifierStale {
		t.Errorf("a closed verifier answers; ready: %v", err)
	}
	var got []events.Reason
	var kinds []events.BatchKind
	for _, b := range d.records(t, "app-1") {
		kinds = append(kinds, b.Kind)
		for _, u := range b.Uses {
			got = append(got, u.Reason)
		}
	}
	if len(kinds) < 3 || kinds[0] != events.BatchOpen || kinds[len(kinds)-1] != events.BatchClose {
		t.Errorf("the epoch is %v, want one that is opened and closed", kinds)
	}
	if len(got) != len(want) {
		t.Fatalf("%v on the record, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("use %d is %v, want %v", i+1, got[i], want[i])
		}
	}
	rs, err := d.log.Nodes(within(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	for _, r := range rs.Leases {
		if r.Node == "app-1" {
			ended = r.State == events.LeaseEnded
		}
	}
	if !ended {
		t.Errorf("the lease is not given back: %+v", rs)
	}
}

// A verifier starts from its own snapshot.
func TestSnapshot(t *testing.T) {
	d := deploy()
	defer d.end()
	_, secret := d.create("ci", "")
	dir := func(c *embed.Config) { c.Dir = d.dir + "/view" }
	for start := range 2 {
		cfg := d.config()
		dir(&cfg)
		prepared, err := embed.New(within(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if from := prepared.Views().Keys.Resume(); (from > 0) != (start > 0) {
			t.Errorf("start %d is from event %d", start+1, from)
		}
		asked, stop := context.WithCancel(t.Context())
		stop()
		if err := prepared.Run(asked); err != nil { // asked to stop at once
			t.Error(err)
		}
		v := d.open(t, dir)
		if dec, err := v.Verify(within(t), verifier.Request{Secret: secret, Keyspace: "reports"}); err != nil || !dec.Allowed() {
			t.Errorf("start %d: %v, %v", start+1, dec.Reason, err)
		}
		if err := v.Close(within(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// watchedView is a view that says when a snapshot of it is written.
type watchedView struct {
	*projections.Keys
	saving func()
}

func (v *watchedView) Snapshot(w io.Writer, log events.LogID) (events.Seq, error) {
	v.saving()
	return v.Keys.Snapshot(w, log)
}

// A verifier that stops saves its snapshot last: the uses are stored before, and the
// lease is given back.
func TestSnapshotComesLast(t *testing.T) {
	d := deploy()
	defer d.end()
	cfg := d.config()
	cfg.Dir = d.dir + "/view"
	v, err := embed.New(within(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, saved := within(t), false
	saver := v.Views().Savers[0]
	saver.View = &watchedView{v.Views().Keys, func() {
		saved = true
		rs, err := d.log.Nodes(ctx, 0)
		i := slices.IndexFunc(rs.Leases, func(r events.StoredLease) bool { return r.Node == "app-1" })
		if err != nil || i < 0 || rs.Leases[i].State != events.LeaseEnded {
			t.Errorf("a snapshot is saved before the lease is given back: %+v, %v", rs, err)
		}
	}}
	running, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- v.Run(running) }()
	for v.Ready() != nil && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !saved {
		t.Error("no snapshot was saved")
	}
}

// One process holds a name. A second one is refused, unless it takes over: then the
// first ends by itself, says so, and answers nothing more.
func TestName(t *testing.T) {
	d := deploy()
	defer d.end()
	_, secret := d.create("ci", "")
	first := d.open(t, nil)
	for alive := false; !alive; { // the name is held a moment after Ready
		var err error
		if alive, _, err = first.Log().Alive(within(t), "app-1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := embed.Open(within(t), d.config()); !errors.Is(err, events.ErrFenced) {
		t.Fatalf("a second process with the name: %v", err)
	}
	second := d.open(t, func(c *embed.Config) { c.TakeOver = true })
	req := verifier.Request{Secret: secret, Keyspace: "reports"}
	_, _ = first.Verify(within(t), req) // it meets the other's record when it stores this one
	select {
	case <-first.Done():
	case <-within(t).Done():
		t.Fatal("the first goes on")
	}
	if dec, err := first.Verify(within(t), req); err != nil || dec.Reason != events.ReasonVerifierStale {
		t.Errorf("the first answers %v, %v", dec.Reason, err)
	}
	if err := first.Close(within(t)); !errors.Is(err, events.ErrFenced) {
		t.Errorf("the first ended with %v", err)
	}
	if dec, err := second.Verify(within(t), req); err != nil || !dec.Allowed() {
		t.Errorf("the second answers %v, %v", dec.Reason, err)
	}
	if err := second.Close(within(t)); err != nil {
		t.Error(err)
	}
}

// What Open refuses leaves nothing running.
func TestOpenRefuses(t *testing.T) {
	_, err := embed.Open(t.Context(), embed.Config{Name: "a b", StaleCeiling: time.Millisecond})
	if f, ok := errors.AsType[input.FieldErrors](err); !ok || len(f) != 3 {
		t.Errorf("a configuration with three faults: %v", err)
	}
	d := deploy()
	defer d.end()
	cfg := d.config()
	cfg.Password = "another"
	if _, err := embed.Open(within(t), cfg); !errors.Is(err, events.ErrUnavailable) || strings.Contains(err.Error(), "another") {
		t.Errorf("a wrong password: %v", err)
	}
	cfg = d.config()
	cfg.LogID = events.LogID{1}
	if _, err := embed.Open(within(t), cfg); err == nil || !strings.Contains(err.Error(), "connect to the right server") {
		t.Errorf("another log: %v", err)
	}
	cfg = d.config()
	if cfg.Dir = d.dir + "/file"; os.WriteFile(cfg.Dir, nil, 0o600) != nil {
		t.Fatal("the file is not there")
	}
	if _, err := embed.Open(within(t), cfg); err == nil || !strings.Contains(err.Error(), "directory of snapshots") {
		t.Errorf("a file for a directory: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := embed.Open(ctx, d.config()); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}
