package schemas_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/schemas"
)

// compile compiles one published schema on its own: S1 says that it stands alone.
func compile(t testing.TB, source []byte) *jsonschema.Schema {
	t.Helper()
	doc := parse(t, source)
	id, _ := doc.(map[string]any)["$id"].(string)
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	c.UseLoader(jsonschema.SchemeURLLoader{}) // nothing can be loaded from elsewhere
	if err := c.AddResource(id, doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// failer is what *testing.T and *rapid.T have in common.
type failer interface {
	Helper()
	Fatal(...any)
}

func parse(t failer, b []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func eventSchemas(t testing.TB) map[events.Type]*jsonschema.Schema {
	t.Helper()
	out := map[events.Type]*jsonschema.Schema{}
	for _, typ := range events.Types() {
		source, ok := schemas.Event(string(typ), 1)
		if !ok {
			t.Fatalf("%s has no schema", typ)
		}
		out[typ] = compile(t, source)
		if want := "urn:keytrail:schema:event:" + string(typ) + ":v1"; !strings.HasPrefix(out[typ].Location, want) {
			t.Errorf("%s: $id is %s, want %s", typ, out[typ].Location, want)
		}
	}
	files, err := schemas.FS.ReadDir("events")
	if err != nil || len(files) != len(out) {
		t.Fatalf("%d schemas for %d types of events: %v", len(files), len(out), err)
	}
	return out
}

// samples holds an encoded event of each type with every member set.
func samples(t testing.TB) map[events.Type][]events.Message {
	t.Helper()
	out := map[events.Type][]events.Message{}
	for _, w := range logtest.Samples() {
		m, err := events.Encode(&w.Event)
		if err != nil {
			t.Fatal(err)
		}
		out[w.Event.Type()] = append(out[w.Event.Type()], m)
	}
	if len(out) != len(events.Types()) {
		t.Fatalf("samples of %d types, the catalogue has %d", len(out), len(events.Types()))
	}
	return out
}

func TestEventSchemas(t *testing.T) {
	all, messages := eventSchemas(t), samples(t)
	for _, typ := range slices.Sorted(maps.Keys(messages)) {
		for _, m := range messages[typ] {
			if err := all[typ].Validate(parse(t, m.Data)); err != nil {
				t.Errorf("%s: %v\n%s", typ, err, m.Data)
			}
		}
	}
}

// TestEventSchemaExamples: the examples that people copy are events.
func TestEventSchemaExamples(t *testing.T) {
	all := eventSchemas(t)
	for typ, s := range all {
		source, _ := schemas.Event(string(typ), 1)
		var doc struct{ Examples []json.RawMessage }
		if err := json.Unmarshal(source, &doc); err != nil || len(doc.Examples) == 0 {
			t.Fatalf("%s: no example: %v", typ, err)
		}
		for _, example := range doc.Examples {
			if err := s.Validate(parse(t, example)); err != nil {
				t.Errorf("%s: %v", typ, err)
			}
			var compact bytes.Buffer
			if err := json.Compact(&compact, example); err != nil {
				t.Fatal(err)
			}
			var at struct{ Subject string }
			if err := json.Unmarshal(example, &at); err != nil {
				t.Fatal(err)
			}
			part := strings.Split(at.Subject, "/")
			a := events.Aggregate{Keyspace: events.KeyspaceID(part[0]), Tenant: events.TenantID(part[1]), Kind: events.AggregateKind(part[2]), ID: part[3]}
			m := events.Message{Subject: a.Subject(), Data: compact.Bytes()}
			if _, err := events.DecodeStrict(&m); err != nil {
				t.Errorf("%s: %v", typ, err)
			}
		}
	}
}

func TestRandomEventsValidate(t *testing.T) {
	all := eventSchemas(t)
	rapid.Check(t, func(t *rapid.T) {
		e := logtest.GenEvent().Draw(t, "event")
		m, err := events.Encode(&e)
		if err != nil {
			t.Fatal(err)
		}
		if err := all[e.Type()].Validate(parse(t, m.Data)); err != nil {
			t.Fatalf("%s: %v\n%s", e.Type(), err, m.Data)
		}
	})
}

// TestEventSchemasRefuse changes each sample in every place and asks the schema
// and the codec: an unknown member, a value of another type and a null are
// refused by both, and what the schema misses the codec misses too. Decode reads
// an absent member and a null as nothing, which Encode then prints otherwise.
// One difference is meant: what an event says was before repeats an earlier event
// and is not checked again by the codec (logtest.CheckLog compares the two).
func TestEventSchemasRefuse(t *testing.T) {
	all := eventSchemas(t)
	for typ, messages := range samples(t) {
		missing := map[string]bool{}
		for _, m := range messages {
			for _, c := range mutations(parse(t, m.Data)) {
				bySchema := all[typ].Validate(parse(t, c.body))
				spoilt := m
				spoilt.Data = c.body
				e, err := events.Decode(&spoilt)
				accepted := err == nil && e.CanAppend() == nil
				if again, err := events.Encode(&e); accepted && c.kind != otherType && c.kind != unknownMember {
					accepted = err == nil && reflect.DeepEqual(parse(t, again.Data), parse(t, c.body))
				}
				switch {
				case strings.Contains(c.path, "/errors/envelope/") || c.kind == unknownMember && strings.HasSuffix(c.path, "/errors/envelope"):
					// Any members and values, as long as the template compiles.
					if accepted != (bySchema == nil) {
						t.Errorf("%s: %s %s: the codec accepts it: %v, the schema: %v", typ, c.kind, c.path, accepted, bySchema)
					}
				case c.kind == without && bySchema == nil: // an optional member
				case bySchema == nil:
					t.Errorf("%s: the schema accepts %s %s", typ, c.kind, c.path)
				case accepted && c.kind == without && strings.HasPrefix(c.path, "/data/data/before/"), c.path == "/data/data/before/errors/envelope":
				case accepted:
					t.Errorf("%s: the codec accepts %s %s, the schema does not: %v", typ, c.kind, c.path, bySchema)
				case c.kind == without:
					missing[c.path] = true
				}
			}
		}
		if !missing["/id"] || !missing["/data/actor"] || !missing["/data/actor/id"] || !missing["/data/data"] || !missing["/data"] {
			t.Errorf("%s: members that must be there may be missing: refused are only %v", typ, missing)
		}
	}
}

const (
	otherType     = "another type at"
	null          = "null at"
	unknownMember = "an unknown member in"
	without       = "a document without"
)

type mutation struct {
	kind, path string
	body       []byte
}

// mutations spoils v in one place at a time.
func mutations(v any) []mutation {
	var out []mutation
	var walk func(at any, path string, put func(any) any)
	walk = func(at any, path string, put func(any) any) {
		add := func(kind, path string, v any) {
			b, err := json.Marshal(put(v))
			if err != nil {
				panic(err)
			}
			out = append(out, mutation{kind, path, b})
		}
		var other any = "x"
		if _, ok := at.(string); ok {
			other = 7
		}
		add(otherType, path, other)
		add(null, path, nil)
		switch at := at.(type) {
		case map[string]any:
			with := func(name string, v any) any {
				c := maps.Clone(at)
				c[name] = v
				return c
			}
			add(unknownMember, path, with("unknown_member", 1))
			for name, member := range at {
				c := maps.Clone(at)
				delete(c, name)
				add(without, path+"/"+name, c)
				walk(member, path+"/"+name, func(v any) any { return put(with(name, v)) })
			}
		case []any:
			for i, item := range at {
				walk(item, fmt.Sprint(path, "/", i), func(v any) any {
					c := slices.Clone(at)
					c[i] = v
					return put(c)
				})
			}
		}
	}
	walk(v, "", func(v any) any { return v })
	return out
}
