package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
)

// The plain image's configuration gives the same rights as the embedded server:
// it carries the same text. Package eventlog's tests try the rights of both.
func TestPlainServerHasTheSameAccounts(t *testing.T) {
	const natsConf = "../../../deploy/nats/nats.conf"
	text, err := os.ReadFile(natsConf)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(text), accountsConf) {
		t.Errorf("%s does not end in the text of accounts.conf", natsConf)
	}
}

// start starts a server that stops with the test.
func start(t *testing.T, c Config) *Server {
	t.Helper()
	s, err := Start(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func TestConfig(t *testing.T) {
	err := (&Config{Listen: "x", Monitor: "y:z", MaxStore: -1, Cluster: &Cluster{}, Passwords: Passwords{Ctrl: `a"b`}}).Validate()
	for _, want := range []string{"dir:", "listen:", "monitor:", "cluster listen:", "name:", "max store:", "password of ctrl"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want it to say %q", err, want)
		}
	}
	pw := Passwords{Admin: "sesame"}
	if s := fmt.Sprintf("%v %+v %#v %s", pw, pw, pw, Config{Passwords: pw}.Passwords); strings.Contains(s, "sesame") {
		t.Errorf("passwords print: %s", s)
	}
	s := start(t, Config{MaxStore: 256 << 20, Dir: filepath.Join(t.TempDir(), "a", "b"), Listen: "127.0.0.1:0", Monitor: "127.0.0.1:0"})
	if s.URL() == "" || s.Monitor() == nil || s.ClusterAddr() != nil {
		t.Errorf("url %q, monitor %v, cluster %v", s.URL(), s.Monitor(), s.ClusterAddr())
	}
	if err := s.WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
	if n, err := s.Budget(); err != nil || n <= 0 || n > 256<<20 {
		t.Errorf("budget %d, %v", n, err)
	}
}

// deploy/nats/nodes.conf has the entries that NodeConf makes today.
func TestNodesConf(t *testing.T) {
	text, err := os.ReadFile("../../../deploy/nats/nodes.conf")
	if err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, node := range []events.NodeID{"verifier-1", "verifier-2"} {
		entry, err := NodeConf(node, "$KEYTRAIL_"+strings.ToUpper(strings.ReplaceAll(string(node), "-", "_"))+"_PASSWORD")
		if err != nil {
			t.Fatal(err)
		}
		want += entry
	}
	if !strings.HasSuffix(string(text), "\n"+want) {
		t.Errorf("nodes.conf is not what NodeConf makes; make it anew with\nkeytrail log credential --variable …\n%s", want)
	}
	for _, bad := range [][2]string{{"ctrl", "x"}, {"a b", "x"}, {"a.b", "x"}, {"n1", ""}, {"n1", `x" }`}, {"n1", "a b"}, {">", "x"}} {
		if _, err := NodeConf(events.NodeID(bad[0]), bad[1]); err == nil {
			t.Errorf("node %q with password %q is accepted", bad[0], bad[1])
		}
	}
}

func TestPasswordsAreNotPrinted(t *testing.T) {
	pw := Passwords{Admin: "sesame-a", Ctrl: "sesame-c", Sys: "sesame-s", Route: "sesame-r"}
	var out bytes.Buffer
	slog.New(slog.NewJSONHandler(&out, nil)).Info("start", "config", Config{Passwords: pw}, "passwords", pw)
	for _, verb := range "vTtbcdoOqxXUeEfFgGs" { // fmt asks nobody for %p, and vet refuses it
		fmt.Fprintf(&out, "%"+string(verb)+" %+"+string(verb)+" %#"+string(verb), pw, Config{Passwords: pw}, &pw)
	}
	for _, s := range []string{"sesame", fmt.Sprintf("%x", "sesame")} {
		if strings.Contains(out.String(), s) {
			t.Errorf("a password is printed: %s", out.String())
		}
	}
}
