package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/events/tree"
)

var testLog = events.LogID{15: 7}

// history returns a legal history as the lifecycle stream would hold it.
func history(t failer, writes []events.Write) (out []Message) {
	t.Helper()
	for i := range writes {
		m, err := events.Encode(&writes[i].Event)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Message{Stream: Life, Seq: uint64(i + 1), Stored: int64(i) * 1e9, Subject: m.Subject, Data: m.Data})
	}
	return out
}

// reads returns the record of a reader.
func reads(t failer, n int) (out []Message) {
	t.Helper()
	a := events.ReaderAggregate(events.Actor{Kind: events.ActorSystem, ID: "test"})
	var c events.Chain
	for i := range n {
		w := logtest.Stamp(&c, logtest.Event(a, &events.AuditQueried{Kind: "events"}))
		m, err := events.Encode(&w.Event)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Message{Stream: Read, Seq: uint64(i + 1), Subject: m.Subject, Data: m.Data})
	}
	return out
}

// uses returns messages of the use stream of which retention has taken the first.
func uses(t failer, n int) (out []Message) {
	t.Helper()
	for i := range n {
		b := events.UseBatch{Log: testLog, Node: "v-1", Epoch: int64(i) + 1, Kind: events.BatchOpen, First: 1}
		data, err := events.EncodeUses(&b)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Message{Stream: Use, Seq: uint64(i + 41), Subject: events.UsePrefix + "v-1", Data: data})
	}
	return out
}

// file writes a backup.
func file(t failer, streams ...[]Message) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, Header{Log: testLog, Made: 1, Restored: []events.Ancestor{{Log: events.LogID{1}, Size: 2, Uses: 3}}})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range Streams() {
		first := uint64(1)
		if len(streams[i]) > 0 {
			first = streams[i][0].Seq
		}
		if err := w.Stream(name, first); err != nil {
			t.Fatal(err)
		}
		for k := range streams[i] {
			if err := w.Put(&streams[i][k]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// verify reads a backup as `keytrail log verify` does.
func verify(b []byte) (map[string]Extent, error) {
	report, err := Verify(bytes.NewReader(b), Evidence{})
	got := map[string]Extent{}
	for _, s := range report.Streams {
		got[s.Stream] = s.Extent
	}
	return got, err
}

func drawFile(t *rapid.T) (all [][]Message, b []byte) {
	all = [][]Message{history(t, logtest.GenHistory(8).Draw(t, "history")), reads(t, rapid.IntRange(0, 3).Draw(t, "reads")), uses(t, rapid.IntRange(0, 3).Draw(t, "uses"))}
	return all, file(t, all...)
}

// failer is what a test and a property have in common.
type failer interface {
	Helper()
	Fatal(...any)
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all, b := drawFile(t)
		r, err := NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if h := r.Header(); h.Log != testLog || len(h.Restored) != 1 || h.Restored[0].Uses != 3 {
			t.Fatalf("header %+v", h)
		}
		for i := range all {
			for _, want := range all[i] {
				got, err := r.Next()
				if err != nil || got.Stream != want.Stream || got.Seq != want.Seq || got.Stored != want.Stored || got.Subject != want.Subject || !bytes.Equal(got.Data, want.Data) {
					t.Fatalf("%+v, %v; want %+v", got, err, want)
				}
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatal(err)
		}
		// The root is that of package tree, which the log's own followers compute.
		got, err := verify(b)
		if err != nil {
			t.Fatal(err)
		}
		for i, name := range Streams() {
			var want tree.Range
			for _, m := range all[i] {
				want.Append(tree.LeafHash(m.Subject, sha256.Sum256(m.Data)))
			}
			if e := got[name]; e.Root != want.Root() || e.Messages() != want.Size() {
				t.Fatalf("%s: %+v, want root %s of %d", name, e, want.Root(), want.Size())
			}
		}
	})
}

// TestOneBit: whatever bit is flipped, the backup is refused, and when it is in a
// message, that message is named.
func TestOneBit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all, b := drawFile(t)
		at := rapid.IntRange(0, len(b)-1).Draw(t, "byte")
		bad := bytes.Clone(b)
		bad[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		_, err := verify(bad)
		f := (*Fault)(nil)
		if !errors.As(err, &f) {
			t.Fatalf("byte %d: %v", at, err)
		}
		if want := messageAt(all, b, at); want != nil && (f.Stream != want.Stream || f.Seq != want.Seq) {
			t.Fatalf("byte %d is of %s %d: %v", at, want.Stream, want.Seq, f)
		}
	})
}

// messageAt returns the message whose frame holds byte at.
func messageAt(all [][]Message, b []byte, at int) *Message {
	pos, kinds := len(magic), 0
	var flat []Message
	for _, s := range all {
		flat = append(flat, s...)
	}
	for pos < len(b) {
		n := 4 + int(binary.BigEndian.Uint32(b[pos:])) + 4
		isMessage := b[pos+4] == kindMessage
		if at >= pos && at < pos+n {
			if !isMessage {
				return nil
			}
			return &flat[kinds]
		}
		if isMessage {
			kinds++
		}
		pos += n
	}
	return nil
}

func TestCutAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		_, b := drawFile(t)
		n := rapid.IntRange(0, len(b)-1).Draw(t, "length")
		if _, err := verify(b[:n]); err == nil || errors.As(err, new(*Fault)) == false {
			t.Fatalf("%d of %d bytes: %v", n, len(b), err)
		}
		if _, err := verify(append(bytes.Clone(b), 0)); err == nil {
			t.Fatal("a byte after the manifest is accepted")
		}
	})
}

// reframe writes the messages as they are, with checksums that hold and the
// manifest that m says, nil = none.
func reframe(t failer, m *Manifest, streams ...[]Message) []byte {
	t.Helper()
	head, _ := json.Marshal(&Header{Log: testLog, Made: 1})
	b := frame([]byte(magic), kindHeader, head)
	for i, s := range streams {
		first := uint64(1)
		if Streams()[i] == Use {
			first = 41
		}
		b = frame(b, kindStream, binary.BigEndian.AppendUint64(nil, first), []byte(Streams()[i]))
		for _, m := range s {
			h := binary.BigEndian.AppendUint64(nil, m.Seq)
			h = binary.BigEndian.AppendUint64(h, uint64(m.Stored))
			h = binary.BigEndian.AppendUint16(h, uint16(len(m.Subject)))
			b = frame(b, kindMessage, h, []byte(m.Subject), m.Data)
		}
	}
	if m != nil {
		m.SHA256 = sha256.Sum256(b)
		text, _ := json.Marshal(m)
		b = frame(b, kindManifest, text)
	}
	return b
}

// TestTamperedWithCare: who alters a file knows its checksums, and mends them.
func TestTamperedWithCare(t *testing.T) {
	ref := logtest.NewKeyRef("shop", "acme").Aggregate()
	var c events.Chain
	life := func(names ...string) (out []events.Write) {
		c = events.Chain{}
		for i, n := range names {
			var d events.Data = logtest.Created("s")
			if i > 0 {
				d = &events.KeyRenamed{Before: events.Label{Name: "test"}, After: events.Label{Name: n}}
			}
			e := logtest.Event(ref, d)
			e.ID, e.Time = events.EventID{15: byte(i + 1)}, events.Time(1767693600000+i)
			out = append(out, logtest.Stamp(&c, e))
		}
		return out
	}
	good := history(t, life("", "a", "b", "c"))
	other := history(t, life("", "a", "X", "c")) // a consistent chain
	us := uses(t, 2)
	manifest := func(m []Message) *Manifest {
		r, err := NewReader(bytes.NewReader(file(t, m, nil, us)))
		for err == nil {
			_, err = r.Next()
		}
		out := r.Manifest()
		return &out
	}
	mixed := append(append([]Message{}, good[:2]...), other[2], good[3])
	dropped := append(append([]Message{}, good[:2]...), good[3])
	for _, tt := range []struct {
		name   string
		b      []byte
		stream string
		seq    uint64
		want   string
	}{
		{"nothing", reframe(t, manifest(good), good, nil, us), "", 0, ""},
		{"a message is dropped", reframe(t, manifest(good), dropped, nil, us), Life, 3, "missing: sequence 4 comes next"},
		{"the tail is cut", reframe(t, manifest(good), good[:3], nil, us), Life, 4, "ends at sequence 3, the manifest says 4"},
		{"the tail is cut, and the manifest with it", reframe(t, nil, good[:3], nil, us), Use, 43, "without its manifest"},
		{"an event is rewritten alone", reframe(t, manifest(mixed), mixed, nil, us), Life, 4, "does not name the hash"},
		{"an event is rewritten with its chain", reframe(t, manifest(good), other, nil, us), Life, 0, "the root does not tell which"},
		{"two messages are exchanged", reframe(t, manifest(good), []Message{good[1], good[0]}, nil, us), Life, 1, "missing: sequence 2 comes next"},
		{"a use is gone from the beginning", reframe(t, manifest(good), good, nil, us[1:]), Use, 41, "missing: sequence 42 comes next"},
		{"no event", reframe(t, manifest(good), []Message{{Seq: 1, Subject: good[0].Subject, Data: []byte("{}")}}, nil, us), Life, 1, "no event as Keytrail writes it"},
		{"a stream is gone", reframe(t, manifest(good), good, nil), Use, 41, "the file does not hold the stream"},
	} {
		_, err := verify(tt.b)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		f := (*Fault)(nil)
		if !errors.As(err, &f) || f.Stream != tt.stream || f.Seq != tt.seq || !strings.Contains(f.Error(), tt.want) {
			t.Errorf("%s: %v; want %s %d: %s", tt.name, err, tt.stream, tt.seq, tt.want)
		}
	}

	// Rewritten with its chain and the manifest: nothing in the file shows it. A
	// checkpoint does, and another copy tells which event it is.
	forged := reframe(t, manifest(other), other, nil, us)
	if _, err := verify(forged); err != nil {
		t.Fatal(err)
	}
	signer, err := tree.NewSigner(tree.Origin(testLog.String()), tree.GenerateKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	for size, want := range map[int]string{3: "the root does not tell which", 2: "", 6: "missing: the stream ends at sequence 4, the checkpoint says 6"} {
		var r tree.Range
		for i := range size {
			m := good[min(i, 3)]
			r.Append(tree.LeafHash(m.Subject, sha256.Sum256(m.Data)))
		}
		_, err = Verify(bytes.NewReader(forged), Evidence{Checkpoint: &tree.Checkpoint{Head: r.Head(signer.Origin())}})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("checkpoint of size %d: %v, want %q", size, err, want)
		}
	}
	_, err = Verify(bytes.NewReader(forged), Evidence{Checkpoint: &tree.Checkpoint{Head: tree.Head{Origin: "keytrail/log/other"}}})
	if err == nil || !strings.Contains(err.Error(), "the checkpoint is of keytrail/log/other") {
		t.Errorf("a checkpoint of another log: %v", err)
	}
}

// TestCompare: another copy names what a root cannot. Either of the two may be the
// older one.
func TestCompare(t *testing.T) {
	ref := logtest.NewKeyRef("shop", "acme").Aggregate()
	life := func(names ...string) (out []events.Write) {
		var c events.Chain
		for i, n := range names {
			var d events.Data = logtest.Created("s")
			if i > 0 {
				d = &events.KeyRenamed{Before: events.Label{Name: "test"}, After: events.Label{Name: n}}
			}
			e := logtest.Event(ref, d)
			e.ID, e.Time = events.EventID{15: byte(i + 1)}, events.Time(1767693600000+i)
			out = append(out, logtest.Stamp(&c, e))
		}
		return out
	}
	good, other := history(t, life("", "a", "b", "c")), history(t, life("", "a", "X", "c"))
	us := uses(t, 4)
	for _, tt := range []struct {
		name   string
		a, b   []byte
		same   uint64
		stream string
		seq    uint64
		live   bool
	}{
		{"the same", file(t, good, nil, us), file(t, good, nil, us), 8, "", 0, false},
		{"an older one", file(t, good, reads(t, 1), us[2:]), file(t, good[:2], nil, us[:3]), 3, "", 0, false},
		{"a newer one", file(t, good[:2], nil, us[:3]), file(t, good, reads(t, 1), us[2:]), 3, "", 0, false},
		{"rewritten", file(t, other, nil, us), file(t, good, nil, us), 2, Life, 3, false},
		{"rewritten, and newer", file(t, other, nil, us), file(t, good[:3], nil, us), 2, Life, 3, false},
		{"damaged itself", file(t, good, nil, us), file(t, good, nil, us)[:900], 0, "", 0, false},
		{"a log and its older backup", file(t, good, nil, us[2:]), file(t, good[:2], nil, us[:3]), 3, "", 0, true},
		{"a log that lost its tail", file(t, good[:2], nil, us), file(t, good, nil, us), 2, Life, 3, true},
		{"a log that lost a read", file(t, good, nil, us), file(t, good, reads(t, 1), us), 4, Read, 1, true},
	} {
		r, err := NewReader(bytes.NewReader(tt.b))
		if err != nil {
			t.Fatal(err)
		}
		report, err := Verify(bytes.NewReader(tt.a), Evidence{Other: r, Live: tt.live})
		f := (*Fault)(nil)
		if tt.name == "damaged itself" {
			if !errors.As(err, &f) || !strings.Contains(err.Error(), "the other copy: ") {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		if report.Compared != tt.same || tt.seq == 0 && err != nil || tt.seq > 0 && (!errors.As(err, &f) || f.Stream != tt.stream || f.Seq != tt.seq) {
			t.Errorf("%s: %d are the same, %v; want %d, %s %d", tt.name, report.Compared, err, tt.same, tt.stream, tt.seq)
		}
	}
}

// TestCompareWithAnAncestor: a restored log is compared as far as it was restored.
func TestCompareWithAnAncestor(t *testing.T) {
	good := history(t, logtest.Samples())
	old := file(t, good, nil, nil)
	ancestor := []events.Ancestor{{Log: testLog, Size: 5}}
	for restored, want := range map[int]string{5: "", 6: "", 4: "missing: the other copy has it"} {
		r, err := NewReader(bytes.NewReader(old))
		if err != nil {
			t.Fatal(err)
		}
		v, err := NewVerification(events.LogID{9}, ancestor, Evidence{Other: r, Live: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range good[:restored] {
			if err := v.Take(&m); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := v.Done(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%d events: %v, want %q", restored, err, want)
		}
	}
	r, _ := NewReader(bytes.NewReader(old))
	if _, err := NewVerification(events.LogID{9}, nil, Evidence{Other: r}); err == nil || !strings.Contains(err.Error(), "the other copy is of log "+testLog.String()) {
		t.Errorf("a copy of another log: %v", err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(file(f, nil, nil, nil))
	f.Add(file(f, history(f, logtest.Samples()[:3]), reads(f, 1), uses(f, 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		report, err := Verify(bytes.NewReader(b), Evidence{})
		if err != nil {
			return
		}
		// What is accepted is what the writer writes.
		r, _ := NewReader(bytes.NewReader(b))
		var out bytes.Buffer
		w, err := NewWriter(&out, r.Header())
		if err != nil {
			t.Fatal(err)
		}
		for i := range report.Streams {
			if err := w.Stream(report.Streams[i].Stream, report.Streams[i].First); err != nil {
				t.Fatal(err)
			}
			for n := report.Streams[i].Messages(); n > 0; n-- {
				m, err := r.Next()
				if err != nil {
					t.Fatal(err)
				}
				if err := w.Put(&m); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := w.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzBodies fuzzes what is inside the frames: their checksums hold. The bodies are
// separated by a line "--".
func FuzzBodies(f *testing.F) {
	const between = "\n--\n"
	b := file(f, history(f, logtest.Samples()[:3]), reads(f, 1), uses(f, 2))
	var bodies []string
	for rest := b[len(magic):]; len(rest) > 0; {
		n := int(binary.BigEndian.Uint32(rest))
		bodies, rest = append(bodies, string(rest[4:4+n])), rest[8+n:]
	}
	f.Add([]byte(strings.Join(bodies, between)))
	f.Fuzz(func(t *testing.T, in []byte) {
		b := []byte(magic)
		for body := range strings.SplitSeq(string(in), between) {
			if body != "" {
				b = frame(b, body[0], []byte(body[1:]))
			}
		}
		if _, err := Verify(bytes.NewReader(b), Evidence{}); err != nil && !errors.As(err, new(*Fault)) {
			t.Fatalf("%v is no fault", err)
		}
	})
}
