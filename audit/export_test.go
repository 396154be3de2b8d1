package audit

import (
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas/api"
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
	records := f.log.Records()

	m, text := take(KindEvents, CSV)
	rows := readCSV(t, text)
	if len(rows) != len(records)+1 || m.First != 1 || m.Last != records[len(records)-1].Seq {
		t.Errorf("events: %d lines, manifest %+v, log of %d", len(rows), m, len(records))
	}
	for i, r := range records {
		data, err := json.Marshal(r.Data, json.Deterministic(true))
		if err != nil {
			t.Fatal(err)
		}
		row := rows[i+1]
		if row[0] != fmt.Sprint(r.Seq) || row[20] != r.Hash.String() || row[21] != string(data) || row[3] != r.Time.String() {
			t.Errorf("event %d: %q", r.Seq, row)
		}
	}
	_, text = take(KindEvents, JSONL)
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, r := range records {
		want, err := json.Marshal(api.ViewEvent(&r), json.Deterministic(true))
		if err != nil || lines[i] != string(want) {
			t.Errorf("event %d: %s, want %s (%v)", r.Seq, lines[i], want, err)
		}
	}

	want := map[string]*UseRow{}
	for i := range f.uses {
		want[f.uses[i].ID.String()] = &f.uses[i]
	}
	_, text = take(KindUses, CSV)
	rows = readCSV(t, text)[1:]
	if len(rows) != len(f.uses) {
		t.Errorf("uses: %d lines of %d", len(rows), len(f.uses))
	}
	for _, row := range rows {
		u := want[row[0]]
		if u == nil || strings.Join(row, "|") != strings.Join(useCells(u), "|") {
			t.Errorf("use %q, want %+v", row, u)
		}
		delete(want, row[0])
	}
	_, text = take(KindUses, JSONL)
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		var v UseView
		if err := json.Unmarshal([]byte(line), &v, json.RejectUnknownMembers(true)); err != nil || v.Position.Log != f.log.ID() {
			t.Errorf("%s: %v", line, err)
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
