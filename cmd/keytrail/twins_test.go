package main

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog"
	"github.com/keytrail/keytrail/events/eventlog/dial"
)

// A second process with a node's name is refused at its start, with a sentence, and
// the first goes on. With --take-over the second starts and the first ends. Once a
// process is killed its name is free.
func TestSecondProcessOfANode(t *testing.T) {
	c := startControl(t)
	first := c.role(t, "verifier", "--name", "verifier-1")
	holdsName(t, c, "verifier-1")
	args := []string{"verifier", "--nats", c.nats, "--listen", "127.0.0.1:0", "--name", "verifier-1"}
	second, err := trySpawn(t, c.env, args...)
	if err == nil {
		t.Fatal("a second process with the name runs")
	}
	<-second.exited
	if code := second.cmd.ProcessState.ExitCode(); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	for _, want := range []string{events.ErrFenced.Error(), "node verifier-1 belongs to a process that is alive", "--take-over"} {
		if !strings.Contains(second.stderr.String(), want) {
			t.Errorf("it does not say %q: %s", want, second.stderr.String())
		}
	}
	if strings.Contains(first.stderr.String(), "fenced") {
		t.Errorf("the first was disturbed: %s", first.stderr.String())
	}
	third := spawn(t, c.env, append(args, "--take-over")...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !ended(first) && ctx.Err() == nil { // it learns it at its next append
		if r, err := http.Post(first.url+"/v1/verify", "application/json", strings.NewReader(`{"key":"kt_nobody","keyspace":"keytrail"}`)); err == nil {
			r.Body.Close()
		}
		time.Sleep(20 * time.Millisecond) // a real process on the other side: poll, do not wait blindly
	}
	if !ended(first) {
		t.Fatal("the first process goes on after the take-over")
	}
	third.kill()
	<-third.exited
	spawn(t, c.env, args...)
}

// startControl starts a log and a control node, as processes.
func startControl(t *testing.T) *cluster {
	t.Helper()
	dir, addr := t.TempDir(), freeAddr(t)
	c := &cluster{nats: "nats://" + addr}
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats)
	c.log = spawn(t, c.env, "log", "--dir", filepath.Join(dir, "log"), "--listen", addr)
	c.initialise(t, filepath.Join(dir, "root.key"))
	c.control = c.role(t, "control", "--name", "control-1")
	return c
}

// holdsName waits until a process answers for the node's name: it does so soon after it
// is ready.
func holdsName(t *testing.T, c *cluster, node events.NodeID) {
	t.Helper()
	nc, err := dial.Connect(c.nats, dial.Login{User: string(node), Password: "pw-of-node"})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	log, err := eventlog.Open(t.Context(), nc, eventlog.Options{Edge: true})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if alive, _, err := log.Alive(t.Context(), node); err != nil || !alive {
			return fmt.Sprintf("nobody answers for the name of node %s: %v", node, err)
		}
		return ""
	})
}

func ended(p *proc) bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}
