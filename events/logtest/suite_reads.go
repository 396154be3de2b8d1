package logtest

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/keytrail/keytrail/events"
)

// TestReadLog is the contract of events.ReadLog beyond events.Log's, on the two logs
// of one installation. open returns new, empty ones and closes them when its test
// ends.
func TestReadLog(t *testing.T, open func(t *testing.T) (life, reads events.ReadLog)) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, ctx context.Context, life, reads events.ReadLog)
	}{
		{"each log has its own sequences, and both one identity", readLogsApart},
		{"an event of the other log is refused and stores nothing", readLogRefuses},
		{"the last event and the event at a sequence are what was stored", readLogAt},
		{"every type of reading survives, and follow delivers it", readLogCatalogue},
	} {
		t.Run(c.name, func(t *testing.T) {
			life, reads := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
			defer cancel()
			c.run(t, ctx, life, reads)
			if !t.Failed() {
				CheckLog(t, life)
				CheckLog(t, reads)
			}
		})
	}
}

func readBy(name string) events.Aggregate {
	return events.ReaderAggregate(events.Actor{Kind: events.ActorSystem, ID: name})
}

func readLogsApart(t *testing.T, ctx context.Context, life, reads events.ReadLog) {
	if life.ID() != reads.ID() || life.ID().IsZero() {
		t.Errorf("the logs are %s and %s", life.ID(), reads.ID())
	}
	for i := range 3 {
		Append(t, life, noted("a"), note(i))
	}
	if last := wantLast(t, ctx, reads); last != 0 {
		t.Errorf("the read log ends at %d with nothing in it", last)
	}
	if seq := Append(t, reads, readBy("a"), &events.AuditQueried{Kind: "uses"}); seq != 1 {
		t.Errorf("its first event stands at %d", seq)
	}
	if last := wantLast(t, ctx, life); last != 3 {
		t.Errorf("the lifecycle log ends at %d, want 3", last)
	}
}

func readLogRefuses(t *testing.T, ctx context.Context, _, reads events.ReadLog) {
	for _, ws := range [][]events.Write{
		{first(noted("a"), note(1))},
		{first(readBy("a"), &events.AuditQueried{Kind: "uses"}), first(NewKeyRef("shop", "acme").Aggregate(), Created("a"))},
	} {
		if seq, err := reads.Append(ctx, ws...); err == nil || seq != 0 || !strings.Contains(err.Error(), "belongs to the log of lifecycle") {
			t.Errorf("%d writes: %d, %v", len(ws), seq, err)
		}
	}
	if last := wantLast(t, ctx, reads); last != 0 {
		t.Errorf("the log ends at %d", last)
	}
}

func readLogAt(t *testing.T, ctx context.Context, _, reads events.ReadLog) {
	if r, ok, err := reads.LastOf(ctx, readBy("a")); ok || err != nil {
		t.Fatalf("last of no history: %d, %v", r.Seq, err)
	}
	for i := range 4 {
		Append(t, reads, readBy("ab"[i%2:][:1]), &events.AuditQueried{Kind: "uses", Filter: map[string]string{"n": fmt.Sprint(i)}})
	}
	all := ReadAll(t, reads)
	for i, want := range all {
		if r, ok, err := reads.At(ctx, events.Seq(i+1)); !ok || err != nil || !reflect.DeepEqual(r, want) {
			t.Errorf("event %d is %+v, %t, %v", i+1, r, ok, err)
		}
	}
	for _, seq := range []events.Seq{0, 5, 1 << 40} {
		if r, ok, err := reads.At(ctx, seq); ok || err != nil {
			t.Errorf("at %d stands %d, %v", seq, r.Seq, err)
		}
	}
	if r, ok, err := reads.LastOf(ctx, readBy("a")); !ok || err != nil || r.Seq != 3 {
		t.Errorf("last of a: %d, %t, %v", r.Seq, ok, err)
	}
}

func readLogCatalogue(t *testing.T, ctx context.Context, _, reads events.ReadLog) {
	var c events.Chain
	samples := slices.DeleteFunc(Samples(), func(w events.Write) bool { return w.Event.Aggregate.Stream() != events.Reads })
	for _, w := range samples {
		if seq, err := reads.Append(ctx, Stamp(&c, w.Event)); err != nil {
			t.Fatalf("append %s: %v", w.Event.Type(), err)
		} else {
			c.Seq = seq
		}
	}
	f := &recorder{}
	stop := following(ctx, reads, f)
	defer func() { _ = stop() }()
	until(t, "what was read is followed", func() bool { return len(f.events()) == len(samples) })
	for i, r := range f.events() {
		if r.ID != samples[i].Event.ID {
			t.Errorf("event %d is %s, want %s", i+1, r.Type(), samples[i].Event.Type())
		}
	}
}
