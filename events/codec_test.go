package events_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
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
		// What the transport adds does not matter.
		m.Header["Nats-Msg-Id"] = []string{e.ID.String()}
		got, err := events.DecodeStrict(&m)
		if err != nil {
			r.Fatalf("decode of %s: %v", m.Data, err)
		}
		if !reflect.DeepEqual(got, e) {
			r.Fatalf("came back as\n%+v\nwant\n%+v", got, e)
		}
	})
}

var update = flag.Bool("update", false, "write the golden files that do not exist yet")

// golden is a message as its file shows it.
type golden struct {
	Subject string              `json:"subject"`
	Header  map[string][]string `json:"header"`
	Body    jsontext.Value      `json:"body"` // byte for byte
	Hash    events.Hash         `json:"hash"`
}

// The golden files are what earlier releases wrote, so they are never edited:
// each must still read, print back byte for byte, and hash the same. -update
// adds missing ones only.
func TestGolden(t *testing.T) {
	for _, typ := range logtest.Types() {
		m := message(typ)
		sample := must(events.DecodeStrict(&m))
		path := filepath.Join("testdata", "golden", string(typ)+".v1.json")
		if _, err := os.Stat(path); *update && errors.Is(err, os.ErrNotExist) {
			text := must(json.Marshal(golden{m.Subject, m.Header, m.Data, m.Hash()}, json.Deterministic(true)))
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
		m = events.Message{Subject: g.Subject, Header: g.Header, Data: g.Body}
		e, err := events.DecodeStrict(&m)
		if err != nil {
			t.Errorf("%s does not read any more: %v", path, err)
			continue
		}
		if again := must(events.Encode(&e)); !reflect.DeepEqual(again.Header, g.Header) || !bytes.Equal(again.Data, g.Body) || again.Subject != g.Subject {
			t.Errorf("%s prints differently now:\n%s\n%s", path, again.Data, g.Body)
		}
		if m.Hash() != g.Hash {
			t.Errorf("%s hashes to %s now, then %s", path, m.Hash(), g.Hash)
		}
		if !reflect.DeepEqual(e, sample) {
			t.Errorf("%s reads differently now:\n%+v\nthen\n%+v", path, e, sample)
		}
	}
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil || len(files) != len(events.Catalogue) {
		t.Errorf("%d golden files, %v, want one for each of %d types", len(files), err, len(events.Catalogue))
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
	set := func(name string, v ...string) func(*events.Message) {
		return func(m *events.Message) { m.Header[name] = v }
	}
	data := func(old, new string) func(*events.Message) {
		return func(m *events.Message) {
			if !bytes.Contains(m.Data, []byte(old)) {
				panic(fmt.Sprintf("%s: no %s in it", m.Data, old))
			}
			m.Data = bytes.Replace(m.Data, []byte(old), []byte(new), 1)
		}
	}
	for name, spoil := range map[string]func(*events.Message){
		"no body":                   func(m *events.Message) { m.Data = nil },
		"body of another kind":      func(m *events.Message) { m.Data = []byte(`[]`) },
		"null body":                 func(m *events.Message) { m.Data = []byte(`null`) },
		"truncated body":            func(m *events.Message) { m.Data = m.Data[:len(m.Data)-1] },
		"trailing bytes":            func(m *events.Message) { m.Data = append(m.Data, '1') },
		"unknown member":            data(`"actor":`, `"more":1,"actor":`),
		"unknown member in data":    data(`"code":`, `"more":1,"code":`),
		"member of another case":    data(`"code":`, `"Code":`),
		"duplicate member":          data(`"code":`, `"code":"superseded","code":`),
		"duplicate member in actor": data(`"kind":`, `"kind":"key","kind":`),
		"bad UTF-8":                 data(`Schl`, "\xff"),
		"no data":                   data(`"data":`, `"reason":`),
		"code off the list":         data(`key_compromise`, `hold`),
		"actor of no kind":          data(`"kind":"key"`, `"kind":"user"`),
		"ip that is none":           data(`2001:db8::7`, `2001:db8::x`),
		"ip with a zone":            data(`2001:db8::7`, `fe80::1%eth0`),
		"no subject":                func(m *events.Message) { m.Subject = "" },
		"subject of another key":    func(m *events.Message) { m.Subject = strings.Replace(m.Subject, "globex", "acme", 1) },
		"subject of another kind":   func(m *events.Message) { m.Subject = "kt.life.shop.acme.role.dev" },
		"ce-subject of another":     set("ce-subject", "shop/acme/role/dev"),
		"no id":                     set("ce-id"),
		"empty id":                  set("ce-id", ""),
		"bad id":                    set("ce-id", "1"),
		"two ids":                   set("ce-id", ulidText, ulidText),
		"zero id":                   set("ce-id", strings.Repeat("0", 26)),
		"no time":                   set("ce-time"),
		"bad time":                  set("ce-time", "2026-01-06T10:00:00Z"),
		"no rev":                    set("ce-rev"),
		"rev 0":                     set("ce-rev", "0"),
		"rev with a sign":           set("ce-rev", "+2"),
		"rev with a zero":           set("ce-rev", "02"),
		"rev too large":             set("ce-rev", "18446744073709551616"),
		"first with a prev":         set("ce-rev", "1"),
		"no prev":                   set("ce-prev"),
		"zero prev":                 set("ce-prev", strings.Repeat("0", 64)),
		"upper-case prev":           set("ce-prev", strings.ToUpper(hex64)),
		"bad command":               set("ce-cmd", "x"),
		"empty command":             set("ce-cmd", ""),
		"no source":                 set("ce-source"),
		"source with a space":       set("ce-source", "/a b"),
		"source with a percent":     set("ce-source", "/a%20b"),
		"CloudEvents 0.3":           set("ce-specversion", "0.3"),
		"another content type":      set("ce-datacontenttype", "application/json; charset=utf-8"),
		"an extension":              set("ce-partitionkey", "1"),
		"an attribute in capitals":  set("ce-ID", ulidText),
	} {
		m := message(events.TypeKeyRevoked)
		spoil(&m)
		if e, err := events.Decode(&m); err == nil {
			t.Errorf("%s is accepted, as %+v", name, e)
		} else if unknown := new(events.UnknownTypeError); errors.As(err, &unknown) {
			t.Errorf("%s is taken for an unknown type", name)
		}
	}
	for _, typ := range []string{"", "keytrail.key.revoked.v2", "keytrail.key.revoked", "key.revoked.v1", "keytrail.key.melted.v1", "keytrail..v1", "KEYTRAIL.key.revoked.v1", "keytrail.key.revoked.v1.v1"} {
		m := message(events.TypeKeyRevoked)
		m.Header["ce-type"] = []string{typ}
		_, err := events.Decode(&m)
		unknown := new(events.UnknownTypeError)
		if typ != "" && (!errors.As(err, &unknown) || unknown.Type != typ || !strings.Contains(err.Error(), "upgrade")) || err == nil {
			t.Errorf("type %q: %v", typ, err)
		}
	}
}

// What Decode tolerates in form, DecodeStrict refuses.
func TestDecodeStrictWantsTheOnlyForm(t *testing.T) {
	for name, change := range map[string][2]string{
		"white space":        {`"code":`, `"code": `},
		"another order":      {`{"kind":"key","id":"key_01KE9Q5V00000000000000000A"}`, `{"id":"key_01KE9Q5V00000000000000000A","kind":"key"}`},
		"escapes":            {`Schl`, `\u0053chl`},
		"an explicit empty":  {`"request_id":"req-4711"`, `"request_id":""`},
		"another ip form":    {`2001:db8::7`, `2001:0db8::7`},
		"an explicit null":   {`"request_id":"req-4711"`, `"request_id":null`},
		"an empty ip":        {`2001:db8::7`, ``},
		"another case of ip": {`2001:db8::7`, `2001:DB8::7`},
	} {
		m := message(events.TypeKeyRevoked)
		if !bytes.Contains(m.Data, []byte(change[0])) {
			t.Fatalf("%s: %s is not in %s", name, change[0], m.Data)
		}
		m.Data = bytes.Replace(m.Data, []byte(change[0]), []byte(change[1]), 1)
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
		f.Add(m.Subject, string(w.Event.Type()), m.Header["ce-id"][0], m.Header["ce-time"][0], m.Header["ce-rev"][0], strings.Join(m.Header["ce-prev"], ""), m.Data)
	}
	f.Fuzz(func(t *testing.T, subject, typ, id, at, rev, prev string, data []byte) {
		m := events.Message{Subject: subject, Data: data, Header: map[string][]string{
			"ce-specversion": {"1.0"}, "ce-datacontenttype": {"application/json"}, "ce-source": {"/keytrail/fuzz"}, "ce-type": {"keytrail." + typ + ".v1"},
			"ce-id": {id}, "ce-time": {at}, "ce-rev": {rev}, "ce-subject": {strings.ReplaceAll(strings.TrimPrefix(subject, events.LifePrefix), ".", "/")},
		}}
		if prev != "" {
			m.Header["ce-prev"] = []string{prev}
		}
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
		same := bytes.Equal(again.Data, data) && again.Hash() == m.Hash()
		if (strictErr == nil) != same {
			t.Fatalf("same bytes %v, DecodeStrict says %v", same, strictErr)
		}
	})
}

// The hash covers everything that is ours and nothing that is the transport's.
func TestHash(t *testing.T) {
	m := message(events.TypeKeyRevoked)
	h := m.Hash()
	m.Header["Nats-Msg-Id"], m.Header["Nats-Stream-Source"] = []string{"x"}, []string{"y"}
	if m.Hash() != h {
		t.Error("a transport header changes the hash")
	}
	seen := map[events.Hash]string{h: "the original"}
	change := func(what string, f func(*events.Message)) {
		t.Helper()
		m := message(events.TypeKeyRevoked)
		f(&m)
		if was, ok := seen[m.Hash()]; ok {
			t.Errorf("%s has the hash of %s", what, was)
		}
		seen[m.Hash()] = what
	}
	change("another subject", func(m *events.Message) { m.Subject += "x" })
	change("another body", func(m *events.Message) { m.Data[5] ^= 1 })
	for _, name := range slices.Sorted(maps.Keys(message(events.TypeKeyRevoked).Header)) {
		change(name+" gone", func(m *events.Message) { delete(m.Header, name) })
		change(name+" longer", func(m *events.Message) { m.Header[name] = []string{m.Header[name][0] + "x"} })
		change(name+" renamed", func(m *events.Message) { m.Header[name+"x"] = m.Header[name]; delete(m.Header, name) })
	}
	// A byte that moves from one part to its neighbour.
	change("subject's end in the first header", func(m *events.Message) {
		m.Header["ce-cmd"][0] = m.Subject[len(m.Subject)-1:] + m.Header["ce-cmd"][0]
		m.Subject = m.Subject[:len(m.Subject)-1]
	})
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
		"long user agent":     func(e *events.Event) { e.UserAgent = strings.Repeat("u", 257) },
		"long request id":     func(e *events.Event) { e.RequestID = strings.Repeat("r", 65) },
		"long reason":         func(e *events.Event) { e.Reason = strings.Repeat("r", 501) },
		"reason of two lines": func(e *events.Event) { e.Reason = "a\nb" },
		"bad UTF-8":           func(e *events.Event) { e.Reason = "\xff" },
		"no data":             func(e *events.Event) { e.Data = nil },
		"a tenant's data":     func(e *events.Event) { e.Data = &events.TenantLimitUpdated{} },
		"data of another":     func(e *events.Event) { e.Data = &events.RoleDeleted{} },
		"invalid data":        func(e *events.Event) { e.Data = &events.KeyRevoked{} },
	} {
		e := must(events.DecodeStrict(new(message(events.TypeKeyRevoked))))
		spoil(&e)
		if m, err := events.Encode(&e); err == nil {
			t.Errorf("%s encodes: %s", name, m.Data)
		}
	}
}

// Data.Validate: the bounds of every type, at and past them.
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
		"a limit of nothing": {created(func(c *events.KeyCreated) { c.Limit = &events.Limit{} }), false},
		"a limit below 0":    {created(func(c *events.KeyCreated) { c.Limit = &events.Limit{PerMinute: -1, Burst: 1} }), false},
		"a burst of 0":       {created(func(c *events.KeyCreated) { c.Limit = &events.Limit{PerMinute: 1} }), false},
		"plan and numbers":   {created(func(c *events.KeyCreated) { c.Limit = &events.Limit{Plan: "a", Burst: 1} }), false},
		"a limit at the top": {created(func(c *events.KeyCreated) {
			c.Limit = &events.Limit{PerMinute: events.MaxPerMinute, Burst: events.MaxPerMinute}
		}), true},
		"a long import":      {&events.KeyImported{KeyCreated: *logtest.Created("s"), ImportedFrom: strings.Repeat("i", 201)}, false},
		"import of no key":   {&events.KeyImported{}, false},
		"rotated to none":    {&events.KeyRotated{After: 1}, false},
		"overlap past life":  {&events.KeyRotated{Successor: events.KeyID{1}, Before: 5, After: 6}, false},
		"overlap to its end": {&events.KeyRotated{Successor: events.KeyID{1}, Before: 5, After: 5}, true},
		"overlap for ever":   {&events.KeyRotated{Successor: events.KeyID{1}}, false},
		"expiry lifted":      {&events.KeyExpiryChanged{Before: 5}, true},
		"expired at none":    {&events.KeyExpired{}, false},
		"no resources":       {&events.KeyResourcesAssigned{}, true},
		"a resource twice":   {&events.KeyResourcesAssigned{After: []events.Resource{{Kind: "p", ID: "1"}, {Kind: "p", ID: "1"}}}, false},
		"a role of no scope": {&events.RoleDefined{}, true},
		"a role of level X":  {&events.RoleDefined{Level: "X"}, false},
		"a tenant's default": {&events.TenantLimitUpdated{Before: &events.Limit{Plan: "a"}}, true},
		"a tenant's plan":    {&events.TenantLimitUpdated{After: &events.Limit{Plan: "a"}}, true},
		"a tenant of 0":      {&events.TenantLimitUpdated{After: &events.Limit{PerMinute: 1}}, false},
		"a tenant of both":   {&events.TenantLimitUpdated{After: &events.Limit{Plan: "a", PerMinute: 1, Burst: 1}}, false},
		"a query of none":    {&events.AuditQueried{}, false},
		"a query, bad name":  {&events.AuditQueried{Kind: "uses", Filter: map[string]string{"Key": "v"}}, false},
		"a long filter":      {&events.AuditExported{Kind: "uses", Filter: map[string]string{"key": strings.Repeat("v", 257)}}, false},
	} {
		if err := c.data.Validate(); (err == nil) != bool(c.ok) {
			t.Errorf("%s: %v, want ok %v", name, err, c.ok)
		}
	}
}
