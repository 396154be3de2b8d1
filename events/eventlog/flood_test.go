package eventlog

import (
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
)

var floodTime = flag.Duration("flood-time", time.Second, "how long each flood of TestANodeFloods lasts")

// Whoever holds a node's credential asks as fast as they can, over all the connections
// that they get, and connects again for ever. Control and the other nodes go on.
func TestANodeFloods(t *testing.T) {
	w, stop := startService(t)
	publish := func(subject, body string) func(*nats.Conn, int) error {
		return func(nc *nats.Conn, i int) error {
			return nc.Publish(strings.ReplaceAll(subject, "#", fmt.Sprint(i)), []byte(body))
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
		{"leases", publish("kt.lease.node.n1.#", strings.Repeat("x", 200))},
		{"uses, small", publish("kt.use.n1", "x")},
		{"uses, 32 KiB", publish("kt.use.n1", strings.Repeat("x", 32<<10))},
		{"uses, 1 MiB", publish("kt.use.n1", strings.Repeat("x", 1<<20))},
		{"answers", publish("kt.applied.n1", "x")},
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
	for _, flood := range floods {
		t.Run(flood.name, func(t *testing.T) {
			w.slowest.Store(0)
			ctx, cancel := context.WithTimeout(t.Context(), *floodTime)
			defer cancel()
			before := w.renewed.Load()
			var sent, connects atomic.Int64
			var all sync.WaitGroup
			for range 12 { // more than may connect
				all.Go(func() {
					for ctx.Err() == nil {
						nc, err := nats.Connect(w.s.URL(), nats.UserInfo("n1", nodePassword("n1")), nats.NoReconnect(), nats.NoEcho(),
							nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}), nats.Timeout(*floodTime+time.Second))
						if err != nil {
							_ = waitFor(ctx, 10*time.Millisecond)
							continue
						}
						connects.Add(1)
						hangUp := context.AfterFunc(ctx, nc.Close) // else a Publish waits for the proxy
						for i := 0; ctx.Err() == nil && flood.do(nc, i) == nil; i++ {
							sent.Add(1)
						}
						hangUp()
						closed(nc)
					}
				})
			}
			w.goesOn(t, "in a flood of "+flood.name)
			<-ctx.Done()
			all.Wait()
			w.goesOn(t, "after a flood of "+flood.name)
			t.Logf("%d sent over %d connections; meanwhile %d renewals of n2; the slowest operation of the others took %s", sent.Load(), connects.Load(), w.renewed.Load()-before, time.Duration(w.slowest.Load()).Round(time.Millisecond))
		})
	}
	t.Run("a subscriber that reads nothing", func(t *testing.T) {
		w.slowest.Store(0)
		for range 8 {
			nc, err := net.Dial("tcp", strings.TrimPrefix(w.s.URL(), "nats://"))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			login, _ := json.Marshal(map[string]any{"user": "n1", "pass": nodePassword("n1"), "headers": true})
			if _, err := fmt.Fprintf(nc, "CONNECT %s\r\nPING\r\nSUB _INBOX.> 1\r\n", login); err != nil {
				t.Fatal(err)
			}
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
