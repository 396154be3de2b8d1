// Package regimes reads keyspace documents for the command line, and says of each
// fault on which line of the file it stands.
//
// It knows no member of a definition by name, except the name of the keyspace:
// what is right is said by the published JSON Schema and by package events.
package regimes

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// The bounds of a document. The parser of YAML needs a time that grows with the
// square of the tokens; the largest definition has a few ten thousand.
const (
	MaxBytes  = 1 << 20
	maxDepth  = 64
	maxTokens = 50_000
	maxNames  = 1000 // of one object
	maxItems  = 2000 // of one list
	maxFaults = 1000 // that the schema tells; nobody reads more
	maxNumber = 40   // characters; what JSON calls a number may be 1e999999999
)

// Fault is one thing wrong with a document.
type Fault struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitzero"`   // from 1; 0 is the file as a whole
	Column  int    `json:"column,omitzero"` // from 1, in characters
	Field   string `json:"field,omitzero"`  // dotted path, as key_types[0].prefix
	Message string `json:"message"`
	Source  string `json:"source"` // who says so: yaml, json, schema, rules, server
}

// String returns the fault as editors and compilers write it:
// shop.yaml:12:5: key_types[0].alphabet: want base62 or hex (schema).
func (f Fault) String() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", f.Line, f.Column)
	}
	b.WriteString(": ")
	if f.Field != "" {
		b.WriteString(f.Field + ": ")
	}
	fmt.Fprintf(&b, "%s (%s)", f.Message, f.Source)
	return b.String()
}

// Faults is every fault of a document, in the order of its lines. The empty list
// is no error.
type Faults []Fault

// Error returns the faults, one a line.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, x := range f {
		lines[i] = x.String()
	}
	return strings.Join(lines, "\n")
}

// OrNil returns f as an error, nil when the list is empty.
func (f Faults) OrNil() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

func (f Faults) sort() {
	slices.SortStableFunc(f, func(a, b Fault) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Message, b.Message))
	})
}

// Document is a keyspace document that could be read. Whether it is a good one
// says Check.
type Document struct {
	File string
	root *node
}

// Read reads one YAML or JSON document; what starts with { is JSON. The error is
// Faults.
func Read(file string, b []byte) (*Document, error) {
	fail := func(source string, line, col int, msg string) (*Document, error) {
		return nil, Faults{{File: file, Line: line, Column: col, Message: msg, Source: source}}
	}
	if len(b) > MaxBytes {
		return fail("file", 0, 0, fmt.Sprintf("want at most %d bytes", MaxBytes))
	}
	b = bytes.TrimPrefix(b, []byte("\ufeff"))
	for i, r := range string(b) {
		line, col := 0, 0
		bad := ""
		switch {
		case r == utf8.RuneError && !bytes.HasPrefix(b[i:], []byte("\ufffd")):
			bad = "want UTF-8"
		case r == '\r' && !bytes.HasPrefix(b[i:], []byte("\r\n")):
			bad = "want lines that end in a line feed"
		case r < ' ' && r != '\n' && r != '\t' && r != '\r', r == 0x7f, r == 0xfeff:
			bad = fmt.Sprintf("the character U+%04X must not stand here", r)
		}
		if bad != "" {
			line, col = position(b, i)
			return fail("file", line, col, bad)
		}
	}
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	source, read := "yaml", readYAML
	if bytes.HasPrefix(bytes.TrimLeft(b, " \t\n"), []byte("{")) {
		source, read = "json", readJSON
	}
	root, bad := read(b)
	if bad != nil {
		return fail(source, bad.line, bad.col, bad.msg)
	}
	d := &Document{File: file, root: root}
	if f := d.shape(source); len(f) > 0 {
		return nil, f
	}
	return d, nil
}

// shape returns what no reader of JSON would take: names that stand twice and
// numbers without end.
func (d *Document) shape(source string) Faults {
	var f Faults
	if d.root.kind != '{' {
		f = append(f, Fault{File: d.File, Line: d.root.line, Column: d.root.col, Source: source, Message: "want a document of members, as name: my-product"})
	}
	d.root.walk("", func(path string, n *node) {
		switch n.kind {
		case '{':
			if len(n.members) > maxNames {
				f = append(f, Fault{d.File, n.line, n.col, path, fmt.Sprintf("want at most %d members", maxNames), source})
				return
			}
			first := map[string]*member{}
			for i := range n.members {
				m := &n.members[i]
				if was := first[m.name]; was != nil {
					f = append(f, Fault{d.File, m.line, m.col, child(path, m.name), fmt.Sprintf("stands twice, first on line %d", was.line), source})
					continue
				}
				first[m.name] = m
			}
		case '[':
			if len(n.items) > maxItems {
				f = append(f, Fault{d.File, n.line, n.col, path, fmt.Sprintf("want at most %d items", maxItems), source})
			}
		case '0':
			if _, exp, _ := strings.Cut(strings.ToLower(n.text), "e"); len(n.text) > maxNumber || len(strings.TrimLeft(exp, "+-0")) > 2 {
				f = append(f, Fault{d.File, n.line, n.col, path, "the number is too long", source})
			}
		}
	})
	f.sort()
	return f
}

// Name returns the keyspace's id, "" when the document has none.
func (d *Document) Name() events.KeyspaceID {
	if n := d.root.member("name"); n != nil && n.value.kind == '"' {
		return events.KeyspaceID(n.value.text)
	}
	return ""
}

// Definition returns the document without its name as JSON, with the members in
// the order of the file. A reason that is not empty goes with it.
func (d *Document) Definition(reason string) jsontext.Value {
	def := d.definition()
	if reason != "" {
		def.members = append(def.members, member{name: "reason", value: &node{kind: '"', text: reason}})
	}
	return def.append(nil)
}

func (d *Document) definition() *node {
	def := &node{kind: '{'}
	for _, m := range d.root.members {
		if m.name != "name" {
			def.members = append(def.members, m)
		}
	}
	return def
}

// Locate adds the place in the file to faults of the definition, and returns
// them in the order of the lines.
func (d *Document) Locate(source string, fields input.FieldErrors) Faults {
	var f Faults
	for _, e := range fields {
		f = append(f, d.fault(source, e.Field, e.Message))
	}
	f.sort()
	return f
}

func (d *Document) fault(source, field, msg string) Fault {
	line, col := d.At(field)
	return Fault{d.File, line, col, field, msg, source}
}

// At returns the line and the column of a member, by its dotted path as
// errors.answers[2].status, or by its JSON pointer as /errors/answers/2/status.
// What is not in the file is where its nearest parent is.
func (d *Document) At(path string) (line, col int) {
	line, col = d.root.line, d.root.col
	n := d.root
	for path != "" {
		var x *node
		var rest string
		if n.kind == '{' {
			m, r := n.longest(path)
			if m == nil {
				break
			}
			line, col = m.line, m.col
			x, rest = m.value, r
		} else if n.kind == '[' {
			i, r, ok := index(path)
			if !ok || i >= len(n.items) {
				break
			}
			x, rest = n.items[i], r
			line, col = x.line, x.col
		} else {
			break
		}
		n, path = x, rest
	}
	return line, col
}
