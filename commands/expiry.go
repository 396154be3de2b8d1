package commands

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keytrail/keytrail/events"
	"github.com/keytrail/keytrail/events/input"
	"github.com/keytrail/keytrail/events/keyspace"
)

// ExpiryWish is how a request says when a key shall expire: an instant, null for
// never, or a duration from now. With neither, the keyspace's default applies.
// There is no number that means "never": a zero is refused. Where the keyspace has
// choices, the duration is one of them, counted from the request.
type ExpiryWish struct {
	ExpiresAt Opt[string] `json:"expires_at,omitzero"` // RFC 3339, or null for never
	ExpiresIn *string     `json:"expires_in,omitzero"` // as 720h or 30d, or never
}

// Given reports whether the request says anything about the expiry.
func (w ExpiryWish) Given() bool { return w.ExpiresAt.Set || w.ExpiresIn != nil }

// resolve returns the expiry wished for, 0 for never. The policy bounds the life
// from born, which is now for a new key. Faults go to f.
func (w ExpiryWish) resolve(f *input.FieldErrors, p keyspace.ExpiryPolicy, born, now events.Time) events.Time {
	var at events.Time
	field := "expires_at"
	switch {
	case w.ExpiresAt.Set && w.ExpiresIn != nil:
		f.Add("expires_in", "conflict", "want either expires_at or expires_in, not both")
		return 0
	case w.ExpiresAt.Set && !w.ExpiresAt.Null:
		t, err := events.ParseTimeLenient(w.ExpiresAt.Value)
		if err != nil {
			f.Add(field, "invalid", err.Error())
			return 0
		}
		if t <= now {
			f.Add(field, "past", "want an instant in the future")
			return 0
		}
		at = t
	case w.ExpiresIn != nil && *w.ExpiresIn == string(keyspace.Never):
		field = "expires_in"
	case w.ExpiresIn != nil:
		field = "expires_in"
		d, err := keyspace.ParseSpan(*w.ExpiresIn)
		if err != nil || d < time.Millisecond {
			f.Add(field, "invalid", "want a positive duration of at most 100 years, as 90s, 720h or 30d")
			return 0
		}
		at = now.Add(d)
	case !w.ExpiresAt.Set && p.Default != "":
		at = now.Add(p.Default.Duration())
	}
	if w.Given() && len(p.Choices) > 0 && !w.chosen(p.Choices) {
		f.Add(field, "not_a_choice", fmt.Sprintf("keys of this keyspace live for one of %s: want it as expires_in", choices(p.Choices)))
		return 0
	}
	switch {
	case at == 0 && len(p.Choices) > 0 && p.MustEnd():
		f.Add(field, "required", fmt.Sprintf("keys of this keyspace must expire: want expires_in, one of %s", choices(p.Choices)))
	case at == 0 && p.Max != "":
		f.Add(field, "required", fmt.Sprintf("keys of this keyspace live %s at most: want expires_at or expires_in", p.Max))
	case at == 0 && p.Required:
		f.Add(field, "required", "keys of this keyspace must expire: want expires_at or expires_in")
	case p.Max != "" && at > born.Add(p.Longest()):
		f.Add(field, "too_late", fmt.Sprintf("keys of this keyspace live %s at most: want %s or earlier", p.Max, born.Add(p.Longest())))
	}
	return at
}

// ended returns the expiry of a key whose life is over, 0 for none. Faults go to f.
func (w ExpiryWish) ended(f *input.FieldErrors) events.Time {
	switch {
	case w.ExpiresIn != nil:
		f.Add("expires_in", "ended", "the key has ended: want the instant at which it would have expired as expires_at, or nothing")
	case w.ExpiresAt.Set && !w.ExpiresAt.Null:
		at, err := events.ParseTimeLenient(w.ExpiresAt.Value)
		if err != nil {
			f.Add("expires_at", "invalid", err.Error())
		}
		return at
	}
	return 0
}

// chosen reports whether the wish is one of the choices. An instant is none, even
// where it falls on one.
func (w ExpiryWish) chosen(list []keyspace.Span) bool {
	if w.ExpiresIn == nil || *w.ExpiresIn == string(keyspace.Never) {
		return (w.ExpiresIn != nil || w.ExpiresAt.Null) && slices.Contains(list, keyspace.Never)
	}
	d, err := keyspace.ParseSpan(*w.ExpiresIn)
	return err == nil && slices.ContainsFunc(list, func(c keyspace.Span) bool { return c != keyspace.Never && c.Duration() == d })
}

func choices(list []keyspace.Span) string {
	s := make([]string, len(list))
	for i, c := range list {
		s[i] = string(c)
	}
	return strings.Join(s, ", ")
}
