package commands

import (
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Opt is a member of a body that may be absent, null or a value, where the
// three mean different things.
type Opt[T any] struct {
	Set   bool // the member stands in the body
	Null  bool // as null
	Value T    // what it says when it is not null
}

// Some returns an Opt that holds v.
func Some[T any](v T) Opt[T] { return Opt[T]{Set: true, Value: v} }

// Null returns an Opt that stands for null.
func Null[T any]() Opt[T] { return Opt[T]{Set: true, Null: true} }

// IsZero reports whether the member is absent, for omitzero.
func (o Opt[T]) IsZero() bool { return !o.Set }

// AcceptsNull says that null is a value of the member, for the reader of bodies.
func (o *Opt[T]) AcceptsNull() {}

// UnmarshalJSONFrom reads the member with the options of the body around it.
func (o *Opt[T]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*o = Opt[T]{Set: true}
	if dec.PeekKind() == 'n' {
		o.Null = true
		return dec.SkipValue()
	}
	return json.UnmarshalDecode(dec, &o.Value)
}

// MarshalJSONTo writes the member as it was read.
func (o Opt[T]) MarshalJSONTo(enc *jsontext.Encoder) error {
	if o.Null || !o.Set {
		return enc.WriteToken(jsontext.Null)
	}
	return json.MarshalEncode(enc, o.Value)
}
