package eventlog

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/server"
	"github.com/keytrail/keytrail/events/logtest"
)

// BenchmarkReplayFloor reads documents without looking at them, the server in the same
// process: as they are stored, with three headers of the transport, and without; by
// direct get, and by the rejected way, an ordered consumer, which a verifier may not
// make. For each message with headers, the server answers a direct get by writing all
// of them anew six times; asked for no headers (no_hdr), it says neither subject nor time.
func BenchmarkReplayFloor(b *testing.B) {
	const n = 30_000
	s := testServer(b, server.Config{Dir: b.TempDir(), MaxStore: 4 << 30})
	initLog(b, s)
	nc := conn(b, s.ConnectAdmin)
	l := openLog(b, nc, Options{})
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	run := func(name string, read func(b *testing.B)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				read(b)
			}
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(n*b.N), "cpu-ns/event")
			b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
	for _, headers := range []bool{true, false} {
		stream := map[bool]string{true: "headers", false: "bare"}[headers]
		if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: stream, Subjects: []string{stream + ".>"}, AllowDirect: true}); err != nil {
			b.Fatal(err)
		}
		for i := range n {
			w := first(logtest.NewKeyRef("shop", "acme").Aggregate(), logtest.Created(strconv.Itoa(i)))
			m, err := events.Encode(&w.Event)
			if err != nil {
				b.Fatal(err)
			}
			msg := &nats.Msg{Subject: stream + "." + m.Subject, Data: m.Data}
			if headers {
				msg.Header = nats.Header{hdrContentType: {events.ContentType}, jetstream.MsgIDHeader: {w.Event.ID.String()}, jetstream.ExpectedLastSubjSeqHeader: {"0"}}
			}
			if _, err := js.PublishMsgAsync(msg); err != nil {
				b.Fatal(err)
			}
			if i%1000 == 999 {
				<-js.PublishAsyncComplete()
			}
		}
		run(stream+"/direct get", func(b *testing.B) {
			for next := events.Seq(1); next <= n; {
				err := l.replies(b.Context(), stream, getRequest{Seq: next, Batch: bulkMessages, MaxBytes: bulkBytes}, func(_ *nats.Msg, end bool) error {
					if !end {
						next++
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
		run(stream+"/direct get without headers", func(b *testing.B) {
			answer := make(chan *nats.Msg, bulkMessages+1)
			inbox := nc.NewInbox()
			sub, err := nc.ChanSubscribe(inbox, answer)
			if err != nil {
				b.Fatal(err)
			}
			defer sub.Unsubscribe()
			for next := 1; next <= n; {
				body := fmt.Appendf(nil, `{"seq":%d,"batch":%d,"max_bytes":%d,"no_hdr":true}`, next, bulkMessages, bulkBytes)
				if err := nc.PublishRequest("$JS.API.DIRECT.GET."+stream, inbox, body); err != nil {
					b.Fatal(err)
				}
				for m := <-answer; m.Header == nil; m = <-answer { // the end of the answer has a header
					next++
				}
			}
		})
		run(stream+"/ordered consumer", func(b *testing.B) {
			c, err := js.OrderedConsumer(b.Context(), stream, jetstream.OrderedConsumerConfig{})
			if err != nil {
				b.Fatal(err)
			}
			var got atomic.Int64
			ctx, done := context.WithCancel(b.Context())
			defer done()
			reading, err := c.Consume(func(jetstream.Msg) {
				if got.Add(1) == n {
					done()
				}
			}, jetstream.PullMaxMessages(5000))
			if err != nil {
				b.Fatal(err)
			}
			<-ctx.Done()
			reading.Stop()
		})
	}
}
