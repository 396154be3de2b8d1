package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/keytrail/keytrail/commands"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/eventlog/streams"
)

// BenchmarkImportCLI alternates `keytrail key import` of 10,000 new keys, which are durable
// and in the view when it ends, with bare atomic batches of the same bytes to a stream of
// the same settings. The log's server, control and the commands are processes; each keys/s
// is of one client that waits for each answer.
func BenchmarkImportCLI(b *testing.B) {
	const keys = 20 * commands.MaxImport
	dir := b.TempDir()
	c := &cluster{nats: "nats://" + freeAddr(b)}
	c.env = append(passwords(), "KEYTRAIL_NATS="+c.nats)
	log := spawn(b, c.env, "log", "--dir", filepath.Join(dir, "log"), "--listen", strings.TrimPrefix(c.nats, "nats://"))
	rootFile := filepath.Join(dir, "root.key")
	command(b, c.env, "init", "--nats", c.nats, "--root-key-file", rootFile, "--max-store", strconv.Itoa(8<<30))
	text, err := os.ReadFile(rootFile)
	if err != nil {
		b.Fatal(err)
	}
	c.root = strings.TrimSpace(string(text))
	control := c.role(b, "control", "--name", "control-1", "--dir", filepath.Join(dir, "control"))
	importKeys(b, control, commands.MaxImport)

	nc, err := nats.Connect(c.nats, nats.UserInfo("admin", "pw-of-admin"))
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	config := streams.LifeConfig(events.LogID{1}, 1, 2<<30)
	config.Name, config.Subjects, config.RePublish = "BARE", []string{"bare.>"}, &jetstream.RePublish{Source: "bare.>", Destination: "kt.rp.bare.>"}
	if _, err := js.CreateStream(b.Context(), config); err != nil {
		b.Fatal(err)
	}
	life, err := js.Stream(b.Context(), streams.Life)
	if err != nil {
		b.Fatal(err)
	}
	info, err := life.Info(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	var documents [][]byte
	for i := range uint64(commands.MaxImport) {
		m, err := life.GetMsg(b.Context(), info.State.LastSeq-i)
		if err != nil {
			b.Fatal(err)
		}
		documents = append(documents, m.Data)
	}

	var ours, bare, computed, bareComputed time.Duration
	for i := 0; b.Loop(); i++ {
		file := keysFile(b, keys, fmt.Sprint("import ", i))
		cpu, began := cpuOf(b, log)+cpuOf(b, control), time.Now()
		control.must(b, "key", "import", "--keyspace", "shop", "-f", file)
		ours += time.Since(began)
		middle, began := cpuOf(b, log)+cpuOf(b, control), time.Now()
		for batch := range keys / commands.MaxImport {
			storeBare(b, nc, fmt.Sprintf("%d-%d", i, batch), documents)
		}
		bare += time.Since(began)
		computed, bareComputed = computed+middle-cpu, bareComputed+cpuOf(b, log)+cpuOf(b, control)-middle
	}
	n := float64(keys * b.N)
	b.ReportMetric(n/ours.Seconds(), "keys/s")
	b.ReportMetric(n/bare.Seconds(), "bare/s")
	b.ReportMetric(bare.Seconds()/ours.Seconds(), "ratio")
	b.ReportMetric(float64(computed.Microseconds())/n, "cpu-µs/key")
	b.ReportMetric(float64(bareComputed.Microseconds())/n, "bare-cpu-µs/key")
	b.ReportMetric(0, "ns/op")
}

// storeBare stores the documents as one atomic batch (ADR-50), each on a subject of its
// own with an id and an expectation, as the log does.
func storeBare(b *testing.B, nc *nats.Conn, name string, documents [][]byte) {
	inbox := nc.NewInbox()
	answers, err := nc.SubscribeSync(inbox)
	if err != nil {
		b.Fatal(err)
	}
	defer answers.Unsubscribe()
	batch := nuid.Next()
	for i, d := range documents {
		m := nats.NewMsg(fmt.Sprintf("bare.acme.t1.key.%s-%012d", name, i))
		m.Data = d
		for header, v := range map[string]string{"Content-Type": events.ContentType, "Nats-Msg-Id": fmt.Sprintf("%s-%012d", name, i), "Nats-Expected-Stream": "BARE",
			"Nats-Expected-Last-Subject-Sequence": "0", "Nats-Batch-Id": batch, "Nats-Batch-Sequence": strconv.Itoa(i + 1)} {
			m.Header.Set(header, v)
		}
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
		Count int `json:"count"`
	}
	if err := json.Unmarshal(r.Data, &ack); err != nil || ack.Count != len(documents) {
		b.Fatalf("%s, %v", r.Data, err)
	}
}
