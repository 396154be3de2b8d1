package api

import (
	"bytes"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
)

// CodeSecret is the code of a request that holds a secret where none belongs.
const CodeSecret = "secret"

// SecretFound makes the 422 problem of a request that holds secrets where none
// belong. The fields say where.
func SecretFound(fields input.FieldErrors) *Problem {
	p := Errorf(http.StatusUnprocessableEntity, CodeSecret,
		"the request holds the secret of a key where none belongs; nothing was done. If others may have seen it on its way here, rotate that key")
	p.Errors = fields
	return p
}

// SecretFault is one field that holds a secret.
func SecretFault(field string) input.FieldError {
	return input.FieldError{Field: field, Code: CodeSecret, Message: "this holds a secret: it is not kept, looked up or repeated"}
}

// screened are the headers that endpoints read, beside those of the credential.
var screened = []string{"Idempotency-Key", "If-Match", "If-None-Match", "Prefer"}

// screen refuses a request that holds a secret anywhere in what an endpoint acts
// on: in its path, its query, its headers, or a name or string of its body. So no
// endpoint looks a secret up, stores it, or repeats it in an answer or a log.
func (r *Request) screen(known events.SecretFinder) error {
	var f input.FieldErrors
	for _, name := range wildcards(r.endpoint.Pattern) {
		if events.HoldsSecret(known, r.PathValue(name)) {
			f.Add(name, CodeSecret, "this is a secret, not an id")
		}
	}
	for _, name := range strings.Fields(r.endpoint.Query) {
		if events.HoldsSecret(known, r.Query.Get(name)) {
			f = append(f, SecretFault(name))
		}
	}
	for _, name := range screened {
		for _, v := range r.Header.Values(name) {
			if events.HoldsSecret(known, v) {
				f = append(f, SecretFault(name))
			}
		}
	}
	f = append(f, screenBody(r.body.text, known)...)
	if len(f) > 0 {
		return SecretFound(f)
	}
	return nil
}

// wildcards returns the names in braces of a pattern.
func wildcards(pattern string) (names []string) {
	for {
		_, rest, ok := strings.Cut(pattern, "{")
		if !ok {
			return names
		}
		var name string
		name, pattern, _ = strings.Cut(rest, "}")
		names = append(names, strings.TrimSuffix(name, "..."))
	}
}

// screenBody returns the members of a JSON text that hold a secret, in their name
// or their string. Where the text ends to be JSON it stops: the decoder refuses
// such a body.
func screenBody(b []byte, known events.SecretFinder) (f input.FieldErrors) {
	if len(b) < events.MinSecret {
		return nil
	}
	dec := jsontext.NewDecoder(bytes.NewReader(b), jsontext.AllowDuplicateNames(true))
	for {
		tok, err := dec.ReadToken()
		if err != nil {
			return f
		}
		if tok.Kind() != '"' {
			continue
		}
		if text := tok.String(); len(text) < events.MinSecret || !events.HoldsSecret(known, text) {
			continue
		}
		ptr := dec.StackPointer()
		if kind, n := dec.StackIndex(dec.StackDepth()); kind == '{' && n%2 == 1 { // a name
			ptr = ptr.Parent()
		}
		field := pointerToPath(ptr)
		if field == "" {
			field = "body"
		}
		f = append(f, SecretFault(field))
	}
}
