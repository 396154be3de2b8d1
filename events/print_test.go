package events_test

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// printed wants e to be printed by hand as the JSON package prints it, or not at all
// where that one refuses it.
func printed(t interface{ Fatalf(string, ...any) }, e *events.Event) {
	got, ok := events.Print(e)
	want, err := events.Marshal(e)
	if ok != (err == nil) || ok && !bytes.Equal(got, want.Data) {
		t.Fatalf("printed %t\n%s\nwant, with error %v,\n%s", ok, got, err, want.Data)
	}
}

func TestPrintIsWhatTheJSONPackagePrints(t *testing.T) {
	for _, w := range logtest.Samples() {
		printed(t, &w.Event)
	}
	// Text that validation refuses too: print stands in for the JSON package and
	// knows nothing of rules.
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "a\"b", `a\b`, "\x00\x1f\x7f", "a\xffb", "\x80", "a\xc3", "\xed\xa0\x80", "<é&\u2028>", "\U0010ffff"}))
	rapid.Check(t, func(r *rapid.T) {
		e := logtest.GenEvent().Draw(r, "event")
		printed(r, &e)
		for _, field := range []*string{&e.Source, &e.Command, &e.Actor.ID, &e.UserAgent, &e.RequestID, &e.Reason} {
			if rapid.Bool().Draw(r, "changed") {
				*field = text.Draw(r, "text")
			}
		}
		if rapid.Bool().Draw(r, "time") {
			e.Time = events.Time(rapid.Int64().Draw(r, "at"))
		}
		switch d := e.Data.(type) {
		case *events.KeyCreated:
			change(r, text, d)
		case *events.KeyImported:
			change(r, text, &d.KeyCreated)
			d.ImportedFrom, d.RevokeCode = text.Draw(r, "from"), events.RevokeCode(text.Draw(r, "code"))
			d.RevokedAt = events.Time(rapid.Int64().Draw(r, "revoked"))
		case *events.KeyRevoked:
			d.Code = events.RevokeCode(text.Draw(r, "code"))
		case *events.KeyExpired:
			d.ExpiredAt = events.Time(rapid.Int64().Draw(r, "expired"))
		}
		printed(r, &e)
	})
}

func change(r *rapid.T, text *rapid.Generator[string], d *events.KeyCreated) {
	d.Name, d.Hint, d.Environment = text.Draw(r, "name"), text.Draw(r, "hint"), text.Draw(r, "environment")
	d.Scopes = rapid.SliceOfN(text, 0, 2).Draw(r, "scopes")
	d.Metadata = rapid.MapOfN(text, text, 0, 3).Draw(r, "metadata")
	if rapid.Bool().Draw(r, "limited") {
		d.Limit = &keyspace.Limit{Plan: text.Draw(r, "plan"), PerMinute: rapid.Int64().Draw(r, "per minute")}
	}
	d.ExpiresAt = events.Time(rapid.Int64().Draw(r, "expires"))
}

// BenchmarkEncode prints imports of keys: as an append does, and by the JSON package that
// the printer stands in for.
func BenchmarkEncode(b *testing.B) {
	e := logtest.Event(logtest.NewKeyRef("shop", "acme").Aggregate(), &events.KeyImported{KeyCreated: *logtest.Created("key 1"), ImportedFrom: "the old gateway"})
	for name, f := range map[string]func(){
		"print": func() { events.Print(&e) },
		"json":  func() { must(events.Marshal(&e)) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f()
			}
		})
	}
}
