package events_test

import (
	"bytes"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
)

// agree wants the scanner to give what the strict reader gives, or nothing. It
// reports whether it gave anything.
func agree(t interface{ Fatalf(string, ...any) }, m *events.Message) bool {
	before := bytes.Clone(m.Data)
	got, ok := events.Scan(m)
	if ok {
		want, err := events.Read(m)
		if err != nil {
			t.Fatalf("scanned, and not readable: %v\n%s", err, m.Data)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("scanned as\n%+v %+v\nread as\n%+v %+v\n%s", got, got.Data, want, want.Data, m.Data)
		}
		// Nothing of the event is in the message's bytes.
		for i := range m.Data {
			m.Data[i] = '!'
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("the event shares memory with its document:\n%s", before)
		}
		copy(m.Data, before)
	}
	return ok
}

// Every event that Encode prints is scanned, and as the reader reads it.
func TestScanReadsWhatEncodePrints(t *testing.T) {
	for _, w := range logtest.Samples() {
		if m := must(events.Encode(&w.Event)); !agree(t, &m) {
			t.Errorf("%s is not scanned: %s", w.Event.Type(), m.Data)
		}
	}
	rapid.Check(t, func(r *rapid.T) {
		e := logtest.GenEvent().Draw(r, "event")
		if m := must(events.Encode(&e)); !agree(r, &m) {
			r.Fatalf("not scanned: %s", m.Data)
		}
	})
}

// A document that was changed somewhere is scanned as it is read, or not at all.
func TestScanAgreesOnSpoiltDocuments(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		e := logtest.GenEvent().Draw(r, "event")
		m := must(events.Encode(&e))
		for range rapid.IntRange(1, 3).Draw(r, "changes") {
			at := rapid.IntRange(0, len(m.Data)-1).Draw(r, "at")
			end := min(len(m.Data), at+rapid.IntRange(0, 3).Draw(r, "cut"))
			with := rapid.SampledFrom([]string{"", `"`, `,`, `{`, `}`, `[`, `]`, `:`, `0`, `7`, `9`, `a`, `A`, `-`, ` `, `\\`, `\u0041`, `null`, "\xff", "\x00",
				"é", `"a":1,`, `.`, `/`, `""`, `[]`, `{}`}).Draw(r, "with")
			m.Data = append(append(bytes.Clone(m.Data[:at]), with...), m.Data[end:]...)
			if len(m.Data) == 0 {
				return
			}
		}
		agree(r, &m)
	})
}

func FuzzScan(f *testing.F) {
	for _, w := range logtest.Samples() {
		m := must(events.Encode(&w.Event))
		f.Add(m.Subject, m.Data)
	}
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		agree(t, &events.Message{Subject: subject, Data: bytes.Clone(data)})
	})
}

// BenchmarkDecode reads creations of keys: as a replay does, and by the reader that
// the scanner stands in for.
func BenchmarkDecode(b *testing.B) {
	var ms []events.Message
	for i := range 1000 {
		e := logtest.Event(logtest.NewKeyRef("shop", "acme").Aggregate(), logtest.Created(string(rune('a'+i%26))))
		ms = append(ms, must(events.Encode(&e)))
	}
	for name, f := range map[string]func(*events.Message) error{
		"decode": func(m *events.Message) error { _, err := events.Decode(m); return err },
		"read":   func(m *events.Message) error { _, err := events.Read(m); return err },
		"hash":   func(m *events.Message) error { m.Hash(); return nil },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := f(&ms[i%len(ms)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
