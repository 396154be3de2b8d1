package audit

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/keytrail/keytrail/audit/engine/enginetest"
	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// A flood of bad messages is a few lines in the process's log.
func TestAsidesAreToldNowAndThen(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	var a asides
	for i := range 1000 { // 100 a second for 10 s, then one a minute later
		a.tell(log, time.Unix(0, 0).Add(time.Duration(i)*10*time.Millisecond), &events.UseMessage{Seq: events.Seq(i), Node: "n1"}, "it is junk")
	}
	a.tell(log, time.Unix(70, 0), &events.UseMessage{Seq: 1000, Node: "n2"}, "it is junk")
	if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); len(lines) != 2 || !strings.Contains(lines[0], "seq=0 node=n1 reason=\"it is junk\" others_since_last_line=0") ||
		!strings.Contains(lines[1], "seq=1000 node=n2 reason=\"it is junk\" others_since_last_line=999") {
		t.Errorf("%s", out.String())
	}
}

// A verifier whose password was stolen publishes whatever it likes, under any
// node's subject. Each such message is set aside, with its reason and its bytes;
// everything else is copied, and a restart in between changes nothing.
func TestHostileVerifier(t *testing.T) {
	log := logtest.New(t)
	s := openStore(t, enginetest.Database(t))
	batch := func(node events.NodeID, epoch int64, kind events.BatchKind, first uint64, n int) events.UseBatch {
		b := events.UseBatch{Log: log.ID(), Node: node, Epoch: epoch, Kind: kind, First: first}
		for range n {
			b.Uses = append(b.Uses, use(start, "ks", "acme", keyID(1), events.ReasonOK, ""))
		}
		return b
	}
	good := func(b events.UseBatch) []byte {
		data := encode(t, b)
		publishData(t, log, b.Node, data)
		return data
	}
	want := map[events.Seq]string{}
	digests := map[events.Seq]string{}
	bad := func(node events.NodeID, data []byte, reason string) {
		seq := publishData(t, log, node, data)
		sum := sha256.Sum256(data)
		want[seq], digests[seq] = reason, hex.EncodeToString(sum[:])
	}
	huge := make([]byte, 1<<20)
	_, _ = rand.Read(huge)

	good(batch("n1", 10, events.BatchOpen, 1, 0))
	first := good(batch("n1", 10, events.BatchUses, 1, 3))
	good(batch("n2", 20, events.BatchOpen, 1, 0))
	other := good(batch("n2", 20, events.BatchUses, 1, 2))
	bad("n1", []byte("\xff\xff not a batch"), "it cannot be read: ")
	bad("n1", []byte{0xa8, 0x06, 1}, "it cannot be read yet: ")
	bad("n1", huge, "it cannot be read: ")
	bad("n1", other, "it stands under node n1 and says node n2")
	bad("n1", first, "it begins at number 1, and the numbers before 4 are on the record")
	bad("n1", encode(t, batch("n1", 10, events.BatchUses, 3, 2)), "it begins at number 3")
	foreign := batch("n1", 10, events.BatchUses, 4, 1)
	foreign.Log = events.LogID{1}
	bad("n1", encode(t, foreign), "it belongs to log ")
	bad("n1", encode(t, batch("n1", 10, events.BatchOpen, 1, 0)), "epoch 10 is open already")
	bad("n3", []byte("a node that has no record"), "it cannot be read: ")
	stop := startWriter(t, WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: time.Millisecond})
	waitCopied(t, s, log)
	if err := stop(); err != nil { // the places of the nodes are read from the copy
		t.Fatal(err)
	}
	bad("n1", first, "it begins at number 1, and the numbers before 4 are on the record")
	// n1 cannot read its last record, and begins anew.
	good(batch("n1", 30, events.BatchOpen, 1, 0))
	bad("n1", encode(t, batch("n1", 10, events.BatchUses, 4, 1)), "it is of epoch 10, and the node has begun epoch 30")
	good(batch("n1", 30, events.BatchUses, 1, 1))
	good(batch("n1", 30, events.BatchClose, 2, 0))
	bad("n1", encode(t, batch("n1", 30, events.BatchUses, 2, 1)), "epoch 30 has ended")
	good(batch("n2", 20, events.BatchUses, 3, 2))
	good(batch("n2", 20, events.BatchClose, 5, 0))
	metrics := NewWriterMetrics()
	w := NewWriter(WriterConfig{Store: s, Log: log, Reads: log.Reads(), Uses: log, Linger: time.Millisecond, Metrics: metrics})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	waitCopied(t, s, log)
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	if !counted(metrics, metrics.quarantined, 3) {
		t.Errorf("the metric counts %v messages since the restart, want 3", testutil.ToFloat64(metrics.quarantined))
	}
	n, got, err := s.Quarantine(t.Context(), 100)
	if err != nil || int(n) != len(want) || len(got) != len(want) {
		t.Fatalf("%d messages are set aside, want %d: %v, %v", n, len(want), got, err)
	}
	for _, m := range got {
		reason, ok := want[m.Seq]
		if !ok || !strings.HasPrefix(m.Reason, reason) || m.Digest != digests[m.Seq] || m.Stored == 0 {
			t.Errorf("%s: want %q, digest %s", m, reason, digests[m.Seq])
		}
		if s := m.String(); !strings.Contains(s, m.Digest) || !strings.Contains(s, fmt.Sprint("kt.use.", m.Node)) {
			t.Error(s)
		}
	}
	var data string
	if err := s.conn.QueryRow(t.Context(), "SELECT data FROM use_batches WHERE length(data) = 1048576").Scan(&data); err != nil || !bytes.Equal([]byte(data), huge) {
		t.Errorf("the bytes of a message are not kept: %d, %v", len(data), err)
	}
	var uses, epoch, from uint64
	err = s.conn.QueryRow(t.Context(), "SELECT (SELECT count() FROM uses), toUInt64(max(epoch)), max(first) FROM use_batches WHERE kind = 'unended'").Scan(&uses, &epoch, &from)
	if err != nil || uses != 8 || epoch != 10 || from != 4 {
		t.Errorf("%d uses, epoch %d lost from number %d on, %v", uses, epoch, from, err)
	}
	g, err := s.Gaps(t.Context(), &Filter{kind: KindUses})
	if err != nil || int(g.Count) != len(want)+1 || !g.Unknown {
		t.Errorf("gaps: %+v, %v", g, err)
	}
	r, err := Reconcile(t.Context(), s, log, log.Reads(), log)
	if err != nil || len(r.Mismatches) > 0 {
		t.Errorf("reconcile: %v, %v", r.Mismatches, err)
	}
	// A batch that is hidden by a row which says that it was set aside is found.
	const hide = "ALTER TABLE use_batches UPDATE kind = 'quarantined', epoch = 0, first = 0, count = 0 WHERE seq = 4 SETTINGS mutations_sync = 1"
	if err := s.conn.Exec(t.Context(), hide); err != nil {
		t.Fatal(err)
	}
	if r, err := Reconcile(t.Context(), s, log, log.Reads(), log); err != nil || len(r.Mismatches) == 0 {
		t.Errorf("a batch is hidden: %v, %v", r, err)
	}
}
