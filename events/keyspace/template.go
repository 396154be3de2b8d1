package keyspace

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/keytrail/keytrail/events/input"
)

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
			return nil, fmt.Errorf("%s: want a placeholder of %s; {{ is a brace", input.Echo(s[i:]), strings.Join(placeholders, ", "))
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
func (t template) fill(dst []byte, f *Failure, issue *input.FieldError) []byte {
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
		case c >= ' ' && c < 0x7f && c != '<' && c != '>' && c != '&': // not these, should somebody take it for HTML
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
