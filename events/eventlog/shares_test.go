package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
)

// A node cannot spend the share of another one: what the server says of a message counts,
// not the headers of that name that the node has sent.
func TestSharesBelieveTheServerOnly(t *testing.T) {
	c := childConfig(t.TempDir(), "127.0.0.1:0")
	c.Nodes = nodesConf("n1", "n2")
	s := testServer(t, c)
	if _, err := server.Init(t.Context(), conn(t, s.ConnectAdmin), server.InitConfig{MaxStore: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	as := func(user, password string) *nats.Conn {
		return conn(t, func() (*nats.Conn, error) { return nats.Connect(s.URL(), nats.UserInfo(user, password)) })
	}
	auditor, n2 := openLog(t, as("ctrl", "c"), Options{}), openLog(t, as("n2", nodePassword("n2")), Options{Edge: true})
	for range 3 { // the server has the auditor's word, and knows how large the stream is
		if err := errors.Join(auditor.Copied(0), auditor.nc.Flush(), waitFor(t.Context(), time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []nats.Header{
		{"Nats-Subject": {"kt.use.n2"}, "Nats-Msg-Size": {"100000000"}, "Nats-Sequence": {"2"}},
		{"Nats-Subject": {"kt.use.n2"}, "Nats-Msg-Size": {"100000000"}, "Nats-Sequence": {"1000000"}},
	} {
		m := &nats.Msg{Subject: "kt.use.n1", Header: h, Data: []byte("x")}
		if _, err := as("n1", nodePassword("n1")).RequestMsg(m, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	var last events.Seq
	for i := range 20 { // the server hears a little later what it has stored
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		seq, err := n2.Publish(ctx, "n2", fmt.Sprint("n2/", i), last, []byte("x"))
		cancel()
		if err != nil {
			t.Fatalf("use %d of n2: %v", i, err)
		}
		last = seq
	}
}

// While KT_USE has no leader a node is told so at each try, and is not taken for one that
// asks for too much.
func TestUsesWithoutALeader(t *testing.T) {
	c := childConfig(t.TempDir(), "127.0.0.1:0")
	c.Nodes = nodesConf("n1")
	s := testServer(t, c)
	initLog(t, s)
	n1 := openLog(t, conn(t, func() (*nats.Conn, error) { return nats.Connect(s.URL(), nats.UserInfo("n1", nodePassword("n1"))) }), Options{Edge: true})
	js, err := jetstream.New(conn(t, s.ConnectAdmin))
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), "KT_USE"); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		_, err := n1.Publish(ctx, "n1", "n1/1", 0, []byte("x"))
		cancel()
		if !errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrUnknownOutcome) {
			t.Errorf("a use is not stored: %v", err)
		}
	}
	if n := n1.nc.Stats().Reconnects; n > 0 {
		t.Errorf("the node was cut off %d times", n)
	}
}

// A node floods KT_USE while the auditor is away: the uses of the others stay, all of
// them; the flooding node is refused beyond its share, and goes on once the auditor is
// back. Its lease is renewed meanwhile.
func TestAFloodOfUsesStaysInItsShare(t *testing.T) {
	c := childConfig(t.TempDir(), "127.0.0.1:0")
	c.Nodes = nodesConf("n1", "n2")
	s := testServer(t, c)
	if _, err := server.Init(t.Context(), conn(t, s.ConnectAdmin), server.InitConfig{MaxStore: 64 << 20}); err != nil {
		t.Fatal(err)
	}
	as := func(user, password string) *Log {
		return openLog(t, conn(t, func() (*nats.Conn, error) {
			return nats.Connect(s.URL(), nats.UserInfo(user, password))
		}), Options{Edge: user != "ctrl"})
	}
	auditor, flooding, honest := as("ctrl", "c"), as("n1", nodePassword("n1")), as("n2", nodePassword("n2"))
	heard := make(chan *nats.Msg, 64)
	if _, err := auditor.nc.ChanSubscribe("kt.limited", heard); err != nil {
		t.Fatal(err)
	}
	// The server has the auditor's word, and knows how large the stream is.
	ready := func() {
		t.Helper()
		last, err := auditor.LastUse(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := errors.Join(auditor.Copied(last), auditor.nc.Flush(), waitFor(t.Context(), time.Second)); err != nil {
				t.Fatal(err)
			}
		}
	}
	ready()
	body := bytes.Repeat([]byte("x"), 512<<10) // KT_USE has 20 MiB
	var last events.Seq
	flood := func() (stored int, refused error) {
		for stored < 200 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			seq, err := flooding.Publish(ctx, "n1", fmt.Sprint("n1/", last), last, body)
			cancel()
			if err != nil {
				return stored, err
			}
			last = seq
			stored++
		}
		return stored, nil
	}
	stored, err := flood()
	if err == nil || stored < 10 || stored > 36 {
		t.Errorf("the flood stores %d messages of 512 KiB in 20 MiB: %v", stored, err)
	}
	var of2 []events.Seq
	var last2 events.Seq
	for i := range 7 { // its share is 4 MiB
		seq, err := honest.Publish(t.Context(), "n2", fmt.Sprint("n2/", i), last2, body)
		if err != nil {
			t.Fatalf("use %d of n2: %v", i, err)
		}
		of2, last2 = append(of2, seq), seq
	}
	if _, err := flood(); err == nil {
		t.Error("the flood goes on")
	}
	// All is there for the auditor, from the first message on.
	var read []events.UseMessage
	for after := events.Seq(0); after < last2; after = read[len(read)-1].Seq {
		got, err := auditor.ReadUses(t.Context(), after, 256)
		if err != nil {
			t.Fatal(err)
		}
		read = append(read, got...)
	}
	if read[0].Seq != 1 || len(read) != stored+len(of2) {
		t.Errorf("the auditor reads %d messages from %d on, want %d from 1 on", len(read), read[0].Seq, stored+len(of2))
	}
	ready()
	if more, err := flood(); more == 0 {
		t.Errorf("n1 stores nothing once the auditor is back: %v", err)
	}
	for {
		select {
		case m := <-heard:
			if bytes.Contains(m.Data, []byte(`"node":"n1","limit":"share"`)) {
				return
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the server does not tell that n1 met its share")
		}
	}
}
