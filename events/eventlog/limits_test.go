package eventlog

import (
	"context"
	"fmt"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// TestLimitMail: what a node asks comes under its own name, whatever it writes on it, and
// the answer reaches that node alone.
func TestLimitMail(t *testing.T) {
	s := testServer(t, server.Config{})
	if _, err := server.Init(t.Context(), conn(t, s.ConnectAdmin), server.InitConfig{MaxStore: testStore}); err != nil {
		t.Fatal(err)
	}
	control := openLog(t, conn(t, s.Connect), Options{})
	one := conn(t, edge(s))
	two := conn(t, func() (*nats.Conn, error) { return s.ConnectNode("n2", nodePassword("n2")) })
	nodes := map[events.NodeID]*Log{"n1": openLog(t, one, Options{Edge: true}), "n2": openLog(t, two, Options{Edge: true})}

	asked := make(chan string, 64)
	stop := beside(t, func(ctx context.Context) error {
		return control.ServeLimits(ctx, func(node events.NodeID, ask []byte) {
			asked <- fmt.Sprintf("%s asks %s", node, ask)
			if err := control.AnswerLimits(node, append([]byte("re "), ask...)); err != nil {
				t.Error(err)
			}
		})
	})
	defer stop()
	answered := make(chan string, 64)
	for node, log := range nodes {
		stop := beside(t, func(ctx context.Context) error {
			return log.HearLimits(ctx, node, func(answer []byte) { answered <- fmt.Sprintf("%s hears %s", node, answer) })
		})
		defer stop()
	}
	// A message may come before who is to hear it listens, as any may be lost.
	for node, log := range nodes {
		want := fmt.Sprintf("%s hears re hello", node)
		until(t, want, func() bool {
			if err := log.AskLimits(node, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			select {
			case got := <-answered:
				return got == want
			default:
				return false
			}
		})
	}
	for _, nc := range []*nats.Conn{one, two} {
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	for len(asked) > 0 {
		<-asked
	}
	// n1 pretends to be n2, the allocator, and everybody.
	for _, subject := range []string{streams.LimitPrefix + "n2", streams.LeasedPrefix + "n2", streams.LimitPrefix + "x", streams.LeasedPrefix + "x"} {
		if err := one.Publish(subject, []byte("forged")); err != nil {
			t.Fatal(err)
		}
	}
	if err := nodes["n1"].AskLimits("n1", []byte("last")); err != nil {
		t.Fatal(err)
	}
	for got := ""; got != "n1 asks last"; {
		if got = <-asked; got != "n1 asks last" && got != "n1 asks hello" && got != "n2 asks hello" {
			t.Errorf("the allocator hears %q", got)
		}
	}
	for got := ""; got != "n1 hears re last"; {
		if got = <-answered; got == "n2 hears forged" {
			t.Errorf("%q", got)
		}
	}
}
