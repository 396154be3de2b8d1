package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/dial"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/events/logtest"
)

// cluster is three servers in this process, over loopback TCP.
type cluster struct {
	t       *testing.T
	configs []server.Config
	servers []*server.Server // nil while stopped
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, servers: make([]*server.Server, 3)}
	ports := freePorts(t, 6)
	for i := range 3 {
		config := childConfig(t.TempDir(), ports[3+i])
		config.Name = fmt.Sprint("n", i)
		config.Cluster = &server.Cluster{Listen: ports[i], Routes: ports[:3]}
		config.Passwords.Route = "r"
		config.MaxStore = server.DefaultMaxStore // a deleted stream's share is given back only after a while
		c.configs = append(c.configs, config)
	}
	for i := range c.configs {
		c.start(i)
	}
	t.Cleanup(func() {
		var wg sync.WaitGroup
		for i := range c.servers {
			wg.Go(func() { c.stop(i) })
		}
		wg.Wait()
	})
	c.ready()
	return c
}

func (c *cluster) start(i int) {
	c.t.Helper()
	s, err := server.Start(c.configs[i])
	if err != nil {
		c.t.Fatal(err)
	}
	c.servers[i] = s
}

func (c *cluster) stop(i int) {
	if c.servers[i] != nil {
		c.servers[i].Stop()
		c.servers[i] = nil
	}
}

func (c *cluster) ready() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), patient)
	defer cancel()
	for _, s := range c.servers {
		if s != nil {
			if err := s.WaitReady(ctx); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func (c *cluster) url() string {
	var urls []string
	for _, config := range c.configs {
		urls = append(urls, "nats://"+config.Listen)
	}
	return strings.Join(urls, ",")
}

func (c *cluster) as(user, password string) *nats.Conn {
	c.t.Helper()
	return conn(c.t, func() (*nats.Conn, error) {
		return dial.Connect(c.url(), dial.Login{User: user, Password: dial.Password(password)})
	})
}

// wipe makes the log anew: it is what gives each case of the suite an empty one.
func (c *cluster) wipe(t *testing.T) {
	t.Helper()
	admin := c.as("admin", "a")
	defer closed(admin)
	js, err := jetstream.New(admin)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range streams.Names() {
		until(t, name+" is gone", func() bool { // the cluster may have no leader at times
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			err = js.DeleteStream(ctx, name)
			return err == nil || errors.Is(err, jetstream.ErrStreamNotFound)
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	for {
		_, err := server.Init(ctx, admin, server.InitConfig{Replicas: 3, MaxStore: testStore / 4})
		if err == nil {
			return
		}
		// A member may not have done with removing the streams of these names yet.
		if !strings.Contains(err.Error(), "err_code=10049") || waitFor(ctx, retryFirst) != nil {
			t.Fatal(err)
		}
	}
}

// leader returns the index of the server that leads KT_LIFE. It waits for one: there
// is none during an election.
func (c *cluster) leader(l *Log) (leader int) {
	c.t.Helper()
	until(c.t, "KT_LIFE has a leader", func() bool {
		si, err := l.info(c.t.Context(), lifeStream)
		leader = slices.IndexFunc(c.configs, func(s server.Config) bool { return err == nil && s.Name == si.Cluster.Leader })
		return leader >= 0
	})
	return leader
}

// syncs waits until so many servers say that they sync before they acknowledge (L1).
func syncs(t *testing.T, sys *nats.Conn, servers int) {
	t.Helper()
	var err error
	until(t, "the servers say how they sync", func() bool {
		err = server.CheckServers(t.Context(), sys, servers)
		return err == nil || !strings.Contains(err.Error(), "cannot be reached")
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	syncs(t, c.as("sys", "s"), 3)
	t.Run("contract", func(t *testing.T) {
		logtest.TestLog(t, func(t *testing.T) events.Log {
			c.wipe(t)
			return openLog(t, conn(t, func() (*nats.Conn, error) { return dial.Connect(c.url(), dial.Login{User: "ctrl", Password: "c"}) }), Options{Replicas: 3})
		})
	})
	t.Run("checkpoints", func(t *testing.T) {
		logtest.TestCheckpoints(t, func(t *testing.T) events.Checkpoints {
			c.wipe(t)
			return openLog(t, c.as("ctrl", "c"), Options{Replicas: 3}).Checkpoints()
		})
	})
	t.Run("codes", c.codes)
	t.Run("leases", c.leases)
	t.Run("timers", c.timers)
	t.Run("leader stops", c.leaderStops)
}

// codes pins that a write in conflict with one in flight gets the other code,
// and that Append waits such a conflict out.
func (c *cluster) codes(t *testing.T) {
	c.wipe(t)
	nc := c.as("ctrl", "c")
	l := openLog(t, nc, Options{})
	seen := map[int]int{}
	conflicts := func() int { return seen[codeWrongLast] + seen[codeWrongLastConstant] }
	for i := 0; conflicts() < 40 && i < 400; i++ {
		inbox := nc.NewInbox()
		sub, err := nc.SubscribeSync(inbox)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 2 { // both expect nothing, at once
			msgs, err := l.messages([]events.Write{first(noted(fmt.Sprint("r", i)), note(n))})
			if err != nil {
				t.Fatal(err)
			}
			msgs[0].Reply = inbox
			if err := nc.PublishMsg(msgs[0]); err != nil {
				t.Fatal(err)
			}
		}
		stored, refused := 0, map[int]int{}
		for range 2 {
			m, err := sub.NextMsg(5 * time.Second)
			if err != nil {
				break // a new leader, or the connection is made anew
			}
			var ack pubAck
			if err := json.Unmarshal(m.Data, &ack); err != nil {
				continue // likewise
			}
			if ack.Error == nil {
				stored++
			} else {
				refused[ack.Error.ErrCode]++
			}
		}
		_ = sub.Unsubscribe()
		wrongLast := refused[codeWrongLast] + refused[codeWrongLastConstant]
		if stored == 2 || wrongLast == 2 {
			t.Fatalf("of two at once %d are stored, and %d are in conflict", stored, wrongLast)
		}
		if stored == 1 && wrongLast == 1 { // else its leader changed: nothing is said of a conflict
			for code, n := range refused {
				seen[code] += n
			}
		}
	}
	if seen[codeWrongLastConstant] == 0 || conflicts() != 40 {
		t.Errorf("codes of 40 conflicts with a write in flight: %v", seen)
	}
	logtest.CheckLog(t, l)
}

// leaderStops stops the leader twice while writers append and a verifier
// follows: nothing acknowledged is lost, nothing is stored twice, and the
// follower sees every event once.
func (c *cluster) leaderStops(t *testing.T) {
	c.wipe(t)
	l := openLog(t, c.as("ctrl", "c"), Options{})
	node := openLog(t, c.as("n1", nodePassword("n1")), Options{Edge: true})
	v := &view{}
	stop := beside(t, func(ctx context.Context) error { return node.Follow(ctx, 0, v) })
	stopHeartbeat := beside(t, l.Heartbeat)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var mu sync.Mutex
	acked := map[events.Seq]events.EventID{}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			var chain events.Chain
			a := noted(fmt.Sprint("w", w))
			for n := 0; ctx.Err() == nil; n++ {
				ws := []events.Write{logtest.Stamp(&chain, logtest.Event(a, note(n)))}
				if n%3 == 0 {
					ws = append(ws, logtest.Stamp(&chain, logtest.Event(a, note(n))))
				}
				seq, err := l.Append(t.Context(), ws...)
				if err != nil {
					t.Errorf("append: %v", err)
					return
				}
				chain.Seq = seq
				func() {
					mu.Lock()
					defer mu.Unlock()
					acked[seq] = ws[len(ws)-1].Event.ID
				}()
			}
		})
	}
	for range 2 {
		n := count()
		until(t, "appends go on", func() bool { return count() > n+100 })
		i := c.leader(l)
		c.stop(i)
		n = count()
		until(t, "appends go on without the leader", func() bool { return count() > n+100 })
		c.start(i)
		c.ready()
	}
	cancel()
	wg.Wait()
	last, err := l.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := logtest.ReadAll(t, l)
	for seq, id := range acked {
		if int(seq) > len(all) || all[seq-1].ID != id {
			t.Errorf("event %d was acknowledged and is lost", seq)
		}
	}
	until(t, "the verifier has everything", func() bool { next, wrong, fresh := v.at(); return next == last && fresh == last && wrong == 0 })
	for _, err := range []error{stop(), stopHeartbeat()} {
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	}
	if err := l.Check(t.Context(), nil); err != nil {
		t.Error(err)
	}
	logtest.CheckLog(t, l)
	t.Logf("%d events, 2 stops of the leader", last)
}
