package audit

import (
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/internal/api"
)

func readCSV(t testing.TB, s string) [][]string {
	t.Helper()
	rows, err := csv.NewReader(strings.NewReader(s)).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// TestExport takes each copy and compares it with the log, row by row.
func TestExport(t *testing.T) {
	f := newFixture(t)
	scope := ScopeOf(&events.Principal{})
	take := func(kind Kind, format Format) (Manifest, string) {
		t.Helper()
		e, err := f.store.NewExport(t.Context(), scope, filter(t, kind, nil), format, f.log.ID())
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		m, err := e.WriteTo(t.Context(), &b)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(b.String()))
		if m.Digest != hex.EncodeToString(sum[:]) || m.Rows != e.Total {
			t.Errorf("%s as %s: manifest %+v of %d rows", kind, format, m, e.Total)
		}
		again, err := e.WriteTo(t.Context(), new(strings.Builder))
		if err != nil || again != m {
			t.Errorf("%s as %s: taken again %+v, %v, first %+v", kind, format, again, err, m)
		}
		return m, b.String()
	}
	records := f.trail()

	m, text := take(KindEvents, CSV)
	rows := readCSV(t, text)
	if len(rows) != len(records)+1 || m.First != 1 || m.Last != events.Seq(len(f.log.Records())) {
		t.Errorf("events: %d lines, manifest %+v, log of %d", len(rows), m, len(records))
	}
	_, lines := take(KindEvents, JSONL)
	sameColumns(t, rows, jsonLines(t, lines), "data")
	for i, r := range records {
		data, err := json.Marshal(r.Data, json.Deterministic(true))
		if err != nil {
			t.Fatal(err)
		}
		row := byName(rows, i+1)
		for name, want := range map[string]string{"seq": fmt.Sprint(r.Seq), "hash": r.Hash.String(), "data": string(data), "time": r.Time.String(),
			"stored": r.Stored.String(), "source": r.Source, "command": r.Command, "actor_id": r.Actor.ID, "aggregate_id": r.Aggregate.ID} {
			if row[name] != want {
				t.Errorf("event %d: %s is %q, want %q", r.Seq, name, row[name], want)
			}
		}
		if prev := row["prev"]; (prev == "") != r.Prev.IsZero() || prev != "" && prev != r.Prev.String() {
			t.Errorf("event %d: prev %q, want %s", r.Seq, prev, r.Prev)
		}
		// A line has all that the endpoint shows of the event, under the same names.
		shown, err := json.Marshal(api.ViewEvent(&r), json.Deterministic(true))
		if err != nil {
			t.Fatal(err)
		}
		within(t, jsonLines(t, lines)[i], jsonLines(t, string(shown)+"\n")[0])
	}

	want := map[string]*UseRow{}
	for i := range f.uses {
		want[f.uses[i].ID.String()] = &f.uses[i]
	}
	_, text = take(KindUses, CSV)
	rows = readCSV(t, text)
	_, lines = take(KindUses, JSONL)
	sameColumns(t, rows, jsonLines(t, lines), "")
	if len(rows)-1 != len(f.uses) {
		t.Errorf("uses: %d lines of %d", len(rows)-1, len(f.uses))
	}
	for i, line := range jsonLines(t, lines) {
		u := want[rows[i+1][0]]
		if u == nil {
			t.Fatalf("use %q is none", rows[i+1])
		}
		delete(want, rows[i+1][0])
		shown, err := json.Marshal(viewUse(u), json.Deterministic(true))
		if err != nil {
			t.Fatal(err)
		}
		within(t, line, jsonLines(t, string(shown)+"\n")[0])
		row := byName(rows, i+1)
		if row["stored"] != u.Stored.String() || row["decided_seq"] != fmt.Sprint(u.Use.Seq) || row["request_id"] != u.RequestID.String() || row["endpoint"] != u.Endpoint {
			t.Errorf("use %v, want %+v", row, u)
		}
	}
}

// byName is row i by the names in the header.
func byName(rows [][]string, i int) map[string]string {
	out := map[string]string{}
	for j, name := range rows[0] {
		out[name] = rows[i][j]
	}
	return out
}

func jsonLines(t *testing.T, text string) (out []map[string]any) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		out = append(out, v)
	}
	return out
}

// within checks that whole has every member of part, with the same value.
func within(t *testing.T, whole, part map[string]any) {
	t.Helper()
	for name, v := range part {
		if a, b := fmt.Sprint(whole[name]), fmt.Sprint(v); a != b {
			t.Errorf("member %s is %s, want %s", name, a, b)
		}
	}
}

// sameColumns checks that the two formats hold the same values under the same
// names, but for the column that is JSON itself.
func sameColumns(t *testing.T, rows [][]string, lines []map[string]any, raw string) {
	t.Helper()
	if len(rows) != len(lines)+1 {
		t.Fatalf("%d rows as CSV, %d as JSON", len(rows)-1, len(lines))
	}
	for i, line := range lines {
		flat := map[string]string{}
		put := func(name string, v any) {
			if n, ok := v.(float64); ok {
				v = strconv.FormatFloat(n, 'f', -1, 64)
			}
			flat[name] = fmt.Sprint(v)
		}
		for name, v := range line {
			members, ok := v.(map[string]any)
			if !ok || name == raw {
				put(name, v)
				continue
			}
			for member, v := range members {
				put(name+"_"+member, v)
			}
		}
		for name, cell := range byName(rows, i+1) {
			if name != raw && flat[name] != cell {
				t.Errorf("row %d: %s is %q as CSV, %q as JSON", i+1, name, cell, flat[name])
			}
			delete(flat, name)
		}
		if len(flat) > 0 {
			t.Errorf("row %d: only JSON has %v", i+1, flat)
		}
	}
}

type brokenWriter struct{ left int }

func (w *brokenWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errors.New("the reader is gone")
	}
	return len(b), nil
}

func TestExportToReaderThatLeaves(t *testing.T) {
	f := newFixture(t)
	for range 20 { // more than one buffer
		f.publish(t, 1000)
	}
	waitCopied(t, f.store, f.log)
	e, err := f.store.NewExport(t.Context(), ScopeOf(&events.Principal{}), filter(t, KindUses, nil), CSV, f.log.ID())
	if err != nil {
		t.Fatal(err)
	}
	m, err := e.WriteTo(t.Context(), &brokenWriter{100_000})
	if err == nil || m.Digest != "" || m.Rows >= e.Total {
		t.Errorf("manifest %+v, error %v", m, err)
	}
}
