package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/schemas/api"
)

// gate authenticates by the name in X-Who.
type gate map[string]*events.Principal

func (g gate) Authenticate(r *http.Request) (events.Principal, error) {
	p := g[r.Header.Get("X-Who")]
	if p == nil {
		return events.Principal{}, api.Errorf(http.StatusUnauthorized, "key_missing", "who are you")
	}
	who := *p
	who.RequestID = api.RequestID(r)
	who.IP = api.ClientIP(r)
	who.UserAgent = r.UserAgent()
	return who, nil
}

func serveDoor(t testing.TB, s *Store, log events.LastOfLog) *httptest.Server {
	t.Helper()
	who := gate(principals())
	who["reader"] = &events.Principal{Actor: events.Actor{Kind: events.ActorKey, ID: keyID(7).String()}, Scopes: []string{events.ScopeAuditRead}}
	who["stranger"] = &events.Principal{Actor: events.Actor{Kind: events.ActorKey, ID: keyID(8).String()}, Scopes: []string{events.ScopeKeysRead}}
	mux := http.NewServeMux()
	NewDoor(DoorConfig{Store: s, Log: log, Node: "n1"}).Routes(mux, who)
	srv := httptest.NewServer(api.WithRequestID(mux))
	t.Cleanup(srv.Close)
	return srv
}

func call(t testing.TB, srv *httptest.Server, who, method, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Who", who)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestDoor(t *testing.T) {
	f := newFixture(t)
	srv := serveDoor(t, f.store, f.log)
	f.log.SetClock(time.Now) // readers act now, after the fixture
	before := len(f.log.Records())

	type answer struct {
		Data       []map[string]any `json:"data"`
		NextCursor *string          `json:"next_cursor"`
		Watermark  struct {
			EventsSeq int    `json:"events_seq"`
			UsesSeq   int    `json:"uses_seq"`
			StoredAt  string `json:"stored_at"`
		} `json:"watermark"`
		LastUsedAt string `json:"last_used_at"`
	}
	get := func(who, path string) (a answer) {
		t.Helper()
		resp, body := call(t, srv, who, "GET", path, "")
		if resp.StatusCode != 200 {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, body)
		}
		if err := json.Unmarshal([]byte(body), &a); err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := get("root", "/v1/audit/events?type=key.created&tenant=acme&limit=3")
	if len(a.Data) != 3 || a.NextCursor == nil || a.Data[0]["type"] != "key.created" || a.Watermark.EventsSeq < before || a.Watermark.UsesSeq != 11 || a.Watermark.StoredAt == "" {
		t.Errorf("events: %+v", a)
	}
	if a = get("root", "/v1/audit/events?type=key.created&tenant=acme&limit=3&cursor="+*a.NextCursor); len(a.Data) != 1 || a.NextCursor != nil {
		t.Errorf("second page: %+v", a)
	}
	a = get("root", "/v1/audit/uses?outcome=denied&ip=203.0.113.0/24&limit=100")
	for _, u := range a.Data {
		if u["allowed"] != false || u["reason"] == "ok" || !strings.HasPrefix(u["ip"].(string), "203.0.113.") || u["position"] == "" {
			t.Errorf("use: %v", u)
		}
	}
	if len(a.Data) == 0 {
		t.Error("no denied uses")
	}
	allowed := f.uses[slices.IndexFunc(f.uses, func(u UseRow) bool { return u.Reason.Allowed() })].Key
	a = get("root", "/v1/audit/usage?per=hour&key="+allowed.String())
	if len(a.Data) == 0 || a.LastUsedAt == "" || a.Data[0]["count"] == nil || a.Data[0]["at"] == nil {
		t.Errorf("usage: %+v", a)
	}

	// Reading is on the record, first things first, one history per reader.
	var kinds []string
	for _, r := range f.log.Records()[before:] {
		d, ok := r.Data.(*events.AuditQueried)
		if !ok || r.Aggregate != events.ReaderAggregate(r.Actor) || r.RequestID == "" || !r.IP.IsValid() {
			t.Fatalf("recorded %+v", r)
		}
		kinds = append(kinds, d.Kind)
	}
	if want := []string{"events", "events", "uses", "usage"}; !slices.Equal(kinds, want) {
		t.Errorf("recorded %v, want %v", kinds, want)
	}

	for _, c := range []struct {
		who, method, path, body string
		status                  int
		fields                  []string
	}{
		{"", "GET", "/v1/audit/events", "", 401, nil},
		{"stranger", "GET", "/v1/audit/uses", "", 403, nil},
		{"reader", "POST", "/v1/audit/exports", `{"kind":"uses","format":"csv"}`, 403, nil},
		{"tenant", "GET", "/v1/audit/events?tenant=globex", "", 403, nil},
		{"keyspace", "GET", "/v1/audit/uses?keyspace=other", "", 403, nil},
		{"keyspace", "POST", "/v1/audit/exports", `{"kind":"uses","format":"csv","filter":{"keyspace":"other"}}`, 403, nil},
		{"root", "GET", "/v1/audit/events?limit=101&cursor=x&from=now&nonsense=1&ip=1.2.3.4/8", "", 422, []string{"cursor", "from", "ip", "limit", "nonsense"}},
		{"root", "GET", "/v1/audit/uses?type=key.created&limit=0", "", 422, []string{"limit", "type"}},
		{"root", "GET", "/v1/audit/usage?per=week&limit=ten", "", 422, []string{"limit", "per"}},
		{"root", "GET", "/v1/audit/usage?per=day&per=hour", "", 422, []string{"per"}},
		{"root", "GET", "/v1/audit/uses?tenant=%ff", "", 422, []string{"tenant"}},
		{"root", "GET", "/v1/audit/uses?a=%zz", "", 400, nil},
		{"root", "POST", "/v1/audit/exports", `{"kind":"usage","format":"xml"}`, 422, []string{"format", "kind"}},
		{"root", "POST", "/v1/audit/exports", `{"kind":"uses","format":"csv","filter":{"type":"x","from":"y"}}`, 422, []string{"filter.from", "filter.type"}},
		{"root", "POST", "/v1/audit/exports", `{"kind":"uses","format":"csv","filter":{"from":1}}`, 422, []string{"filter.from"}},
		{"root", "POST", "/v1/audit/exports", `{"kind":"uses","extra":1}`, 422, []string{"extra"}},
		{"root", "POST", "/v1/audit/exports", `{`, 400, nil},
		{"root", "POST", "/v1/audit/events", ``, 405, nil},
	} {
		resp, body := call(t, srv, c.who, c.method, c.path, c.body)
		var p api.Problem
		if c.status != 405 {
			if err := json.Unmarshal([]byte(body), &p); err != nil {
				t.Fatalf("%s %s: %v: %s", c.method, c.path, err, body)
			}
		}
		var names []string
		for _, e := range p.Errors {
			names = append(names, e.Field)
		}
		slices.Sort(names)
		if resp.StatusCode != c.status || !slices.Equal(names, c.fields) {
			t.Errorf("%s %s %s: %d %v, want %d %v\n%s", c.method, c.path, c.body, resp.StatusCode, names, c.status, c.fields, body)
		}
	}
	if n := len(f.log.Records()); n != before+4 {
		t.Errorf("%d questions that were refused are on the record as asked", n-before-4)
	}
}

func TestDoorExport(t *testing.T) {
	f := newFixture(t)
	srv := serveDoor(t, f.store, f.log)
	resp, body := call(t, srv, "keyspace + tenant", "POST", "/v1/audit/exports", `{"kind":"uses","format":"csv","filter":{"outcome":"allowed"}}`)
	rows := readCSV(t, body)
	if resp.StatusCode != 200 || len(rows) < 2 || resp.Trailer.Get(trailerRows) != fmt.Sprint(len(rows)-1) || resp.Header.Get(headerTotal) != fmt.Sprint(len(rows)-1) ||
		len(resp.Trailer.Get(trailerSum)) != 64 || resp.Trailer.Get(trailerFirst) == "" || resp.Trailer.Get(trailerLast) == "" {
		t.Errorf("%d, %d rows, header %v, trailer %v", resp.StatusCode, len(rows), resp.Header, resp.Trailer)
	}
	for _, r := range rows[1:] {
		if r[6] != "scribe" || r[7] != "acme" || r[9] != "true" {
			t.Errorf("row %v", r)
		}
	}
	last := f.log.Records()[len(f.log.Records())-1]
	d, ok := last.Data.(*events.AuditExported)
	if !ok || d.Kind != "uses" || d.Format != "csv" || d.Filter["outcome"] != "allowed" {
		t.Errorf("recorded %+v", last)
	}
}

// downStore is a store whose ClickHouse nobody answers for.
func downStore(t testing.TB) *Store {
	o, err := parseDSN("clickhouse://u:hunter2@127.0.0.1:1/db")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := clickhouse.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &Store{conn: conn, options: *o, database: "db"}
}

func TestDoorWhenClickHouseIsDown(t *testing.T) {
	log := logtest.New(t)
	srv := serveDoor(t, downStore(t), log)
	for _, c := range [][3]string{{"GET", "/v1/audit/events", ""}, {"GET", "/v1/audit/uses", ""}, {"GET", "/v1/audit/usage", ""},
		{"POST", "/v1/audit/exports", `{"kind":"events","format":"jsonl"}`}} {
		resp, body := call(t, srv, "root", c[0], c[1], c[2])
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || strings.Contains(body, "hunter2") {
			t.Errorf("%s: %d %s", c[1], resp.StatusCode, body)
		}
	}
}

// TestUnrecordedReadIsRefused: if the entry cannot be written, nothing is read.
func TestUnrecordedReadIsRefused(t *testing.T) {
	log := logtest.New(t)
	srv := serveDoor(t, downStore(t), log)
	log.SetDown(true)
	resp, body := call(t, srv, "root", "GET", "/v1/audit/events", "")
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "nothing was read") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// TestRecorder appends from many goroutines and two recorders under each pair of
// faults: every read is on the record exactly once.
func TestRecorder(t *testing.T) {
	log := logtest.New(t)
	newRecorder := func() *Recorder {
		d := NewDoor(DoorConfig{Log: log, Node: "n"})
		return d.recorder
	}
	a, b := newRecorder(), newRecorder()
	who := principals()["root"]
	faults := []logtest.Fault{logtest.UnknownNotStored, logtest.UnknownStored}
	const each = 20
	var wg sync.WaitGroup
	var again sync.Map // reads that were refused and asked again: the refused try may be on the record too
	errs := make(chan error, 4*each)
	for i := range 4 {
		rec := []*Recorder{a, b}[i%2]
		wg.Go(func() {
			for n := range each {
				if n%5 == 0 {
					log.FailNext(logtest.OpAppend, faults[(n/5)%2])
				}
				for {
					err := rec.Record(context.Background(), who, &events.AuditQueried{Kind: "events", Filter: map[string]string{"n": fmt.Sprint(i, n)}})
					var p *api.Problem
					if errors.As(err, &p) && p.Status == 503 {
						again.Store(fmt.Sprint(i, n), true)
						continue // conflicts ten times in a row: the reader asks again
					}
					errs <- err
					break
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	seen := map[string]int{}
	for _, r := range log.Records() {
		seen[r.Data.(*events.AuditQueried).Filter["n"]]++
	}
	if len(seen) != 4*each {
		t.Errorf("%d reads on the record, want %d", len(seen), 4*each)
	}
	for n, count := range seen {
		if _, ok := again.Load(n); count != 1 && !ok {
			t.Errorf("read %s is recorded %d times", n, count)
		}
	}
}

// TestExportsAreBounded: readers who take their time leave connections to the
// writer and to the questions.
func TestExportsAreBounded(t *testing.T) {
	log := logtest.New(t)
	d := NewDoor(DoorConfig{Log: log, Node: "n1"})
	for range maxExports {
		d.exports <- struct{}{}
	}
	mux := http.NewServeMux()
	d.Routes(mux, gate(principals()))
	srv := httptest.NewServer(api.WithRequestID(mux))
	t.Cleanup(srv.Close)
	resp, body := call(t, srv, "root", "POST", "/v1/audit/exports", `{"kind":"uses","format":"csv"}`)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "exports are running") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if n := len(log.Records()); n != 0 {
		t.Errorf("%d events of a read that did not happen", n)
	}
}
