package audit

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// TestUsageIsExact: the counts are those of the uses from From up to To, however
// these cut hours and days, and whether they come from the rollups or not.
func TestUsageIsExact(t *testing.T) {
	f := newFixture(t)
	r := rand.New(rand.NewPCG(1, 2))
	for h := range 60 { // two days and a half, a few uses an hour
		f.clock.set(start.Add(time.Duration(h)*time.Hour + time.Duration(r.IntN(3600))*time.Second))
		f.publish(t, 12)
	}
	waitCopied(t, f.store, f.log)
	scope := ScopeOf(&events.Principal{})
	instant := func() events.Time {
		at := start.Add(time.Duration(r.IntN(62*3600)-3600) * time.Second)
		switch r.IntN(3) {
		case 0:
			at = at / 3600_000 * 3600_000
		case 1:
			at = at / 86400_000 * 86400_000
		}
		return at
	}
	for i := range 150 {
		given := map[string]string{"per": []string{"hour", "day"}[r.IntN(2)]}
		if r.IntN(4) > 0 {
			given["from"] = instant().String()
		}
		if r.IntN(4) > 0 {
			given["to"] = instant().String()
			if given["from"] >= given["to"] {
				delete(given, "from")
			}
		}
		switch r.IntN(3) {
		case 0:
			given["key"] = f.keys[r.IntN(len(f.keys))].Key.String()
		case 1:
			given["tenant"] = "acme"
		}
		fl := filter(t, KindUsage, given)
		width := events.Time(3600_000)
		if fl.PerDay {
			width *= 24
		}
		want := map[string]uint64{}
		for _, u := range f.uses {
			if naive(fl, &u) {
				want[fmt.Sprint(u.Time/width*width, u.Reason)]++
			}
		}
		cells, _, err := f.store.Usage(t.Context(), scope, fl, Page{Limit: 10_000})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]uint64{}
		for _, c := range cells {
			got[fmt.Sprint(c.At, c.Reason)] += c.Count
		}
		if !maps.Equal(got, want) {
			t.Fatalf("question %d %v:\n got %v\nwant %v", i, given, got, want)
		}
	}
}

// TestUsageOfDroppedMonths: where the uses are gone and only the rollups are left,
// whole hours are answered, and a question that cuts one is refused.
func TestUsageOfDroppedMonths(t *testing.T) {
	f := newFixture(t)
	scope := ScopeOf(&events.Principal{})
	ask := func(given map[string]string) (n uint64, err error) {
		cells, _, err := f.store.Usage(t.Context(), scope, filter(t, KindUsage, given), Page{Limit: 10_000})
		for _, c := range cells {
			n += c.Count
		}
		return n, err
	}
	whole := map[string]string{"from": "2026-01-31T23:00:00Z", "to": "2026-02-01T00:00:00Z"}
	cut := map[string]string{"from": "2026-01-31T23:30:00Z", "to": "2026-02-01T00:00:00Z"}
	before, err := ask(whole)
	if err != nil || before == 0 {
		t.Fatal(before, err)
	}
	if n, err := ask(cut); err != nil || n != before { // all are of the last minutes
		t.Fatalf("%d of %d, %v", n, before, err)
	}
	if err := f.stop(); err != nil {
		t.Fatal(err)
	}
	if err := f.store.conn.Exec(t.Context(), "ALTER TABLE uses DELETE WHERE toYYYYMM(stored) = 202601 SETTINGS mutations_sync = 2"); err != nil {
		t.Fatal(err)
	}
	if n, err := ask(whole); err != nil || n != before {
		t.Errorf("whole hours: %d of %d, %v", n, before, err)
	}
	_, err = ask(cut)
	var faults input.FieldErrors
	if !errors.As(err, &faults) || len(faults) != 1 || faults[0].Field != "from" {
		t.Errorf("a cut hour: %v", err)
	}
	if n, err := ask(map[string]string{"from": "2020-01-01T00:30:00Z"}); err != nil || n < before {
		t.Errorf("since before the first use: %d, %v", n, err)
	}
}
