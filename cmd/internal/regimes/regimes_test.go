package regimes

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keytrail/keytrail/events/input"
)

var update = flag.Bool("update", false, "write what is told of testdata/bad as the wanted text")

// golden compares got with a file, or writes it with -update.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("told\n%swant\n%s", got, want)
	}
}

// check reads and checks a document.
func check(file string, b []byte) error {
	d, err := Read(file, b)
	if err != nil {
		return err
	}
	return d.Check().OrNil()
}

// TestBad holds what is told of each bad document to testdata/bad/*.txt.
func TestBad(t *testing.T) {
	paths, err := filepath.Glob("testdata/bad/*")
	if err != nil {
		t.Fatal(err)
	}
	paths = slices.DeleteFunc(paths, func(p string) bool { return strings.HasSuffix(p, ".txt") })
	if len(paths) < 40 {
		t.Fatalf("%d documents", len(paths))
	}
	for _, path := range paths {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			err = check(name, b)
			if err == nil {
				t.Fatal("accepted")
			}
			golden(t, path+".txt", err.Error()+"\n")
		})
	}
}

func TestShippedRegimes(t *testing.T) {
	paths, err := filepath.Glob("../../../deploy/regimes/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no regimes: %v", err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := check(path, b); err != nil {
			t.Error(err)
		}
		// Editors find the schema from here.
		if !bytes.HasPrefix(b, []byte("# yaml-language-server: $schema=../../schemas/keyspace.v1.json\n")) {
			t.Errorf("%s does not name its schema to editors", path)
		}
	}
}

// TestWords are those for the keywords that the published schema may come to use.
func TestWords(t *testing.T) {
	schema, err := os.ReadFile("testdata/words.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	byPlace, err := compile(schema)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("testdata/words.yaml")
	if err != nil {
		t.Fatal(err)
	}
	d, err := Read("words.yaml", b)
	if err != nil {
		t.Fatal(err)
	}
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(d.root.append(nil)))
	if err != nil {
		t.Fatal(err)
	}
	var f Faults
	for _, x := range d.against(byPlace, instance) {
		f = append(f, x.Fault)
	}
	f.sort()
	golden(t, "testdata/words.yaml.txt", f.Error()+"\n")
}

const placed = `# The members stand where At says.
name: shop
errors:
  envelope:
    error:
      code: "{code}"
      a.b: {c: 1}
      "x/y~z": [1, 2]
  answers:
    - reasons: [a, b]
      status: 401
    - {status: 403, reasons:
        [c]}
    -
    - |
      text
`

func TestAt(t *testing.T) {
	d, err := Read("placed.yaml", []byte(placed))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		path      string
		line, col int
	}{
		{"", 2, 1},
		{"name", 2, 1},
		{"/name", 2, 1},
		{"errors", 3, 1},
		{"errors.envelope.error.code", 6, 7},
		{"/errors/envelope/error/code", 6, 7},
		{"errors.envelope.error.a.b", 7, 7},
		{"errors.envelope.error.a.b.c", 7, 13},
		{"errors.envelope.error.a", 5, 5},
		{"/errors/envelope/error/x~1y~0z/1", 8, 20},
		{"errors.answers[0]", 10, 7},
		{"errors.answers[0].status", 11, 7},
		{"errors.answers.0.status", 11, 7},
		{"/errors/answers/0/status", 11, 7},
		{"errors.answers[0].reasons[1]", 10, 20},
		{"errors.answers[1]", 12, 7},
		{"errors.answers[1].status", 12, 8},
		{"errors.answers[1].reasons[0]", 13, 10},
		{"errors.answers[2]", 14, 5},
		{"errors.answers[2].status", 14, 5},
		{"errors.answers[3]", 15, 7},
		// What is not there is where its nearest parent is.
		{"errors.answers[9].status", 9, 3},
		{"/errors/answers/9/status", 9, 3},
		{"errors.answers[0].message", 10, 7},
		{"errors.answers[0].reasons[0].x", 10, 17},
		{"errors.answers[-1]", 9, 3},
		{"errors.answers[0", 9, 3},
		{"errors.answers.reasons", 9, 3},
		{"errorsx", 2, 1},
		{"key_types[0].length", 2, 1},
	} {
		if line, col := d.At(tt.path); line != tt.line || col != tt.col {
			t.Errorf("%s is at %d:%d, want %d:%d", tt.path, line, col, tt.line, tt.col)
		}
	}
}

func TestLocate(t *testing.T) {
	d, err := Read("placed.yaml", []byte(placed))
	if err != nil {
		t.Fatal(err)
	}
	got := d.Locate("server", input.FieldErrors{
		{Field: "errors.answers[0].status", Code: "invalid", Message: "want 400 to 599"},
		{Field: "key_types", Code: "required", Message: "want at least one key type"},
	}).Error()
	want := "placed.yaml:2:1: key_types: want at least one key type (server)\n" +
		"placed.yaml:11:7: errors.answers[0].status: want 400 to 599 (server)"
	if got != want {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
}

// The order of members is the order in which customers see an envelope's.
func TestOrderIsKept(t *testing.T) {
	for _, doc := range []string{
		"z: 1\nname: shop\na: {y: [1, {d: x, b: 2}], x: 3}\nm:\n  q: 1\n  c: 2\n",
		`{"z": 1, "name": "shop", "a": {"y": [1, {"d": "x", "b": 2}], "x": 3}, "m": {"q": 1, "c": 2}}`,
	} {
		d, err := Read("x", []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		if d.Name() != "shop" {
			t.Errorf("the name is %q", d.Name())
		}
		for reason, want := range map[string]string{
			"":          `{"z":1,"a":{"y":[1,{"d":"x","b":2}],"x":3},"m":{"q":1,"c":2}}`,
			`as "told"`: `{"z":1,"a":{"y":[1,{"d":"x","b":2}],"x":3},"m":{"q":1,"c":2},"reason":"as \"told\""}`,
		} {
			if got := string(d.Definition(reason)); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
	}
}

// Scalars are those of YAML 1.2, core schema.
func TestScalars(t *testing.T) {
	for in, want := range map[string]string{
		"yes": `"yes"`, "No": `"No"`, "on": `"on"`, "true": "true", "True": "true", "FALSE": "false", "tRue": `"tRue"`,
		"~": "null", "null": "null", "Null": "null", "nULL": `"nULL"`, "": "null",
		"0": "0", "-0": "-0", "+12": "12", "010": "10", "-007": "-7", "0o17": "15", "0x1F": "31", "-0x1F": `"-0x1F"`, "0b11": `"0b11"`,
		"1_000": `"1_000"`, "1,000": `"1,000"`, "12345678901234567890": "12345678901234567890",
		"1.0": "1.0", "1.": "1.0", ".5": "0.5", "-.5e3": "-0.5e3", "1e3": "1e3", "1E+3": "1E+3", "1.5e-3": "1.5e-3", ".": `"."`, "1.2.3": `"1.2.3"`,
		"2026-01-01": `"2026-01-01"`, "12:30:45": `"12:30:45"`, "365d": `"365d"`, "lat_{environment}_": `"lat_{environment}_"`,
		`"010"`: `"010"`, `'true'`: `"true"`, `"\u00e9\n"`: `"é\n"`, `'it''s'`: `"it's"`, `"\x41\ud83d\ude00"`: `"A😀"`,
		"|\n  a\n\n  b\n": `"a\n\nb\n"`, ">-\n  a\n  b\n": `"a b"`, "a\n  b": `"a b"`,
	} {
		d, err := Read("x", []byte("v: "+in+"\n"))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if got := string(d.Definition("")); got != `{"v":`+want+`}` {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}

func TestBounds(t *testing.T) {
	long := "name: shop\n# " + strings.Repeat("x", MaxBytes-13) + "\n"
	if _, err := Read("x", []byte(long[:MaxBytes])); err != nil {
		t.Errorf("a document of %d bytes: %v", MaxBytes, err)
	}
	if _, err := Read("x", []byte(long+"\n")); err == nil || err.Error() != "x: want at most 1048576 bytes (file)" {
		t.Errorf("one byte more: %v", err)
	}
	if _, err := Read("x", []byte("{"+strings.Repeat(`"a":1,`, maxNames)+`"b":1}`)); err == nil || err.Error() != "x:1:1: want at most 1000 members (json)" {
		t.Errorf("too many members: %v", err)
	}
	// What would keep the parser busy for minutes is refused before it begins.
	for name, doc := range map[string]string{
		"members": strings.Repeat("a: b\n", maxTokens),
		"closed":  strings.Repeat("]", MaxBytes),
		"open":    strings.Repeat("[", MaxBytes),
		"dashes":  strings.Repeat("- ", MaxBytes/2),
		"anchors": strings.Repeat("&a ", MaxBytes/3),
		"aliases": strings.Repeat("*a ", MaxBytes/3),
		"tags":    strings.Repeat("!a ", MaxBytes/3),
		"keys":    strings.Repeat("? ", MaxBytes/2),
		"items":   `{"a":[` + strings.Repeat("1,", MaxBytes/2-8) + "1]}",
		"json":    strings.Repeat(`{"a":`, MaxBytes/5),
	} {
		if _, err := Read("x", []byte(doc)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzRead: no document makes it panic. One that it takes is JSON that reads back
// as itself; members stand in the order of the file, where At says.
func FuzzRead(f *testing.F) {
	for _, glob := range []string{"testdata/bad/*.yaml", "testdata/bad/*.json", "testdata/words.*", "../../../deploy/regimes/*.yaml"} {
		paths, err := filepath.Glob(glob)
		if err != nil {
			f.Fatal(err)
		}
		for _, path := range paths {
			b, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Add([]byte(placed))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 16<<10 {
			return
		}
		d, err := Read("x", b)
		if err != nil {
			if faults, ok := err.(Faults); !ok || len(faults) == 0 || strings.Count(err.Error(), "\n") != len(faults)-1 {
				t.Fatalf("refused with %#v", err)
			}
			return
		}
		for _, x := range d.Check() {
			if x.Line < 1 || x.Column < 1 || x.Message == "" || strings.Contains(x.Message, "\n") {
				t.Errorf("fault %#v", x)
			}
		}
		whole := d.root.append(nil)
		if !jsontext.Value(whole).IsValid() {
			t.Fatalf("not JSON: %s", whole)
		}
		again, err := Read("x", whole)
		if err != nil {
			t.Fatalf("%s: %v", whole, err)
		}
		if back := again.root.append(nil); !bytes.Equal(whole, back) {
			t.Fatalf("%s becomes %s", whole, back)
		}
		same(t, d, b)
	})
}

// same compares a document with what the YAML library itself makes of it, and
// with the text of the file.
func same(t *testing.T, d *Document, b []byte) {
	b = bytes.ReplaceAll(bytes.TrimPrefix(b, []byte("\ufeff")), []byte("\r\n"), []byte("\n"))
	lines := strings.Split(string(b), "\n")
	d.root.walk("", func(path string, n *node) {
		for _, m := range n.members {
			if m.line < 1 || m.line > len(lines) || m.col < 1 || m.col > utf8.RuneCountInString(lines[m.line-1])+1 {
				t.Fatalf("%s is at %d:%d, which is outside", child(path, m.name), m.line, m.col)
			}
			if rest := string([]rune(lines[m.line-1])[m.col-1:]); !strings.HasPrefix(rest, m.name) && !strings.HasPrefix(rest, `"`) && !strings.HasPrefix(rest, "'") {
				t.Fatalf("%s is at %d:%d, where %q stands", child(path, m.name), m.line, m.col, rest)
			}
		}
	})
	var v yaml.MapSlice
	if err := yaml.UnmarshalWithOptions(b, &v, yaml.UseOrderedMap(), yaml.AllowDuplicateMapKey()); err != nil {
		return // it takes less: 1_0_ or a date that is none
	}
	ordered(t, d.root, v)
}

func ordered(t *testing.T, n *node, v any) {
	switch v := v.(type) {
	case yaml.MapSlice:
		if n.kind != '{' || len(n.members) != len(v) {
			t.Fatalf("%s is %v", n.append(nil), v)
		}
		for i, m := range n.members {
			if key, ok := v[i].Key.(string); ok && key != m.name {
				t.Fatalf("member %d of %s is %q", i, n.append(nil), key)
			}
			ordered(t, m.value, v[i].Value)
		}
	case []any:
		if n.kind != '[' || len(n.items) != len(v) {
			t.Fatalf("%s is %v", n.append(nil), v)
		}
		for i, x := range n.items {
			ordered(t, x, v[i])
		}
	case string:
		if n.kind == '"' && n.text != v {
			t.Fatalf("%q is %q", n.text, v)
		}
		if n.kind == '{' || n.kind == '[' {
			t.Fatalf("%s is %q", n.append(nil), v)
		}
	}
}

func TestFaultsAsJSON(t *testing.T) {
	b, err := json.Marshal(Faults{{File: "x.yaml", Line: 1, Column: 2, Field: "a.b", Message: "want c", Source: "schema"}, {File: "y", Message: "gone", Source: "file"}})
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"file":"x.yaml","line":1,"column":2,"field":"a.b","message":"want c","source":"schema"},{"file":"y","message":"gone","source":"file"}]`
	if string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
}
