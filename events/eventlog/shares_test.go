package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// guarded waits until the server has the auditor's word of what is copied, and knows how
// large the stream is: it asks once a second.
func guarded(t *testing.T, s *server.Server, auditor *Log, copied events.Seq) {
	t.Helper()
	asks := make(chan struct{}, 16)
	observer := conn(t, s.ConnectAdmin)
	defer closed(observer)
	if _, err := observer.Subscribe("$JS.API.STREAM.INFO."+useStream, func(m *nats.Msg) {
		if len(m.Data) == 0 { // as the server asks, and no log
			asks <- struct{}{}
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := observer.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 3 { // it has the answer to one when it asks again
		if err := errors.Join(auditor.Copied(copied), auditor.nc.Flush()); err != nil {
			t.Fatal(err)
		}
		select {
		case <-asks:
		case <-time.After(patient):
			t.Fatal("the server does not ask how large the stream is")
		}
	}
}

// tryUse tries once to append a node's next message of uses.
func tryUse(t *testing.T, l *Log, node events.NodeID, expect events.Seq, data []byte) (events.Seq, error) {
	t.Helper()
	m := nats.NewMsg(events.UsePrefix + string(node))
	m.Data = data
	m.Header.Set(hdrMsgID, fmt.Sprint(node, "/", expect))
	m.Header.Set(hdrStream, useStream)
	m.Header.Set(hdrExpect, fmt.Sprint(expect))
	ack, err := l.publish(t.Context(), []*nats.Msg{m})
	if err == nil && ack.Error != nil {
		err = ack.Error
	}
	return events.Seq(ack.Seq), err
}

// A node cannot spend the share of another one: what the server says of a message counts,
// not the headers of that name that the node has sent.
func TestSharesBelieveTheServerOnly(t *testing.T) {
	t.Parallel()
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
	guarded(t, s, auditor, 0)
	for _, h := range []nats.Header{
		{"Nats-Subject": {"kt.use.n2"}, "Nats-Msg-Size": {"100000000"}, "Nats-Sequence": {"2"}},
		{"Nats-Subject": {"kt.use.n2"}, "Nats-Msg-Size": {"100000000"}, "Nats-Sequence": {"1000000"}},
	} {
		m := &nats.Msg{Subject: "kt.use.n1", Header: h, Data: []byte("x")}
		if _, err := as("n1", nodePassword("n1")).RequestMsg(m, patient); err != nil {
			t.Fatal(err)
		}
	}
	var last events.Seq
	for i := range 20 { // the server hears a little later what it has stored
		seq, err := n2.Publish(t.Context(), "n2", fmt.Sprint("n2/", i), last, []byte("x"))
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
	n1.transport.patience = patient
	for range 20 { // more than may be under way
		if _, err := tryUse(t, n1, "n1", 0, []byte("x")); !errors.Is(err, errNotSent) {
			t.Errorf("a use is not stored: %v", err)
		}
	}
	until(t, "the caller is told so", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := n1.Publish(ctx, "n1", "n1/1", 0, []byte("x"))
		if errors.Is(err, events.ErrUnknownOutcome) && errors.Is(err, context.DeadlineExceeded) {
			return false // the last try had no time for its answer
		}
		if !errors.Is(err, events.ErrUnavailable) || errors.Is(err, events.ErrUnknownOutcome) {
			t.Errorf("a use is not stored: %v", err)
		}
		return true
	})
	if n := n1.nc.Stats().Reconnects; n > 0 {
		t.Errorf("the node was cut off %d times", n)
	}
}

// A node floods KT_USE while the auditor is away: the uses of the others stay, all of
// them; the flooding node is refused beyond its share, and goes on once the auditor is
// back. Its lease is renewed meanwhile.
func TestAFloodOfUsesStaysInItsShare(t *testing.T) {
	t.Parallel()
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
	tail := make(chan *nats.Msg, 64)
	if _, err := auditor.nc.ChanSubscribe(streams.UseTail, tail); err != nil {
		t.Fatal(err)
	}
	guarded(t, s, auditor, 0)
	body := bytes.Repeat([]byte("x"), 512<<10) // KT_USE has 20 MiB
	var last events.Seq
	flood := func() (stored int, refused error) {
		for stored < 200 {
			seq, err := tryUse(t, flooding, "n1", last, body)
			if errors.Is(err, errNoAnswer) {
				continue
			}
			if err != nil {
				return stored, err
			}
			last = seq
			stored++
			for told := events.Seq(0); told < seq; { // the server counts what it is told so
				select {
				case m := <-tail:
					n, _ := strconv.ParseUint(said(m, "Nats-Sequence"), 10, 64)
					told = events.Seq(n)
				case <-time.After(patient):
					t.Fatalf("message %d is not told", seq)
				}
			}
		}
		return stored, nil
	}
	stored, err := flood()
	if !errors.Is(err, errNotSent) || stored < 10 || stored > 36 {
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
	if _, err := flood(); !errors.Is(err, errNotSent) {
		t.Errorf("the flood goes on: %v", err)
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
	copied, err := auditor.LastUse(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	guarded(t, s, auditor, copied)
	if more, err := flood(); more == 0 {
		t.Errorf("n1 stores nothing once the auditor is back: %v", err)
	}
	for {
		select {
		case m := <-heard:
			if bytes.Contains(m.Data, []byte(`"node":"n1","limit":"share"`)) {
				return
			}
		case <-time.After(patient):
			t.Fatal("the server does not tell that n1 met its share")
		}
	}
}
