package commands_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
	"github.com/keytrail/keytrail/projections"
)

// BenchmarkImport imports keys over the log in memory, 500 at a time: new ones,
// and the same again.
func BenchmarkImport(b *testing.B) {
	for _, again := range []bool{false, true} {
		b.Run(map[bool]string{false: "new", true: "again"}[again], func(b *testing.B) {
			w := newWorld(b)
			n := w.node("one")
			w.define(n, "acme", acme)
			w.imports(n, importBatch(-1))
			for i := 0; b.Loop(); i++ {
				if again {
					w.imports(n, importBatch(-1))
				} else {
					w.imports(n, importBatch(i))
				}
			}
			b.ReportMetric(float64(commands.MaxImport*b.N)/b.Elapsed().Seconds(), "keys/s")
		})
	}
}

// importBatch is an import of as many keys as one may carry, others for each i.
func importBatch(i int) *commands.Import {
	c := new(commands.Import)
	for j := range commands.MaxImport {
		c.Keys = append(c.Keys, importKey(fmt.Sprintf("secret %d %d", i, j), "t1", fmt.Sprintf("key %d %d", i, j)))
	}
	return c
}

// BenchmarkImportJetStream alternates imports of new keys, which are durable and in the
// view when they are answered, with bare atomic batches of the same bytes to a stream
// of the same settings on the same server.
func BenchmarkImportJetStream(b *testing.B) {
	j := newJetStream(b, 4<<30)
	if _, err := j.js.CreateStream(b.Context(), bareConfig(j.ID())); err != nil {
		b.Fatal(err)
	}
	w := newWorld(b) // for its root and its clock
	if _, err := commands.Bootstrap(b.Context(), j.Log, w.root, w.clock.at()); err != nil {
		b.Fatal(err)
	}
	dir := projections.NewDirectory()
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = projections.Follow(ctx, j.Log, dir) })
	h := commands.New(commands.Config{Log: j.Log, Leases: j.Log, Dir: dir, Confirm: confirms(j.Log, j.ID(), "one"), Now: w.clock.now, Node: "one", Logger: slog.New(slog.DiscardHandler)})
	if _, _, err := h.DefineKeyspace(b.Context(), w.call("", ""), "acme", &commands.DefineKeyspace{Definition: acme}); err != nil {
		b.Fatal(err)
	}
	imports := func(c *commands.Import) []commands.ImportResult {
		out, _, err := h.Import(b.Context(), w.call("", ""), "acme", c)
		if err != nil {
			b.Fatal(err)
		}
		return out
	}
	var documents [][]byte
	for _, r := range imports(importBatch(-1)) {
		history, err := j.Load(b.Context(), events.KeyAggregate("acme", "t1", r.ID))
		if err != nil || len(history) != 1 {
			b.Fatalf("%d events, %v", len(history), err)
		}
		documents = append(documents, history[0].Document)
	}
	var ours, bare, oursCPU, bareCPU time.Duration
	for i := 0; b.Loop(); i++ {
		c := importBatch(i)
		cpu, began := computing(b), time.Now()
		imports(c)
		ours, oursCPU = ours+time.Since(began), oursCPU+computing(b)-cpu
		cpu, began = computing(b), time.Now()
		publishBare(b, j.js.Conn(), i, documents)
		bare, bareCPU = bare+time.Since(began), bareCPU+computing(b)-cpu
	}
	keys := float64(commands.MaxImport * b.N)
	b.ReportMetric(keys/ours.Seconds(), "keys/s")
	b.ReportMetric(keys/bare.Seconds(), "bare/s")
	b.ReportMetric(bare.Seconds()/ours.Seconds(), "ratio")
	b.ReportMetric(float64(oursCPU.Microseconds())/keys, "cpu-µs/key")
	b.ReportMetric(float64(bareCPU.Microseconds())/keys, "bare-cpu-µs/key")
}

func bareConfig(id events.LogID) jetstream.StreamConfig {
	c := streams.LifeConfig(id, 1, 2<<30)
	c.Name, c.Subjects, c.RePublish = "BARE", []string{"bare.>"}, &jetstream.RePublish{Source: "bare.>", Destination: "kt.rp.bare.>"}
	return c
}

// publishBare publishes the documents as one atomic batch (ADR-50), each on a subject
// of its own with an id and an expectation, as the log does.
func publishBare(b *testing.B, nc *nats.Conn, n int, documents [][]byte) {
	inbox := nc.NewInbox()
	answers, err := nc.SubscribeSync(inbox)
	if err != nil {
		b.Fatal(err)
	}
	defer answers.Unsubscribe()
	batch := nuid.Next()
	for i, d := range documents {
		m := &nats.Msg{Subject: fmt.Sprintf("bare.acme.t1.key.%013d-%012d", n, i), Data: d, Header: nats.Header{
			"Content-Type": {events.ContentType}, "Nats-Msg-Id": {fmt.Sprintf("%013d-%012d", n, i)}, "Nats-Expected-Stream": {"BARE"},
			"Nats-Expected-Last-Subject-Sequence": {"0"}, "Nats-Batch-Id": {batch}, "Nats-Batch-Sequence": {strconv.Itoa(i + 1)},
		}}
		if i == len(documents)-1 {
			m.Header.Set("Nats-Batch-Commit", "1")
			m.Reply = inbox
		}
		if err := nc.PublishMsg(m); err != nil {
			b.Fatal(err)
		}
	}
	r, err := answers.NextMsg(time.Minute)
	if err != nil {
		b.Fatal(err)
	}
	var ack struct {
		Error *struct{} `json:"error"`
		Count int       `json:"count"`
	}
	if err := json.Unmarshal(r.Data, &ack); err != nil || ack.Error != nil || ack.Count != len(documents) {
		b.Fatalf("%s, %v", r.Data, err)
	}
}
