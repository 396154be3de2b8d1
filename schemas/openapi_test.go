package schemas_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/schemas"
)

func openapi(t *testing.T) map[string]any {
	t.Helper()
	return parse(t, schemas.OpenAPI()).(map[string]any)
}

// visit calls f for every value under v, with its JSON pointer.
func visit(v any, pointer string, f func(pointer string, v any)) {
	f(pointer, v)
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			visit(member, pointer+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name), f)
		}
	case []any:
		for i, item := range v {
			visit(item, fmt.Sprint(pointer, "/", i), f)
		}
	}
}

// TestOpenAPIReferences: every reference resolves, and every component is used.
func TestOpenAPIReferences(t *testing.T) {
	doc := openapi(t)
	all := map[string]bool{}
	visit(doc, "#", func(p string, v any) { all[p] = true })
	used := map[string]bool{}
	visit(doc, "#", func(p string, v any) {
		m, _ := v.(map[string]any)
		if ref, ok := m["$ref"].(string); ok {
			used[ref] = true
			if !all[ref] {
				t.Errorf("%s refers to %s, which is not there", p, ref)
			}
		}
	})
	for kind, components := range doc["components"].(map[string]any) {
		for name := range components.(map[string]any) {
			if ref := "#/components/" + kind + "/" + name; kind != "securitySchemes" && !used[ref] {
				t.Errorf("%s is not used", ref)
			}
		}
	}
}

var pathParam = regexp.MustCompile(`\{(\w+)\}`)

// TestOpenAPIOperations checks what OpenAPI 3.1 asks of paths and operations, and
// what we ask of ours.
func TestOpenAPIOperations(t *testing.T) {
	doc := openapi(t)
	if v, _ := doc["openapi"].(string); !strings.HasPrefix(v, "3.1.") {
		t.Errorf("openapi %q", v)
	}
	var tags []string
	for _, tag := range doc["tags"].([]any) {
		tags = append(tags, tag.(map[string]any)["name"].(string))
	}
	parameters := doc["components"].(map[string]any)["parameters"].(map[string]any)
	inPath := func(list any) (names []string) {
		items, _ := list.([]any)
		for _, p := range items {
			m := p.(map[string]any)
			if ref, ok := m["$ref"].(string); ok {
				m = parameters[strings.TrimPrefix(ref, "#/components/parameters/")].(map[string]any)
			}
			if m["in"] == "path" {
				names = append(names, m["name"].(string))
			}
		}
		return names
	}
	ids := map[string]bool{}
	for path, item := range doc["paths"].(map[string]any) {
		var want []string
		for _, m := range pathParam.FindAllStringSubmatch(path, -1) {
			want = append(want, m[1])
		}
		if got := inPath(item.(map[string]any)["parameters"]); !slices.Equal(got, want) {
			t.Errorf("%s: parameters %v, want %v", path, got, want)
		}
		for method, op := range item.(map[string]any) {
			if method == "parameters" || method == schemas.AnyMethod {
				continue
			}
			op := op.(map[string]any)
			id, _ := op["operationId"].(string)
			if id == "" || ids[id] {
				t.Errorf("%s %s: operationId %q is missing or taken", method, path, id)
			}
			ids[id] = true
			list, _ := op["tags"].([]any)
			if len(list) != 1 || !slices.Contains(tags, list[0].(string)) || op["summary"] == nil {
				t.Errorf("%s %s: want one of the tags and a summary", method, path)
			}
			responses, _ := op["responses"].(map[string]any)
			good := 0
			for status := range responses {
				if strings.HasPrefix(status, "2") && status != "202" { // what is not complete yet
					good++
				}
			}
			if good != 1 || responses["default"] == nil {
				t.Errorf("%s %s: want one answer of success and a default", method, path)
			}
			for _, requirement := range op["security"].([]any) {
				scopes := requirement.(map[string]any)["operator"].([]any)
				builtin := events.BuiltinDefinition()
				if len(scopes) != 1 || !builtin.HasScope(scopes[0].(string)) {
					t.Errorf("%s %s: want one scope of the built-in keyspace", method, path)
				}
			}
		}
	}
}

// TestOpenAPISchemas compiles every schema and holds every example to its own.
func TestOpenAPISchemas(t *testing.T) {
	const url = "urn:openapi"
	doc := openapi(t)
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(url, doc); err != nil {
		t.Fatal(err)
	}
	for name := range doc["components"].(map[string]any)["schemas"].(map[string]any) {
		if _, err := c.Compile(url + "#/components/schemas/" + name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	compiled, examples := 0, 0
	visit(doc, "", func(p string, v any) {
		m, _ := v.(map[string]any)
		schema, of := m["schema"], []any{}
		if example, ok := m["example"]; ok {
			of = append(of, example)
		}
		if list, ok := m["examples"].([]any); ok { // a schema's own
			schema, of = m, list
		}
		if schema == nil {
			return
		}
		b, err := json.Marshal(schema)
		if err != nil {
			t.Fatal(err)
		}
		at := fmt.Sprintf("urn:at:%d", compiled)
		if err := c.AddResource(at, parse(t, []byte(strings.ReplaceAll(string(b), `"#/`, `"`+url+`#/`)))); err != nil {
			t.Fatal(err)
		}
		compiled++
		s, err := c.Compile(at)
		if err != nil {
			t.Fatalf("%s: %v", p, err)
		}
		for _, example := range of {
			examples++
			if err := s.Validate(example); err != nil {
				t.Errorf("%s: %v", p, err)
			}
		}
	})
	if compiled < 100 || examples < 70 {
		t.Errorf("only %d schemas and %d examples", compiled, examples)
	}
}

// TestOpenAPISharesShapes: what is published twice is the same twice.
func TestOpenAPISharesShapes(t *testing.T) {
	components := openapi(t)["components"].(map[string]any)["schemas"].(map[string]any)
	var keyspace map[string]any
	b := schemas.Keyspace()
	// "#/$defs/word" there is "#/components/schemas/Word" here.
	text := regexp.MustCompile(`"#/\$defs/(\w)`).ReplaceAllStringFunc(string(b), func(s string) string {
		return `"#/components/schemas/` + strings.ToUpper(s[len(s)-1:])
	})
	if err := json.Unmarshal([]byte(text), &keyspace); err != nil {
		t.Fatal(err)
	}
	properties := keyspace["properties"].(map[string]any)
	delete(properties, "name")
	for name, got := range components["Definition"].(map[string]any)["properties"].(map[string]any) {
		same(t, "Definition."+name, got, properties[name])
		same(t, "DefineKeyspace."+name, components["DefineKeyspace"].(map[string]any)["properties"].(map[string]any)[name], got)
		delete(properties, name)
	}
	if len(properties) > 0 {
		t.Errorf("the Definition lacks %v", properties)
	}
	var reasons, types []any
	for _, r := range events.Reasons() {
		reasons = append(reasons, r.String())
	}
	for _, typ := range events.Types() {
		types = append(types, string(typ))
	}
	same(t, "Reason", components["Reason"].(map[string]any)["enum"], reasons)
	got := components["EventType"].(map[string]any)["enum"].([]any)
	byText := func(a, b any) int { return strings.Compare(a.(string), b.(string)) }
	slices.SortFunc(got, byText)
	slices.SortFunc(types, byText)
	same(t, "EventType", got, types)
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	a, err1 := json.Marshal(got)
	b, err2 := json.Marshal(want)
	if err1 != nil || err2 != nil || string(a) != string(b) {
		t.Errorf("%s differs:\n%s\n%s", what, a, b)
	}
}

// TestRoutes pins the routes of the design; more may come.
func TestRoutes(t *testing.T) {
	routes := schemas.Routes()
	for _, want := range strings.Fields(`
		PUT_/v1/keyspaces/{keyspace} GET_/v1/keyspaces/{keyspace} GET_/v1/keyspaces
		POST_/v1/keyspaces/{keyspace}/keys GET_/v1/keyspaces/{keyspace}/keys
		GET_/v1/keys/{id} PATCH_/v1/keys/{id} DELETE_/v1/keys/{id} GET_/v1/keys/{id}/history
		PUT_/v1/keys/{id}/scopes PUT_/v1/keys/{id}/resources PUT_/v1/keys/{id}/allowlist PUT_/v1/keys/{id}/limit
		POST_/v1/keys/{id}/rotate POST_/v1/keys/{id}/disable POST_/v1/keys/{id}/enable
		PUT_/v1/keyspaces/{keyspace}/tenants/{tenant}/roles/{role} GET_/v1/keyspaces/{keyspace}/tenants/{tenant}/roles/{role}
		DELETE_/v1/keyspaces/{keyspace}/tenants/{tenant}/roles/{role}
		POST_/v1/verify POST_/v1/verify/batch ANY_/v1/authorize/{keyspace} ANY_/v1/preflight/{keyspace}
		GET_/v1/audit/events GET_/v1/audit/uses GET_/v1/audit/usage GET_/v1/audit/blocks POST_/v1/audit/exports
		GET_/healthz GET_/readyz GET_/metrics GET_/openapi.json`) {
		if !slices.Contains(routes, strings.Replace(want, "_", " ", 1)) {
			t.Errorf("%s is not described", want)
		}
	}
	if !slices.IsSorted(routes) {
		t.Error("the routes are not sorted")
	}
}
