package events_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
)

// Whatever is valid encodes, reads back the same, and prints the same (E4). Each
// type once for certain is TestGolden.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		e := logtest.GenEvent().Draw(r, "event")
		m, err := events.Encode(&e)
		if err != nil {
			r.Fatalf("encode: %v", err)
		}
		got, err := events.DecodeStrict(&m)
		if err != nil {
			r.Fatalf("decode of %s: %v", m.Data, err)
		}
		if err := e.CanAppend(); err != nil {
			r.Fatalf("may not be appended: %v", err)
		}
		if !reflect.DeepEqual(got, e) {
			r.Fatalf("came back as\n%+v\nwant\n%+v", got, e)
		}
	})
}

var update = flag.Bool("update", false, "write the golden files that do not exist yet")

// golden is a message as its file shows it.
type golden struct {
	Subject  string         `json:"subject"`
	Document jsontext.Value `json:"document"` // byte for byte
	Hash     events.Hash    `json:"hash"`
}

// The golden files are what earlier releases wrote, so they are never edited:
// each must still read, print back byte for byte, and hash the same. -update
// adds missing ones only.
func TestGolden(t *testing.T) {
	for _, name := range events.Shapes() { // as key.created.v1
		word, _, _ := strings.Cut(name, ".v")
		typ := events.Type(word)
		m := message(typ)
		sample := must(events.DecodeStrict(&m))
		path := filepath.Join("testdata", "golden", name+".json")
		if _, err := os.Stat(path); *update && errors.Is(err, os.ErrNotExist) {
			text := must(json.Marshal(golden{m.Subject, m.Data, m.Hash()}, json.Deterministic(true)))
			if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatalf("%v; go test -run TestGolden -update writes it", err)
		}
		var g golden
		if err := json.Unmarshal(text, &g, json.RejectUnknownMembers(true)); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		m = events.Message{Subject: g.Subject, Data: g.Document}
		e, err := events.DecodeStrict(&m)
		if err != nil {
			t.Errorf("%s does not read any more: %v", path, err)
			continue
		}
		if m.Hash() != g.Hash {
			t.Errorf("%s hashes to %s now, then %s", path, m.Hash(), g.Hash)
		}
		if !reflect.DeepEqual(e, sample) {
			t.Errorf("%s reads differently now:\n%+v\nthen\n%+v", path, e, sample)
		}
	}
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil || len(files) != len(events.Shapes()) {
		t.Errorf("%d golden files, %v, want one for each of %d versions of types", len(files), err, len(events.Shapes()))
	}
}

// message returns the fullest sample of typ.
func message(typ events.Type) (full events.Message) {
	for _, w := range logtest.Samples() {
		if w.Event.Type() == typ {
			if m := must(events.Encode(&w.Event)); len(m.Data) > len(full.Data) {
				full = m
			}
		}
	}
	if full.Data == nil {
		panic("no sample of " + typ)
	}
	return full
}

func TestDecodeRefuses(t *testing.T) {
	data := func(old, new string) func(*events.Message) {
		return func(m *events.Message) { m.Data = replaced(m.Data, old, new) }
	}
	// set gives an attribute another value, as JSON; "" takes it out.
	set := func(name, value string) func(*events.Message) {
		return func(m *events.Message) {
			at := regexp.MustCompile(`"` + name + `":("[^"]*"|[0-9]+),`).FindIndex(m.Data)
			if at == nil {
				panic(fmt.Sprintf("%s: no %s in it", m.Data, name))
			}
			if value != "" {
				value = `"` + name + `":` + value + `,`
			}
			m.Data = slices.Concat(m.Data[:at[0]], []byte(value), m.Data[at[1]:])
		}
	}
	for name, spoil := range map[string]func(*events.Message){
		"no document":              func(m *events.Message) { m.Data = nil },
		"document of another kind": func(m *events.Message) { m.Data = []byte(`[]`) },
		"null document":            func(m *events.Message) { m.Data = []byte(`null`) },
		"truncated document":       func(m *events.Message) { m.Data = m.Data[:len(m.Data)-1] },
		"trailing bytes":           func(m *events.Message) { m.Data = append(m.Data, '1') },
		"trailing document":        func(m *events.Message) { m.Data = append(m.Data, m.Data...) },
		"null body": func(m *events.Message) {
			m.Data = append(m.Data[:bytes.Index(m.Data, []byte(`{"actor"`))], "null}"...)
		},
		"unknown member":            data(`"actor":`, `"more":1,"actor":`),
		"unknown member in data":    data(`"code":`, `"more":1,"code":`),
		"member of another case":    data(`"code":`, `"Code":`),
		"duplicate attribute":       data(`"rev":2`, `"rev":2,"rev":2`),
		"duplicate member":          data(`"code":`, `"code":"superseded","code":`),
		"duplicate member in actor": data(`"kind":`, `"kind":"key","kind":`),
		"bad UTF-8":                 data(`Schl`, "\xff"),
		"no data":                   data(`"data":{"code"`, `"reason":{"code"`),
		"code off the list":         data(`key_compromise`, `hold!`),
		"actor of no kind":          data(`"kind":"key"`, `"kind":"user"`),
		"ip that is none":           data(`2001:db8::7`, `2001:db8::x`),
		"ip with a zone":            data(`2001:db8::7`, `fe80::1%eth0`),
		"no subject":                func(m *events.Message) { m.Subject = "" },
		"subject of another key":    func(m *events.Message) { m.Subject = strings.Replace(m.Subject, "globex", "acme", 1) },
		"subject of another kind":   func(m *events.Message) { m.Subject = "kt.life.shop.acme.role.dev" },
		"attribute of another":      set("subject", `"shop/acme/role/dev"`),
		"no attribute subject":      set("subject", ""),
		"no id":                     set("id", ""),
		"empty id":                  set("id", `""`),
		"bad id":                    set("id", `"1"`),
		"id that is a number":       set("id", `1`),
		"two ids":                   set("id", `"`+ulidText+`","id":"`+ulidText+`"`),
		"zero id":                   set("id", `"`+strings.Repeat("0", 26)+`"`),
		"no time":                   set("time", ""),
		"bad time":                  set("time", `"2026-01-06T10:00:00Z"`),
		"no rev":                    set("rev", ""),
		"rev 0":                     set("rev", `0`),
		"rev that is text":          set("rev", `"2"`),
		"rev with a sign":           set("rev", `-2`),
		"rev with a zero":           set("rev", `02`),
		"rev with a fraction":       set("rev", `2.5`),
		"rev above an Integer":      set("rev", `2147483648`),
		"rev too large":             set("rev", `18446744073709551616`),
		"first with a prev":         set("rev", `1`),
		"no prev":                   set("prev", ""),
		"zero prev":                 set("prev", `"`+strings.Repeat("0", 64)+`"`),
		"upper-case prev":           set("prev", `"`+strings.ToUpper(hex64)+`"`),
		"bad command":               set("cmd", `"x"`),
		"no source":                 set("source", ""),
		"source with a space":       set("source", `"/a b"`),
		"CloudEvents 0.3":           set("specversion", `"0.3"`),
		"no specversion":            set("specversion", ""),
		"an extension":              set("rev", `2,"partitionkey":"1"`),
		"a release of the first":    set("rev", `2,"minrelease":"1.0"`),
		"a release that is none":    set("rev", `2,"minrelease":"next"`),
		"an attribute in capitals":  set("id", `"`+ulidText+`","ID":"`+ulidText+`"`),
		"a content type":            set("rev", `2,"datacontenttype":"application/json"`),
	} {
		m := message(events.TypeKeyRevoked)
		spoil(&m)
		newer := []string{"unknown member", "unknown member in data", "member of another case", "an extension", "a content type"}
		if e, err := events.Decode(&m); err == nil {
			t.Errorf("%s is accepted, as %+v", name, e)
		} else if errors.As(err, new(*events.NewerError)) != slices.Contains(newer, name) {
			t.Errorf("%s: taken for what a newer release writes, or not: %v", name, err)
		}
	}
	for typ, later := range map[string]bool{"keytrail.key.revoked.v2": true, "keytrail.key.melted.v1": true, "keytrail.lease.granted.v12": true,
		"": false, "keytrail.key.revoked": false, "key.revoked.v1": false, "keytrail..v1": false, "KEYTRAIL.key.revoked.v1": false,
		"keytrail.key.revoked.v1.v1": false, "keytrail.key.revoked.v0": false} {
		m := message(events.TypeKeyRevoked)
		m.Data = replaced(m.Data, `"keytrail.key.revoked.v1"`, strconv.Quote(typ))
		_, err := events.Decode(&m)
		if err == nil || errors.As(err, new(*events.NewerError)) != later || later && !strings.Contains(err.Error(), strconv.Quote(typ)) {
			t.Errorf("type %q: %v", typ, err)
		}
	}
}

// replaced replaces old, which must be there, once.
func replaced(b []byte, old, new string) []byte {
	if !bytes.Contains(b, []byte(old)) {
		panic(fmt.Sprintf("%s: no %s in it", b, old))
	}
	return bytes.Replace(b, []byte(old), []byte(new), 1)
}

// What Decode tolerates in form, DecodeStrict refuses.
func TestDecodeStrictWantsTheOnlyForm(t *testing.T) {
	for name, change := range map[string][2]string{
		"white space":         {`"code":`, `"code": `},
		"another order":       {`{"kind":"key","id":"key_01KE9Q5V00000000000000000A"}`, `{"id":"key_01KE9Q5V00000000000000000A","kind":"key"}`},
		"escapes":             {`Schl`, `\u0053chl`},
		"an explicit empty":   {`"request_id":"req-4711"`, `"request_id":""`},
		"another ip form":     {`2001:db8::7`, `2001:0db8::7`},
		"an explicit null":    {`"request_id":"req-4711"`, `"request_id":null`},
		"an empty ip":         {`2001:db8::7`, ``},
		"another case of ip":  {`2001:db8::7`, `2001:DB8::7`},
		"order of attributes": {`{"specversion":"1.0","type":"keytrail.key.revoked.v1",`, `{"type":"keytrail.key.revoked.v1","specversion":"1.0",`},
		"an empty command":    {`"cmd":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"`, `"cmd":""`},
		"a null attribute":    {`"data":{"actor"`, `"minrelease":null,"data":{"actor"`},
		"a new line":          {`}}}`, "}}}\n"},
	} {
		m := message(events.TypeKeyRevoked)
		m.Data = replaced(m.Data, change[0], change[1])
		if _, err := events.Decode(&m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := events.DecodeStrict(&m); err == nil {
			t.Errorf("%s is taken for the canonical form", name)
		}
	}
}

// FuzzDecode: whatever Decode accepts can be encoded; what it encodes to is
// canonical, means the same, and is the input itself if DecodeStrict took that.
func FuzzDecode(f *testing.F) {
	for _, w := range logtest.Samples() {
		m := must(events.Encode(&w.Event))
		f.Add(m.Subject, m.Data)
	}
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		m := events.Message{Subject: subject, Data: data}
		e, err := events.Decode(&m)
		if err != nil {
			if _, err := events.DecodeStrict(&m); err == nil {
				t.Fatal("DecodeStrict accepts what Decode refuses")
			}
			return
		}
		again, err := events.Encode(&e)
		if err != nil {
			t.Fatalf("decoded, and does not encode: %v", err)
		}
		e2, err := events.DecodeStrict(&again)
		if err != nil {
			t.Fatalf("what we encoded is not canonical: %v\n%s", err, again.Data)
		}
		if third := must(events.Encode(&e2)); !reflect.DeepEqual(third, again) {
			t.Fatalf("no fixed point:\n%s\n%s", again.Data, third.Data)
		}
		_, strictErr := events.DecodeStrict(&m)
		if same := bytes.Equal(again.Data, data) && again.Subject == subject; (strictErr == nil) != same {
			t.Fatalf("same bytes %v, DecodeStrict says %v", same, strictErr)
		}
	})
}

// The hash is that of the document's bytes, which any tool can compute.
func TestHash(t *testing.T) {
	m := message(events.TypeKeyRevoked)
	if m.Hash() != sha256.Sum256(m.Data) {
		t.Error("the hash is not the SHA-256 of the document")
	}
	e := must(events.Decode(&m))
	if r := m.Record(e, 7, 8); r.Hash != m.Hash() || r.Seq != 7 || r.Stored != 8 || !bytes.Equal(r.Document, m.Data) || !reflect.DeepEqual(r.Event, e) {
		t.Errorf("%+v", r)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*events.Event){
		"no id":               func(e *events.Event) { e.ID = events.EventID{} },
		"no aggregate":        func(e *events.Event) { e.Aggregate = events.Aggregate{} },
		"no time":             func(e *events.Event) { e.Time = 0 },
		"time before 1970":    func(e *events.Event) { e.Time = -1 },
		"no rev":              func(e *events.Event) { e.Rev = 0 },
		"no prev":             func(e *events.Event) { e.Prev = events.Hash{} },
		"prev of the first":   func(e *events.Event) { e.Rev = 1 },
		"no source":           func(e *events.Event) { e.Source = "" },
		"long source":         func(e *events.Event) { e.Source = strings.Repeat("s", 129) },
		"source with a quote": func(e *events.Event) { e.Source = `/"` },
		"short command":       func(e *events.Event) { e.Command = "ab" },
		"no actor":            func(e *events.Event) { e.Actor = events.Actor{} },
		"bad UTF-8":           func(e *events.Event) { e.Reason = "\xff" },
		"no data":             func(e *events.Event) { e.Data = nil },
		"a tenant's data":     func(e *events.Event) { e.Data = &events.TenantLimitUpdated{} },
		"data of another":     func(e *events.Event) { e.Data = &events.RoleDeleted{} },
		"rev above the bound": func(e *events.Event) { e.Rev = events.MaxRev + 1 },
		"invalid data":        func(e *events.Event) { e.Data = &events.KeyRevoked{} },
	} {
		e := must(events.DecodeStrict(new(message(events.TypeKeyRevoked))))
		spoil(&e)
		if m, err := events.Encode(&e); err == nil {
			t.Errorf("%s encodes: %s", name, m.Data)
		}
	}
}

// What a rule forbids to append still reads and prints: an older release may have
// had another rule.
func TestRulesDoNotBindReaders(t *testing.T) {
	revoked := func(change func(*events.Event)) events.Event {
		e := must(events.DecodeStrict(new(message(events.TypeKeyRevoked))))
		change(&e)
		return e
	}
	of := func(a events.Aggregate, d events.Data) events.Event { return logtest.Event(a, d) }
	key := logtest.NewKeyRef("shop", "acme").Aggregate()
	for name, e := range map[string]events.Event{
		"long user agent":     revoked(func(e *events.Event) { e.UserAgent = strings.Repeat("u", 257) }),
		"long request id":     revoked(func(e *events.Event) { e.RequestID = strings.Repeat("r", 65) }),
		"long reason":         revoked(func(e *events.Event) { e.Reason = strings.Repeat("r", 501) }),
		"reason of two lines": revoked(func(e *events.Event) { e.Reason = "a\nb" }),
		"a definition":        of(events.KeyspaceAggregate("shop"), &events.KeyspaceDefined{Definition: keyspace.Definition{Ledger: "never"}}),
		"a label":             of(key, &events.KeyRenamed{}),
		"a limit":             of(key, &events.KeyLimitUpdated{After: &keyspace.Limit{PerMinute: keyspace.MaxPerMinute + 1, Burst: 1}}),
		"an overlap":          of(key, &events.KeyRotated{Successor: events.KeyID{1}, Before: 5, After: 6}),
		"a hint": of(key, &events.KeyCreated{Digest: events.Digest{1}, KeyType: "secret", Name: "n",
			Hint: strings.Repeat("h", 65)}),
	} {
		if err := e.CanAppend(); err == nil {
			t.Errorf("%s may be appended", name)
		}
		m, err := events.Encode(&e)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := events.DecodeStrict(&m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The bounds of every type, at and past them.
func TestDataBounds(t *testing.T) {
	scopes := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("s%04d", i))
		}
		return out
	}
	metadata := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint("k", i)] = "v"
		}
		return m
	}
	created := func(change func(*events.KeyCreated)) events.Data {
		c := logtest.Created("s")
		change(c)
		return c
	}
	type ok bool
	for name, c := range map[string]struct {
		data events.Data
		ok   ok
	}{
		"200 scopes":         {created(func(c *events.KeyCreated) { c.Scopes = scopes(200) }), true},
		"201 scopes":         {created(func(c *events.KeyCreated) { c.Scopes = scopes(201) }), false},
		"unsorted scopes":    {created(func(c *events.KeyCreated) { c.Scopes = []string{"b", "a"} }), false},
		"a scope twice":      {created(func(c *events.KeyCreated) { c.Scopes = []string{"a", "a"} }), false},
		"a bad scope":        {created(func(c *events.KeyCreated) { c.Scopes = []string{"a b"} }), false},
		"unsorted roles":     {created(func(c *events.KeyCreated) { c.Roles = []events.RoleID{"b", "a"} }), false},
		"a bad role":         {created(func(c *events.KeyCreated) { c.Roles = []events.RoleID{"-"} }), false},
		"no digest":          {created(func(c *events.KeyCreated) { c.Digest = events.Digest{} }), false},
		"no name":            {created(func(c *events.KeyCreated) { c.Name = "" }), false},
		"a name of 100":      {created(func(c *events.KeyCreated) { c.Name = strings.Repeat("é", 100) }), true},
		"a name of 101":      {created(func(c *events.KeyCreated) { c.Name = strings.Repeat("é", 101) }), false},
		"no key type":        {created(func(c *events.KeyCreated) { c.KeyType = "" }), false},
		"a bad environment":  {created(func(c *events.KeyCreated) { c.Environment = "Live" }), false},
		"a hint of 65":       {created(func(c *events.KeyCreated) { c.Hint = strings.Repeat("h", 65) }), false},
		"32 metadata":        {created(func(c *events.KeyCreated) { c.Metadata = metadata(32) }), true},
		"33 metadata":        {created(func(c *events.KeyCreated) { c.Metadata = metadata(33) }), false},
		"a metadata of none": {created(func(c *events.KeyCreated) { c.Metadata = map[string]string{"": "v"} }), false},
		"a long metadata":    {created(func(c *events.KeyCreated) { c.Metadata = map[string]string{"k": strings.Repeat("v", 501)} }), false},
		"expiry before 1970": {created(func(c *events.KeyCreated) { c.ExpiresAt = -1 }), false},
		"a limit of nothing": {created(func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{} }), false},
		"a limit below 0":    {created(func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{PerMinute: -1, Burst: 1} }), false},
		"a burst of 0":       {created(func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{PerMinute: 1} }), false},
		"plan and numbers":   {created(func(c *events.KeyCreated) { c.Limit = &keyspace.Limit{Plan: "a", Burst: 1} }), false},
		"a limit at the top": {created(func(c *events.KeyCreated) {
			c.Limit = &keyspace.Limit{PerMinute: keyspace.MaxPerMinute, Burst: keyspace.MaxPerMinute}
		}), true},
		"a long import":                {&events.KeyImported{KeyCreated: *logtest.Created("s"), ImportedFrom: strings.Repeat("i", 201)}, false},
		"import of no key":             {&events.KeyImported{}, false},
		"rotated to none":              {&events.KeyRotated{After: 1}, false},
		"overlap past life":            {&events.KeyRotated{Successor: events.KeyID{1}, Before: 5, After: 6}, false},
		"overlap to its end":           {&events.KeyRotated{Successor: events.KeyID{1}, Before: 5, After: 5}, true},
		"overlap for ever":             {&events.KeyRotated{Successor: events.KeyID{1}}, false},
		"expiry lifted":                {&events.KeyExpiryChanged{Before: 5}, true},
		"expired at none":              {&events.KeyExpired{}, false},
		"no resources":                 {&events.KeyResourcesAssigned{}, true},
		"a resource twice":             {&events.KeyResourcesAssigned{After: []events.Resource{{Kind: "p", ID: "1"}, {Kind: "p", ID: "1"}}}, false},
		"a role of no scope":           {&events.RoleDefined{}, true},
		"a role of level X":            {&events.RoleDefined{Level: "X"}, false},
		"a tenant's default":           {&events.TenantLimitUpdated{Before: &keyspace.Limit{Plan: "a"}}, true},
		"a tenant's plan":              {&events.TenantLimitUpdated{After: &keyspace.Limit{Plan: "a"}}, true},
		"a tenant of 0":                {&events.TenantLimitUpdated{After: &keyspace.Limit{PerMinute: 1}}, false},
		"a tenant of both":             {&events.TenantLimitUpdated{After: &keyspace.Limit{Plan: "a", PerMinute: 1, Burst: 1}}, false},
		"a query of none":              {&events.AuditQueried{}, false},
		"a query, bad name":            {&events.AuditQueried{Kind: "uses", Filter: map[string]string{"Key": "v"}}, false},
		"an end of no export":          {&events.AuditExportEnded{Complete: true, Digest: events.Hash{1}}, false},
		"a whole one without a digest": {&events.AuditExportEnded{Export: events.EventID{1}, Complete: true}, false},
		"a broken one with a digest":   {&events.AuditExportEnded{Export: events.EventID{1}, Digest: events.Hash{1}}, false},
		"one sequence":                 {&events.AuditExportEnded{Export: events.EventID{1}, Rows: 1, First: 1}, false},
		"sequences the other way":      {&events.AuditExportEnded{Export: events.EventID{1}, Rows: 2, First: 2, Last: 1}, false},
		"sequences without rows":       {&events.AuditExportEnded{Export: events.EventID{1}, First: 1, Last: 1}, false},
		"rows of reading":              {&events.AuditExportEnded{Export: events.EventID{1}, Rows: 1}, true},
		"no gaps":                      {&events.AuditExportEnded{Export: events.EventID{1}, Gaps: &events.Gaps{}}, false},
		"a broken export":              {&events.AuditExportEnded{Export: events.EventID{1}, Rows: 2, First: 1, Last: 1}, true},
		"a long filter":                {&events.AuditExported{Kind: "uses", Filter: map[string]string{"key": strings.Repeat("v", 257)}}, false},
	} {
		e := logtest.Event(aggregateOf(c.data), c.data)
		if err := e.CanAppend(); (err == nil) != bool(c.ok) {
			t.Errorf("%s: %v, want ok %v", name, err, c.ok)
		}
	}
}

// aggregateOf returns a history that data may belong to.
func aggregateOf(data events.Data) events.Aggregate {
	word, _, _ := strings.Cut(string(data.EventType()), ".")
	switch word {
	case "keyspace":
		return events.KeyspaceAggregate("shop")
	case "role":
		return events.RoleAggregate("shop", "acme", "dev")
	case "tenant":
		return events.TenantAggregate("shop", "acme")
	case "audit":
		return events.ReaderAggregate(events.Actor{Kind: events.ActorSystem, ID: "r"})
	}
	return logtest.NewKeyRef("shop", "acme").Aggregate()
}
