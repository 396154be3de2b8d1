package schemas_test

import (
	stdjson "encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/goccy/go-yaml"
	"pgregory.net/rapid"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/logtest"
	"github.com/keytrail/keytrail/schemas"
)

// document prints a definition as the document that keyspace apply reads.
func document(t failer, name string, d events.Definition) map[string]any {
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

// regime reads a shipped document the way keyspace apply and the door do.
func regime(t *testing.T, path string) (string, events.Definition) {
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
	var d events.Definition
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

// TestScribeSight holds the regime to its source, the API's own page.
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
	if got := d.Effective("secret", first.Defaults); !slices.Equal(got, []string{"read", "upload", "write"}) {
		t.Errorf("a secret key may %v", got)
	}
	if got := d.Effective("publishable", []string{"read", "upload", "write"}); !slices.Equal(got, []string{"upload"}) {
		t.Errorf("a publishable key may %v", got)
	}
	if !slices.Equal(d.Resources, []string{"project"}) || d.Expiry.MustEnd() {
		t.Errorf("resources %v, expiry %+v", d.Resources, d.Expiry)
	}
}
