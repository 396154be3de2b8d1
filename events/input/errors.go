package input

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// FieldError is one thing wrong with one member of an input.
type FieldError struct {
	Field   string `json:"field"`   // dotted path, as key_types[0].prefix
	Code    string `json:"code"`    // closed set: required, invalid, unknown_scope, ...
	Message string `json:"message"` // what is accepted; never repeats a secret
}

// FieldErrors is every fault of an input at once. The empty list is no error.
type FieldErrors []FieldError

// Add appends one fault.
func (f *FieldErrors) Add(field, code, message string) {
	*f = append(*f, FieldError{field, code, message})
}

// Merge appends the faults of a member, under its path.
func (f *FieldErrors) Merge(prefix string, more FieldErrors) {
	for _, e := range more {
		if e.Field == "" {
			e.Field = prefix
		} else {
			e.Field = prefix + "." + e.Field
		}
		*f = append(*f, e)
	}
}

// Error lists every fault.
func (f FieldErrors) Error() string {
	parts := make([]string, len(f))
	for i, e := range f {
		parts[i] = e.Field + ": " + e.Message
	}
	return strings.Join(parts, "; ")
}

// OrNil returns f as an error, nil when the list is empty.
func (f FieldErrors) OrNil() error {
	if len(f) == 0 {
		return nil
	}
	return f
}

// CheckText reports whether s is UTF-8 text of at most max characters without
// control characters.
func CheckText(s string, max int) error {
	if !utf8.ValidString(s) {
		return fmt.Errorf("want valid UTF-8")
	}
	if utf8.RuneCountInString(s) > max {
		return fmt.Errorf("want at most %d characters", max)
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("want no control characters")
	}
	return nil
}

// Text adds a fault of the field when s is not what CheckText accepts.
func (f *FieldErrors) Text(field, s string, max int) {
	if err := CheckText(s, max); err != nil {
		f.Add(field, "invalid", err.Error())
	}
}
