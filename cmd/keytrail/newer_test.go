package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

const nextLog = "../../events/testdata/next"

// write puts a message into the lifecycle log as a process of another release
// would.
func write(t *testing.T, nc *nats.Conn, m events.Message) {
	t.Helper()
	ack, err := nc.RequestMsg(&nats.Msg{Subject: m.Subject, Data: m.Data}, patience)
	if err != nil || !strings.Contains(string(ack.Data), `"seq"`) {
		t.Fatalf("%v, %s", err, ack.Data)
	}
}

// TestRolesMeetANewerLog: a role that is older than what wrote to the log ends,
// and asks for an upgrade and not for a backup; the doctor says the same.
func TestRolesMeetANewerLog(t *testing.T) {
	c := startCluster(t, 1)
	nc, err := dial.Connect(c.nats, dial.Login{User: "ctrl", Password: "pw-of-ctrl", Name: "a newer control"})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	write(t, nc, logtest.ReadMessage(t, filepath.Join(nextLog, "new-optional-member.json")))
	told := func(role, text string) {
		t.Helper()
		if !strings.Contains(text, `member \"/ticket\"`) && !strings.Contains(text, `member "/ticket"`) ||
			!strings.Contains(text, "a newer release wrote it. Upgrade this process") || strings.Contains(text, "backup") {
			t.Errorf("%s is told:\n%s", role, text)
		}
	}
	names := map[string]string{"control": "again-control", "verifier": "verifier-2", "auditor": "again-auditor"}
	for role, p := range map[string]*proc{"control": c.control, "verifier": c.verifiers[0], "auditor": c.auditor} {
		select {
		case <-p.exited:
			told("a running "+role, p.stderr.String())
		case <-time.After(patience):
			t.Errorf("the running %s goes on:\n%s", role, p.stderr.String())
		}
		args := []string{role, "--nats", c.nats, "--listen", "127.0.0.1:0", "--name", names[role]}
		if role == "auditor" {
			args = append(args, "--clickhouse", c.dsn)
		}
		p, err := trySpawn(t, c.env, args...)
		if err == nil {
			t.Errorf("a new %s starts", role)
		}
		told("a new "+role, p.stderr.String())
	}
	var out, errw bytes.Buffer
	if code := run(context.Background(), []string{"--url", "http://127.0.0.1:1", "doctor", "--deep", "--nats", c.nats}, nil, &out, &errw); code == 0 {
		t.Error("the doctor finds nothing")
	}
	told("the doctor", out.String())
}

// TestUpMeetsANewerLog: so does a single process, which reads the whole log first.
// A log that is damaged asks for its backup.
func TestUpMeetsANewerLog(t *testing.T) {
	t.Parallel()
	for file, c := range map[string]struct{ want, not string }{
		"new-type":     {`event type "keytrail.key.frozen.v1" is unknown to this release of Keytrail: a newer release wrote it. Upgrade this process to release 2.1, or newer`, "backup"},
		"corrupt-body": {"its store is damaged: stop here, and restore the log from its archive mirror or a backup", "is unknown to this release"},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		up(t, dir).stop(t)
		srv, err := server.Start(server.Config{Dir: filepath.Join(dir, "log")})
		if err != nil {
			t.Fatal(err)
		}
		nc, err := srv.Connect()
		if err != nil {
			t.Fatal(err)
		}
		write(t, nc, logtest.ReadMessage(t, filepath.Join(nextLog, file+".json")))
		nc.Close()
		srv.Stop()
		p, err := trySpawn(t, nil, "up", "--dir", dir, "--listen", "127.0.0.1:0")
		if text := p.stderr.String(); err == nil || !strings.Contains(text, c.want) || strings.Contains(text, c.not) {
			t.Errorf("%s: %v\n%s", file, err, text)
		}
	}
}
