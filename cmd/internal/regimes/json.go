package regimes

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

func readJSON(b []byte) (*node, *trouble) {
	r := &jsonReader{b: b, dec: jsontext.NewDecoder(bytes.NewBuffer(b), jsontext.AllowDuplicateNames(true))}
	n, bad := r.value(0)
	if bad != nil {
		return nil, bad
	}
	start := r.next()
	if _, err := r.dec.ReadToken(); !errors.Is(err, io.EOF) {
		return nil, r.at(start, "want one document")
	}
	return n, nil
}

type jsonReader struct {
	b   []byte
	dec *jsontext.Decoder

	seen, line, col int // the place that was asked for last
}

// place is position for questions that go forward: a document may be one long
// line.
func (r *jsonReader) place(offset int) (line, col int) {
	offset = min(offset, len(r.b))
	if offset < r.seen {
		return position(r.b, offset)
	}
	line, col = position(r.b[r.seen:offset], offset-r.seen)
	if line == 1 {
		col += r.col
	}
	r.seen, r.line, r.col = offset, r.line+line-1, col-1
	return r.line + 1, col
}

// next returns where the next token starts.
func (r *jsonReader) next() int {
	i := int(r.dec.InputOffset())
	for i < len(r.b) && bytes.IndexByte([]byte(" \t\n,:"), r.b[i]) >= 0 {
		i++
	}
	return i
}

func (r *jsonReader) at(offset int, format string, args ...any) *trouble {
	line, col := r.place(offset)
	return &trouble{line, col, fmt.Sprintf(format, args...)}
}

func (r *jsonReader) fail(err error) *trouble {
	var syn *jsontext.SyntacticError
	switch {
	case errors.As(err, &syn):
		return r.at(int(syn.ByteOffset), "not JSON, which a document that starts with { must be: %v", syn.Err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return r.at(len(r.b), "not JSON, which a document that starts with { must be: it ends too early")
	}
	return r.at(0, "not JSON, which a document that starts with { must be")
}

func (r *jsonReader) value(depth int) (*node, *trouble) {
	start := r.next()
	if depth > maxDepth {
		return nil, r.at(start, "want at most %d levels", maxDepth)
	}
	tok, err := r.dec.ReadToken()
	if err != nil {
		return nil, r.fail(err)
	}
	n := &node{kind: byte(tok.Kind())}
	n.line, n.col = r.place(start)
	switch n.kind {
	case '"':
		n.text = tok.String()
	case '0':
		n.text = tok.String()
	case '{':
		for r.dec.PeekKind() != '}' {
			m := member{}
			m.line, m.col = r.place(r.next())
			name, err := r.dec.ReadToken()
			if err != nil {
				return nil, r.fail(err)
			}
			m.name = name.String()
			var bad *trouble
			if m.value, bad = r.value(depth + 1); bad != nil {
				return nil, bad
			}
			n.members = append(n.members, m)
		}
		if _, err := r.dec.ReadToken(); err != nil {
			return nil, r.fail(err)
		}
	case '[':
		for r.dec.PeekKind() != ']' {
			x, bad := r.value(depth + 1)
			if bad != nil {
				return nil, bad
			}
			n.items = append(n.items, x)
		}
		if _, err := r.dec.ReadToken(); err != nil {
			return nil, r.fail(err)
		}
	}
	return n, nil
}
