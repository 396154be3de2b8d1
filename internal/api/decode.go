package api

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events/input"
)

// Bounds says how much a JSON body may hold. Zero members take the defaults: they
// bound what decoding one body can cost, whatever it holds.
type Bounds struct {
	Items int            // elements of any one list; default 10,000, as many as an allowlist has
	Lists map[string]int // elements of the lists that are members of the body itself, by name, where they differ
}

const (
	maxDepth   = 32      // levels of lists and objects
	maxItems   = 10_000  // elements of a list
	maxMembers = 1_000   // members of an object
	maxValues  = 100_000 // values of a body
)

// nullable is implemented by types of members that accept null.
type nullable interface{ AcceptsNull() }

// mayBeEmpty are the members that are text for people, and the secret of a
// question, which is missing when it is "". Members of metadata may be empty too.
var mayBeEmpty = []string{"reason", "description", "title", "key"}

// PlainReader is a target that reads the form which nearly every client sends by itself.
type PlainReader interface {
	// ReadPlain reads the text and reports whether it has that form. If it does, the
	// strict reader takes the text too, with the same result and within the bounds of
	// the endpoint. If not, the target is as it was: the strict reader reads the text,
	// and is the only one that refuses any. Nothing of the text is kept, only copies.
	ReadPlain(text []byte) bool
}

// decode reads one JSON value into v, strictly: within bounds, UTF-8, nothing
// after it, no unknown and no repeated member; null only where the member's type
// accepts it, and "" only where the member is mere text: elsewhere they are
// mistakes, and not absent members. The error is a *Problem that names the member
// where it can.
func decode(b []byte, v any, bounds *Bounds) error {
	if p, ok := v.(PlainReader); ok && p.ReadPlain(b) {
		return nil
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return Errorf(http.StatusBadRequest, "bad_body", "want a JSON body")
	}
	blanks, err := bounds.scan(b)
	if err != nil {
		return err
	}
	var empty input.FieldErrors
	opts := strict
	if blanks { // of few bodies every value is looked at
		opts = json.JoinOptions(strict, json.WithUnmarshalers(json.UnmarshalFromFunc(func(dec *jsontext.Decoder, v any) error {
			return refuseBlanks(dec, v, &empty)
		})))
	}
	if err = json.Unmarshal(b, v, opts); err == nil {
		if len(empty) > 0 {
			return Invalid(empty)
		}
		return nil
	}
	if sem, ok := errors.AsType[*json.SemanticError](err); ok {
		return semantic(sem)
	}
	if syn, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return Errorf(http.StatusBadRequest, "bad_body", "the field %s stands twice", pointerToPath(syn.JSONPointer))
		}
		return Errorf(http.StatusBadRequest, "bad_body", "not valid JSON at byte %d", syn.ByteOffset)
	}
	return Errorf(http.StatusBadRequest, "bad_body", "not valid JSON")
}

// DecodeValue reads one JSON value that is part of a body, as strictly as the
// body itself: an element of a list of which each is answered on its own. The
// problem's fields are named from the value on; nil when there is none.
func DecodeValue(b []byte, v any) *Problem {
	p, _ := errors.AsType[*Problem](decode(b, v, new(Bounds)))
	return p
}

var strict = json.RejectUnknownMembers(true)

// refuseBlanks adds a value that says nothing to f, and leaves any other to the
// default.
func refuseBlanks(dec *jsontext.Decoder, v any, f *input.FieldErrors) error {
	switch dec.PeekKind() {
	case 'n':
		switch v.(type) {
		case nullable, *any, *jsontext.Value:
		default:
			err := dec.SkipValue()
			f.Add(pointerToPath(dec.StackPointer()), codeInvalid, "null is no value here: want a value, or leave the member out")
			return err
		}
	case '"':
		if reflect.TypeOf(v).Elem().Kind() != reflect.String {
			break
		}
		text, err := dec.ReadValue()
		if err != nil {
			return err
		}
		at := dec.StackPointer()
		name, parent := at.LastToken(), at.Parent().LastToken()
		if string(text) == `""` && !slices.Contains(mayBeEmpty, name) && parent != "metadata" {
			f.Add(pointerToPath(at), "empty", "want a value, or leave the member out")
			return nil
		}
		return json.Unmarshal(text, v, strict)
	}
	return errors.ErrUnsupported
}

func semantic(sem *json.SemanticError) *Problem {
	msg, code := "the value has the wrong form", codeInvalid
	switch {
	case errors.Is(sem, json.ErrUnknownName):
		msg, code = "no such field", "unknown_field"
	case sem.GoType != nil && sem.JSONKind != 0 && wanted(sem.GoType) != "" && (sem.Err == nil || isNumber(sem.GoType)):
		msg = wanted(sem.GoType)
		if k := kindName(sem.JSONKind); sem.JSONKind != '0' {
			msg += ", not " + k
		}
	case sem.Err != nil:
		msg = sem.Err.Error()
	}
	return Invalid(input.FieldErrors{{Field: pointerToPath(sem.JSONPointer), Code: code, Message: msg}})
}

func isNumber(t reflect.Type) bool { return t.Kind() >= reflect.Int && t.Kind() <= reflect.Float64 }

// wanted says what JSON a member of the type takes, "" when the type says so
// itself.
func wanted(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Bool:
		return "want true or false"
	case reflect.String:
		return "want a string"
	case reflect.Slice, reflect.Array:
		return "want a list"
	case reflect.Map, reflect.Struct:
		return "want an object"
	}
	if isNumber(t) {
		return "want an integer without fraction or exponent, as 60"
	}
	return ""
}

func kindName(k jsontext.Kind) string {
	switch k {
	case 'n':
		return "null"
	case 't', 'f':
		return "a boolean"
	case '"':
		return "a string"
	case '0':
		return "a number"
	case '{':
		return "an object"
	case '[':
		return "a list"
	}
	return "this"
}

// pointerToPath turns "/resources/0/id" into "resources[0].id". A name that is
// none of ours may be anything, a secret too (input.EchoName).
func pointerToPath(ptr jsontext.Pointer) string {
	out := ""
	for tok := range ptr.Tokens() {
		if _, err := strconv.ParseUint(tok, 10, 32); err == nil {
			out += "[" + tok + "]"
			continue
		}
		if out != "" {
			out += "."
		}
		out += input.EchoName(tok)
	}
	return out
}

// scan walks over the bytes of a JSON text before anything is made of it. It
// refuses what is beyond the bounds and reports whether there is a null or an empty
// string. It allocates nothing. Text that is not JSON passes: the decoder refuses it.
func (bounds *Bounds) scan(b []byte) (blanks bool, err error) {
	type level struct{ n, max int }
	var stack [maxDepth + 1]level
	depth, values := 0, 0
	var name []byte // of the member of the body that is read, with its quotes
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			start := i
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			blanks = blanks || i == start+1
			if depth == 1 && i < len(b) {
				name = b[start : i+1]
			}
		case '{', '[':
			if depth == maxDepth {
				return blanks, Errorf(http.StatusBadRequest, "bad_body", "want at most %d levels of lists and objects", maxDepth)
			}
			depth++
			values++
			stack[depth] = level{1, maxMembers}
			if b[i] == '[' {
				stack[depth].max = bounds.list(depth, name)
			}
		case '}', ']':
			depth = max(depth-1, 0)
		case ',':
			values++
			l := &stack[depth]
			if l.n++; l.n > l.max && depth > 0 {
				return blanks, tooMany(b[:i], l.max)
			}
		case 'n':
			blanks = true
		}
		if values > maxValues {
			return blanks, Errorf(http.StatusUnprocessableEntity, "too_many_values", "want at most %d values in a body", maxValues)
		}
	}
	return blanks, nil
}

// list returns how many elements the list at the depth may have. A name that
// hides behind an escape gets the strictest bound.
func (bounds *Bounds) list(depth int, name []byte) int {
	most := bounds.Items
	if most == 0 {
		most = maxItems
	}
	if depth != 2 || len(name) < 2 {
		return most
	}
	if n, ok := bounds.Lists[string(name[1:len(name)-1])]; ok {
		return n
	}
	if bytes.IndexByte(name, '\\') >= 0 {
		for _, n := range bounds.Lists {
			most = min(most, n)
		}
	}
	return most
}

// tooMany names the list or object that is too long: the innermost that is open
// at the end of b.
func tooMany(b []byte, most int) *Problem {
	dec := jsontext.NewDecoder(bytes.NewReader(b))
	for {
		if _, err := dec.ReadToken(); err != nil {
			break
		}
	}
	ptr := string(dec.StackPointer())
	kind, _ := dec.StackIndex(dec.StackDepth())
	if i := strings.LastIndexByte(ptr, '/'); i >= 0 && dec.StackDepth() > 0 {
		ptr = ptr[:i] // of the element: its list
	}
	field, what := pointerToPath(jsontext.Pointer(ptr)), "elements"
	if kind == '{' {
		what = "members"
	}
	if field == "" {
		field = "body"
	}
	return Invalid(input.FieldErrors{{Field: field, Code: "too_many", Message: fmt.Sprintf("want at most %d %s", most, what)}})
}
