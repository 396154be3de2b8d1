package server

import (
	_ "embed"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"text/template"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
)

// nodeConf is one verifier node's account, as nodes.conf holds it.
//
//go:embed node.conf.tmpl
var nodeConf string

var nodeTemplate = template.Must(template.New("node.conf").Parse(nodeConf))

// nodesLine is where the configuration of a plain server includes nodes.conf.
const nodesLine = `include "nodes.conf"`

// users are the users that are no verifier node's.
var users = []string{"admin", "ctrl", "sys"}

// NodeConf returns the account of a verifier node as nodes.conf holds it: the text
// that lets the node in. password is the password itself, its bcrypt hash, or a
// variable of the server's environment ("$NAME").
func NodeConf(node events.NodeID, password string) (string, error) {
	if err := node.Validate(); err != nil {
		return "", err
	}
	if slices.Contains(users, string(node)) {
		return "", fmt.Errorf("node %s: a user of the log has this name: choose another", node)
	}
	if password == "" || !visible(password) {
		return "", fmt.Errorf("password of node %s: %w", node, errPassword)
	}
	if password[0] != '$' || strings.HasPrefix(password, "$2") { // no variable; a bcrypt hash begins with $2
		password = `"` + password + `"`
	}
	var b strings.Builder
	err := nodeTemplate.Execute(&b, struct {
		Node     events.NodeID
		Password string
	}{node, password})
	return b.String(), err
}

var errPassword = errors.New("want visible ASCII characters without quotes and backslashes")

func visible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '"' || r == '\'' || r == '\\' })
}

// ConnectNode returns an in-process connection as a verifier node of Config.Nodes.
func (s *Server) ConnectNode(node events.NodeID, password string) (*nats.Conn, error) {
	return s.connect(dial.Login{User: string(node), Password: dial.Password(password)})
}

// SetNodes replaces Config.Nodes while the server runs: nodes that are new may
// connect, and the connections of those that are gone, or whose password is another
// one, are closed before it returns. After an error the server goes on as before.
func (s *Server) SetNodes(nodes string) error {
	c := s.config
	c.Nodes = nodes
	opts, err := c.options()
	if err == nil {
		if a, ok := s.s.Addr().(*net.TCPAddr); ok && opts.Port == -1 { // it listens somewhere already
			opts.Port = a.Port
		}
		err = s.s.ReloadOptions(opts)
	}
	if err != nil {
		return fmt.Errorf("log server: nodes: %w", err)
	}
	s.config = c
	s.nodes.Store(int64(len(opts.Users) - len(users)))
	return nil
}
