package schemas_test

import (
	stdjson "encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/schemas"
)

// document prints a definition as the document that keyspace apply reads.
func document(t failer, name string, d keyspace.Definition) map[string]any {
	t.Helper()
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	doc := parse(t, b).(map[string]any)
	doc["name"] = name
	return doc
}

func TestKeyspaceSchema(t *testing.T) {
	s := compile(t, schemas.Keyspace())
	if err := s.Validate(document(t, "keytrail", events.BuiltinDefinition())); err != nil {
		t.Error(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		d := logtest.GenDefinition().Draw(t, "definition")
		if err := s.Validate(document(t, "shop", d)); err != nil {
			t.Fatal(err)
		}
	})
	for name, spoil := range map[string]func(map[string]any){
		"no name":        func(d map[string]any) { delete(d, "name") },
		"bad name":       func(d map[string]any) { d["name"] = "Shop" },
		"no key types":   func(d map[string]any) { delete(d, "key_types") },
		"unknown member": func(d map[string]any) { d["scope"] = []any{} },
		"bad prefix":     func(d map[string]any) { d["key_types"] = []any{map[string]any{"name": "a", "prefix": "sk live"}} },
		"bad ledger":     func(d map[string]any) { d["ledger"] = "maybe" },
	} {
		d := document(t, "keytrail", events.BuiltinDefinition())
		spoil(d)
		if s.Validate(d) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// replacements puts other values into v, in one place at a time.
func replacements(v any) []replacement {
	long := strings.Repeat
	texts := []string{"", "a", "A", "é", "tenant", "project", "{environment}", "k_{environment}", "{env}", "{{", "{", "{code}", "{scope}", "{issue.code}", "a b", "\n", long("p", 33), long("p", 32) + "{environment}", long("p", 33) + "{environment}",
		long("c", 64), long("c", 65), long("é", 101), long("é", 301), long("é", 501), long("é", 1001), "30d", "720h", "1d12h", "1.5h", "never", "0s", "-1d", "1d-1h", "1d0", "30", "d", "36501d", "base62", "base58", "base32", "base64url", "hex", "crc32", "roles", "scopes", "ietf", "none", "unix",
		"x-ratelimit", "state", "limit", "deny", "sync", "application/json", "application/json; charset=utf-8", "json", "X-Limit", "Retry-After", "1-X", "key_missing", "invalid", "ok", "401"}
	numbers := []int{-1, 0, 1, 19, 20, 21, 23, 24, 29, 30, 200, 201, 399, 400, 599, 600, 86_400_000, 86_400_001, 1_000_000_000, 1_000_000_001}
	var out []replacement
	var walk func(at any, path string, put func(any) any)
	walk = func(at any, path string, put func(any) any) {
		add := func(v any) {
			out = append(out, replacement{path, v, func() []byte { return must(stdjson.Marshal(put(v))) }})
		}
		switch at := at.(type) {
		case string:
			for _, s := range texts {
				add(s)
			}
		case stdjson.Number:
			for _, n := range numbers {
				add(n)
			}
		case bool:
			add(!at)
		case map[string]any:
			add(map[string]any{})
			for name, member := range at {
				walk(member, path+"/"+name, func(v any) any {
					c := maps.Clone(at)
					c[name] = v
					return put(c)
				})
			}
		case []any:
			add([]any{})
			if len(at) > 0 {
				add(append(slices.Clone(at), at[0]))
				add(slices.Repeat(at[:1], 1001))
			}
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

type replacement struct {
	path  string
	value any
	body  func() []byte
}

var (
	spanForm   = regexp.MustCompile(`^([0-9]+d)?([0-9.]+(h|m|s))*$|^1d0$`)
	headerForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]{0,63}$`)
)

// beyondSchemas reports whether a fault is one that a schema cannot tell: what
// compares two places, and values of the right form.
func beyondSchemas(f input.FieldError, value any) bool {
	text, _ := value.(string)
	switch f.Code {
	case "duplicate", "unknown_scope", "unknown_plan", "unknown_kind", "above_ceiling", "not_a_choice", "conflict":
		return true
	case "invalid":
		return strings.HasPrefix(f.Field, "expiry.") && text != "" && spanForm.MatchString(text) || // too long, or nothing
			(strings.HasPrefix(f.Field, "limit_headers.") || f.Field == "credential.header") && headerForm.MatchString(text) || // a name with another use
			f.Field == "errors.envelope" && (strings.Contains(f.Message, "inside a list") || strings.Contains(f.Message, "bytes")) // of the whole template
	}
	return false
}

// disagreement judges a document by the schema and by Definition.Validate and
// says where they differ, "" when they do not.
func disagreement(t failer, s *jsonschema.Schema, body []byte, value any) string {
	t.Helper()
	bySchema := s.Validate(parse(t, body))
	doc := parse(t, body).(map[string]any)
	delete(doc, "name")
	b, err := stdjson.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var d keyspace.Definition
	err = json.Unmarshal(b, &d, json.RejectUnknownMembers(true))
	if err == nil {
		err = d.Validate().OrNil()
	}
	var faults input.FieldErrors
	if errors.As(err, &faults) && bySchema == nil && !slices.ContainsFunc(faults, func(f input.FieldError) bool { return !beyondSchemas(f, value) }) {
		return ""
	}
	if (err == nil) != (bySchema == nil) {
		return fmt.Sprintf("Validate says %v, the schema %v", err, bySchema)
	}
	return ""
}

// TestKeyspaceSchemaAgrees: what the schema tells an editor is what Validate
// tells the endpoint. A null is the one difference that is meant: the endpoint reads it
// as absent.
func TestKeyspaceSchemaAgrees(t *testing.T) {
	s := compile(t, schemas.Keyspace())
	full := logtest.Samples()[0].Event.Data.(*events.KeyspaceDefined).Definition
	doc := document(t, "shop", full)
	if why := disagreement(t, s, must(stdjson.Marshal(doc)), nil); why != "" {
		t.Fatal(why)
	}
	seen := map[string]bool{}
	for _, c := range replacements(doc) {
		seen[regexp.MustCompile(`/[0-9]+`).ReplaceAllString(c.path, "")] = true
		if c.path == "" || c.path == "/name" {
			continue
		}
		if why := disagreement(t, s, c.body(), c.value); why != "" {
			t.Errorf("%.60q at %s: %.600s", fmt.Sprint(c.value), c.path, why)
		}
	}
	for _, c := range mutations(doc) {
		if c.kind == null && !strings.Contains(c.path, "/envelope") || c.path == "" || c.path == "/name" {
			continue
		}
		if why := disagreement(t, s, c.body, nil); why != "" {
			t.Errorf("%s %s: %.600s", c.kind, c.path, why)
		}
	}
	for _, name := range members(reflect.TypeFor[keyspace.Definition]()) {
		if !seen["/"+name] {
			t.Errorf("%s was never replaced: want it in the sample", name)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		doc := document(t, "shop", logtest.GenDefinition().Draw(t, "definition"))
		all := replacements(doc)
		for range 8 {
			c := rapid.SampledFrom(all).Draw(t, "replacement")
			if c.path == "" || c.path == "/name" {
				continue
			}
			if why := disagreement(t, s, c.body(), c.value); why != "" {
				t.Fatal(fmt.Sprintf("%q at %s: %s", fmt.Sprint(c.value), c.path, why))
			}
		}
	})
	// Two members that depend on each other.
	for body, good := range map[string]bool{
		`{"name":"a","prefix":"k_{environment}_"}`:                                                          false,
		`{"name":"a","prefix":"k_{environment}_","environments":[]}`:                                        false,
		`{"name":"a","prefix":"k_{environment}_","environments":["live"]}`:                                  true,
		`{"name":"a","prefix":"k_{environment}_{environment}","environments":["live"]}`:                     false,
		`{"name":"a","length":20}`:                                                                          false,
		`{"name":"a","length":20,"alphabet":""}`:                                                            false,
		`{"name":"a","length":20,"alphabet":"base64url"}`:                                                   true,
		`{"name":"a","length":23,"alphabet":"base32"}`:                                                      false,
		`{"name":"a","length":29,"alphabet":"hex"}`:                                                         false,
		`{"name":"a","length":30,"alphabet":"hex"}`:                                                         true,
		`{"name":"a","length":0,"alphabet":"hex"}`:                                                          true,
		`{"name":"a","environments":["a","b","c","d","e","f","g","h","i","j","k","l","m","n","o","p","q"]}`: false,
	} {
		body := `{"name":"shop","key_types":[` + body + `]}`
		if err := s.Validate(parse(t, []byte(body))); (err == nil) != good {
			t.Errorf("%s: %v", body, err)
		}
		if why := disagreement(t, s, []byte(body), nil); why != "" {
			t.Errorf("%s: %s", body, why)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// regime reads a shipped document the way keyspace apply and the endpoint do.
func regime(t *testing.T, path string) (string, keyspace.Definition) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	b, err = stdjson.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	if err := compile(t, schemas.Keyspace()).Validate(parse(t, b)); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	name, _ := doc["name"].(string)
	delete(doc, "name")
	if b, err = stdjson.Marshal(doc); err != nil {
		t.Fatal(err)
	}
	var d keyspace.Definition
	if err := json.Unmarshal(b, &d, json.RejectUnknownMembers(true)); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if err := d.Validate().OrNil(); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return name, d
}

func TestShippedRegimes(t *testing.T) {
	paths, err := filepath.Glob("../deploy/regimes/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no regimes: %v", err)
	}
	for _, path := range paths {
		if name, _ := regime(t, path); name+".yaml" != filepath.Base(path) {
			t.Errorf("%s defines %s", path, name)
		}
	}
}

// TestScribeSight holds the keyspace to its source, the API's own page.
func TestScribeSight(t *testing.T) {
	_, d := regime(t, "../deploy/regimes/scribe-sight.yaml")
	if d.Credential.HeaderName() != "Authorization" || d.Credential.SchemeName() != "Bearer" {
		t.Errorf("credential %+v", d.Credential)
	}
	for secret, want := range map[string]string{
		"sk_live_" + strings.Repeat("x", 28): "secret",
		"pk_live_" + strings.Repeat("x", 28): "publishable",
	} {
		if kt, env, ok := d.TypeOf(secret); !ok || kt.Name != want || env != "live" || kt.Hint(secret) != secret[:12] {
			t.Errorf("%s is %+v", secret, kt)
		}
	}
	first, _ := d.Type("")
	if first.Name != "secret" || !slices.Equal(first.Defaults, []string{"read", "write"}) {
		t.Errorf("by default %+v", first)
	}
	if got := keyspace.Compile(d, nil).Effective("secret", first.Defaults); !slices.Equal(got, []string{"read", "upload", "write"}) {
		t.Errorf("a secret key may %v", got)
	}
	if got := keyspace.Compile(d, nil).Effective("publishable", []string{"read", "upload", "write"}); !slices.Equal(got, []string{"upload"}) {
		t.Errorf("a publishable key may %v", got)
	}
	if !slices.Equal(d.Resources, []string{"project"}) || d.Expiry.MustEnd() {
		t.Errorf("resources %v, expiry %+v", d.Resources, d.Expiry)
	}
}
