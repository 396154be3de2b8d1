package api

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/keytrail/keytrail/events/input"
)

// Query holds the query parameters of a request as ParseQuery read them.
type Query map[string]string

// ParseQuery reads a raw query string. Each parameter must be one of known, stand
// once, be UTF-8 and hold a value: a parameter that cannot be read is never taken
// for one that is absent. The error is a *Problem (400) when the whole cannot be
// read, else input.FieldErrors with every fault. This is the only place that
// reads a query string.
func ParseQuery(raw string, known ...string) (Query, error) {
	if raw == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, Errorf(http.StatusBadRequest, "bad_query", "the query string cannot be read: want name=value pairs, joined by ampersands and percent-encoded")
	}
	var f input.FieldErrors
	q := make(Query, len(values))
	unknown := false
	for name, v := range values {
		switch {
		case !slices.Contains(known, name):
			unknown = true
		case len(v) > 1:
			f.Add(name, "repeated", fmt.Sprintf("want it once, not %d times", len(v)))
		case v[0] == "":
			f.Add(name, "empty", "want a value, or leave the parameter out")
		case !utf8.ValidString(v[0]):
			f.Add(name, "invalid", "want UTF-8")
		default:
			q[name] = v[0]
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
	return q, f.OrNil()
}

// Has reports whether the parameter was given.
func (q Query) Has(name string) bool { _, ok := q[name]; return ok }

// Get returns the parameter's value, "" when it was not given.
func (q Query) Get(name string) string { return q[name] }

// Flag reads a parameter that is true or false, and false when it was not given.
// It adds a fault of the value to f.
func (q Query) Flag(f *input.FieldErrors, name string) bool {
	v, given := q[name]
	if given && v != "true" && v != "false" {
		f.Add(name, "invalid", "want true or false")
	}
	return v == "true"
}
