package keyspace

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events/input"
)

// An Envelope is an error body with holes in it.
type Envelope struct{ root node }

// The bounds of an envelope.
const (
	MaxEnvelope      = 8192 // bytes
	maxEnvelopeDepth = 8
	maxIssues        = 1000 // elements of a list of bad fields: each may be as long as the envelope
)

// CompileEnvelope reads the template of an error body: a JSON object whose
// strings may hold {code}, {message}, {status}, {title}, {reason}, {request_id},
// {scope}, {resource}, {retry_after} and {field} (the one bad field, when there
// is exactly one). A list of one element that holds {issue.code},
// {issue.message} or {issue.path} stands for one element for each bad field, the
// first 1000 of them; there is no such list within such a list. {{ is a brace. A
// string that is {status} or {retry_after} alone becomes a number.
// A member, or an element of a list, whose value comes to nothing is left out.
func CompileEnvelope(v jsontext.Value) (*Envelope, error) {
	if len(v) > MaxEnvelope {
		return nil, fmt.Errorf("want at most %d bytes", MaxEnvelope)
	}
	dec := jsontext.NewDecoder(bytes.NewReader(v))
	if dec.PeekKind() != '{' {
		return nil, fmt.Errorf("want an object")
	}
	root, err := compile(dec, 0)
	if err != nil {
		return nil, err
	}
	if root.issue {
		return nil, fmt.Errorf("want {issue.code}, {issue.message} and {issue.path} inside a list of one element only")
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return nil, fmt.Errorf("want nothing after the object")
	}
	return &Envelope{root}, nil
}

// Append appends the body for f: compact JSON in ASCII without <, > and &, so that
// it fits a header and is no HTML.
func (e *Envelope) Append(dst []byte, f *Failure) []byte {
	out, ok := e.root.append(dst, f, nil)
	if !ok {
		return append(dst, "{}"...)
	}
	return out
}

// node is one value of an envelope.
type node struct {
	kind    jsontext.Kind
	literal []byte   // of null, true, false and numbers
	text    template // of strings
	names   []string // of objects
	nodes   []node   // of objects and lists
	repeat  bool     // a list whose only element stands for every bad field
	repeats bool     // it is or holds such a list
	issue   bool     // it holds {issue.…} outside such a list
}

func compile(dec *jsontext.Decoder, depth int) (n node, err error) {
	if depth > maxEnvelopeDepth {
		return n, fmt.Errorf("want at most %d levels", maxEnvelopeDepth)
	}
	n.kind = dec.PeekKind()
	switch n.kind {
	case '{', '[':
		if _, err = dec.ReadToken(); err != nil {
			return n, err
		}
		for dec.PeekKind() != '}' && dec.PeekKind() != ']' {
			if n.kind == '{' {
				name, err := dec.ReadToken()
				if err != nil {
					return n, err
				}
				n.names = append(n.names, name.String())
			}
			child, err := compile(dec, depth+1)
			if err != nil {
				return n, err
			}
			n.nodes = append(n.nodes, child)
			n.issue = n.issue || child.issue
			n.repeats = n.repeats || child.repeats
		}
		if n.kind == '[' && len(n.nodes) == 1 && n.issue {
			if n.repeats { // its length would be the number of bad fields squared, and so on
				return n, fmt.Errorf("want no list of {issue.code}, {issue.message} or {issue.path} within another")
			}
			n.repeat, n.repeats, n.issue = true, true, false
		}
		_, err = dec.ReadToken()
		return n, err
	case '"':
		t, err := dec.ReadToken()
		if err != nil {
			return n, err
		}
		s := t.String()
		if n.text, err = parseTemplate(s); err != nil {
			return n, fmt.Errorf("%s: %w", input.Echo(s), err)
		}
		for _, p := range n.text {
			n.issue = n.issue || strings.HasPrefix(p.name, "issue.")
		}
		return n, nil
	}
	v, err := dec.ReadValue()
	n.literal = slices.Clone(v)
	return n, err
}

// append appends the value, or reports false when it comes to nothing.
func (n *node) append(dst []byte, f *Failure, issue *input.FieldError) ([]byte, bool) {
	start := len(dst)
	switch n.kind {
	case '{':
		dst = append(dst, '{')
		for i := range n.nodes {
			mark := len(dst)
			if mark > start+1 {
				dst = append(dst, ',')
			}
			dst = append(appendASCII(dst, n.names[i]), ':')
			var ok bool
			if dst, ok = n.nodes[i].append(dst, f, issue); !ok {
				dst = dst[:mark]
			}
		}
		if len(dst) == start+1 {
			return dst[:start], false
		}
		return append(dst, '}'), true
	case '[':
		dst = append(dst, '[')
		element := func(e *node, issue *input.FieldError) {
			mark := len(dst)
			if mark > start+1 {
				dst = append(dst, ',')
			}
			var ok bool
			if dst, ok = e.append(dst, f, issue); !ok {
				dst = dst[:mark]
			}
		}
		if n.repeat {
			for i := range f.Fields[:min(len(f.Fields), maxIssues)] {
				element(&n.nodes[0], &f.Fields[i])
			}
		} else {
			for i := range n.nodes {
				element(&n.nodes[i], issue)
			}
		}
		if len(dst) == start+1 {
			return dst[:start], false
		}
		return append(dst, ']'), true
	case '"':
		if number, ok := n.text.number(f); ok {
			if number <= 0 {
				return dst, false
			}
			return strconv.AppendInt(dst, number, 10), true
		}
		s := n.text.fill(nil, f, issue)
		if len(s) == 0 && n.text.holes() {
			return dst, false
		}
		return appendASCII(dst, string(s)), true
	}
	return append(dst, n.literal...), true
}
