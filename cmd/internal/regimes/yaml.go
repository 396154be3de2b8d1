package regimes

import (
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

func readYAML(b []byte) (n *node, bad *trouble) {
	// The parser is not ours and reads what anyone typed.
	defer func() {
		if recover() != nil {
			n, bad = nil, &trouble{1, 1, "not YAML that can be read here: write it more plainly"}
		}
	}()
	toks := lexer.Tokenize(string(b))
	if bad := refuse(toks); bad != nil {
		return nil, bad
	}
	// Names that stand twice are told by shape, all of them.
	file, err := parser.Parse(toks, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, syntax(err)
	}
	var body ast.Node
	for _, d := range file.Docs {
		switch {
		case d.Body == nil:
		case body != nil:
			return nil, at(d.Body.GetToken(), "want one document")
		default:
			body = d.Body
		}
	}
	if body == nil {
		return nil, &trouble{1, 1, "the document is empty"}
	}
	return build(body, nil, 0)
}

// refuse looks for what no keyspace needs and what would keep the parser busy:
// it is stopped before it starts.
func refuse(toks token.Tokens) *trouble {
	if len(toks) > maxTokens {
		return at(toks[maxTokens], "the document has too many members")
	}
	var open []token.Type
	nested, began, ended := 0, false, false
	for i, t := range toks {
		if t.Position == nil {
			return &trouble{1, 1, "not YAML that can be read here"}
		}
		if i > 0 && toks[i-1].Position != nil && toks[i-1].Position.Line != t.Position.Line {
			nested = 0
		}
		switch t.Type {
		case token.InvalidType:
			if strings.Contains(t.Error, "'\t'") {
				return at(t, "a tab must not indent: want spaces")
			}
			return at(t, "%s", t.Error)
		case token.AnchorType, token.AliasType:
			return at(t, "want no anchors and aliases: write the value out; text that holds & or * stands in quotes")
		case token.MergeKeyType:
			return at(t, "want no merging: write the members out")
		case token.TagType:
			return at(t, "want no tags: text that looks like something else stands in quotes")
		case token.DirectiveType:
			return at(t, "want no directives; text that starts with %% stands in quotes")
		case token.MappingKeyType:
			return at(t, "want the member's name before the colon, without ?")
		case token.DocumentHeaderType:
			if began {
				return at(t, "want one document")
			}
			began = true
		case token.DocumentEndType:
			ended = true
		case token.SequenceStartType, token.MappingStartType:
			open = append(open, t.Type+1) // its end
		case token.SequenceEndType, token.MappingEndType:
			switch {
			case len(open) == 0:
				return at(t, "%s closes nothing", t.Value)
			case open[len(open)-1] != t.Type:
				return at(t, "want %s before %s", map[token.Type]string{token.SequenceEndType: "]", token.MappingEndType: "}"}[open[len(open)-1]], t.Value)
			}
			open = open[:len(open)-1]
		case token.SequenceEntryType:
			nested++
		}
		if len(open) > maxDepth || nested > maxDepth {
			return at(t, "want at most %d levels", maxDepth)
		}
		if t.Type != token.CommentType && t.Type != token.DocumentHeaderType && t.Type != token.DocumentEndType {
			if ended {
				return at(t, "want one document")
			}
			began = true
		}
	}
	return nil
}

func closes(t token.Type) bool {
	return t == token.CollectEntryType || t == token.MappingEndType || t == token.SequenceEndType
}

func at(t *token.Token, format string, args ...any) *trouble {
	bad := &trouble{1, 1, fmt.Sprintf(format, args...)}
	if t != nil && t.Position != nil {
		bad.line, bad.col = max(t.Position.Line, 1), max(t.Position.Column, 1)
	}
	return bad
}

func syntax(err error) *trouble {
	var y interface {
		GetToken() *token.Token
		GetMessage() string
	}
	if !errors.As(err, &y) {
		return &trouble{1, 1, "not YAML that can be read here"}
	}
	msg := strings.Join(strings.Fields(y.GetMessage()), " ")
	if strings.HasPrefix(msg, "mapping value is not allowed") {
		msg += "; text that holds a colon and a space stands in quotes"
	}
	return at(y.GetToken(), "%s", msg)
}

// build turns the parser's tree into values. entry is the dash before an item,
// for an item that has no token of its own.
func build(x ast.Node, entry *token.Token, depth int) (*node, *trouble) {
	if depth > maxDepth {
		return nil, at(x.GetToken(), "want at most %d levels", maxDepth)
	}
	n := &node{}
	n.line, n.col = start(x, entry)
	switch x := x.(type) {
	case *ast.MappingNode:
		n.kind = '{'
		return n, n.add(x.Values, depth)
	case *ast.MappingValueNode:
		n.kind = '{'
		return n, n.add([]*ast.MappingValueNode{x}, depth)
	case *ast.SequenceNode:
		n.kind = '['
		for i, v := range x.Values {
			var dash *token.Token
			if i < len(x.Entries) && x.Entries[i] != nil {
				dash = x.Entries[i].Start
			}
			item, bad := build(v, dash, depth+1)
			if bad != nil {
				return nil, bad
			}
			n.items = append(n.items, item)
		}
		return n, nil
	case *ast.LiteralNode:
		n.kind, n.text = '"', x.Value.Value
	case *ast.StringNode:
		if t := x.Token.Type; t == token.SingleQuoteType || t == token.DoubleQuoteType {
			n.kind, n.text = '"', x.Value
			break
		}
		return n, n.plain(x.Value)
	case *ast.NullNode:
		n.kind = 'n'
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n, n.plain(x.GetToken().Value)
	default:
		return nil, at(x.GetToken(), "want a value, a list or members")
	}
	if !utf8.ValidString(n.text) {
		return nil, at(x.GetToken(), "want UTF-8")
	}
	return n, nil
}

// start returns where a value starts. The parser's own token of a mapping is its
// first colon.
func start(x ast.Node, entry *token.Token) (line, col int) {
	t := x.GetToken()
	switch x := x.(type) {
	case *ast.MappingNode:
		t = x.Start
		if !x.IsFlowStyle && len(x.Values) > 0 {
			t = x.Values[0].Key.GetToken()
		}
	case *ast.MappingValueNode:
		t = x.Key.GetToken()
	case *ast.NullNode:
		if entry != nil {
			t = entry
		}
	}
	p := at(t, "")
	return p.line, p.col
}

func (n *node) add(values []*ast.MappingValueNode, depth int) *trouble {
	for _, v := range values {
		key := v.Key.GetToken()
		k, bad := build(v.Key, nil, depth+1)
		if bad != nil {
			return bad
		}
		if k.kind != '"' {
			return at(key, "want text as a member's name: put it in quotes")
		}
		m := member{name: k.text, line: k.line, col: k.col}
		if v.Start == nil || v.Start.Type != token.MappingValueType {
			// {code} is {code: null} to YAML, and never what was meant.
			return at(key, "want a colon and a value after the name; text in braces stands in quotes")
		}
		if next := v.Start.Next; key.Type == token.StringType && next != nil && next.Position.Line == v.Start.Position.Line &&
			next.Position.Column == v.Start.Position.Column+1 && !closes(next.Type) {
			// In braces the parser takes {read:all} for {read: all}, and YAML does not.
			return at(v.Start, "want a space after the colon; text that holds a colon stands in quotes")
		}
		if m.value, bad = build(v.Value, nil, depth+1); bad != nil {
			return bad
		}
		if _, none := v.Value.(*ast.NullNode); none {
			m.value.line, m.value.col = k.line, k.col
		}
		n.members = append(n.members, m)
	}
	return nil
}

// The plain scalars of the core schema of YAML 1.2, 10.3.2. What the parser makes
// of them is partly that of YAML 1.1, as 010 for eight.
var (
	integerRE = regexp.MustCompile(`^[-+]?[0-9]+$`)
	basedRE   = regexp.MustCompile(`^0(o[0-7]+|x[0-9a-fA-F]+)$`)
	floatRE   = regexp.MustCompile(`^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`)
	noneRE    = regexp.MustCompile(`^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$`)
)

func (n *node) plain(s string) *trouble {
	n.written = s
	switch s {
	case "", "~", "null", "Null", "NULL":
		n.kind = 'n'
		return nil
	case "true", "True", "TRUE":
		n.kind = 't'
		return nil
	case "false", "False", "FALSE":
		n.kind = 'f'
		return nil
	}
	switch {
	case noneRE.MatchString(s):
		return &trouble{n.line, n.col, s + " is no number that can be stored; put text in quotes"}
	case len(s) <= maxNumber && basedRE.MatchString(s):
		i, ok := new(big.Int).SetString(s, 0)
		if !ok {
			return &trouble{n.line, n.col, "not a number"}
		}
		n.kind, n.text = '0', i.String()
	case integerRE.MatchString(s), floatRE.MatchString(s):
		n.kind, n.text = '0', jsonNumber(s)
	case !utf8.ValidString(s):
		return &trouble{n.line, n.col, "want UTF-8"}
	default:
		n.kind, n.text = '"', s
	}
	return nil
}

// jsonNumber writes a decimal number of YAML as one of JSON: no plus, no zeros in
// front, digits on both sides of the point.
func jsonNumber(s string) string {
	sign := ""
	if s[0] == '-' {
		sign = "-"
	}
	s = strings.TrimLeft(s, "+-")
	exp := ""
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		s, exp = s[:i], s[i:]
	}
	whole, frac, point := strings.Cut(s, ".")
	if whole = strings.TrimLeft(whole, "0"); whole == "" {
		whole = "0"
	}
	if point {
		if frac == "" {
			frac = "0"
		}
		frac = "." + frac
	}
	return sign + whole + frac + exp
}
