package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
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

// BenchmarkAppend alternates durable appends with a bare JetStream publish of
// the same bytes to a stream of the same settings, and reports the ratio of
// their rates (goal: 0.8).
func BenchmarkAppend(b *testing.B) {
	s := testServer(b, server.Config{Dir: b.TempDir(), MaxStore: 4 << 30})
	if _, err := server.Init(b.Context(), conn(b, s.ConnectAdmin), server.InitConfig{MaxStore: 2 << 30}); err != nil {
		b.Fatal(err)
	}
	l := openLog(b, conn(b, s.Connect), Options{})
	js, err := jetstream.New(conn(b, s.ConnectAdmin))
	if err != nil {
		b.Fatal(err)
	}
	c := streams.LifeConfig(l.ID(), 1, 1<<30)
	c.Name, c.Subjects, c.RePublish = "BARE", []string{"bare.>"}, &jetstream.RePublish{Source: "bare.>", Destination: "kt.rp.bare.>"}
	if _, err := js.CreateStream(b.Context(), c); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	var ours, bare time.Duration
	for b.Loop() {
		w := first(logtest.NewKeyRef("shop", "acme").Aggregate(), logtest.Created(strconv.Itoa(b.N)))
		m, err := events.Encode(&w.Event)
		if err != nil {
			b.Fatal(err)
		}
		msg := &nats.Msg{Subject: "bare." + w.Event.Aggregate.ID, Header: nats.Header{hdrContentType: {events.ContentType}}, Data: m.Data}
		t0 := time.Now()
		if _, err := l.Append(b.Context(), w); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if _, err := js.PublishMsg(b.Context(), msg, jetstream.WithMsgID(w.Event.ID.String()), jetstream.WithExpectLastSequencePerSubject(0)); err != nil {
			b.Fatal(err)
		}
		ours, bare = ours+t1.Sub(t0), bare+time.Since(t1)
	}
	b.ReportMetric(float64(b.N)/ours.Seconds(), "appends/s")
	b.ReportMetric(float64(b.N)/bare.Seconds(), "bare/s")
	b.ReportMetric(bare.Seconds()/ours.Seconds(), "ratio")
}

// sink counts events and stops at last.
type sink struct{ n, last events.Seq }

func (s *sink) Apply(batch []events.Recorded) error {
	if s.n += events.Seq(len(batch)); s.n >= s.last {
		return errEnough
	}
	return nil
}

func (*sink) Fresh(events.Time, events.Seq) {}

// viewSink does not ask when an event was stored, as views do not.
type viewSink struct{ sink }

func (*viewSink) Untimed() {}

var errEnough = errors.New("enough")

// BenchmarkReplay reads keys' creations from the beginning: as the bytes come,
// and decoded by Follow and Check, in process and over loopback TCP, for the
// control and for a verifier; and as the views of control read them.
func BenchmarkReplay(b *testing.B) {
	const n = 100_000
	c := childConfig(b.TempDir(), "127.0.0.1:0")
	c.MaxStore = 4 << 30
	s := testServer(b, c)
	if _, err := server.Init(b.Context(), conn(b, s.ConnectAdmin), server.InitConfig{MaxStore: 2 << 30}); err != nil {
		b.Fatal(err)
	}
	l := openLog(b, conn(b, s.Connect), Options{})
	for i := 0; i < n; i += 100 {
		var ws []events.Write
		for j := range 100 {
			ws = append(ws, first(logtest.NewKeyRef("shop", "acme").Aggregate(), logtest.Created(fmt.Sprint(i, "/", j))))
		}
		if _, err := l.Append(b.Context(), ws...); err != nil {
			b.Fatal(err)
		}
	}
	tcp := conn(b, func() (*nats.Conn, error) { return dial.Connect(s.URL(), dial.Login{User: "ctrl", Password: "c"}) })
	edge := conn(b, func() (*nats.Conn, error) {
		return dial.Connect(s.URL(), dial.Login{User: "n1", Password: dial.Password(nodePassword("n1"))})
	})
	for _, from := range []struct {
		name string
		l    *Log
	}{{"inproc", l}, {"tcp", openLog(b, tcp, Options{})}, {"edge", openLog(b, edge, Options{Edge: true})}} {
		run := func(name string, f func(b *testing.B)) {
			b.Run(from.name+"/"+name, func(b *testing.B) {
				before := cpu(b)
				for b.Loop() {
					f(b)
				}
				b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(n*b.N), "cpu-ns/event")
				b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
			})
		}
		run("bytes", func(b *testing.B) {
			next := events.Seq(1)
			for next <= n {
				err := from.l.get(b.Context(), lifeStream, getRequest{Seq: next, Batch: bulkMessages, MaxBytes: bulkBytes}, func(*stored) error { next++; return nil })
				if err != nil {
					b.Fatal(err)
				}
			}
		})
		run("follow", func(b *testing.B) {
			if err := from.l.Follow(b.Context(), 0, &sink{last: n}); !errors.Is(err, errEnough) {
				b.Fatal(err)
			}
		})
	}
	b.Run("inproc/view", func(b *testing.B) {
		before := cpu(b)
		for b.Loop() {
			if err := l.Follow(b.Context(), 0, &viewSink{sink{last: n}}); !errors.Is(err, errEnough) {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(n*b.N), "cpu-ns/event")
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
	b.Run("inproc/check", func(b *testing.B) {
		for b.Loop() {
			if err := l.Check(b.Context(), nil); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

// cpu returns the time that the process has computed, the embedded server included: on
// a busy machine it says more than the time that passed.
func cpu(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkAppendWhileReplaying appends one event at a time while verifiers read the
// log from its beginning: none, one, and four.
func BenchmarkAppendWhileReplaying(b *testing.B) {
	const n = 50_000
	c := childConfig(b.TempDir(), "127.0.0.1:0")
	c.MaxStore = 4 << 30
	s := testServer(b, c)
	if _, err := server.Init(b.Context(), conn(b, s.ConnectAdmin), server.InitConfig{MaxStore: 2 << 30}); err != nil {
		b.Fatal(err)
	}
	l := openLog(b, conn(b, s.Connect), Options{})
	for range n / 100 {
		var ws []events.Write
		for j := range 100 {
			ws = append(ws, first(logtest.NewKeyRef("shop", "acme").Aggregate(), logtest.Created(fmt.Sprint(j))))
		}
		if _, err := l.Append(b.Context(), ws...); err != nil {
			b.Fatal(err)
		}
	}
	for _, readers := range []int{0, 1, 4} {
		b.Run(strconv.Itoa(readers), func(b *testing.B) {
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			var read atomic.Int64
			for range readers {
				edge := conn(b, func() (*nats.Conn, error) {
					return dial.Connect(s.URL(), dial.Login{User: "n1", Password: dial.Password(nodePassword("n1"))})
				})
				node := openLog(b, edge, Options{Edge: true})
				wg.Go(func() {
					for ctx.Err() == nil {
						if err := node.Follow(ctx, 0, &sink{last: n}); !errors.Is(err, errEnough) && ctx.Err() == nil {
							b.Error(err)
							return
						}
						read.Add(n)
					}
				})
			}
			var took []time.Duration
			for b.Loop() {
				w := first(logtest.NewKeyRef("shop", "acme").Aggregate(), logtest.Created("w"))
				began := time.Now()
				if _, err := l.Append(b.Context(), w); err != nil {
					b.Fatal(err)
				}
				took = append(took, time.Since(began))
			}
			elapsed := b.Elapsed()
			cancel()
			wg.Wait()
			slices.Sort(took)
			ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
			b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
			b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
			b.ReportMetric(ms(took[len(took)-1]), "max-ms")
			b.ReportMetric(float64(read.Load())/elapsed.Seconds(), "events/s")
		})
	}
}

// BenchmarkPublishUses publishes durable batches of 40 KiB, by one and by 16 at a time.
func BenchmarkPublishUses(b *testing.B) {
	data := bytes.Repeat([]byte("0123456789"), 4<<10)
	for _, publishers := range []int{1, 16} {
		b.Run(strconv.Itoa(publishers), func(b *testing.B) {
			s := testServer(b, server.Config{Dir: b.TempDir(), MaxStore: 4 << 30})
			if _, err := server.Init(b.Context(), conn(b, s.ConnectAdmin), server.InitConfig{MaxStore: 2 << 30}); err != nil {
				b.Fatal(err)
			}
			l := openLog(b, conn(b, s.Connect), Options{})
			b.SetBytes(int64(len(data)))
			b.ResetTimer()
			var n atomic.Int64
			var wg sync.WaitGroup
			for p := range publishers {
				wg.Go(func() {
					node, last := events.NodeID(strconv.Itoa(p)), events.Seq(0)
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						var err error
						if last, err = l.Publish(b.Context(), node, strconv.FormatInt(i, 10), last, data); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "batches/s")
		})
	}
}

// BenchmarkSetTimers sets timers in batches of so many, each synced once.
// BenchmarkProxy measures what a node asks for, through the listener and its proxy and
// then in process: the ratio is of the proxy and of TCP together. Take -benchtime 60x:
// who renews its lease more often is slowed down.
func BenchmarkProxy(b *testing.B) {
	c := childConfig(b.TempDir(), "127.0.0.1:0")
	c.MaxStore, c.Nodes = 4<<30, nodesConf("n1", "n2")
	s := testServer(b, c)
	if _, err := server.Init(b.Context(), conn(b, s.ConnectAdmin), server.InitConfig{MaxStore: 2 << 30}); err != nil {
		b.Fatal(err)
	}
	control := openLog(b, conn(b, s.Connect), Options{})
	if err := control.Raise(b.Context(), events.Head{Log: control.ID()}); err != nil {
		b.Fatal(err)
	}
	through := openLog(b, conn(b, func() (*nats.Conn, error) {
		return dial.Connect(s.URL(), dial.Login{User: "n1", Password: dial.Password(nodePassword("n1"))})
	}), Options{Edge: true})
	direct := openLog(b, conn(b, func() (*nats.Conn, error) { return s.ConnectNode("n2", nodePassword("n2")) }), Options{Edge: true})
	nodes := []struct {
		name events.NodeID
		log  *Log
	}{{"n1", through}, {"n2", direct}}
	data := bytes.Repeat([]byte("0123456789"), 4<<10)
	for name, ask := range map[string]func(ctx context.Context) func(i, n int) error{
		"renew": func(ctx context.Context) func(i, n int) error {
			leases := [2]events.NodeLease{logtest.Lease(control.ID(), nodes[0].name), logtest.Lease(control.ID(), nodes[1].name)}
			return func(i, _ int) error {
				_, err := nodes[i].log.Renew(ctx, leases[i])
				return err
			}
		},
		"publish": func(ctx context.Context) func(i, n int) error {
			var last [2]events.Seq
			for i, node := range nodes {
				m, _, err := node.log.Tail(ctx, node.name)
				if err != nil {
					b.Fatal(err)
				}
				last[i] = m.Seq
			}
			return func(i, n int) (err error) {
				last[i], err = nodes[i].log.Publish(ctx, nodes[i].name, strconv.Itoa(n), last[i], data)
				return err
			}
		},
	} {
		b.Run(name, func(b *testing.B) {
			call := ask(b.Context())
			var took [2]time.Duration
			n := int(time.Now().UnixNano()) // no batch's name comes twice
			for b.Loop() {
				for i := range nodes {
					n++
					began := time.Now()
					if err := call(i, n); err != nil {
						b.Fatal(err)
					}
					took[i] += time.Since(began)
				}
			}
			b.ReportMetric(float64(took[0].Microseconds())/float64(b.N), "through-µs")
			b.ReportMetric(float64(took[1].Microseconds())/float64(b.N), "direct-µs")
			b.ReportMetric(float64(took[0])/float64(took[1]), "ratio")
		})
	}
}

func BenchmarkSetTimers(b *testing.B) {
	for _, n := range []int{1, 100, 500, events.MaxTimers} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := testServer(b, server.Config{Dir: b.TempDir(), MaxStore: 4 << 30})
			initLog(b, s)
			l := openLog(b, conn(b, s.Connect), Options{})
			in := events.At(time.Now().Add(24 * time.Hour))
			var mark events.TimerMark
			for b.Loop() {
				settings := make([]events.TimerSetting, n)
				for i := range settings {
					settings[i] = events.TimerSetting{Key: logtest.NewKeyRef("shop", "acme"), At: in}
				}
				var err error
				if mark, err = l.Set(b.Context(), mark, mark.Through+1, settings...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "timers/s")
		})
	}
}
