package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// BenchmarkAppend alternates durable appends with a bare JetStream publish of
// the same bytes to a stream of the same settings, and reports the ratio of
// their rates (goal: 0.8).
func BenchmarkAppend(b *testing.B) {
	s := testServer(b, ServerConfig{Dir: b.TempDir(), MaxStore: 4 << 30})
	if _, err := Init(b.Context(), conn(b, s.ConnectAdmin), InitConfig{MaxStore: 2 << 30}); err != nil {
		b.Fatal(err)
	}
	l := openLog(b, conn(b, s.Connect), Options{})
	js, err := jetstream.New(conn(b, s.ConnectAdmin))
	if err != nil {
		b.Fatal(err)
	}
	c := lifeConfig(l.ID(), 1, 1<<30)
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
		msg := &nats.Msg{Subject: "bare." + w.Event.Aggregate.ID, Header: m.Header, Data: m.Data}
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

var errEnough = errors.New("enough")

// BenchmarkReplay reads keys' creations from the beginning: as the bytes come,
// and decoded by Follow and Check, in process and over loopback TCP, for the
// control and for a verifier.
func BenchmarkReplay(b *testing.B) {
	const n = 100_000
	c := childConfig(b.TempDir(), "127.0.0.1:0")
	c.MaxStore = 4 << 30
	s := testServer(b, c)
	if _, err := Init(b.Context(), conn(b, s.ConnectAdmin), InitConfig{MaxStore: 2 << 30}); err != nil {
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
	tcp := conn(b, func() (*nats.Conn, error) { return Connect(s.URL(), Login{User: "ctrl", Password: "c"}) })
	edge := conn(b, func() (*nats.Conn, error) { return Connect(s.URL(), Login{User: "edge", Password: "e"}) })
	for _, from := range []struct {
		name string
		l    *Log
	}{{"inproc", l}, {"tcp", openLog(b, tcp, Options{})}, {"edge", openLog(b, edge, Options{Edge: true})}} {
		run := func(name string, f func(b *testing.B)) {
			b.Run(from.name+"/"+name, func(b *testing.B) {
				for b.Loop() {
					f(b)
				}
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
	b.Run("inproc/check", func(b *testing.B) {
		for b.Loop() {
			if err := l.Check(b.Context(), nil); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
	// The rejected way: an ordered pull consumer, which a verifier may not make.
	js, err := jetstream.New(conn(b, s.ConnectAdmin))
	if err != nil {
		b.Fatal(err)
	}
	b.Run("inproc/bytes by ordered consumer", func(b *testing.B) {
		for b.Loop() {
			oc, err := js.OrderedConsumer(b.Context(), lifeStream, jetstream.OrderedConsumerConfig{})
			if err != nil {
				b.Fatal(err)
			}
			var got atomic.Int64
			ctx, done := context.WithCancel(b.Context())
			cc, err := oc.Consume(func(jetstream.Msg) {
				if got.Add(1) == n {
					done()
				}
			}, jetstream.PullMaxMessages(5000))
			if err != nil {
				b.Fatal(err)
			}
			<-ctx.Done()
			cc.Stop()
			done()
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

// BenchmarkPublishUses publishes durable batches of 40 KiB, by one and by 16 at a time.
func BenchmarkPublishUses(b *testing.B) {
	data := bytes.Repeat([]byte("0123456789"), 4<<10)
	for _, publishers := range []int{1, 16} {
		b.Run(strconv.Itoa(publishers), func(b *testing.B) {
			s := testServer(b, ServerConfig{Dir: b.TempDir(), MaxStore: 4 << 30})
			if _, err := Init(b.Context(), conn(b, s.ConnectAdmin), InitConfig{MaxStore: 2 << 30}); err != nil {
				b.Fatal(err)
			}
			l := openLog(b, conn(b, s.Connect), Options{})
			b.SetBytes(int64(len(data)))
			b.ResetTimer()
			var n atomic.Int64
			var wg sync.WaitGroup
			for range publishers {
				wg.Go(func() {
					for i := n.Add(1); i <= int64(b.N); i = n.Add(1) {
						if _, err := l.Publish(b.Context(), "n1", strconv.FormatInt(i, 10), data); err != nil {
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
