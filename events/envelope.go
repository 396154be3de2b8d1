package events

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// ErrorRules are what a regime answers to its own clients when it refuses.
// Without an envelope the answer is RFC 9457 problem details.
type ErrorRules struct {
	ContentType string         `json:"content_type,omitzero"` // default application/json; with an envelope only
	Envelope    jsontext.Value `json:"envelope,omitzero"`     // an object whose strings may hold placeholders (CompileEnvelope); on the log without white space
	Answers     []ErrorAnswer  `json:"answers,omitempty"`     // a reason that none names is answered with the default
}

// ErrorAnswer is what the regime says for some reasons. What it leaves out takes
// the default.
type ErrorAnswer struct {
	Reasons []string `json:"reasons"`          // each of FailureReasons once at most
	Status  int      `json:"status,omitzero"`  // 400 to 599
	Code    string   `json:"code,omitzero"`    // for machines
	Message string   `json:"message,omitzero"` // for people; may hold {scope}, {resource}, {retry_after}
}

// Reasons of management answers, beside those of verification.
const (
	FailureInvalid     = "invalid"     // a request with bad fields
	FailureNotFound    = "not_found"   // what is named does not exist, or is not visible
	FailureConflict    = "conflict"    // not possible as things stand
	FailureForbidden   = "forbidden"   // the caller may not do that
	FailureUnavailable = "unavailable" // something that is needed is down
)

// FailureReasons lists every reason that a regime may give an answer for.
func FailureReasons() []string {
	var out []string
	for _, r := range Reasons() {
		if !r.Allowed() {
			out = append(out, r.String())
		}
	}
	return append(out, FailureInvalid, FailureNotFound, FailureConflict, FailureForbidden, FailureUnavailable)
}

// Failure is one refusal on its way to a client.
type Failure struct {
	Reason     string // one of FailureReasons
	Status     int    // HTTP status
	Title      string // of the status, as Unauthorized
	Code       string // for machines
	Message    string // for people
	RequestID  string
	Scope      string      // the scope asked for
	Resource   string      // the resource asked for, as kind/id
	RetryAfter int64       // seconds; 0 = not said
	Fields     FieldErrors // of FailureInvalid: one for each bad field
}

// Answer replaces status, code and message of f where the regime has its own for
// the reason. The caller sets Title to that of the status afterwards.
func (d *Definition) Answer(f *Failure) {
	for i := range d.Errors.Answers {
		a := &d.Errors.Answers[i]
		if !slices.Contains(a.Reasons, f.Reason) {
			continue
		}
		if a.Status != 0 {
			f.Status = a.Status
		}
		if a.Code != "" {
			f.Code = a.Code
		}
		if a.Message != "" {
			parts, _ := parseTemplate(a.Message)
			f.Message = string(parts.fill(nil, f, nil))
		}
		return
	}
}

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

// Append appends the body for f: compact JSON in ASCII, so that it fits a header
// as well.
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
			return n, fmt.Errorf("%q: %w", clip(s), err)
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
func (n *node) append(dst []byte, f *Failure, issue *FieldError) ([]byte, bool) {
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
		element := func(e *node, issue *FieldError) {
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

// template is text with holes.
type template []part

type part struct {
	text string
	name string // of a placeholder; "" for text
}

var placeholders = []string{"code", "message", "status", "title", "reason", "request_id", "scope", "resource", "retry_after", "field",
	"issue.code", "issue.message", "issue.path"}

func parseTemplate(s string) (template, error) {
	var t template
	text := ""
	for s != "" {
		i := strings.IndexByte(s, '{')
		if i < 0 {
			text += s
			break
		}
		text += s[:i]
		if strings.HasPrefix(s[i:], "{{") {
			text += "{"
			s = s[i+2:]
			continue
		}
		name, rest, ok := strings.Cut(s[i+1:], "}")
		if !ok || !slices.Contains(placeholders, name) {
			return nil, fmt.Errorf("%q: want a placeholder of %s; {{ is a brace", clip(s[i:]), strings.Join(placeholders, ", "))
		}
		if text != "" {
			t = append(t, part{text: text})
			text = ""
		}
		t = append(t, part{name: name})
		s = rest
	}
	if text != "" {
		t = append(t, part{text: text})
	}
	return t, nil
}

// holes reports whether the template holds nothing but placeholders, one at
// least.
func (t template) holes() bool {
	return len(t) > 0 && !slices.ContainsFunc(t, func(p part) bool { return p.name == "" })
}

// number returns the value of a template that is a number.
func (t template) number(f *Failure) (int64, bool) {
	if len(t) == 1 {
		switch t[0].name {
		case "status":
			return int64(f.Status), true
		case "retry_after":
			return f.RetryAfter, true
		}
	}
	return 0, false
}

// fill appends the text with the holes filled in; what is not known is "".
func (t template) fill(dst []byte, f *Failure, issue *FieldError) []byte {
	for _, p := range t {
		switch p.name {
		case "":
			dst = append(dst, p.text...)
		case "code":
			dst = append(dst, f.Code...)
		case "message":
			dst = append(dst, f.Message...)
		case "status":
			dst = strconv.AppendInt(dst, int64(f.Status), 10)
		case "title":
			dst = append(dst, f.Title...)
		case "reason":
			dst = append(dst, f.Reason...)
		case "request_id":
			dst = append(dst, f.RequestID...)
		case "scope":
			dst = append(dst, f.Scope...)
		case "resource":
			dst = append(dst, f.Resource...)
		case "retry_after":
			if f.RetryAfter > 0 {
				dst = strconv.AppendInt(dst, f.RetryAfter, 10)
			}
		case "field":
			if len(f.Fields) == 1 {
				dst = append(dst, DottedPath(f.Fields[0].Field)...)
			}
		}
		if issue != nil {
			switch p.name {
			case "issue.code":
				dst = append(dst, issue.Code...)
			case "issue.message":
				dst = append(dst, issue.Message...)
			case "issue.path":
				dst = append(dst, DottedPath(issue.Field)...)
			}
		}
	}
	return dst
}

// DottedPath returns a field's path with its indices after dots as well:
// resources[0].id is resources.0.id.
func DottedPath(field string) string {
	return strings.NewReplacer("[", ".", "]", "").Replace(field)
}

// appendASCII appends s as a JSON string in ASCII.
func appendASCII(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	unit := func(c rune) {
		dst = append(dst, '\\', 'u', hex[c>>12&15], hex[c>>8&15], hex[c>>4&15], hex[c&15])
	}
	dst = append(dst, '"')
	for _, c := range s { // bad UTF-8 becomes U+FFFD
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', byte(c))
		case c >= ' ' && c < 0x7f:
			dst = append(dst, byte(c))
		case c < 0x10000:
			unit(c)
		default:
			c -= 0x10000
			unit(0xd800 + c>>10)
			unit(0xdc00 + c&0x3ff)
		}
	}
	return append(dst, '"')
}

var (
	contentTypeRE = regexp.MustCompile(`^[a-z]+/[a-z0-9.+-]+(; ?charset=utf-8)?$`)
	codeRE        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$`)
)

// validate reports every fault of the rules, paths relative to them.
func (e *ErrorRules) validate() FieldErrors {
	var f FieldErrors
	if e.ContentType != "" {
		if len(e.ContentType) > 64 || !contentTypeRE.MatchString(e.ContentType) {
			f.Add("content_type", "invalid", "want a media type, as application/json")
		}
		if e.Envelope == nil {
			f.Add("content_type", "conflict", "want it with an envelope only: without one the answer is application/problem+json")
		}
	}
	if e.Envelope != nil {
		if _, err := CompileEnvelope(e.Envelope); err != nil {
			f.Add("envelope", "invalid", err.Error())
		}
	}
	known := FailureReasons()
	if len(e.Answers) > len(known) {
		f.Add("answers", "too_many", fmt.Sprintf("want at most %d", len(known)))
		return f
	}
	seen := map[string]bool{}
	for i := range e.Answers {
		a, p := &e.Answers[i], fmt.Sprintf("answers[%d]", i)
		if len(a.Reasons) == 0 {
			f.Add(p+".reasons", "required", "want at least one reason")
		}
		for j, r := range a.Reasons {
			path := fmt.Sprintf("%s.reasons[%d]", p, j)
			if !slices.Contains(known, r) {
				f.Add(path, "unknown_reason", fmt.Sprintf("reason %q: want one of %s", clip(r), strings.Join(known, ", ")))
				if j > len(known) {
					break
				}
			} else if seen[r] {
				f.Add(path, "duplicate", fmt.Sprintf("reason %q has an answer already", r))
			}
			seen[r] = true
		}
		if a.Status != 0 && (a.Status < 400 || a.Status > 599) {
			f.Add(p+".status", "invalid", "want 400 to 599")
		}
		if a.Code != "" && !codeRE.MatchString(a.Code) {
			f.Add(p+".code", "invalid", "want at most 64 letters, digits, '_', '.', ':' or '-'")
		}
		f.text(p+".message", a.Message, 300)
		t, err := parseTemplate(a.Message)
		if err != nil {
			f.Add(p+".message", "invalid", err.Error())
		}
		for _, x := range t {
			if x.name != "" && x.name != "scope" && x.name != "resource" && x.name != "retry_after" {
				f.Add(p+".message", "invalid", fmt.Sprintf("{%s}: want only {scope}, {resource} and {retry_after} in a message", x.name))
			}
		}
	}
	return f
}
