package eventlog

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keytrail/keytrail/events"
)

// hangUp dials, and hangs up so that the server drops what it has not read.
type hangUp struct{ conn net.Conn }

func (h *hangUp) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	if err == nil {
		h.conn = c
		err = c.(*net.TCPConn).SetLinger(0)
	}
	return c, err
}

func (h *hangUp) hangUp() { _ = h.conn.Close() }

var floodTime = flag.Duration("flood-time", time.Second, "how long each flood of TestANodeFloods lasts")

// Whoever holds a node's credential asks as fast as they can, over all the connections
// that they get, and connects again for ever. Control and the other nodes go on.
func TestANodeFloods(t *testing.T) {
	var nodes []events.NodeID // one for each flood: the server lets few connections of one in, and goes on with what they have sent
	for i := range 16 {
		nodes = append(nodes, events.NodeID(fmt.Sprint("flood", i)))
	}
	w, stop := startService(t, nodes...)
	publish := func(subject, body string) func(*nats.Conn, int) error {
		return func(nc *nats.Conn, i int) error {
			return nc.Publish(strings.NewReplacer("#", fmt.Sprint(i), "NODE", nc.Opts.User).Replace(subject), []byte(body))
		}
	}
	ask := func(subject, body string) func(*nats.Conn, int) error {
		return func(nc *nats.Conn, _ int) error { return nc.PublishRequest(subject, "_INBOX.x", []byte(body)) }
	}
	floods := []struct {
		name string
		do   func(*nats.Conn, int) error
	}{
		{"connections", func(nc *nats.Conn, i int) error { nc.Close(); return nats.ErrConnectionClosed }},
		{"leases", publish("kt.lease.node.NODE.#", strings.Repeat("x", 200))},
		{"uses, small", publish("kt.use.NODE", "x")},
		{"uses, 32 KiB", publish("kt.use.NODE", strings.Repeat("x", 32<<10))},
		{"uses, 1 MiB", publish("kt.use.NODE", strings.Repeat("x", 1<<20))},
		{"answers", publish("kt.applied.NODE", "x")},
		{"reads", ask("kt.api.DIRECT.GET.KT_LIFE", `{"seq":1,"batch":256}`)},
		{"reads of all", ask("kt.api.DIRECT.GET.KT_LIFE", `{"multi_last":["kt.life.>"],"batch":1000000}`)},
		{"reads of the floor", ask("kt.api.DIRECT.GET.KT_LEASE.kt.lease.floor", "")},
		{"reads through the leader", ask("kt.api.STREAM.MSG.GET.KT_LIFE", `{"seq":1}`)},
		{"reads of the last of all subjects", ask("kt.api.STREAM.MSG.GET.KT_LIFE", `{"last_by_subj":"kt.life.>"}`)},
		{"looks at the stream", ask("kt.api.STREAM.INFO.KT_LIFE", "{}")},
		{"looks at all subjects", ask("kt.api.STREAM.INFO.KT_LIFE", `{"subjects_filter":">"}`)},
		{"subscriptions", func(nc *nats.Conn, i int) error {
			sub, err := nc.SubscribeSync(fmt.Sprint("kt.rp.life.", i))
			if err == nil && i%2 == 0 {
				err = sub.Unsubscribe()
			}
			return err
		}},
	}
	if testing.Short() {
		floods = floods[:3]
	}
	for i, flood := range floods {
		node := nodes[i]
		t.Run(flood.name, func(t *testing.T) {
			w.slowest.Store(0)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			before := w.renewed.Load()
			var sent, connects atomic.Int64
			var all sync.WaitGroup
			for range 12 { // more than may connect
				all.Go(func() {
					for ctx.Err() == nil {
						var wire hangUp
						nc, err := nats.Connect(w.s.URL(), nats.UserInfo(string(node), nodePassword(node)), nats.NoReconnect(), nats.NoEcho(), nats.SetCustomDialer(&wire),
							nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
						if err != nil {
							_ = waitFor(ctx, 10*time.Millisecond)
							continue
						}
						connects.Add(1)
						hungUp := context.AfterFunc(ctx, wire.hangUp) // else a Publish, and with it Close, waits for the proxy
						for i := 0; ctx.Err() == nil && flood.do(nc, i) == nil; i++ {
							sent.Add(1)
						}
						hungUp()
						wire.hangUp()
						closed(nc)
					}
				})
			}
			until(t, "the node floods", func() bool { return connects.Load() > 0 })
			flooded := time.AfterFunc(*floodTime, cancel)
			w.goesOn(t, "in a flood of "+flood.name)
			<-ctx.Done()
			flooded.Stop()
			all.Wait()
			w.goesOn(t, "after a flood of "+flood.name)
			t.Logf("%d sent over %d connections; meanwhile %d renewals of n2; the slowest operation of the others took %s", sent.Load(), connects.Load(), w.renewed.Load()-before, time.Duration(w.slowest.Load()).Round(time.Millisecond))
		})
	}
	t.Run("a subscriber that reads nothing", func(t *testing.T) {
		w.slowest.Store(0)
		for range 8 {
			var nc net.Conn
			until(t, "a subscriber is let in", func() bool {
				c, err := net.Dial("tcp", strings.TrimPrefix(w.s.URL(), "nats://"))
				if err != nil {
					return false
				}
				nc = c
				login, _ := json.Marshal(map[string]any{"user": "n1", "pass": nodePassword("n1"), "headers": true})
				_, err = fmt.Fprintf(nc, "CONNECT %s\r\nPING\r\nSUB _INBOX.> 1\r\n", login)
				for r := bufio.NewReader(nc); err == nil; {
					line := ""
					if line, err = r.ReadString('\n'); strings.HasPrefix(line, "PONG") {
						return true
					}
				}
				nc.Close()
				return false
			})
			defer nc.Close()
			for i := range 100 {
				if _, err := fmt.Fprintf(nc, "PUB kt.api.DIRECT.GET.KT_LIFE _INBOX.y.%d 22\r\n{\"seq\":1,\"batch\":  256}\r\n", i); err != nil {
					break
				}
			}
		}
		w.goesOn(t, "beside subscribers that read nothing")
		t.Logf("the slowest operation of the others took %s", time.Duration(w.slowest.Load()).Round(time.Millisecond))
	})
	stop()
}
