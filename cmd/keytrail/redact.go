package main

import (
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/keyspace"
	"github.com/keytrail/keytrail/projections"
)

// redaction takes the secrets of keys out of the lines of a log, whoever wrote the
// line: an error of a library may repeat what it was given.
type redaction struct {
	known atomic.Pointer[projections.Keys] // nil before the view is there: then only operators' keys are known, by their form
}

var operators = []*keyspace.Compiled{keyspace.Compile(events.BuiltinDefinition(), nil)}

// FindSecret implements events.SecretFinder.
func (r *redaction) FindSecret(text string) (start, end int, ok bool) {
	if v := r.known.Load(); v != nil {
		return v.FindSecret(text)
	}
	return events.FindSecret(text, slices.Values(operators), func(events.Digest) bool { return false })
}

// replace is for slog.HandlerOptions: it sees the message and every attribute.
func (r *redaction) replace(_ []string, a slog.Attr) slog.Attr {
	v := a.Value.Resolve()
	var text string
	switch v.Kind() {
	case slog.KindString:
		text = v.String()
	case slog.KindAny:
		switch x := v.Any().(type) {
		case error:
			text = x.Error()
		case fmt.Stringer:
			text = x.String()
		case []byte:
			text = string(x)
		default:
			text = fmt.Sprint(x)
		}
	}
	if events.HoldsSecret(r, text) {
		return slog.String(a.Key, events.WithoutSecrets(r, text))
	}
	return a
}
