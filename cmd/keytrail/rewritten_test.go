package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/keytrail/keytrail/audit/engine"
	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/logtest"
)

// TestRolesRefuseAnotherLog puts an older copy of the log's store in the place of the
// log, written on in another way or not at all: every role refuses it and says why,
// the one that comes back with a snapshot, the one that was paused meanwhile, and the
// one that is connected. In the copy that was rewritten every event continues its
// history and the last one is the very event that the roles applied last: only the
// root of the tree shows that one before it is another.
func TestRolesRefuseAnotherLog(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts a dozen processes for each case")
	}
	scope := func(name string) *events.RoleDefined { return &events.RoleDefined{Scopes: []string{name}} }
	for _, c := range []struct {
		name     string
		rewrite  func(t *testing.T, log *eventlog.Log, role events.Aggregate, last events.Write)
		restored []sentence // one of these a role with a snapshot says
		running  []sentence // one of these a role says that ran meanwhile
	}{
		{"an event before the last is another", func(t *testing.T, log *eventlog.Log, role events.Aggregate, last events.Write) {
			logtest.Append(t, log, role, scope("write"))
			if _, err := log.Append(t.Context(), last); err != nil {
				t.Fatal(err)
			}
		}, []sentence{otherFloor, otherRead, otherCopy, fewerUses}, []sentence{otherFloor, otherRead, otherCopy, fewerUses}},
		{"the last event is another", func(t *testing.T, log *eventlog.Log, role events.Aggregate, last events.Write) {
			logtest.Append(t, log, role, scope("read"), scope("write"), scope("read"))
		}, []sentence{otherEvent, otherFloor, otherCopy, fewerUses}, []sentence{otherEvent, otherFloor, otherRead, otherCopy, fewerUses}},
		{"the last events are gone", func(*testing.T, *eventlog.Log, events.Aggregate, events.Write) {},
			[]sentence{endsBefore}, []sentence{endsBefore, eventGone, fewerUses}},
	} {
		t.Run(c.name, func(t *testing.T) { refuseAnotherLog(t, c.rewrite, c.restored, c.running) })
	}
}

// sentence is what a role may say of a log that is not the one that it has followed,
// as a regular expression. Which one of several comes depends on which of its parts
// notices first.
type sentence string

const (
	// The event at the position: the view, the follower, and the auditor's copy.
	otherEvent sentence = `the log is not the log that (this node has|was) followed( here)?: event \d+ has hash|event \d+ of the log of lifecycle is not the one that its copy in`
	// The root of the tree: a renewal of the lease tells the floor, and a floor is raised.
	otherFloor sentence = `the tree over the first \d+ events that were applied here has root|two histories of one log: the tree over the first \d+ events has root`
	// Control and the auditor read the log again in the background.
	otherRead sentence = `one of the events \d+ to \d+ of the log is not the one that was applied here`
	// The auditor compares the root of its copy with that of its view.
	otherCopy sentence = `the log of lifecycle is not the log that its copy in \S+ is of`
	// The end: a snapshot, the follower, and the copy are ahead of it.
	endsBefore sentence = `the log ends at event \d+, but (snapshot|event \d+ was followed here)|the log of lifecycle ends at event \d+, but its copy in`
	// The event at the position, which is asked for again after a new connection, and
	// what is read again in the background.
	eventGone sentence = `event \d+ is gone from the log`
	// The store holds the use stream too, and the auditor copies it beside the log.
	fewerUses sentence = `the use stream ends at (\d+, but \d+ was read before|message \d+, but its copy in)|message \d+ of the use stream is gone`
)

// saysOne reports whether a role says one of the sentences. Those of the copy are the
// auditor's alone.
func saysOne(role, said string, list []sentence) bool {
	return slices.ContainsFunc(list, func(s sentence) bool {
		return (role == "auditor" || s != otherCopy && s != fewerUses) && regexp.MustCompile(string(s)).MatchString(said)
	})
}

func refuseAnotherLog(t *testing.T, rewrite func(*testing.T, *eventlog.Log, events.Aggregate, events.Write), restored, running []sentence) {
	dir := t.TempDir()
	store, older := filepath.Join(dir, "log"), filepath.Join(dir, "older")
	dsn := enginetest.Start(t, engine.Config{Dir: filepath.Join(dir, "clickhouse")}).DSN()
	at := func(addr string) *cluster {
		nats := "nats://" + addr
		return &cluster{nats: nats, env: append(passwords(), "KEYTRAIL_NATS="+nats)}
	}
	addr := freeAddr(t)
	c, apart := at(addr), at(freeAddr(t))
	serve := func(c *cluster, dir string) {
		c.log = spawn(t, c.env, "log", "--dir", dir, "--listen", strings.TrimPrefix(c.nats, "nats://"))
	}
	open := func(c *cluster) *eventlog.Log {
		nc, err := dial.Connect(c.nats, dial.Login{User: "ctrl", Password: "pw-of-ctrl"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		log, err := eventlog.Open(t.Context(), nc, eventlog.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return log
	}
	serve(c, store)
	c.initialise(t, filepath.Join(dir, "root.key"))
	apart.root = c.root
	control := c.role(t, "control", "--name", "control-0")
	control.must(t, "keyspace", "apply", "-f", regime)
	created := control.data(t, 201, "POST", "/v1/keyspaces/scribe-sight/keys", map[string]any{"tenant": "acme", "name": "ci"})
	control.stop(t)
	c.log.stop(t)
	if err := os.CopyFS(older, os.DirFS(store)); err != nil {
		t.Fatal(err)
	}

	// The log goes on, and all follow it.
	serve(c, store)
	log := open(c)
	role := events.RoleAggregate("scribe-sight", "acme", "r1")
	logtest.Append(t, log, role, &events.RoleDefined{Scopes: []string{"read"}})
	id, err := events.ParseKeyID(created["id"].(string))
	if err != nil {
		t.Fatal(err)
	}
	key := events.KeyAggregate("scribe-sight", "acme", id)
	history, err := log.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	chain := logtest.ChainOf(history)
	last := logtest.Stamp(&chain, logtest.Event(key, new(events.KeyDisabled)))
	if _, err := log.Append(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	roles := map[string][]string{"control": nil, "verifier": nil, "auditor": {"--clickhouse", dsn}}
	start := func(role, name string, more ...string) *proc {
		return c.role(t, role, append(append([]string{"--name", role + "-" + name}, roles[role]...), more...)...)
	}
	ask := map[string]any{"key": created["key"], "keyspace": "scribe-sight", "scope": "read"}
	snapshots := func(role string) []string { return []string{"--dir", filepath.Join(dir, role)} }
	for role := range roles {
		p := start(role, "1", snapshots(role)...)
		if role == "control" {
			p.must(t, "keyspace", "list") // the floor is raised to what is shown
		}
		p.wantReason(t, "key_disabled", ask)
		p.stop(t)
	}
	type runner struct {
		*proc
		role, how string
	}
	var runners []runner
	for role := range roles {
		for number, how := range map[string]string{"1": "paused", "2": "connected"} {
			p := start(role, number)
			p.wantReason(t, "key_disabled", ask)
			runners = append(runners, runner{p, role, how})
		}
	}
	for _, p := range runners {
		if p.how == "paused" {
			p.cmd.Process.Signal(syscall.SIGSTOP)
		}
	}
	c.log.stop(t)

	// The copy is written on elsewhere, with a floor of its own, and then takes the
	// log's place.
	serve(apart, older)
	rewrite(t, open(apart), role, last)
	fresh := apart.role(t, "control", "--name", "control-fresh")
	fresh.must(t, "keyspace", "list")
	fresh.stop(t)
	apart.log.stop(t)
	if err := errors.Join(os.RemoveAll(store), os.Rename(older, store)); err != nil {
		t.Fatal(err)
	}
	serve(c, store)
	for _, p := range runners {
		p.cmd.Process.Signal(syscall.SIGCONT)
		select {
		case <-p.exited:
		case <-time.After(patience):
			p.kill()
			t.Errorf("the %s that was %s goes on", p.role, p.how)
		}
		if said := p.stderr.String(); !saysOne(p.role, said, running) {
			t.Errorf("the %s that was %s: %v\n%s", p.role, p.how, p.err, said)
		}
	}
	for role := range roles {
		args := append(append([]string{role, "--nats", c.nats, "--listen", "127.0.0.1:0", "--name", role + "-1"}, roles[role]...), snapshots(role)...)
		p, err := trySpawn(t, c.env, args...)
		if err == nil || !saysOne(role, p.stderr.String(), restored) {
			t.Errorf("%s with a snapshot: %v", role, err)
		}
	}
}
