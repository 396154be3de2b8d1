package api

import (
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/keytrail/keytrail/events/input"
)

// Query holds the query parameters of a request as ParseQuery read them.
type Query []parameter

type parameter struct{ name, value string }

// maxParameters bounds a query: no endpoint has as many, and faults compares each
// parameter with all before it.
const maxParameters = 100

// ParseQuery reads a raw query string. Each parameter must be one of known, stand
// once, be UTF-8 and hold a value: a parameter that cannot be read is never taken
// for one that is absent. The error is a *Problem (400) when the whole cannot be
// read, else input.FieldErrors with every fault. This is the only place that
// reads a query string.
func ParseQuery(raw string, known ...string) (Query, error) {
	if raw == "" {
		return nil, nil
	}
	q := make(Query, 0, max(len(known), 1))
	sound := true // every parameter, so far
	for rest := raw; rest != ""; {
		var pair string
		if pair, rest, _ = strings.Cut(rest, "&"); pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(name)
		value, err2 := url.QueryUnescape(value)
		if err1 != nil || err2 != nil || strings.Contains(pair, ";") {
			return nil, Errorf(http.StatusBadRequest, "bad_query", "the query string cannot be read: want name=value pairs, joined by ampersands and percent-encoded")
		}
		if len(q) == maxParameters {
			return nil, Errorf(http.StatusBadRequest, "bad_query", "want at most %d query parameters", maxParameters)
		}
		sound = sound && slices.Contains(known, name) && !q.Has(name) && value != "" && utf8.ValidString(value)
		q = append(q, parameter{name, value})
	}
	if sound {
		return q, nil
	}
	return nil, q.faults(known)
}

// faults returns an error for each parameter that is not acceptable, each name once, in order.
func (q Query) faults(known []string) (f input.FieldErrors) {
	times := map[string]int{}
	for _, p := range q {
		times[p.name]++
	}
	unknown := false
	for name, n := range times {
		switch value := q.Get(name); {
		case !slices.Contains(known, name):
			unknown = true
		case n > 1:
			f.Add(name, "repeated", fmt.Sprintf("want it once, not %d times", n))
		case value == "":
			f.Add(name, "empty", "want a value, or leave the parameter out")
		case !utf8.ValidString(value):
			f.Add(name, "invalid", "want UTF-8")
		}
	}
	if unknown {
		want := "this endpoint takes no query parameters"
		if len(known) > 0 {
			want = "want only " + strings.Join(known, ", ")
		}
		f.Add("query", "unknown_parameter", want)
	}
	slices.SortFunc(f, func(a, b input.FieldError) int { return strings.Compare(a.Field, b.Field) })
	return f
}

func (q Query) find(name string) int {
	return slices.IndexFunc(q, func(p parameter) bool { return p.name == name })
}

// All yields each parameter's name and value.
func (q Query) All() iter.Seq2[string, string] {
	return func(yield func(name, value string) bool) {
		for _, p := range q {
			if !yield(p.name, p.value) {
				return
			}
		}
	}
}

// Has reports whether the parameter was given.
func (q Query) Has(name string) bool { return q.find(name) >= 0 }

// Get returns the parameter's value, "" when it was not given.
func (q Query) Get(name string) string {
	if i := q.find(name); i >= 0 {
		return q[i].value
	}
	return ""
}

// Flag reads a parameter that is true or false, and false when it was not given.
// It adds a fault of the value to f.
func (q Query) Flag(f *input.FieldErrors, name string) bool {
	v := q.Get(name)
	if q.Has(name) && v != "true" && v != "false" {
		f.Add(name, "invalid", "want true or false")
	}
	return v == "true"
}
