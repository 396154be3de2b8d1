package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/go-json-experiment/json"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/internal/api"
)

// gate authenticates by the name in X-Who.
type gate map[string]*events.Principal

func (g gate) Authenticate(r *http.Request, scope, _ string) (*api.Caller, error) {
	p := g[r.Header.Get("X-Who")]
	if p == nil {
		return new(api.Caller), api.Errorf(http.StatusUnauthorized, "key_missing", "who are you")
	}
	who := *p
	who.RequestID = api.RequestID(r)
	who.IP = api.ClientIP(r)
	who.UserAgent = r.UserAgent()
	if !who.Has(scope) {
		return api.NewCaller(who, nil, nil), api.ScopeMissing(scope)
	}
	return api.NewCaller(who, nil, nil), nil
}

// rechecked is a gate whose callers may lose their power while they are answered.
type rechecked struct {
	gate
	allowed func() error
}

func (g rechecked) Authenticate(r *http.Request, scope, endpoint string) (*api.Caller, error) {
	c, err := g.gate.Authenticate(r, scope, endpoint)
	return api.NewCaller(c.Principal, g.allowed, nil), err
}

func (g gate) FindSecret(text string) (start, end int, ok bool) { return 0, 0, false }

func (g gate) Knows(r *http.Request) bool { return g[r.Header.Get("X-Who")] != nil }

// testRecorder is a recorder that knows no secret.
func testRecorder(log events.ReadLog) *Recorder {
	return NewRecorder(log, nil, "/keytrail/test/n1", time.Now)
}

func serveEndpoint(t testing.TB, s *Store, log *logtest.MemLog) *httptest.Server {
	t.Helper()
	return serveEndpointWhile(t, s, log, nil)
}

// serveEndpointWhile serves callers who may read as long as allowed returns nil.
func serveEndpointWhile(t testing.TB, s *Store, log *logtest.MemLog, allowed func() error) *httptest.Server {
	t.Helper()
	who := gate(principals())
	who["reader"] = &events.Principal{Actor: events.Actor{Kind: events.ActorKey, ID: keyID(7).String()}, Scopes: []string{events.ScopeAuditRead}}
	who["someone else"] = &events.Principal{Actor: events.Actor{Kind: events.ActorKey, ID: keyID(9).String()}, Scopes: []string{events.ScopeAuditExport}}
	who["stranger"] = &events.Principal{Actor: events.Actor{Kind: events.ActorKey, ID: keyID(8).String()}, Scopes: []string{events.ScopeKeysRead}}
	mux := http.NewServeMux()
	NewHandler(HandlerConfig{Store: s, Log: log, Recorder: testRecorder(log.Reads())}).Routes(mux, rechecked{who, allowed})
	srv := httptest.NewUnstartedServer(api.Handler(mux))
	srv.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if err := c.(*net.TCPConn).SetWriteBuffer(smallBuffer); err != nil {
			t.Error(err)
		}
		return ctx
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

// smallBuffer is the size of a connection's buffers, in bytes, where a server must wait
// for its reader. By default some systems take megabytes.
const smallBuffer = 64 << 10

// smallReader is a client who takes no more than is read of the answer.
func smallReader(t testing.TB) *http.Client {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return c, c.(*net.TCPConn).SetReadBuffer(smallBuffer)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
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

func TestEndpoint(t *testing.T) {
	f := newFixture(t)
	srv := serveEndpoint(t, f.store, f.log)
	f.log.Reads().SetClock(time.Now) // readers act now, after the fixture
	before := len(f.log.Reads().Records())

	type answer struct {
		Data       []map[string]any `json:"data"`
		NextCursor *string          `json:"next_cursor"`
		Watermark  struct {
			EventsSeq int    `json:"events_seq"`
			ReadsSeq  int    `json:"reads_seq"`
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
	if len(a.Data) != 3 || a.NextCursor == nil || a.Data[0]["type"] != "key.created" || a.Watermark.EventsSeq != len(f.log.Records()) || a.Watermark.ReadsSeq < before || a.Watermark.UsesSeq != 11 || a.Watermark.StoredAt == "" {
		t.Errorf("events: %+v", a)
	}
	if a = get("root", "/v1/audit/events?type=key.created&tenant=acme&limit=3&cursor="+*a.NextCursor); len(a.Data) != 1 || a.NextCursor != nil {
		t.Errorf("second page: %+v", a)
	}
	a = get("root", "/v1/audit/uses?outcome=denied&ip=203.0.113.0/24&limit=100")
	for _, u := range a.Data {
		if u["allowed"] != false || u["reason"] == "ok" || !strings.HasPrefix(u["ip"].(string), "203.0.113.") || u["decided_seq"] == 0.0 {
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

	a = get("root", "/v1/audit/blocks?limit=2")
	for _, b := range a.Data {
		if b["count"] == 0.0 || b["recorded"] != b["count"] || b["block"] == nil || b["first"] == nil || b["last"] == nil {
			t.Errorf("block: %v", b)
		}
	}
	if len(a.Data) == 0 {
		t.Error("no blocks")
	}

	// Reading is on the record, first things first, one history per reader; pages
	// after the first are of the same walk.
	var kinds []string
	for _, r := range f.log.Reads().Records()[before:] {
		d, ok := r.Data.(*events.AuditQueried)
		if !ok || r.Aggregate != events.ReaderAggregate(r.Actor) || r.RequestID == "" || !r.IP.IsValid() {
			t.Fatalf("recorded %+v", r)
		}
		kinds = append(kinds, d.Kind)
	}
	if want := []string{"events", "uses", "usage", "blocks"}; !slices.Equal(kinds, want) {
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
		{"tenant", "GET", "/v1/audit/blocks", "", 403, nil},
		{"keyspace", "GET", "/v1/audit/blocks?keyspace=other", "", 403, nil},
		{"root", "GET", "/v1/audit/blocks?tenant=acme", "", 422, []string{"query"}},
		{"root", "GET", "/v1/audit/blocks?ip=10.0.0.1/8&limit=101&node=No+node&reason=bad", "", 422, []string{"ip", "limit", "node", "reason"}},
		{"keyspace", "GET", "/v1/audit/uses?keyspace=other", "", 403, nil},
		{"keyspace", "POST", "/v1/audit/exports", `{"kind":"uses","format":"csv","filter":{"keyspace":"other"}}`, 403, nil},
		{"operators", "GET", "/v1/audit/events?keyspace=keytrail", "", 403, nil},
		{"operators", "POST", "/v1/audit/exports", `{"kind":"events","format":"csv","filter":{"keyspace":"keytrail"}}`, 403, nil},
		{"root", "GET", "/v1/audit/events?limit=101&cursor=x&from=now&ip=1.2.3.4/8", "", 422, []string{"cursor", "from", "ip", "limit"}},
		{"root", "GET", "/v1/audit/uses?type=key.created&limit=0", "", 422, []string{"query"}},
		{"root", "GET", "/v1/audit/uses?tenant=", "", 422, []string{"tenant"}},
		{"root", "GET", "/v1/audit/uses?tenant=acme;key=x", "", 400, nil},
		{"root", "GET", "/v1/audit/usage?per=week&limit=ten", "", 422, []string{"limit", "per"}},
		{"root", "GET", "/v1/audit/usage?per=day&per=hour", "", 422, []string{"per"}},
		{"root", "GET", "/v1/audit/uses?tenant=%ff", "", 422, []string{"tenant"}},
		{"root", "GET", "/v1/audit/uses?from=%zz", "", 400, nil},
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
	if n := len(f.log.Reads().Records()); n != before+4 {
		t.Errorf("%d questions that were refused are on the record as asked", n-before-4)
	}
}

// TestEveryExportEndsOnTheRecord: whichever rows a copy has, of the lifecycle, of
// reading, of both or none, its end is on the record with what its reader got.
func TestEveryExportEndsOnTheRecord(t *testing.T) {
	f := newFixture(t)
	srv := serveEndpoint(t, f.store, f.log)
	call(t, srv, "root", "GET", "/v1/audit/uses", "")
	filters := []string{`{"kind":"events"}`, `{"kind":"uses"}`, `{"kind":"uses","filter":{"tenant":"nobody"}}`}
	for _, typ := range events.Types() {
		filters = append(filters, fmt.Sprintf(`{"kind":"events","filter":{"type":%q}}`, typ))
	}
	reading := 0
	for _, question := range filters {
		waitCopied(t, f.store, f.log)
		before := len(f.log.Reads().Records())
		resp, body := call(t, srv, "root", "POST", "/v1/audit/exports", strings.TrimSuffix(question, "}")+`,"format":"csv"}`)
		records := f.log.Reads().Records()[before:]
		if resp.StatusCode != 200 || len(records) != 2 {
			t.Errorf("%s: %d %s, %d events on the record", question, resp.StatusCode, body, len(records))
			continue
		}
		rows := len(readCSV(t, body)) - 1
		e, ok := records[1].Data.(*events.AuditExportEnded)
		if !ok || !e.Complete || e.Rows != uint64(rows) || e.Digest.String() != resp.Trailer.Get(trailerSum) || fmt.Sprint(e.First) != resp.Trailer.Get(trailerFirst) {
			t.Errorf("%s, %d rows: recorded %+v", question, rows, records[1].Data)
		} else if rows > 0 && e.First == 0 {
			reading++
		}
	}
	if reading < 2 {
		t.Errorf("%d exports had rows of reading alone", reading)
	}
}

func TestEndpointExport(t *testing.T) {
	f := newFixture(t)
	srv := serveEndpoint(t, f.store, f.log)
	before := len(f.log.Reads().Records())
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
	records := f.log.Reads().Records()[before:]
	if len(records) != 2 {
		t.Fatalf("%d events, want a beginning and an end", len(records))
	}
	d, ok := records[0].Data.(*events.AuditExported)
	if !ok || d.Kind != "uses" || d.Format != "csv" || d.Filter["outcome"] != "allowed" {
		t.Errorf("recorded %+v", records[0])
	}
	e, ok := records[1].Data.(*events.AuditExportEnded)
	if !ok || e.Export != records[0].ID || !e.Complete || e.Rows != uint64(len(rows)-1) || e.Digest.String() != resp.Trailer.Get(trailerSum) ||
		fmt.Sprint(e.First) != resp.Trailer.Get(trailerFirst) || fmt.Sprint(e.Last) != resp.Trailer.Get(trailerLast) || resp.Header.Get(headerExport) != e.Export.String() {
		t.Errorf("recorded %+v", records[1])
	}
	// The manifest says the same, to the reader whose export it is, once the copy
	// has it.
	waitCopied(t, f.store, f.log)
	get := func(who, id string) (int, map[string]any) {
		resp, body := call(t, srv, who, "GET", "/v1/audit/exports/"+id, "")
		var v struct{ Data map[string]any }
		if err := json.Unmarshal([]byte(body), &v, json.MatchCaseInsensitiveNames(true)); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, v.Data
	}
	status, m := get("keyspace + tenant", e.Export.String())
	if status != 200 || m["state"] != "complete" || m["digest"] != e.Digest.String() || m["rows"] != float64(e.Rows) || m["kind"] != "uses" || m["ended_at"] != records[1].Time.String() {
		t.Errorf("manifest %d %v", status, m)
	}
	for _, c := range []struct {
		who, id string
		status  int
	}{{"someone else", e.Export.String(), 404}, {"root", records[1].ID.String(), 404}, {"root", "x", 404}, {"reader", e.Export.String(), 403}} {
		if status, m := get(c.who, c.id); status != c.status {
			t.Errorf("%s asks for %s: %d %v, want %d", c.who, c.id, status, m, c.status)
		}
	}
}

// TestBrokenExportIsOnTheRecord: an export whose reader leaves, or whose database
// does, is on the record as broken off.
func TestBrokenExportIsOnTheRecord(t *testing.T) {
	f := newFixture(t)
	for range 40 { // more than the buffers of a connection
		f.publish(t, 1000)
	}
	waitCopied(t, f.store, f.log)
	srv := serveEndpoint(t, f.store, f.log)
	before := len(f.log.Reads().Records())
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "POST", srv.URL+"/v1/audit/exports", strings.NewReader(`{"kind":"uses","format":"jsonl"}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Who", "root")
	resp, err := smallReader(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	cancel()
	resp.Body.Close()
	var end *events.AuditExportEnded
	eventually(t, func() error {
		records := f.log.Reads().Records()[before:]
		if len(records) != 2 {
			return fmt.Errorf("%d events", len(records))
		}
		end = records[1].Data.(*events.AuditExportEnded)
		return nil
	})
	if end.Complete || !end.Digest.IsZero() || end.Export.String() != resp.Header.Get(headerExport) || end.Rows == 0 || end.Rows >= 40_000 {
		t.Errorf("%+v", end)
	}
	waitCopied(t, f.store, f.log)
	if _, body := call(t, srv, "root", "GET", "/v1/audit/exports/"+end.Export.String(), ""); !strings.Contains(body, `"state":"broken_off"`) {
		t.Error(body)
	}

	log := logtest.New(t)
	down := serveEndpoint(t, downStore(t), log)
	if resp, _ := call(t, down, "root", "POST", "/v1/audit/exports", `{"kind":"uses","format":"jsonl"}`); resp.StatusCode != 503 {
		t.Errorf("%d", resp.StatusCode)
	}
	if r := log.Reads().Records(); len(r) != 2 || r[1].Data.(*events.AuditExportEnded).Complete {
		t.Errorf("%+v", r)
	}
}

// TestGapsAndNotes: every answer about uses says what the ledger lacks in the time
// asked for, and an empty one whether its names were ever seen.
func TestGapsAndNotes(t *testing.T) {
	f := newFixture(t)
	hour := func(h int) events.Time { return start.Add(time.Duration(h) * time.Hour) }
	gap := func(node events.NodeID, count uint64, since, until events.Time) {
		publish(t, f.log, events.UseBatch{Node: node, Epoch: 9, Kind: events.BatchOpen})
		publish(t, f.log, events.UseBatch{Node: node, Epoch: 9, Kind: events.BatchGap, First: 1, Count: count, Since: since, Until: until})
	}
	gap("a", 35, hour(2), hour(3))
	gap("b", 0, hour(10), hour(11))
	waitCopied(t, f.store, f.log)
	srv := serveEndpoint(t, f.store, f.log)
	for _, c := range []struct{ query, want string }{
		{"", `{"count":2,"unknown":true,"uses_lost":35}`},
		{"from=" + hour(12).String(), `{"count":0,"unknown":false,"uses_lost":0}`},
		{"to=" + hour(2).String(), `{"count":0,"unknown":false,"uses_lost":0}`},
		{"from=" + hour(3).String() + "&to=" + hour(4).String(), `{"count":1,"unknown":false,"uses_lost":35}`},
		{"from=" + hour(10).String(), `{"count":1,"unknown":true,"uses_lost":0}`},
		{"tenant=acme", `{"count":2,"unknown":true,"uses_lost":35}`},
	} {
		for _, path := range []string{"/v1/audit/uses?", "/v1/audit/usage?"} {
			_, body := call(t, srv, "tenant", "GET", path+c.query, "")
			var v struct {
				Gaps map[string]any `json:"gaps"`
			}
			if err := json.Unmarshal([]byte(body), &v); err != nil {
				t.Fatal(err)
			}
			if got, err := json.Marshal(v.Gaps, json.Deterministic(true)); err != nil || string(got) != c.want {
				t.Errorf("%s%s: gaps %s, want %s", path, c.query, got, c.want)
			}
		}
	}
	if _, body := call(t, srv, "root", "GET", "/v1/audit/uses?node=a", ""); !strings.Contains(body, `"gaps":{"count":1,"uses_lost":35,"unknown":false}`) {
		t.Errorf("of one node: %s", body)
	}
	if _, body := call(t, srv, "root", "GET", "/v1/audit/events", ""); strings.Contains(body, "gaps") {
		t.Error("the trail has gaps")
	}
	resp, _ := call(t, srv, "root", "POST", "/v1/audit/exports", `{"kind":"uses","format":"csv","filter":{"tenant":"nobody"}}`)
	records := f.log.Reads().Records()
	end := records[len(records)-1].Data.(*events.AuditExportEnded)
	if got := resp.Header.Get(headerGaps); got != `{"count":2,"uses_lost":35,"unknown":true}` || end.Gaps == nil || *end.Gaps != (events.Gaps{Count: 2, UsesLost: 35, Unknown: true}) {
		t.Errorf("export: %s, on the record %+v", got, end)
	}
	if got := resp.Header.Values(headerNote); !slices.Equal(got, []string{"nothing of a tenant nobody was ever recorded"}) {
		t.Errorf("notes of an export: %q", got)
	}
	for query, want := range map[string]string{
		"events?tenant=acme&type=key.revoked": "", // nothing happened, and the names are right
		"events?tenant=nobody":                `["nothing of a tenant nobody was ever recorded"]`,
		"uses?keyspace=nothing&tenant=nobody": `["nothing of a keyspace nothing was ever recorded","nothing of a tenant nobody was ever recorded"]`,
		"usage?key=" + keyID(4000).String():   `["no key ` + keyID(4000).String() + ` was ever recorded"]`,
		"events?actor=expirer":                `["nothing by an actor expirer was ever recorded"]`,
	} {
		if _, body := call(t, srv, "root", "GET", "/v1/audit/"+query, ""); want == "" && strings.Contains(body, "notes") || want != "" && !strings.Contains(body, `"notes":`+want) {
			t.Errorf("%s: %s, want notes %s", query, body, want)
		}
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

func TestEndpointWhenClickHouseIsDown(t *testing.T) {
	log := logtest.New(t)
	srv := serveEndpoint(t, downStore(t), log)
	for _, c := range [][3]string{{"GET", "/v1/audit/events", ""}, {"GET", "/v1/audit/uses", ""}, {"GET", "/v1/audit/usage", ""}, {"GET", "/v1/audit/blocks", ""},
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
	srv := serveEndpoint(t, downStore(t), log)
	log.Reads().SetDown(true)
	resp, body := call(t, srv, "root", "GET", "/v1/audit/events", "")
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "nothing was read") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// TestRecorder appends from many goroutines and two recorders under each pair of
// faults: every read is on the record exactly once.
func TestRecorder(t *testing.T) {
	log := logtest.New(t)
	log = log.Reads()
	a, b := testRecorder(log), testRecorder(log)
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
	d := NewHandler(HandlerConfig{Log: log})
	var releases []func()
	for i := range maxExports {
		release, err := d.exports.take(fmt.Sprint("reader ", i/maxExportsOfOne))
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, release)
	}
	if _, err := d.exports.take("reader 0"); statusOf(err) != http.StatusTooManyRequests {
		t.Errorf("one reader takes a third slot: %v", err)
	}
	mux := http.NewServeMux()
	d.Routes(mux, gate(principals()))
	srv := httptest.NewServer(api.Handler(mux))
	t.Cleanup(srv.Close)
	resp, body := call(t, srv, "root", "POST", "/v1/audit/exports", `{"kind":"uses","format":"csv"}`)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "exports are running") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	if n := len(log.Reads().Records()); n != 0 {
		t.Errorf("%d events of a read that did not happen", n)
	}
	for _, release := range releases {
		release()
	}
	if len(d.exports.of) != 0 || d.exports.all != 0 {
		t.Errorf("slots are left: %+v", &d.exports)
	}
}

// statusOf is the status of a problem, 0 for none.
func statusOf(err error) int {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p.Status
	}
	return 0
}

// TestSlowReaderIsCutOff: who takes fewer bytes than exportRate on average, beside
// the grace, loses the connection; who takes that much may go on for ever, and a
// slow database counts against nobody.
func TestSlowReaderIsCutOff(t *testing.T) {
	clock := time.Unix(0, 0)
	var speed float64 // bytes a second
	var until time.Time
	w := &patientWriter{now: func() time.Time { return clock }, deadline: func(d time.Time) error { until = d; return nil }}
	w.w = writerFunc(func(b []byte) (int, error) {
		clock = clock.Add(time.Duration(float64(len(b)) / speed * float64(time.Second)))
		if clock.After(until) {
			return 0, os.ErrDeadlineExceeded
		}
		return len(b), nil
	})
	chunk := make([]byte, 64<<10)
	write := func(n int) (err error) {
		for range n {
			if _, err = w.Write(chunk); err != nil {
				return err
			}
		}
		return nil
	}
	speed = exportRate
	if err := write(10_000); err != nil {
		t.Errorf("a reader at the rate is cut off: %v", err)
	}
	clock = clock.Add(time.Hour) // the database
	if err := write(1); err != nil {
		t.Errorf("after a pause of the database: %v", err)
	}
	speed = exportRate / 2
	began := w.waited
	if err := write(100); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a reader at half the rate: %v", err)
	}
	if over := w.waited - began; over > 2*exportGrace+10*time.Second {
		t.Errorf("a reader at half the rate is borne for %v", over)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
