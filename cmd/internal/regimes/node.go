package regimes

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// node is a JSON value and where it stands.
type node struct {
	kind      byte     // as jsontext.Kind: { [ " 0 t f n
	text      string   // of a string its value, of a number its JSON
	written   string   // of a plain scalar of YAML: as it stands in the file
	members   []member // of {
	items     []*node  // of [
	line, col int
}

type member struct {
	name      string
	line, col int // of the name
	value     *node
}

// trouble is why a document cannot be read.
type trouble struct {
	line, col int
	msg       string
}

func (n *node) member(name string) *member {
	for i := range n.members {
		if n.members[i].name == name {
			return &n.members[i]
		}
	}
	return nil
}

// longest returns the member whose name the path starts with, and what is left
// of the path. Names may hold dots: the longest that fits is meant.
func (n *node) longest(path string) (*member, string) {
	var found *member
	var left string
	for i := range n.members {
		m := &n.members[i]
		if found != nil && len(m.name) <= len(found.name) {
			continue
		}
		if rest, ok := after(path, m.name); ok {
			found, left = m, rest
		} else if path[0] == '/' {
			if rest, ok := after(path, "/"+escaper.Replace(m.name)); ok {
				found, left = m, rest
			}
		}
	}
	return found, left
}

// after cuts a whole first step from a path.
func after(path, step string) (string, bool) {
	rest, ok := strings.CutPrefix(path, step)
	switch {
	case !ok:
		return "", false
	case rest == "", rest[0] == '[', rest[0] == '/':
		return rest, true
	case rest[0] == '.':
		return rest[1:], true
	}
	return "", false
}

// index cuts a number from a path: [2], 2 or /2.
func index(path string) (i int, rest string, ok bool) {
	s, bracket := strings.CutPrefix(path, "[")
	if !bracket {
		s = strings.TrimPrefix(path, "/")
	}
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	i, err := strconv.Atoi(s[:end])
	if err != nil {
		return 0, "", false
	}
	rest = s[end:]
	if bracket {
		if rest, ok = strings.CutPrefix(rest, "]"); !ok {
			return 0, "", false
		}
	}
	return i, strings.TrimPrefix(rest, "."), true
}

var escaper = strings.NewReplacer("~", "~0", "/", "~1")

// child returns the dotted path of a member.
func child(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// dotted turns the steps of a JSON pointer into a dotted path, as far as the
// file has them; it takes a number behind that for an index.
func (n *node) dotted(steps []string) string {
	path := ""
	for _, s := range steps {
		_, err := strconv.Atoi(s)
		if n != nil && n.kind == '{' || err != nil {
			path = child(path, s)
		} else {
			path += "[" + s + "]"
		}
		n = n.step(s)
	}
	return path
}

// step returns a member or an item, nil if there is none.
func (n *node) step(s string) *node {
	switch {
	case n == nil:
	case n.kind == '{':
		if m := n.member(s); m != nil {
			return m.value
		}
	case n.kind == '[':
		if i, err := strconv.Atoi(s); err == nil && i >= 0 && i < len(n.items) {
			return n.items[i]
		}
	}
	return nil
}

// find returns the node of a JSON pointer, nil if there is none.
func (n *node) find(steps []string) *node {
	for _, s := range steps {
		n = n.step(s)
	}
	return n
}

// holder returns the steps to the object that has the member: those given if they
// lead there, or else the first that are as many. The validator hands out the
// steps of a bad name in memory that it goes on using, so that only their number
// can be relied on.
func (n *node) holder(steps []string, name string) []string {
	if x := n.find(steps); x != nil && x.kind == '{' && x.member(name) != nil {
		return slices.Clone(steps)
	}
	var search func(x *node, at []string) []string
	search = func(x *node, at []string) []string {
		if len(at) == len(steps) {
			if x.kind == '{' && x.member(name) != nil {
				return slices.Clone(at)
			}
			return nil
		}
		for _, m := range x.members {
			if found := search(m.value, append(at, m.name)); found != nil {
				return found
			}
		}
		for i, item := range x.items {
			if found := search(item, append(at, strconv.Itoa(i))); found != nil {
				return found
			}
		}
		return nil
	}
	if found := search(n, make([]string, 0, len(steps))); found != nil {
		return found
	}
	return slices.Clone(steps)
}

func (n *node) walk(path string, f func(path string, n *node)) {
	f(path, n)
	for _, m := range n.members {
		m.value.walk(child(path, m.name), f)
	}
	for i, x := range n.items {
		x.walk(path+"["+strconv.Itoa(i)+"]", f)
	}
}

// append writes the value as JSON, members in the order of the file.
func (n *node) append(b []byte) []byte {
	switch n.kind {
	case '{':
		b = append(b, '{')
		for i, m := range n.members {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(quote(b, m.name), ':')
			b = m.value.append(b)
		}
		return append(b, '}')
	case '[':
		b = append(b, '[')
		for i, x := range n.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = x.append(b)
		}
		return append(b, ']')
	case '"':
		return quote(b, n.text)
	case '0':
		return append(b, n.text...)
	case 't':
		return append(b, "true"...)
	case 'f':
		return append(b, "false"...)
	}
	return append(b, "null"...)
}

func quote(b []byte, s string) []byte {
	b, err := jsontext.AppendQuote(b, s)
	if err != nil {
		panic(err) // the readers let only UTF-8 in
	}
	return b
}

// position returns line and column, in characters, of a byte.
func position(b []byte, offset int) (line, col int) {
	before := b[:min(offset, len(b))]
	start := bytes.LastIndexByte(before, '\n') + 1
	return bytes.Count(before, []byte{'\n'}) + 1, utf8.RuneCount(before[start:]) + 1
}
