package eventlog

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/events/logtest"
)

// Control asks all nodes at once, and hears each under its own name; what a verifier
// aims at the others is no question to them.
func TestPrompts(t *testing.T) {
	s := testServer(t, server.Config{})
	if _, err := server.Init(t.Context(), conn(t, s.ConnectAdmin), server.InitConfig{MaxStore: testStore}); err != nil {
		t.Fatal(err)
	}
	control := openLog(t, conn(t, s.Connect), Options{})
	if err := control.Raise(t.Context(), events.Head{Log: control.ID()}); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	for _, name := range []events.NodeID{"n1", "n2", "control-2"} {
		connect := func() (*nats.Conn, error) { return s.ConnectNode(name, nodePassword(name)) }
		if name == "control-2" {
			connect = s.Connect
		}
		node := openLog(t, conn(t, connect), Options{Edge: name != "control-2"})
		lease := logtest.Lease(node.ID(), name)
		stop := beside(t, func(ctx context.Context) error {
			return node.Listen(ctx, func(h events.Head) {
				asked.Add(1)
				lease.Applied = h
				if err := node.Say(lease); err != nil {
					t.Error(err)
				}
			})
		})
		defer stop()
	}
	edge := conn(t, edge(s))
	lie := logtest.Lease(control.ID(), "n2")
	lie.Applied.Size = 9
	for subject, body := range map[string]string{ // an answer of the server's, aimed at the others' subject
		"kt.api.STREAM.INFO.KT_LIFE": "{}", "kt.use.n9": "uses", "kt.api.STREAM.MSG.GET.KT_LIFE": `{"seq":1}`,
	} {
		if err := edge.PublishRequest(subject, streams.AskApplied, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := edge.Publish(streams.AppliedPrefix+"n3", []byte("no record")); err != nil {
		t.Fatal(err)
	}
	if err := edge.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	heard := map[events.NodeID]events.Seq{}
	lies := conn(t, func() (*nats.Conn, error) { return s.ConnectNode("n1", nodePassword("n1")) })
	body, _ := events.EncodeLease(&lie)
	stop := beside(t, func(ctx context.Context) error { // while control listens
		for ctx.Err() == nil {
			_ = lies.Publish(streams.AppliedPrefix+"n2", body)
			_ = lies.Publish(streams.AppliedPrefix+"n1", body)
			time.Sleep(time.Millisecond)
		}
		return ctx.Err()
	})
	defer stop()
	err := control.Ask(ctx, events.Head{Log: control.ID(), Size: 7}, func(l events.NodeLease) {
		if l.Applied.Size == 9 {
			t.Errorf("n1 speaks for %s", l.Node)
		}
		if heard[l.Node] = l.Applied.Size; len(heard) == 3 {
			cancel()
		}
	})
	if err != context.Canceled || heard["n1"] != 7 || heard["n2"] != 7 || heard["control-2"] != 7 || len(heard) != 3 {
		t.Errorf("%v, heard %v", err, heard)
	}
	if err := control.Ask(t.Context(), events.Head{Log: events.LogID{1}, Size: 7}, nil); err == nil {
		t.Error("a head of another log is asked for")
	}
}
